"""A small FLUX trained from nothing on procedural scenes: the pictures of the demo, and a model to measure on."""
