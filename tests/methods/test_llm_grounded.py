"""LLM-grounded diffusion: its energies, masks and composition as published, laws on every family, what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from families import SOME

from sfumato.core.denoising import denoise, plan
from sfumato.core.results import Trajectory
from sfumato.core.views import Tiles
from sfumato.errors import SfumatoError
from sfumato.inversion import Direct, invert
from sfumato.methods.control.llm_grounded import LlmGrounded, difference, grounding
from sfumato.methods.control.things_alone import compose, in_the_middle, offset, salient, shifted
from sfumato.prompts.layout import Layout, Region

PROMPT = "a red cube and a blue duck on grass"
LAYOUT = Layout((Region("red cube", (0.5, 0.2, 1.0, 0.8)), Region("blue duck", (0.0, 0.25, 0.5, 1.0))))
METHOD = LlmGrounded(LAYOUT, iterations=(1,), enough=0.0)
OFF = LlmGrounded(LAYOUT, scale=0.0, frozen=0.0)
OPTIONS = {"steps": 2, "guide": 3.0}


@pytest.fixture(params=SOME)
def model(request, models):
    return models(request.param)


@pytest.fixture
def small(stilllife):
    return stilllife


def painted(model, *methods, prompts: Any = PROMPT, **options):
    size = 8 * model.factor if model.factor > 1 else 16
    return denoise(model, prompts, methods=methods, **{"size": size, **OPTIONS, **options})


def published(maps: torch.Tensor, box, positions, grid, share=0.2, inside=1.0, outside=4.0) -> torch.Tensor:
    """The authors' loss of one site's maps (heads, queries, tokens) and one phrase."""
    h, w = grid
    mask = torch.zeros(h, w)
    mask[round(box[1] * h) : round(box[3] * h), round(box[0] * w) : round(box[2] * w)] = 1
    line = mask.view(1, -1)
    loss = torch.zeros(())
    for position in positions:
        map = maps[:, :, position]
        k_in, k_out = (max(1, int(float(m.sum()) * share)) for m in (mask, 1 - mask))
        loss = loss + (1 - (map * line).topk(k_in).values.mean(1)).sum(0) * inside
        loss = loss + (map * (1 - line)).topk(k_out).values.mean(1).sum(0) * outside
    return loss / len(positions)


def test_the_energy_is_the_published_one():
    generator = torch.Generator().manual_seed(0)
    for grid in ((8, 8), (16, 8)):
        maps = torch.rand(8, grid[0] * grid[1], 9, generator=generator)
        for region, positions in zip(LAYOUT.regions, ([2, 3], [6]), strict=True):
            mask = Layout((region,)).masks(grid)[0].flatten()
            ours = grounding(maps[..., positions], mask, 0.2, 1.0, 4.0)
            torch.testing.assert_close(ours, published(maps, region.box, positions, grid))


def test_the_energy_is_averaged_over_phrases_and_sites(small):
    generator = torch.Generator().manual_seed(0)
    sites = [s for s in small.sites if "image->text" in s.pairs][:2]
    maps = {s: torch.rand(8, 64 // s.scale**2, 9, generator=generator) for s in sites}
    tokens = [[2, 3], [6]]
    ours = METHOD.energy(maps, lambda site: LAYOUT.masks(site.grid((8, 8))), tokens)
    each = [
        published(m, r.box, t, s.grid((8, 8)))
        for s, m in maps.items()
        for r, t in zip(LAYOUT.regions, tokens, strict=True)
    ]
    torch.testing.assert_close(ours, torch.stack(each).mean())


def test_the_difference_of_attention_is_the_published_one():
    generator = torch.Generator().manual_seed(1)
    now, alone = torch.rand(2, 8, 64, generator=generator)
    mask = LAYOUT.masks((8, 8))[1].flatten()
    a, b = (m * mask for m in (now, alone))
    a, b = (m / (m.sum(-1, keepdim=True) + 1e-5) for m in (a, b))
    torch.testing.assert_close(difference(now, alone, mask), (a - b).abs().sum(-1).mean(0))
    assert difference(now, now * 3, mask) < 1e-5
    assert difference(now, now + (1 - mask), mask) == 0  # outside of the box it is free


def test_descents_are_the_published_ones():
    assert LlmGrounded().descents(50) == [4] * 5 + [3] * 5 + [2] * 5 + [2] * 5 + [1] * 10
    assert LlmGrounded().descents(20) == [4] * 2 + [3] * 2 + [2] * 4 + [1] * 4
    assert LlmGrounded(scale=0).descents(50) == LlmGrounded(until=0.0).descents(50) == []


def test_things_stand_in_the_middle_on_the_floor():
    assert in_the_middle((0.0, 0.1, 0.25, 0.6)) == pytest.approx((0.375, 0.3, 0.625, 0.8))
    assert in_the_middle((0.0, 0.0, 1.0, 0.9)) == pytest.approx((0.0, 0.0, 1.0, 0.9))


def test_a_mask_is_where_attention_is_strong_inside_the_box():
    map = torch.zeros(16, 16)
    map[4:8, 2:6], map[12, 12] = 1, 5
    mask = salient(map, (0.0, 0.0, 0.5, 1.0), 0.25, 0.0, (32, 32))
    wanted = torch.zeros(32, 32, dtype=torch.bool)
    wanted[8:16, 4:12] = True
    assert torch.equal(mask, wanted)  # what is outside of the box counts neither as greatest nor as its own
    blurred = salient(map, (0.0, 0.0, 0.5, 1.0), 0.25, 1.5, (32, 32))
    assert blurred.sum() > mask.sum() and not blurred[:, 16:].any()
    flat = salient(torch.ones(4, 4), (0.5, 0.5, 1.0, 1.0), 0.25, 1.5, (8, 8))
    assert flat.sum() == 16 and flat[4:, 4:].all()


@pytest.mark.parametrize("unit", [1, 2])
def test_masks_are_moved_to_their_boxes(unit):
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[8:12, 6:10] = True
    box = (0.625, 0.25, 0.875, 0.5)  # cells 10 to 14 and 4 to 8
    by = offset(mask, box, unit)
    assert by == (-4, 4)
    wanted = torch.zeros(16, 16, dtype=torch.bool)
    wanted[4:8, 10:14] = True
    assert torch.equal(shifted(mask, *by), wanted)


def test_what_comes_from_outside_is_zero():
    x = torch.arange(1.0, 13).view(3, 4)
    assert shifted(x, 1, -1).tolist() == [[0, 0, 0, 0], [2, 3, 4, 0], [6, 7, 8, 0]]
    assert shifted(x, -2, 3).tolist() == [[0, 0, 0, 9], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert torch.equal(shifted(x, 0, 0), x) and not shifted(x, 5, 0).any()


def test_smaller_things_lie_over_larger_ones():
    noise, latents = torch.zeros(1, 8, 8), torch.stack([torch.full((3, 1, 8, 8), v) for v in (1.0, 2.0)], 1)
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[0, 3:5, 3:5], masks[1, 1:6, 1:4] = True, True
    track, held = compose(noise, latents, masks)
    assert torch.equal(held, masks.any(0))
    assert torch.equal(track[2, 0], torch.where(masks[0], 1.0, torch.where(masks[1], 2.0, 0.0)))
    first = torch.zeros(8, 8)
    first[0:7, 0:5] = 2  # the box around a mask and a cell more has the noise that its thing came from
    first[2:6, 2:6] = 1
    first[masks[1] & ~masks[0]] = 2
    assert torch.equal(track[0, 0], first)


def test_masks_hold_the_things_own_latents_while_frozen(small):
    """Composition alone, nothing moved: in the frozen steps some cells are those of the things by themselves."""
    kept, alone, plain = Trajectory(("x_next",)), Trajectory(("x_next",)), Trajectory(("x_next",))
    whole = Layout((Region("red cube", (0.0, 0.0, 1.0, 1.0)),))
    only = replace(METHOD, layout=whole, scale=0.0, centred=False, fresh=0.0, saliency=-1.0, background="{} on sand")
    painted(small, only, size=64, steps=4, trajectory=kept)
    painted(small, prompts="a red cube on sand", size=64, steps=4, guide=only.guide, trajectory=alone)
    painted(small, size=64, steps=4, trajectory=plain)
    assert torch.equal(kept["x_next"][:2], alone["x_next"][:2])  # a mask of all cells
    assert not torch.equal(kept["x_next"][2:], alone["x_next"][2:])
    part = Trajectory(("x_next",))
    some = replace(only, layout=Layout((Region("red cube", (0.0, 0.25, 1.0, 0.75)),)))
    painted(small, some, size=64, steps=4, trajectory=part)
    same = (part["x_next"][0, 0] == alone["x_next"][0, 0]).all(0)
    assert torch.equal(
        same, LAYOUT.masks((8, 8)).new_tensor([[0.0]] * 2 + [[1.0]] * 4 + [[0.0]] * 2).expand(8, 8).bool()
    )


def test_images_of_a_batch_are_those_of_runs_of_their_own(small):
    """The layout is planned for each prompt by itself, and all things of all images are rows of one batch."""
    method = replace(METHOD, layout=None)
    prompts = [PROMPT, "a blue sphere on sand"]
    both = painted(small, method, prompts=prompts, seed=[3, 5], size=64).latents
    for i, prompt in enumerate(prompts):
        one = painted(small, method, prompts=prompt, seed=[(3, 5)[i]], size=64).latents
        torch.testing.assert_close(both[i], one[0], atol=2e-4, rtol=2e-4)


def test_two_of_a_kind_share_a_phrase_and_have_a_box_each(small):
    prompt = "two red cubes on grass"
    method = replace(METHOD, layout=None)
    assert (
        painted(small, method, prompts=prompt, size=64).latents - painted(small, prompts=prompt, size=64).latents
    ).any()


def test_a_chat_plans(small):
    said = {
        "things": [{"phrase": "red cube", "box": [0, 0, 256, 512]}, {"phrase": "blue duck", "box": [256, 0, 512, 512]}]
    }
    asked = []

    def chat(messages):
        asked.append(messages)
        return json.dumps(said)

    by_chat = painted(small, replace(METHOD, layout=None, chat=chat), size=64).latents
    layout = Layout((Region("red cube", (0.0, 0.0, 0.5, 1.0)), Region("blue duck", (0.5, 0.0, 1.0, 1.0))))
    given = painted(small, replace(METHOD, layout=layout, background=""), size=64).latents
    assert torch.equal(by_chat, given) and len(asked) == 1


def test_a_method_that_is_prepared_asks_no_more(small):
    """A command prices a run and then paints it, in batches; the chat is asked once, and for new prompts alone."""
    asked = []

    def chat(messages):
        asked.append(messages)
        return json.dumps({"things": [{"phrase": "red cube", "box": [0, 0, 256, 512]}]})

    ready = replace(METHOD, layout=None, chat=chat).prepare(small, {"main": ("a red cube",)})
    assert len(asked) == 1 and ready.prepare(small, {"main": ("a red cube",)}) is ready
    plan(small, "a red cube", methods=[ready], size=64)
    first, again = (painted(small, ready, prompts="a red cube", size=64).latents for _ in range(2))
    assert len(asked) == 1 and torch.equal(first, again)
    ready.prepare(small, {"main": ("a red cube", "a red cube on grass")})
    assert len(asked) == 2


def test_non_square_latents(model):
    if model.factor == 1:
        pytest.skip("works in pixels: tested small and square")
    out = denoise(model, PROMPT, methods=[METHOD], size=(8 * model.factor, 12 * model.factor), **OPTIONS).latents
    assert out.shape[-2:] == (8, 12) and out.isfinite().all()


def test_the_plan_prices_the_things_alone(small):
    table = plan(small, PROMPT, methods=[METHOD], size=128, steps=10).table()
    calls = next(row for row in table if row["does"] == "calls the network")["calls a step"]
    assert calls == pytest.approx(0.6 / 2 + 2 * (0.6 + 0.6 / 2))


@pytest.mark.parametrize(
    ("method", "match"),
    [
        (replace(METHOD, layout=Layout((Region("green cube", (0, 0, 1, 1)),))), "the prompt has no 'green cube'"),
        (replace(METHOD, layout=Layout((Region("red cube", (0, 0, 400, 400)),))), "outside of the image"),
        (replace(METHOD, layers=("attn9",)), "leaves no site"),
        (replace(METHOD, layout=None, planner="/nowhere"), "there is no folder /nowhere"),
        (replace(METHOD, layout=None, planner="http://127.0.0.1:9/v1"), "name the model"),
        (replace(METHOD, layout=None, chat=lambda messages: "no"), "the chat gave no layout in two tries"),
    ],
)
def test_what_it_cannot_do_is_said(small, method, match):
    with pytest.raises(SfumatoError, match=match):
        painted(small, method, size=64)


def test_it_starts_from_noise_and_sees_the_whole_image(small):
    with pytest.raises(SfumatoError, match="leave the views out"):
        painted(small, METHOD, size=(128, 256), views=Tiles())
    path = invert(small, torch.rand(3, 128, 128), PROMPT, Direct(steps=4))
    later = replace(path, levels=path.levels.last(2), track=path.track[2:])
    with pytest.raises(SfumatoError, match="paints things alone over the model's own levels"):
        denoise(small, PROMPT, start=later, methods=[METHOD])
    with pytest.raises(SfumatoError, match="names no thing"):
        painted(small, replace(METHOD, layout=None), prompts="grass", size=64)
