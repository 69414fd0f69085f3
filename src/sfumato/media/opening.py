"""A person's picture files as Pillow reads them, and why it does not; nothing here takes long to import."""

from __future__ import annotations

import stat
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from sfumato.errors import SfumatoError, first_line
from sfumato.io.terminal import note

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

MESHES = (".obj", ".off", ".ply", ".glb")
"""How names of meshes end."""
MOST_PIXELS = 100_000_000
Taken = TypeVar("Taken")
BRANDS = {b"avif": "AVIF", b"avis": "AVIF", **dict.fromkeys((b"heic", b"heix", b"heim", b"hevc", b"mif1"), "HEIF")}
"""Kinds of picture that not every Pillow reads, by the word at byte 8 of their files."""
ADVICE = {
    "AVIF": "a newer Pillow reads it: pip install -U pillow",
    "HEIF": "pip install pillow-heif reads it",
    "JPEG XL": "pip install pillow-jxl-plugin reads it",
    "SVG": "an image is made of it by a browser or Inkscape",
}
ENDS = {".avif": "AVIF", ".heic": "HEIF", ".heif": "HEIF", ".jxl": "JPEG XL", ".svg": "SVG"}
"""How names of such files end."""
_JXL = (b"\xff\x0a", b"\0\0\0\x0cJXL ")
_NO_PICTURES = {"EPS", "MPEG"}  # the first is a program for Ghostscript, of the second only the size is read
_LAYERS = {"MPO", "PSD"}  # formats whose further frames are not pictures of their own


@cache
def formats() -> tuple[str, ...]:
    """What Pillow reads here, with pillow-heif and pillow-jxl-plugin where they are installed."""
    with suppress(ImportError):
        import_module("pillow_heif").register_heif_opener()
    with suppress(ImportError):
        import_module("pillow_jxl")
    Image.init()
    stubs = {name for name, (kind, _) in Image.OPEN.items() if _is_stub(kind)}
    return tuple(name for name in Image.OPEN if name not in _NO_PICTURES | stubs)


def _is_stub(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, ImageFile.StubImageFile)


@cache
def suffixes() -> frozenset[str]:
    """How names of picture files end, small: of all that is read here."""
    read = formats()  # first, as it may register some
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in read)


def unread(name: str) -> str:
    """Of a file's name, if it is a picture's that is not read here, what kind that is and what to do; else nothing."""
    end = Path(name).suffix.lower()
    kind = None if end in suffixes() else ENDS.get(end)
    return "" if kind is None else f"{kind}: {ADVICE[kind]}"


def opened(path: str | Path, turned: bool = True) -> Picture:
    """An image file in its own mode; of an animation or of pages the first, with a note.

    ``turned``: with its rotation tag obeyed. Programs that find cameras read pixels as they lie.
    Raises ``SfumatoError`` for what is missing, broken, no image, or larger than 100 million pixels.
    """
    path = Path(path).expanduser()
    return _open(path, lambda found: _loaded(found, path, turned))


def checked(path: str | Path) -> None:
    """Raise ``SfumatoError`` as ``opened`` does, and for a mesh."""
    path = Path(path).expanduser()
    if path.exists() and path.suffix.lower() in MESHES:
        raise SfumatoError(f"{path} is a mesh, which sfumato shapes reads; here pictures are read")
    _open(path, lambda found: _within(found, path).load())


def size_of(path: str | Path) -> tuple[int, int]:
    """Width and height of an image file as it lies; its pixels are not read. Raises as ``opened`` does."""
    return _open(Path(path).expanduser(), lambda found: found.size)


def _open(path: Path, take: Callable[[ImageFile.ImageFile], Taken]) -> Taken:
    """What is taken of an image file while it is open."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise SfumatoError(f"{path} is {'a folder' if path.is_dir() else 'no plain file'}; a picture file is meant")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow's own limit of pixels, and of tags that are not read
            with Image.open(path, formats=formats()) as found:
                return take(found)
    except FileNotFoundError:
        raise SfumatoError(f"there is no file {path}") from None
    except Image.DecompressionBombError:
        raise SfumatoError(
            f"{path} has more than {MOST_PIXELS // 10**6} million pixels; make it smaller first"
        ) from None
    except UnidentifiedImageError:
        raise _unread(path) from None
    except SfumatoError:
        raise
    except Exception as e:  # decoders raise all kinds for broken files
        raise SfumatoError(f"cannot read {path}: {getattr(e, 'strerror', None) or first_line(e)}") from e


def _within(found: ImageFile.ImageFile, path: Path) -> ImageFile.ImageFile:
    """Unless it is too large."""
    if not 0 < found.width * found.height <= MOST_PIXELS:
        raise SfumatoError(
            f"{path} has {found.width} x {found.height} pixels, "
            + (f"more than {MOST_PIXELS // 10**6} million; make it smaller first" if found.width else "none at all")
        )
    return found


def _loaded(found: ImageFile.ImageFile, path: Path, turned: bool) -> Picture:
    _within(found, path)
    frames = getattr(found, "n_frames", 1)
    if frames > 1 and found.format not in _LAYERS:
        note(f"{path} has {frames} frames or pages; the first is read")
    found.load()
    try:
        picture = ImageOps.exif_transpose(found) if turned else found.copy()
    except Exception:  # a broken tag: the picture is read as it lies
        picture = found.copy()
    picture.format, picture.filename = found.format, str(path)  # type: ignore[attr-defined]
    if found.format == "PNG" and (code := _colour_code(path)) is not None:
        picture.info["cicp"] = code
    return picture


def _colour_code(path: Path) -> tuple[int, int] | None:
    """Primaries and transfer of a PNG's cICP, which Pillow does not read."""
    with path.open("rb") as file:
        file.seek(8)
        while (head := file.read(8))[4:] not in (b"IDAT", b"IEND", b""):
            data = file.read(int.from_bytes(head[:4], "big") + 4)
            if head[4:] == b"cICP" and len(data) == 8:
                return data[0], data[1]
    return None


def _unread(path: Path) -> SfumatoError:
    """Why a file is no picture that can be read."""
    with path.open("rb") as file:
        head = file.read(12)
    if not head:
        return SfumatoError(f"{path} is empty: a file of no bytes")
    kind = BRANDS.get(head[8:12]) if head[4:8] == b"ftyp" else "JPEG XL" if head.startswith(_JXL) else None
    kind = "SVG" if path.suffix.lower() == ".svg" else kind
    if kind is not None:
        return SfumatoError(f"{path} is a picture in {kind}; {ADVICE[kind]}, or save it as PNG or JPEG")
    return SfumatoError(f"{path} is not an image that can be read (PNG, JPEG, WebP, AVIF, GIF, BMP, TIFF, ...)")
