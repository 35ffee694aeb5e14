"""Any of `clear_core.strategies` as a student's attention, to be compared with the window under the same training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from ..layout import Grid, TokenLayout
from ..strategies import Parameters, Strategy
from ..weights import BlockId
from .trained import Trained
from .weights import processor_key


@dataclass(frozen=True, slots=True)
class StrategyAttention:
    """A `BlockAttention`. depth: numbers of the model's double and of its single blocks. heads, head_dim: of a block.

    grid: of the image, to which what Linformer learns belongs.
    """

    strategy: Strategy
    depth: tuple[int, int]
    heads: int
    head_dim: int
    grid: Grid

    def __call__(
        self, block: BlockId, query: Tensor, key: Tensor, value: Tensor, layout: TokenLayout, trained: Trained
    ) -> Tensor:
        """As `BlockAttention`."""
        parameters = {name: tensor.to(query.device) for name, tensor in self.parameters(block, trained).items()}
        out = self.strategy.attend(query, key, value, layout, parameters, self.layer(block))
        return out.transpose(1, 2).flatten(2)

    def start(self) -> dict[str, Tensor]:
        """What all blocks learn for the strategy, as it is before training, by the names under which it is trained."""
        own = self.strategy.parameters(self.heads, self.head_dim, self.grid)
        return {processor_key(block, name): tensor.clone() for block in self._blocks() for name, tensor in own.items()}

    def parameters(self, block: BlockId, trained: Trained) -> Parameters:
        """What one block has learned, by the strategy's own names."""
        prefix = processor_key(block, "")
        found = trained.parameters.items()
        return {name.removeprefix(prefix): tensor for name, tensor in found if name.startswith(prefix)}

    def layer(self, block: BlockId) -> int:
        """A block's place in the model, for strategies that alternate."""
        return block.index + (self.depth[0] if block.kind == "single" else 0)

    def _blocks(self) -> Iterator[BlockId]:
        for kind, count in zip(("double", "single"), self.depth, strict=True):
            for index in range(count):
                yield BlockId(kind, index)
