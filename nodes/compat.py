"""What this pack needs of ComfyUI, checked at start-up: where something is missing, the log says so in one sentence.

Not part of `host`: that package cannot be imported where a piece of ComfyUI is missing.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

_PROJECT = Path(__file__).parents[1] / "pyproject.toml"
_NAMED = 3  # missing pieces named in the sentence; the rest are counted

NEEDED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "comfy.cli_args": "args",
        "comfy.clip_vision": "clip_preprocess load",
        "comfy.controlnet": "ControlNet",
        "comfy.ldm.chroma.model": "Chroma",
        "comfy.ldm.common_dit": "pad_to_patch_size",
        "comfy.ldm.flux.controlnet": "ControlNetFlux",
        "comfy.ldm.flux.layers": "DoubleStreamBlock EmbedND SingleStreamBlock",
        "comfy.ldm.flux.model": "Flux",
        "comfy.ldm.modules.attention": "optimized_attention",
        "comfy.ldm.modules.diffusionmodules.model": "AttnBlock Decoder Downsample Encoder ResnetBlock Upsample",
        "comfy.lora": "calculate_weight",
        "comfy.model_management": "OOM_EXCEPTION cast_to cast_to_device current_loaded_models extra_reserved_memory "
        "free_memory get_free_memory get_torch_device get_total_memory load_models_gpu loaded_models soft_empty_cache "
        "text_encoder_device text_encoder_dtype "
        "throw_exception_if_processing_interrupted unet_dtype unet_manual_cast unload_all_models vae_device vae_dtype",
        "comfy.model_sampling": "ModelSamplingFlux",
        "comfy.ops": "cast_bias_weight disable_weight_init uncast_bias_weight",
        "comfy.patcher_extension": "WrapperExecutor.new_class_executor WrappersMP.APPLY_MODEL "
        "WrappersMP.DIFFUSION_MODEL WrappersMP.OUTER_SAMPLE WrappersMP.PREPARE_SAMPLING WrappersMP.SAMPLER_SAMPLE",
        "comfy.sample": "fix_empty_latent_channels prepare_noise sample",
        "comfy.sampler_helpers": "prepare_model_patcher",
        "comfy.samplers": "CFGGuider KSAMPLER KSampler.SAMPLERS KSampler.SCHEDULERS calculate_sigmas",
        "comfy.sd": "load_text_encoder_state_dicts",
        "comfy.supported_models": "Flux.supported_inference_dtypes",
        "comfy.utils": "ProgressBar flux_to_diffusers set_attr",
        "comfy_api.latest": "ComfyExtension io.AnyType io.Boolean io.Clip io.Combo io.ComfyNode io.Conditioning "
        "io.ControlNet io.Custom io.Float io.Guider io.Hidden.dynprompt io.Hidden.extra_pnginfo io.Hidden.prompt "
        "io.Hidden.unique_id io.Image io.Input io.Int io.Latent io.Mask io.Model io.NodeOutput io.Noise io.Sampler "
        "io.Schema io.Sigmas io.String io.UploadType io.UpscaleModel io.Vae ui.ImageSaveHelper ui.PreviewImage",
        "comfy_execution.graph_utils": "ExecutionBlocker GraphBuilder is_link",
        "comfy_execution.progress": "ProgressHandler ProgressRegistry get_progress_state",
        "folder_paths": "add_model_folder_path annotated_filepath filter_files_content_types folder_names_and_paths "
        "get_filename_list get_folder_paths get_full_path get_input_directory get_output_directory get_save_image_path "
        "get_temp_directory get_user_directory models_dir",
        "comfy_execution.utils": "get_executing_context",
    }
)
"""By module: every name that this pack imports from ComfyUI. A test compares it with the imports."""

ON_USE: Final = (
    "comfy_extras.nodes_custom_sampler.SamplerCustomAdvanced",
    "comfy_extras.nodes_model_advanced.ModelSamplingFlux",
)
"""Imported on use: checking the names inside would load it."""

METHODS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "comfy.model_base.BaseModel": "apply_model extra_conds get_dtype memory_required process_latent_in",
        "comfy.clip_vision.ClipVisionModel": "encode_image",
        "comfy_execution.graph.DynamicPrompt": "all_node_ids get_node",
        "comfy.model_patcher.ModelPatcher": "add_object_patch add_patches add_wrapper_with_key clone get_key_patches "
        "get_model_object get_wrappers loaded_size model_size remove_wrappers_with_key",
        "comfy.sd.CLIP": "encode_from_tokens_scheduled tokenize",
    }
)
"""By class: methods that this pack calls on objects of the host."""

ARGUMENTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "comfy.clip_vision.clip_preprocess": "size mean std",
        "comfy.ldm.chroma.model.Chroma._forward": "x transformer_options",
        "comfy.ldm.flux.layers.DoubleStreamBlock.forward": "transformer_options",
        "comfy.ldm.flux.layers.SingleStreamBlock.forward": "transformer_options",
        "comfy.ldm.flux.model.Flux._forward": "x timestep context y guidance ref_latents control transformer_options",
        "comfy.model_base.BaseModel._apply_model": "x t c_concat c_crossattn control transformer_options",
        "comfy.model_management.cast_to": "weight dtype device",
        "comfy.model_management.load_models_gpu": "models memory_required",
        "comfy.model_patcher.ModelPatcher.add_patches": "patches strength_patch strength_model",
        "comfy.ops.cast_bias_weight": "input dtype device bias_dtype offloadable",
    }
)
"""By function: arguments that wrappers and hooks of this pack use by name."""

_OVERRIDE = "optimized_attention_override"


def pack_version() -> str:
    """The version in pyproject.toml."""
    return _quoted(_PROJECT.read_text(encoding="utf-8"), "version")


class MissingHooks(Exception):
    """This ComfyUI lacks something that the pack needs. Its arguments are the names."""


def check() -> None:
    """Raises MissingHooks with the names of what is missing. Takes milliseconds."""
    found = [*_missing_names(), *_missing_arguments()]
    if not found and not _calls_override():
        found.append(f"an attention that calls {_OVERRIDE}")
    if found:
        raise MissingHooks(*found)


def explained(error: Exception) -> str:
    """The sentence for the log: both versions, what is wrong, what to do."""
    project = _PROJECT.read_text(encoding="utf-8")
    pack, oldest = (_quoted(project, name) for name in ("version", "requires-comfyui"))
    start = f"CLEAR Attention {pack} adds no nodes to this ComfyUI ({host_version()})"
    if isinstance(error, MissingHooks):
        names = ", ".join(map(str, error.args[:_NAMED]))
        more = f" and {len(error.args) - _NAMED} more" if len(error.args) > _NAMED else ""
        return (
            f"{start}, which lacks {names}{more}. It needs ComfyUI {oldest.lstrip('>=')} or newer; where ComfyUI is "
            "newer than this pack, update the pack."
        )
    return (
        f"{start}: {type(error).__name__}: {str(error).partition(chr(10))[0]}. Where a package is missing, run "
        "pip install -r requirements.txt in this pack's folder with ComfyUI's Python; else update the pack and ComfyUI."
    )


def _missing_names() -> Iterator[str]:
    for module, names in (*NEEDED.items(), *((name.rpartition(".")[0], "") for name in METHODS)):
        try:
            import_module(module)
        except Exception:  # whatever a host's module may raise
            yield module
            continue
        yield from (f"{module}.{name}" for name in names.split() if _found(f"{module}.{name}") is None)
    for name in ON_USE:
        module, _, attribute = name.rpartition(".")
        loaded = sys.modules.get(module)
        if find_spec(module) is None or (loaded is not None and not hasattr(loaded, attribute)):
            yield name
    for name, methods in METHODS.items():
        yield from (f"{name}.{method}" for method in methods.split() if _found(f"{name}.{method}") is None)


def _missing_arguments() -> Iterator[str]:
    for name, wanted in ARGUMENTS.items():
        function = _found(name)
        known = inspect.signature(function).parameters if function is not None else {}
        lacking = [argument for argument in wanted.split() if argument not in known]
        if lacking:
            yield f"{name}({', '.join(lacking)})"


def _calls_override() -> bool:
    """Whether the host's attention hands calls to the override. Tried, because the name alone proves nothing."""
    asked: list[object] = []
    wrap = _found("comfy.ldm.modules.attention.wrap_attn")
    if wrap is None:
        return False
    attention = wrap(lambda *args, **kwargs: None)
    attention(None, None, None, 1, transformer_options={_OVERRIDE: lambda *args, **kwargs: asked.append(args)})
    return bool(asked)


def _found(name: str) -> Any:
    """The object of a dotted name, or None; its module has been imported."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        value: Any = sys.modules.get(".".join(parts[:length]))
        if value is not None:
            for part in parts[length:]:
                value = getattr(value, part, None)
            return value
    return None


def host_version() -> str:
    """ComfyUI's."""
    try:
        return str(import_module("comfyui_version").__version__)
    except Exception:  # a host that does not say
        return "of unknown version"


def _quoted(project: str, name: str) -> str:
    found = re.search(rf'^{name} = "(.+)"$', project, re.MULTILINE)
    return found[1] if found else "?"
