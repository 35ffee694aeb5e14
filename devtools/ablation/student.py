"""A student of any strategy: distilled by the pack's own steps, and as a MODEL that ComfyUI samples with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clear_core.distill.settings import BOTH

from ..inprocess import pack_module
from ..proof.measure import Measure

LEARNING_RATE = 5e-4
_SAVE_EVERY = 50


def attention_of(model: Any, strategy: Any, grid: Any) -> Any:
    """The strategy as a student's attention. grid: of the image."""
    flux = model.model.diffusion_model
    depth = len(flux.double_blocks), len(flux.single_blocks)
    heads = flux.num_heads
    module = pack_module("clear_core.distill.strategy")
    return module.StrategyAttention(strategy, depth, heads, flux.hidden_size // heads, grid)


def untrained(attention: Any) -> Any:
    """What a student has before training besides the model's own projections."""
    return pack_module("clear_core.distill.trained").FullWeights(attention.start())


def distilled(
    model: Any, attention: Any, samples: Any, measure: Measure, seed: int, state: Path, say: Callable[[str], None]
) -> Any:
    """Projections and the strategy's own parameters after training. state: the file from which it goes on."""
    parts = ("distill.settings", "distill.run", "distill.trained", "distill.weights")
    settings, run, trained, weights = (pack_module(f"clear_core.{part}") for part in parts)
    session_of, base = pack_module("nodes.host.distill.session").Session, pack_module("nodes.host.distill.base")
    asked = settings.Settings(
        method=BOTH, steps=measure.steps, batch=measure.batch, learning_rate=LEARNING_RATE, seed=seed
    )
    with torch.inference_mode(False):
        session = session_of.open(model, samples, asked, base.Replicated(), attention)
        start = weights.start_from(session.own_weights(session.device), session.student.depth, 1)
        values = trained.FullWeights({**start, **attention.start()}, session.device)
        identity = {"base": session.base, "samples": samples.identity, "strategy": repr(attention.strategy)}
        state.parent.mkdir(parents=True, exist_ok=True)
        training = run.Run(values, asked, session.gradients(values), state, identity)
        training.restore()

        def step(point: Any) -> None:
            if point.step % _SAVE_EVERY == 0:
                say(f"{state.stem}: step {point.step} of {asked.steps}, loss {point.losses['loss']:.4g}")

        run.train(training, _SAVE_EVERY, step)
    return values


def converted(model: Any, attention: Any, trained: Any) -> Any:
    """A clone of a MODEL that attends as a student does, with its trained projections as weight patches.

    trained: with projections or without, whose layers then keep the model's own.
    """
    patching = pack_module("nodes.host.patching.weight_patches")
    patched = model.clone()
    names: Mapping[str, Any] = patching.host_keys(model.model.diffusion_model, "diffusion_model.")
    projections = {key: tensor.detach().cpu() for key, tensor in trained.parameters.items() if key in names}
    patching.blend_in(patched, {names[key]: ("diff", (tensor,)) for key, tensor in projections.items()}, 1.0)

    def attend(call: Any) -> Tensor:
        return call.shaped(attention(call.block, call.query, call.key, call.value, call.layout(call.frame), trained))

    return overridden(patched, attend)


def overridden(model: Any, attend: Callable[[Any], Tensor]) -> Any:
    """A clone of a MODEL whose attention is `attend`: given the pack's `HostAttentionCall`, with its frame."""
    from comfy.patcher_extension import WrappersMP

    calls, arguments = pack_module("nodes.host.attention_call"), pack_module("nodes.host.forward_args")

    def framed(executor: Any, *args: Any, **kwargs: Any) -> Any:
        given = arguments.ForwardArgs.of(executor.original, args, kwargs)
        options = {**given.options, calls.FRAME: given.frame(executor.class_obj)}
        return given.replaced(transformer_options=options).call(executor)

    def override(
        function: Any, query: Tensor, key: Tensor, value: Tensor, heads: int, *args: Any, **kwargs: Any
    ) -> Any:
        return attend(calls.HostAttentionCall(function, query, key, value, heads, args, kwargs))

    patched = model.clone()
    patched.model_options["transformer_options"][calls.OVERRIDE] = override
    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "ablation", framed)
    return patched
