"""The laws of every method that paints, on every family that it runs on."""

from __future__ import annotations

import json
from dataclasses import MISSING, fields, replace
from typing import Any

import families
import pytest
import torch
from laws.painting import ROWS, SAID, STEPS, Runs, everywhere, painted, picture, started
from laws.traces import breaking, calls, unchanged
from rounding import assert_same_but_for_rounding

from sfumato.core.denoising import denoise, plan
from sfumato.core.guidance import CFG
from sfumato.core.steppers import Euler
from sfumato.core.views import Tiles
from sfumato.errors import SfumatoError
from sfumato.inversion import Inversion, invert
from sfumato.methods import index

EACH = [(word, family) for word, row in ROWS.items() for family in row.families]
ONE = [(word, family) for word, row in ROWS.items() for family in row.families[:1]]
"""For what is no matter of the network."""


def daily(word: str) -> tuple[str, ...]:
    """The families of every day: the first, and the last, which are a UNet and a transformer where it has both; every
    other row takes one of the others in turn. Canvases on two UNets, as each window is an image."""
    first, *others = ROWS[word].families
    if ROWS[word].views is not None:
        return (first, *others[:1])
    turn, odd = divmod(list(ROWS).index(word), 2)
    return (first, others[-1 if odd else turn % len(others)]) if others else (first,)


