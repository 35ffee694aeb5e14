"""ComfyUI's internals, all of them that this pack touches: files, models, weight patches, hooks, messages.

How a patched model works, from the outside in:

    OUTER_SAMPLE wrapper      a sampling run begins and ends: the report
    APPLY_MODEL wrapper       knows the noise level and the schedule: is the window on in this step?
    DIFFUSION_MODEL wrapper   knows the latent's size: the token grids of this forward -> Frame
    attention override        gets q, k, v of one layer; with the Frame it knows who sees whom

The frame travels in `transformer_options`, never in a global, so that models, sizes, batches and threads
may change from one call to the next. Everything the hooks remember is in closures: hosts up to 0.12
deep-copy what lies in `model_options`, and functions are left alone.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.ldm.flux.model
import comfy.model_management
import comfy.utils
import folder_paths
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..clear_core.backends import AUTO, BackendError, choose_backend
from ..clear_core.call import AttentionCall
from ..clear_core.layout import Grid, TokenLayout
from ..clear_core.pattern import LocalPattern
from ..clear_core.pooling import Pooled, mean_weight, pool_key_value, pooled_grid
from ..clear_core.scale import proportional_gain, softmax_scale
from ..clear_core.weights import BlockId, ClearWeights
from .report import RunReport
from .settings import ClearSettings

_log = logging.getLogger("clear-attention")

FOLDER = "clear"
NO_FILES = "no file in models/clear yet"
_KEY = "clear_attention"
_OVERRIDE = "optimized_attention_override"
_EMBEDDER = "diffusion_model.pe_embedder"
# Arguments of the host's attention that change nothing here: they say how, not what.
_HARMLESS = frozenset({"attn_precision", "low_precision_attention", "transformer_options", "_inside_attn_wrapper"})
_HANDLED = frozenset({"mask", "skip_reshape", "skip_output_reshape"})


# ---- files -------------------------------------------------------------------------------------------


def weights_files() -> list[str]:
    """Files of models/clear (and of extra_model_paths.yaml); one line that says so where there are none."""
    _register_folder()
    return folder_paths.get_filename_list(FOLDER) or [NO_FILES]


def weights_path(name: str) -> Path:
    """Where a listed file lies. Raises ValueError, naming the folder, when it is gone."""
    _register_folder()
    path = folder_paths.get_full_path(FOLDER, name)
    if path is None:
        folder = folder_paths.get_folder_paths(FOLDER)[0]
        raise ValueError(
            f"There is no weights file {name!r}. Put clear_local_16.safetensors (or another of the five files of "
            f"Huage001/CLEAR on the Hugging Face hub) into {folder} and reload the page."
        )
    return Path(path)


def file_fingerprint(name: str) -> str:
    """Changes when the file does, without reading it."""
    path = folder_paths.get_full_path(FOLDER, name)
    if path is None:
        return "missing"
    stat = os.stat(path)
    return f"{stat.st_size}:{stat.st_mtime_ns}"


def _register_folder() -> None:
    if FOLDER not in folder_paths.folder_names_and_paths:
        folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))
    paths, extensions = folder_paths.folder_names_and_paths[FOLDER]
    own = os.path.join(folder_paths.models_dir, FOLDER)
    if own not in paths or not extensions:
        # The host starts a new folder with no extensions, which would list every file.
        paths = paths if own in paths else [*paths, own]
        folder_paths.folder_names_and_paths[FOLDER] = (paths, {".safetensors"})


# ---- the patch ---------------------------------------------------------------------------------------


def apply_clear(
    model: Any, settings: ClearSettings, weights: ClearWeights | None, *, node_id: str | None
) -> tuple[Any, RunReport]:
    """A clone of `model` with CLEAR attention; the input and its other clones stay as they were.

    Everything is checked before the clone is touched. Raises ValueError with what to do.
    """
    flux = _flux_of(model)
    options = model.model_options.get("transformer_options", {})
    if _KEY in options:
        raise ValueError(
            f"CLEAR is already applied to this model ({options[_KEY]}). Connect the model from before the first "
            "Apply CLEAR Attention node, or remove one of the two nodes."
        )
    patches = _weight_patches(flux, weights) if weights is not None and settings.strength > 0 else {}
    embedder = _embedder(model, settings.ntk_factor)

    patched = model.clone()
    _put_first(patched, patches, settings.strength)
    if embedder is not None:
        patched.add_object_patch(_EMBEDDER, embedder)
    options = patched.model_options["transformer_options"]
    previous = options.get(_OVERRIDE)
    report = RunReport(_headline(settings, weights, previous), _messenger(node_id))
    options[_OVERRIDE] = _override(settings, _pooling_weights(settings, weights), report, previous)
    options[_KEY] = report.headline
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, _KEY, _run_wrapper(report))
    patched.add_wrapper_with_key(WrappersMP.APPLY_MODEL, _KEY, _schedule_wrapper(settings))
    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, _KEY, _frame_wrapper(report))
    report.announce()
    return patched, report


def _flux_of(model: Any) -> Any:
    """The FLUX.1 transformer inside a MODEL. Raises ValueError for any other model."""
    diffusion = model.get_model_object("diffusion_model") if hasattr(model, "get_model_object") else model
    kind, module = type(diffusion).__name__, type(diffusion).__module__
    want = "Apply CLEAR Attention works on FLUX.1 models (dev, schnell, Krea, Fill, Canny, Depth, Kontext)"
    if kind == "ComfyFluxWrapper" or "nunchaku" in module.lower():
        raise ValueError(
            f"{want}. This one is FLUX in Nunchaku's own runtime, which ignores ComfyUI's attention hooks, so CLEAR "
            "would do nothing. Load FLUX with Load Diffusion Model (fp8 or GGUF files work) instead."
        )
    if not isinstance(diffusion, comfy.ldm.flux.model.Flux):
        raise ValueError(f"{want}; this model is {type(getattr(model, 'model', model)).__name__} ({kind}).")
    params = diffusion.params
    if type(diffusion) is not comfy.ldm.flux.model.Flux or getattr(params, "global_modulation", False):
        name = "FLUX.2" if getattr(params, "global_modulation", False) else kind
        raise ValueError(f"{want}; {name} is not supported yet.")
    return diffusion


def _weight_patches(flux: Any, weights: ClearWeights) -> dict[Any, tuple[str, tuple[Tensor]]]:
    """The distilled layers under the host's names. Raises ValueError where they do not fit the model."""
    blocks = (len(flux.double_blocks), len(flux.single_blocks))
    if weights.blocks != blocks:
        raise ValueError(
            f"{weights.name} has {weights.blocks[0]} double and {weights.blocks[1]} single blocks, the model has "
            f"{blocks[0]} and {blocks[1]}. Choose weights made for this model, or the model they were made for."
        )
    for key, tensor in weights.attention.items():
        want = (flux.hidden_size,) * tensor.ndim
        if tuple(tensor.shape) != want:
            raise ValueError(
                f"{weights.name} does not fit this model: {key} has shape {tuple(tensor.shape)}, the model needs {want}."
            )
    config = {"depth": blocks[0], "depth_single_blocks": blocks[1], "hidden_size": flux.hidden_size}
    names = comfy.utils.flux_to_diffusers(config, output_prefix="diffusion_model.")
    return {names[key]: ("diff", (tensor,)) for key, tensor in weights.attention.items()}


