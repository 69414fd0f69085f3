"""Every method finds its sites in models of all sizes, or is refused by name for a reason of its own."""

from __future__ import annotations

from dataclasses import MISSING, fields, replace
from typing import Any

import families
import pytest
import torch
from laws import painting, reading, sizes

from sfumato.commands import fields as options
from sfumato.core.choice import FEWEST, nearest_side, side_of
from sfumato.core.denoising import plan
from sfumato.core.method import Method, Run
from sfumato.core.rows import Rows
from sfumato.core.sites import Site
from sfumato.errors import SfumatoError
from sfumato.inversion import Inversion
from sfumato.methods.edit import LocalBlend, PromptToPrompt, appearance, ledits
from sfumato.methods.perceive import diff3f
from sfumato.methods.perceive.diff_seg import anchored

WHERE = {"anchors", "blend", "blocks", "layer", "layers", "least", "parts", "res", "self_res", "stage", "which"}
"""Fields that say where in a network."""
BLENDED = ("prompt-to-prompt", "--cross", "0.8", "--self", "0.4", "--blend", "cube", "cube", "0.6")
"""The README's own."""


def ways(row: painting.Row | reading.Row, model: Any) -> list[Any]:
    """A row's settings, and the same where the method's own defaults say it is read."""
    given = [row.settings(model)] if isinstance(row, painting.Row) else list(row.ways)
    own = [{f.name: f.default for f in fields(how) if f.name in WHERE and f.default is not MISSING} for how in given]
    return given + [replace(how, **more) for how, more in zip(given, own, strict=True)]


def planned(name: str, row: painting.Row, method: Any) -> Any:
    model, side = sizes.model(name), sizes.SIZES[name][1]
    prompts = {stream: painting.SAID[stream][:1] for stream in row.streams}
    return plan(model, prompts, methods=[method], guide=row.guide, size=side)


PAINTED = [
    pytest.param(word, name, marks=[] if not j or (i + j) % 2 else [pytest.mark.slow])
    for i, word in enumerate(painting.ROWS)
    for j, name in enumerate(sizes.SIZES)
]
"""At the first size every day, at the others in turn."""


@pytest.mark.parametrize(("word", "name"), PAINTED)
def test_what_paints_is_planned_at_every_size(word, name):
    row, model = painting.ROWS[word], sizes.model(name)
    try:
        found = ways(row, model)
    except SfumatoError:  # what it learns is of other families
        assert sizes.FAMILY[name] not in row.families
        return
    for method in found:
        if not isinstance(method, Method) or isinstance(method, Inversion):
            continue
        if sizes.FAMILY[name] in row.families:
            planned(name, row, method)
        else:
            try:
                planned(name, row, method)
            except SfumatoError as e:
                assert "resolution" not in str(e), e


READ = [
    pytest.param(word, name, marks=[pytest.mark.slow] if j and ((i + j) % 3 or word in ("diff3f", "diffews")) else [])
    for i, (word, row) in enumerate(reading.ROWS.items())
    for j, name in enumerate(sizes.SIZES)
    if sizes.FAMILY[name] in row.families
]
"""At the first size every day, at the others in turn; of shapes and copies at the first alone: shapes are seen from all
sides."""


class Planned(Exception):
    """What the network was asked for."""


@pytest.mark.parametrize(("word", "name"), READ)
def test_what_reads_finds_its_layers_at_every_size(word, name, monkeypatch):
    row, model = reading.ROWS[word], sizes.model(name)
    asked = []

    def maps(x: torch.Tensor, t: Any, cond: Any, what: Any, reduce: Any) -> Any:
        asked.extend(what)
        assert x.shape[-2] * model.factor == sizes.SIZES[name][1]
        raise Planned

    monkeypatch.setattr(families, "side", lambda model: sizes.SIZES[name][1])
    monkeypatch.setattr(diff3f, "_rays", lambda size: 1)
    monkeypatch.setitem(vars(model), "maps", maps)
    monkeypatch.setitem(
        vars(model), "encode", lambda image: torch.zeros(len(image), model.channels, *_cells(image, model))
    )
    for way in ways(row, model):
        if isinstance(way, diff3f.Diff3F):
            way = replace(way, azimuths=(0.0,), elevations=(0.0,))  # one view is as large as another
        with pytest.raises(Planned):
            row.ask(way, model)
    assert asked


