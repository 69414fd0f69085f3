"""What tests of learned concepts share: pictures to learn from, a run that is cut off, and how a concept paints."""

from __future__ import annotations

from contextlib import suppress
from copy import copy

import families
import pytest
import torch

from sfumato.learning.concepts import Concept
from sfumato.learning.lessons import Lesson
from sfumato.learning.personal import Asked, teach


@pytest.fixture(scope="module", name="models")
def own_models(tmp_path_factory, device, dtype):
    """Name -> the family's tiny model, of a file's tests alone: copies keep what others have left in networks."""
    return families.made(tmp_path_factory.mktemp("families"), device, dtype)


def asked(model, pictures=3, cameras=None, seed=0, mirrored=False):
    """Random pictures of a duck."""
    images = torch.rand(pictures, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    return Asked(model, Lesson.of(model, images, mirrored=mirrored), "<duck>", "red cube", seed=seed, cameras=cameras)


def afresh(model):
    """The model without the texts that it remembers, which may have been read beside others, to rounding the same."""
    other = copy(model)
    other._of = ([], None)
    return other


def tensors(concept):
    return {**concept.rows, **concept.mapper, **concept.changes}


def goes_on(method, asked, place, steps=2):
    """Is a run that is cut off in the middle and goes on what it is in one piece, bit for bit?"""

    def cut(run):
        if run.step == steps:
            raise KeyboardInterrupt

    whole = teach(method, asked, steps=2 * steps, keep=place / "whole")
    with suppress(KeyboardInterrupt):
        teach(method, asked, steps=2 * steps, keep=place / "cut", on_progress=cut)
    found = teach(method, asked, steps=2 * steps, keep=place / "cut")
    half = teach(method, asked, steps=steps)
    same = [torch.equal(value, tensors(found)[key]) for key, value in tensors(whole).items()]
    moved = [not torch.equal(value, tensors(half)[key]) for key, value in tensors(whole).items()]
    return all(same) and any(moved)


def kept(concept, place):
    """As it is read from its file."""
    concept.save(place / "concept.safetensors")
    return Concept.load(place / "concept.safetensors")


def texts(model, prompt, t=400.0):
    """What each layer reads of a prompt at a time."""
    cond = model.embed([prompt])
    return cond.layered(cond, torch.tensor([t]))


def painted(concept, model, prompt="a <duck> on grass", **options):
    return families.painted(concept.on(model), prompt, **options)
