"""torch.compile around CLEAR: what it raises where no graph break is allowed, said in words."""

from __future__ import annotations

_FULLGRAPH = (
    "torch.compile with fullgraph on cannot compile a model with CLEAR, which chooses a backend for each layer outside "
    "of the compiled graph. Turn fullgraph off on the node that compiles the model, or remove that node."
)


def explained(error: Exception) -> Exception:
    """What to raise for an exception from the model: itself, or one that says what to do about fullgraph."""
    # By name: importing torch._dynamo takes seconds. It raises this kind to callers under fullgraph only.
    kinds = {f"{kind.__module__}.{kind.__name__}" for kind in type(error).__mro__}
    return RuntimeError(_FULLGRAPH) if "torch._dynamo.exc.Unsupported" in kinds else error
