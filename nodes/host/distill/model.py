"""Predictions of teacher and student, and the student's gradients, end to end or layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from ....clear_core.distill.attention import BlockAttention
from ....clear_core.distill.loss import Losses, LossWeights, Prediction, compared_blocks, losses
from ....clear_core.distill.recompute import in_place_allowed, recomputed
from ....clear_core.distill.settings import ATTENTION, BLOCKS
from ....clear_core.distill.trained import Trained, by_block
from ....clear_core.distill.weights import block_keys
from ....clear_core.layout import TokenLayout
from ....clear_core.weights import BlockId, attention_keys, block_of_key
from ..attention_call import frame_of
from ..patching.weight_patches import host_keys
from .blocks import Attend, Block, BlockCall, Projection, TrainedLinear, own_forward, with_forwards

Hook = Callable[[BlockCall], tuple[Tensor, ...]]
"""Computes a block; returns its activations."""
_BLOCKS = ("double_blocks.", "single_blocks.")
AfterBlock = Callable[[BlockId], None]
Gathered = Callable[[Any], AbstractContextManager[None]]
"""Of the host's block: a context in which its weights are whole."""


def _nothing(block: BlockId) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Inputs:
    """Of the transformer, as the host gives them: latent [batch, channels, height, width] between noise and image,
    sigma [batch], and the rest by its arguments' names, such as context, y, guidance."""

    latent: Tensor
    sigma: Tensor
    given: Mapping[str, Any]


def _as_it_is(module: Any) -> AbstractContextManager[None]:
    return nullcontext()


