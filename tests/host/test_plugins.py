"""What FLUX users combine it with: whole sampling runs with CLEAR against dense ones under the window's mask."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from clear_core.layout import Grid
from devtools.models import clear_tensors, flux_model, sample

from host.comparing import error
from host.oracle import with_mask

HEIGHT, WIDTH, RADIUS = 20, 28, 3
GRID = Grid(HEIGHT // 2, WIDTH // 2)


def prompt(tokens: int, seed: int, **more: Any) -> list[Any]:
    """One prompt as nodes hand it on."""
    generator = torch.Generator().manual_seed(seed)
    context = torch.randn(1, tokens, 24, generator=generator)
    return [context, {"pooled_output": torch.randn(1, 12, generator=generator), "guidance": 3.5, **more}]


def run(
    model: Any,
    positive: list[Any],
    negative: list[Any] | None = None,
    *,
    cfg: float = 1.0,
    latent: Tensor | None = None,
    steps: int = 2,
    denoise: float = 1.0,
    **options: Any,
) -> Tensor:
    import comfy.samplers

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative or positive)
    guider.set_cfg(cfg)
    latent = torch.zeros(1, 16, HEIGHT, WIDTH) if latent is None else latent
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(5))
    sampling = model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", round(steps / denoise))[-steps - 1 :]
    sampler = comfy.samplers.sampler_object("euler")
    return guider.sample(noise, latent, sampler, sigmas, disable_pbar=True, seed=5, **options)


def half(left: bool) -> Tensor:
    mask = torch.zeros(1, HEIGHT, WIDTH)
    mask[..., : WIDTH // 2] = 1
    return mask if left else 1 - mask


def noise(*shape: int, seed: int = 6) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


Case = Callable[[Any], Tensor]
CASES: dict[str, tuple[dict[str, Any], Case]] = {
    "a batch of three": ({}, lambda model: run(model, [prompt(9, 1)], latent=torch.zeros(3, 16, HEIGHT, WIDTH))),
    "guidance with a longer negative prompt": (
        {},
        lambda model: run(model, [prompt(9, 1)], [prompt(21, 2)], cfg=3.0),
    ),
    "three prompts of different length": (
        {},
        lambda model: run(model, [prompt(9, 1), prompt(4, 2, strength=0.5), prompt(30, 3)]),
    ),
    "prompts in regions": (
        {},
        lambda model: run(model, [prompt(9, 1, mask=half(True)), prompt(12, 2, mask=half(False))]),
    ),
    "image to image": ({}, lambda model: run(model, [prompt(9, 1)], latent=noise(1, 16, HEIGHT, WIDTH), denoise=0.5)),
    "inpainting with a noise mask": (
        {},
        lambda model: run(model, [prompt(9, 1)], latent=noise(1, 16, HEIGHT, WIDTH), denoise_mask=half(True)[:, None]),
    ),
    "Canny or Depth": (
        {"in_channels": 32},
        lambda model: run(model, [prompt(9, 1, concat_latent_image=noise(1, 16, HEIGHT, WIDTH))]),
    ),
    "Fill": (
        {"in_channels": 96},
        lambda model: run(
            model,
            [
                prompt(
                    9,
                    1,
                    concat_latent_image=noise(1, 16, HEIGHT, WIDTH),
                    concat_mask=noise(1, 1, 8 * HEIGHT, 8 * WIDTH).round(),
                )
            ],
        ),
    ),
    "schnell": ({"guidance_embed": False}, lambda model: run(model, [prompt(9, 1)])),
    "guidance off": ({}, lambda model: run(model, [prompt(9, 1, guidance=None)])),
}


@pytest.mark.parametrize("name", CASES)
def test_equal_to_the_mask(host: Any, nodes_api: Any, name: str) -> None:
    config, case = CASES[name]
    model = flux_model(**config)
    expected = case(with_mask(model, GRID, RADIUS))
    assert error(case(nodes_api.apply(model, radius=RADIUS)), expected) < 1e-5
    assert error(case(model), expected) > 1e-4


@pytest.mark.parametrize("name", CASES)
def test_equal_in_bands(host: Any, nodes_api: Any, name: str) -> None:
    config, case = CASES[name]
    patched = nodes_api.apply(flux_model(**config), radius=RADIUS)
    (banded,) = nodes_api.execute("CLEARMultiGPU", model=patched, devices="cpu,cpu", bands=3, text_merge="exact")
    assert error(case(banded), case(patched)) < 1e-5


def style_prompt(strength: float) -> list[Any]:
    """What Redux's node makes: more text tokens, and below full strength a bias on how they are looked at."""
    if strength == 1:
        return prompt(9 + 7, 1)
    # Over text and a picture of 5 x 7 tokens, which the host resizes to the latent's: as StyleModelApply writes it.
    size = 9 + 7 + 5 * 7
    mask = torch.zeros(1, size, size)
    bias = torch.log(torch.tensor(strength))
    mask[:, 9:16, :9] = mask[:, 16:, 9:16] = mask[:, 9:16, 16:] = bias
    return prompt(9 + 7, 1, attention_mask=mask, attention_mask_img_shape=(5, 7))