def _put_first(model: Any, patches: Mapping[Any, Any], strength: float) -> None:
    """Blend the distilled weights in before every other patch: W = (1 - s) W + s W_clear, then the LoRAs.

    The host applies a key's patches in list order, so an entry that scales the model down erases what
    stands before it. Ours go first, whichever order the nodes are wired in.
    """
    if not patches:
        return
    taken = model.add_patches(dict(patches), strength_patch=strength, strength_model=1.0 - strength)
    refused = [key for key in patches if key not in set(taken)]
    if refused:
        raise ValueError(f"The model has no layer for {len(refused)} of CLEAR's tensors, the first is {refused[0]}.")
    added: dict[str, int] = {}
    for key in taken:
        name = key if isinstance(key, str) else key[0]
        added[name] = added.get(name, 0) + 1
    for name, count in added.items():
        entries = model.patches[name]
        model.patches[name] = entries[-count:] + entries[:-count]


def _embedder(model: Any, ntk_factor: float) -> Any:
    """The position embedder with theta stretched, or None for a factor of 1."""
    if ntk_factor == 1.0:
        return None
    if _EMBEDDER in model.object_patches:
        other = type(model.object_patches[_EMBEDDER])
        raise ValueError(
            f"ntk_factor is {ntk_factor:g}, but another node already replaced the model's positions "
            f"({other.__module__}.{other.__name__}). Set ntk_factor to 1, or remove that node."
        )
    own = model.get_model_object(_EMBEDDER)
    return type(own)(dim=own.dim, theta=own.theta * ntk_factor, axes_dim=own.axes_dim)


