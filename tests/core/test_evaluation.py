"""An evaluation of image folders against the definitions, written out once more, and its way through files."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import scipy.linalg
import torch
from PIL import Image
from torch import Tensor

from clear_core.evaluation import folders, intervals, metrics, scores, table
from clear_core.evaluation.folders import Evaluation, evaluate
from clear_core.evaluation.intervals import Score
from clear_core.evaluation.measures import Item, Measure, NotAvailableError, UnreadableError, fill, key_of
from clear_core.evaluation.pairs import images_of, matched
from clear_core.evaluation.prompts import read_prompts
from clear_core.evaluation.rows import Rows

SIDE, FEATURES, CLASSES, WIDTH = 32, 12, 7, 9


# ---- scores --------------------------------------------------------------------------------------------


def naive_frechet(a: Tensor, b: Tensor) -> float:
    """The definition, with a square root of the product of the covariances."""
    x, y = (features.double().numpy() for features in (a, b))
    sigma_x, sigma_y = (np.atleast_2d(np.cov(features, rowvar=False)) for features in (x, y))
    root = scipy.linalg.sqrtm(sigma_x @ sigma_y)
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(sigma_x + sigma_y - 2 * np.real(root)))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("a", "b"), [((200, 16), (300, 16)), ((40, 16), (17, 16)), ((500, 1), (400, 1))])
def test_frechet_distance_is_the_definition(a: tuple[int, int], b: tuple[int, int]) -> None:
    mixing = random(a[1], a[1], seed=3)
    x, y = random(*a) @ mixing, 1.5 * random(*b, seed=1) + 0.3
    assert scores.frechet_distance(x, y) == pytest.approx(naive_frechet(x, y), rel=1e-6)


def test_frechet_distance_of_fewer_images_than_channels() -> None:
    """Here the product is singular, so the reference takes eigenvalues: of (A B) they are those of (A^½ B A^½)."""
    x, y = random(9, 24), random(14, 24, seed=1) * 2 + 1
    sigma_x, sigma_y = (torch.cov(features.double().T) for features in (x, y))
    values, vectors = torch.linalg.eigh(sigma_x)
    root = vectors @ values.clamp(min=0).sqrt().diag() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ sigma_y @ root).clamp(min=0).sqrt().sum()
    means = (x.double().mean(0) - y.double().mean(0)).square().sum()
    naive = float(means + sigma_x.trace() + sigma_y.trace() - 2 * cross)
    assert scores.frechet_distance(x, y) == pytest.approx(naive, rel=1e-6)


def test_frechet_distance_of_known_distributions() -> None:
    x = random(50, 8).double()
    assert scores.frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert scores.frechet_distance(x, x + 2) == pytest.approx(4 * 8, rel=1e-9)  # only the means differ
    one = x[:, :1]
    assert scores.frechet_distance(one, 3 * one) == pytest.approx(
        float((2 * one.mean()) ** 2 + (3 - 1) ** 2 * one.var()), rel=1e-9
    )


@pytest.mark.parametrize("count", [7, 20, 103])
def test_inception_score_is_the_definition(count: int) -> None:
    logits = 3 * random(count, 11)
    p = np.exp(logits.double().numpy())
    p /= p.sum(1, keepdims=True)
    each = math.ceil(count / 10)
    parts = [p[at : at + each] for at in range(0, count, each)]
    naive = np.mean([np.exp(np.mean([(q * np.log(q / part.mean(0))).sum() for q in part])) for part in parts])
    assert scores.inception_score(logits) == pytest.approx(float(naive), rel=1e-6)


def test_inception_score_at_its_bounds() -> None:
    assert scores.inception_score(torch.zeros(20, 5)) == pytest.approx(1)
    sure = 1e4 * torch.eye(5).repeat(20, 1)  # logits so large that the other classes have no probability left
    assert scores.inception_score(sure) == pytest.approx(5)


def test_cosines_are_the_definition() -> None:
    a, b = random(30, 6), random(30, 6, seed=1)
    naive = [
        100 * float(x @ y) / (float(x @ x) * float(y @ y)) ** 0.5 for x, y in zip(a.double(), b.double(), strict=True)
    ]
    assert scores.cosines(a, b).tolist() == pytest.approx(naive, rel=1e-6)


# ---- intervals -----------------------------------------------------------------------------------------


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution() -> None:
    values = random(4000)
    found = intervals.of_mean(values)
    reach = 1.96 * float(values.std()) / len(values) ** 0.5
    assert found.value == pytest.approx(float(values.double().mean()), rel=1e-9)
    assert found.low is not None and found.high is not None
    assert found.low == pytest.approx(found.value - reach, abs=0.15 * reach)
    assert found.high == pytest.approx(found.value + reach, abs=0.15 * reach)
    assert intervals.of_mean(values) == found, "the same numbers give the same interval"
    assert intervals.of_mean(values[:1]) == Score(float(values[0]), None, None, 1)


def test_the_interval_of_a_set_is_around_its_score() -> None:
    a, b = random(60, 10), random(60, 10, seed=1) + 0.4
    found = intervals.of_set(60, lambda drawn: scores.frechet_distance(a[drawn], b[drawn]))
    assert found.value == scores.frechet_distance(a, b)
    assert found.low is not None and found.high is not None
    assert found.value - found.low == pytest.approx(found.high - found.value)
    assert 0 < found.low < found.value
    asked: list[int] = []
    intervals.of_set(60, lambda drawn: asked.append(len(drawn)) or 0.0, resamples=3)
    assert asked == [60] * 4


# ---- folders -------------------------------------------------------------------------------------------


class Watch:
    """Keeps what it is told; stops at an item when asked to."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.steps: list[tuple[str, int, int]] = []
        self.polls, self.stop_at = 0, stop_at

    def poll(self) -> None:
        self.polls += 1
        if self.polls == self.stop_at:
            raise KeyboardInterrupt

    def step(self, what: str, done: int, of: int) -> None:
        self.steps.append((what, done, of))


