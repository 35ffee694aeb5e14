"""Plans and window masks are made once for all bands and layers that share a geometry."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from clear_core.attention import local_attention
from clear_core.backends.base import Backend
from clear_core.backends.geometry import GridPair, geometry_of
from clear_core.backends.masked import MaskedBackend
from clear_core.backends.on_device import DeviceCache, upload
from clear_core.backends.reference import ReferenceBackend
from clear_core.backends.registry import choose_backend
from clear_core.backends.sdpa.backend import SdpaBackend
from clear_core.backends.sdpa.tiles import tile_groups
from clear_core.backends.triton.backend import TritonBackend
from clear_core.backends.triton.config import KernelConfig
from clear_core.backends.triton.tile_plan import tile_plan
from clear_core.bands.plan import BandPlan
from clear_core.bands.run import BandedForward, Forwards
from clear_core.bands.workers import BandWorker, ReplicatedWorker
from clear_core.cache import BoundedCache
from clear_core.call import AttentionCall, AttentionResult
from clear_core.layout import Band, Grid, TokenLayout
from clear_core.pattern import LocalPattern
from clear_core.pooling import Pooled
from clear_core.window import Window

LAYERS, RADIUS, TEXT = 57, 16, 8
HOPPER = KernelConfig((8, 16), (8, 8), 64, 8, 3, descriptors=True)


@dataclass
class Step:
    """One forward in bands whose attention is only planned: by each backend, as on a card."""

    sdpa: SdpaBackend
    triton: TritonBackend
    calls: int = 0

    def run(self, plan: BandPlan, layers: int, references: tuple[Grid, ...] = ()) -> None:
        assert plan.window is not None
        layout = TokenLayout(TEXT, plan.image, references)
        whole = LocalPattern.whole(layout, plan.window)

        def tokens(count: int) -> tuple[Tensor, Tensor, Tensor]:
            query, key, value = torch.zeros(3, 1, 1, count, 1)
            return query, key, value

        def replicated(worker: ReplicatedWorker) -> Tensor:
            for layer in range(layers):
                worker.at_block(layer)
                worker.attend(*tokens(TEXT + 1 + layout.reference_tokens), whole, self._plan)
            return torch.zeros(1)

        def band(worker: BandWorker) -> Tensor:
            for layer in range(layers):
                worker.at_block(layer)
                worker.attend(*tokens(len(worker.rows) * plan.image.width), self._plan, None)
            return torch.zeros(1)

        BandedForward(plan, [torch.device("cpu")] * plan.lane_count).run(Forwards(replicated, band))

    def _plan(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        /,
        pattern: LocalPattern,
        pooled: Pooled | None,
        *,
        return_lse: bool,
    ) -> AttentionResult:
        assert pooled is None
        call = AttentionCall(query, key, value, pattern, scale=1.0, return_lse=return_lse)
        self.calls += 1
        self.sdpa.executed_pairs(call)
        self.triton.executed_pairs(call, HOPPER)
        self.sdpa.plan(call)
        self.triton.plans_on_device(call, HOPPER)
        lse = torch.zeros(1, 1, query.shape[2]) if return_lse else None
        return AttentionResult(torch.zeros(1, query.shape[2], 1), lse)


@pytest.mark.parametrize(
    ("image", "bands", "shares"),
    [
        (Grid(512, 512), 64, (1.0,)),
        (Grid(1024, 1024), 128, (1.0,)),
        (Grid(500, 512), 64, (1.0, 1.0, 2.5)),  # bands of 7 and of 8 rows, on three lanes
        (Grid(1024, 384), 90, (3.0, 1.0)),  # bands of 11 and of 12 rows
    ],
    ids=["8192px", "16384px", "8000px-in-64", "16384px-in-90"],
)
def test_a_step_in_bands_plans_each_geometry_once(image: Grid, bands: int, shares: tuple[float, ...]) -> None:
    step = Step(SdpaBackend(), TritonBackend())
    plan = BandPlan.cut(image, bands, Window(RADIUS), shares=shares)
    step.run(plan, LAYERS)
    assert step.calls == LAYERS * (2 * len(plan.bands) + plan.lane_count)  # the text alone, on every lane
    for cache in (step.sdpa.plans, step.triton.uploads.cache):
        assert cache.misses < 0.01 * LAYERS * len(plan.bands)
        # One pattern object goes through all layers: a look-up in the first, for each pattern of a band.
        assert cache.hits + cache.misses <= 2 * len(plan.bands) + plan.lane_count
    # First bands, inner ones and last ones, of up to two heights. The text adds: alone, and over bands of each height.
    kinds = {geometry_of(step_pattern(plan, band)) for band in range(len(plan.bands))}
    pairs = {pair for kind in kinds for pairs in kind.pairs for pair in pairs}
    assert len(pairs) == len(kinds) <= 16
    # Lanes are threads: two of them may make a plan at the same time.
    uploads = step.triton.uploads.cache.misses
    assert len(pairs) <= uploads <= plan.lane_count * len(pairs)
    assert step.triton.plans.misses <= plan.lane_count * len(pairs)
    assert step.sdpa.plans.misses <= plan.lane_count * (len(kinds) + 3)
    step.run(plan, 1)
    assert step.triton.uploads.cache.misses == uploads, "nothing is copied in a second step"


def step_pattern(plan: BandPlan, band: int) -> LocalPattern:
    """What the queries of one band see."""
    assert plan.window is not None
    whole = LocalPattern.whole(TokenLayout(TEXT, plan.image), plan.window)
    rows, seen = plan.bands[band], plan.rows_seen(band)
    return whole.part(query_rows=rows, key_rows=seen, replicated_queries=False, replicated_keys=True)


def test_a_pattern_that_is_gone_leaves_no_plan_behind() -> None:
    """Caches are bounded by bytes: what a pattern remembers goes with it, though caches have an equal one as a key."""
    backend = TritonBackend()
    pattern = LocalPattern.whole(TokenLayout(2, Grid(9, 21)), Window(4))
    query = torch.zeros(1, 1, pattern.query_tokens, 16)
    plan = backend.plans_on_device(AttentionCall(query, query, query, pattern, scale=1.0), HOPPER)[0][0]
    assert backend.executed_pairs(AttentionCall(query, query, query, pattern, scale=1.0), HOPPER) > 0
    alive = weakref.ref(plan.boxes)
    backend.uploads = DeviceCache(0, lambda _: 1)
    backend.plans = BoundedCache(0)
    del plan
    assert alive() is not None, "remembered"
    del pattern
    gc.collect()
    assert alive() is None


def test_reference_images_are_planned_in_the_first_layer_alone() -> None:
    """Each band lies elsewhere relative to a reference of another size, so each has a plan; all of them are kept."""
    step = Step(SdpaBackend(), TritonBackend())
    plan = BandPlan.cut(Grid(512, 64), 64, Window(RADIUS))
    references = (Grid(96, 64), Grid(70, 40))
    step.run(plan, 1, references)
    made = step.sdpa.plans.misses, step.triton.plans.misses, step.triton.uploads.cache.misses
    step.run(plan, 3, references)
    assert (step.sdpa.plans.misses, step.triton.plans.misses, step.triton.uploads.cache.misses) == made


bands_of_rows = st.tuples(st.integers(0, 40), st.integers(1, 12)).map(lambda band: Band(band[0], sum(band)))


@given(
    height=st.integers(1, 12),
    key_height=st.integers(1, 12),
    times=st.integers(1, 9),
    rows=bands_of_rows,
    key_rows=bands_of_rows,
    radius=st.integers(1, 9),
    later=st.integers(0, 5),
)
def test_pairs_that_are_equal_once_normalised_have_equal_plans(
    height: int, key_height: int, times: int, rows: Band, key_rows: Band, radius: int, later: int
) -> None:
    times += later + max(-(-rows.stop // height), -(-key_rows.stop // key_height))
    pair = GridPair(Grid(height * times, 13), rows, Grid(key_height * times, 9), key_rows)
    moved = GridPair(
        Grid(height * (times + 3), 13),
        Band(rows.start + later * height, rows.stop + later * height),
        Grid(key_height * (times + 3), 9),
        Band(key_rows.start + later * key_height, key_rows.stop + later * key_height),
    )
    assert pair.normalised() == moved.normalised() == pair.normalised().normalised()
    plans = [tile_plan(each, Window(radius), (3, 5), (2, 4)) for each in (pair, moved, pair.normalised())]
    for plan in plans[1:]:
        assert torch.equal(plan.ranges, plans[0].ranges) and torch.equal(plan.boxes, plans[0].boxes)


@given(rows=bands_of_rows, key_rows=bands_of_rows, radius=st.integers(1, 9), later=st.integers(0, 9))
def test_patterns_of_equal_geometry_have_equal_masks_and_groups(
    rows: Band, key_rows: Band, radius: int, later: int
) -> None:
    pattern = LocalPattern(TokenLayout(2, Grid(70, 5)), Window(radius), rows, key_rows, text_queries=False, pooled=3)
    moved = replace(
        pattern,
        query_rows=Band(rows.start + later, rows.stop + later),
        key_rows=Band(key_rows.start + later, key_rows.stop + later),
    )
    assert geometry_of(pattern) == geometry_of(moved)
    assert torch.equal(pattern.mask(), moved.mask())
    assert tile_groups(pattern, (4, 4)) == tile_groups(moved, (4, 4))


def test_other_geometries_are_told_apart() -> None:
    grid = Grid(20, 9)
    pair = GridPair(grid, Band(4, 8), grid, Band(2, 10))
    others = [
        replace(pair, query_rows=Band(3, 8)),
        replace(pair, key_rows=Band(2, 9)),
        replace(pair, key_rows=Band(1, 9)),
        replace(pair, query=Grid(20, 8)),
        replace(pair, key=Grid(20, 8)),
        replace(pair, key=Grid(19, 9)),
    ]
    assert len({each.normalised() for each in (pair, *others)}) == 1 + len(others)


@pytest.mark.parametrize("backend", [SdpaBackend(), MaskedBackend()], ids=["sdpa", "masked"])
def test_calls_without_a_window_are_told_apart_by_their_tokens(backend: SdpaBackend | MaskedBackend) -> None:
    """No pair of grids tells them apart: queries that see the text alone, and text queries over rows of the image."""
    for size in ((9, 8), (2, 5), (1, 3)):
        grid = Grid(*size)
        whole = LocalPattern.whole(TokenLayout(4, grid), Window(3))
        for pattern in (replace(whole, key_rows=None), replace(whole, query_rows=None)):
            query = torch.randn(1, 2, pattern.query_tokens, 8)
            key, value = torch.randn(2, 1, 2, pattern.key_tokens, 8)
            call = AttentionCall(query, key, value, pattern, scale=0.3)
            torch.testing.assert_close(backend.run(call).out, ReferenceBackend().run(call).out, rtol=1e-5, atol=1e-5)


def small_call(start: int = 4, seed: int = 0) -> AttentionCall:
    grid, rows = Grid(30, 11), Band(start, start + 4)
    pattern = LocalPattern(TokenLayout(3, grid), Window(4), rows, rows.grown(3, grid))
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(1, 2, pattern.query_tokens, 8, generator=generator)
    key, value = torch.randn(2, 1, 2, pattern.key_tokens, 8, generator=generator)
    return AttentionCall(query, key, value, pattern, scale=0.3)


@pytest.mark.parametrize("backend", [SdpaBackend(), MaskedBackend()], ids=["sdpa", "masked"])
def test_a_window_mask_is_made_once_for_all_inner_bands(backend: SdpaBackend | MaskedBackend) -> None:
    backend.run(small_call())
    made = backend.biases.cache.misses
    assert made > 0
    for start in (8, 12, 16):
        call = small_call(start, seed=start)
        torch.testing.assert_close(backend.run(call).out, ReferenceBackend().run(call).out, rtol=1e-5, atol=1e-5)
    assert backend.biases.cache.misses == made
    backend.run(replace(call, query=call.query.half(), key=call.key.half(), value=call.value.half()))
    assert backend.biases.cache.misses == 2 * made, "a mask has the query's dtype"


@pytest.mark.parametrize("backend", [SdpaBackend(), MaskedBackend()], ids=["sdpa", "masked"])
def test_a_mask_made_in_inference_mode_or_from_fake_tensors_harms_no_later_call(
    backend: SdpaBackend | MaskedBackend,
) -> None:
    call = small_call()
    for _ in range(2):  # two modes: a fake tensor of one cannot be used in the other
        with FakeTensorMode():
            fake = [torch.empty(tensor.shape) for tensor in (call.query, call.key, call.value)]
            backend.run(replace(call, query=fake[0], key=fake[1], value=fake[2]))
    assert len(backend.biases.cache) == 0
    with torch.inference_mode():
        expected = backend.run(call).out
    query = call.query.clone().requires_grad_()
    out = backend.run(replace(call, query=query)).out
    out.sum().backward()
    assert torch.equal(out, expected) and query.grad is not None


def test_a_copy_to_a_gpu_is_pinned_and_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no GPU: what is asked of PyTorch is recorded."""
    asked: list[object] = []

    def pin_memory(tensor: Tensor) -> Tensor:
        asked.append("pinned")
        return tensor

    def to(tensor: Tensor, device: torch.device, *, non_blocking: bool = False) -> Tensor:
        asked.append((device, non_blocking))
        return tensor

    monkeypatch.setattr(Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(Tensor, "to", to)
    upload(torch.zeros(3), torch.device("cuda:1"))
    assert asked == ["pinned", (torch.device("cuda:1"), True)]


def test_the_centres_of_an_image_on_itself_are_not_copied_to_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[Tensor] = []
    monkeypatch.setattr("clear_core.backends.sdpa.tiles.upload", lambda tensor, _: copied.append(tensor) or tensor)
    SdpaBackend().run(small_call())
    assert not copied
    pattern = LocalPattern.whole(TokenLayout(0, Grid(20, 20), (Grid(9, 7),)), Window(3))
    query, key, value = torch.randn(3, 1, 1, pattern.key_tokens, 8)
    SdpaBackend().run(AttentionCall(query, key, value, pattern, scale=1.0))
    assert copied


def test_a_backend_that_is_not_there_plans_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Absent(MaskedBackend):
        def unavailable(self) -> str | None:
            return "it is not there"

        def executed_pairs(self, call: AttentionCall) -> int:
            raise AssertionError("planned")

    backends: list[Backend] = [SdpaBackend(), Absent()]
    choice = choose_backend(small_call(), "auto", backends)
    assert choice.backend.name == "sdpa"
    assert choice.reason.endswith("; masked: it is not there")


def test_bands_of_one_image_are_the_image_whatever_was_cached() -> None:
    grid, window = Grid(40, 18), Window(5)
    whole = LocalPattern.whole(TokenLayout(3, grid), window)
    query, key, value = torch.randn(3, 1, 2, whole.key_tokens, 8, generator=torch.Generator().manual_seed(1))
    expected = local_attention(query, key, value, whole, backend="reference").out
    plan = BandPlan.cut(grid, 8, window)
    for index, rows in enumerate(plan.bands):
        seen = plan.rows_seen(index)
        pattern = whole.part(query_rows=rows, key_rows=seen, replicated_queries=False, replicated_keys=True)
        mine, near = (slice(3 + band.start * 18, 3 + band.stop * 18) for band in (rows, seen))
        keys, values = (torch.cat((x[:, :, :3], x[:, :, near]), dim=2) for x in (key, value))
        for name in ("sdpa", "masked"):
            out = local_attention(query[:, :, mine], keys, values, pattern, backend=name).out
            torch.testing.assert_close(out, expected[:, mine], rtol=1e-5, atol=1e-5)
