"""The type that travels between this pack's nodes."""

from comfy_api.latest import io

CLEAR_WEIGHTS = io.Custom("CLEAR_WEIGHTS")
"""Carries a `clear_core.weights.ClearWeights`."""

CATEGORY = "CLEAR"
