"""The nodes, one file each. `options` validates inputs, `insight` explains, `host` alone knows ComfyUI's internals."""
