"""TokenFlow against its equations written down, and what frames, keyframes and streams are to each other."""

from __future__ import annotations

import pytest
import torch
from rounding import assert_same_but_for_rounding

from sfumato.core.attention import Call
from sfumato.core.denoising import denoise
from sfumato.core.features import Activation
from sfumato.core.method import Run, Step
from sfumato.core.rows import Rows
from sfumato.errors import SfumatoError
from sfumato.methods.edit import PlugAndPlay
from sfumato.methods.sets import SharedAttention, TokenFlow
from sfumato.methods.sets.token_flow import around, keyframes, nearest
from sfumato.ops import memory

FRAMES = 5
ROWS = Rows(("source", "target"), ("uncond", "cond"), FRAMES)
SOURCE, TARGET = "a red cube on grass", "a blue cube on grass"


def paint(model, *methods, frames=FRAMES, seed=None, **options):
    prompts = {"source": [SOURCE] * frames, "target": [TARGET] * frames}
    settings = {"steps": 2, "size": model.multiple * 4, "guide": 3.0, "seed": seed or list(range(frames))}
    out = denoise(model, prompts, methods=list(methods), **settings | options)
    return out["source"].latents, out["target"].latents


def test_one_frame_of_each_stretch_is_drawn_anew_in_each_step():
    drawn = [keyframes(21, 8, 0, i) for i in range(200)]
    assert all(0 <= a < 8 <= b < 16 <= c < 21 for a, b, c in drawn)
    assert {a for a, *_ in drawn} == set(range(8)) and {c for *_, c in drawn} == set(range(16, 21))
    assert drawn == [keyframes(21, 8, 0, i) for i in range(200)] != [keyframes(21, 8, 1, i) for i in range(200)]


def test_frames_lie_between_keyframes_and_weigh_the_nearer_more():
    keys = (2, 6, 7)
    assert [around(f, keys)[:2] for f in range(9)] == [
        (0, 0), (0, 0), (0, 0), (0, 1), (0, 1), (0, 1), (1, 1), (2, 2), (2, 2),
    ]  # fmt: skip
    assert [around(f, keys)[2] for f in range(2, 7)] == [1.0, 0.75, 0.5, 0.25, 1.0]


@pytest.mark.parametrize("family", ["sd", "sd3", "flux"])
@pytest.mark.parametrize("small", [False, True], ids=["", "in-parts"])
def test_tokens_get_what_the_nearest_of_both_keyframes_got(models, monkeypatch, family, small):
    """Equations 3 to 6 of the paper, frame by frame, token by token, in float64."""
    model, n = models(family), 16
    monkeypatch.setattr(memory, "BUDGET", 40 if small else memory.BUDGET)
    site = [s for s in model.sites if "image->image" in s.pairs][-1]
    layer = next(x for x in model.layers if x.kind == "tokens" and x.path == site.path)
    g, text = torch.Generator().manual_seed(1), 3 * (len(site.query) - 1)
    q, k, v = torch.randn(3, len(ROWS), site.heads, n + text, 8, generator=g).unbind()
    tokens = torch.randn(len(ROWS), n, 6, generator=g)
    run = Run(model, {"source": (SOURCE,) * FRAMES, "target": (TARGET,) * FRAMES}, ROWS, 4, (4, 4))
    phases = TokenFlow(every=3, seed=4).start(run)
    level = model.schedule.at(500)
    step = Step(1, level, level, torch.zeros(2 * FRAMES, 4, 4, 4), run, None)
    phases.before(step)
    (need,) = phases.needs
    seen = Activation(layer, ROWS, (4, 4), 1, tokens)
    step.maps[need] = {layer: {("source", "cond"): need.reduce(seen, ("source", "cond"))}}
    call = Call(site, ROWS, (4, 4), 1, {"q": q, "k": k, "v": v}, attn_mask=None)
    for edit in phases.edits:
        edit.do(call)
    out = call.output()

    keys = keyframes(FRAMES, 3, 4, 1)
    assert keys == (1, 4)  # a frame before both, two between, nearer to one of them each
    q, k, v, source = q.double(), k.double(), v.double(), tokens[ROWS["source", "cond"]].double()
    image = range(text, text + n) if site.query[0] == "text" else range(n)
    words = [j for j in range(n + text) if j not in image]
    image = list(image)
    for condition in ("uncond", "cond"):
        at = ROWS["target", condition].start

        def attended(f, at=at):
            """Queries of a frame to the keyframes' images and its own words."""
            own = at + f
            keyed, valued = (torch.cat([x[at + key][:, image] for key in keys] + [x[own][:, words]], 1) for x in (k, v))
            return (q[own] @ keyed.transpose(-1, -2) / 8**0.5).softmax(-1) @ valued

        for f in range(FRAMES):
            got = attended(f)
            before = [key for key in keys if key <= f][-1:] or [key for key in keys if key >= f][:1]
            after = [key for key in keys if key >= f][:1] or before
            if f not in keys:
                (a,), (b,) = before, after
                d = 0.0 if a == b else (f - a) / (b - a)
                for cell in range(n):
                    parts = []
                    for key in (a, b):
                        likeness = torch.cosine_similarity(source[f, cell][None], source[key], dim=-1)
                        parts.append(attended(key)[:, image[int(likeness.argmax())]])
                    got[:, image[cell]] = (1 - d) * parts[0] + d * parts[1]
            assert_same_but_for_rounding(out[at + f], got.float())
    for stream in ("uncond", "cond"):  # the source attends to itself
        at = ROWS["source", stream]
        plain = (q[at] @ k[at].transpose(-1, -2) / 8**0.5).softmax(-1) @ v[at]
        assert_same_but_for_rounding(out[at], plain.float())


