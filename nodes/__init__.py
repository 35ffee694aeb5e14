"""What a person drags into a graph, one thin file per node. `host` is the only one that knows ComfyUI."""
