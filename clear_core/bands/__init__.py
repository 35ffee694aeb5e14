"""One forward in bands of image rows: on one device to save memory, or on several with halo exchange."""