def _cells(image: torch.Tensor, model: Any) -> tuple[int, int]:
    return image.shape[-2] // model.factor, image.shape[-1] // model.factor


@pytest.mark.parametrize("name", sizes.SIZES)
def test_the_readmes_blend_reads_a_quarter_of_the_latents_or_what_is_nearest(name):
    (method,) = options.methods([BLENDED], "sfumato edit").items
    entries = planned(name, painting.ROWS["prompt-to-prompt"], method).entries
    (read,) = [e for e in entries if e.does == "reads maps"]
    run = planned(name, painting.ROWS["prompt-to-prompt"], method).run
    wanted = {"sd-512": 16, "sd-768": 24, "sdxl-1024": 32}.get(name, 64)
    assert {s.grid(run.grid) for s in read.sites} == {(wanted, wanted)}
    (replaced,) = [e for e in entries if e.pair == "image->image"]
    finest = {"sd-512": 32, "sd-768": 48}.get(name, 64)
    assert max(min(s.grid(run.grid)) for s in replaced.sites) == finest


@pytest.mark.parametrize(("name", "side"), [("sd-512", 32), ("sd-768", 48), ("sdxl-1024", 64), ("pixart-1024", 64)])
def test_things_are_found_on_half_of_the_latents(name, side):
    model = sizes.model(name)
    grid = (sizes.SIZES[name][1] // model.factor,) * 2
    run = Run(model, {"a": ("a cube",)}, Rows(("a",), ("cond",), 1), 10, grid)
    assert {need.where.res for need in appearance._word_and_self(run, "a", 5)} == {side}
    assert {min(s.grid(grid)) for s in ledits._sites_near(run, 0.25)} == {
        min(side, grid[0] // 4) if side < 64 or name == "sdxl-1024" else 64
    }


@pytest.mark.parametrize(("cells", "anchors"), [(16, 16), (32, 16), (64, 16), (96, 24), (128, 32), (8, 8)])
def test_anchors_are_a_quarter_of_the_cells_and_sixteen_at_least(cells, anchors):
    assert len(anchored((cells, cells), 0.25)) == anchors**2
    assert len(anchored((cells, cells), 4)) == 16


def scaled(*scales: int) -> list[Site]:
    return [Site(str(s), 0, "up", ("image",), ("text",), s, 1, 8) for s in scales]


def test_a_side_is_a_number_or_the_nearest_to_a_part_and_to_sixteen_cells_of_small_latents():
    sites = scaled(1, 2, 4, 8)
    assert side_of(sites, (64, 64), 16) == 16 and side_of(sites, (64, 64), 13) == 13
    assert [side_of(sites, (n, n), 0.25) for n in (64, 96, 128, 32, 16, 8)] == [16, 24, 32, 16, 16, 8]
    assert [side_of(sites, (n, 2 * n), 0.5) for n in (64, 96, 128, 32, 16, 8)] == [32, 48, 64, 16, 16, 8]
    assert nearest_side(sites, (16, 16), 0.25) == 4 and FEWEST == 16
    assert side_of(scaled(2), (128, 128), 0.25) == 64


def test_on_still_life_blends_and_layouts_are_read_where_they_were():
    """Of 16 cells all: as with 16 and 32 cells a side."""
    from sfumato.backbones.load import load

    model = load("stilllife", device="cpu")
    prompts = {"source": ["a red cube"], "target": ["a blue cube"]}
    by = [
        [(e.pair, e.sites) for e in plan(model, prompts, methods=[how]).entries]
        for how in (
            PromptToPrompt(blend=LocalBlend("cube", "cube")),
            PromptToPrompt(blend=LocalBlend("cube", "cube", res=16), self_res=32),
        )
    ]
    assert by[0] == by[1]
    run = plan(model, prompts, methods=[]).run
    assert {need.where.res for need in appearance._word_and_self(run, "source", 5)} == {16}