def _pooling_weights(settings: ClearSettings, weights: ClearWeights | None) -> Callable[[BlockId], Tensor] | None:
    """Each block's pooling weight [f, f], blended with the mean by strength; None without down-sampling."""
    if settings.down_factor == 1:
        return None
    mean = mean_weight(settings.down_factor)
    if not _own_pooling(settings, weights):
        return lambda block: mean
    assert weights is not None
    blended = {block: mean.lerp(weight, settings.strength) for block, weight in weights.spatial.items()}
    return lambda block: blended[block]


def _own_pooling(settings: ClearSettings, weights: ClearWeights | None) -> bool:
    return weights is not None and settings.down_factor > 1 and weights.variant.down_factor == settings.down_factor


def _headline(settings: ClearSettings, weights: ClearWeights | None, previous: Callable[..., Any] | None) -> str:
    radius = f"radius {settings.window.radius}"
    lines = [f"{radius}, {weights.name}" if weights is not None else f"{radius}, window only, untrained weights"]
    if weights is not None and settings.strength < 1:
        lines[0] += f" at strength {settings.strength:g}"
    if weights is not None and weights.variant.radius not in (None, settings.window.radius):
        lines.append(f"the weights were trained with radius {weights.variant.radius}")
    if settings.down_factor > 1:
        kind = "learned" if _own_pooling(settings, weights) else "mean"
        lines.append(f"down-sampled {settings.down_factor} x {settings.down_factor} ({kind} pooling)")
    elif weights is not None and weights.variant.down_factor > 1:
        lines.append(f"without the down-sampled tokens ({weights.variant.down_factor}) the weights were trained with")
    if previous is not None:
        lines.append(f"calls that CLEAR leaves alone go to {_name_of(previous)}")
    return "\n".join(lines)


# ---- the hooks ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Frame:
    """One forward of the model: the grids of its latent and reference latents, and whether the window is on."""

    image: Grid
    references: tuple[Grid, ...]
    active: bool


def _run_wrapper(report: RunReport) -> Callable[..., Any]:
    def clear_run(executor: Any, *args: Any, **kwargs: Any) -> Any:
        report.begin()
        try:
            return executor(*args, **kwargs)
        finally:
            report.end()

    return clear_run


def _schedule_wrapper(settings: ClearSettings) -> Callable[..., Any]:
    def clear_schedule(
        executor: Any,
        x: Tensor,
        t: Tensor,
        c_concat: Any = None,
        c_crossattn: Any = None,
        control: Any = None,
        transformer_options: Mapping[str, Any] = {},  # noqa: B006 - the host's own default, never written to
        **kwargs: Any,
    ) -> Any:
        active = True
        if not settings.whole_schedule:
            # Asked here, not when the node ran: a node further down may have changed the schedule.
            sampling = executor.class_obj.model_sampling
            start = sampling.percent_to_sigma(settings.start_percent)
            end = sampling.percent_to_sigma(settings.end_percent)
            active = float(end) <= float(t.max()) <= float(start)
        options = {**transformer_options, _KEY + "_active": active}
        return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)

    return clear_schedule


def _frame_wrapper(report: RunReport) -> Callable[..., Any]:
    def clear_frame(
        executor: Any,
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        y: Tensor | None = None,
        guidance: Tensor | None = None,
        ref_latents: list[Tensor] | None = None,
        control: Any = None,
        transformer_options: Mapping[str, Any] = {},  # noqa: B006 - the host's own default, never written to
        **kwargs: Any,
    ) -> Any:
        patch = executor.class_obj.patch_size
        frame = Frame(
            _grid(x, patch),
            tuple(_grid(latent, patch) for latent in ref_latents or ()),
            transformer_options.get(_KEY + "_active", True),
        )
        report.forward(_name_of(transformer_options.get(_OVERRIDE)))
        options = {**transformer_options, _KEY + "_frame": frame}
        return executor(x, timestep, context, y, guidance, ref_latents, control, options, **kwargs)

    return clear_frame


