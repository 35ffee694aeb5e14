"""Validated settings: what the inputs of the nodes mean. Never imports `host`."""
