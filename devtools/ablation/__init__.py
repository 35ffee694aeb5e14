"""Every strategy on the small FLUX, before and after the same distillation, at equal cost."""
