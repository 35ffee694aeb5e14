"""The scorer tells drawn scenes apart: every word of a description, and every kind of disagreement within a picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from devtools.small_flux import scenes
from devtools.small_flux.scenes import Description, Image, Scene
from devtools.small_flux.scorer import score

TRAINING, HELD_OUT = scenes.split()


def scene(description: Description, seed: int = 0) -> Scene:
    return Scene.of(description, np.random.Generator(np.random.PCG64(seed)))


def test_prompts_held_out_are_not_trained_on() -> None:
    assert len(HELD_OUT) == 100 and len(TRAINING) + 100 == len(scenes.descriptions()) == 2160
    assert not {one.prompt for one in HELD_OUT} & {one.prompt for one in TRAINING}


@pytest.mark.parametrize("side", [128, 256, 512])
def test_drawn_scenes_are_right_and_coherent(side: int) -> None:
    found = [score(scenes.draw(scene(one, seed), side), one) for seed, one in enumerate(HELD_OUT[:24])]
    assert all(one.right for one in found)
    assert np.mean([one.coherence for one in found]) > 0.95
    assert {name for one in found for name in one.parts} == {"horizon", "reflection", "stripes", "size", "mark"}


@pytest.mark.parametrize("word", ["count", "colour", "thing", "ground", "sky", "light"])
def test_each_wrong_word_is_noticed(word: str) -> None:
    lists = {
        "count": scenes.COUNTS,
        "colour": scenes.COLOURS,
        "thing": scenes.THINGS,
        "ground": scenes.GROUNDS,
        "sky": scenes.SKIES,
        "light": scenes.LIGHTS,
    }
    for seed, one in enumerate(HELD_OUT[:8]):
        picture = scenes.draw(scene(one, seed), 256)
        for other in set(lists[word]) - {getattr(one, word)}:
            asked = replace(one, **{word: other})
            found = score(picture, asked)
            assert not found.right and not getattr(found, word), f"{one.prompt} passed for {asked.prompt}"


def _raised_half(picture: Image) -> Image:
    """The right half a sixteenth higher."""
    out = picture.copy()
    half = len(picture) // 2
    out[:, half:] = np.roll(picture[:, half:], -len(picture) // 16, axis=0)
    return out


def _other_stripes(picture: Image) -> Image:
    """The left half's stripes narrower than the right half's."""
    out = picture.copy()
    half = len(picture) // 2
    out[:, :half] = picture[:, (np.arange(half) * 1.6).astype(int)]
    return out


def _plain_water(picture: Image) -> Image:
    out = picture.copy()
    rows = int(0.62 * len(picture))
    out[rows:] = out[rows:].mean((0, 1))
    return out


@pytest.mark.parametrize(
    ("part", "ground", "broken"),
    [("horizon", "on a meadow", _raised_half), ("stripes", "in a striped field", _other_stripes),
     ("reflection", "by a lake", _plain_water)],
    ids=["horizon", "stripes", "reflection"],
)  # fmt: skip
def test_a_broken_picture_is_less_coherent(part: str, ground: str, broken: Callable[[Image], Image]) -> None:
    for seed in range(4):
        one = Description("one", "red", "house", ground, "blue sky", "no sun")
        picture = scenes.draw(scene(one, seed), 256)
        whole, damaged = score(picture, one).parts[part], score(broken(picture), one).parts[part]
        assert whole > 0.9 > damaged + 0.1, f"{part}: {whole:.2f} whole, {damaged:.2f} broken"


def test_objects_that_differ_are_less_coherent() -> None:
    one = Description("two", "blue", "tower", "in a desert", "pink sky", "the sun on the left")
    drawn = scene(one)
    small = scenes.draw(replace(drawn, size=drawn.size * 0.8), 256)
    other = scenes.draw(replace(drawn, mark=(drawn.mark + 1) % len(scenes.MARKS)), 256)
    picture = scenes.draw(drawn, 256)
    assert score(picture, one).parts == pytest.approx({"horizon": 1.0, "size": 1.0, "mark": 1.0}, abs=0.05)
    for half, part, bound in ((small, "size", 0.5), (other, "mark", 0.5)):
        mixed = np.concatenate([picture[:, :128], half[:, 128:]], axis=1)
        assert score(mixed, one).parts[part] <= bound


def test_a_scene_is_the_same_at_every_size() -> None:
    drawn = scene(HELD_OUT[0])
    large = scenes.draw(drawn, 256).reshape(64, 4, 64, 4, 3).mean((1, 3))
    assert np.abs(large - scenes.draw(drawn, 64)).mean() < 0.01


def test_noise_is_not_right() -> None:
    noise = np.random.Generator(np.random.PCG64(0)).random((256, 256, 3)).astype(np.float32)
    found = score(noise, HELD_OUT[0])
    assert not found.right and found.coherence < 0.5
