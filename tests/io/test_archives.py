"""Files of ``torch.save``: read as torch reads them, and nothing in them is ever run."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections import OrderedDict

import pytest
import torch
from torch import nn

from sfumato.errors import SfumatoError
from sfumato.io import archives

GIVEN = torch.arange(24.0).view(4, 6)


class Evil:
    """Leaves a file where it is unpickled."""

    def __init__(self, how, mark):
        self.how, self.mark = how, mark

    def __reduce__(self):
        return self.how, (f"touch {self.mark}",) if self.how is os.system else (f"open({str(self.mark)!r}, 'w')",)


def written(path, value):
    torch.save(value, path)
    return path


def repacked(path, new, change, compression=zipfile.ZIP_STORED):
    """A file with one of its entries changed."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(new, "w", compression) as out:
        for name in old.namelist():
            out.writestr(name, change(name, old.read(name)))
    return new


def test_tensors_are_those_that_torch_reads(tmp_path):
    views = {"whole": GIVEN, "turned": GIVEN.T, "part": GIVEN[1:3, ::2], "row": GIVEN[3]}
    half = {k: v.to(d) for k, v, d in zip("abc", [GIVEN] * 3, [torch.half, torch.bfloat16, torch.double], strict=True)}
    value = {
        "in": {**views, "deep": half},
        "learned": nn.Parameter(GIVEN + 1),
        "number": torch.tensor(265),
        "name": "x",
    }
    found = archives.tensors(written(tmp_path / "a.pt", value))
    read = torch.load(tmp_path / "a.pt", weights_only=True)
    flat = {f"in.{k}": read["in"][k] for k in views} | {f"in.deep.{k}": v for k, v in read["in"]["deep"].items()}
    flat |= {"learned": read["learned"].detach(), "number": read["number"]}
    assert found.keys() == flat.keys()
    for key, expected in flat.items():
        assert found[key].dtype == expected.dtype and torch.equal(found[key], expected), key