@pytest.mark.parametrize("devices", [None, "cpu", "cpu,cpu"])
def test_redux_below_full_strength(host: Any, nodes_api: Any, devices: str | None) -> None:
    model = flux_model()
    patched = nodes_api.apply(model, radius=RADIUS)
    if devices:
        (patched,) = nodes_api.execute("CLEARMultiGPU", model=patched, devices=devices, bands=3, text_merge="exact")
    expected = run(with_mask(model, GRID, RADIUS), [style_prompt(0.3)])
    assert error(run(patched, [style_prompt(0.3)]), expected) < 1e-5
    assert error(run(patched, [style_prompt(1)]), expected) > 1e-4


def test_a_lora_scheduled_by_hooks_goes_on_top_of_the_distilled_weights(
    host: Any, nodes_api: Any, tmp_path: Path
) -> None:
    import comfy.hooks
    import comfy.sd

    model = flux_model()
    save_file(clear_tensors(model), tmp_path / "clear_local_3.safetensors")
    patched = nodes_api.apply(model, nodes_api.weights(tmp_path / "clear_local_3.safetensors"))
    lora = {
        "transformer.transformer_blocks.0.attn.to_q.lora_A.weight": noise(4, 32),
        "transformer.transformer_blocks.0.attn.to_q.lora_B.weight": noise(32, 4, seed=7),
    }

    def hooked(strengths: list[tuple[float, float]]) -> Tensor:
        hooks = comfy.hooks.create_hook_lora(lora, 1.0, 0.0)
        keyframes = comfy.hooks.HookKeyframeGroup()
        for start, strength in strengths:
            keyframes.add(comfy.hooks.HookKeyframe(strength=strength, start_percent=start))
        hooks.set_keyframes_on_hooks(keyframes)
        return run(patched, [prompt(9, 1, hooks=hooks)], steps=4)

    plain = run(patched, [prompt(9, 1)], steps=4)
    always = run(comfy.sd.load_lora_for_models(patched, None, lora, 1.0, 0.0)[0], [prompt(9, 1)], steps=4)
    assert error(hooked([(0.0, 1.0)]), always) < 1e-5
    assert error(hooked([(0.0, 0.0)]), plain) < 1e-5
    partly = hooked([(0.0, 1.0), (0.5, 0.0)])
    assert error(partly, plain) > 1e-3
    assert error(partly, always) > 1e-3
    # The hooks have put everything back.
    assert torch.equal(run(patched, [prompt(9, 1)], steps=4), plain)


