"""Backend `sdpa`: gathered tiles through PyTorch's scaled_dot_product_attention."""
