"""Images that read each other: the language of sources, diffusers' own frames, orders, rows and sites."""

from __future__ import annotations

import families
import pytest
import torch
from diffusers.pipelines.deprecated.text_to_video_synthesis.pipeline_text_to_video_zero import (
    CrossFrameAttnProcessor2_0,
)
from families import pipeline, write
from rounding import assert_same_but_for_rounding

from sfumato.backbones.load import load
from sfumato.core.denoising import denoise, plan
from sfumato.core.views import Tiles
from sfumato.errors import SfumatoError
from sfumato.methods.control import SelfAttentionGuidance
from sfumato.methods.edit import MasaCtrl, PlugAndPlay, PromptToPrompt
from sfumato.methods.sets import SharedAttention
from sfumato.methods.sets.sources import read, rows
from sfumato.stilllife.oracle import Oracle

PROMPTS = ["a red cube on grass", "a blue duck", "the sphere and a duck"]
OPTIONS = {"steps": 2, "size": 64, "guide": 3.0}


def paint(model, method=None, prompts=PROMPTS, seed=(3, 4, 5), **options):
    size = model.multiple * 4
    methods = [method] if method else []
    return denoise(model, prompts, methods=methods, seed=list(seed), **{**OPTIONS, "size": size} | options).latents


@pytest.fixture(params=families.SOME)
def model(request, models):
    return models(request.param)


def test_the_words_say_whom_each_image_reads():
    assert read("first", 3) == ((0,), (0,), (0,))
    assert read("first+previous", 4) == ((0,), (0,), (0, 1), (0, 2))
    assert read("previous + self + next", 3) == ((0, 1), (0, 1, 2), (1, 2))
    assert read("middle", 8)[0] == (3,) and read("middle", 1) == ((0,),) and read("self+2", 3)[1] == (1, 2)
    assert read("all", 2) == ((0, 1), (0, 1)) and read("self", 2) == ((0,), (1,))


def test_images_that_read_fewer_weigh_each_source_once():
    at, weight = rows(read("previous+self+next", 3))
    assert at.tolist() == [[0, 1, 0], [0, 1, 2], [1, 2, 1]]
    torch.testing.assert_close(weight.exp(), torch.tensor([[0.5, 1, 0.5], [1, 1, 1], [0.5, 1, 0.5]]))
    assert rows(((1,), (0,)), views=2)[0].tolist() == [[2], [3], [0], [1]]


def test_an_image_that_is_read_twice_counts_once(models):
    """The first of ``first+previous`` reads itself: as alone, also where words stand beside what is read."""
    for family in ("sd", "sd3", "deepfloyd"):
        model = models(family)
        plain, shared = paint(model), paint(model, SharedAttention("first+previous"))
        assert_same_but_for_rounding(shared[:1], plain[:1])
        second = paint(model, SharedAttention("first+previous"), PROMPTS[:2], (3, 4))[1:]
        assert_same_but_for_rounding(shared[1:2], second)


def test_frames_are_those_of_diffusers(tmp_path, models):
    """A network whose processors are diffusers', a prediction at a time, guided and not: the same frames."""
    pipe = pipeline(write("sd", tmp_path))
    model = models("sd")
    pipe.unet.set_attn_processor(CrossFrameAttnProcessor2_0(batch_size=2))
    for frames in (1, 4):
        prompts = ["a red cube on grass"] * frames
        start = model.latents(range(frames), 64, 64)
        text = pipe.encode_prompt(prompts[0], "cpu", frames, True)
        pipe.scheduler.set_timesteps(3)
        x = start
        for t in pipe.scheduler.timesteps:
            with torch.no_grad():
                uncond, cond = pipe.unet(torch.cat([x, x]), t, torch.cat([text[1], text[0]])).sample.chunk(2)
            x = pipe.scheduler.step(uncond + 3.0 * (cond - uncond), t, x).prev_sample
        ours = denoise(
            model, prompts, methods=[SharedAttention()], seed=list(range(frames)), steps=3, size=64, guide=3.0
        )
        assert_same_but_for_rounding(ours.latents, x)


