"""One fused kernel over tiles that it reads in place: the fast backend on cards that have Triton.

Image and reference queries go through `kernel.window_kernel`, on Hopper chips through `hopper_kernel`, which passes a
self-test of its own; text queries go through PyTorch's own dense kernels.
Sizes and the number of text tokens are plain arguments, so a new image size compiles nothing. Each device and dtype
must pass a self-test before its first use (`self_test`).

Constraints: a GPU with Triton; head_dim 16, 32, 64 or 128; radius up to 2048; no attention mask.
"""

from __future__ import annotations

import importlib.util
import os

import torch

from ...cache import BoundedCache
from ...call import AttentionCall, AttentionResult
from ...layout import GridTokens
from ...pattern import LocalPattern
from ...softmax import merge
from ...window import Window
from ..geometry import Geometries
from ..on_device import DeviceCache, place_of
from ..text import attend_text, empty_result
from .config import Configs, KernelConfig, interpreted
from .hopper_launch import HopperKernel
from .launch import WindowKernel
from .self_test import KernelVariant, SelfTest
from .tile_plan import GridPair, TilePlan, tile_plan
from .trial import failure_apart

_HEAD_DIMS = (16, 32, 64, 128)
_LARGEST_RADIUS = 2048  # squares of distances around a window stay exact in float32
_PLAN_BYTES = 64 * 2**20  # of plans, here and on devices; the largest, 16384 px in one piece at r = 32, has 6 MB
_SMALLEST_SCALE = 1e-6  # what masks a key must stay far below every score after scaling

_PlanKey = tuple[GridPair, Window, tuple[int, int], tuple[int, int]]
"""A normalised pair of grids, the window, and rows and columns of a tile and of a box."""


