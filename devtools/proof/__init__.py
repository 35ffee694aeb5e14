"""What the window costs the small FLUX, and what distillation gives back, measured."""
