"""Training through ComfyUI's own FLUX: a dense teacher and a windowed student on one frozen base.

model      predictions of both, and gradients end to end or layer by layer
blocks     one transformer block with trained projections swapped in
"""
