"""Images of a run that go through the network some at a time are what they are if all go at once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, partial

import pytest
import torch

from sfumato.bench.memory import allocated
from sfumato.core import denoising
from sfumato.core.denoising import denoise
from sfumato.core.groups import Group, Turn, turns
from sfumato.core.method import Edit, Method, Phases, Requires, Run, Where
from sfumato.core.views import Tiles
from sfumato.errors import SfumatoError
from sfumato.inversion import Direct, NegativePrompt, invert
from sfumato.methods.edit import MasaCtrl, PlugAndPlay, PromptToPrompt
from sfumato.methods.edit.prompt_to_prompt import LocalBlend
from sfumato.methods.sets import FateZero, Pix2Video, SharedAttention, StyleAligned, Text2VideoZero, TokenFlow
from sfumato.methods.sets.sources import read

FRAMES = 7
WORDS = ["a red cube and a duck", "a red duck on a cube"]
SOURCE = [WORDS[i % 2] for i in range(FRAMES)]
TARGET = [text.replace("red", "blue") for text in SOURCE]
CUBE = LocalBlend("cube", "cube", threshold=0.93, start=0.0, res=1.0)
"""Somewhere, and not everywhere, in images of random networks."""
ALONE = {
    "nothing": (),
    "first": (SharedAttention("first"),),
    "middle": (SharedAttention("self+middle"),),
    "number": (SharedAttention("5", own=True, after=0.5),),
    "chain": (SharedAttention("first+previous"),),
    "next": (SharedAttention("next"),),
    "two": (SharedAttention("previous", until=0.5), SharedAttention("next", after=0.5)),
    "style": (StyleAligned(),),
    "photograph": (StyleAligned("qkv", shift=0.7, scale=1.2),),
    "pix2video": (Pix2Video(),),
    "text2video": (Text2VideoZero(0.25, 0.13, begin=0.0, settled=0.5),),
}
EDITS = {
    "prompt-to-prompt": (PromptToPrompt(0.5, 0.5, reweight={"duck": 3.0}, blend=CUBE),),
    "both": (PromptToPrompt(1.0, 0.0, blend=CUBE), SharedAttention("self+middle")),
    "fate-zero": (FateZero(1.0, 1.0, finest=1.0),),
    "fate-zero by a word": (FateZero(0.0, 1.0, finest=1.0, word="cube", threshold=0.93, res=1.0),),
    "token-flow": (TokenFlow(every=3),),
}
UNETS = {
    "plug-and-play": (PlugAndPlay(features=1.0, attention=1.0),),
    "flow and features": (PlugAndPlay(features=1.0, attention=1.0), TokenFlow(every=4)),
}
CASES = {**ALONE, **EDITS, **UNETS}
FAST = ("sd",)
OF_JOINT = [("sd3", name) for name in ("chain", "token-flow")]
SLOW = ("sd2", "sdxl", "deepfloyd", "pixart", "flux", "sd3")


def paint(model, name: str, **options) -> dict[str, torch.Tensor]:
    streams = {"target": TARGET} if name in ALONE else {"source": SOURCE, "target": TARGET}
    steps = 3 if "word" in name else 2  # where it is known from the first step on, and matters little in the last
    given = {"methods": list(CASES[name]), "guide": 3.0, "steps": steps, "seed": 3, "size": model.multiple * 4}
    return {n: sample.latents for n, sample in denoise(model, streams, **given | options).items()}


def cases(families):
    return [(f, n) for f in families for n in CASES if n not in UNETS or f in ("sd", "sd2", "sdxl", "deepfloyd")]


@cache
def plain(model, by_word: bool) -> torch.Tensor:
    """Target images without a method, which many cases are compared with."""
    return paint(model, "fate-zero by a word" if by_word else "token-flow", methods=[])["target"]


def check(model, name: str, group: int) -> None:
    whole, parts = paint(model, name), paint(model, name, group=group)
    for stream, latents in whole.items():
        assert torch.allclose(parts[stream], latents, atol=2e-5 * max(1.0, float(latents.abs().max())))
    if CASES[name]:  # and that is something else than each by itself
        assert not torch.allclose(plain(model, "word" in name), whole["target"], atol=1e-4)


@pytest.mark.parametrize(("family", "name"), [*cases(FAST), *OF_JOINT])
def test_parts_are_the_whole(models, family, name):
    check(models(family), name, 3)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "name"), cases(SLOW))
@pytest.mark.parametrize("group", [3, 5])
def test_parts_are_the_whole_in_every_family(models, family, name, group):
    check(models(family), name, group)


def test_no_more_than_a_group_go_at_once_and_none_twice(models, monkeypatch):
    """Of a stream and a condition, whatever looks across."""
    model, seen = models("sd"), []
    predict = model.predict
    monkeypatch.setitem(vars(model), "predict", lambda x, *args: seen.append(len(x)) or predict(x, *args))
    for name in ("chain", "token-flow", "text2video"):
        seen.clear()
        paint(model, name, group=3)
        rows = 2 if name in ALONE else 4
        further = 1 if name == "text2video" else 0  # a step of its own, of all images
        assert max(seen) == 3 * rows and sum(seen) == FRAMES * rows * (2 + further)


def test_a_group_of_all_is_no_group(models):
    model = models("sd")
    for name in ("chain", "token-flow"):
        whole, parts = paint(model, name), paint(model, name, group=FRAMES)
        assert all(torch.equal(parts[stream], x) for stream, x in whole.items())


def test_whoever_is_read_goes_first():
    assert turns([], 5, 2) == (Turn((0, 1), frozenset()), Turn((2, 3), frozenset()), Turn((4,), frozenset()))
    assert [t.images for t in turns([read("next", 5)], 5, 2)] == [(3, 4), (1, 2), (0,)]
    chain = turns([read("first+previous", 7)], 7, 3)
    assert [t.images for t in chain] == [(0, 1, 2), (3, 4, 5), (6,)]
    assert [set(t.later) for t in chain] == [{0, 2}, {0, 5}, set()]
    assert turns([read("middle", 6)], 6, 2)[0] == Turn((0, 2), frozenset({2}))
    keys = [(1, 5)] * 6
    assert turns([keys], 6, 2)[0] == Turn((1, 5), frozenset({1, 5}))
    both = turns([read("first", 4), read("next", 4)], 4, 4)
    assert both == (Turn((0, 1, 2, 3), frozenset()),)
    with pytest.raises(SfumatoError, match=r"4 images read each other in every layer.* a group is of 3"):
        turns([read("first", 4), read("next", 4)], 4, 3)
    with pytest.raises(SfumatoError, match="take groups of 9"):
        turns([read("all", 9)], 9, 8)


def test_what_no_later_turn_reads_is_let_go():
    kept: dict = {}
    rows = {n: torch.tensor(float(n)) for n in range(4)}
    first = Group((0, 1), frozenset({0, 1}), kept)
    assert first.across("k", {n: rows[n] for n in (0, 1)}, [1]) == {1: rows[1]}
    first.over()
    second = Group((2, 3), frozenset({0}), kept)
    assert second.across("k", {n: rows[n] for n in (2, 3)}, [0, 2]) == {0: rows[0], 2: rows[2]}
    second.over()
    assert set(kept["k"]) == {0}


@dataclass(frozen=True)
class Numbers(Method):
    """Writes to each image's values by its number."""

    requires = Requires(groups=True)

    def start(self, run: Run) -> Phases:
        by = torch.linspace(0.5, 1.5, run.rows.of_stream)

        def write(call) -> None:
            for name in run.rows.names:
                call.set("v", name, call.get("v", name) * call.rows.own(by)[:, None, None, None])

        return Phases((Edit(Where("image->image"), "qkv", write, parts="v"),))


