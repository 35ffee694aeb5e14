"""Values, models and folders that cannot be: said when a prompt is queued where it can be known, and when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from devtools.models import flux_model

from host.training_set.made import GENERATE, IMAGES, SIZE, captioned, small_vae

WRONG = [
    ({"name": "../x"}, r"name is '\.\./x'; allowed are letters, digits, spaces and \. _ - within, up to 100 in all"),
    ({"name": ""}, r"name is ''; allowed"),
    ({"name": "x" * 101}, r"name is 'xxx.*; allowed"),
    ({"name": "a/b"}, r"name is 'a/b'; allowed"),
    ({"name": "end."}, r"name is 'end\.'; allowed"),
    ({"source": "video"}, r"source is 'video'; choose one of: images in a folder, generate from prompts"),
    ({"width": 72}, r"width is 72; allowed are multiples of 16\. The nearest is"),
    ({"height": 48}, r"height is 48; allowed is 64 to 4096"),
    ({"steps": 0}, r"steps is 0; allowed is 1 to 1000"),
    ({"seed": -1}, r"seed is -1; allowed is 0"),
    ({"folder": "  "}, r"folder is empty; the source 'images in a folder' needs one\. Write the path"),
    ({"folder": "not there"}, r"folder is 'not there', which is no folder on the machine of ComfyUI\. Write its whole"),
    ({"folder": "\0"}, r"folder is '.x00', which is no folder"),
    ({"source": GENERATE, "prompts": " \n\n"}, r"prompts has no line with text; the source 'generate from prompts'"),
]


@pytest.mark.parametrize(("inputs", "said"), WRONG)
def test_wrong_values_are_said_when_queued_and_when_run(
    pack: dict[str, Any], run: Any, flux: Any, folder: Path, inputs: dict[str, Any], said: str
) -> None:
    captioned(folder / "a.png", "a")
    asked = {"folder": str(folder), "prompts": "a", "model": flux, **inputs}
    with pytest.raises(ValueError, match=said):
        run(**{"source": IMAGES, **asked})
    # When it is queued, a linked input is None.
    values = {"name": "x", "source": IMAGES, **SIZE, "steps": 2, "seed": 0, **asked, "model": None, "vae": None}
    refused = pack["CLEARTrainingSet"].validate_inputs(**values)
    with pytest.raises(ValueError, match=said):
        raise ValueError(refused)


@pytest.mark.parametrize(
    ("source", "need", "said"),
    [
        (IMAGES, "vae", "vae is not connected; the source 'images in a folder' needs it. Connect a VAE."),
        (GENERATE, "model", "model is not connected; the source 'generate from prompts' needs it. Connect a MODEL."),
    ],
)
def test_the_source_has_to_be_connected(
    pack: dict[str, Any], run: Any, folder: Path, source: str, need: str, said: str
) -> None:
    validate = pack["CLEARTrainingSet"].validate_inputs
    given = {"source": source, "folder": str(folder), "prompts": "a"}
    assert validate(**given) == said
    assert validate(**given, **{need: None}) is True
    assert validate(**{**given, "source": None}) is True  # it comes through a link
    with pytest.raises(ValueError, match=said):
        run(**{**given, need: None})


def test_another_model_and_another_autoencoder(run: Any, folder: Path, output: Path) -> None:
    other = flux_model()
    other.model.diffusion_model.params.vec_in_dim = None  # by which LongCat-Image, of FLUX's class, is told
    with pytest.raises(
        ValueError, match=r"model is LongCat-Image; training samples are made with FLUX\.1, FLUX\.2, Chr"
    ):
        run(GENERATE, prompts="a", model=other)
    captioned(folder / "a.png", "a")
    with pytest.raises(
        ValueError, match=r"vae makes latents of 4 channels; those of FLUX\.1 and Chroma have 16, those o"
    ):
        run(folder=str(folder), vae=small_vae(4))
    misnamed = small_vae(4)
    misnamed.latent_channels = 16
    with pytest.raises(
        ValueError, match=r"latent of a\.png has the shape \(4, 8, 10\), that of FLUX is \(16, 8, 10\)\."
    ):
        run(folder=str(folder), vae=misnamed)
    with pytest.raises(ValueError, match=r"clip is None: the checkpoint has no text encoder\. Load one with DualCLIP"):
        run(folder=str(folder), clip=None)
    assert not output.exists()


def test_values_that_are_not_numbers(run: Any, folder: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the autoencoder or T5 gives them in half precision."""
    import comfy.sd

    captioned(folder / "a.png", "a")
    with monkeypatch.context() as patch:
        patch.setattr(comfy.sd.VAE, "encode", lambda vae, pixels: torch.full((1, 16, 8, 10), torch.nan))
        with pytest.raises(ValueError, match=r"The latent of a\.png has values that are not numbers: .* --fp32-vae"):
            run(folder=str(folder))
    text = [[torch.full((1, 256, 24), torch.inf), {"pooled_output": torch.zeros(1, 12)}]]
    monkeypatch.setattr(comfy.sd.CLIP, "encode_from_tokens_scheduled", lambda clip, tokens: text)
    with pytest.raises(
        ValueError, match=r"The cross_attn of a\.png has values that are not numbers: .* --fp32-text-enc"
    ):
        run(folder=str(folder))
    assert not output.exists()


def test_a_text_encoder_with_a_schedule(run: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.sd

    captioned(folder / "a.png", "a")
    parts = [[torch.zeros(1, 256, 24), {}]] * 2
    monkeypatch.setattr(comfy.sd.CLIP, "encode_from_tokens_scheduled", lambda clip, tokens: parts)
    with pytest.raises(
        ValueError, match=r"clip encodes a prompt as 2 parts of the steps, by its hooks; a sample has one"
    ):
        run(folder=str(folder))


def test_a_folder_that_changed_is_looked_at_again(pack: dict[str, Any], folder: Path) -> None:
    fingerprint = pack["CLEARTrainingSet"].fingerprint_inputs
    asked = {"name": "x", "source": IMAGES, "folder": str(folder), "clip": None}
    seen = [fingerprint(**asked), fingerprint(**asked)]
    captioned(folder / "a.png", "a")
    seen.append(fingerprint(**asked))
    (folder / "a.txt").write_text("another", encoding="utf-8")
    seen += [
        fingerprint(**asked),
        fingerprint(**{**asked, "folder": "not there"}),
        fingerprint(**{**asked, "folder": None}),
    ]
    assert seen[0] == seen[1] and len(set(seen[1:5])) == 4