@pytest.mark.parametrize("sources", ["first", "self", "first+previous", "middle+self", "all", "0"])
def test_one_image_alone_is_plain_sampling(sd, sources):
    alone = {"prompts": PROMPTS[:1], "seed": (3,)}
    assert torch.equal(paint(sd, SharedAttention(sources), **alone), paint(sd, **alone))


def test_the_first_image_is_what_it_is_alone_and_others_are_not(model):
    plain, shared = paint(model), paint(model, SharedAttention())
    assert_same_but_for_rounding(shared[:1], plain[:1])
    assert all((shared[i] - plain[i]).abs().max() > 1e-3 for i in (1, 2))
    assert torch.equal(paint(model, SharedAttention("self")), plain)
    with_own = paint(model, SharedAttention(own=True))
    assert_same_but_for_rounding(with_own, paint(model, SharedAttention("self+first")))
    assert (with_own[1] - shared[1]).abs().max() > 1e-4 and (with_own[1] - plain[1]).abs().max() > 1e-4


def test_a_set_without_order_is_the_same_in_another(model):
    turned = [2, 0, 1]
    prompts, seed = [PROMPTS[i] for i in turned], [(3, 4, 5)[i] for i in turned]
    whole = paint(model, SharedAttention("all"))
    assert_same_but_for_rounding(paint(model, SharedAttention("all"), prompts, seed), whole[turned])
    ordered = paint(model, SharedAttention("first+previous"))
    assert (paint(model, SharedAttention("first+previous"), prompts, seed) - ordered[turned]).abs().max() > 1e-3


def test_streams_and_conditions_keep_to_themselves(model):
    """What another stream is told changes nothing; nor is what is guided away from mixed with the prompt."""
    two = {"a": PROMPTS, "b": PROMPTS[::-1]}
    size = model.multiple * 4
    method = SharedAttention("all")
    both = denoise(model, two, methods=[method], seed=[3, 4, 5], steps=2, size=size, guide=3.0)
    assert_same_but_for_rounding(both["a"].latents, paint(model, method))


def test_steps_and_sites_are_as_said(sd):
    def planned(**options):
        entries = plan(sd, PROMPTS, methods=[SharedAttention(**options)], steps=10, size=64).entries
        return entries[0] if entries else None

    every = planned()
    assert every.steps == (0, 10) and len(every.sites) == len([s for s in sd.sites if "image->image" in s.pairs])
    assert planned(after=0.2, until=0.5).steps == (2, 5)
    assert {s.stage for s in planned(stages=("up",)).sites} == {"up"}
    coarse = planned(finest=0.5).sites
    assert coarse and max(min(s.grid((8, 8))) for s in coarse) == 4 and len(coarse) < len(every.sites)
    assert planned(until=0.0) is None and planned(sources="self") is None
    off = paint(sd, SharedAttention(until=0.0))
    assert torch.equal(off, paint(sd))