def read(path: Path) -> Tensor:
    try:
        with Image.open(path) as image:
            return torch.from_numpy(np.array(image.convert("RGB")))
    except OSError as error:
        raise UnreadableError("cannot be read") from error


class Networks:
    """Small random networks, and how many images, pairs or prompts each has seen."""

    def __init__(self) -> None:
        self.seen = dict.fromkeys((*metrics.OF_IMAGES, metrics.LPIPS, metrics.TEXT), 0)
        pixels = 3 * 4 * 4
        self._maps = {kind: random(pixels, self._width(kind), seed=i) for i, kind in enumerate(metrics.OF_IMAGES)}

    @staticmethod
    def _width(kind: str) -> int:
        return FEATURES + CLASSES if kind == metrics.INCEPTION else WIDTH

    def small(self, image: Tensor) -> Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(image.movedim(-1, 0) / 255, 4).flatten()

    def of_image(self, kind: str, image: Tensor) -> Tensor:
        return self.small(image) @ self._maps[kind]

    def of_text(self, text: str) -> Tensor:
        return random(WIDTH, seed=len(text))

    def of_pair(self, a: Tensor, b: Tensor) -> Tensor:
        return (self.small(a) - self.small(b)).square().mean()[None] if a.shape == b.shape else torch.tensor([math.nan])

    def _measure(self, kind: str, width: int, row: Callable[[Any], Tensor]) -> Measure:
        def rows(items: Sequence[Any]) -> Tensor:
            self.seen[kind] += len(items)
            return torch.stack([row(item) for item in items])

        return Measure(kind, width, rows, FEATURES if kind == metrics.INCEPTION else 0)

    def openers(self, **changed: folders.Opener) -> dict[str, folders.Opener]:
        found: dict[str, folders.Opener] = {
            kind: lambda kind=kind: self._measure(kind, self._width(kind), lambda image: self.of_image(kind, image))
            for kind in metrics.OF_IMAGES
        }
        found[metrics.LPIPS] = lambda: self._measure(metrics.LPIPS, 1, lambda pair: self.of_pair(*pair))
        found[metrics.TEXT] = lambda: self._measure(metrics.TEXT, WIDTH, self.of_text)
        return {**found, **changed}


