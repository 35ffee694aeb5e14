"""ComfyUI's VAE over strips of rows: the same image as its own encode and decode, within the memory that there is."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from comfy.ldm.modules.diffusionmodules.model import AttnBlock, Decoder, Downsample, Encoder, ResnetBlock, Upsample
from torch import Tensor, nn

from ...clear_core.show.estimate import dtype_name
from ...clear_core.strips.autoencoder import NotFiniteError, decode, encode
from ...clear_core.strips.feature_map import Shape, Storage
from ...clear_core.strips.plan import StripPlan, strip_plan
from ...clear_core.strips.sweep import WIDE, Lane, Sweeps
from ..insight.row_preview import RowPreview
from ..options.lanes import DeviceShare, resolve_lanes
from .bands.memory import RESERVE
from .machine import device_name, machine_devices
from .retry import is_out_of_memory

STRIP = 512 * 2**20
"""Bytes of a device that a strip takes where there is room: more is no faster."""
_LEAST_STRIP = 16 * 2**20
_TICKS = 1000  # of the progress bar
_ROWS = 256  # of an image that are converted at a time


@dataclass(frozen=True, slots=True)
class StripsUsed:
    """How an image passed. devices: a name for each lane. memory, files: the most bytes of feature maps at a time."""

    devices: tuple[str, ...]
    missing: tuple[str, ...]
    memory: int
    files: int
    device_maps: bool
    retried: int

    @property
    def where(self) -> str:
        place = "on the device" if self.device_maps else "in main memory"
        maps = f"{self.memory / 2**30:.1f} GiB {place}"
        if self.files:
            maps += f", {self.files / 2**30:.1f} GiB in files"
        lines = [f"on {', '.join(self.devices)}; feature maps: {maps}"]
        if self.missing:
            lines.append(f"Not on this machine: {', '.join(self.missing)}")
        if self.retried:
            lines.append(f"Out of memory: started again with smaller strips ({self.retried} x)")
        return "\n".join(lines)

    @property
    def text(self) -> str:
        return f"Exact, in strips {self.where}"


def vae_decode_strips(
    vae: Any, latent: Tensor, devices: Sequence[DeviceShare], strips: int, *, preview: bool = False
) -> tuple[Tensor, StripsUsed]:
    """latent: [batch, channels, height, width]. The pixels, 0 to 1: [batch, 8 height, 8 width, 3].

    devices: as `resolve_lanes` takes them. strips: of each feature map; 0 for as few as memory allows. preview: whether
    the page is shown the rows that are done. Raises
    ValueError for another kind of VAE or latent, StorageError where main memory and disk are too small.
    """
    model = _checked(vae)
    if latent.ndim != 4:
        raise ValueError(f"samples has {latent.ndim} dimensions; an image's latent has 4: this decodes no video")
    _check_finite("samples", latent)
    shape = _latent_shape(model, latent.shape)
    need = vae.memory_used_decode(latent.shape, vae.vae_dtype)
    run = _Run(vae, model.decoder, decode, shape, len(latent), devices, strips, need, show_rows=preview)
    with run.in_place_of_the_model(vae.output_device):
        images = [_to_pixels(vae, model.decode(one.to(vae.vae_dtype).to(vae.device))) for one in latent.split(1)]
    return torch.cat(images) if len(images) > 1 else images[0], run.used


def vae_encode_strips(
    vae: Any, pixels: Tensor, devices: Sequence[DeviceShare], strips: int
) -> tuple[Tensor, StripsUsed]:
    """pixels: [batch, height, width, channels], 0 to 1. The latent [batch, channels, height / 8, width / 8]."""
    model = _checked(vae)
    cell = vae.spacial_compression_encode()
    if min(pixels.shape[1:3]) < cell:
        raise ValueError(f"pixels is {pixels.shape[2]} x {pixels.shape[1]} pixels; the VAE needs {cell} a side")
    pixels = vae.vae_encode_crop_pixels(pixels[..., :3])
    _check_finite("pixels", pixels)
    batch, height, width, channels = pixels.shape
    need = vae.memory_used_encode((batch, channels, height, width), vae.vae_dtype)
    run = _Run(vae, model.encoder, encode, (channels, height, width), batch, devices, strips, need)
    # What follows the encoder in some models is computed where they are.
    with run.in_place_of_the_model(vae.device):
        latents = [model.encode(_from_pixels(vae, one)).to(vae.output_device).float() for one in pixels.split(1)]
    return torch.cat(latents), run.used


def _from_pixels(vae: Any, image: Tensor) -> Tensor:
    """An image [1, height, width, channels] as the model takes it, in main memory."""
    _, height, width, channels = image.shape
    given = torch.empty(1, channels, height, width, dtype=vae.vae_dtype)
    for rows in range(0, height, _ROWS):  # a whole image in float32 beside the given one takes gigabytes
        given[:, :, rows : rows + _ROWS] = vae.process_input(image[:, rows : rows + _ROWS].movedim(-1, 1))
    return given


def _to_pixels(vae: Any, raw: Tensor) -> Tensor:
    """[1, channels, height, width] as the model gives it, as an image."""
    _, channels, height, width = raw.shape
    image = torch.empty(1, height, width, channels, device=vae.output_device)
    for rows in range(0, height, _ROWS):
        part = vae.process_output(raw[:, :, rows : rows + _ROWS].to(vae.output_device).float())
        image[:, rows : rows + _ROWS] = part.movedim(1, -1)
    return image


def _latent_shape(model: Any, shape: Sequence[int]) -> tuple[int, int, int]:
    """What the decoder is given: FLUX.2's autoencoder first unfolds its latent."""
    channels = model.decoder.conv_in.in_channels
    fold = int((shape[1] // channels) ** 0.5) if shape[1] > channels else 1
    return channels, shape[2] * fold, shape[3] * fold


_CUT = (ResnetBlock, AttnBlock, Upsample, Downsample)
_LEAVES = (nn.Conv2d, nn.GroupNorm, nn.SiLU, nn.Dropout)


def part_that_needs_the_whole(vae: Any) -> str | None:
    """The class of a part, or of the whole model, that strips cannot compute; None where all can be cut."""
    model = vae.first_stage_model
    encoder, decoder = (getattr(model, name, None) for name in ("encoder", "decoder"))
    if type(encoder) is not Encoder or type(decoder) is not Decoder:
        return type(model).__name__
    parts = [part for whole in (encoder, decoder) for part in whole.modules() if part is not whole]
    strange = next((type(part).__name__ for part in parts if not _can_be_cut(part)), None)
    levels: Any = (*encoder.down, *decoder.up)
    if decoder.give_pre_end or any(len(level.attn) for level in levels):
        return "variant with attention between its levels"
    return strange


def _checked(vae: Any) -> Any:
    """The model of a VAE. Raises ValueError naming what it is where strips cannot compute it."""
    vae.throw_exception_if_invalid()
    strange = part_that_needs_the_whole(vae)
    if strange is not None:
        raise ValueError(
            f"The VAE is or has a {strange}. Strips are exact for FLUX's autoencoder and those of the same blocks (SD "
            "1.5, SDXL, SD 3): use VAE Decode or VAE Decode (Tiled), or the encoders of these names, for this one."
        )
    return vae.first_stage_model


def _can_be_cut(part: nn.Module) -> bool:
    if type(part) is ResnetBlock:
        return not part.use_conv_shortcut and not hasattr(part, "temb_proj")
    # The levels are plain modules that only hold others.
    return type(part) in (*_CUT, nn.Module, nn.ModuleList) or isinstance(part, _LEAVES)


def _check_finite(name: str, tensor: Tensor) -> None:
    if not all(bool(part.isfinite().all()) for part in tensor.split(1)):
        raise ValueError(
            f"{name} has NaN or infinite values, which would spread over the whole image. They come from the nodes "
            "before this one: check the model's dtype and the LoRAs."
        )


class _Run:
    """A batch through one model, over strips. used: how the last image passed."""

    used: StripsUsed

    def __init__(
        self,
        vae: Any,
        model: nn.Module,
        over: Any,
        shape: Shape,
        batch: int,
        devices: Sequence[DeviceShare],
        strips: int,
        need: float,
        *,
        show_rows: bool = False,
    ) -> None:
        """over: `decode` or `encode`. shape: of one image, as the model takes it. need: bytes that the model takes of
        the whole at once. show_rows: in a preview; of `decode` alone."""
        self._vae, self._model, self._over, self._strips = vae, model, over, strips
        self._show_rows = show_rows
        self._kept, self._recomputed = (
            strip_plan(model, shape, vae.vae_dtype, decoding=over is decode, recompute=recompute)
            for recompute in (False, True)
        )
        home = torch.device(vae.device)
        lanes = resolve_lanes(devices, [device_name(device) for device in machine_devices(home)])
        self._missing = lanes.missing
        self._devices = [torch.device(lane.name) for lane in lanes.lanes]
        self._dtype: torch.dtype = vae.vae_dtype
        self._retried = self._done = 0
        self._bar = comfy.utils.ProgressBar(_TICKS * batch)
        comfy.model_management.load_models_gpu(
            [vae.patcher], memory_required=min(int(need), 4 * STRIP), force_full_load=vae.disable_offload
        )
        self._models = self._replicas(home)

    def _replicas(self, home: torch.device) -> dict[torch.device, nn.Module]:
        found: dict[torch.device, nn.Module] = {}
        for device in self._devices:
            if device not in found:
                own = device_name(device) == device_name(home)
                found[device] = self._model if own else copy.deepcopy(self._model).to(device)
        return found

    @contextmanager
    def in_place_of_the_model(self, result: torch.device) -> Iterator[None]:
        """Meanwhile the model's forward runs over strips. result: where its results go."""
        own = vars(self._model).get("forward")
        self._model.forward = lambda given: self._forward(given, result)  # type: ignore[method-assign]
        try:
            yield
        finally:
            if own is None:
                del self._model.forward
            else:
                self._model.forward = own  # type: ignore[method-assign]

    def _forward(self, given: Tensor, result: torch.device) -> Tensor:
        budget = STRIP
        while True:
            try:
                made = self._once(given, result, budget)
                self._done += 1
                return made
            except NotFiniteError as error:
                raise ValueError(
                    f"The VAE's layer {error} gives NaN or infinite values in {dtype_name(self._dtype)}. Start ComfyUI "
                    "with --fp32-vae or --bf16-vae."
                ) from None
            except Exception as error:
                if not is_out_of_memory(error) or self._strips or budget <= _LEAST_STRIP:
                    raise
            # Outside the handler: by here the error, and with it all that the try had allocated, is gone.
            comfy.model_management.soft_empty_cache()
            budget //= 4
            self._retried += 1

    def _once(self, given: Tensor, result: torch.device, budget: int) -> Tensor:
        lanes = [self._lane(device, self._models[device], budget) for device in self._devices]
        place, room, plan = self._place(lanes)
        folder = Path(folder_paths.get_temp_directory())
        folder.mkdir(parents=True, exist_ok=True)
        parts: dict[int, Tensor] = {}
        preview = self._preview(given) if self._show_rows else None
        work = [0.0]

        def tick(more: float) -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            work[0] += more
            done = int(_TICKS * (self._done + min(1.0, work[0] / plan.work)))
            self._bar.update_absolute(done, preview=preview.take() if preview else None)

        def keep(start: int, rows: Tensor) -> None:
            parts[start] = rows.to(result)
            if preview:
                preview.add(start, rows)

        with Storage(room, folder, place) as storage:
            storage.check(plan.maps)
            sweeps = Sweeps(lanes, storage, self._strips, tick)
            self._over(sweeps, given, keep, recompute=plan is self._recomputed)
        names = tuple(device_name(device) for device in self._devices)
        on_device = place.type != "cpu"
        self.used = StripsUsed(names, self._missing, storage.in_memory, storage.in_files, on_device, self._retried)
        return torch.cat([parts[start] for start in sorted(parts)], dim=2)

    def _preview(self, given: Tensor) -> RowPreview:
        cell = 2 ** (len(self._model.up) - 1)  # type: ignore[arg-type]
        return RowPreview(cell * given.shape[2], cell * given.shape[3], self._vae.process_output)

    def _place(self, lanes: Sequence[Lane]) -> tuple[torch.device, int, StripPlan]:
        """Where feature maps are kept, the bytes that may be taken there, and whether some are computed again."""
        first = lanes[0]
        if len(lanes) == 1 and first.device.type != "cpu":
            for plan in (self._kept, self._recomputed):
                if plan.maps + WIDE * STRIP < first.keys:
                    return first.device, first.keys, plan
        room = _main_memory()
        # At 8192 pixels 220 GiB less cross to a GPU and back, for 240 TFLOP more.
        keep = all(lane.device.type == "cpu" for lane in lanes) and self._kept.maps <= room
        return torch.device("cpu"), room, self._kept if keep else self._recomputed

    def _lane(self, device: torch.device, model: nn.Module, budget: int) -> Lane:
        count = self._devices.count(device)
        free: Any = comfy.model_management.get_free_memory(device)
        room = max(0, int(free) - RESERVE) // count
        budget = min(budget, max(_LEAST_STRIP, room // 4))
        return Lane(device, model, budget, max(0, room - 2 * budget))


def _main_memory() -> int:
    """Bytes for feature maps: what is free, without what the images and the page need."""
    free: Any = comfy.model_management.get_free_memory(torch.device("cpu"))
    return int(free) * 7 // 10
