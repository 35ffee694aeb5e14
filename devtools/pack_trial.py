"""Another pack's node beside CLEAR: a sampling run with both, against that node alone under the window's mask.

The expected image needs no hook of ComfyUI's: the host's attention function itself is replaced by dense attention under
an explicit mask. A pack that CLEAR cannot follow therefore shows, and one that takes CLEAR's hook away shows too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.module import register_module_forward_pre_hook

from .models import flux_model, inputs

HEIGHT, WIDTH = 40, 48
"""Of the latent, in cells: 320 x 384 pixels, 20 x 24 tokens."""
RADIUS = 5
_TEXT, _STEPS = 9, 4
# Far above float32's rounding over the steps here, far below the effect of one wrong token.
_EXACT = 1e-5


@dataclass(frozen=True)
class Trial:
    """node: the id of another pack's node, which takes a MODEL and returns one, or a GUIDER. inputs: its widgets that
    are not at their defaults.
    """

    node: str
    inputs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What one order of nodes gave. Errors are relative, in the L2 norm over the final latent.

    error: against the node alone under the window's mask. dense: against the node alone, dense.
    refusal: the text of the error that ended it; the other two are None then.
    """

    order: str
    error: float | None = None
    dense: float | None = None
    refusal: str | None = None

    def __str__(self) -> str:
        if self.refusal is not None:
            return f"{self.order}: refused: {self.refusal}"
        assert self.error is not None and self.dense is not None
        if self.dense <= _EXACT:  # first: where the node brings an attention of its own, no mask reaches it
            return f"{self.order}: dense, the window is lost ({self.error:.1e})"
        return f"{self.order}: {'exact' if self.error <= _EXACT else 'differs'} ({self.error:.1e})"


def try_node(nodes: Mapping[str, Any], trial: Trial) -> Iterator[Outcome]:
    """Every order of the node, Apply CLEAR Attention and two bands, each on a fresh model.

    nodes: the host's node classes by id, with this pack's and the other's.
    """

    def other(model: Any) -> Any:
        return call(nodes[trial.node], {**trial.inputs, "model": model})

    def apply(model: Any) -> Any:
        return call(nodes["CLEARApply"], {"model": model, "radius": RADIUS})

    def bands(model: Any) -> Any:
        return call(nodes["CLEARMultiGPU"], {"model": model, "devices": "cpu", "bands": 2})

    with windowed(RADIUS):
        expected = sample(other(flux_model()))
    dense = sample(other(flux_model()))
    orders: dict[str, tuple[Callable[[Any], Any], ...]] = {"Apply, node": (apply, other)}
    if not _is_guider(other(flux_model())):
        orders["node, Apply"] = (other, apply)
        orders["node, Apply, 2 bands"] = (other, apply, bands)
    orders["Apply, 2 bands, node"] = (apply, bands, other)
    for order, steps in orders.items():
        yield _outcome(order, steps, expected, dense)


def _outcome(order: str, steps: tuple[Callable[[Any], Any], ...], expected: Tensor, dense: Tensor) -> Outcome:
    made = flux_model()
    try:
        for step in steps:
            made = step(made)
        image = sample(made)
    except Exception as error:  # whatever another pack may raise is the finding
        return Outcome(order, refusal=f"{type(error).__name__}: {error}")
    return Outcome(order, _error(image, expected), _error(image, dense))


def call(node: Any, given: Mapping[str, Any]) -> Any:
    """A node's first output. Inputs that are not given are at their defaults, conditionings are a prompt."""
    kinds = node.INPUT_TYPES()
    values = {name: _value(kind) for name, kind in kinds.get("required", {}).items() if name not in given}
    values |= given
    if hasattr(node, "PREPARE_CLASS_CLONE"):
        from comfy_api.latest import io

        defaults = {i.id: i.default for i in node.define_schema().inputs if hasattr(i, "default")}
        hidden = {io.Hidden.unique_id: node.__name__}
        clone = node.PREPARE_CLASS_CLONE({**hidden, "hidden_inputs": hidden})
        return clone.execute(**{**defaults, **values}).args[0]
    return getattr(node(), node.FUNCTION)(**values)[0]


def _value(kind: Any) -> Any:
    options = kind[1] if len(kind) > 1 else {}
    if kind[0] == "CONDITIONING":
        return _prompt()
    if "default" in options:
        return options["default"]
    choices = kind[0] if isinstance(kind[0], (list, tuple)) else options.get("options")
    return choices[0] if choices else None


def _prompt() -> list[Any]:
    given = inputs(HEIGHT, WIDTH, _TEXT)
    return [[given["context"], {"pooled_output": given["pooled_text"], "guidance": 3.5}]]


def sample(made: Any) -> Tensor:
    """The final latent of a short run of a MODEL, or of a GUIDER that a node has made. Euler, CFG 1."""
    import comfy.samplers

    guider = made
    if not _is_guider(made):
        guider = comfy.samplers.CFGGuider(made)
        guider.set_conds(_prompt(), _prompt())
        guider.set_cfg(1.0)
    sigmas = comfy.samplers.calculate_sigmas(guider.model_patcher.get_model_object("model_sampling"), "simple", _STEPS)
    noise = torch.randn(1, 16, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(5))
    sampler = comfy.samplers.sampler_object("euler")
    return guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=5)


def _is_guider(made: Any) -> bool:
    return hasattr(made, "model_patcher") and hasattr(made, "sample")


@contextmanager
def windowed(radius: int) -> Iterator[None]:
    """While it lasts, the host's attention over an image and its text is dense under the window's mask."""
    import comfy.ldm.modules.attention as attention

    own = attention.optimized_attention
    grid = (HEIGHT // 2, WIDTH // 2)

    def note_grid(module: Any, arguments: tuple[Any, ...]) -> None:
        nonlocal grid
        if hasattr(module, "double_blocks") and arguments and isinstance(arguments[0], Tensor):
            grid = (arguments[0].shape[-2] // 2, arguments[0].shape[-1] // 2)  # of a tile, where a pack cuts some

    def masked(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None, **more: Any) -> Any:
        axis = 2 if more.get("skip_reshape") else 1
        text = k.shape[axis] - grid[0] * grid[1]
        if q.shape[axis] != k.shape[axis] or text < 0:
            return own(q, k, v, heads, mask=mask, **more)
        hidden = ~window_mask(text, *grid, radius)
        bias = torch.zeros(hidden.shape, dtype=q.dtype).masked_fill(hidden, -torch.inf)[None, None]
        if mask is not None:
            bias = bias + (torch.zeros(mask.shape).masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else mask)
        return own(q, k, v, heads, mask=bias, **more)

    # Other packs hold the function under names of their own.
    held = [(m, name) for m in list(sys.modules.values()) for name, value in list(vars(m).items()) if value is own]
    for module, name in held:
        setattr(module, name, masked)
    handle = register_module_forward_pre_hook(note_grid)
    try:
        yield
    finally:
        handle.remove()
        for module, name in held:
            setattr(module, name, own)


def window_mask(text: int, rows: int, columns: int, radius: int) -> Tensor:
    """bool [tokens, tokens]: text sees and is seen by everything, image tokens see those nearer than `radius`."""
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    y, x = y.flatten(), x.flatten()
    near = (y[:, None] - y) ** 2 + (x[:, None] - x) ** 2 < radius**2
    seen = torch.ones(text + rows * columns, text + rows * columns, dtype=torch.bool)
    seen[text:, text:] = near
    return seen


def _error(image: Tensor, expected: Tensor) -> float:
    return float((image - expected).norm() / expected.norm())
