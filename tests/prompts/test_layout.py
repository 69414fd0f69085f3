"""Layouts and masks: what is read is what was meant, and what cannot be is said."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.errors import SfumatoError
from sfumato.prompts.layout import Layout, Mask, Region, box


def two(a, b) -> Layout:
    return Layout((Region("a red cube", a), Region("a duck", b)))


def test_boxes_are_cells_of_any_grid():
    layout = two((0, 0, 0.5, 0.5), (0.5, 0.25, 1, 1))
    masks = layout.masks((8, 16))
    assert masks.shape == (2, 8, 16) and masks[0, :4, :8].all() and masks[0].sum() == 32
    assert masks[1, 2:, 8:].all() and masks[1].sum() == 48
    off = two((0.1, 0.2, 0.45, 0.7), (0, 0, 1, 1)).masks((8, 8))[0]  # a cell is in if half of it is
    assert off[2:6, 1:4].all() and off.sum() == 12
    assert two((0.4, 0.4, 0.41, 0.41), (0.98, 0.98, 1, 1)).masks((4, 4)).sum((1, 2)).tolist() == [1, 1]
    assert layout.phrases == ("a red cube", "a duck") and layout.boxes()[1] == (0.5, 0.25, 1, 1)


def test_pixels_become_parts_of_the_image():
    layout = two(box("10,20,60,120"), box("0.5,0.5,1,1")).relative(200, 100)
    assert layout.boxes() == [(0.1, 0.1, 0.6, 0.6), (0.5, 0.5, 1, 1)]
    with pytest.raises(SfumatoError, match="'a duck' ends at 300, 10, outside of the image of 100 x 200"):
        two((0, 0, 1, 1), (10, 0, 300, 10)).relative(200, 100)
    with pytest.raises(SfumatoError, match="'a red cube' ends at 60, outside of the image; boxes are parts"):
        two((10, 10, 60, 60), (0, 0, 1, 1)).check()


def test_of_a_part_of_a_picture_masks_and_boxes_are_of_that_part():
    half = torch.zeros(10, 20, dtype=torch.bool)
    half[:, 10:] = True
    middle = (0.25, 0, 0.75, 1)
    assert torch.equal(Mask(half).within(middle).pixels, half[:, 5:15])
    seen = Layout((Region("a", box=(0, 0, 0.5, 1)), Region("b", mask=Mask(half)))).within(middle)
    assert seen.boxes() == [(0, 0, 0.5, 1), (0.5, 0, 1, 1)]
    with pytest.raises(SfumatoError, match="'a red cube' is outside of the part of the picture"):
        two((0, 0, 0.2, 1), (0, 0, 1, 1)).within(middle)
    with pytest.raises(SfumatoError, match="a mask is empty"):
        Mask(half).within((0, 0, 0.5, 1))


def test_overlap_is_refused_where_it_may_not_be():
    two((0, 0, 0.5, 1), (0.5, 0, 1, 1)).check(disjoint=True)
    crossing = two((0, 0, 0.6, 1), (0.5, 0, 1, 1))
    crossing.check()
    with pytest.raises(SfumatoError, match="'a red cube' and 'a duck' overlap"):
        crossing.check(disjoint=True)
    half = torch.zeros(10, 10, dtype=torch.bool)
    half[:, 5:] = True
    mixed = Layout((Region("a", box=(0, 0, 0.5, 1)), Region("b", mask=Mask(half))))
    mixed.check(disjoint=True)
    with pytest.raises(SfumatoError, match="overlap"):
        Layout((Region("a", box=(0, 0, 0.6, 1)), Region("b", mask=Mask(half)))).check(disjoint=True)
    assert mixed.boxes()[1] == (0.5, 0, 1, 1)


@pytest.mark.parametrize("sides", [(0.5, 0, 0.5, 1), (0.5, 0.5, 0.4, 1), (-0.1, 0, 1, 1)])
def test_boxes_without_an_inside_are_refused(sides):
    with pytest.raises(SfumatoError, match="left, top, right, bottom"):
        Region("a duck", sides)


def test_json_is_read_in_its_forms(tmp_path):
    Image.fromarray(np.pad(np.full((4, 4), 255, np.uint8), 2)).save(tmp_path / "mask.png")
    rows = [{"phrase": "a red cube", "box": [0, 0, 0.5, 1]}, {"phrase": "a duck", "mask": "mask.png"}]
    for written in (rows, {"regions": rows}):
        (tmp_path / "l.json").write_text(json.dumps(written))
        layout = Layout.read(tmp_path / "l.json")
        assert layout.phrases == ("a red cube", "a duck") and layout.boxes()[1] == (0.25, 0.25, 0.75, 0.75)
    (tmp_path / "l.json").write_text(json.dumps({"a red cube": [10, 10, 60, 60]}))
    assert Layout.read(tmp_path / "l.json").relative(100, 100).boxes() == [(0.1, 0.1, 0.6, 0.6)]


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("{", "cannot be read as JSON"),
        ("3", "holds no layout"),
        ("[]", "a layout is empty"),
        ('[{"box": [0, 0, 1, 1]}]', 'needs a "phrase"'),
        ('[{"phrase": "a", "box": [0, 0, 1]}]', "'a' in .* is four numbers"),
        ('[{"phrase": "a", "mask": "none.png"}]', "there is no file"),
    ],
)
def test_what_is_no_layout_is_said(tmp_path, written, says):
    (tmp_path / "l.json").write_text(written)
    with pytest.raises(SfumatoError, match=says):
        Layout.read(tmp_path / "l.json")
    with pytest.raises(SfumatoError, match="there is no file"):
        Layout.read(tmp_path / "other.json")


@pytest.mark.parametrize("mode", ["L", "P"])
def test_a_label_picture_is_a_layout(tmp_path, mode):
    label = np.zeros((20, 30), np.uint8)
    label[:, :10], label[5:, 20:] = 1, 7
    picture = Image.fromarray(label)
    if mode == "P":
        picture = Image.fromarray(label, "P")
        picture.putpalette(list(range(256)) * 3)
    picture.save(tmp_path / "l.png")
    (tmp_path / "l.json").write_text('{"1": "a red cube", "7": "a duck"}')
    layout = Layout.read(tmp_path / "l.png")
    layout.check(disjoint=True)
    assert layout.phrases == ("a red cube", "a duck") and layout.boxes()[1] == (20 / 30, 0.25, 1, 1)
    (tmp_path / "l.json").write_text('{"2": "a duck"}')
    with pytest.raises(SfumatoError, match="has no label 2 for 'a duck'; it has 1, 7"):
        Layout.read(tmp_path / "l.png")
    Image.fromarray(np.where(label == 7, 255, 0).astype(np.uint8)).convert("RGB").save(tmp_path / "l.png")
    for number in ("1", "255"):  # black and white
        (tmp_path / "l.json").write_text(json.dumps({number: "a duck"}))
        assert Layout.read(tmp_path / "l.png").boxes() == [(20 / 30, 0.25, 1, 1)]


def test_masks_are_white_or_opaque_parts_and_never_empty(tmp_path):
    grey = np.zeros((16, 16), np.uint8)
    grey[:8] = 255
    Image.fromarray(grey).save(tmp_path / "grey.png")
    clear = np.zeros((16, 16, 4), np.uint8)
    clear[:8, :, 3] = 255
    Image.fromarray(clear).save(tmp_path / "clear.png")
    for name in ("grey.png", "clear.png"):
        cells = Mask.read(tmp_path / name).at((4, 8))
        assert cells[:2].all() and not cells[2:].any()
    Image.new("L", (8, 8)).save(tmp_path / "black.png")
    with pytest.raises(SfumatoError, match=r"black.png is empty"):
        Mask.read(tmp_path / "black.png")
    with pytest.raises(SfumatoError, match=r"clear.png is empty"):  # of the part that is seen
        Mask.read(tmp_path / "clear.png").within((0, 0.6, 1, 1))
    layout = Layout((Region("a", mask=Mask.read(tmp_path / "grey.png")), Region("b", (0, 0, 8, 8))))
    fitted = layout.of(32, 32)
    assert fitted.boxes() == [(0, 0, 1, 0.5), (0, 0, 0.25, 0.25)]
    with pytest.raises(SfumatoError, match=r"grey.png: 16 x 16 pixels, of another shape than the image of 32 x 20"):
        layout.of(20, 32)
    dot = torch.zeros(32, 32, dtype=torch.bool)
    dot[3, 3] = True
    assert Mask(dot).at((4, 4)).sum() == 1
