"""Forwards in bands over several machines: the driver's side in ComfyUI, and the worker's."""
