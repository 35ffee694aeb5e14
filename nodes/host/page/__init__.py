"""What ComfyUI's page asks the server."""
