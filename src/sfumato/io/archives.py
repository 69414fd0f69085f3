"""Tensors of a file that ``torch.save`` wrote (``.pt``, ``.bin``, ``.ckpt``), read without unpickling.

Such a file is a zip of numbers and of a pickle that says which tensors they are; before PyTorch 1.6 it was pickles, one
after the other, with the numbers behind. Their opcodes are read as data: nothing that one names is imported, made or
called, and one that asks for anything but dictionaries, lists, texts, numbers and tensors is refused.
"""

from __future__ import annotations

import math
import pickletools
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from sfumato.errors import SfumatoError, first_line

if TYPE_CHECKING:
    from torch import Tensor

MOST = 2**24
"""Bytes of a pickle; those of embeddings have a few hundred."""
_KEPT = ("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT")
_FIXED = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_STORAGES = {
    "torch.DoubleStorage": "float64", "torch.FloatStorage": "float32", "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16", "torch.LongStorage": "int64", "torch.IntStorage": "int32",
}  # fmt: skip
_MARK = object()
_OLD = 0x1950A86A20F9469CFC6C
"""What files of PyTorch before 1.6 begin with."""


class _Name(str):
    """Of something in a module; a text, and never what it names."""


class _Refused(Exception):
    """What a pickle asks for beside tensors."""


def tensors(file: str | Path) -> dict[str, Tensor]:
    """All tensors in it by their keys, those of inner dictionaries behind a dot.

    Raises ``SfumatoError`` for a file that is damaged or none of torch's, and for one that holds more than data.
    """
    file = Path(file)
    try:
        if not zipfile.is_zipfile(file):
            with file.open("rb") as stream:
                return _Stream(stream).tensors()
        with zipfile.ZipFile(file) as opened:
            return _Archive(opened).tensors()
    except FileNotFoundError:
        raise SfumatoError(f"there is no file {file}") from None
    except _Refused as e:
        raise SfumatoError(f"{file} is not read, as it could run code: it asks for {e}; take it as safetensors") from e
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RuntimeError,
        EOFError,
        zipfile.BadZipFile,
    ) as e:
        raise SfumatoError(f"{file} is damaged: {first_line(e)}; take another") from e


class _Pickled:
    """Tensors of a pickle, and of numbers elsewhere."""

    def pickle(self) -> bytes:
        raise NotImplementedError

    def numbers(self, key: str, size: int) -> bytes:
        """The bytes of a storage."""
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        from torch import Tensor

        found: dict[str, Tensor] = {}
        whole = self.read(self.pickle())
        todo, seen = [("", whole)], set[int]()
        while todo:
            name, value = todo.pop()
            if isinstance(value, Tensor):
                found[name] = value
            elif isinstance(value, dict) and id(value) not in seen:
                seen.add(id(value))
                todo += [(f"{name}.{key}" if name else str(key), each) for key, each in value.items()]
        return found

    def read(self, pickle: bytes) -> Any:
        """What the pickle describes, with texts in the place of all that it names."""
        stack: list[Any] = []
        memo: dict[int, Any] = {}

        def marked() -> list[Any]:
            at = len(stack) - 1 - next(i for i, each in enumerate(reversed(stack)) if each is _MARK)
            items = stack[at + 1 :]
            del stack[at:]
            return items

        def pair(items: list[Any]) -> None:
            stack[-1].update(zip(items[::2], items[1::2], strict=True))

        for opcode, given, _ in pickletools.genops(pickle):
            value: Any = given
            match opcode.name:
                case "PROTO" | "FRAME":
                    pass
                case "STOP":
                    return stack.pop()
                case "MARK":
                    stack.append(_MARK)
                case name if name in _KEPT:
                    stack.append(value)
                case name if name in _FIXED:
                    stack.append(_FIXED[name])
                case "EMPTY_DICT" | "EMPTY_SET":
                    stack.append({})
                case "EMPTY_LIST":
                    stack.append([])
                case "EMPTY_TUPLE":
                    stack.append(())
                case "TUPLE":
                    stack.append(tuple(marked()))
                case "TUPLE1" | "TUPLE2" | "TUPLE3" as name:
                    n = int(name[-1])
                    stack[-n:] = [tuple(stack[-n:])]
                case "SETITEM":
                    last = stack[-2:]
                    del stack[-2:]
                    pair(last)
                case "SETITEMS":
                    pair(marked())
                case "APPEND":
                    last = stack.pop()
                    stack[-1].append(last)
                case "APPENDS":
                    items = marked()
                    stack[-1].extend(items)
                case "BINPUT" | "LONG_BINPUT":
                    memo[value] = stack[-1]
                case "MEMOIZE":
                    memo[len(memo)] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(memo[value])
                case "GLOBAL":
                    stack.append(_Name(value.replace(" ", ".")))
                case "STACK_GLOBAL":
                    name, module = stack.pop(), stack.pop()
                    stack.append(_Name(f"{module}.{name}"))
                case "BINPERSID":
                    stack.append(self.storage(stack.pop()))
                case "REDUCE" | "NEWOBJ":
                    options, what = stack.pop(), stack.pop()
                    stack.append(_made(what, options))
                case "BUILD":
                    state = stack.pop()
                    stack[-1].update(state)
                case other:
                    raise _Refused(other)
        raise EOFError("its pickle has no end")

    def storage(self, about: Any) -> Tensor:
        """All numbers of a storage, one after the other."""
        import torch

        kind, of, key, _, count, *_ = about
        if kind != "storage" or not isinstance(of, _Name) or of not in _STORAGES:
            raise _Refused(str(of))
        dtype = getattr(torch, _STORAGES[of])
        size = count * dtype.itemsize
        numbers = self.numbers(key, size)
        if len(numbers) != size or not count:
            raise ValueError(f"data/{key} has {len(numbers)} bytes in the place of {size}")
        return torch.frombuffer(bytearray(numbers), dtype=dtype)