def test_files_of_before_1_6_are_read_alike(tmp_path):
    value = {"a": GIVEN, "b": GIVEN.T, "deep": {"c": (2 * GIVEN).double()}, "p": nn.Parameter(GIVEN + 1), "n": "x"}
    torch.save(value, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    found = archives.tensors(tmp_path / "old.pt")
    assert set(found) == {"a", "b", "deep.c", "p"} and found["deep.c"].dtype == torch.float64
    for key, wanted in {"a": GIVEN, "b": GIVEN.T, "deep.c": 2 * GIVEN.double(), "p": GIVEN + 1}.items():
        assert torch.equal(found[key], wanted), key
    old = (tmp_path / "old.pt").read_bytes()
    for name, data, says in (
        ("short", old[:-8], "bytes in the place of"),
        ("cut", old[:200], "is damaged"),
        ("other", pickle.dumps(5), "no file of tensors"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(SfumatoError, match=says):
            archives.tensors(tmp_path / name)

    class Runs:
        def __reduce__(self):
            return os.system, ("false",)

    torch.save({"x": Runs()}, tmp_path / "evil", _use_new_zipfile_serialization=False)
    with pytest.raises(SfumatoError, match="could run code"):
        archives.tensors(tmp_path / "evil")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_all_protocols_and_dictionaries_of_modules_are_read(tmp_path, protocol):
    parameters = nn.ParameterDict({"*": nn.Parameter(GIVEN)})
    torch.save(
        {"a": OrderedDict([("b", GIVEN)]), "p": parameters, "n": None, "t": (1, 2.5, True, [2**70])},
        tmp_path / "a.pt",
        pickle_protocol=protocol,
    )
    found = archives.tensors(tmp_path / "a.pt")
    assert torch.equal(found["a.b"], GIVEN) and torch.equal(found["p._parameters.*"], GIVEN)


@pytest.mark.parametrize("how", [os.system, eval, exec])
@pytest.mark.parametrize("place", ["value", "key", "state"])
def test_a_pickle_that_runs_something_is_refused_and_runs_nothing(tmp_path, how, place):
    mark = tmp_path / "ran"
    evil = Evil(how, mark)
    value = {"value": {"<x>": GIVEN, "more": evil}, "key": {"<x>": GIVEN, evil: 1}, "state": [evil]}[place]
    file = written(tmp_path / "a.pt", value)
    with pytest.raises(
        SfumatoError, match=r"is not read, as it could run code: it asks for \w+\.(system|eval|exec)"
    ) as e:
        archives.tensors(file)
    assert "\n" not in str(e.value) and not mark.exists()
    torch.load(file, weights_only=False)
    assert mark.exists()  # it would have


@pytest.mark.parametrize(
    ("code", "asks"),
    [
        (b"\x80\x02cos\nsystem\n(S'true'\ntR.", "STRING|os.system"),
        (b"\x80\x02(cos\nsystem\nX\x04\x00\x00\x00trueo.", "OBJ"),
        (b"\x80\x02(X\x04\x00\x00\x00trueios\nsystem\n.", "INST"),
        (b"\x80\x02c__builtin__\ngetattr\ncos\npath\nX\x06\x00\x00\x00system\x86R.", "__builtin__.getattr"),
        (b"\x80\x02ctorch._utils\n_rebuild_sparse_tensor\n)R.", "torch._utils._rebuild_sparse_tensor"),
        (b"\x80\x02X\x0e\x00\x00\x00builtins.print)R.", "builtins.print"),
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"\x80\x02}}b\x81.", "damaged"),
        (b"\x80\x02}", "damaged"),
        (b"", "damaged"),
        (b"garbage", "damaged|asks for"),
    ],
)
def test_opcodes_beyond_data_are_refused_whatever_they_call(tmp_path, code, asks):
    file = written(tmp_path / "a.pt", {"x": GIVEN})
    bad = repacked(file, tmp_path / "b.pt", lambda name, old: code if name.endswith("data.pkl") else old)
    with pytest.raises(SfumatoError, match=asks):
        archives.tensors(bad)


def test_damaged_files_are_refused_on_one_line(tmp_path):
    file = written(tmp_path / "a.pt", {"x": GIVEN})
    (tmp_path / "old.pt").write_bytes(pickle.dumps({"x": 1}))
    (tmp_path / "cut.pt").write_bytes(file.read_bytes()[:300])
    short = repacked(file, tmp_path / "short.pt", lambda n, old: old[:8] if "/data/" in n else old)
    packed = repacked(file, tmp_path / "packed.pt", lambda n, old: old, zipfile.ZIP_DEFLATED)
    big = repacked(file, tmp_path / "big.pt", lambda n, old: b"big" if n.endswith("byteorder") else old)
    for bad, says in (
        (tmp_path / "none.pt", "there is no file"),
        (tmp_path / "old.pt", "no file of tensors"),
        (tmp_path / "cut.pt", "is damaged"),
        (short, "has 8 bytes in the place of 96"),
        (packed, "is packed"),
        (big, "another order of bytes"),
        (tmp_path, "is damaged"),
    ):
        with pytest.raises(SfumatoError, match=says) as e:
            archives.tensors(bad)
        assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, (5, 6), (6, 1)),
        (1, (4, 6), (6, 1)),
        (0, (2,), (24,)),
        (0, (10**9,), (0,)),
        (-1, (2,), (1,)),
        (5, (3,), (-2,)),
    ],
)
def test_tensors_that_reach_out_of_their_numbers_are_refused(offset, size, stride):
    numbers = torch.arange(24.0)
    with pytest.raises(ValueError, match="does not lie in 24 numbers"):
        archives._tensor(numbers, offset, size, stride)
    assert torch.equal(archives._tensor(numbers, 2, (3, 2), (7, 1)), numbers.as_strided((3, 2), (7, 1), 2))
