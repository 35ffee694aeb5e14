"""What CLEAR does, made visible: the window, the plan of tiles, the cost by size, the backends of this machine.

`cost` computes, `terminal` and `figure` draw it. `python -m clear_core` and the nodes that explain share all three.
matplotlib is needed for pictures only, and imported where one is drawn.
"""
