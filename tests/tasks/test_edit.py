"""Pictures edited by words: what stays is the picture's own, at its own size."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from alone import Alone
from families import FAMILIES, randomised
from PIL import Image

from sfumato.backbones.load import family
from sfumato.core.denoising import denoise
from sfumato.core.guidance import CFG
from sfumato.core.method import Method, Phases, Run
from sfumato.core.steppers import DDPM
from sfumato.errors import SfumatoError
from sfumato.inversion import DDIMInversion, Direct, invert
from sfumato.io.progress import Progress
from sfumato.media.images import fit, tensor
from sfumato.methods.edit import BlendedLatents, SDEdit
from sfumato.metrics.image import psnr
from sfumato.prompts.layout import Mask
from sfumato.tasks.edit import PictureEdit, edit_pictures, fit_all, invert_picture, run_edits

SOURCE, TARGET = "a red cube on grass", "a blue duck on grass"


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    pipe = FAMILIES["sd"]()
    randomised(*pipe.components.values())
    return family("sd", pipe)


def photos(model, n: int = 2):
    """Pictures of no size that the model works in, and what it sees of them."""
    dice = np.random.default_rng(0)
    shown = [Image.fromarray(dice.integers(0, 256, (45, 70, 3), np.uint8)) for _ in range(n)]
    return [fit(picture, 32, model.multiple) for picture in shown]


@dataclass(frozen=True, eq=False)
class Seen(Method):
    """Notes where each run begins."""

    first: list[torch.Tensor] = field(default_factory=list)

    def start(self, run: Run) -> Phases:
        return Phases(before=lambda step: self.first.append(step.x.clone()) if step.i == 0 else None)


def same(a, b) -> bool:
    return np.array_equal(np.asarray(a), np.asarray(b))


def test_the_same_words_leave_every_pixel(model):
    fitted = photos(model)
    path = invert(model, torch.stack([f.pixels for f in fitted]), SOURCE, DDIMInversion(steps=4))
    done = edit_pictures(model, fitted, path, {"source": SOURCE, "target": SOURCE}, guide=1.0)
    assert not done.changed.any() and all(same(p, f.original) for p, f in zip(done.pictures, fitted, strict=True))


def test_what_changes_is_painted_and_the_rest_is_the_pictures_own(model):
    fitted = photos(model)
    half = Mask(torch.arange(64).expand(32, 64) > 31)
    pixels = torch.stack([f.pixels for f in fitted])
    path = invert(model, pixels, SOURCE, BlendedLatents(half, steps=3))
    prompts = {"source": [SOURCE] * 2, "target": [TARGET] * 2}
    whole = denoise(model, prompts, start=path, seed=4)["target"]
    for streams in ({"source": SOURCE, "target": TARGET}, {"target": TARGET}):  # beside the source, and the path alone
        done = edit_pictures(model, fitted, path, streams, seed=4)
        cells = done.changed.shape[-1]
        assert done.changed[..., cells // 2 :].all() and not done.changed[..., : cells // 2].any()
        torch.testing.assert_close(done.painted, whole.images, atol=1e-4, rtol=1e-4)
        for picture, one in zip(done.pictures, fitted, strict=True):
            assert picture.size == one.original.size == (70, 45)
            new, old = tensor(picture), tensor(one.original)
            assert torch.equal(new[..., :20], old[..., :20]) and (new != old)[..., 50:].any()


def test_without_a_source_it_is_beside_the_pictures_themselves(model):
    fitted = photos(model, 1)
    path = replace(invert(model, fitted[0].pixels, SOURCE, SDEdit(0.5, steps=4)), stepper=DDPM())  # the seed matters
    done = edit_pictures(model, fitted, path, {"target": TARGET}, guide=3.0, seed=1)
    out = denoise(model, {"target": [TARGET]}, start=path, guide=3.0, seed=1)["target"]
    assert torch.equal(done.painted, out.images) and done.changed.all()


def test_an_edit_is_of_the_streams_that_its_start_follows(model):
    asked = PictureEdit(SOURCE, TARGET, DDIMInversion(steps=2))
    assert asked.prompts == {"source": SOURCE, "target": TARGET}
    assert PictureEdit(SOURCE, TARGET, SDEdit()).prompts == {"target": TARGET}
    assert set(replace(asked, looks="a duck").prompts) == {"source", "target", "appearance"}
    assert replace(asked, looks="a duck", guidance=7.0).guide(model) == CFG(1.0)
    assert replace(asked, guidance=3.0).guide(model) == CFG(asked.start.guide(model, 3.0))


def test_edits_side_by_side_are_each_as_alone_and_none_is_run_if_one_cannot_be(model):
    fitted = photos(model)
    edits = {
        "plain": PictureEdit(SOURCE, TARGET, DDIMInversion(steps=2), guidance=2.0),
        "noised": PictureEdit(SOURCE, TARGET, SDEdit(0.5, steps=4), guidance=3.0),
    }
    events: list[Progress] = []
    done = run_edits(model, fitted, edits, seed=1, preview_every=1, on_progress=events.append)
    assert [d.steps for d in done.values()] == [2, 2]
    for name, edit in edits.items():
        path = invert(model, torch.stack([f.pixels for f in fitted]), SOURCE, edit.start)
        alone = edit_pictures(model, fitted, path, edit.prompts, guide=edit.guide(model), seed=1)
        assert all(same(a, b) for a, b in zip(done[name].edited.pictures, alone.pictures, strict=True))
    assert {e.what for e in events} == {"inverting", "painting"}
    shown = [e.preview for e in events if e.preview is not None]
    assert len(shown) == 4 and shown[0].width > 2 * 32, "the edits alone, side by side"
    events.clear()
    alone = PictureEdit(SOURCE, TARGET, SDEdit(steps=2), [Alone()])
    with pytest.raises(SfumatoError, match="edits one image a run"):
        run_edits(model, fitted, {**edits, "p2p": alone}, on_progress=events.append)
    assert not events


def test_where_words_look_and_whose_looks_are_taken(model):
    fitted = photos(model, 1)
    edit = PictureEdit(SOURCE, TARGET, DDIMInversion(steps=2))
    plain = run_edits(model, fitted, {"": edit}, attention=True)[""]
    assert len(plain.attention) == 1
    events: list[Progress] = []
    seen = Seen()
    edits, looks = {"": replace(edit, looks="a duck", methods=[seen])}, torch.zeros(3, 32, 48)
    taken = run_edits(model, fitted, edits, appearance=looks, on_progress=events.append)[""]
    assert not taken.attention and taken.plan.run.rows.streams == ("source", "target", "appearance")
    assert [e.what for e in events if e.over] == ["inverting", "inverting", "painting"]
    source, target, appearance = seen.first[-1]
    assert torch.equal(source, target) and not torch.equal(source, appearance)


def test_pictures_of_a_set_are_seen_at_one_size(model):
    tall, wide = (Image.new("RGB", size) for size in ((40, 60), (60, 40)))
    assert list(fit_all({"a": tall, "b": tall}, model)) == ["a", "b"]
    with pytest.raises(SfumatoError, match=r"one size, here: a 16 x 24, b 24 x 16; crop them alike"):
        fit_all({"a": tall, "b": wide}, SimpleNamespace(size=16, multiple=8))


def test_a_picture_is_found_again_and_told_how_well(model):
    (one,) = photos(model, 1)
    done = invert_picture(model, one.pixels, SOURCE, Direct(steps=3), 2.0)
    assert done.guidance == 2.0 and torch.equal(done.found, done.best) and done.psnr == done.psnr_best
    assert done.psnr == float(psnr(done.found[None], one.pixels[None]))