class TritonBackend:
    name = "triton"
    summary = "one fused kernel for cards that have Triton"
    differentiable = False

    def __init__(self) -> None:
        self.plans: BoundedCache[_PlanKey, TilePlan] = BoundedCache(_PLAN_BYTES, lambda plan: plan.nbytes)
        self.uploads: DeviceCache[TilePlan] = DeviceCache(_PLAN_BYTES, lambda plan: plan.nbytes)
        self._configs = Configs()
        self._geometries = Geometries()
        self._executed: BoundedCache[tuple[LocalPattern, KernelConfig], int] = BoundedCache(
            1024, as_key=lambda key: (key[0].as_key(), key[1])
        )
        self._installed: bool | None = None
        self._self_test = SelfTest.of(lambda call: self.launch(call, self._configs.of(call.query)[0]))
        apart = os.environ.get("CLEAR_HOPPER_KERNEL") != "1"
        self._specialised_test = SelfTest(failure_apart) if apart else SelfTest.of(self.run_specialised)

    def unavailable(self) -> str | None:
        if self._installed is None:  # once: a search of the whole path takes as long as a small kernel
            self._installed = importlib.util.find_spec("triton") is not None
        if not self._installed:
            return "Triton is not installed"
        if not torch.cuda.is_available() and not interpreted():
            return "there is no GPU that Triton can use"
        return None

    def refusal(self, call: AttentionCall) -> str | None:
        if call.query.device.type != "cuda" and not interpreted():
            return f"the tensors are on {call.query.device}, not on a GPU"
        if call.head_dim not in _HEAD_DIMS:
            return f"head_dim is {call.head_dim}; it has {', '.join(map(str, _HEAD_DIMS))}"
        if call.query.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            return f"the dtype is {call.query.dtype}; it has float32, float16 and bfloat16"
        window = call.pattern.window
        if not isinstance(window, Window):
            return f"the window is {window}; it has circles"
        if window.radius > _LARGEST_RADIUS:
            return f"the radius is {window.radius}; it has up to {_LARGEST_RADIUS}"
        if call.scale < _SMALLEST_SCALE:
            return f"the softmax scale is {call.scale}; it has {_SMALLEST_SCALE} and more"
        if call.mask is not None:
            return "it has no attention mask"
        if call.pattern.query_grids and not call.pattern.windowed_key_grids:
            return "there are no keys to see through the window"
        if call.query.device.type == "cuda":
            variant = KernelVariant(call.query.device, call.query.dtype, call.head_dim, call.heads, call.return_lse)
            return self.self_test_failure(variant)
        return None

    def self_test_failure(self, variant: KernelVariant, *, specialised: bool = False) -> str | None:
        """Why a kernel cannot be used on a device, as a clause; None where it passed its self-test."""
        return (self._specialised_test if specialised else self._self_test).failure(variant)

    def remark(self, call: AttentionCall) -> str | None:
        if self._configs.of(call.query)[1] is None:
            return None
        failure = self._specialised_failure(call)
        return f"{self.name}: not its kernel for Hopper chips, because {failure}" if failure else None

    def executed_pairs(self, call: AttentionCall, config: KernelConfig | None = None) -> int:
        pattern, config = call.pattern, config or self.config(call)
        return pattern.remembered(
            (self, config.tile, config.box, config.block),
            lambda: self._executed.get((pattern, config), lambda: self._count_pairs(pattern, config)),
        )

    def run(self, call: AttentionCall) -> AttentionResult:
        return self.launch(call, self.config(call))

    def config(self, call: AttentionCall) -> KernelConfig:
        """How a call is computed: by the specialised kernel where there is one and it passed its self-test."""
        usual, specialised = self._configs.of(call.query)
        return usual if specialised is None or self._specialised_failure(call) else specialised

    def _specialised_failure(self, call: AttentionCall) -> str:
        """Why the specialised kernel is not used; "" where it is. The same for all layers of a step.

        A test that could not run this time would otherwise start a process in every layer.
        """
        device, dtype, head_dim, heads = call.query.device, call.query.dtype, call.head_dim, call.heads

        def failure() -> str:
            # One test for both, with and without the log-sum-exp.
            variant = KernelVariant(device, dtype, head_dim, heads, return_lse=False)
            return self.self_test_failure(variant, specialised=True) or ""

        return call.pattern.remembered((self._specialised_test, device, dtype, head_dim, heads), failure)

    def run_specialised(self, call: AttentionCall) -> AttentionResult:
        """Run with the specialised kernel, whether it passed its self-test or not."""
        _, specialised = self._configs.of(call.query)
        if specialised is None:
            raise ValueError(f"{call.query.device} has no specialised kernel")
        return self.launch(call, specialised)

    def launch(self, call: AttentionCall, config: KernelConfig) -> AttentionResult:
        """Run with a configuration that need not be the default one."""
        result = empty_result(call)
        attend_text(call, result)
        kernel = (HopperKernel if config.specialised else WindowKernel)(call, config)
        for queries, plans in zip(call.pattern.query_grids, self.plans_on_device(call, config), strict=True):
            lse = None if result.lse is None else result.lse[:, :, queries.span]
            target = AttentionResult(result.out[:, queries.span], lse)
            self._attend_grid(call, kernel, queries, target, plans)
        return result

    def plans_on_device(self, call: AttentionCall, config: KernelConfig) -> list[list[TilePlan]]:
        """For each query grid its plans, one for each key grid that it sees through the window."""

        def plans() -> list[list[TilePlan]]:
            pairs = self._geometries.of(call.pattern).pairs
            return [[self._plan_on_device(pair, call, config) for pair in with_keys] for with_keys in pairs]

        place = place_of(call.query)
        if place is None:
            return plans()
        return call.pattern.remembered((self.uploads, config.tile, config.box, *place), plans)

    def _attend_grid(
        self,
        call: AttentionCall,
        kernel: WindowKernel,
        queries: GridTokens,
        target: AttentionResult,
        plans: list[TilePlan],
    ) -> None:
        """One query grid over every key grid, merged where there are several. plans: one for each key grid."""
        key_grids = call.pattern.windowed_key_grids
        parts = [target] if len(key_grids) == 1 else [_empty_like(target, call.heads) for _ in key_grids]
        for index, (keys, part, plan) in enumerate(zip(key_grids, parts, plans, strict=True)):
            kernel.launch(queries, keys, plan, part, lists=index == 0)
        if len(parts) > 1:
            merged = merge(parts)
            target.out.copy_(merged.out)
            if target.lse is not None and merged.lse is not None:
                target.lse.copy_(merged.lse)

    def _count_pairs(self, pattern: LocalPattern, config: KernelConfig) -> int:
        if not isinstance(pattern.window, Window):  # asked before `refusal`
            return pattern.query_tokens * pattern.key_tokens
        lists = (pattern.text_key_tokens, pattern.shared_keys - pattern.text_key_tokens)
        shared = sum(-(-length // config.block) for length in lists) * config.block
        total = pattern.text_query_tokens * pattern.key_tokens
        for pairs in self._geometries.of(pattern).pairs:
            plans = [self._plan(pair, pattern.circle, config) for pair in pairs]
            total += sum(plan.executed_pairs() for plan in plans)
            if plans:
                total += plans[0].tiles * config.tile[0] * config.tile[1] * shared
        return total

    def _plan(self, pair: GridPair, window: Window, config: KernelConfig) -> TilePlan:
        key = (pair, window, config.tile, config.box)
        return self.plans.get(key, lambda: tile_plan(*key))

    def _plan_on_device(self, pair: GridPair, call: AttentionCall, config: KernelConfig) -> TilePlan:
        window, device = call.pattern.circle, call.query.device
        key = (pair, window, config.tile, config.box)
        return self.uploads.get(key, call.query, lambda: self._plan(pair, window, config).to(device))


def _empty_like(result: AttentionResult, heads: int) -> AttentionResult:
    """Memory for a partial result, log-sum-exp included, of the same queries."""
    batch, queries, _ = result.out.shape
    out = torch.empty_like(result.out, memory_format=torch.contiguous_format)
    return AttentionResult(out, out.new_empty(batch, heads, queries, dtype=torch.float32))
