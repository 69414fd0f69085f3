"""``sfumato views``: a sheet and its tiles; what each tile reads; what is wrong in one line."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from families import write
from PIL import Image

from sfumato.core.denoising import denoise
from sfumato.errors import SfumatoError
from sfumato.methods.control import RegionPrompts
from sfumato.stilllife.captions import parse
from sfumato.tasks.views import STILL_LIFE, layout_of, paint_views, words_of

VIEWS = ("front", "right", "back", "left")


class Named:
    """A model as far as its words matter."""

    def __init__(self, name: str):
        self.name = name


def test_the_words_of_views_are_those_of_still_life_s_captions():
    found = words_of(Named("stilllife"), "a red robot", (*VIEWS, "top", "overhead"))  # pyright: ignore
    views = [parse(text).things[0].view for text in found]
    assert views == ["front", "side", "back", "side", "overhead", "overhead"]
    assert words_of(Named("other"), "a duck", ("left", "top"), "{prompt}, {view}") == ("a duck, left", "a duck, top")  # pyright: ignore
    assert set(STILL_LIFE) & {"front", "side", "back", "overhead"} == set()
    for views, template, why in ((VIEWS[:3], "{view} {prompt}", "even number"), (VIEWS, "{prompt}", "has places for")):
        with pytest.raises(SfumatoError, match=why):
            words_of(Named("other"), "a duck", views, template)  # pyright: ignore


def test_each_tile_reads_its_view_and_all_see_each_other(sd):
    options = {"steps": 2, "guide": 3.0}
    found = paint_views(sd, "a red cube", VIEWS, [3], size=(64, 64), **options)
    layout = layout_of([f"{view} view of a red cube" for view in VIEWS])
    boxes = [region.box for region in layout.regions]
    assert boxes == [(0, 0, 0.5, 0.5), (0.5, 0, 1, 0.5), (0, 0.5, 0.5, 1), (0.5, 0.5, 1, 1)]
    regions = RegionPrompts(layout, whole=0.0, until=1.0)
    wanted = denoise(sd, "a red cube", size=(128, 128), seed=3, methods=[regions], **options).images[0]
    sheet = np.asarray(found.painted.pictures[0], int)
    assert abs(sheet - (wanted.permute(1, 2, 0) * 255).round().numpy()).max() <= 1
    tiles = [np.asarray(tile, int) for tile in found.views[0]]
    assert np.array_equal(np.block([[[tiles[0]], [tiles[1]]], [[tiles[2]], [tiles[3]]]]), sheet)
    apart = denoise(sd, "front view of a red cube", size=64, seed=3, **options).images[0]
    assert (wanted[:, :64, :64] - apart).abs().max() > 1e-3 and torch.isfinite(wanted).all()


def test_it_writes_a_sheet_and_its_views(run, here, tmp_path):
    call = ("views", "a red cube", "--views", "front,back", "--model", write("sd", tmp_path / "sd"), "--size", 64)
    call = (*call, "--steps", 1, "--device", "cpu", "--out", tmp_path / "out")
    code, out, _ = run(*call, "--json")
    (row,) = json.loads(out)["sheets"]
    assert code == 0 and Image.open(row["sheet"]).size == (128, 64)
    names = [file.rsplit("-", 2)[1:] for file in row["images"]]
    assert names == [["1", "front.png"], ["2", "back.png"]]
    assert Image.open(row["images"][1]).text["prompt"] == "back view of a red cube"
    code, _, err = run(*call, "--views", "front")
    assert code == 2 and "an even number of words, got 1" in err
