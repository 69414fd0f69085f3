"""Attention that is given: where it is written and where not, whose it is, and what a command line gives."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES, randomised, seeded
from PIL import Image

from sfumato.backbones.load import family
from sfumato.commands import fields
from sfumato.core.choice import choose
from sfumato.core.denoising import denoise
from sfumato.core.method import Method, Need, Phases, Where
from sfumato.errors import SfumatoError
from sfumato.methods.control.given_attention import GivenAttention
from sfumato.prompts.words import spans

PROMPT = "a red cube and a duck"
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
    method = GivenAttention(**{"maps": {"cube": {"": given()}}, **off})
    plain = denoise(model, PROMPT, **RUN).latents
    assert torch.equal(denoise(model, PROMPT, methods=[method], **RUN).latents, plain)


@pytest.mark.parametrize("strength", [1.0, 0.25])
def test_words_look_where_they_are_given_and_nothing_else_is_written(model, strength):
    maps = given()
    some = spans(model.words(PROMPT), "cube")
    latents, seen = watched(model, GivenAttention({"cube": {"": maps}}, 0.5, strength))
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
    seen = watched(model, GivenAttention({"duck": maps}))[1][0]
    assert (seen[first]["main", "cond"][..., some] == 0.25).all() and (
        seen[last]["main", "cond"][..., some] == 0.5
    ).all()
    own = watched(model, GivenAttention({"duck": {last.path: maps[""]}}))[1][0]
    torch.testing.assert_close(own[first], watched(model)[1][0][first])


def test_a_shape_is_spread_and_each_head_keeps_its_sum(model):
    maps, some = given(), spans(model.words(PROMPT), "cube")
    seen, own = (watched(model, *m)[1] for m in ((GivenAttention({"cube": {"": maps}}, spread=True),), ()))
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
    again = denoise(model, PROMPT, methods=[GivenAttention(maps, until=1.0)], **run).latents
    torch.testing.assert_close(again, plain, atol=1e-5, rtol=1e-5)
    turned = {word: {path: x.flip(1) for path, x in of.items()} for word, of in maps.items()}
    other = denoise(model, PROMPT, methods=[GivenAttention(turned, until=1.0)], **run).latents
    assert (other - plain).abs().max() > 1e-4


def test_each_image_has_its_own_maps_also_where_few_go_through_at_once(model):
    prompts, maps = (PROMPT, "a duck on the cube"), given(2)

    def painted(prompts, maps, seed, **run):
        method = GivenAttention({"duck": {"": maps}})
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
        denoise(unet, PROMPT, methods=[GivenAttention(maps)], **RUN)


def test_a_command_line_gives_grey_pictures(tmp_path):
    """Of the words that have one, each for all heads and sites."""
    for name, colour in (("a", (0, 51, 102)), ("b", (255, 255, 255))):
        Image.new("RGB", (6, 4), colour).save(tmp_path / f"{name}.png")
    given_there = f"--maps=red cube={tmp_path}/a.png,duck={tmp_path}/b.png"
    (made,) = fields.methods([["given-attention", given_there, "--spread"]], "sfumato generate").items
    assert isinstance(made, GivenAttention) and made.spread and set(made.maps) == {"red cube", "duck"}
    torch.testing.assert_close(made.maps["red cube"][""], torch.full((1, 1, 4, 6), 0.2))
    assert (made.maps["duck"][""] == 1).all()
    with pytest.raises(SfumatoError, match="nothing"):
        fields.methods([["given-attention", f"--maps=duck={tmp_path}/nothing.png"]], "sfumato generate").items  # noqa: B018