def table(pairs: list[tuple[str, str]], one: bool = False) -> Any:
    """Some every day, the others when all is run; of ``one`` a row it is the first for some and the other for some."""
    days = {word: (daily(word)[-(i // 6 % 2)],) if one else daily(word) for i, word in enumerate(ROWS)}
    late = {pair for pair in pairs if pair[1] not in days[pair[0]]}
    some = [pytest.param(*p, id="-".join(p), marks=[pytest.mark.slow] if p in late else []) for p in pairs]
    return pytest.mark.parametrize(("word", "family"), some)


@pytest.fixture(scope="session")
def runs(models) -> Runs:
    return Runs(models)


def assert_equal(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    for stream, x in ours.items():
        assert torch.equal(x, theirs[stream]), f"{stream}: off by {float((x - theirs[stream]).abs().max()):.2g}"


@table(EACH)
def test_it_acts_and_leaves_nothing_behind(models, runs, word, family):
    row, model = ROWS[word], models(family)
    without = None if "acts" in row.but else runs.plain(word, family)
    with unchanged(model):
        out = painted(model, row)
    runs.made[word, family] = out
    assert all(x.isfinite().all() for x in out.latents.values())
    if without is None:
        return
    for stream, x in out.edits.items():
        assert x.shape == without.latents[stream].shape
        assert stream == "appearance" or (x - without.latents[stream]).abs().max() > 1e-4, stream
    assert_equal(painted(model, row, plain=True, path=without.path).latents, without.latents)


@table(everywhere("off"))
def test_switched_off_it_is_plain_sampling(models, runs, exact, word, family):
    row, model = ROWS[word], models(family)
    assert row.off or row.still
    for off in row.off:
        out = painted(model, row, off)
        if out.path is not None:
            assert_equal(out.edits, painted(model, row, off, plain=True, path=out.path).edits)
        else:
            assert_equal(out.latents, runs.plain(word, family).latents)
    for off in row.still:
        out = painted(model, row, off)
        assert out.path is not None
        assert_equal(out.edits, dict.fromkeys(out.edits, out.path.image))


@table(everywhere("source"))
def test_the_source_is_not_touched(runs, exact, word, family):
    row, out = ROWS[word], runs.on(word, family)
    for stream in {row.streams[0], "appearance"} & {*row.streams}:
        wanted = runs.plain(word, family).latents[stream] if out.path is None else out.path.image
        assert_same_but_for_rounding(out.latents[stream], wanted)


@table(everywhere("same"))
def test_the_same_words_are_no_edit(models, exact, word, family):
    row = ROWS[word]
    said = dict.fromkeys(row.streams, SAID["source"])
    out = painted(models(family), row, row.same, said=said, guide=row.guide_of_same)
    source = out.latents[row.streams[0]]
    for x in out.edits.values():
        assert_same_but_for_rounding(x, source, largest=row.largest)


@table(everywhere("batch"), one=True)
def test_an_image_of_a_batch_is_what_it_is_alone(models, runs, exact, word, family):
    """The second of a batch on every family, the first as well on one; beside a stream that is told something else."""
    row, model = ROWS[word], models(family)
    second = runs.on(word, family)
    if not (second.path or row.settings(model)).requires.batch:
        with calls(model) as rows, pytest.raises(SfumatoError, match="edits one image a run"):
            painted(model, row, images=(0, 1))
        assert not rows
        return
    others = () if row.streams != ("main",) else ("main", "other")
    said = {**SAID, "other": SAID["main"][::-1]}
    both = painted(model, row, images=(0, 1), streams=others, said=said).latents
    alone = {1: second.latents}
    if family == row.families[0]:
        alone[0] = runs.first(word, family).latents
    for i, one in alone.items():
        for stream, x in one.items():
            torch.testing.assert_close(both[stream][i : i + 1], x, atol=row.close, rtol=1e-4)


@table([(word, family) for word, family in everywhere("batch") if (word, family) in ONE])
def test_noise_that_is_drawn_on_the_way_is_the_images_own(models, exact, word, family):
    """With a stepper that draws, an image of a batch is what its seed gives alone, for all that start from noise."""
    row, model = ROWS[word], models(family)
    if isinstance(row.settings(model), Inversion) or not row.settings(model).requires.batch:
        return
    stepper = Euler(ancestral=True)
    both = painted(model, row, images=(0, 1), stepper=stepper).latents
    alone = painted(model, row, images=(1,), stepper=stepper).latents
    for stream, x in alone.items():
        torch.testing.assert_close(both[stream][1:], x, atol=row.close, rtol=1e-4)


@table(ONE)
def test_the_same_seed_is_the_same_result_also_after_an_error_inside(models, runs, word, family):
    row, model = ROWS[word], models(family)
    first = runs.on(word, family)
    with unchanged(model), breaking(model, -1, 2):
        painted(model, row, path=first.path)
    assert_equal(painted(model, row).latents, first.latents)
    other = runs.first(word, family)
    assert (other.latents[row.streams[-1]] - first.latents[row.streams[-1]]).abs().max() > 1e-3


class High(Tiles):
    """Windows as high as the canvas, which may be smaller than the model's own images."""

    def window(self, canvas: tuple[int, int], side: int) -> tuple[int, int]:
        return (min(canvas),) * 2


@table([(word, family) for word, family in ONE if "windows" not in ROWS[word].but])
def test_windows_work_or_are_refused_and_one_is_none(models, exact, word, family):
    row, model = ROWS[word], models(family)
    prompts = {stream: SAID[stream][0] for stream in row.streams}
    side, tiles = families.side(model), High(fuse="x0")
    what, options = started(model, word, (side, side))
    with unchanged(model):
        whole, seen = (denoise(model, prompts, **options, views=views) for views in (None, tiles))
    for stream in row.streams:
        torch.testing.assert_close(seen[stream].latents, whole[stream].latents, atol=1e-3, rtol=1e-3)
    _, options = started(model, word, (side, 2 * side))
    if what.requires.windows:
        out = denoise(model, prompts, **options, views=tiles)
        assert all(x.latents.isfinite().all() and x.latents.shape[-1] == 2 * side // model.factor for x in out.values())
        return
    with (
        calls(model) as rows,
        pytest.raises(SfumatoError, match="sees whole images, and this canvas is seen in windows"),
    ):
        denoise(model, prompts, **options, views=tiles)
    assert not rows


@table(ONE)
def test_what_it_requires_is_refused_before_the_network_is_asked(models, word, family):
    row, model = ROWS[word], models(family)
    what, options = started(model, word, (64, 64) if model.factor > 1 else (16, 16))
    refused = []
    if what.requires.source:
        refused.append(({"alone": SAID["source"][0]}, {}, "needs two prompts"))
    if what.requires.uncond:
        refused.append(({stream: SAID[stream][0] for stream in row.streams}, {"guide": CFG(1.0)}, "an empty prompt"))
    if what.requires.clip:
        refused.append(({stream: SAID[stream][0] for stream in row.streams}, {"frames": 1}, "works on clips; give"))
    for prompts, more, match in refused:
        with calls(model) as rows, pytest.raises(SfumatoError, match=match) as error:
            denoise(model, prompts, **options | more)
        assert not rows and "\n" not in str(error.value)


@table(ONE)
def test_its_plan_can_be_made_and_printed(models, word, family):
    """As often as one likes: once what takes long is prepared, nothing is run for it."""
    row, model = ROWS[word], models(family)
    what, options = started(model, word, (64, 64) if model.factor > 1 else (16, 16))
    prompts = {stream: SAID[stream][0] for stream in row.streams}
    prepared = what.prepare(model, {stream: (said,) for stream, said in prompts.items()})
    assert prepared.prepare(model, {stream: (said,) for stream, said in prompts.items()}) is prepared
    with unchanged(model), calls(model) as rows:
        more: dict[str, Any] = {"steps": STEPS + 2, "size": 64, "frames": row.frames}
        made, again = (plan(model, prompts, methods=[prepared], guide=options["guide"], **more) for _ in range(2))
    lines = made.table()
    assert not rows and again.table() == lines
    assert json.loads(json.dumps(lines)) == lines and all(line["method"] and line["does"] for line in lines)
    assert {line["method"] for line in lines} <= {type(what).__name__}
    assert made.bytes >= 0 and all(set(entry.sites) <= {*model.sites, *model.layers} for entry in made.entries)


@table(ONE)
def test_its_text_names_the_settings_that_are_not_the_defaults(models, word, family):
    method = ROWS[word].settings(models(family))
    text = repr(method)
    assert text.startswith(f"{type(method).__name__}(")
    for f in fields(method):
        default = f.default_factory() if f.default_factory is not MISSING else f.default
        value = getattr(method, f.name)
        if value is not default and f.repr:
            assert f"{f.name}=" in text
            assert isinstance(value, (int, float, str, tuple)) is False or f"{f.name}={value!r}" in text


GIVEN = (
    "layout",
    "mask",
    "words",
    "word",
    "phrases",
    "move",
    "right",
    "features",
    "regions",
    "colours",
    "sizes",
    "similarity",
)
"""What a person says of a picture: presets leave it open."""


@table([(word, family) for word, family in ONE if ":" not in word])
def test_its_presets_can_be_planned(models, word, family):
    row, model = ROWS[word], models(family)
    own = row.settings(model)
    given = {f.name: getattr(own, f.name) for f in fields(own) if f.name in GIVEN}
    prompts = {stream: SAID[stream][0] for stream in row.streams}
    for preset in index.find(word).presets.values():
        how = replace(preset, **given) if not hasattr(preset, "steps") else replace(preset, **given, steps=8)
        start = isinstance(how, Inversion)
        what = invert(model, picture(model, 0), SAID["source"][0], how) if start else how
        guide = how.guide(model) if start else CFG(row.guide)
        assert plan(model, prompts, methods=[what], guide=guide, steps=8, size=64).run.steps == 8