def put_images(folder: Path, count: int, seed: int, noise: float = 0.0) -> None:
    """Random images of one seed, with noise of another. PNG, uncompressed."""
    folder.mkdir(parents=True, exist_ok=True)
    generator, own = np.random.default_rng(0), np.random.default_rng(seed)
    for number in range(count):
        coarse = generator.integers(0, 256, (4, 4, 3)).repeat(SIDE // 4, 0).repeat(SIDE // 4, 1)
        pixels = np.clip(coarse + noise * own.normal(size=coarse.shape), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png", compress_level=0)


@pytest.fixture
def trio(tmp_path: Path) -> tuple[Path, Path, Path]:
    """An original of 40 images and two other folders."""
    paths = tmp_path / "original", tmp_path / "near", tmp_path / "far"
    for path, noise in zip(paths, (0, 8, 60), strict=True):
        put_images(path, 40, len(path.name), noise)
    prompts = {str(number): "a" * (number % 5 + 1) for number in range(40)}
    (tmp_path / "prompts.json").write_text(json.dumps(prompts), encoding="utf-8")
    return paths


def run(
    tmp_path: Path,
    original: Path,
    *others: Path,
    networks: Networks | None = None,
    names: Sequence[str] = (),
    watch: Watch | None = None,
    prompts: str | None = "prompts.json",
    **openers: folders.Opener,
) -> Evaluation:
    return evaluate(
        original,
        others,
        metrics.metrics_named(names),
        (networks or Networks()).openers(**openers),
        read,
        Rows(tmp_path / "rows"),
        watch or Watch(),
        tmp_path / prompts if prompts is not None else None,
    )


def values(found: Evaluation, folder: str) -> dict[str, float]:
    (column,) = [column for column in found.columns if column.name == folder]
    assert all(isinstance(score, Score) for score in column.scores.values()), column.scores
    return {name: score.value for name, score in column.scores.items() if isinstance(score, Score)}


def test_all_scores_are_those_of_a_plain_loop(tmp_path: Path, trio: tuple[Path, Path, Path]) -> None:
    found = run(tmp_path, *trio, names=[name for name in metrics.METRICS if name != "MS-SSIM"])
    networks = Networks()
    pixels = {folder: [read(folder / f"{number}.png") for number in range(40)] for folder in trio}
    rows = {
        (folder, kind): torch.stack([networks.of_image(kind, image) for image in images])
        for folder, images in pixels.items()
        for kind in metrics.OF_IMAGES
    }
    texts = torch.stack([networks.of_text("a" * (number % 5 + 1)) for number in range(40)])
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    def cosine(a: Tensor, b: Tensor) -> float:
        return 100 * float(torch.nn.functional.cosine_similarity(a.double(), b.double()).mean())

    for folder in trio[1:]:
        pairs = list(zip(pixels[folder], pixels[trio[0]], strict=True))
        planes = [tuple(image.movedim(-1, 0)[None] / 255 for image in pair) for pair in pairs]
        a, b = (rows[path, metrics.INCEPTION] for path in (folder, trio[0]))
        expected = {
            "FID": naive_frechet(a[:, :FEATURES], b[:, :FEATURES]),
            "IS": scores.inception_score(a[:, FEATURES:]),
            "LPIPS": float(torch.stack([networks.of_pair(*pair) for pair in pairs]).mean()),
            "CLIP-I": cosine(rows[folder, metrics.CLIP], rows[trio[0], metrics.CLIP]),
            "DINO": cosine(rows[folder, metrics.DINO], rows[trio[0], metrics.DINO]),
            "CLIP-T": cosine(rows[folder, metrics.CLIP], texts),
            "PSNR": np.mean([float(peak_signal_noise_ratio(*pair, data_range=1.0)) for pair in planes]),
            "SSIM": np.mean([float(structural_similarity_index_measure(*pair, data_range=1.0)) for pair in planes]),
        }
        assert values(found, folder.name) == pytest.approx(expected, rel=1e-6)
    assert (
        found.original.scores["IS"].value
        == pytest.approx(  # type: ignore[union-attr]
            scores.inception_score(rows[trio[0], metrics.INCEPTION][:, FEATURES:]), rel=1e-6
        )
    )
    near, far = (values(found, folder.name) for folder in trio[1:])
    assert near["FID"] < far["FID"] and near["PSNR"] > far["PSNR"] and near["SSIM"] > far["SSIM"]


def test_what_is_missing_is_said_and_the_rest_measured(tmp_path: Path, trio: tuple[Path, Path, Path]) -> None:
    def absent() -> Measure:
        raise NotAvailableError("put inception.pth at models/clear_metrics/inception.pth")

    found = run(tmp_path, *trio, prompts=None, inception=absent)
    for column in found.columns:
        assert column.scores["FID"] == column.scores["IS"] == "put inception.pth at models/clear_metrics/inception.pth"
        assert column.scores["CLIP-T"] == "there are no prompts; give a file of them"
        assert "needs" not in str(column.scores["MS-SSIM"]) and "176 pixels a side" in str(column.scores["MS-SSIM"])
        for name in ("LPIPS", "CLIP-I", "DINO", "PSNR", "SSIM"):
            assert isinstance(column.scores[name], Score)
    text = table.markdown(found)
    assert "| FID ↓ |  | not measured: put inception.pth at models/clear_metrics/inception.pth |" in text
    (record,) = [one for one in csv.DictReader(io.StringIO(table.as_csv(found))) if one["metric"] == "FID"][:1]
    assert record["value"] == "" and record["not_measured"].startswith("put inception.pth")


def test_a_broken_file_is_named_and_its_pair_left_out_of_everything(
    tmp_path: Path, trio: tuple[Path, Path, Path]
) -> None:
    (trio[1] / "7.png").write_bytes((trio[1] / "7.png").read_bytes()[:900])
    (trio[0] / "9.png").write_bytes(b"no image")
    found = run(tmp_path, *trio)
    near, far = found.columns
    assert (near.count, far.count) == (38, 39)
    assert {score.count for score in near.scores.values() if isinstance(score, Score)} == {38}
    assert (
        "left out: near/7.png cannot be read" in near.notes and "left out: original/9.png cannot be read" in near.notes
    )
    assert not any("7.png" in note for note in far.notes)
    for folder in trio:
        (folder / "7.png").unlink()
        (folder / "9.png").unlink()
    without = run(tmp_path, *trio, networks=Networks())
    assert values_of(without.columns[0]) == values_of(near)


def values_of(column: folders.Column) -> dict[str, Any]:
    return dict(column.scores)


def test_a_run_that_was_stopped_goes_on_and_computes_nothing_twice(
    tmp_path: Path, trio: tuple[Path, Path, Path]
) -> None:
    stopped, networks = Networks(), Networks()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, *trio, networks=stopped, watch=Watch(stop_at=80 + 80 + 60))
    assert 0 < stopped.seen[metrics.INCEPTION] < 120
    found = run(tmp_path, *trio, networks=networks)
    together = {kind: stopped.seen[kind] + networks.seen[kind] for kind in networks.seen}
    assert together == {"inception": 120, "clip": 120, "dino": 120, "lpips": 80, "text": 5}
    (tmp_path / "elsewhere").mkdir()
    whole = run(tmp_path / "elsewhere", *trio, prompts="../prompts.json")
    assert [values_of(column) for column in found.columns] == [values_of(column) for column in whole.columns]
    again = Networks()
    assert table.records(run(tmp_path, *trio, networks=again)) == table.records(found)
    assert not any(again.seen.values())


def test_a_changed_image_or_network_is_computed_again(tmp_path: Path, trio: tuple[Path, Path, Path]) -> None:
    original, near, _ = trio
    run(tmp_path, original, near, names=["DINO"])
    Image.new("RGB", (SIDE, SIDE), (9, 9, 9)).save(near / "3.png")
    again = Networks()
    run(tmp_path, original, near, names=["DINO"], networks=again)
    assert again.seen[metrics.DINO] == 1
    other = Networks()
    opened = other.openers()[metrics.DINO]
    run(tmp_path, original, near, names=["DINO"], dino=lambda: Measure("other", WIDTH, opened().rows))
    assert other.seen[metrics.DINO] == 80


def test_damaged_rows_are_computed_again(tmp_path: Path, trio: tuple[Path, Path, Path]) -> None:
    found = run(tmp_path, *trio[:2], names=["DINO"])
    (file,) = (tmp_path / "rows").rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-5])
    again = Networks()
    assert table.records(run(tmp_path, *trio[:2], names=["DINO"], networks=again)) == table.records(found)
    assert again.seen[metrics.DINO] == 80


