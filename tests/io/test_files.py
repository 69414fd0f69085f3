"""What is written is whole, and finite."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import sfumato
from sfumato.errors import SfumatoError, finite
from sfumato.io.files import as_json, atomic, read_json, save_tensors, write_json
from sfumato.io.terminal import print_json

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_numbers_and_tensors_are_asked_whether_they_are_finite(bad):
    finite(torch.zeros(3), "zeros")
    finite(torch.tensor([1, 2]), "numbers")
    finite(1.0, "a number")
    for values in (torch.tensor([0.0, bad]), torch.tensor([bad]).half(), bad):
        with pytest.raises(SfumatoError, match="the sum became not finite; take less"):
            finite(values, "the sum", "take less")


def test_json_names_what_is_not_finite_in_it_and_nothing_is_written(tmp_path, capsys):
    document = {"runs": [{"psnr": 1.0}, {"psnr": NAN, "losses": (1.0, INF)}], "n": 2}
    for write in (as_json, print_json, lambda value: write_json(tmp_path / "x.json", value)):
        with pytest.raises(SfumatoError, match=r"not finite.*: runs\.1\.psnr \(nan\), runs\.1\.losses\.1 \(inf\);"):
            write(document)
    assert not [*tmp_path.iterdir()] and capsys.readouterr().out == ""
    write_json(tmp_path / "x.json", {"a": [1.5]}, indent=1)
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [1.5]}


def test_tensors_that_are_not_finite_are_named_and_the_file_before_is_kept(tmp_path):
    file = tmp_path / "x.safetensors"
    save_tensors(file, {"track": torch.ones(2, 3).T, "labels": torch.arange(3)}, {"how": "direct"})
    with pytest.raises(SfumatoError, match=r"uncond, which is to be written to .*x.safetensors, became not finite"):
        save_tensors(file, {"track": torch.zeros(2), "uncond": torch.tensor([NAN])})
    assert load_file(file)["track"].shape == (3, 2) and len([*tmp_path.iterdir()]) == 1


def test_names_that_are_no_unicode_are_written_and_read_again(tmp_path):
    """As disks have them whose names were made elsewhere: Python keeps their bytes as lone surrogates."""
    name = os.fsdecode(b"caf\xe9.png")
    write_json(tmp_path / "x.json", {"image": name}, ensure_ascii=False)
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {"image": name}


def test_a_place_whose_name_is_too_long_is_one_line(tmp_path):
    with (
        pytest.raises(SfumatoError, match=r"cannot write .*File name too long"),
        atomic(tmp_path / ("x" * 300)) as part,
    ):
        part.touch()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "line 1"), ("", "line 1"), ("[1]", "it is a list, where an object is meant"), ("null", "it is null"),
        ('{"a":' * 10**5, "nested too deeply"), ('{"a": NaN}', "NaN is no finite number"),
        ('{"a": -1e999}', "-1e999 is no finite number"), ('{"a": 1' + "0" * 5000 + "}", "is too large a number"),
        (b"\xff\xfe{}", "is no text in UTF-8"),
    ],
)  # fmt: skip
def test_json_that_is_none_is_one_line(tmp_path, text, says):
    (tmp_path / "x.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SfumatoError, match=rf"x\.json .*{re.escape(says)}") as e:
        read_json(tmp_path / "x.json", dict)
    assert "\n" not in str(e.value)


def test_json_is_read_in_one_place_and_configs_of_others_may_be_endless(tmp_path):
    (tmp_path / "x.json").write_bytes(b'\xef\xbb\xbf{"low": -Infinity, "longest": 1000000000000000019884624838656}')
    assert read_json(tmp_path / "x.json", dict, strict=False)["low"] == -INF  # as diffusers and transformers write
    with pytest.raises(SfumatoError, match="there is no file"):
        read_json(tmp_path / "none.json")
    places = [file for file in Path(sfumato.__file__).parent.rglob("*.py") if "json.load" in file.read_text("utf-8")]
    assert {f"{file.parent.name}/{file.name}" for file in places if file.parent.name != "train"} == {"io/files.py"}
