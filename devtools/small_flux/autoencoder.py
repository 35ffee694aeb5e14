"""The small model's autoencoder, in the format of TAESD, which ComfyUI's VAE loader opens.

The encoder is arithmetic, not training: each block of 8 x 8 pixels becomes 16 coefficients of its cosine transform, ten
of its brightness and three of each colour difference. The decoder is trained to draw the picture from them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CHANNELS = 16
BLOCK = 8
_WIDTH = 64  # of TAESD's layers
# FLUX's latent format, (x - shift) * scale, undone: the model sees the coefficients themselves.
_SCALE, _SHIFT = 0.3611, 0.1159
# Brightness first: the coefficients (down, across) that are kept, from coarse to fine.
_BRIGHTNESS = ((0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (1, 2), (2, 1), (0, 3), (3, 0))
_COLOUR = ((0, 0), (0, 1), (1, 0))
_OPPONENT = ((0.299, 0.587, 0.114), (-0.169, -0.331, 0.5), (0.5, -0.419, -0.081))


def basis() -> Tensor:
    """Orthogonal within each plane: [CHANNELS, 3, BLOCK, BLOCK], float64."""
    at = (torch.arange(BLOCK, dtype=torch.float64) + 0.5) * math.pi / BLOCK
    waves = torch.stack([torch.cos(at * k) / BLOCK for k in range(4)])
    rows = []
    for colour, kept in zip(_OPPONENT, (_BRIGHTNESS, _COLOUR, _COLOUR), strict=True):
        plane = torch.tensor(colour, dtype=torch.float64)[:, None, None]
        rows += [plane * (waves[down][:, None] * waves[across][None]) for down, across in kept]
    return torch.stack(rows)


@dataclass(frozen=True, slots=True)
class Coefficients:
    """Which linear map of a block of pixels a latent is."""

    weight: Tensor
    """[CHANNELS, 3, BLOCK, BLOCK]."""
    bias: Tensor
    """[CHANNELS]."""

    @classmethod
    def fit(cls, images: Tensor) -> Coefficients:
        """Centred, and scaled so that fine coefficients count less than coarse ones but are not lost in the noise.

        images: [batch, 3, height, width], 0 to 1.
        """
        plain = basis().to(images.dtype)
        found = torch.nn.functional.conv2d(images, plain, stride=BLOCK).transpose(0, 1).flatten(1)
        spread = found.std(1)
        # The largest gets a standard deviation of one; the root keeps the order and halves the distances.
        scale = (spread / spread.max()).sqrt() / spread
        return cls(plain * scale[:, None, None, None], -found.mean(1) * scale)

    def encode(self, images: Tensor) -> Tensor:
        """[batch, 3, height, width], 0 to 1 -> [batch, CHANNELS, height / 8, width / 8]: as the model sees them."""
        return torch.nn.functional.conv2d(images, self.weight.to(images), self.bias.to(images), stride=BLOCK)


def set_encoder(vae: Any, coefficients: Coefficients) -> None:
    """Make the encoder of a `comfy.taesd.taesd.TAESD` compute these.

    Its three strided convolutions move pixels into channels, 12, then 48, then twice CHANNELS: a coefficient and its
    negative, because a rectifier follows; the last layer takes their difference.
    """
    encoder = vae.taesd_encoder
    with torch.no_grad():
        for parameter in encoder.parameters():
            # A residual block without its convolutions is a rectifier, and what it gets is not negative.
            parameter.zero_()
        for channel in range(3):
            encoder[0].weight[channel, channel, 1, 1] = 1
        for layer, channels in ((encoder[2], 3), (encoder[6], 12)):
            for down, across, channel in _pixels(channels):
                layer.weight[(down * 2 + across) * channels + channel, channel, 1 + down, 1 + across] = 1
        last = encoder[10].weight
        for down, across, channel in _pixels(48):
            # 48 channels: within each pair of strides, 2 x 2 pixels of 2 x 2 pixels of 3 colours.
            outer, rest = divmod(channel, 12)
            inner, colour = divmod(rest, 3)
            row = 4 * down + 2 * (outer // 2) + inner // 2
            column = 4 * across + 2 * (outer % 2) + inner % 2
            value = coefficients.weight[:, colour, row, column].to(last)
            last[:CHANNELS, channel, 1 + down, 1 + across] = value
            last[CHANNELS : 2 * CHANNELS, channel, 1 + down, 1 + across] = -value
        for channel in range(CHANNELS):
            encoder[14].weight[channel, channel, 1, 1] = 1
            encoder[14].weight[channel, CHANNELS + channel, 1, 1] = -1
            encoder[14].bias[channel] = coefficients.bias[channel]
        vae.vae_scale.fill_(_SCALE)
        vae.vae_shift.fill_(_SHIFT)


def _pixels(channels: int) -> list[tuple[int, int, int]]:
    return [(down, across, channel) for down in range(2) for across in range(2) for channel in range(channels)]
