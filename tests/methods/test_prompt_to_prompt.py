"""Laws of Prompt-to-Prompt, and its token alignment."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from rounding import assert_same_but_for_rounding

from sfumato.core.attention import Call
from sfumato.core.denoising import denoise, plan
from sfumato.core.method import Run, Step
from sfumato.core.rows import Rows
from sfumato.errors import SfumatoError
from sfumato.inversion import Direct, invert
from sfumato.methods.edit import LocalBlend, PromptToPrompt
from sfumato.prompts.alignment import align, refinement, replacement
from sfumato.prompts.words import spans

SOURCE, TARGET = "a red cube on grass", "a blue cube on grass"


@pytest.fixture
def model(stilllife):
    return stilllife


def run(model, method, target=TARGET, source=SOURCE, **options):
    out = denoise(model, {"source": source, "target": target}, methods=[method] if method else [], steps=4, **options)
    return out["source"].latents, out["target"].latents


CLOSE = {"atol": 1e-4, "rtol": 1e-4}


@pytest.mark.parametrize("target", [TARGET, "a blue shiny cube on grass", "a watercolour"])
def test_the_source_is_not_touched_and_the_target_is(model, target):
    plain, edited = run(model, None, target), run(model, PromptToPrompt(), target)
    torch.testing.assert_close(edited[0], plain[0], **CLOSE)
    assert (edited[1] - plain[1]).abs().max() > 1e-3
    assert (edited[1] - edited[0]).abs().max() > 1e-3


def test_the_same_prompt_is_no_edit(model):
    method = PromptToPrompt(blend=LocalBlend("cube", "cube"), reweight={"red": 1.0}, words={"red": 0.5})
    source, target = run(model, method, target=SOURCE)
    torch.testing.assert_close(target, source, **CLOSE)
    apart = {"target": SOURCE, "start": model.latents([1, 2], 128, 128)}  # and acts: from other noise it is one
    assert (run(model, method, **apart)[1] - run(model, None, **apart)[1]).abs().max() > 1e-3


def test_weight_one_is_no_reweighting_and_two_is(model):
    plain = run(model, PromptToPrompt())[1]
    torch.testing.assert_close(run(model, PromptToPrompt(reweight={"blue": 1.0}))[1], plain, **CLOSE)
    assert (run(model, PromptToPrompt(reweight={"blue": 4.0}))[1] - plain).abs().max() > 1e-3


def test_where_the_blend_is_zero_the_target_is_the_source(model):
    start = invert(model, torch.rand(3, 128, 128, generator=torch.Generator().manual_seed(0)), SOURCE, Direct(steps=4))
    nowhere = PromptToPrompt(blend=LocalBlend("cube", "cube", threshold=1.0, start=0.0, res=8))
    source, target = run(model, nowhere, start=start)
    assert torch.equal(target, source) and torch.equal(source, start.image)
    everywhere = PromptToPrompt(blend=LocalBlend("cube", "cube", threshold=0.0, start=0.0, res=8))
    torch.testing.assert_close(run(model, everywhere, start=start)[1], run(model, PromptToPrompt(), start=start)[1])


def test_steps_of_single_words(model):
    late = PromptToPrompt(cross=0.0, self=0.0, words={"cube": 1.0})
    assert (run(model, late)[1] - run(model, None)[1]).abs().max() > 1e-4
    words = dict.fromkeys(TARGET.split(), 0.0)
    # every word on its own: only the start token and the padding still follow the source
    free = PromptToPrompt(cross=0.5, self=0.0, words=words)
    assert (run(model, free)[1] - run(model, PromptToPrompt(cross=0.5, self=0.0))[1]).abs().max() > 1e-4


def test_several_targets_at_once(model):
    prompts = {"source": SOURCE, "a": TARGET, "b": "a green cube on grass"}
    out = denoise(model, prompts, methods=[PromptToPrompt()], steps=4)
    torch.testing.assert_close(out["a"].latents, run(model, PromptToPrompt())[1], **CLOSE)


def test_what_it_cannot_do_is_said(model):
    def refused(match, method, prompts):
        with pytest.raises(SfumatoError, match=match):
            denoise(model, prompts, methods=[method], steps=2)

    refused("needs two prompts", PromptToPrompt(), SOURCE)
    refused(
        "has no 'duck'; its words are: a, blue, cube", PromptToPrompt(reweight={"duck": 2}), {"a": SOURCE, "b": TARGET}
    )
    refused("resolution 5", PromptToPrompt(blend=LocalBlend("cube", "cube", res=5)), {"a": SOURCE, "b": TARGET})


PAIRS = [
    ("a red cube on grass", "a blue cube on grass"),
    ("a red cube on grass", "a teapotty cube on grass"),  # a word that becomes several tokens
    ("a red cube on grass", "a shiny red cube and a duck on grass"),
    ("a red cube and a red duck", "a red cube and a blue red duck"),
]
ROWS = Rows(("source", "target"), ("uncond", "cond"))


def running(model, source: str, target: str) -> Run:
    return Run(model, {"source": (source,), "target": (target,)}, ROWS, 10, (16, 16))


def tokens_of(model, prompt: str) -> list[list[int]]:
    """For each word its tokens, counted from the text itself."""
    out, at = [], 1
    for word in prompt.split():
        n = len(model.tokenizer(word, add_special_tokens=False).input_ids)
        out.append(list(range(at, at + n)))
        at += n
    return out


@pytest.mark.parametrize(("source", "target"), PAIRS)
@pytest.mark.parametrize("step", [0, 3, 7, 9])
def test_random_maps_become_what_the_published_formulas_say(model, source, target, step):
    """Replacement M~ = M @ mapper, refinement with a mask of new words, equalizer c, and a schedule a word."""
    site = next(s for s in model.sites if "image->text" in s.pairs and s.scale == 1)
    q, k, v = torch.randn(3, 4, site.heads, 256, 8, generator=torch.Generator().manual_seed(step)).unbind()
    k, v = k[..., :77, :], v[..., :77, :]
    call = Call(site, ROWS, (16, 16), step, {"q": q, "k": k, "v": v}, attn_mask=None)
    weighed = target.split()[-1]
    method = PromptToPrompt(cross=0.8, reweight={weighed: 2.5}, words={weighed: 0.3})
    cross = method.start(running(model, source, target)).edits[0]
    cross.do(call)

    maps = (q @ k.transpose(-1, -2) / 8**0.5).softmax(-1)
    base, own = maps[2], maps[3]  # conditional halves, heads x pixels x words
    a, b = tokens_of(model, source), tokens_of(model, target)
    if len(a) == len(b):
        mapper = torch.zeros(77, 77)
        i = j = 0
        for x, y in zip([[0], *a], [[0], *b], strict=True):
            mapper[x[0] : x[-1] + 1, y[0] : y[-1] + 1] = torch.eye(len(x)) if len(x) == len(y) else 1 / len(y)
            i, j = x[-1] + 1, y[-1] + 1
        for n in range(77 - max(i, j)):
            mapper[i + n, j + n] = 1
        new = torch.einsum("hpw,wn->hpn", base, mapper)
    else:
        index, alphas = list(range(77)), torch.ones(77)
        pairs = dict((j, i) for i, j in align(source.split(), target.split()))
        ends = a[-1][-1] + 1, b[-1][-1] + 1
        for j, span in enumerate(b):
            for n, t in enumerate(span):
                index[t] = a[pairs[j]][n] if j in pairs else 0
                alphas[t] = float(j in pairs)
        index[ends[1]] = ends[0]  # the end tokens are aligned as the words are; what is behind stays where it is
        new = base[..., index] * alphas + own * (1 - alphas)
    equalizer, until = torch.ones(77), torch.full((77,), 8)
    for word, span in zip(target.split(), b, strict=True):
        if word == weighed:
            equalizer[span], until[span] = 2.5, 3
    alpha = (step < until).float()
    wanted = alpha * new * equalizer + (1 - alpha) * own
    torch.testing.assert_close(call.probs(("target", "cond"))[0], wanted, atol=1e-6, rtol=1e-5)
    for name in ROWS.names[:3]:
        torch.testing.assert_close(call.probs(name)[0], maps[ROWS[name]][0], atol=1e-6, rtol=1e-5)


def test_random_maps_blend_as_the_published_formula_says(model):
    source, target = PAIRS[2]
    blend = LocalBlend("cube", "red cube", threshold=0.9, start=0.2, res=8)
    phases = PromptToPrompt(blend=blend).start(run := running(model, source, target))
    (need,) = phases.needs
    sites = [s for s in model.sites if "image->text" in s.pairs][:2]
    generator = torch.Generator().manual_seed(0)
    level, total = model.schedule.at(500), torch.zeros(2, 1, 1, 8, 8)
    a, b = tokens_of(model, source), tokens_of(model, target)
    chosen = torch.zeros(2, 77)
    chosen[0, a[2]], chosen[1, b[2] + b[3]] = 1, 1
    changed = []
    for i in range(10):
        x = torch.randn(2, 4, 16, 16, generator=generator)
        step = Step(i, level, level, x, run, model.embed([SOURCE]), x_next=x)
        maps = torch.rand(2, len(sites), 64, 77, generator=generator) ** 4
        site = replace(sites[0], scale=2)
        step.maps[need] = {
            replace(site, index=n): {("source", "cond"): maps[:1, n], ("target", "cond"): maps[1:, n]} for n in range(2)
        }
        phases.after(step)
        stored = maps.view(2, len(sites), 1, 8, 8, 77)  # prompts x layers x 1 x h x w x words
        total = total + (stored * chosen.view(2, 1, 1, 1, 1, 77)).sum(-1).mean(1, keepdim=True)
        wanted = x
        if i + 1 > int(0.2 * 10):  # their counter is one when the first step is done
            mask = F.interpolate(F.max_pool2d(total[:, 0], (3, 3), (1, 1), padding=(1, 1)), size=(16, 16))
            mask = mask / mask.max(2, keepdim=True)[0].max(3, keepdim=True)[0]
            mask = mask.gt(0.9)
            mask = (mask[:1] + mask).float()
            wanted = x[:1] + mask * (x - x[:1])
            changed += [i] if (wanted - x).abs().max() > 1e-3 else []
        torch.testing.assert_close(step.x_next, wanted)
    assert changed[0] == 2 and len(changed) > 3


def words(*sizes: tuple[str, int]):
    out, at = [], 1
    for word, n in sizes:
        out.append((word, slice(at, at + n)))
        at += n
    return out


def test_a_swapped_word_of_more_tokens_shares_the_sources_map():
    a, b = words(("a", 1), ("cat", 1), ("sits", 1)), words(("a", 1), ("kitten", 2), ("sits", 1))
    matrix = replacement(a, b, 8)
    probs = torch.tensor([0.1, 0.2, 0.3, 0.15, 0.05, 0.1, 0.06, 0.04])
    torch.testing.assert_close(probs @ matrix, torch.tensor([0.1, 0.2, 0.15, 0.15, 0.15, 0.05, 0.1, 0.06]))
    back = torch.tensor([0.1, 0.2, 0.1, 0.2, 0.15, 0.05, 0.1, 0.1]) @ replacement(b, a, 8)
    torch.testing.assert_close(back[:6], torch.tensor([0.1, 0.2, 0.3, 0.15, 0.05, 0.1]))
    assert torch.equal(replacement(a, a, 8), torch.eye(8))
    with pytest.raises(SfumatoError, match="equally many words, got 3 and 2"):
        replacement(a, b[:2], 8)


def test_self_attention_takes_the_sources_queries_and_keys_and_its_own_values(model):
    method = PromptToPrompt(cross=0.0, self=0.5)
    edit = method.start(running(model, SOURCE, TARGET)).edits[1]
    site = next(s for s in model.sites if s.pairs == ("image->image",))
    values = dict(
        zip("qkv", torch.randn(3, 4, site.heads, 16, 8, generator=torch.Generator().manual_seed(0)), strict=True)
    )
    call = Call(site, ROWS, (4, 4), 0, {name: x.clone() for name, x in values.items()}, attn_mask=None)
    edit.do(call)
    source, target = ROWS["source", "cond"], ROWS["target", "cond"]
    for name, x in values.items():
        wanted = x.clone()
        if name in "qk":
            wanted[target] = x[source]
        torch.testing.assert_close(torch.cat([call.get(name, row, "image") for row in ROWS.names]), wanted)


def test_self_attention_is_the_sources_in_its_part_of_the_steps_up_to_its_grid(model):
    prompts, grids = {"source": SOURCE, "target": TARGET}, {s.grid((64, 64)) for s in model.sites}
    assert grids == {(64, 64), (32, 32)}
    for part, res in ((0.5, 0.5), (0.25, 1.0)):
        method = PromptToPrompt(cross=0.0, self=part, self_res=res)
        planned = plan(model, prompts, methods=[method], steps=8, size=512)
        (entry,) = (e for e in planned.entries if e.pair == "image->image")
        assert entry.steps == (0, int(8 * part)) and entry.rows == (("source", "cond"), ("target", "cond"))
        assert {s.grid((64, 64)) for s in entry.sites} == {g for g in grids if g[0] <= 64 * res}
    still = run(model, PromptToPrompt(cross=0.0, self=0.0))[1]
    torch.testing.assert_close(still, run(model, None)[1], **CLOSE)
    assert (run(model, PromptToPrompt(cross=0.0, self=1.0, self_res=1.0))[1] - still).abs().max() > 1e-4


def test_padding_stands_for_its_position_or_as_far_behind_the_end():
    a, b = words(("a", 1), ("cube", 1)), words(("a", 1), ("red", 1), ("cube", 1))
    source = torch.arange(8.0)
    assert (source @ refinement(a, b, 8)[0]).tolist() == [0, 1, 0, 2, 3, 5, 6, 7]
    assert (source @ refinement(a, b, 8, "end")[0]).tolist() == [0, 1, 0, 2, 3, 4, 5, 6]
    assert (source @ refinement(b, a, 8)[0]).tolist() == [0, 1, 3, 4, 4, 5, 6, 7]
    assert (source @ refinement(b, a, 8, "end")[0]).tolist() == [0, 1, 3, 4, 5, 6, 7, 7]


def test_added_words_keep_their_own_maps():
    a = words(("a", 1), ("cube", 1), ("on", 1), ("grass", 1))
    b = words(("a", 1), ("shiny", 2), ("cube", 1), ("on", 1), ("green", 1), ("grass", 1))
    matrix, known = refinement(a, b, 12)
    assert known.tolist() == [True, True, False, False, True, True, False, True, True, True, True, True]
    source = torch.arange(12.0)
    assert (source @ matrix)[known].tolist() == [0, 1, 2, 3, 4, 5, 9, 10, 11]
    matrix, known = refinement(b, a, 12)  # words taken away
    assert known.all() and (source @ matrix).tolist()[:6] == [0, 1, 4, 5, 7, 8]


def test_repeated_words_are_aligned_in_order():
    a, b = ["a", "cube", "and", "a", "ball"], ["a", "cube", "and", "a", "big", "red", "ball"]
    assert align(a, b) == [(0, 0), (1, 1), (2, 2), (3, 3), (4, 6)]
    assert align(["x", "y"], ["y", "x"]) in ([(0, 1)], [(1, 0)])
    two = words(("red", 1), ("cube", 1), ("and", 1), ("red", 2))
    assert spans(two, "red") == [1, 4, 5] and spans(two, "Red cube") == [1, 2]


def test_words_are_found_in_the_tokens(model):
    found = model.words("a red teapotty cube, on grass")
    assert [w for w, _ in found] == ["a", "red", "teapotty", "cube,", "on", "grass"]
    assert found[1][1] == slice(2, 3) and found[2][1].stop - found[2][1].start > 1
    ids = model.tokenizer("a red teapotty cube, on grass").input_ids
    assert found[-1][1] == slice(len(ids) - 2, len(ids) - 1)
    assert spans(found, "cube") == list(range(found[3][1].start, found[3][1].stop))


@pytest.mark.parametrize(
    "how",
    [
        PromptToPrompt(1.0, 0.5, words={"cube": 0.5}, reweight={"cube": 2.0}),
        PromptToPrompt(1.0, 0.0, blend=LocalBlend("cube", "cube", threshold=0.6, start=0.0, res=1.0)),
    ],
    ids=["weights", "blend"],
)
def test_each_image_of_a_batch_has_its_own_words(model, how):
    """Words swapped in one pair, added in the other."""
    pairs = [("a red cube on grass", "a blue cube on grass"), ("a duck and a cube", "a blue duck and the red cube")]

    def run(some, seed):
        prompts = {"source": [a for a, _ in some], "target": [b for _, b in some]}
        out = denoise(model, prompts, methods=[how], steps=3, seed=seed, guide=3.0)
        return torch.cat([out["source"].latents, out["target"].latents], 1)

    both = run(pairs, [3, 4])
    for i, pair in enumerate(pairs):
        assert_same_but_for_rounding(both[i : i + 1], run([pair], [3 + i]))