def test_replicas_follow_the_hooks(host: Any, nodes_api: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two names of one device stand for two cards, each with a copy of the weights."""
    import comfy.hooks

    model = flux_model()
    save_file(clear_tensors(model), tmp_path / "clear_local_3.safetensors")
    patched = nodes_api.apply(model, nodes_api.weights(tmp_path / "clear_local_3.safetensors"))
    bands, settings = nodes_api.module("nodes.host.bands.forward"), nodes_api.module("nodes.options.bands")
    two = [torch.device("cpu"), torch.device("cpu:0")]
    monkeypatch.setattr(nodes_api.module("nodes.host.bands.replicas"), "machine_devices", lambda home: two)
    devices = tuple(nodes_api.module("nodes.options.lanes").DeviceShare(str(device)) for device in two)
    banded = bands.apply_bands(patched, settings.BandSettings(devices, 4, "exact"), node_id=None)
    lora = {
        "transformer.transformer_blocks.0.attn.to_q.lora_A.weight": noise(4, 32),
        "transformer.transformer_blocks.0.attn.to_q.lora_B.weight": noise(32, 4, seed=7),
    }

    def hooked(target: Any) -> Tensor:
        hooks = comfy.hooks.create_hook_lora(lora, 1.0, 0.0)
        keyframes = comfy.hooks.HookKeyframeGroup()
        for start, strength in ((0.0, 1.0), (0.4, 0.5), (0.7, 0.0)):
            keyframes.add(comfy.hooks.HookKeyframe(strength=strength, start_percent=start))
        hooks.set_keyframes_on_hooks(keyframes)
        return run(target, [prompt(9, 1, hooks=hooks)], steps=4)

    plain = run(patched, [prompt(9, 1)], steps=4)
    for _ in range(2):
        assert error(hooked(banded), hooked(patched)) < 1e-5
        assert error(run(banded, [prompt(9, 1)], steps=4), plain) < 1e-5
    assert error(hooked(patched), plain) > 1e-3


def test_hooks_on_a_model_that_is_partly_loaded_are_warned_of(
    host: Any, nodes_api: Any, shown: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.hooks
    import comfy.model_patcher

    lora = {
        "transformer.transformer_blocks.0.attn.to_q.lora_A.weight": noise(4, 32),
        "transformer.transformer_blocks.0.attn.to_q.lora_B.weight": noise(32, 4, seed=7),
    }
    patched = nodes_api.apply(flux_model(), radius=RADIUS)
    run(patched, [prompt(9, 1, hooks=comfy.hooks.create_hook_lora(lora, 1.0, 0.0))])
    assert "offloaded layers" not in shown["CLEARApply"][-1]
    load = comfy.model_patcher.ModelPatcher.load

    def partly(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = load(self, *args, **kwargs)
        self.model.lowvram_patch_counter = 3  # what the host counts when it leaves patched layers outside
        return out

    monkeypatch.setattr(comfy.model_patcher.ModelPatcher, "load", partly)
    patched = nodes_api.apply(flux_model(), radius=RADIUS)
    run(patched, [prompt(9, 1, hooks=comfy.hooks.create_hook_lora(lora, 1.0, 0.0))])
    assert "LoRAs from hooks have no full effect on offloaded layers" in shown["CLEARApply"][-1]


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("node", ["EasyCache", "LazyCache"])
def test_step_caches_skip_steps_and_change_nothing_else(
    host: Any, nodes_api: Any, shown: Any, before: bool, node: str
) -> None:
    from comfy_extras import nodes_easycache

    cache = getattr(nodes_easycache, f"{node}Node")

    def cached(threshold: float) -> tuple[Tensor, int]:
        def add(model: Any) -> Any:
            return cache.execute(model, threshold, 0.0, 1.0, False).args[0]

        model = flux_model()
        patched = nodes_api.apply(add(model), radius=RADIUS) if before else add(nodes_api.apply(model, radius=RADIUS))
        out = run(patched, [prompt(9, 1)], steps=8)
        return out, sum(
            int(line.split()[2]) for line in shown["CLEARApply"][-1].splitlines() if line.startswith("CLEAR ran:")
        )

    expected = run(nodes_api.apply(flux_model(), radius=RADIUS), [prompt(9, 1)], steps=8)
    out, calls = cached(0.0)
    assert torch.equal(out, expected)
    assert calls == 8 * 3
    out, calls = cached(3.0)
    assert out.isfinite().all()
    assert 0 < calls < 8 * 3
    assert "not used" not in shown["CLEARApply"][-1]  # a skipped step is no layer that another pack took


@pytest.mark.parametrize("bands", [1, 3])
def test_torch_compile_gives_the_same_and_compiles_once(host: Any, nodes_api: Any, bands: int) -> None:
    """Through the core's node. Its `eager` backend traces as the others do and needs no compiler on this machine."""
    import torch._dynamo.utils
    from comfy_extras.nodes_torch_compile import TorchCompileModel

    patched = nodes_api.apply(flux_model(), radius=RADIUS)
    expected = run(patched, [prompt(9, 1)])
    (banded,) = nodes_api.execute("CLEARMultiGPU", model=patched, devices="cpu", bands=bands, text_merge="exact")
    compiled = TorchCompileModel.execute(banded, "eager").args[0]
    torch._dynamo.reset()
    assert error(run(compiled, [prompt(9, 1)]), expected) < 1e-5
    before = torch._dynamo.utils.counters["frames"]["total"]
    assert before > 0
    assert error(run(compiled, [prompt(9, 1)]), expected) < 1e-5
    assert torch._dynamo.utils.counters["frames"]["total"] == before
    torch._dynamo.reset()


@pytest.mark.parametrize("whole", [True, False])
def test_torch_compile_with_fullgraph_is_refused_in_words(host: Any, nodes_api: Any, whole: bool) -> None:
    import torch._dynamo

    compiled = nodes_api.apply(flux_model(), radius=RADIUS).clone()
    if whole:
        from comfy_api.torch_helpers import set_torch_compile_wrapper

        set_torch_compile_wrapper(compiled, backend="eager", fullgraph=True)
    else:
        name = "diffusion_model.single_blocks.0"
        block = compiled.get_model_object(name)
        compiled.add_object_patch(name, torch.compile(block, backend="eager", fullgraph=True))
    with pytest.raises(RuntimeError, match="fullgraph on cannot compile a model with CLEAR.*Turn fullgraph off"):
        run(compiled, [prompt(9, 1)])
    torch._dynamo.reset()


def test_fp8_weights(host: Any, nodes_api: Any, tmp_path: Path) -> None:
    """CLEAR's weights are put into a checkpoint in fp8 by the host's own arithmetic: rounded, nothing else."""
    import comfy.ops

    model = flux_model(dtype=torch.bfloat16)
    save_file(clear_tensors(model), tmp_path / "clear_local_3.safetensors")
    weights = nodes_api.weights(tmp_path / "clear_local_3.safetensors")
    flux = model.model.diffusion_model
    for block in (*flux.double_blocks, *flux.single_blocks):
        for module in block.modules():
            if isinstance(module, torch.nn.Linear):
                module.to(torch.float8_e4m3fn)
                module.__class__ = comfy.ops.manual_cast.Linear
    key = "double_blocks.0.img_attn.proj.weight"
    with torch.inference_mode():  # as the host runs its nodes
        out = sample(nodes_api.apply(model, weights), HEIGHT, WIDTH)
    assert out.isfinite().all()
    put = flux.state_dict()[key]
    assert put.dtype == torch.float8_e4m3fn
    wanted = weights.attention["transformer_blocks.0.attn.to_out.0.weight"]
    # Half a step of three bits of mantissa, twice for the host's stochastic rounding; or the smallest number.
    assert ((put.float() - wanted).abs() <= wanted.abs() / 8 + 2**-9).all()
