"""A ControlNet for the small FLUX, made of its own blocks, judged by the picture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from host.pictures.studio import DIFFERENT, EQUAL, WHOLE, Studio, psnr, scenery

STRENGTH = 0.05


@pytest.fixture(scope="module")
def control(studio: Studio) -> Any:
    """InstantX's format. As such training starts: the model's first blocks, which see the control image as well; what
    they add is random, though, where training starts with zero."""
    import comfy.controlnet
    import comfy.ops
    from comfy.ldm.flux.controlnet import ControlNetFlux

    base = studio.model.model
    config = {**base.model_config.unet_config, "dtype": torch.float32, "device": "cpu", "depth_single_blocks": 1}
    made = ControlNetFlux(
        latent_input=True, control_latent_channels=16, operations=comfy.ops.disable_weight_init, **config
    )
    own = base.diffusion_model.state_dict()
    missing, _ = made.load_state_dict({**own, **_input(own)}, strict=False)
    parameters = dict(made.named_parameters())
    assert {name.partition(".")[0] for name in missing} == {"controlnet_blocks", "controlnet_single_blocks"}
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name in missing:
            shape = parameters[name].shape
            parameters[name].copy_(torch.randn(shape, generator=generator) / shape[-1] ** 0.5)
    return comfy.controlnet.ControlNet(
        made, compression_ratio=1, load_device=torch.device("cpu"), extra_conds=["y", "guidance"]
    )


def _input(own: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"pos_embed_input.{kind}": own[f"img_in.{kind}"] for kind in ("weight", "bias")}


@pytest.fixture(scope="module")
def pictures(studio: Studio, dense: Tensor) -> Any:
    """Samples a MODEL with a ControlNet applied, whose control image is the first dense picture."""
    with torch.inference_mode():
        hint = studio.vae.encode(dense[:1]).clone()

    def make(model: Any, control: Any, strength: float = STRENGTH) -> Tensor:
        applied = control.copy().set_cond_hint(hint, strength, (0.0, 1.0))
        return studio.pictures(model, control=applied, control_apply_to_uncond=True)

    return make


@pytest.fixture(scope="module")
def controlled(studio: Studio, pictures: Any, control: Any) -> Tensor:
    """The dense model's."""
    return pictures(studio.model, control)


def test_it_changes_the_picture_and_leaves_the_scene(studio: Studio, dense: Tensor, controlled: Tensor) -> None:
    assert psnr(controlled, dense) < DIFFERENT
    assert scenery(studio.scores(controlled)) == scenery(studio.scores(dense))


def test_under_a_window_over_all_it_does_what_it_does_to_the_dense_model(
    studio: Studio, nodes_api: Any, pictures: Any, control: Any, controlled: Tensor
) -> None:
    assert psnr(pictures(nodes_api.apply(studio.model, radius=WHOLE), control), controlled) > EQUAL


def test_its_own_window_over_all_is_none_and_a_small_one_shows(
    studio: Studio, nodes_api: Any, pictures: Any, control: Any, controlled: Tensor
) -> None:
    def made(radius: int) -> Tensor:
        (own,) = nodes_api.execute("CLEARControlNet", control_net=control, radius=radius, backend="auto")
        return pictures(studio.model, own)

    assert psnr(made(WHOLE), controlled) > EQUAL
    assert psnr(made(1), controlled) < DIFFERENT


def test_without_strength_it_is_not_there(studio: Studio, dense: Tensor, pictures: Any, control: Any) -> None:
    assert psnr(pictures(studio.model, control, 0.0), dense) > EQUAL