def test_pairs_of_two_sizes_and_identical_ones(tmp_path: Path, trio: tuple[Path, Path, Path]) -> None:
    original, near, _ = trio
    Image.new("RGB", (SIDE, 2 * SIDE)).save(near / "0.png")
    for name in ("1.png", "2.png"):
        (near / name).write_bytes((original / name).read_bytes())
    (column,) = run(tmp_path, original, near).columns
    counts = {name: score.count for name, score in column.scores.items() if isinstance(score, Score)}
    assert counts == {
        "FID": 40, "LPIPS": 39, "CLIP-I": 40, "DINO": 40, "CLIP-T": 40, "IS": 40, "PSNR": 37, "SSIM": 39
    }  # fmt: skip
    assert "1 pairs have images of two sizes: LPIPS, PSNR, SSIM and MS-SSIM are of the others" in column.notes
    assert "PSNR is the mean of the pairs that differ; of 2 identical ones it is infinite" in column.notes


def test_identical_folders(tmp_path: Path, trio: tuple[Path, Path, Path]) -> None:
    found = run(tmp_path, trio[0], trio[0])
    (column,) = found.columns
    assert column.name == str(trio[0]), "apart from the original's column"
    shown = {name: round(score.value, 6) for name, score in column.scores.items() if isinstance(score, Score)}
    assert shown["FID"] == shown["LPIPS"] == 0
    assert shown["CLIP-I"] == shown["DINO"] == 100 and shown["SSIM"] == 1 and math.isinf(shown["PSNR"])
    assert "| PSNR ↑ |  | identical |" in table.markdown(found)
    psnr = [one for one in json.loads(table.as_json(found))["scores"] if one["metric"] == "PSNR"]
    assert psnr[0]["value"] == "inf"