class _Archive(_Pickled):
    """A zip."""

    def __init__(self, opened: zipfile.ZipFile):
        self.opened = opened
        (self.root,) = {name.rpartition("/")[0] for name in opened.namelist() if name.endswith("/data.pkl")}
        order = f"{self.root}/byteorder"
        if order in opened.namelist() and self.bytes(order) != b"little":
            raise ValueError("it is of a machine with another order of bytes")

    def bytes(self, name: str, most: int = MOST) -> bytes:
        about = self.opened.getinfo(name)
        if about.compress_type != zipfile.ZIP_STORED or about.file_size > most:
            raise ValueError(f"{name} is packed, or has more than {most} bytes")
        return self.opened.read(name)

    def pickle(self) -> bytes:
        return self.bytes(f"{self.root}/data.pkl")

    def numbers(self, key: str, size: int) -> bytes:
        return self.bytes(f"{self.root}/data/{key}", size)


class _Stream(_Pickled):
    """A file of PyTorch before 1.6: a number that marks it, two pickles of no use, the tensors', the keys of storages,
    and of each storage how many numbers it has and these."""

    def __init__(self, stream: BinaryIO):
        self.stream, self.sizes, self.places = stream, dict[str, int](), dict[str, int]()
        if self.read(self._next()) != _OLD:
            raise ValueError("it is no file of tensors")
        for _ in range(2):
            self._next()
        self.own = self._next()
        keys = self.read(self._next())
        self.read(self.own)  # says how large storages are
        for key in keys:
            count = int.from_bytes(stream.read(8), "little")
            self.places[key] = stream.tell()
            stream.seek(self.sizes[key], 1)
            if not count:
                raise ValueError(f"storage {key} is empty")

    def _next(self) -> bytes:
        begin = self.stream.tell()
        for _ in pickletools.genops(self.stream):
            pass
        size = self.stream.tell() - begin
        if size > MOST:
            raise ValueError(f"its pickle has more than {MOST} bytes")
        self.stream.seek(begin)
        return self.stream.read(size)

    def pickle(self) -> bytes:
        return self.own

    def numbers(self, key: str, size: int) -> bytes:
        self.sizes[key] = size
        if key not in self.places:
            return bytes(size)
        self.stream.seek(self.places[key])
        return self.stream.read(size)


def _made(what: Any, given: tuple[Any, ...]) -> Any:
    """Of the few things that a file of tensors makes, what is in them."""
    match what if isinstance(what, _Name) else None:
        case "torch._utils._rebuild_tensor_v2":
            return _tensor(*given[:4])
        case "torch._utils._rebuild_parameter":
            return given[0]
        case "collections.OrderedDict" | "torch.nn.modules.container.ParameterDict":
            return dict(*given)
        case "__builtin__.set" | "builtins.set":
            return {}
    raise _Refused(str(what))


def _tensor(numbers: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """A tensor in a storage. ``ValueError`` for one that reaches beyond it."""
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if min((offset, *size, *stride)) < 0 or math.prod(size) > len(numbers) or last >= len(numbers):
        raise ValueError(f"a tensor of {size} does not lie in {len(numbers)} numbers")
    return numbers.as_strided(size, stride, offset).clone()
