"""ConsiStory: who reads what of whom, whose queries, what corresponds, against all of it written down; Otsu's threshold
by trying all."""

from __future__ import annotations

from types import SimpleNamespace

import diffusers
import pytest
import torch
import torch.nn.functional as F
from rounding import assert_same_but_for_rounding

from sfumato.backbones.unet import hiddens
from sfumato.core.attention import Call
from sfumato.core.conditions import Cond
from sfumato.core.denoising import denoise
from sfumato.core.method import Method, Need, Phases, Run, Step, Where
from sfumato.core.rows import Rows
from sfumato.errors import SfumatoError
from sfumato.methods.sets import ConsiStory
from sfumato.methods.sets.consi_story import _Carried, _Queries, _Subject, corresponding, described, otsu, subject
from sfumato.prompts.words import spans
from sfumato.reading.reader import up_block

PROMPTS = ["a red cube on grass", "a duck and a cube", "the cube"]


def paint(model, *methods, order=(0, 1, 2), **options):
    settings = {"steps": 3, "size": model.multiple * 4, "guide": 3.0, "seed": [3 + i for i in order]}
    prompts = [PROMPTS[i] for i in order]
    return denoise(model, prompts, methods=list(methods), **settings | options).latents


def test_the_threshold_divides_best():
    for seed in range(5):
        x = torch.rand(40, generator=torch.Generator().manual_seed(seed)) ** 2
        found = {}
        for t in x.tolist():
            above, below = x[x > t], x[x <= t]
            if len(above):
                found[t] = len(above) * len(below) * float(above.mean() - below.mean()) ** 2
        assert float(otsu(x)) == pytest.approx(max(found, key=lambda t: found[t]))
    clear = torch.cat([torch.full((10,), 0.1), torch.full((6,), 0.9)])
    assert (clear > otsu(clear)).sum() == 6


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_images_read_themselves_and_of_others_what_is_kept_of_the_subject(models, family, views):
    model, method = models(family), ConsiStory("cube", dropout=0.3, res=0.5, queries_until=0.0, inject=0.0)
    rows = Rows(("main",), ("uncond", "cond"), 3, views)
    each = 3 * views
    run = Run(model, {"main": tuple(PROMPTS)}, rows, 10, (8, 8))
    phases = method.start(run)
    (need,), (edit,) = phases.needs, phases.edits
    words = next(s for s in model.sites if "image->text" in s.pairs and min(s.grid((8, 8))) == need.where.res)
    site = [s for s in model.sites if "image->image" in s.pairs and edit.where.sites(s)][-1]
    g, cells, side = torch.Generator().manual_seed(0), words.grid((8, 8))[0], site.grid((8, 8))[0]
    maps = torch.rand(2, each, cells**2, model.text_tokens, generator=g) ** 3
    level = model.schedule.at(500)
    for i in range(2):
        step = Step(i, level, level, torch.zeros(3, 4, 8, 8), run, None)
        step.maps[need] = {words: {("main", "cond"): maps[i]}}
        phases.after(step)
    n, text = side**2, 3 * (len(site.query) - 1)
    q, k, v = torch.randn(3, len(rows), site.heads, n + text, 8, generator=g).unbind()
    call = Call(site, rows, (side, side), 2, {"q": q, "k": k, "v": v}, attn_mask=None)
    edit.do(call)
    out = call.output()

    image = list(range(n)) if site.query[0] == "image" else list(range(text, n + text))
    rest = [j for j in range(n + text) if j not in image]
    kept = method._kept(2, 3, (side, side))
    assert 0.5 < kept.float().mean() < 0.9
    read = []
    for r in range(each):
        heat = (maps[0] + maps[1])[r][:, spans(model.words(PROMPTS[r // views]), "cube")].mean(-1)
        inside = subject(heat.view(1, 1, cells, cells), (side, side))[0]
        read.append([image[c] for c in range(n) if inside[c] and kept[r // views, c]])
    assert all(0 < len(some) < n for some in read)
    for start in (0, each):
        for r in range(each):
            others = [o for o in range(each) if o % views == r % views and o != r]
            keyed, valued = (
                torch.cat([x[start + r][:, image + rest]] + [x[start + o][:, read[o]] for o in others], 1).double()
                for x in (k, v)
            )
            wanted = (q[start + r].double() @ keyed.transpose(-1, -2) / 8**0.5).softmax(-1) @ valued
            assert_same_but_for_rounding(out[start + r], wanted.float())


def test_what_is_dropped_is_drawn_anew_in_each_step_and_by_the_seed():
    one, again, next_one, other = (
        ConsiStory("cube", seed=s)._kept(i, 2, (16, 16)) for s, i in ((0, 1), (0, 1), (0, 2), (1, 1))
    )
    assert torch.equal(one, again) and not torch.equal(one, next_one) and not torch.equal(one, other)
    assert 0.4 < one.float().mean() < 0.6


def test_without_dropout_images_have_no_order_and_one_is_plain(models):
    for family in ("sd", "flux"):
        model, method = models(family), ConsiStory("cube", dropout=0.0)
        whole = paint(model, method)
        assert_same_but_for_rounding(paint(model, method, order=(2, 0, 1)), whole[[2, 0, 1]])
        assert (whole - paint(model)).abs().max() > 1e-4
        assert torch.equal(paint(model, method, order=(1,)), paint(model, order=(1,)))
    nothing = paint(model, ConsiStory("cube", dropout=1.0, inject=0.0))
    assert_same_but_for_rounding(nothing, paint(model))


def test_what_it_cannot_do_is_said(sd):
    with pytest.raises(SfumatoError, match="has no 'duck'; its words are: a, red, cube"):
        paint(sd, ConsiStory("duck"))


class Watched(Method):
    """What queries become at each site on the way up, and what the network read."""

    def start(self, run: Run) -> Phases:
        self.x: list[torch.Tensor] = []
        self.cond: list[Cond] = []
        self.read: list[dict] = []
        where = Where("image->image", sites=lambda site: site.stage == "up")
        need = Need(where, reduce=lambda call, name: call.get("q", name).clone())

        def before(step: Step) -> None:
            self.x.append(step.x)
            self.cond.append(step.cond)

        return Phases(needs=(need,), before=before, after=lambda step: self.read.append(step.maps[need]))


def test_first_queries_are_of_images_that_read_themselves_alone(sd):
    method, watched = ConsiStory("cube", dropout=0.0, queries=(1.0, 1.0), queries_until=0.4, inject=0.0), Watched()
    paint(sd, method, watched)
    for step in range(3):
        sites = list(watched.read[step])
        t = sd.levels(3, (4, 4))[step].t
        alone = sd.maps(watched.x[step].repeat(2, 1, 1, 1), t, watched.cond[step], sites, lambda call: call.all("q"))
        for site in sites:
            found = torch.cat([watched.read[step][site][name] for name in (("main", "uncond"), ("main", "cond"))])
            assert (step < 2) == torch.allclose(found, alone[site], atol=1e-5) or site == sites[0]


def test_queries_are_mixed_by_parts_that_fall_as_published(sd):
    rows = Rows(("main",), ("cond",), 2)
    run = Run(sd, {"main": tuple(PROMPTS[:2])}, rows, 50, (8, 8))
    mixed = _Queries(run, ConsiStory("cube"), None)
    assert list(mixed.steps) == [1, 2, 3, 4, 5]
    site = next(s for s in sd.sites if s.stage == "up" and "image->image" in s.pairs)
    side, g = site.grid((8, 8))[0], torch.Generator().manual_seed(0)
    q, k, v, alone = torch.randn(4, 2, site.heads, side**2, 8, generator=g).unbind()
    mixed.found = {site: {("main", "cond"): alone}}
    for step, part in zip(mixed.steps, (0.88367, 0.86735, 0.85102, 0.83469, 0.81837), strict=True):
        call = Call(site, rows, (side, side), step, {"q": q, "k": k, "v": v}, attn_mask=None)
        mixed.mix(call)
        torch.testing.assert_close(call.all("q"), part * alone + (1 - part) * q, atol=1e-4, rtol=0)


def test_cells_correspond_by_their_features_to_other_images_subjects():
    g = torch.Generator().manual_seed(0)
    features, inside = torch.randn(3, 5, 4, 4, generator=g), torch.rand(3, 64, generator=g) < 0.4
    at, near = corresponding(features, inside, (8, 8))
    large = F.interpolate(features, (8, 8), mode="bilinear").flatten(2).double()
    large = large / large.norm(dim=1, keepdim=True)
    for i in range(3):
        distance = torch.full((64, 3 * 64), torch.inf, dtype=torch.float64)
        for j in range(3):
            if i != j:
                distance[:, 64 * j : 64 * j + 64] = 1 - large[i].T @ large[j]
                distance[:, 64 * j : 64 * j + 64][:, ~inside[j]] = 2
        least, where = distance.min(-1)
        assert torch.equal(at[i], where)
        assert torch.equal(near[i], inside[i] & (least <= otsu(least.float()) + 1e-6))
        assert 0 < near[i].sum() < inside[i].sum()

    moved = torch.randperm(16, generator=g)
    one = torch.randn(5, 16, generator=g)
    both = torch.stack([one, one[:, moved]]).view(2, 5, 4, 4)
    at, _ = corresponding(both, torch.ones(2, 16, dtype=torch.bool), (4, 4))
    assert torch.equal(at[1] % 16, moved) and torch.equal(at[0] // 16, torch.ones(16, dtype=torch.long))
    none, near = corresponding(both, torch.zeros(2, 16, dtype=torch.bool), (4, 4))
    assert none.shape == (2, 16) and not near.any()


@pytest.mark.parametrize("views", [1, 2])
def test_what_corresponds_gets_most_of_the_others_attention(sd, views):
    rows = Rows(("main",), ("uncond", "cond"), 2, views)
    run = Run(sd, {"main": tuple(PROMPTS[:2])}, rows, 50, (8, 8))
    carried = _Carried(run, ConsiStory("cube", inject=0.7), _Subject(run, ConsiStory("cube")))
    (edit,), g = carried.edits, torch.Generator().manual_seed(0)
    assert edit.where.steps == (5, 17) and edit.where.rows == "cond"
    site = next(s for s in sd.sites if "image->image" in s.pairs and edit.where.sites(s))
    side = site.grid((8, 8))[0]
    map = torch.rand(2 * views, 1, 4, 4, generator=g) ** 3
    carried.seen["main"] = torch.randn(2 * views, 6, 4, 4, generator=g)
    carried.where.maps = {"main": [0 * map, map]}
    x = torch.zeros(2, 4, 8, 8)
    assert carried.again(0, x, x + 1, None) is x and not carried.where.maps
    assert carried.again(1, x, x + 1, None) is None
    q, k, v = torch.randn(3, len(rows), site.heads, side**2, 8, generator=g).unbind()
    call = Call(site, rows, (side, side), 6, {"q": q, "k": k, "v": v}, attn_mask=None)
    plain = call.output().clone()
    edit.do(call)
    at, near = corresponding(carried.seen["main"], subject(map, (side, side)), (side, side), views)
    assert near.any()
    for r in range(2 * views):
        for cell in range(side**2):
            wanted = plain[2 * views + r, :, cell]
            if near[r, cell]:
                other, where = divmod(int(at[r, cell]), side**2)
                assert other % views == r % views and other != r
                wanted = 0.3 * wanted + 0.7 * plain[2 * views + other, :, where]
            torch.testing.assert_close(call.output()[2 * views + r, :, cell], wanted)
    assert torch.equal(call.output()[: 2 * views], plain[: 2 * views])


def test_a_second_run_starts_where_the_first_did_and_the_first_is_one_without_injection(sd):
    method, seen = ConsiStory("cube", dropout=0.2), []
    whole = paint(sd, method, callback=lambda step: seen.append((step.passed, step.i, step.x, step.x_next)))
    assert [(passed, i) for passed, i, *_ in seen] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    first = paint(sd, ConsiStory("cube", dropout=0.2, inject=0.0))
    assert torch.equal(seen[0][2], seen[3][2])
    assert torch.equal(seen[2][3], first) and torch.equal(seen[5][3], whole)
    assert (whole - first).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("down", "path"),
    [
        (("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",), "up_blocks.1.upsamplers.0"),  # Stable Diffusion
        (("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"), "up_blocks.0.upsamplers.0"),  # XL
    ],
)
def test_features_are_those_of_the_published_blocks(down, path):
    up = tuple(name.replace("Down", "Up") for name in reversed(down))
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(4,) * len(down), down_block_types=down, up_block_types=up, norm_num_groups=2,
        attention_head_dim=2, cross_attention_dim=4, layers_per_block=1,
    )  # fmt: skip
    run = SimpleNamespace(model=SimpleNamespace(layers=hiddens(unet)), grid=(64, 64))
    assert described(run, 0.5).path == path


def test_features_of_a_transformer_are_those_of_half_its_depth(models):
    model = models("sd3")
    run = Run(model, {"main": ("a cube", "a cube")}, Rows(("main",), ("cond",), 2), 50, (16, 16))
    assert described(run, 0.5) == up_block(model, 1)


def test_maps_of_the_last_steps_say_where_the_subject_is(sd):
    run = Run(sd, {"main": tuple(PROMPTS[:2])}, Rows(("main",), ("cond",), 2), 5, (8, 8))
    where, level = _Subject(run, ConsiStory("cube")), sd.schedule.at(500)
    site = next(s for s in sd.sites if "image->text" in s.pairs)
    maps = torch.rand(3, 2, site.grid((8, 8))[0] ** 2, sd.text_tokens, generator=torch.Generator().manual_seed(0))
    for i in range(3):
        step = Step(i, level, level, torch.zeros(2, 4, 8, 8), run, None)
        step.maps[where.need] = {site: {("main", "cond"): maps[i]}}
        where.note(step)
    at = [spans(sd.words(prompt), "cube") for prompt in PROMPTS[:2]]
    seen = torch.stack([torch.stack([m[r][:, at[r]].mean(-1) for r in range(2)]) for m in maps[1:]])  # 0.4 of 5 steps
    torch.testing.assert_close(torch.stack(where.maps["main"]).flatten(2), seen)
