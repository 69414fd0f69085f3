"""BoxDiff: its loss as published, laws on every family, and what it refuses."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import count

import pytest
import torch
import torch.nn.functional as F

from sfumato.core.denoising import denoise
from sfumato.core.method import Run
from sfumato.core.rows import Rows
from sfumato.core.sites import Site
from sfumato.errors import SfumatoError
from sfumato.methods.control import latent_descent
from sfumato.methods.control.box_diff import SIGMA, BoxDiff, box_loss
from sfumato.methods.control.latent_descent import sharpened, text_at, word_maps
from sfumato.ops.blur import blur
from sfumato.prompts.layout import Layout, Region

PROMPT = "a red cube and a blue duck"
LAYOUT = Layout((Region("a red cube", box=(0.0, 0.2, 0.5, 0.9)), Region("duck", box=(0.5, 0.1, 1.0, 1.0))))
OPTIONS = {"steps": 2, "guide": 3.0}


def painted(model, *methods, prompts: object = PROMPT, **options):
    return denoise(
        model, prompts, methods=methods, **{"size": 8 * model.factor if model.factor > 1 else 16, **OPTIONS, **options}
    )


def published(map: torch.Tensor, box: list[int], share: float, near: int) -> torch.Tensor:
    """Inner-box, outer-box and corner constraints of one map, cell by cell; the box in cells."""
    h, w = map.shape
    inside = [(r, c) for r in range(box[1], box[3]) for c in range(box[0], box[2])]
    outside = [(r, c) for r in range(h) for c in range(w) if (r, c) not in inside]

    def greatest(cells):
        # the authors zero what is on the other side and sort all cells, of values that are not below zero
        values = sorted((float(map[cell]) for cell in cells), reverse=True)
        return sum(values[: int(len(cells) * share)]) / int(len(cells) * share)

    total = max(0, 1 - greatest(inside)) + max(0, greatest(outside))
    for line, low, high in ((map.amax(0), box[0], box[2]), (map.amax(1), box[1], box[3])):
        marked = set()
        for corner in (low, high):
            marked |= set(range(max(corner - near, 0), min(corner + near + 1, len(line))))
        total += sum(abs(float(line[i]) - float(low <= i < high)) for i in marked) / len(line)
    return torch.tensor(total)


@pytest.mark.parametrize("box", [[2, 1, 9, 8], [0, 0, 5, 16], [7, 3, 16, 12]])
def test_the_constraints_are_the_published_ones(box):
    map = torch.rand(16, 16, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(16, 16)
    mask[box[1] : box[3], box[0] : box[2]] = 1
    torch.testing.assert_close(box_loss(map, mask, 0.2, 1), published(map, box, 0.2, 1))
    torch.testing.assert_close(box_loss(map, mask, 0.5, 3), published(map, box, 0.5, 3))


def test_a_map_that_fills_its_box_has_no_loss_and_a_box_of_one_cell_has_one():
    mask = torch.zeros(8, 8)
    mask[2:5, 1:6] = 1
    assert box_loss(mask.clone(), mask, 0.2, 1) == 0
    assert box_loss(1 - mask, mask, 0.2, 1) > 2
    tiny = torch.zeros(4, 4)
    tiny[1, 1] = 1
    assert box_loss(torch.rand(4, 4), tiny, 0.2, 1).isfinite()


def test_maps_are_smoothed_and_sharpened_as_in_attend_and_excite():
    generator = torch.Generator().manual_seed(1)
    maps = torch.rand(2, 5, 7, generator=generator)
    kernel = torch.tensor([[math.exp(-(((x - 1) / 1) ** 2 + ((y - 1) / 1) ** 2)) for x in range(3)] for y in range(3)])
    padded = F.pad(maps, (1, 1, 1, 1), mode="reflect")
    wanted = torch.zeros_like(maps)
    for y in range(3):
        for x in range(3):
            wanted += kernel[y, x] / kernel.sum() * padded[:, y : y + 5, x : x + 7]
    torch.testing.assert_close(blur(maps, SIGMA, 1, "reflect"), wanted)
    probs = torch.rand(3, 4, 10, generator=generator)
    sharp = sharpened(probs, 1, 9)
    torch.testing.assert_close(sharp[..., 1:9], (probs[..., 1:-1] * 100).softmax(-1))
    assert not sharp[..., 0].any() and not sharp[..., 9].any()


def test_maps_of_sites_are_averaged_and_joint_ones_made_whole():
    run = Run(None, {"a": ("x",), "b": ("y",)}, Rows(("a", "b"), ("cond",)), 1, (4, 6))  # pyright: ignore
    sites = [Site(f"s{i}", i, "blocks", ("image",), ("text",), 2, 1, 8) for i in range(2)]
    maps = {s: {(n, "cond"): torch.rand(1, 6, 5) for n in "ab"} for s in sites}
    out = word_maps(maps, run)
    assert out.shape == (2, 2, 3, 5)
    torch.testing.assert_close(out[1, 1, 2], (maps[sites[0]]["b", "cond"] + maps[sites[1]]["b", "cond"])[0, 5] / 2)
    joint = Site("j", 0, "blocks", ("image", "text"), ("image", "text"), 2, 1, 8)
    whole = word_maps({joint: maps[sites[0]]}, run)
    torch.testing.assert_close(whole.sum(-1), torch.ones(2, 2, 3))


@pytest.fixture
def small(stilllife):
    return stilllife


def test_the_loss_goes_down(small, monkeypatch):
    seen = []
    real = box_loss
    monkeypatch.setattr(
        "sfumato.methods.control.box_diff.box_loss", lambda *a: seen.append(float(real(*a).detach())) or real(*a)
    )
    x = small.latents([3], 128, 128)
    start = {"start": x, "steps": 1, "size": 128}
    painted(small, BoxDiff(LAYOUT, scale=0.01, until=1.0, refinements=0), **start)
    first, seen[:] = sum(seen), []
    moved = []

    def watch(step):
        moved.append(step.x)

    painted(small, BoxDiff(LAYOUT, scale=0.01, until=1.0, refinements=0), callback=watch, **start)
    seen.clear()
    painted(small, BoxDiff(LAYOUT, scale=0.01, until=1.0, refinements=0), **{**start, "start": moved[0]})
    assert (moved[0] != x).any() and sum(seen) < first


@pytest.mark.parametrize(
    ("emptiest", "updates"), [([0.9, 0.5, 0.6], [0.9, 0.6]), ([0.9, 0.8, 0.75], [0.9, 0.8, 0.75]), ([0.5], [])]
)
def test_refinement_goes_down_the_emptiest_box_until_it_is_filled_and_once_more(small, monkeypatch, emptiest, updates):
    """At the threshold 0.3, at most three times: ``emptiest`` is what each prediction finds."""
    method = BoxDiff(LAYOUT, scale=0.5, until=1.0, refine_at=(0.0,), refine_to=(0.3,), refinements=3)
    asked, went, real = count(), [], latent_descent.gradients

    def inner(map, mask, share):
        found = emptiest[min(next(asked) // 3, len(emptiest) - 1)]  # of three words in two boxes
        return map.sum() - map.sum().detach() + (found if mask[:, 0].any() else found - 0.1)

    monkeypatch.setattr(latent_descent, "gradients", lambda *a: went.append(float(a[1].detach())) or real(*a))
    monkeypatch.setattr("sfumato.methods.control.box_diff.inner_loss", inner)
    monkeypatch.setattr("sfumato.methods.control.box_diff.box_loss", lambda map, mask, *a: map.sum() * 0 + 7.0)
    painted(small, method, steps=1)
    assert went == pytest.approx([*updates, 14.0]), "then the usual descent, of all losses of both boxes"
    went.clear()
    painted(small, replace(method, refinements=0), steps=1)
    assert went == pytest.approx([14.0])


def test_the_grid_is_the_nearest(small):
    run = Run(small, {"main": (PROMPT,)}, Rows(("main",), ("cond",)), 2, (16, 24))
    sides = sorted({min(s.grid((16, 24))) for s in small.sites if "image->text" in s.pairs})
    assert text_at(run, 1.0) == sides[-1] and text_at(run, 0.01) == sides[0]


def test_what_it_cannot_do_is_said(small):
    def refused(match, method, **options):
        with pytest.raises(SfumatoError, match=match):
            painted(small, method, **options)

    refused("BoxDiff needs a layout", BoxDiff())
    refused(
        "the prompt has no 'green cone'; its words are: a, red, cube",
        BoxDiff(Layout((Region("a green cone", box=(0.0, 0.0, 0.5, 0.5)),))),
    )
    refused("outside of the image", BoxDiff(Layout((Region("cube", box=(0.0, 0.0, 200.0, 300.0)),))))
