"""Load CLEAR Weights and the released files: what it lists, where it puts them, and when it reads one anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from devtools.hub import LoopbackHub

NAME = "clear_local_16.safetensors"


@pytest.fixture
def folders(pack: Any, hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The host's folders for weights, the first of which is not there."""
    import folder_paths

    paths = [tmp_path / name for name in ("not there", "second", "clear")]
    for path in paths[1:]:
        path.mkdir()
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "clear", ([str(path) for path in paths], {".safetensors"}))
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    folder_paths.filename_list_cache.clear()
    return paths


def options(pack: Any) -> list[str]:
    return pack["CLEARWeightsLoader"].define_schema().inputs[0].options


def test_a_downloaded_file_keeps_its_value_and_its_fingerprint(
    pack: Any, nodes_api: Any, hub: LoopbackHub, folders: list[Path]
) -> None:
    loader = pack["CLEARWeightsLoader"]
    before = loader.fingerprint_inputs(weights_name=NAME)
    assert loader.validate_inputs(weights_name=NAME) is True
    listed = set(options(pack))
    assert hub.requests == []

    (weights,) = nodes_api.execute("CLEARWeightsLoader", weights_name=NAME)
    assert weights.variant.radius == 16
    assert (folders[1] / NAME).read_bytes() == hub.files[NAME]
    assert set(options(pack)) == listed
    # The prompt that downloaded it is not run again for that; one after the file was replaced is.
    assert loader.fingerprint_inputs(weights_name=NAME) == before
    (folders[1] / NAME).write_bytes(hub.files[NAME])
    assert loader.fingerprint_inputs(weights_name=NAME) != before


def test_a_file_that_is_here_is_not_asked_for(pack: Any, nodes_api: Any, hub: LoopbackHub, folders: list[Path]) -> None:
    (folders[2] / NAME).write_bytes(hub.files[NAME])
    assert pack["CLEARWeightsLoader"].validate_inputs(weights_name=NAME, download="never") is True
    (weights,) = nodes_api.execute("CLEARWeightsLoader", weights_name=NAME, download="never")
    assert weights.name == NAME
    assert hub.requests == []


def test_only_names_of_the_table_are_asked_for(
    pack: Any, nodes_api: Any, hub: LoopbackHub, folders: list[Path]
) -> None:
    hub.files["clear_local_64.safetensors"] = hub.files[NAME]
    for name in ("clear_local_64.safetensors", f"../{NAME}", f"{hub.address}/{NAME}", ""):
        assert "There is no weights file" in pack["CLEARWeightsLoader"].validate_inputs(weights_name=name)
        with pytest.raises(ValueError, match="There is no weights file"):
            nodes_api.execute("CLEARWeightsLoader", weights_name=name)
    assert hub.requests == []


def test_never_holds_for_a_name_that_comes_through_a_link(
    pack: Any, nodes_api: Any, hub: LoopbackHub, folders: list[Path]
) -> None:
    assert pack["CLEARWeightsLoader"].validate_inputs(download="never") is True
    with pytest.raises(ValueError, match=f"download is set to 'never'.*fetch {hub.url(NAME)}.*into {folders[1]}"):
        nodes_api.execute("CLEARWeightsLoader", weights_name=NAME, download="never")
    assert hub.requests == [] and not any(folders[1].iterdir())


@pytest.mark.parametrize(
    ("seconds", "words"), [(7, "7 s"), (96, "1 min 36 s"), (7260, "2 h 1 min"), (0.2, "0 s"), (59.7, "1 min 0 s")]
)
def test_time_left_in_words(nodes_api: Any, seconds: float, words: str) -> None:
    assert nodes_api.module("nodes.host.downloads")._duration(seconds) == words
