"""A real ComfyUI to try the pack in: the server, a client for it, and demo model files.

Used by `dev.py run`, by the benchmarks and by the tests; runs inside the environment that dev.py makes.
"""