def test_views_of_an_image_read_the_same_views_of_others(sd):
    """Whole images are seen in two windows that do not overlap: each is a set of its own."""
    wide = denoise(
        sd, PROMPTS, methods=[SharedAttention()], seed=[3, 4, 5], steps=2, size=(sd.size, 2 * sd.size), guide=3.0,
        views=Tiles(stride=sd.size // sd.factor),
    ).latents  # fmt: skip
    start = sd.latents([3, 4, 5], sd.size, 2 * sd.size)
    half = sd.size // sd.factor
    for part in (slice(0, half), slice(half, None)):
        own = denoise(sd, PROMPTS, methods=[SharedAttention()], start=start[..., part] * 1.0, steps=2, guide=3.0)
        assert_same_but_for_rounding(wide[..., part], own.latents)


def test_what_it_cannot_do_is_said(sd):
    def refused(match, *methods, prompts=PROMPTS):
        with pytest.raises(SfumatoError, match=match) as error:
            denoise(sd, prompts, methods=list(methods), steps=2, size=64)
        assert "\n" not in str(error.value)

    refused("there is no image 3 to read: the set has 3, counted from 0", SharedAttention("first+3"))
    refused("unknown source of keys and values 'last'; known: self, first", SharedAttention("last"))
    refused("unknown source of keys and values ''", SharedAttention("first+"))
    refused(
        "unknown part of the network 'middle'; did you mean mid\\? known: down", SharedAttention(stages=("middle",))
    )
    refused("both write sources of image->image", SharedAttention(), SharedAttention("all"))
    refused("SelfAttentionGuidance reads maps of image->image", SharedAttention(), SelfAttentionGuidance())
    edit = {"source": ["a red cube"] * 2, "target": ["a blue cube"] * 2}
    masks = MasaCtrl(source="cube", after=0.0, layer=0.0)
    refused("MasaCtrl writes logits of image->image", masks, SharedAttention(), prompts=edit)


@pytest.mark.parametrize("method", [PromptToPrompt(0.5, 1.0), PlugAndPlay(1.0, 1.0)], ids=["p2p", "pnp"])
def test_an_edit_by_frames_goes_with_it(sd, method):
    """The source is what it is without the edit; frames that are alike are edited alike; and both act."""
    prompts = {"source": ["a red cube on grass"] * 3, "target": ["a blue cube on grass"] * 3}

    def run(*methods, seed=(3, 4, 5)):
        out = denoise(sd, prompts, methods=list(methods), seed=list(seed), steps=2, size=64, guide=3.0)
        return out["source"].latents, out["target"].latents

    both = run(method, SharedAttention("first+previous"))
    assert_same_but_for_rounding(both[0], run(SharedAttention("first+previous"))[0])
    edit, share = run(method), run(SharedAttention("first+previous"))
    assert (both[1][1:] - edit[1][1:]).abs().max() > 1e-3 and (both[1] - share[1]).abs().max() > 1e-3
    swapped = run(SharedAttention("first+previous"), method)
    assert_same_but_for_rounding(swapped[1], both[1])
    same = run(method, SharedAttention("all"), seed=(4, 4, 4))[1]
    assert_same_but_for_rounding(same[1:], same[:1].expand_as(same[1:]))


def test_words_of_joint_attention_are_edited_beside_it(models):
    model = models("sd3")
    prompts = {"source": ["a red cube on grass"] * 2, "target": ["a blue cube on grass"] * 2}
    edit, share = PromptToPrompt(1.0, 0.0), SharedAttention("all")
    out, plain = (
        denoise(model, prompts, methods=some, seed=[3, 4], steps=2, size=model.multiple * 4)
        for some in ([edit, share], [share])
    )
    assert_same_but_for_rounding(out["source"].latents, plain["source"].latents)
    assert (out["target"].latents - plain["target"].latents).abs().max() > 1e-4


@pytest.mark.slow
def test_on_still_life_a_set_stands_on_one_ground():
    """Four things, their prompts leave the ground open: the oracle reads the first image's in all that read it.

    Alone two of six others have it; things stay what they were told to be as often.
    """
    model, oracle = load("stilllife", device="cpu"), Oracle.load()
    words = ["cube", "duck", "mug", "sphere"]
    grounds, kinds = {"alone": 0, "shared": 0}, {"alone": 0, "shared": 0}
    for start in (0, 1000):
        for way, methods in (("alone", []), ("shared", [SharedAttention("first", own=True)])):
            seeds = [start + i for i in range(4)]
            out = denoise(model, [f"a {w}" for w in words], methods=methods, seed=seeds, steps=20, guide=4.0)
            first, *others = oracle.read(out.images)
            grounds[way] += sum(other.ground == first.ground for other in others)
            kinds[way] += sum(
                w in [thing.kind for thing in r.things] for w, r in zip(words, (first, *others), strict=True)
            )
    assert grounds["shared"] >= 5 and grounds["alone"] <= 3
    assert kinds["shared"] >= kinds["alone"]
