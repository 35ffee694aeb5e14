"""The backend that CONTRIBUTING.md tells a newcomer to write runs as printed."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from clear_core.backends.reference import ReferenceBackend
from clear_core.call import AttentionCall
from clear_core.layout import Grid, TokenLayout
from clear_core.pattern import LocalPattern
from clear_core.window import Window

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def backend() -> Any:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (code,) = [
        textwrap.dedent(block) for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "Backend" in block
    ]
    names: dict[str, Any] = {"__name__": "clear_core.backends.chunked", "__package__": "clear_core.backends"}
    exec(compile(code, "CONTRIBUTING.md", "exec"), names)
    return names["ChunkedBackend"]()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("return_lse", [False, True])
@pytest.mark.parametrize("budget", [1, 2**20])
def test_it_is_the_reference(backend: Any, masked: bool, return_lse: bool, budget: int) -> None:
    pattern = LocalPattern.whole(TokenLayout(5, Grid(7, 9)), Window(3))
    query, key, value = torch.randn(3, 2, 2, pattern.query_tokens, 16, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(1, 1, pattern.query_tokens, pattern.key_tokens, dtype=torch.bool)
    mask[..., 3, :] = False  # a fully masked row
    call = AttentionCall(
        query, key, value, pattern, scale=0.25, mask=mask if masked else None, return_lse=return_lse, budget=budget
    )
    result, expected = backend.run(call), ReferenceBackend().run(call)
    torch.testing.assert_close(result.out, expected.out, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(result.lse, expected.lse, atol=1e-5, rtol=1e-5)