# ---- what is given -------------------------------------------------------------------------------------


def test_images_are_matched_by_their_stems(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    for path in (a / "x.10.png", a / "x.2.jpg", a / "only.png", b / "x.2.webp", b / "x.10.PNG", b / "more.png"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    (a / "notes.txt").write_text("no image")
    (a / "folder.png").mkdir()
    found = matched(a, b, images_of(b))
    assert [pair.stem for pair in found.pairs] == ["x.2", "x.10"]
    assert (found.without_original, found.without_image) == (("only",), ("more",))


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        (["1.png"], ["2.png"], "No image of .*a has the name of one of .*b, extensions aside: 1.png against 2.png"),
        (["1.png", "1.jpg"], ["1.png"], r"a has two images of the name '1': 1\.jpg and 1\.png"),
        ([], ["1.png"], r"There is no image in .*a; allowed are .jpeg, .jpg, .png, .webp"),
        (["1.png"], None, r"b cannot be read \(No such file"),
    ],
)
def test_folders_that_cannot_be_compared(tmp_path: Path, a: list[str], b: list[str] | None, said: str) -> None:
    for name, files in (("a", a), ("b", b)):
        if files is not None:
            (tmp_path / name).mkdir()
            for file in files:
                (tmp_path / name / file).write_bytes(b"x")
    with pytest.raises(ValueError, match=said):
        matched(tmp_path / "a", tmp_path / "b", images_of(tmp_path / "b"))


