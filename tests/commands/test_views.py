"""``sfumato views``: a sheet and its tiles; what each tile reads; what is wrong in one line."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from families import write
from PIL import Image

from sfumato.core.denoising import denoise
from sfumato.core.guidance import Contrasted, cfg
from sfumato.core.rows import Rows
from sfumato.errors import SfumatoError
from sfumato.methods.control import RegionPrompts
from sfumato.methods.sets.shared_attention import EXTENDED
from sfumato.stilllife.captions import parse
from sfumato.tasks.views import STILL_LIFE, layout_of, opposites, paint_grid, paint_views, seeds_of, words_of

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
    found = paint_grid(sd, "a red cube", VIEWS, [3], size=(64, 64), **options)
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


def test_views_are_a_set_whose_images_read_each_other_and_keep_from_their_opposites(sd):
    options = {"steps": 2, "size": (64, 64)}
    words = [f"{view} view of a red cube" for view in VIEWS]
    found = paint_views(sd, "a red cube", VIEWS, [3, 4], guide=3.0, contrast=2.0, **options)
    assert opposites(sd, "a red cube", VIEWS) == tuple(words[k] for k in (2, 3, 0, 1))
    seeds = [seeds_of(seed, 4) for seed in (3, 4)]
    assert [each[0] for each in seeds] == [3, 4] and len({*seeds[0], *seeds[1]}) == 8

    def drawn(guide, methods=(EXTENDED,)):
        images = denoise(sd, words, seed=seeds[0], methods=methods, guide=guide, **options).images
        return (images.permute(0, 2, 3, 1) * 255).round().numpy()

    tiles = np.stack([np.asarray(tile, int) for tile in found.views[0]])
    guide = Contrasted(cfg(3.0), tuple(words[k] for k in (2, 3, 0, 1)), 2.0)
    assert abs(tiles - drawn(guide)).max() <= 1
    sheet = np.asarray(found.painted.pictures[0], int)
    assert np.array_equal(np.block([[[tiles[0]], [tiles[1]]], [[tiles[2]], [tiles[3]]]]), sheet)
    assert abs(tiles - np.asarray(found.views[1], int)).max() > 1
    plain = paint_views(sd, "a red cube", VIEWS, [3], guide=3.0, contrast=0.0, methods=(), **options).views[0]
    assert abs(np.stack([np.asarray(tile, int) for tile in plain]) - drawn(3.0, ())).max() <= 1


def test_a_contrast_is_what_two_prompts_differ_in(sd):
    guide, rows = Contrasted(cfg(3.0), ("a", "b"), 2.0), Rows(("main",), ("uncond", "cond", "other"), 2)
    u, c, o = torch.randn(3, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    parts = {"uncond": u, "cond": c, "other": o}
    torch.testing.assert_close(guide.combine(parts, rows), u + 3 * (c - u) + 2 * (c - o))
    found = guide.embed(sd, ["front", "back"] * 2)
    assert torch.equal(found["other"].text, sd.embed(["a", "b"] * 2).text)
    assert torch.equal(found["cond"].text, sd.embed(["front", "back"] * 2).text)
    with pytest.raises(SfumatoError, match="2 other prompts do not go into 3"):
        guide.embed(sd, ["front"] * 3)


def test_it_writes_a_sheet_and_its_views(run, here, tmp_path):
    call = ("views", "a red cube", "--views", "front,back", "--model", write("sd", tmp_path / "sd"), "--size", 64)
    call = (*call, "--steps", 1, "--device", "cpu", "--out", tmp_path / "out")
    code, out, _ = run(*call, "--json")
    (row,) = json.loads(out)["sheets"]
    assert code == 0 and Image.open(row["sheet"]).size == (128, 64)
    names = [file.rsplit("-", 2)[1:] for file in row["images"]]
    assert names == [["1", "front.png"], ["2", "back.png"]]
    assert Image.open(row["images"][1]).text["prompt"] == "back view of a red cube"
    assert not {"contrast", "grid"} & set(row)
    code, out, _ = run(*call, "--json", "--grid")
    (other,) = json.loads(out)["sheets"]
    assert code == 0 and other["grid"] and "contrast" not in other and other["sheet"] != row["sheet"]
    assert not np.array_equal(*(np.asarray(Image.open(each["sheet"])) for each in (row, other)))
    code, _, err = run(*call, "--contrast", -1)
    assert code == 2 and "--contrast is a number from 0" in err
    code, _, err = run(*call, "--contrast", 2, "--grid")
    assert code == 2 and "leave one out" in err
    code, _, err = run(*call, "--views", "front")
    assert code == 2 and "an even number of words, got 1" in err
