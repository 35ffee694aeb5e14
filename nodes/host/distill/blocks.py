"""One of ComfyUI's transformer blocks in training: trained layers swapped in, attention computed by the caller.

The blocks are reached by the host's replacement hook (`patches_replace["dit"]`), so that FLUX.1, FLUX.2 and Chroma
work through their own forwards. The layers are swapped by their modules' `forward`: whatever the base stores its
weights as, 8 bits or GGUF, is computed by the module's own code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from ....clear_core.distill.trained import Trained
from ....clear_core.weights import BlockId
from ..attention_call import OVERRIDE

Attend = Callable[..., Tensor]
"""Called as the host's attention override is: the host's own attention, queries, keys, values, heads and the rest."""


@dataclass(frozen=True, slots=True)
class Projection:
    """name: in diffusers' names, such as `transformer_blocks.0.attn.to_q`. rows: of the module's output."""

    name: str
    rows: slice

    @property
    def count(self) -> int:
        """Of the rows."""
        return int(self.rows.stop - self.rows.start)


@dataclass(frozen=True, slots=True)
class TrainedLinear:
    """A linear layer of the host's whose first rows are trained projections, in their order."""

    module: Any
    projections: tuple[Projection, ...]

    @property
    def end(self) -> int:
        return self.projections[-1].rows.stop

    def output(self, forward: Callable[[Tensor], Tensor], trained: Trained, x: Tensor) -> Tensor:
        """forward: the module's own."""
        own: Tensor | None
        if not trained.replaces:
            own = forward(x)
            rest = own[..., self.end :]
        elif self.end == self.module.out_features:
            own = rest = None
        else:
            own, rest = None, self._rest(forward, x)
        parts = [trained.output(p.name, x, None if own is None else own[..., p.rows]) for p in self.projections]
        if rest is not None and rest.shape[-1]:
            parts.append(rest)
        return torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]

    def _rest(self, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if not _is_plain(self.module, x):
            return forward(x)[..., self.end :]
        bias = self.module.bias
        return F.linear(x, self.module.weight[self.end :], None if bias is None else bias[self.end :])

    def own_tensors(self, dtype: torch.dtype, device: torch.device) -> Iterator[tuple[str, Tensor]]:
        """The base's weights and biases of the projections, under names of the released format.

        Read through the module itself, by an identity matrix: exact, and whatever is patched or quantised is in it.
        dtype: in which the host computes.
        """
        channels = self.module.in_features
        with torch.no_grad():
            zero = torch.zeros(1, channels, dtype=dtype, device=device)
            bias = self.module(zero)[0] if self.module.bias is not None else None
            if _is_plain(self.module, zero):
                weight = self.module.weight
            else:
                columns = self.module(torch.eye(channels, dtype=dtype, device=device))
                weight = (columns if bias is None else columns - bias).T
        for projection in self.projections:
            yield f"{projection.name}.weight", weight[projection.rows]
            if bias is not None:
                yield f"{projection.name}.bias", bias[projection.rows]


def own_forward(module: Any) -> Callable[[Tensor], Tensor]:
    """The module's forward, safe in a backward where the host keeps the weight elsewhere."""
    forward = module.forward

    def call(x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and _is_copied(module, x):
            out: Tensor = _RunAgain.apply(forward, x)
            return out
        return forward(x)

    return call


class _RunAgain(torch.autograd.Function):
    """A frozen layer whose weight the host copies to the device for each call: for the backward the layer runs again,
    as the host may have used the copy's memory for the next layer."""

    @staticmethod
    def forward(ctx: Any, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        ctx.layer = forward
        ctx.save_for_backward(x)
        with torch.no_grad():
            return forward(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            out = ctx.layer(x)
            (found,) = torch.autograd.grad(out, x, gradient)
        if x.is_cuda:
            # The host's copying stream waits for a layer's forward, not for this product.
            torch.cuda.current_stream(x.device).synchronize()
        return None, found


def _is_copied(module: Any, x: Tensor) -> bool:
    patched = getattr(module, "weight_function", None) or getattr(module, "bias_function", None)
    return bool(patched) or module.weight.device != x.device


def _is_plain(module: Any, x: Tensor) -> bool:
    """Whether the module's weight is what it multiplies x with: not quantised, patched on use, or on another device."""
    weight = module.weight
    return type(weight) in (Tensor, torch.nn.Parameter) and weight.dtype == x.dtype and not _is_copied(module, x)


@dataclass(frozen=True, slots=True)
class Block:
    """module: the host's block. linears: those of its linear layers that are trained. frozen: the others."""

    block: BlockId
    module: Any
    linears: tuple[TrainedLinear, ...]
    frozen: tuple[Any, ...]

    @property
    def streams(self) -> tuple[str, ...]:
        """The host's names of the block's activations."""
        return ("img", "txt") if self.block.kind == "double" else ("img",)


@dataclass(frozen=True, slots=True)
class BlockCall:
    """One call of a block in a forward of the host's: what its replacement hook is given."""

    block: Block
    args: Mapping[str, Any]

    @property
    def activations(self) -> list[Tensor]:
        return [self.args[name] for name in self.block.streams]

    def run(self, activations: tuple[Tensor, ...], attend: Attend, trained: Trained | None) -> tuple[Tensor, ...]:
        """The block's activations after it, then the output of its attention.

        activations: are changed in place. trained: what is swapped in; None for the base's own weights.
        """
        attended: list[Tensor] = []

        def override(*args: Any, **kwargs: Any) -> Tensor:
            attended.append(attend(*args, **kwargs))
            return attended[-1]

        own = self.block.block
        # The block's own options: in a backward, the host's say which block was the last of the forward.
        options = self.args.get("transformer_options") or {}
        options = {**options, OVERRIDE: override, "block_type": own.kind, "block_index": own.index}
        given = dict(zip(self.block.streams, activations, strict=True))
        with with_forwards({} if trained is None else _forwards(self.block, trained)):
            out = _call(self.block, {**self.args, **given, "transformer_options": options})
        (attention,) = attended
        return (*out, attention)


def _forwards(block: Block, trained: Trained) -> dict[Any, Callable[..., Tensor]]:
    forwards = {linear.module: _forward(linear, trained) for linear in block.linears}
    return {**forwards, **{module: own_forward(module) for module in block.frozen}}


@contextmanager
def with_forwards(forwards: Mapping[Any, Callable[..., Tensor]]) -> Iterator[None]:
    """Modules compute these in place of their own forwards."""
    with ExitStack() as undo:
        for module, forward in forwards.items():
            undo.callback(module.__dict__.pop, "forward")
            module.__dict__["forward"] = forward
        yield


def _forward(linear: TrainedLinear, trained: Trained) -> Callable[..., Tensor]:
    own = own_forward(linear.module)
    return lambda x: linear.output(own, trained, x)


def _call(block: Block, args: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """The module itself: the function that the host's hook is given calls, in a backward, the last block."""
    given = dict(args)
    # A single block's activations have another name there than in the hook.
    positional = (given.pop("img"),) if block.block.kind == "single" else ()
    copies = {}
    if torch.is_grad_enabled():
        # ComfyUI loads models in inference mode. Such weights cannot be saved for a backward, copies of them can.
        copies = {name: p.detach().clone() for name, p in block.module.named_parameters() if p.is_inference()}
    out = functional_call(block.module, copies, positional, given)
    return out if isinstance(out, tuple) else (out,)