def test_no_readable_pair(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"No pair of .*a can be read. Of 1: 1.png cannot be read"):
        run(tmp_path, tmp_path / "b", tmp_path / "a", prompts=None)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.json", '{"1": "one", "2.png": "two", "9": "nine"}'),
        ("p.csv", 'name,seed,prompt\n1.png,5,one\n2,6,"two"\n'),
        ("p.txt", "one\n\n two \n"),
    ],
)
def test_prompts_in_their_three_forms(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_prompts(tmp_path / name, ["1", "2"]) == {"1": "one", "2": "two"}


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("p.json", "{", r"p.json is not JSON"),
        ("p.json", '["a"]', r"p.json must be one object of file names and prompts"),
        ("p.json", '{"1": 5}', r"p.json must be one object"),
        ("p.json", '{"8": "a"}', r"p.json has a prompt for none of the images: it names 8, the images are 1, 2"),
        ("p.csv", "file,text\n1,a\n", r"p.csv has the columns file, text; it needs `name` and `prompt`"),
        ("p.txt", "one\n", r"p.txt has 1 lines with text and the original has 2 images"),
        ("p.yaml", "", r"prompts is 'p.yaml'; allowed are files that end in .json, .csv, .txt"),
        ("p.txt", None, r"p.txt', which cannot be read \(No such file"),
    ],
)
def test_prompts_that_cannot_be_used(tmp_path: Path, name: str, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=said):
        read_prompts(tmp_path / name, ["1", "2"])


def test_some_prompts_are_missing(tmp_path: Path, trio: tuple[Path, Path, Path]) -> None:
    (tmp_path / "few.json").write_text('{"3": "three", "4": "four"}', encoding="utf-8")
    found = run(tmp_path, *trio, prompts="few.json", names=["clip-t", "PSNR"])
    assert found.metrics == ("CLIP-T", "PSNR")
    assert found.columns[0].scores["CLIP-T"].count == 2  # type: ignore[union-attr]
    assert found.original.notes == ("38 images have no prompt, CLIP-T is of the others: 0, 1, 2, 5, 6, ...",)


def test_a_metric_that_there_is_not() -> None:
    with pytest.raises(ValueError, match="metrics has 'KID'; allowed are FID, LPIPS, CLIP-I, DINO, CLIP-T, IS, PSNR"):
        metrics.metrics_named(["FID", "KID"])


# ---- memory --------------------------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    """1000 pairs against 200, through all measures. Their pixels as floats would be 20 MB more; those of 800 pairs
    kept as files' bytes 5 MB."""
    put_images(tmp_path / "original", 1000, 1)
    put_images(tmp_path / "other", 1000, 2, 30)
    for number in range(200):
        for name in ("original", "other"):
            (tmp_path / f"few_{name}").mkdir(exist_ok=True)
            os.link(tmp_path / name / f"{number}.png", tmp_path / f"few_{name}" / f"{number}.png")
    (tmp_path / "prompts.txt").write_text("a\n" * 200, encoding="utf-8")
    (tmp_path / "more.txt").write_text("a\n" * 1000, encoding="utf-8")

    import threading
    import time

    def peak(original: str, other: str, prompts: str) -> int:
        process, most, ended = psutil.Process(), [0], threading.Event()

        def look() -> None:
            while not ended.is_set():
                most[0] = max(most[0], process.memory_info().rss)
                time.sleep(0.002)

        looking = threading.Thread(target=look)
        looking.start()
        try:
            found = run(tmp_path, tmp_path / original, tmp_path / other, prompts=prompts)
        finally:
            ended.set()
            looking.join()
        assert found.columns[0].count in (200, 1000)
        return most[0]

    peak("few_original", "few_other", "prompts.txt")  # what is loaded once
    few = peak("few_original", "few_other", "prompts.txt")
    many = peak("original", "other", "more.txt")
    assert many - few < 20e6, (few, many)


def test_batches_are_bounded_by_pixels(tmp_path: Path) -> None:
    large = torch.zeros(1500, 2000, 3, dtype=torch.uint8)
    sizes: list[int] = []

    def rows(items: Sequence[Tensor]) -> Tensor:
        sizes.append(len(items))
        return torch.zeros(len(items), 1)

    images = [large[:10, :10]] * 40 + [large] * 3
    items = [Item(key_of(str(number)), lambda image=image: image) for number, image in enumerate(images)]
    fill(Measure("m", 1, rows), items, Rows(tmp_path), Watch(), "m")
    assert sizes == [32, 9, 1, 1]
