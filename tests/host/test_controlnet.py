"""ControlNets for FLUX.1 of the host's own classes: with CLEAR, in bands, chained, and with a window of their own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor

from clear_core.layout import Grid, TokenLayout
from devtools.models import flux_model, sample

from core.naive import visible
from host.comparing import error

HEIGHT, WIDTH = 24, 18  # latent cells: 12 x 9 tokens


def control_net(kind: str, dtype: torch.dtype = torch.float32) -> Any:
    """InstantX's format (latent in, union modes, double and single blocks) or XLabs' (picture in, double blocks)."""
    import comfy.controlnet
    import comfy.ops
    from comfy.ldm.flux.controlnet import ControlNetFlux

    config = dict(flux_model().model.model_config.unet_config)
    instant = kind == "instantx"
    config |= {"dtype": dtype, "device": "cpu", "depth": 2, "depth_single_blocks": 1 if instant else 0}
    extra: dict[str, Any] = {"latent_input": True, "num_union_modes": 3, "control_latent_channels": 16}
    model = ControlNetFlux(operations=comfy.ops.disable_weight_init, **config, **(extra if instant else {}))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            fan = parameter[0].numel() if parameter.ndim > 1 else 1
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.1 * noise if name.endswith("scale") else noise * (0.7 / fan**0.5))
    return comfy.controlnet.ControlNet(
        model,
        compression_ratio=1 if instant else 8,
        load_device=torch.device("cpu"),
        extra_conds=["y", "guidance"],
    )


def applied(control: Any, strength: float = 1.0, start: float = 0.0, end: float = 1.0, *, after: Any = None) -> Any:
    """As Apply ControlNet does it. after: one applied before."""
    instant = control.compression_ratio == 1
    shape = (1, 16, HEIGHT, WIDTH) if instant else (1, 3, 8 * HEIGHT, 8 * WIDTH)
    hint = torch.rand(shape, generator=torch.Generator().manual_seed(8))
    copy = control.copy().set_cond_hint(hint, strength, (start, end))
    if instant:
        copy.set_extra_arg("control_type", [1])
    return copy.set_previous_controlnet(after)


def run(model: Any, control: Any, steps: int = 2) -> Tensor:
    return sample(model, HEIGHT, WIDTH, steps=steps, cond={"control": control, "control_apply_to_uncond": True})


@pytest.fixture
def patched(host: Any, nodes_api: Any) -> Any:
    return nodes_api.apply(flux_model(depth=2), radius=3)


@pytest.fixture
def windowed(nodes_api: Any) -> Callable[..., Any]:
    def make(control: Any, radius: int = 3, backend: str = "auto") -> Any:
        return nodes_api.execute("CLEARControlNet", control_net=control, radius=radius, backend=backend)[0]

    return make


@pytest.mark.parametrize("kind", ["instantx", "xlabs"])
@pytest.mark.parametrize("devices", ["cpu", "cpu,cpu"])
def test_with_bands_and_without(patched: Any, nodes_api: Any, kind: str, devices: str) -> None:
    (banded,) = nodes_api.execute("CLEARMultiGPU", model=patched, devices=devices, bands=4, text_merge="exact")
    control = applied(control_net(kind), 0.8)
    expected = run(patched, control)
    assert error(run(banded, control), expected) < 1e-5
    assert error(sample(patched, HEIGHT, WIDTH), expected) > 1e-3


def test_two_at_once_and_parts_of_the_schedule(patched: Any, nodes_api: Any) -> None:
    first, second = control_net("instantx"), control_net("xlabs")
    (banded,) = nodes_api.execute("CLEARMultiGPU", model=patched, devices="cpu,cpu", bands=3, text_merge="exact")
    both = applied(second, 0.5, 0.0, 0.6, after=applied(first, 1.0, 0.3, 1.0))
    expected = run(patched, both, steps=4)
    assert error(run(banded, both, steps=4), expected) < 1e-5
    for other in (
        applied(first, 1.0, 0.3, 1.0),
        applied(second, 0.5, 0.0, 0.6),
        applied(second, 0.5, after=applied(first)),
    ):
        assert error(run(patched, other, steps=4), expected) > 1e-4


def masked(model: Any, radius: int) -> ExitStack:
    """The oracle: the window as a mask, through the blocks' own argument for one."""
    stack = ExitStack()
    grid = Grid(HEIGHT // 2, WIDTH // 2)

    def give(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        x = args[0] if args else torch.cat((kwargs["txt"], kwargs["img"]), 1)
        seen = visible(TokenLayout(x.shape[1] - grid.tokens, grid), radius)
        bias = torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)
        return args, {**kwargs, "attn_mask": bias[None, None]}

    for block in (*model.double_blocks, *model.single_blocks):
        stack.callback(block.register_forward_pre_hook(give, with_kwargs=True).remove)
    return stack


@pytest.mark.parametrize("kind", ["instantx", "xlabs"])
@pytest.mark.parametrize("backend", ["auto", "sdpa", "reference"])
def test_its_own_window_is_its_dense_attention_under_the_mask(
    patched: Any, windowed: Callable[..., Any], kind: str, backend: str
) -> None:
    control = control_net(kind)
    with masked(control.control_model, 3):
        expected = run(patched, applied(control))
    dense = run(patched, applied(control))
    out = run(patched, applied(windowed(control, backend=backend)))
    assert error(out, expected) < 1e-5
    assert error(out, dense) > 1e-4
    # The one that came in stays as it was.
    assert torch.equal(run(patched, applied(control)), dense)


def test_a_window_larger_than_the_image_changes_nothing(patched: Any, windowed: Callable[..., Any]) -> None:
    control = control_net("instantx")
    out = run(patched, applied(windowed(control, radius=128)))
    assert error(out, run(patched, applied(control))) < 1e-5


def test_positions_stay_apart_in_bfloat16(host: Any, windowed: Callable[..., Any]) -> None:
    """The host counts a ControlNet's positions in its dtype: 257 is 256 there."""
    control = control_net("instantx", torch.bfloat16)
    model = windowed(control, radius=8).control_model
    found: list[Tensor] = []
    with ExitStack() as stack:
        stack.callback(model.model.pe_embedder.register_forward_hook(lambda _, args, out: found.append(args[0])).remove)
        for height, width in ((2, 600), (600, 4)):
            latent = torch.randn(1, 16, height, width, dtype=torch.bfloat16)
            model(
                x=latent,
                hint=latent,
                timesteps=torch.tensor([0.5], dtype=torch.bfloat16),
                context=torch.randn(1, 9, 24, dtype=torch.bfloat16),
                y=torch.randn(1, 12, dtype=torch.bfloat16),
                guidance=torch.tensor([3.5], dtype=torch.bfloat16),
                control_type=[0],
            )
    for ids, (rows, columns) in zip(found, ((1, 300), (300, 2)), strict=True):
        image = ids[0, 10:]  # nine of the prompt, one for the union mode
        want = [(0, y, x) for y in range(rows) for x in range(columns)]
        assert [tuple(map(int, cell)) for cell in image.tolist()] == want
        assert ids.dtype == torch.float32


def test_it_says_what_ran(patched: Any, nodes_api: Any, shown: Any) -> None:
    (control,) = nodes_api.execute("CLEARControlNet", control_net=control_net("xlabs"), radius=3, backend="sdpa")
    run(patched, applied(control))
    said = shown["CLEARControlNet"]
    assert said[0] == "radius 3, window only: this ControlNet was trained with dense attention"
    assert said[-1].splitlines()[1].startswith("CLEAR ran: sdpa (9 text + 12 x 9 image tokens")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"radius": 0}, "radius is 0; allowed is 1 to 128"),
        ({"radius": 1000}, "radius is 1000; allowed is 1 to 128"),
        ({"backend": "fast"}, "backend is 'fast'; choose one of"),
    ],
)
def test_impossible_settings_are_refused(
    pack: dict[str, Any], windowed: Callable[..., Any], values: dict[str, Any], words: str
) -> None:
    assert words in pack["CLEARControlNet"].validate_inputs(**values)
    with pytest.raises(ValueError, match=words):
        windowed(control_net("xlabs"), **values)


def test_what_is_no_controlnet_of_flux_is_refused(host: Any, windowed: Callable[..., Any]) -> None:
    import comfy.controlnet

    with pytest.raises(ValueError, match="works on ControlNets for FLUX.1.*this one is Linear"):
        windowed(comfy.controlnet.ControlNet(torch.nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="already has a window: remove one of the two"):
        windowed(windowed(control_net("xlabs")))
