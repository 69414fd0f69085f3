"""Laws of Prompt-to-Prompt, and its token alignment."""

from __future__ import annotations

import pytest
import torch

from sfumato.backbones.load import load
from sfumato.denoising import denoise
from sfumato.errors import SfumatoError
from sfumato.inversion import Direct, invert
from sfumato.methods.edit import LocalBlend, PromptToPrompt
from sfumato.methods.edit.alignment import align, refinement, replacement, spans

SOURCE, TARGET = "a red cube on grass", "a blue cube on grass"


@pytest.fixture
def model(here):
    return load("stilllife", device="cpu")


def run(model, method, target=TARGET, source=SOURCE, **options):
    out = denoise(model, {"source": source, "target": target}, methods=[method] if method else [], steps=4, **options)
    return out["source"].latents, out["target"].latents


CLOSE = {"atol": 1e-4, "rtol": 1e-4}


def test_switched_off_it_is_plain_sampling(model):
    plain = run(model, None)
    off = run(model, PromptToPrompt(cross=0.0, self=0.0))
    assert torch.equal(off[0], plain[0]) and torch.equal(off[1], plain[1])


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


def test_weight_one_is_no_reweighting_and_two_is(model):
    plain = run(model, PromptToPrompt())[1]
    torch.testing.assert_close(run(model, PromptToPrompt(reweight={"blue": 1.0}))[1], plain, **CLOSE)
    assert (run(model, PromptToPrompt(reweight={"blue": 4.0}))[1] - plain).abs().max() > 1e-3


def test_where_the_blend_is_zero_the_target_is_the_source(model):
    start = invert(model, torch.rand(3, 128, 128, generator=torch.Generator().manual_seed(0)), SOURCE, Direct(steps=4))
    nowhere = PromptToPrompt(blend=LocalBlend("cube", "cube", threshold=1.0, start=0.0, res=8))
    source, target = run(model, nowhere, start=start)
    assert torch.equal(target, source) and torch.equal(source, start.image)
    everywhere = PromptToPrompt(blend=LocalBlend("cube", "cube", threshold=-1.0, start=0.0, res=8))
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
    refused("edits one image a run", PromptToPrompt(), {"a": [SOURCE, SOURCE], "b": [TARGET, TARGET]})
    refused(
        "has no 'duck'; its words are: a, blue, cube", PromptToPrompt(reweight={"duck": 2}), {"a": SOURCE, "b": TARGET}
    )
    refused("resolution 5", PromptToPrompt(blend=LocalBlend("cube", "cube", res=5)), {"a": SOURCE, "b": TARGET})


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


def test_added_words_keep_their_own_maps():
    a = words(("a", 1), ("cube", 1), ("on", 1), ("grass", 1))
    b = words(("a", 1), ("shiny", 2), ("cube", 1), ("on", 1), ("green", 1), ("grass", 1))
    matrix, known = refinement(a, b, 12)
    assert known.tolist() == [True, True, False, False, True, True, False, True, True, True, True, True]
    source = torch.arange(12.0)
    assert (source @ matrix)[known].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8]
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
