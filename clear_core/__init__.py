"""CLEAR (arXiv 2412.16112) in plain PyTorch: local attention for FLUX. Knows nothing of any host.

Start at `attention.local_attention`; `layout` and `pattern` say which token sees which.
"""
