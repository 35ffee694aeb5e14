"""Training of the autoencoder's decoder: pictures from the coefficients of `autoencoder`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clear_core.whole_file import written_whole

from .autoencoder import BLOCK, Coefficients

CROP = 64
"""Pixels: what a step sees of a picture. A decoder's layers see less than that."""
_BATCH = 8
_NOISE = 0.04  # of a latent: what a sampler leaves


class DecoderTraining:
    """The decoder of a `comfy.taesd.taesd.TAESD`, its optimizer, and where it is."""

    def __init__(self, vae: Any, coefficients: Coefficients, file: Path, steps: int, seed: int = 0) -> None:
        self._decoder = vae.taesd_decoder
        self._coefficients, self._file, self._steps, self._seed = coefficients, file, steps, seed
        self._decoder.requires_grad_(True).train()
        _start(self._decoder, seed)
        self._optimizer = torch.optim.AdamW(self._decoder.parameters(), lr=1e-3, weight_decay=0.0)
        self.step = 0
        if file.is_file():
            saved = torch.load(file, weights_only=True)
            self._decoder.load_state_dict(saved["decoder"])
            self._optimizer.load_state_dict(saved["optimizer"])
            self.step = saved["step"]

    def run(self, images: Tensor, say: Callable[[str], None], save_every: int = 200) -> None:
        """Train what is missing. images: [count, 3, height, width], 0 to 1."""
        steps, summed, count = self._steps, 0.0, 0
        while self.step < steps:
            generator = torch.Generator().manual_seed((self._seed << 32) + self.step)
            rate = 1e-3 * min(1.0, (self.step + 1) / 50, (steps - self.step) / (0.3 * steps))
            for group in self._optimizer.param_groups:
                group["lr"] = rate
            summed, count, self.step = summed + self._step(images, generator), count + 1, self.step + 1
            if self.step % 50 == 0:
                say(f"decoder: step {self.step} of {steps}, loss {summed / count:.4f}")
                summed, count = 0.0, 0
            if self.step % save_every == 0 or self.step == steps:
                self._save()

    def _step(self, images: Tensor, generator: torch.Generator) -> float:
        height, width = images.shape[-2:]
        crops = []
        for index in torch.randint(len(images), (_BATCH,), generator=generator).tolist():
            # On the grid of the coefficients' blocks.
            top, left = (
                BLOCK * int(torch.randint((side - CROP) // BLOCK + 1, (), generator=generator))
                for side in (height, width)
            )
            crops.append(images[index, :, top : top + CROP, left : left + CROP])
        wanted = torch.stack(crops).float()
        latents = self._coefficients.encode(wanted)
        drawn = self._decoder(latents + _NOISE * torch.randn(latents.shape, generator=generator))
        loss = (drawn - wanted).abs().mean() + (drawn - wanted).square().mean()
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._decoder.parameters(), 1.0)
        self._optimizer.step()
        return float(loss.detach())

    def _save(self) -> None:
        saved = {
            "decoder": self._decoder.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "step": self.step,
        }
        with written_whole(self._file) as part:
            torch.save(saved, part)


def _start(decoder: Any, seed: int) -> None:
    """Random layers, except that each residual block begins as the identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if parameter.ndim < 2 or name.endswith("conv.4.weight"):
                parameter.zero_()
            else:
                parameter.normal_(0, (2 / parameter[0].numel()) ** 0.5, generator=generator)
        # The last layer draws the middle grey at first.
        last = decoder[-1]
        last.weight.mul_(0.1)
        last.bias.fill_(0.5)
