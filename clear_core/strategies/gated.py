"""Gated linear attention (arXiv 2312.06635) in two scans, with one gate for each head as in Mamba-2 (arXiv 2405.21060).

A scan along the image's rows keeps a state that fades by a gate in each token and takes up k v^T; both scans begin with
the state of the text, counted once, which the gates do not fade:

    S_i = g_i S_(i-1) + k_i v_i^T,    g_i = sigmoid(w k_i + b)^(1/16),    o_i = q_i S_i / sqrt(d)

The second scan runs backwards with gates of its own and leaves out the token itself, so that each token sees every
other: W_ij = q_i k_j / sqrt(d) times the gates between. Rows are not normalised and may be negative. The original's
gates come from the hidden states, and a norm and a gate follow its output; here all comes from q, k and v.

Cost: chunks of 64 tokens, in which pairs are written out: 2 scans of 4 N (64 + d) operations a channel, linear in the
tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..layout import Grid, TokenLayout
from .base import ImageCall, Parameters, TextIsDense, scores, wide

_GATE_ROOT = 16  # of the gates, as in the original: they begin near 1


@dataclass(frozen=True, slots=True)
class Gated(TextIsDense):
    """chunk: tokens whose pairs are written out; the result does not depend on it."""

    chunk: int = 64
    name = "gated"
    paper = "2312.06635"

    def parameters(self, heads: int, head_dim: int, grid: Grid) -> dict[str, Tensor]:
        return {
            "forward_gate": torch.zeros(heads, head_dim),
            "forward_gate_bias": torch.zeros(heads),
            "backward_gate": torch.zeros(heads, head_dim),
            "backward_gate_bias": torch.zeros(heads),
        }

    def image_output(self, call: ImageCall, parameters: Parameters, layer: int) -> Tensor:
        query = wide(call.query) / math.sqrt(call.query.shape[-1])
        key, value = wide(call.key), wide(call.value)
        forward, backward = _log_gates(key, parameters)
        out = query @ (wide(call.text_key).transpose(2, 3) @ wide(call.text_value))
        out = out + _scan(query, key, value, forward, self.chunk)
        out = out + _scan(query.flip(2), key.flip(2), value.flip(2), backward.flip(2), self.chunk).flip(2)
        return out - (query * key).sum(-1, keepdim=True) * value

    def image_weights(self, call: ImageCall, parameters: Parameters, layer: int) -> Tensor:
        forward, backward = (gate.cumsum(dim=2) for gate in _log_gates(wide(call.key), parameters))
        # To i from an earlier j: the gates j+1 to i. From a later j: i to j-1 of the other scan.
        earlier = (forward[..., :, None] - forward[..., None, :]).tril().exp().tril()
        before = F.pad(backward, (1, 0))[..., :-1]
        later = (before[..., None, :] - before[..., :, None]).triu(1).exp().triu(1)
        text = scores(call.query, call.text_key)
        return torch.cat((text, scores(call.query, call.key) * (earlier + later)), dim=3)

    def image_flops(self, layout: TokenLayout, heads: int, head_dim: int, layer: int) -> int:
        scans = 2 * 4 * layout.image.tokens * (self.chunk + head_dim)
        text = 2 * (layout.text + layout.image.tokens) * head_dim
        return (scans + text) * heads * head_dim


def _log_gates(key: Tensor, parameters: Parameters) -> tuple[Tensor, Tensor]:
    """The logarithms of the gates of both scans, each [batch, heads, tokens]; 0 at most."""

    def gate(name: str) -> Tensor:
        weight, bias = (parameters[which].to(key.dtype) for which in (name, f"{name}_bias"))
        return F.logsigmoid((key * weight[:, None]).sum(-1) + bias[:, None]) / _GATE_ROOT

    return gate("forward_gate"), gate("backward_gate")


def _scan(query: Tensor, key: Tensor, value: Tensor, log_gate: Tensor, chunk: int) -> Tensor:
    """Each token's query times the state that has taken up its own and all earlier keys and values.

    query, key, value: [batch, heads, tokens, head_dim]. log_gate: [batch, heads, tokens].
    """
    tokens = query.shape[2]
    missing = -tokens % chunk
    query, key, value = (F.pad(x, (0, 0, 0, missing)).unflatten(2, (-1, chunk)) for x in (query, key, value))
    faded = F.pad(log_gate, (0, missing)).unflatten(2, (-1, chunk)).cumsum(dim=3)  # since the chunk's beginning
    pairs = (faded[..., :, None] - faded[..., None, :]).tril().exp().tril()
    inside = (query @ key.transpose(3, 4) * pairs) @ value
    total = faded[..., -1:]
    taken = (key * (total - faded).exp()[..., None]).transpose(3, 4) @ value  # by each chunk's end
    state = torch.zeros_like(taken[:, :, 0])
    states: list[Tensor] = []
    for index in range(taken.shape[2]):
        states.append(state)
        state = total[:, :, index, :, None].exp() * state + taken[:, :, index]
    before = (query * faded.exp()[..., None]) @ torch.stack(states, dim=2)
    return (inside + before).flatten(2, 3)[:, :, :tokens]
