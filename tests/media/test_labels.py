"""Label files are read back as they were written; run lengths are COCO's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.errors import SfumatoError
from sfumato.media.labels import (
    Coco,
    from_run_lengths,
    lines,
    overlay,
    palette,
    read_labels,
    read_mask,
    run_lengths,
    write_labels,
)


def test_labels_come_back(tmp_path):
    labels = torch.randint(-1, 254, (20, 31), generator=torch.Generator().manual_seed(0))
    write_labels(labels, tmp_path / "a.png", {"model": "x"})
    assert torch.equal(read_labels(tmp_path / "a.png"), labels)
    with Image.open(tmp_path / "a.png") as found:
        assert found.mode == "P" and found.text["model"] == "x"
    with pytest.raises(SfumatoError, match="31 x 20 pixels, of another shape than the image of 20 x 31"):
        read_labels(tmp_path / "a.png", (31, 20))
    with pytest.raises(SfumatoError, match="at most 255"):
        write_labels(torch.tensor([[255]]), tmp_path / "b.png")


def test_masks_are_zero_and_one(tmp_path):
    mask = np.array([[0, 255], [255, 0]], np.uint8)
    for mode in ("L", "1"):
        Image.fromarray(mask).convert(mode).save(tmp_path / "m.png")
        assert read_labels(tmp_path / "m.png").tolist() == [[0, 1], [1, 0]]
    Image.fromarray(np.arange(12, dtype=np.uint8).reshape(2, 2, 3)).save(tmp_path / "c.png")
    with pytest.raises(SfumatoError, match="has colours"):
        read_labels(tmp_path / "c.png")


INSIDE = np.zeros((12, 16), bool)
INSIDE[3:9, 4:11] = True


def two(outside, inside, mode: str | None = None) -> Image.Image:
    """A picture of two values."""
    values = np.where(INSIDE[..., None], np.array(inside), np.array(outside)).astype(np.uint8)
    return Image.fromarray(values[..., 0] if values.shape[-1] == 1 else values, mode)


def with_palette(colours, indices=(0, 1)) -> Image.Image:
    picture = two([indices[0]], [indices[1]])
    picture = Image.fromarray(np.asarray(picture), "P")
    table = np.zeros((256, 3), np.uint8)
    table[list(indices)] = colours
    picture.putpalette(table.tobytes())
    return picture


def soft() -> Image.Image:
    """With a grey edge between black and white."""
    large = Image.fromarray(np.where(INSIDE, 255, 0).astype(np.uint8)).resize((160, 120))
    large.paste(255, (39, 30, 111, 90))
    return large.resize((16, 12), Image.Resampling.BOX)


MASKS = {
    "0 and 1": two([0], [1]),
    "0 and 255": two([0], [255]),
    "grey on darker grey": two([90], [110]),
    "1 bit": two([0], [255]).convert("1"),
    "a palette with red": with_palette([(0, 0, 0), (128, 0, 0)]),
    "a palette with blue, from 7 on": with_palette([(0, 0, 0), (0, 0, 128)], (7, 9)),
    "white on transparent": two([255, 255, 255, 0], [255, 255, 255, 255]),
    "black on transparent": two([0, 0, 0, 0], [0, 0, 0, 255]),
    "white on transparent black": two([0, 0, 0, 0], [255, 255, 255, 255]),
    "a grey with transparency": two([255, 0], [80, 255], "LA"),
    "red on black": two([0, 0, 0], [255, 0, 0]),
    "yellow on blue": two([0, 0, 255], [255, 255, 0]),
    "as bright as each other": two([84, 0, 0], [0, 43, 0]),
    "opaque": two([0, 0, 0, 255], [255, 255, 255, 255]),
    "an alpha of 254 and 255 says nothing": two([0, 0, 0, 255], [255, 255, 255, 254]),
    "grey at the edge": soft(),
    "16 bits": Image.fromarray(np.where(INSIDE, 65535, 0).astype(np.uint16)),
    "16 bits, 0 and 1": Image.fromarray(np.where(INSIDE, 1, 0).astype(np.uint16)),
    "32 bits": Image.fromarray(np.where(INSIDE, 1, 0).astype(np.int32)),
    "floats": Image.fromarray(np.where(INSIDE, 1.0, 0.0).astype(np.float32)),
}


@pytest.mark.parametrize("name", MASKS)
def test_any_two_values_are_a_mask(tmp_path, name):
    file = tmp_path / ("m.tif" if MASKS[name].mode in ("I", "F") else "m.png")
    MASKS[name].save(file)
    assert np.array_equal(read_mask(file).numpy(), INSIDE)


@pytest.mark.parametrize("name", [name for name in MASKS if name not in ("grey at the edge", "floats")])
def test_of_two_colours_labels_are_outside_and_inside(tmp_path, name):
    file = tmp_path / ("m.tif" if MASKS[name].mode == "I" else "m.png")
    MASKS[name].save(file)
    labels = read_labels(file)
    assert np.array_equal((labels == labels.max()).numpy(), INSIDE)


def test_a_mask_from_a_camera_is_cut_in_the_middle(tmp_path):
    MASKS["0 and 255"].resize((160, 120), Image.Resampling.NEAREST).save(tmp_path / "m.jpg", quality=60)
    assert np.array_equal(read_mask(tmp_path / "m.jpg").numpy()[5::10, 5::10], INSIDE)


@pytest.mark.parametrize(
    ("picture", "says"),
    [
        (Image.new("L", (8, 8)), "m.png is empty: all of it is 0"),
        (Image.new("L", (8, 8), 1), "m.png is full: all of it is 1"),
        (Image.new("RGB", (8, 8), "white"), "m.png is full"),
        (Image.new("RGBA", (8, 8)), "m.png is empty"),
        (Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4)), "m.png is no mask: 16 values from 0 to 15"),
    ],
)
def test_what_is_no_mask_is_named(tmp_path, picture, says):
    picture.save(tmp_path / "m.png")
    with pytest.raises(SfumatoError, match=says):
        read_mask(tmp_path / "m.png")


def test_labels_of_another_size_and_the_same_shape_are_fitted(tmp_path):
    MASKS["0 and 1"].save(tmp_path / "m.png")
    large = read_labels(tmp_path / "m.png", (24, 32))
    assert np.array_equal(large.numpy(), INSIDE.repeat(2, 0).repeat(2, 1))
    assert read_labels(tmp_path / "m.png", (61, 80)).shape == (61, 80)  # of rounding
    with pytest.raises(SfumatoError, match=r"m.png: 16 x 12 pixels, of another shape than the image of 12 x 16"):
        read_labels(tmp_path / "m.png", (16, 12))


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
