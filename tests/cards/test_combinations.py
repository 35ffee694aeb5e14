"""Every two of the things that a forward in bands may have, on simulated cards: nothing meets on the wrong one."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any, Literal, get_args, get_type_hints

import pytest
import torch
from torch import Tensor

from devtools.cards import cards
from devtools.cards_counts import counted
from devtools.cards_model import control_net_on, model_on, sample_on, sampling_inputs

from host.packs.positions import Spanning, moved

TEXT = 9
SIZES = {"even": (40, 18), "odd": (43, 31), "low": (10, 60)}
"""Latent cells."""


@dataclass(frozen=True)
class Combination:
    """One forward. Each field is one of its type's values."""

    node: Literal["model", "sampler"]
    devices: Literal["cuda:0,cuda:1", "cuda:1,cuda:0", "cuda:3,cuda:0,cuda:2,cuda:1", "auto"]
    bands: Literal[2, 3, 7, 20]
    size: Literal["even", "odd", "low"]
    batch: Literal[1, 2]
    cfg: Literal[1, 2]
    text_merge: Literal["exact", "average"]
    down_factor: Literal[1, 4]
    backend: Literal["auto", "sdpa"]
    mask: Literal["", "of the image's size", "of another size"]
    references: Literal["", "offset", "index", "uxo"]
    view: Literal["window", "all tokens"]
    control: Literal["", "instantx", "xlabs"]
    other: Literal["", "lora by hook", "positions moved", "positions embedded", "block replaced"]

    @property
    def makes_sense(self) -> bool:
        return _possible(asdict(self))


def pairwise() -> Iterator[Combination]:
    """Combinations in which every two values that can stand together do, the same in every run."""
    values = {name: get_args(type) for name, type in get_type_hints(Combination).items()}
    chance = random.Random(0)

    def pairs(of: Combination) -> set[Any]:
        return set(combinations(asdict(of).items(), 2))

    def draw(**fixed: Any) -> Combination:
        return Combination(**{name: fixed.get(name, chance.choice(each)) for name, each in values.items()})

    missing = {
        ((one, first), (two, second))
        for one, two in combinations(values, 2)
        for first in values[one]
        for second in values[two]
    }
    missing -= {pair for pair in missing if not _possible(dict(pair))}
    while missing:
        seed = dict(min(missing, key=str))
        best = max(
            (each for each in (draw(**seed) for _ in range(60)) if each.makes_sense),
            key=lambda each: len(pairs(each) & missing),
        )
        missing -= pairs(best)
        yield best


def _possible(values: dict[str, Any]) -> bool:
    """Whether values can stand together."""
    # No backend has a mask together with down-sampled tokens, and ComfyUI's ControlNet for FLUX no odd sizes.
    excluded = (values.get("mask") and values.get("down_factor", 1) > 1) or (
        values.get("control") and values.get("size") == "odd"
    )
    return not excluded and (values.get("references", "any") != "" or values.get("view") != "all tokens")


def lora() -> dict[str, Tensor]:
    return {
        "transformer.transformer_blocks.0.attn.to_q.lora_A.weight": torch.randn(4, 128),
        "transformer.transformer_blocks.0.attn.to_q.lora_B.weight": torch.randn(128, 4),
    }


def with_other(model: Any, other: str) -> Any:
    """The model after a node that is not ours."""
    model = model.clone()
    if other == "positions moved":
        model.set_model_patch(moved, "post_input")
    elif other == "positions embedded":
        model.add_object_patch("diffusion_model.pe_embedder", Spanning(model.model.diffusion_model.pe_embedder))
    elif other == "block replaced":
        model.set_model_patch_replace(lambda args, extra: extra["original_block"](args), "dit", "double_block", 0)
    return model


def conditioning(case: Combination, model: Any, home: torch.device) -> dict[str, Any]:
    """What nodes put into the conditioning."""
    import comfy.hooks

    height, width = SIZES[case.size]
    cond: dict[str, Any] = {}
    if case.mask:
        shape = (-(-height // 2), -(-width // 2)) if case.mask == "of the image's size" else (6, 5)
        tokens = TEXT + shape[0] * shape[1]
        cond |= {"attention_mask": torch.zeros(1, tokens, tokens), "attention_mask_img_shape": shape}
    if case.references:
        cond["reference_latents"] = [torch.randn(1, 16, *size) for size in ((height, width), (12, 31))]
        cond["reference_latents_method"] = case.references
    if case.control:
        shape = (1, 16, height, width) if case.control == "instantx" else (1, 3, 8 * height, 8 * width)
        control = control_net_on(home, model, case.control).set_cond_hint(torch.rand(shape), 0.8, (0.0, 1.0))
        if case.control == "instantx":
            control.set_extra_arg("control_type", [1])
        cond |= {"control": control, "control_apply_to_uncond": True}
    if case.other == "lora by hook":
        cond["hooks"] = comfy.hooks.create_hook_lora(lora(), 1.0, 0.0)
    return cond


@pytest.mark.parametrize("case", list(pairwise()), ids=lambda case: " ".join(str(x) for x in asdict(case).values()))
def test_nothing_meets_on_the_wrong_card(host: Any, nodes_api: Any, case: Combination) -> None:
    height, width = SIZES[case.size]
    with cards(4) as found, counted(found) as ledger:
        home = found.devices[0]
        model = with_other(model_on(home, depth=1, depth_single_blocks=1), case.other)
        cut = {"devices": case.devices, "bands": case.bands, "text_merge": case.text_merge}
        patched = nodes_api.apply(
            model, radius=3, down_factor=case.down_factor, references=case.view, backend=case.backend
        )
        if case.node == "model":
            patched = nodes_api.execute("CLEARMultiGPU", model=patched, **cut)[0]
        given = {
            "text": TEXT,
            "batch": case.batch,
            "cfg": case.cfg,
            "cond": conditioning(case, model, home),
            "negative_text": 0 if case.mask else 5,
        }
        if case.node == "model":
            out, device = sample_on(patched, height, width, **given), home
        else:
            given = sampling_inputs(patched, height, width, **given)
            out, device = nodes_api.execute("CLEARTiledSampler", **given, **cut)[0]["samples"], torch.device("cpu")
        assert (out.device, out.dtype, out.shape) == (device, torch.float32, (case.batch, 16, height, width))
        # Every card has had its part: more than one has been sent something.
        assert len({target for _, target in ledger.in_forward().copies} - {"cpu"}) > 1