class DistilledModel:
    """transformer: the host's module, frozen. attention: of the student. gathered: for a sharded base. layers: those
    that are trained, of `settings.LAYERS`. Raises ValueError for a model that has no such layers."""

    def __init__(
        self,
        transformer: Any,
        attention: BlockAttention,
        gathered: Gathered = _as_it_is,
        layers: str = ATTENTION,
    ) -> None:
        self.transformer, self._attention, self._gathered = transformer, attention, gathered
        self.depth = len(transformer.double_blocks), len(transformer.single_blocks)
        self.compared = compared_blocks(*self.depth)
        self._blocks = {block.block: block for block in _blocks(transformer, layers)}
        self._outside = tuple(_layers_outside(transformer))

    @property
    def blocks(self) -> tuple[BlockId, ...]:
        return tuple(self._blocks)

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Of the trained layers' weights, [out, in], by name."""
        linears = [linear for block in self._blocks.values() for linear in block.linears]
        return {p.name: (p.count, linear.module.in_features) for linear in linears for p in linear.projections}

    def own_weights(self, dtype: torch.dtype, device: torch.device) -> Iterator[tuple[str, Tensor]]:
        """The base's own attention projections, under the names of a released file. dtype, device: of the host's
        computing.

        May be views of the base's weights, there until the next is asked for.
        """
        wanted = set(attention_keys(*self.depth))
        for block in self._blocks.values():
            with self._gathered(block.module):
                for linear in block.linears:
                    if f"{linear.projections[0].name}.weight" in wanted:
                        yield from (own for own in linear.own_tensors(dtype, device) if own[0] in wanted)

    def teacher(self, inputs: Inputs, after_block: AfterBlock = _nothing) -> Prediction:
        """Dense, without gradients. after_block: called after each block."""
        seen: dict[BlockId, Tensor] = {}

        def hook(call: BlockCall) -> tuple[Tensor, ...]:
            with self._gathered(call.block.module):
                *activations, attention = call.run(tuple(call.activations), _dense, None)
            if call.block.block in self.compared:
                seen[call.block.block] = attention
            after_block(call.block.block)
            return tuple(activations)

        with torch.no_grad():
            return Prediction(self._forward(inputs, hook), seen)

    def student(self, trained: Trained, inputs: Inputs, after_block: AfterBlock = _nothing) -> Prediction:
        """With gradients for what is trained; blocks are computed, and `after_block` called, again in the backward."""
        seen: dict[BlockId, Tensor] = {}
        parameters = by_block(trained)

        def hook(call: BlockCall) -> tuple[Tensor, ...]:
            attend = self._students(trained, call.block.block, inputs)

            def run(*activations: Tensor) -> tuple[Tensor, ...]:
                out = call.run(activations, attend, trained)
                after_block(call.block.block)
                return out

            used = list(parameters.get(call.block.block, {}).values())
            around = partial(self._gathered, call.block.module)
            *activations, attention = recomputed(run, call.activations, used, around)
            if call.block.block in self.compared:
                seen[call.block.block] = attention
            return tuple(activations)

        return Prediction(self._forward(inputs, hook), seen)

    def end_to_end(
        self,
        trained: Trained,
        inputs: Inputs,
        target: Tensor,
        share: float = 1.0,
        after_block: AfterBlock = _nothing,
        weights: LossWeights | None = None,
    ) -> Losses:
        """Add share times the gradients of the loss. target: noise - x0, as `inputs.latent`. weights: of the loss's
        terms, None for the authors'.

        The losses come without a graph.
        """
        teacher = self.teacher(inputs, after_block)
        with torch.enable_grad():
            found = losses(self.student(trained, inputs, after_block), teacher, target, weights)
        add_gradients(found.total * share, list(trained.parameters.values()))
        return found.detached()

    def layer_by_layer(
        self, trained: Trained, inputs: Inputs, share: float = 1.0, after_block: AfterBlock = _nothing
    ) -> dict[BlockId, Tensor]:
        """Add share times the gradients of each block's own error, in a forward of the teacher.

        The error: squared distance of the student's change of the activations to the teacher's, relative to the
        teacher's, mean over samples, image and text. One block's graph exists at a time.
        """
        errors: dict[BlockId, Tensor] = {}
        parameters = by_block(trained)

        def hook(call: BlockCall) -> tuple[Tensor, ...]:
            before = call.activations
            block = call.block.block
            with self._gathered(call.block.module):
                wanted = call.run(tuple(tensor.clone() for tensor in before), _dense, None)[:-1]
                with in_place_allowed():
                    attend = self._students(trained, block, inputs)
                    made = call.run(tuple(tensor.clone() for tensor in before), attend, trained)[:-1]
                    error = torch.stack([*map(_relative_error, made, wanted, before)]).mean()
                    add_gradients(error * share, list(parameters[block].values()))
            errors[block] = error.detach()
            after_block(block)
            return wanted

        with torch.no_grad():
            self._forward(inputs, hook)
        return errors

    def _students(self, trained: Trained, block: BlockId, inputs: Inputs) -> Attend:
        """The student's attention in a block."""
        image = frame_of(self.transformer, inputs.latent, None, {}).image

        def attend(function: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if kwargs.get("mask") is not None:
                raise ValueError("The conditioning carries an attention mask, which distillation does not support.")
            layout = TokenLayout(query.shape[-2] - image.tokens, image)
            return self._attention(block, query, key, value, layout, trained)

        return attend

    def _forward(self, inputs: Inputs, hook: Hook) -> Tensor:
        """A forward of the host's with `hook` in place of each block; the velocity, as `inputs.latent`."""

        def replacement(block: Block) -> Callable[[dict[str, Any], dict[str, Any]], dict[str, Tensor]]:
            def replace(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Tensor]:
                # The call lives in the block's graph. With this hook in it, which has the outputs, neither is freed.
                options = {**args["transformer_options"], "patches_replace": {}}
                call = BlockCall(block, {**args, "transformer_options": options})
                return dict(zip(block.streams, hook(call), strict=True))

            return replace

        replaced = {(f"{name.kind}_block", name.index): replacement(block) for name, block in self._blocks.items()}
        options: dict[str, Any] = {"patches_replace": {"dit": replaced}}
        given = {**inputs.given, "transformer_options": options}
        with with_forwards({layer: own_forward(layer) for layer in self._outside}):
            out: Tensor = functional_call(self.transformer, self._frozen, (inputs.latent, inputs.sigma), given)
        return out

    @property
    def _frozen(self) -> dict[str, Tensor]:
        """What is not in blocks, without gradients, and where the host made it in inference mode, copied: it could not
        be saved for a backward."""
        if not torch.is_grad_enabled():
            return {}
        others = (p for p in self.transformer.named_parameters() if not p[0].startswith(_BLOCKS))
        return {name: p.detach().clone() if p.is_inference() else p.detach() for name, p in others}


def add_gradients(loss: Tensor, parameters: Sequence[Tensor]) -> None:
    """Add to `.grad` of the parameters alone: the frozen base, whose tensors also ask for gradients, gets none."""
    for parameter, found in zip(parameters, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
        if found is not None:
            parameter.grad = found if parameter.grad is None else parameter.grad.add_(found)


def _dense(function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    return function(*args, **kwargs)


def _relative_error(made: Tensor, wanted: Tensor, before: Tensor) -> Tensor:
    """Of each sample; the mean."""
    change = (wanted.float() - before.float()).square().flatten(1).sum(1)
    error = (made.float() - wanted.float()).square().flatten(1).sum(1)
    return (error / change.clamp(min=torch.finfo(torch.float32).tiny)).mean()


def _layers_outside(transformer: Any) -> Iterator[Any]:
    """Linear layers that are in no block."""
    for name, layer in transformer.named_modules():
        if isinstance(layer, torch.nn.Linear) and not name.startswith(_BLOCKS):
            yield layer


def _blocks(transformer: Any, layers: str) -> Iterator[Block]:
    """In the order of the forward. Raises ValueError where a fused layer has other rows than the names tell."""
    depth = len(transformer.double_blocks), len(transformer.single_blocks)
    names = host_keys(transformer, "")
    keys = block_keys(*depth) if layers == BLOCKS else attention_keys(*depth)
    weights = (key for key in keys if key.endswith(".weight"))
    for name, keys in groupby(weights, block_of_key):
        linears: dict[str, list[Projection]] = {}
        for key in keys:
            host = names[key]
            path, rows = (host, None) if isinstance(host, str) else host
            module = path.removesuffix(".weight")
            stop = transformer.get_submodule(module).out_features
            part = slice(0, stop) if rows is None else slice(rows[1], rows[1] + rows[2])
            linears.setdefault(module, []).append(Projection(key.removesuffix(".weight"), part))
        blocks = transformer.double_blocks if name.kind == "double" else transformer.single_blocks
        made = [
            TrainedLinear(transformer.get_submodule(path), tuple(sorted(parts, key=lambda part: part.rows.start)))
            for path, parts in linears.items()
        ]
        if layers == BLOCKS and any(linear.end != linear.module.out_features for linear in made):
            raise ValueError(
                "layers is 'blocks', which this model's MLPs do not allow: it works for FLUX.1 and Chroma. Set layers "
                "to 'attention'."
            )
        module = blocks[name.index]
        trained = {linear.module for linear in made}
        others = (layer for layer in module.modules() if isinstance(layer, torch.nn.Linear) and layer not in trained)
        yield Block(name, module, tuple(made), tuple(others))
