"""The self-test in a process of its own, which may hang or crash: real processes, in place of a kernel that does."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from clear_core.backends.triton.self_test import KernelVariant, PassingFailure, SelfTest
from clear_core.backends.triton.trial import failure_apart

VARIANT = KernelVariant(torch.device("cuda", 1), torch.bfloat16, 128, 24, return_lse=False)


def apart(program: str, seconds: float = 60) -> str | None:
    return failure_apart(VARIANT, (sys.executable, "-c", program), seconds)


def test_a_process_that_hangs_is_ended() -> None:
    assert apart("while True: pass", seconds=1) == "its self-test did not end within 1 s"


def test_a_process_that_crashes_is_a_failure() -> None:
    failure = apart("import os, sys; print('illegal access', file=sys.stderr, flush=True); os.abort()")
    assert failure is not None
    assert failure.startswith("its self-test ended with exit code") and "illegal access" in failure


def test_what_it_finds_is_the_failure() -> None:
    words = "its self-test failed on this card: relative error 1 in the corners, allowed 0.008"
    assert apart(f"import json; print(json.dumps({{'failure': {words!r}, 'passing': False}}))") == words
    assert apart("import json; print(json.dumps({'failure': None, 'passing': False}))") is None


def test_no_room_is_not_remembered() -> None:
    program = "import json; print(json.dumps({'failure': 'no room', 'passing': True}))"
    with pytest.raises(PassingFailure, match="no room"):
        apart(program)
    tests = SelfTest(lambda _: apart(program))
    assert tests.failure(VARIANT) == "no room"
    assert not tests._failures


def test_the_process_is_handed_the_variant() -> None:
    program = "import json, sys; print(json.dumps({'failure': sys.argv[1], 'passing': False}))"
    found = apart(program)
    assert found is not None
    fields = {"device": "cuda:1", "dtype": "bfloat16", "head_dim": 128, "heads": 24, "return_lse": False}
    assert json.loads(found) == fields


def test_without_a_card_the_process_says_why() -> None:
    """The module's own program, from the package's import to the driver that is not there."""
    failure = failure_apart(VARIANT)
    assert failure is not None and failure.startswith("its kernel does not run on this card (")
