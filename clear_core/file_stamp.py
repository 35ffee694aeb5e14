"""Which contents of a file were read: its path, size and time of change, and from these its SHA-256."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

_BLOCK = 2**22


@dataclass(frozen=True, slots=True)
class FileStamp:
    """size: bytes. modified: nanoseconds, as `os.stat` gives them."""

    path: Path
    size: int
    modified: int

    @classmethod
    def of(cls, path: Path) -> FileStamp:
        """Raises OSError for a file that is not there."""
        stat = path.stat()
        return cls(path, stat.st_size, stat.st_mtime_ns)

    def sha256(self) -> str | None:
        """In hexadecimal; None where the file is gone or is another by now. Reads all of it: seconds for gigabytes."""
        digest = hashlib.sha256()
        try:
            with self.path.open("rb") as file:
                while block := file.read(_BLOCK):
                    digest.update(block)
            return digest.hexdigest() if FileStamp.of(self.path) == self else None
        except OSError:
            return None
