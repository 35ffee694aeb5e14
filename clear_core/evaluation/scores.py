"""One number of the rows of all images, in float64."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

SPLITS: Final = 10
"""Of the Inception Score: the authors' number."""


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """FID (arXiv 1706.08500) of two sets of features, [images, channels] each, at least two images in each.

    |mean_a - mean_b|² + tr(A + B - 2 (A B)^½), A and B the covariances. With X and Y, the centred features over the
    square root of their count less one, A = XᵀX and B = YᵀY, and the trace of (A B)^½ is the sum of the singular values
    of X Yᵀ. No root of a singular matrix is taken, which costs digits where images are fewer than channels.
    """
    (mean_a, x), (mean_b, y) = (_centred(features) for features in (a, b))
    cross = torch.linalg.svdvals(_reduced(x) @ _reduced(y).T).sum()
    distance = (mean_a - mean_b).square().sum() + x.square().sum() + y.square().sum() - 2 * cross
    return max(0.0, float(distance))


def inception_score(logits: Tensor, splits: int = SPLITS) -> float:
    """IS (arXiv 1606.03498): exp of the mean KL divergence of p(class | image) from its mean, averaged over splits.

    logits: [images, classes]. The splits are runs of images in the order given, as in the authors' code.
    """
    log_p = logits.double().log_softmax(1)
    found = []
    for part in log_p.chunk(splits):
        p = part.exp()
        mean = p.mean(0, keepdim=True).clamp_min(torch.finfo(p.dtype).tiny)  # a class that no image has
        found.append((p * (part - mean.log())).sum(1).mean().exp())
    return float(torch.stack(found).mean())


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """100 times the cosine of each row of `a` and its partner: float64 [images]."""
    a, b = (rows.double() / rows.double().norm(dim=1, keepdim=True) for rows in (a, b))
    return 100 * (a * b).sum(1)


def _centred(features: Tensor) -> tuple[Tensor, Tensor]:
    features = features.double()
    if len(features) < 2:
        raise ValueError(f"a distance of distributions needs two images at least; there are {len(features)}")
    mean = features.mean(0)
    return mean, (features - mean) / (len(features) - 1) ** 0.5


def _reduced(x: Tensor) -> Tensor:
    """A matrix with the same Gram matrix XᵀX and no more rows than columns."""
    return x if x.shape[0] <= x.shape[1] else torch.linalg.qr(x, mode="r").R
