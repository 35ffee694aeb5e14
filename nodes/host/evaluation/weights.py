"""The networks' files, in models/clear_metrics: which they are, whether they are here, their download on request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final

import folder_paths

from ....clear_core.evaluation.measures import NotAvailableError, Watch
from ....clear_core.evaluation.metrics import CLIP, DINO, INCEPTION, LPIPS
from ....clear_core.file_stamp import FileStamp
from ....clear_core.hub.client import RemoteFile
from ....clear_core.hub.fetch import DownloadError, fetch_known
from ....clear_core.hub.released import hub_url
from ..files import download_folder, register_folder

FOLDER: Final = "clear_metrics"
_TYPES: Final = (".safetensors", ".pth")


@dataclass(frozen=True, slots=True)
class NetworkFile:
    """name: in models/clear_metrics. size: bytes. network: as the report names it.

    url: where it is published; repository, revision, file: instead of it, on the Hugging Face hub.
    """

    name: str
    network: str
    size: int
    sha256: str
    url: str = ""
    repository: str = ""
    revision: str = ""
    file: str = ""

    @property
    def address(self) -> str:
        return self.url or hub_url(self.repository, self.revision, self.file)


# The names of the .pth files, by their publishers, end in the first eight digits of the SHA-256; torch.hub checks them.
FILES: Final[Mapping[str, NetworkFile]] = MappingProxyType(
    {
        INCEPTION: NetworkFile(
            "pt_inception-2015-12-05-6726825d.pth",
            "InceptionV3 of 2015-12-05, ported from TensorFlow by pytorch-fid",
            95_628_359,
            "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
            url="https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
            "pt_inception-2015-12-05-6726825d.pth",
        ),
        LPIPS: NetworkFile(
            "alexnet-owt-7be5be79.pth",
            "LPIPS 0.1 over torchvision's AlexNet",
            244_408_911,
            "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
            url="https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
        ),
        CLIP: NetworkFile(
            "clip-vit-large-patch14.safetensors",
            "OpenAI's CLIP ViT-L/14",
            1_710_540_580,
            "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb",
            repository="openai/clip-vit-large-patch14",
            revision="32bd64288804d66eefd0ccbe215aa642df71cc41",
            file="model.safetensors",
        ),
        DINO: NetworkFile(
            "dinov2-large.safetensors",
            "DINOv2 ViT-L/14, class token",
            1_217_522_888,
            "399fba97a95f22c36834418bc69373364a99af3a1153da1c0fb31db567c92e23",
            repository="facebook/dinov2-large",
            revision="47b73eefe95e8d44ec3623f8890bd894b6ea2d6c",
            file="model.safetensors",
        ),
    }
)
"""By kind of measure; CLIP's file serves TEXT as well."""


@dataclass(slots=True)
class Files:
    """download: fetch what is missing. files: by kind of measure."""

    watch: Watch
    download: bool = False
    files: Mapping[str, NetworkFile] = field(default_factory=lambda: FILES)
    _verified: dict[str, Path] = field(default_factory=dict)

    def path(self, kind: str) -> Path:
        """Where the network's file lies, its SHA-256 verified. Raises NotAvailableError, and what `watch` raises."""
        if kind not in self._verified:
            self._verified[kind] = self._found(self.files[kind])
        return self._verified[kind]

    def identity(self, kind: str) -> str:
        """The network, with the beginning of its file's SHA-256."""
        return f"{self.files[kind].network} (sha256 {self.files[kind].sha256[:16]})"

    def _found(self, file: NetworkFile) -> Path:
        register_folder(FOLDER, _TYPES)
        here = folder_paths.get_full_path(FOLDER, file.name)
        if here is None and not self.download:
            raise NotAvailableError(
                f"put {file.name} at {download_folder(FOLDER) / file.name}; it is {file.address}. Or ask for the "
                f"download ({file.size / 1e6:,.0f} MB)"
            )
        path = Path(here) if here is not None else self._fetched(file)
        found = FileStamp.of(path).sha256()
        if found != file.sha256:
            raise NotAvailableError(
                f"{path} has the SHA-256 {found}, not {file.sha256}: it is damaged or another file. Delete it and put "
                f"{file.address} there"
            )
        return path

    def _fetched(self, file: NetworkFile) -> Path:
        remote = RemoteFile(file.size, file.sha256)
        try:
            return fetch_known(
                file.address, file.name, remote, download_folder(FOLDER), _Fetching(file.name, self.watch)
            )
        except DownloadError as error:
            raise NotAvailableError(str(error)) from error


@dataclass(frozen=True, slots=True)
class _Fetching:
    """A download's `Progress`, told to a `Watch`."""

    name: str
    watch: Watch

    def poll(self) -> None:
        self.watch.poll()

    def update(self, done: int, size: int) -> None:
        self.watch.step(self.name, done, size)

    def status(self, text: str) -> None:
        self.watch.step(f"{self.name}, {text}", 0, 1)