def test_with_nothing_but_keyframes_it_is_shared_attention_of_the_edit(models):
    for family in ("sd", "sd3"):
        model = models(family)
        flow, shared = paint(model, TokenFlow(every=1)), paint(model, SharedAttention("all"))
        plain = paint(model)
        assert_same_but_for_rounding(flow[1], shared[1])
        assert_same_but_for_rounding(flow[0], plain[0])
        assert (flow[1] - plain[1]).abs().max() > 1e-3


def test_alike_frames_are_edited_alike(sd):
    """A video that stands still: every frame is what the keyframe is, whichever it was; with Plug-and-Play as well."""
    for methods in ((TokenFlow(every=3),), (TokenFlow(every=3), PlugAndPlay(1.0, 1.0))):
        edit = paint(sd, *methods, seed=[4] * FRAMES)[1]
        assert_same_but_for_rounding(edit, edit[:1].expand_as(edit))
        one = paint(sd, *methods[1:], frames=1, seed=[4])[1]
        assert_same_but_for_rounding(edit[:1], one)


def test_one_frame_is_plain_and_off_is_off(sd):
    assert torch.equal(paint(sd, TokenFlow(), frames=1)[1], paint(sd, frames=1)[1])
    assert torch.equal(paint(sd, TokenFlow(until=0.0))[1], paint(sd)[1])
    half, whole = paint(sd, TokenFlow(until=0.5, every=2)), paint(sd, TokenFlow(every=2))
    assert (half[1] - whole[1]).abs().max() > 1e-4
    assert (paint(sd, TokenFlow(every=2, seed=5))[1] - whole[1]).abs().max() > 1e-4


def test_nearest_tokens_of_the_frame_itself_are_themselves(sd):
    layer = next(x for x in sd.layers if x.kind == "tokens")
    rows = Rows(("source",), ("cond",), 3)
    seen = Activation(layer, rows, (4, 4), 0, torch.randn(3, 16, 6, generator=torch.Generator().manual_seed(0)))
    found = nearest(seen, ("source", "cond"), (0, 2))
    assert found[0].tolist() == found[2].tolist() == [list(range(16))] * 2
    assert found[1, 0].tolist() != list(range(16))


def test_what_it_cannot_do_is_said(sd):
    with pytest.raises(SfumatoError, match="needs two prompts"):
        denoise(sd, [SOURCE] * 2, methods=[TokenFlow()], steps=2, size=64)
