"""What is written is whole, and finite."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import load_file

from sfumato.errors import SfumatoError, finite
from sfumato.io.files import as_json, atomic, save_tensors, write_json
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
