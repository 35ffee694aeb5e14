"""Training samples on disk, one safetensors file each: an image's latent, its prompt as a text encoder gives it.

A file has `latent.mean` and `latent.std`, tensors `cond.NAME`, and metadata: prompt, source, width, height.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..whole_file import written_whole

_MEAN, _STD, _COND, _PROMPT = "latent.mean", "latent.std", "cond.", "prompt"
TEXT: Final = "cross_attn"
"""The name of the text tokens in a sample's conditioning: [tokens, channels]."""


class SampleError(RuntimeError):
    """A file is no whole sample; the text names it."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One image with its prompt, without a batch dimension.

    mean, std: [channels, height, width], float32, of the latent's distribution, in the units of ComfyUI's LATENT. A
    latent is drawn as mean + std * noise; std is 0 where there is one latent only.
    conditioning: what the text encoder gave: `cross_attn` [tokens, channels], for FLUX `pooled_output` [channels], and
    whatever else an encoder gives, in its own dtypes.
    """

    mean: Tensor
    std: Tensor
    conditioning: Mapping[str, Tensor]
    prompt: str


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """Samples whose latents have one size. files: in the order of their images or prompts."""

    folder: Path
    files: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.files)

    @property
    def identity(self) -> str:
        """Changes with the files' names, which say what the samples were made of, and with their order."""
        return hashlib.sha256("\n".join(file.name for file in self.files).encode()).hexdigest()[:16]

    def text_tokens(self) -> set[int]:
        """Numbers of text tokens that samples have, from the files' headers. Raises the SampleError of `read`."""
        return {text_tokens(file) for file in self.files}

    def read(self, index: int) -> Sample:
        """The sample of a file, on the CPU. Raises SampleError where it is gone or not whole; IndexError as a tuple."""
        return read_sample(self.files[index])


def write_sample(path: Path, sample: Sample, metadata: Mapping[str, str]) -> None:
    """Write a file that is there whole or not at all.

    metadata: beside the prompt. Raises OSError where it cannot be written; a file that was there before is then
    unchanged.
    """
    tensors = {_MEAN: sample.mean.float(), _STD: sample.std.float()}
    tensors |= {f"{_COND}{name}": tensor for name, tensor in sample.conditioning.items()}
    # Copies: a file may not hold two views of the same memory.
    copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    content = save(copies, {**metadata, _PROMPT: sample.prompt})
    with written_whole(path) as part:
        part.write_bytes(content)  # Python's own, for its OSError: safetensors tells no full disk from other errors


def read_sample(path: Path) -> Sample:
    """The sample of a file, on the CPU. Raises SampleError, naming the file, where it is gone or not whole."""
    with _opened(path) as file:
        _check(path, file)
        # Copies: what lies in the file's own memory dies with it, and Windows does not replace a file in use.
        tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
        prompt = file.metadata()[_PROMPT]
    conditioning = {key.removeprefix(_COND): tensor for key, tensor in tensors.items() if key.startswith(_COND)}
    return Sample(tensors[_MEAN], tensors[_STD], conditioning, prompt)


def latent_shape(path: Path) -> tuple[int, ...]:
    """channels, height, width of a sample's latent, from the file's header. Raises the SampleError of `read_sample`."""
    with _opened(path) as file:
        return _check(path, file)


def text_tokens(path: Path) -> int:
    """Of a sample, from the file's header. Raises the SampleError of `read_sample`."""
    with _opened(path) as file:
        _check(path, file)
        return int(file.get_slice(f"{_COND}{TEXT}").get_shape()[0])


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The file, for safetensors' reader; what goes wrong with it in the meantime is a SampleError."""
    try:
        with safe_open(str(path), framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error


def _check(path: Path, file: Any) -> tuple[int, ...]:
    """The latent's shape. Raises SampleError unless a file has all of a sample."""
    keys = set(file.keys())
    missing = [key for key in (_MEAN, _STD, f"{_COND}{TEXT}") if key not in keys]
    missing += [] if _PROMPT in (file.metadata() or {}) else ["the prompt in its metadata"]
    if missing:
        raise SampleError(f"{path} is no training sample: it lacks {', '.join(missing)}. {_REMEDY}")
    parts = {key: file.get_slice(key) for key in (_MEAN, _STD)}
    for key, part in parts.items():
        if part.get_dtype() != "F32":
            raise SampleError(f"{path} is no training sample: {key} is {part.get_dtype()}, not F32. {_REMEDY}")
    shapes = {key: tuple(part.get_shape()) for key, part in parts.items()}
    if len(shapes[_MEAN]) != 3 or shapes[_STD] != shapes[_MEAN]:
        raise SampleError(f"{path} is no training sample: its latent has the shapes {shapes}. {_REMEDY}")
    return shapes[_MEAN]


_REMEDY: Final = "Delete it, or set another name on CLEAR Training Set, and run that node again."


def _unreadable(path: Path, error: Exception) -> SampleError:
    if not path.exists():
        return SampleError(f"{path} is not there any more. Set another name on CLEAR Training Set, or restart ComfyUI.")
    return SampleError(f"{path} cannot be read ({error}). {_REMEDY}")