def _grid(latent: Tensor, patch: int) -> Grid:
    """A latent's token grid: [batch, channels, height, width], padded up to whole patches by the host."""
    return Grid(-(-latent.shape[-2] // patch), -(-latent.shape[-1] // patch))


def _override(
    settings: ClearSettings,
    pooling: Callable[[BlockId], Tensor] | None,
    report: RunReport,
    previous: Callable[..., Any] | None,
) -> Callable[..., Any]:
    def clear_attention(func: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **kwargs: Any) -> Any:
        # Long steps at high resolution: look at every layer whether the person has cancelled.
        comfy.model_management.throw_exception_if_processing_interrupted()
        frame = kwargs.get("transformer_options", {}).get(_KEY + "_frame")
        outcome = _attend(settings, pooling, report, frame, q, k, v, heads, args, kwargs)
        if isinstance(outcome, Tensor):
            return outcome
        if outcome.reason:
            report.dense(outcome.reason, asked=outcome.asked)
        if outcome.gain != 1.0:
            q = q * outcome.gain
        if previous is not None:
            return previous(func, q, k, v, heads, *args, **kwargs)
        return func(q, k, v, heads, *args, **kwargs)

    return clear_attention


@dataclass(frozen=True, slots=True)
class _Dense:
    """A call left to the host. reason: "" for one that is not ours at all. gain: proportional attention."""

    reason: str = ""
    asked: bool = False
    gain: float = 1.0


def _attend(
    settings: ClearSettings,
    pooling: Callable[[BlockId], Tensor] | None,
    report: RunReport,
    frame: Frame | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Tensor | _Dense:
    """One layer through the window, or why not."""
    if frame is None:
        return _Dense()
    known = _HARMLESS | _HANDLED
    odd = [name for name, value in kwargs.items() if name not in known and value is not None and value is not False]
    if args or odd:
        what = ", ".join(odd) or "positional arguments"
        return _Dense(f"the host passed attention arguments this version of CLEAR does not know ({what})")
    text = q.shape[-2] - frame.image.tokens - sum(grid.tokens for grid in frame.references)
    if not kwargs.get("skip_reshape") or q.ndim != 4 or q.shape != k.shape or text < 0:
        return _Dense(f"an attention of {q.shape[-2]} queries over {k.shape[-2]} keys is not FLUX's joint attention")
    layout = TokenLayout(text, frame.image, frame.references)
    gain = proportional_gain(layout.tokens) if settings.proportional else 1.0
    if not frame.active:
        percent = f"{settings.start_percent:g} to {settings.end_percent:g}"
        return _Dense(f"as asked: steps outside {percent}", asked=True, gain=gain)
    pooled, cells = None, 0
    if pooling is not None:
        image = slice(text, text + frame.image.tokens)
        block = BlockId(kwargs["transformer_options"]["block_type"], kwargs["transformer_options"]["block_index"])
        cells = pooled_grid(frame.image, settings.down_factor).tokens
        pooled = pool_key_value(k[:, :, image], v[:, :, image], frame.image, pooling(block))
    pattern = LocalPattern.whole(layout, settings.window, references=settings.references, pooled=cells)
    scale = softmax_scale(
        q.shape[-1], layout.tokens, proportional=settings.proportional, down_factor=settings.down_factor
    )
    try:
        call = AttentionCall(q, k, v, pattern, scale=scale, pooled=pooled, mask=_mask(kwargs.get("mask")))
    except ValueError as error:
        return _Dense(str(error), gain=gain)
    try:
        backend = choose_backend(call, settings.backend).backend
    except BackendError as error:
        if settings.backend != AUTO:
            raise
        return _Dense(str(error), gain=gain)
    out = backend.run(call).out
    report.local(backend.name)
    return out.unflatten(2, (heads, -1)).transpose(1, 2) if kwargs.get("skip_output_reshape") else out


def _mask(mask: Tensor | None) -> Tensor | None:
    """The host's mask with batch and heads spelled out, as its own attention reads it."""
    if mask is None or mask.ndim == 4:
        return mask
    return mask[None, None] if mask.ndim == 2 else mask[:, None]


# ---- messages ----------------------------------------------------------------------------------------


def _messenger(node_id: str | None) -> Callable[[str], None]:
    """Shows text on the node, where there is a page and a node."""

    def show(text: str) -> None:
        from server import PromptServer

        server = getattr(PromptServer, "instance", None)
        if server is not None and node_id is not None:
            server.send_progress_text(text, node_id)

    return show


def _name_of(function: Any) -> str:
    """A callable by the pack or module it comes from: what a person can find and remove."""
    module = getattr(function, "__module__", None) or type(function).__module__
    parts = str(module).replace("\\", "/").split("custom_nodes/")
    return parts[-1].replace("/", ".")