def test_what_belongs_to_each_image_is_cut(models):
    whole, parts = (paint(models("sd"), "next", methods=[Numbers(), *CASES["next"]], group=g) for g in (None, 3))
    assert torch.allclose(whole["target"], parts["target"], atol=1e-5)


@pytest.mark.parametrize("how", [Direct(steps=2), NegativePrompt(steps=2)], ids=["direct", "negative"])
def test_a_path_is_followed_in_groups(models, how):
    model = models("sd")
    images = torch.rand(FRAMES, 3, *[model.multiple * 4] * 2, generator=torch.Generator().manual_seed(0))
    path = invert(model, images, SOURCE, how)
    options = {"methods": [TokenFlow(every=3)], "guide": 3.0, "start": path}
    streams = {"source": SOURCE, "target": TARGET}
    whole, parts = denoise(model, streams, **options), denoise(model, streams, **options, group=3)
    for stream in streams:
        assert torch.allclose(whole[stream].latents, parts[stream].latents, atol=1e-4)


def test_the_same_words_are_read_once_and_mean_the_same(models, monkeypatch):
    """Of all images alike a stream has one row of text, unless its path has another for each."""
    model, rows = models("sd"), []
    same = {"source": [WORDS[0]] * FRAMES, "target": [WORDS[1]] * FRAMES}
    x = torch.randn(2 * FRAMES, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    options = {"methods": [TokenFlow(every=3)], "guide": 3.0, "start": x, "steps": 2}
    some = Run.some
    monkeypatch.setattr(Run, "some", lambda self, images, cond: rows.append(len(cond)) or some(self, images, cond))
    whole, parts = denoise(model, same, **options), denoise(model, same, **options, group=3)
    assert set(rows) == {2 * 2} and all(torch.allclose(whole[s].latents, parts[s].latents, atol=1e-5) for s in same)
    given = model.given(lambda cond: replace(cond, text=cond.text * torch.linspace(1, 2, len(cond))[:, None, None]))
    rows.clear()
    whole, parts = denoise(given, same, **options), denoise(given, same, **options, group=3)
    assert set(rows) == {2 * 2 * FRAMES} and all(
        torch.allclose(whole[s].latents, parts[s].latents, atol=1e-5) for s in same
    )


@pytest.mark.parametrize("name", [pytest.param("first", marks=pytest.mark.slow), "chain", "token-flow"])
def test_of_each_image_there_are_latents_and_no_more(models, name):
    """By torch's own account of each allocation: of eight images more, what a step has of each (x, and the prediction
    of both conditions, of each stream; what it starts from), and of TokenFlow an eighth of a keyframe's tokens."""
    model, peaks, methods = models("sd"), {}, [TokenFlow(every=8)] if name == "token-flow" else CASES[name]
    for n in (8, 12, 20):
        same = {"source": [WORDS[0]] * n, "target": [WORDS[1]] * n}
        x = torch.randn(n, 4, 16, 16)
        run = partial(denoise, model, same, methods=list(methods), guide=3.0, start=x, steps=1, group=4)
        peaks[n] = allocated(run).peak
    each = (peaks[20] - peaks[12]) / 8 / x[0].nbytes
    assert each < (12 if name == "token-flow" else 9)


def test_what_must_go_at_once_is_refused_before_the_first_step(models):
    model = models("sd")
    with pytest.raises(SfumatoError, match="7 images read each other"):
        paint(model, "nothing", methods=[SharedAttention("all")], group=3)
    with pytest.raises(SfumatoError, match="MasaCtrl takes all images of a run at once; leave the group out"):
        paint(model, "token-flow", methods=[MasaCtrl()], group=3)
    with pytest.raises(SfumatoError, match="a canvas and its views go through the network at once"):
        paint(model, "first", views=Tiles(), size=(model.multiple * 4, model.multiple * 8), group=3)
    with pytest.raises(SfumatoError, match="a group is of one image or more, got 0"):
        paint(model, "first", group=0)
    with pytest.raises(SfumatoError, match="frames of a clip go through the network at once"):
        denoise(models("animatediff"), ["", ""], frames=4, group=4)


def test_a_plan_is_of_those_that_go_at_once(models):
    """What taps take does not grow with what waits."""
    model = models("sd")

    def bytes_of(n: int, group: int | None, *methods: Method) -> int:
        streams = {"source": [WORDS[0]] * n, "target": [WORDS[1]] * n}
        return denoising.plan(model, streams, methods=methods, guide=3.0, size=model.multiple * 4, group=group).bytes

    for method in (SharedAttention("first+previous"), PromptToPrompt()):
        assert 0 < bytes_of(32, 4, method) == bytes_of(64, 4, method) < bytes_of(32, None, method) / 2
    flow = TokenFlow(every=16)  # of two more keyframes what their attention gave is kept
    assert bytes_of(32, 4, flow) < bytes_of(64, 4, flow) < 1.1 * bytes_of(32, 4, flow) < bytes_of(32, None, flow) / 2
