"""Attention that is given: where it is written and where not, whose it is, and views painted with it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from families import FAMILIES, controlnet, randomised, seeded

from sfumato.backbones.load import family
from sfumato.core.choice import choose
from sfumato.core.denoising import denoise
from sfumato.core.method import Method, Need, Phases, Where
from sfumato.distill.generators import Rendering
from sfumato.errors import SfumatoError
from sfumato.prompts.words import spans
from sfumato.scene.cameras import orbit
from sfumato.scene.capture import Capture
from sfumato.scene.fields import Voxels
from sfumato.scene.render import FieldScene, Sampling
from sfumato.tasks import inject_maps as task

PROMPT, SIDE = "a red cube and a duck", 32
RUN = {"steps": 2, "guide": 3.0, "size": 64}


@pytest.fixture(scope="module", params=["sd", "sd3"])
def model(request):
    pipe = seeded(FAMILIES[request.param])
    randomised(*pipe.components.values())
    return family("tiny", pipe)


@pytest.fixture(scope="module")
def unet():
    pipe = seeded(FAMILIES["sd"])
    randomised(*pipe.components.values())
    return family("tiny", pipe)


class Watched(Method):
    """Keeps all probabilities of each step."""

    def __init__(self):
        self.seen = []

    def start(self, run):
        need = Need(Where("image->text"), reduce=lambda call, name: call.block(name, "image->text").clone())

        def after(step):
            self.seen.append(step.maps[need])

        return Phases(needs=(need,), after=after)


def given(n: int = 1, heads: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, heads, 16, 16, generator=torch.Generator().manual_seed(seed))


def watched(model, *methods, prompt=PROMPT, **run):
    watch = Watched()
    out = denoise(model, prompt, methods=[*methods, watch], **{**RUN, **run})
    return out.latents, watch.seen


@pytest.mark.parametrize("off", [{"until": 0.0}, {"strength": 0.0}, {"maps": {}}])
def test_switched_off_it_is_plain_sampling(model, off):
    method = task.GivenAttention(**{"maps": {"cube": {"": given()}}, **off})
    plain = denoise(model, PROMPT, **RUN).latents
    assert torch.equal(denoise(model, PROMPT, methods=[method], **RUN).latents, plain)


@pytest.mark.parametrize("strength", [1.0, 0.25])
def test_words_look_where_they_are_given_and_nothing_else_is_written(model, strength):
    maps = given()
    some = spans(model.words(PROMPT), "cube")
    latents, seen = watched(model, task.GivenAttention({"cube": {"": maps}}, 0.5, strength))
    plain, own = watched(model)
    others = [i for i in range(model.text_tokens) if i not in some]
    assert not torch.allclose(latents, plain)
    first = choose(model, "image->text", (8, 8))[0]
    for site in choose(model, "image->text", (8, 8)):
        small = torch.nn.functional.interpolate(
            maps, site.grid((8, 8)), mode="bilinear", antialias=True, align_corners=False
        )
        wanted = small.flatten()[None, :, None].expand(seen[0][site]["main", "cond"][0][..., some].shape)
        now, before = seen[0][site]["main", "cond"][0], own[0][site]["main", "cond"][0]
        if site == first:
            torch.testing.assert_close(now[..., some], strength * wanted + (1 - strength) * before[..., some])
            torch.testing.assert_close(now[..., others], before[..., others])
            torch.testing.assert_close(seen[0][site]["main", "uncond"], own[0][site]["main", "uncond"])
        elif strength == 1:
            torch.testing.assert_close(now[..., some], wanted)
    later, now = (seen[step][first]["main", "cond"][0][..., some] for step in (1, 0))
    assert strength < 1 or (later - now).abs().mean() > 0.1


def test_a_site_of_its_own_maps_is_not_given_those_of_all(model):
    some = spans(model.words(PROMPT), "duck")
    first, *_, last = choose(model, "image->text", (8, 8))
    maps = {"": torch.full((1, 1, 4, 4), 0.25), last.path: torch.full((1, last.heads, 4, 4), 0.5)}
    seen = watched(model, task.GivenAttention({"duck": maps}))[1][0]
    assert (seen[first]["main", "cond"][..., some] == 0.25).all() and (
        seen[last]["main", "cond"][..., some] == 0.5
    ).all()
    own = watched(model, task.GivenAttention({"duck": {last.path: maps[""]}}))[1][0]
    torch.testing.assert_close(own[first], watched(model)[1][0][first])


def test_a_shape_is_spread_and_each_head_keeps_its_sum(model):
    maps, some = given(), spans(model.words(PROMPT), "cube")
    seen, own = (watched(model, *m)[1] for m in ((task.GivenAttention({"cube": {"": maps}}, spread=True),), ()))
    site = choose(model, "image->text", (8, 8))[0]
    now, before = (x[0][site]["main", "cond"][0][..., some] for x in (seen, own))
    torch.testing.assert_close(now.sum(1), before.sum(1))
    part = now / now.sum(1, keepdim=True)
    torch.testing.assert_close(part, part[:1, :, :1].expand_as(part))
    assert not torch.allclose(now, before, rtol=0.05)


def test_its_own_attention_given_back_changes_nothing(model):
    """Of every head of every site: as what is given is what it would be."""
    plain, seen = watched(model, steps=1)
    maps = {}
    for word in ("cube", "duck"):
        (some,) = spans(model.words(PROMPT), word)
        maps[word] = {
            site.path: found["main", "cond"][..., some].unflatten(-1, site.grid((8, 8)))
            for site, found in seen[0].items()
        }
    run = {**RUN, "steps": 1}
    again = denoise(model, PROMPT, methods=[task.GivenAttention(maps, until=1.0)], **run).latents
    torch.testing.assert_close(again, plain, atol=1e-5, rtol=1e-5)
    turned = {word: {path: x.flip(1) for path, x in of.items()} for word, of in maps.items()}
    other = denoise(model, PROMPT, methods=[task.GivenAttention(turned, until=1.0)], **run).latents
    assert (other - plain).abs().max() > 1e-4


def test_each_image_has_its_own_maps_also_where_few_go_through_at_once(model):
    prompts, maps = (PROMPT, "a duck on the cube"), given(2)

    def painted(prompts, maps, seed, **run):
        method = task.GivenAttention({"duck": {"": maps}})
        return denoise(model, [*prompts], methods=[method], seed=seed, **RUN, **run).latents

    both = painted(prompts, maps, [3, 4])
    for i in range(2):
        torch.testing.assert_close(
            both[i : i + 1], painted(prompts[i : i + 1], maps[i : i + 1], [3 + i]), atol=1e-4, rtol=0
        )
    torch.testing.assert_close(painted(prompts, maps, [3, 4], group=1), both, atol=1e-4, rtol=0)
    assert (painted(prompts, maps.flip(0), [3, 4]) - both).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        ({"cube": {"": given(3)}}, "maps of 'cube' at all sites are finite, for one image or 1,"),
        ({"cube": {"": given()[0]}}, "maps of 'cube'"),
        ({"cube": {"": given() / 0}}, "finite"),
        ({"cube": {"": given(1, 3)}}, "heads, and maps of 3 are given"),
        ({"sphere": {"": given()}}, "sphere"),
        ({"cube": {"nowhere": given()}}, "no site"),
    ],
)
def test_maps_that_do_not_fit_are_refused(unet, maps, message):
    with pytest.raises(SfumatoError, match=message):
        denoise(unet, PROMPT, methods=[task.GivenAttention(maps)], **RUN)


def test_a_soft_threshold_keeps_the_ends_and_the_middle():
    maps = torch.tensor([2.0, 3.0, 4.0, 5.0, 6.0]).view(1, 1, 1, 5)
    wanted = 1 / (1 + torch.exp(-10 * (torch.arange(5) / 4 - 0.5)))
    wanted = (wanted - wanted[0]) / (wanted[-1] - wanted[0])
    torch.testing.assert_close(task.soft(maps).flatten(), wanted)
    assert float(task.soft(maps).flatten()[2]) == pytest.approx(0.5)
    assert not task.soft(torch.ones(1, 1, 2, 2)).any()


def test_depth_is_disparity_along_the_axis():
    """Of two planes before the camera, one twice as far, and nothing in the last row."""
    cameras = orbit(1, (4, 6), distance=3.0, fov=70.0)
    z = torch.tensor([2.0, 4.0]).repeat_interleave(3).expand(1, 4, 6)
    alpha = torch.ones(1, 1, 4, 6)
    alpha[..., -1, :] = 0
    shown = Rendering(torch.zeros(1, 3, 4, 6), alpha, (z * cameras.slant())[:, None])
    found = task.nearness(SimpleNamespace(view=lambda cameras: shown), cameras)
    torch.testing.assert_close(found[0, 0], torch.where(alpha[0, 0] > 0, 2 / z[0], 0.0))
    assert torch.equal(found, found[:, :1].expand(1, 3, 4, 6))


def test_lifted_heads_go_back_to_where_they_were_read():
    names = ("up.0, head 0", "up.0, head 1", "up.1, head 0", "up.1, head 1")
    values = torch.arange(8.0).view(1, 8, 1, 1).expand(2, 8, 4, 4)
    features = SimpleNamespace(view=lambda cameras, smooth: values)
    found = task.SceneAttention(("cube", "duck"), names, features).view(orbit(2, (4, 4)))
    assert {w: {p: x[1, :, 0, 0].tolist() for p, x in of.items()} for w, of in found.items()} == {
        "cube": {"up.0": [0, 1], "up.1": [2, 3]},
        "duck": {"up.0": [4, 5], "up.1": [6, 7]},
    }


def test_views_are_painted_by_depth_and_by_what_is_lifted(unet):
    made = FieldScene(Voxels(8), sampling=Sampling(16))
    with torch.no_grad():
        made.field.grid[0, 0] = -10.0
        made.field.grid[0, 0, 2:6, 2:6, 2:6] = 10.0
    cameras = orbit(2, (64, 64), distance=3.0)
    shots = Capture(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(3)), cameras, ("a", "b"))
    lifted = task.lift_attention(unet, shots, made, PROMPT, ("cube", "duck"), times=(101,), steps=2)
    maps = lifted.view(cameras)
    paths = {site.path for site in choose(unet, "image->text", (8, 8)) if site.stage == "up"}
    assert set(maps) == {"cube", "duck"} and set(maps["duck"]) == paths
    network = controlnet("sd", unet.network)

    def painted(scene, methods=(), **options):
        return task.paint_views(unet, scene, cameras, PROMPT, network, methods, steps=2, **options)

    plain, with_maps = painted(made), painted(made, [task.GivenAttention(maps)])
    assert plain.shape == (2, 3, 64, 64) and torch.equal(painted(made), plain)
    assert not torch.allclose(with_maps, plain) and not torch.allclose(painted(made, eta=1.0), plain)
    assert not torch.allclose(painted(made, seed=1), plain)
    assert not torch.allclose(painted(FieldScene(Voxels(8), sampling=Sampling(16))), plain)
