"""Backend `triton`: one fused kernel over tiles that it reads in place."""
