"""ComfyUI's internals, all that this pack touches: files, models, weight patches, hooks, messages.

How a patched model works, from the outside in:

    OUTER_SAMPLE wrapper      a sampling run begins and ends: the run log
    APPLY_MODEL wrapper       knows the noise level and the schedule: is the window on in this step?
    DIFFUSION_MODEL wrapper   knows the latent's size: the token grids of this forward -> Frame
    attention override        gets q, k, v of one layer; with the Frame it knows the attention pattern

The frame travels in `transformer_options`, never in a global, so that models, sizes, batches and threads
may change from one call to the next. Everything the hooks remember is in closures: hosts up to 0.12
deep-copy what lies in `model_options`, and functions are left alone.
"""

from comfy.utils import ProgressBar

from .attention_call import Frame
from .bands.forward import NO_CLEAR, apply_bands, sample_in_bands
from .cluster.start import guided_session, machines_session, start_worker
from .cluster.worker import RANK_NODE, Worker
from .distill.job import Job as DistillJob
from .distill.watch import distill
from .downloads import download, fetched_weights
from .evaluation.run import NodeWatch, evaluate_folders, evaluated_folder, prompts_file, saved
from .evaluation.weights import Files as NetworkFiles
from .factors import measure_factors
from .files import absent_release, download_folder, file_fingerprint, weights_files, weights_path
from .flux_model import FLUX_1, model_info, model_kind
from .large_images.read import check_region, image_fingerprint, input_images, load_region
from .large_images.save import image_metadata, save_large
from .metadata import add_prompt_handler
from .node_text import NodeTextParts, node_text_sender
from .own_times import own_times
from .page.routes import add_routes
from .page.theme import page_is_light
from .patching.controlnet import window_control
from .patching.patch import apply_clear
from .probe import ProbeRequest, ProbeResult, probe_attention
from .sweep.job import SweepJob
from .sweep.run import run_sweep
from .sweep.sampling import Given as SweepGiven
from .sweep.sampling import singles
from .sweep.store import check_prefix
from .time_shift import shifted
from .training_images import folder_fingerprint, image_folder
from .training_set import set_from_images, set_from_prompts
from .upscale_start import start_upscale
from .upstream import upstream
from .vae import vae_decode, vae_encode
from .vae_strips import vae_decode_strips, vae_encode_strips
from .workflow import (
    SAMPLERS,
    SCHEDULERS,
    ExecutionBlocker,
    GraphBuilder,
    call_number,
    has_clear,
    keeps_outputs,
    no_clear_after,
    output_is_used,
)

__all__ = [
    "FLUX_1",
    "NO_CLEAR",
    "RANK_NODE",
    "SAMPLERS",
    "SCHEDULERS",
    "DistillJob",
    "ExecutionBlocker",
    "Frame",
    "GraphBuilder",
    "NetworkFiles",
    "NodeTextParts",
    "NodeWatch",
    "ProbeRequest",
    "ProbeResult",
    "ProgressBar",
    "SweepGiven",
    "SweepJob",
    "Worker",
    "absent_release",
    "add_prompt_handler",
    "add_routes",
    "apply_bands",
    "apply_clear",
    "call_number",
    "check_prefix",
    "check_region",
    "distill",
    "download",
    "download_folder",
    "evaluate_folders",
    "evaluated_folder",
    "fetched_weights",
    "file_fingerprint",
    "folder_fingerprint",
    "guided_session",
    "has_clear",
    "image_fingerprint",
    "image_folder",
    "image_metadata",
    "input_images",
    "keeps_outputs",
    "load_region",
    "machines_session",
    "measure_factors",
    "model_info",
    "model_kind",
    "no_clear_after",
    "node_text_sender",
    "output_is_used",
    "own_times",
    "page_is_light",
    "probe_attention",
    "prompts_file",
    "run_sweep",
    "sample_in_bands",
    "save_large",
    "saved",
    "set_from_images",
    "set_from_prompts",
    "shifted",
    "singles",
    "start_upscale",
    "start_worker",
    "upstream",
    "vae_decode",
    "vae_decode_strips",
    "vae_encode",
    "vae_encode_strips",
    "weights_files",
    "weights_path",
    "window_control",
]
