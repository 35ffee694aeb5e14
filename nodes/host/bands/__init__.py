"""A forward of the host's FLUX in bands: on one device to save memory, or on several."""
