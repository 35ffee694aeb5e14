"""Every strategy again, one image query of one head after another, in float64 and from its paper's formula alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from clear_core.layout import Grid, TokenLayout
from clear_core.strategies import (
    Agent,
    BigBird,
    Circle,
    ClippedNeighbourhood,
    ConvolutionCompression,
    Gated,
    GeneralisedLinear,
    Linear,
    Linformer,
    MeanCompression,
    Parameters,
    ShiftedNeighbourhood,
    Sigmoid,
    SlidingTiles,
    SparseLinear,
    Strided,
    Swin,
)

Place = tuple[int, int]
Sees = Callable[[Place, Place], bool]


def places(grid: Grid) -> list[Place]:
    return list(product(range(grid.height), range(grid.width)))


def cells(grid: Grid, side: int) -> list[list[int]]:
    """The image tokens of each cell, cell by cell in rows."""
    starts = product(range(0, grid.height, side), range(0, grid.width, side))
    return [
        [
            row * grid.width + column
            for row in range(y, min(y + side, grid.height))
            for column in range(x, min(x + side, grid.width))
        ]
        for y, x in starts
    ]


def softmax(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """One query over some keys."""
    scores = torch.stack([query.dot(k) for k in key]) / math.sqrt(len(query))
    return scores.softmax(0) @ value


def output(
    strategy: object, query: Tensor, key: Tensor, value: Tensor, layout: TokenLayout, parameters: Parameters, layer: int
) -> Tensor:
    """The output of every token of one sequence: query, key and value are [heads, tokens, head_dim] in float64."""
    heads = []
    for head in range(len(query)):
        text = [softmax(q, key[head], value[head]) for q in query[head, : layout.text]]
        image = _image(strategy, query, key, value, layout, parameters, layer, head)
        heads.append(torch.stack([*text, *image]))
    return torch.stack(heads)


def seen_by(strategy: object, grid: Grid, layer: int) -> Sees | None:
    """Which image token sees which, for the masks that are the same in all heads."""
    size = grid.height, grid.width

    def on_both_axes(sees: Callable[[int, int, int], bool]) -> Sees:
        return lambda query, key: all(sees(q, k, n) for q, k, n in zip(query, key, size, strict=True))

    match strategy:
        case Circle(radius=r):
            return lambda query, key: (query[0] - key[0]) ** 2 + (query[1] - key[1]) ** 2 < r * r
        case ClippedNeighbourhood(side=s):
            return on_both_axes(lambda q, k, n: k in range(q - s // 2, q - s // 2 + s))
        case ShiftedNeighbourhood(side=s):
            return on_both_axes(lambda q, k, n: 0 <= k - min(max(0, q - s // 2), max(0, n - s)) < s)
        case Swin(side=s):
            moved = s // 2 if layer % 2 else 0
            return on_both_axes(lambda q, k, n: n <= s or (q + moved) // s == (k + moved) // s)
        case SlidingTiles(tile=t, across=w):
            return on_both_axes(
                lambda q, k, n: 0 <= k // t - min(max(0, q // t - w // 2), max(0, math.ceil(n / t) - w)) < w
            )
        case Strided(stride=s):
            return on_both_axes(lambda q, k, n: (q - k) % s == 0)
    return None


def _image(
    strategy: object,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: TokenLayout,
    parameters: Parameters,
    layer: int,
    head: int,
) -> list[Tensor]:
    grid, text = layout.image, layout.text
    q, k, v = query[head, text:], key[head, text:], value[head, text:]
    text_k, text_v = key[head, :text], value[head, :text]
    all_k, all_v = key[head], value[head]

    def over(index: int, tokens: list[int]) -> Tensor:
        """Query `index` over text and these image tokens."""
        return softmax(q[index], torch.cat((text_k, k[tokens])), torch.cat((text_v, v[tokens])))

    def merged(slots_k: list[Tensor], slots_v: list[Tensor]) -> list[Tensor]:
        keys, values = torch.cat((text_k, torch.stack(slots_k))), torch.cat((text_v, torch.stack(slots_v)))
        return [softmax(each, keys, values) for each in q]

    def kernel(phi_q: Tensor, phi_k: Tensor) -> list[Tensor]:
        rows = [torch.stack([each.dot(other) for other in phi_k]) for each in phi_q]
        return [(row / row.sum()) @ all_v for row in rows]

    sees = seen_by(strategy, grid, layer)
    if sees is not None:
        everywhere = places(grid)
        return [
            over(index, [j for j, other in enumerate(everywhere) if sees(place, other)])
            for index, place in enumerate(everywhere)
        ]
    match strategy:
        case BigBird(side=s):
            blocks = cells(grid, s)
            found: dict[int, Tensor] = {}
            for block, chosen in enumerate(strategy.chosen(grid, len(query), layer)[0, head].tolist()):
                everything = block in (0, len(blocks) - 1)
                tokens = list(range(grid.tokens)) if everything else [t for other in chosen for t in blocks[other]]
                found |= {index: over(index, tokens) for index in blocks[block]}
            return [found[index] for index in range(grid.tokens)]
        case MeanCompression(side=s):
            groups = cells(grid, s)
            return merged([k[group].mean(0) for group in groups], [v[group].mean(0) for group in groups])
        case ConvolutionCompression(side=s):
            return merged(*(_convolved(x[:, text:], grid, s, parameters)[head] for x in (key, value)))
        case Linformer():
            projections = parameters["key_projection"].double(), parameters["value_projection"].double()
            return merged(*([row @ x for row in e] for e, x in zip(projections, (k, v), strict=True)))
        case GeneralisedLinear():
            return kernel(*(F.elu(x + _learned(x, parameters, s, head)) + 1 for x, s in ((q, "query"), (all_k, "key"))))
        case Linear():
            return kernel(F.elu(q) + 1, F.elu(all_k) + 1)
        case Gated():
            return _recurrent(q, k, v, text_k.T @ text_v, parameters, head)
        case Sigmoid():
            bias = math.log(layout.tokens)
            rows = [torch.stack([each.dot(other) for other in all_k]) / math.sqrt(q.shape[1]) - bias for each in q]
            return [row.sigmoid() @ all_v for row in rows]
        case Agent(side=s):
            agents = [q[group].mean(0) for group in cells(grid, s)]
            found_by = merged(agents, [softmax(agent, k, v) for agent in agents])
            around = parameters["convolution"].double()[head]
            return [out + _around(v, grid, place, around) for out, place in zip(found_by, places(grid), strict=True)]
        case SparseLinear(side=s, blocks=n):
            blocks = cells(grid, s)
            outs: dict[int, Tensor] = {}
            for block in blocks:
                relevance = [float(q[block].mean(0).dot(k[other].mean(0)).detach()) for other in blocks]
                best = sorted(range(len(blocks)), key=lambda index: -relevance[index])[:n]
                outs |= {index: over(index, [t for other in best for t in blocks[other]]) for index in block}
            linear = kernel(q.softmax(1), all_k.softmax(1))
            weight, bias = parameters["projection"].double(), parameters["bias"].double()
            return [outs[index] + F.linear(each, weight, bias) for index, each in enumerate(linear)]
    raise AssertionError(f"no oracle for {strategy}")


def _convolved(tokens: Tensor, grid: Grid, side: int, parameters: Parameters) -> list[list[Tensor]]:
    """For each head, its cells: the kernel's sum, rescaled where tokens are missing, then LayerNorm over all heads."""
    kernel, bias = parameters["kernel"].double(), parameters["bias"].double()
    done = []
    for group in cells(grid, side):
        at = [(index // grid.width % side, index % grid.width % side) for index in group]
        used = sum(kernel[:, :, y, x] for y, x in at)
        total = sum(kernel[:, :, y, x] * tokens[:, index] for index, (y, x) in zip(group, at, strict=True))
        cell = total * (kernel.sum((2, 3)) / used) + bias
        normal = (cell - cell.mean()) / (cell.var(correction=0) + 1e-5).sqrt()
        done.append(normal * parameters["norm_weight"].double() + parameters["norm_bias"].double())
    return [[cell[head] for cell in done] for head in range(len(tokens))]


def _learned(tokens: Tensor, parameters: Parameters, side: str, head: int) -> Tensor:
    named = {
        name: parameters[f"{side}_{name}"][head].double()
        for name in ("first", "first_bias", "norm", "norm_bias", "second", "second_bias")
    }
    inner = F.linear(tokens, named["first"].T, named["first_bias"])
    inner = F.layer_norm(inner, inner.shape[1:], named["norm"], named["norm_bias"])
    return F.linear(F.leaky_relu(inner), named["second"].T, named["second_bias"])


def _recurrent(q: Tensor, k: Tensor, v: Tensor, text: Tensor, parameters: Parameters, head: int) -> list[Tensor]:
    """Token by token. The state of the backward scan has taken up the tokens behind."""

    def gate(name: str, token: Tensor) -> Tensor:
        score = parameters[f"{name}_gate"][head].double().dot(token) + parameters[f"{name}_gate_bias"][head].double()
        return score.sigmoid() ** (1 / 16)

    outs = [each @ text for each in q]
    state = torch.zeros_like(text)
    for i in range(len(q)):
        state = gate("forward", k[i]) * state + torch.outer(k[i], v[i])
        outs[i] = outs[i] + q[i] @ state
    state = torch.zeros_like(text)
    for i in reversed(range(len(q) - 1)):
        state = gate("backward", k[i]) * (state + torch.outer(k[i + 1], v[i + 1]))
        outs[i] = outs[i] + q[i] @ state
    return [out / math.sqrt(q.shape[1]) for out in outs]


def _around(v: Tensor, grid: Grid, place: Place, kernel: Tensor) -> Tensor:
    total = torch.zeros(v.shape[1], dtype=v.dtype)
    for dy, dx in product((-1, 0, 1), repeat=2):
        y, x = place[0] + dy, place[1] + dx
        if 0 <= y < grid.height and 0 <= x < grid.width:
            total = total + kernel[:, dy + 1, dx + 1] * v[y * grid.width + x]
    return total
