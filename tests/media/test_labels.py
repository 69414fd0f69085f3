"""Label files are read back as they were written; run lengths are COCO's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.errors import SfumatoError
from sfumato.media.labels import Coco, from_run_lengths, lines, overlay, palette, read_labels, run_lengths, write_labels


def test_labels_come_back(tmp_path):
    labels = torch.randint(-1, 254, (20, 31), generator=torch.Generator().manual_seed(0))
    write_labels(labels, tmp_path / "a.png", {"model": "x"})
    assert torch.equal(read_labels(tmp_path / "a.png"), labels)
    with Image.open(tmp_path / "a.png") as found:
        assert found.mode == "P" and found.text["model"] == "x"
    with pytest.raises(SfumatoError, match="31 x 20 pixels, their image is 20 x 31"):
        read_labels(tmp_path / "a.png", (31, 20))
    with pytest.raises(SfumatoError, match="at most 255"):
        write_labels(torch.tensor([[255]]), tmp_path / "b.png")


def test_masks_are_zero_and_one(tmp_path):
    mask = np.array([[0, 255], [255, 0]], np.uint8)
    for mode in ("L", "1"):
        Image.fromarray(mask).convert(mode).save(tmp_path / "m.png")
        assert read_labels(tmp_path / "m.png").tolist() == [[0, 1], [1, 0]]
    Image.new("RGB", (2, 2)).save(tmp_path / "c.png")
    with pytest.raises(SfumatoError, match="has colours"):
        read_labels(tmp_path / "c.png")


def test_run_lengths_go_down_the_columns_and_begin_with_zeros():
    mask = torch.tensor([[1, 0], [1, 1]], dtype=torch.bool)
    assert run_lengths(mask) == {"size": [2, 2], "counts": [0, 2, 1, 1]}
    assert run_lengths(~mask)["counts"] == [2, 1, 1]
    for seed in range(5):
        some = torch.rand(7, 9, generator=torch.Generator().manual_seed(seed)) > 0.5
        assert torch.equal(from_run_lengths(run_lengths(some)), some)


def test_a_coco_document_holds_each_segment_once():
    labels = torch.tensor([[0, 0, 2], [0, 2, 2], [-1, 2, 2]])
    document = Coco()
    document.add("a.png", labels, ("sky", "sea", "cube"))
    document.add("b.png", torch.zeros(2, 2, dtype=torch.long), ("sky",))
    found = document.document()
    assert [c["name"] for c in found["categories"]] == ["sky", "cube"]
    assert [(a["image_id"], a["category_id"], a["area"], a["bbox"]) for a in found["annotations"]] == [
        (1, 1, 3, [0, 0, 2, 2]),
        (1, 2, 5, [1, 0, 2, 3]),
        (2, 1, 4, [0, 0, 2, 2]),
    ]


def test_pictures_of_labels_and_matches_have_their_sizes():
    picture = Image.new("RGB", (30, 20), "white")
    shown = overlay(picture, torch.full((20, 30), -1))
    assert np.array_equal(np.asarray(shown), np.asarray(picture))
    both = lines(picture, picture, torch.tensor([[3.0, 4.0]]), torch.tensor([[20.0, 10.0]]), height=40)
    assert both.size == (60 + 12 + 60, 40)
    assert len(np.unique(palette(50), axis=0)) == 50
