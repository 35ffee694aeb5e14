"""How a MODEL or CONTROL_NET gets its attention window: weight patches, wrappers, the attention override."""
