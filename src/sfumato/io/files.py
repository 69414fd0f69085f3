"""Files are written to a temporary name and renamed: a reader sees the old file or the new one, never half of one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sfumato.errors import SfumatoError


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path`` (same suffix); rename it on success, remove it on failure.

    Raises ``SfumatoError`` when the place cannot be written or the disk is full.
    """
    path = Path(path)
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, path)
    except OSError as e:
        raise SfumatoError(f"cannot write {path}: {e.strerror or e}") from e
    except Exception as e:
        if type(e).__name__ == "SafetensorError":  # known by name: the library is not loaded for every command
            raise SfumatoError(f"cannot write {path}: {str(e).rpartition('error: ')[2]}") from e
        raise
    finally:
        part.unlink(missing_ok=True) if part.parent.is_dir() else None


def write_text(path: str | Path, text: str) -> None:
    with atomic(path) as part:
        part.write_text(text, encoding="utf-8")


def writable(folder: str | Path) -> Path:
    """Make a folder and see that files can be written there: fail at once, not after minutes of work."""
    folder = Path(folder)
    probe = folder / f".{os.getpid()}.probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as e:
        raise SfumatoError(f"cannot write to {folder}: {e.strerror or e}") from e
    return folder
