"""Laws of eye-for-an-eye on every family, and its matching against the published loop."""

from __future__ import annotations

from dataclasses import replace

import families
import pytest
import torch
import torch.nn.functional as F

from sfumato.core.denoising import denoise
from sfumato.errors import SfumatoError
from sfumato.inversion import EditFriendly
from sfumato.methods.edit.appearance import transfer
from sfumato.methods.edit.eye_for_an_eye import EyeForAnEye, arranged
from sfumato.prompts.layout import Mask

SOURCE, OTHER = "a red cube on grass", "a blue duck on grass"
ALL = EyeForAnEye(tokens=(0.0, 1.0), adain=(0.5, 1.0), every=0, word="cube", appearance_word="duck")
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


@pytest.fixture(params=families.SOME)
def model(request, models):
    return models(request.param)


def picture(model, n, seed):
    side = model.multiple * 4
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


def run(model, method, n=1, other=2, said=OTHER, steps=3):
    how = EditFriendly(scale=1.0, skip=0.0, steps=steps)
    start, prompts = transfer(model, picture(model, n, 1), picture(model, n, other), ([SOURCE] * n, [said] * n), how)
    out = denoise(model, prompts, start=start, guide=1.0, methods=[method] if method else [])
    return {name: painted.latents for name, painted in out.items()}, start


def test_a_words_maps_are_read_without_changing_anything(model):
    plain, off = run(model, None)[0], run(model, replace(ALL, tokens=(1.0, 1.0), adain=(1.0, 1.0)))[0]
    for name in plain:
        torch.testing.assert_close(off[name], plain[name], atol=1e-5, rtol=1e-5)


def test_steps_that_take_the_structures_tokens_are_no_edit(model):
    out, path = run(model, replace(ALL, every=1, early=1.0, adain=(1.0, 1.0)))
    torch.testing.assert_close(out["target"], path.image[:1], **CLOSE)


@pytest.mark.parametrize("masked", [True, False])
def test_matching_is_the_published_loop(masked):
    """One vector at a time: masked vectors are zero, those that are zero stay, the others take their best match's."""
    generator = torch.Generator().manual_seed(0)
    out, style = torch.randn(2, 2, 30, 7, generator=generator).unbind()
    inside, of = (torch.rand(2, 2, 1, 5, 6, generator=generator) > 0.5).unbind()
    wanted = out.clone()
    for b in range(2):
        ours, theirs = out[b], style[b]
        if masked:
            ours, theirs = ours * inside[b].view(-1, 1), theirs * of[b].view(-1, 1)
        for i in range(30):
            if ours[i].any():
                cosine = F.normalize(theirs, dim=-1) @ F.normalize(ours[i], dim=0)
                wanted[b, i] = style[b, cosine.argmax()]
    assert torch.equal(arranged(out, style, *((inside, of) if masked else ())), wanted)


def test_outside_of_the_appearances_mask_nothing_is_taken():
    """Also where all that lies in it is unlike."""
    tokens, others = torch.ones(1, 1, 3), torch.tensor([[[1.0, 1.0, 1.0], [-1.0, -1.0, 0.0]]])
    of = torch.tensor([[[[False, True]]]])
    assert torch.equal(arranged(tokens, others, None, of), others[:, 1:])


def test_masks_are_taken_as_given(sd):
    pixels = torch.ones(8, 8, dtype=torch.bool)
    everywhere = replace(ALL, word=None, appearance_word=None, mask=Mask(pixels), appearance_mask=Mask(pixels))
    free = replace(everywhere, mask=None, appearance_mask=None)
    assert torch.equal(run(sd, everywhere)[0]["target"], run(sd, free)[0]["target"])
    pixels[:, 4:] = False
    half = replace(everywhere, mask=Mask(pixels))
    assert (run(sd, half)[0]["target"] - run(sd, free)[0]["target"]).abs().max() > 1e-4


def test_what_it_cannot_do_is_said(sd):
    def refused(match, method, prompts):
        with pytest.raises(SfumatoError, match=match):
            denoise(sd, prompts, methods=[method], steps=2, size=64)

    refused("needs three prompts", ALL, {"source": SOURCE, "target": SOURCE})
    three = {"source": SOURCE, "target": SOURCE, "appearance": OTHER}
    refused("has no 'ball'; its words are: a, red, cube", replace(ALL, word="ball"), three)
