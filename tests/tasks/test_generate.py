"""Images of a prompt as one call: an image a seed, together where the methods and the memory allow it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from alone import Alone

from sfumato.backbones.load import load
from sfumato.core import denoising
from sfumato.errors import SfumatoError
from sfumato.io.progress import Progress, Stopped
from sfumato.tasks import generate as task
from sfumato.tasks.generate import generate

PROMPT = "a red cube on grass"


@pytest.fixture
def model(here):
    return load("stilllife", device="cpu")


@pytest.fixture
def runs(monkeypatch):
    """How many images each run had."""
    sizes, denoise = [], denoising.denoise

    def noted(model, prompts, **options):
        sizes.append(len(prompts))
        return denoise(model, prompts, **options)

    monkeypatch.setattr(denoising, "denoise", noted)
    return sizes


def test_as_many_go_together_as_the_methods_and_the_memory_allow(model, runs, monkeypatch):
    monkeypatch.setattr(task, "BATCH", 2)
    options: dict[str, Any] = {"steps": 1, "size": 64}
    assert len(generate(model, PROMPT, range(3), **options).pictures) == 3
    generate(model, PROMPT, range(3), methods=[Alone()], **options)
    attention: dict[str, Any] = {"attention": True, **options}
    whole = generate(model, PROMPT, range(2), **attention)
    assert len(whole.attention) == 2
    needed = whole.plan.bytes
    assert generate(model, PROMPT, range(2), memory=needed - 1, **attention).plan.bytes < needed
    assert runs == [2, 1, 1, 1, 1, 2, 1, 1]
    with pytest.raises(SfumatoError, match="more than the"):
        generate(model, PROMPT, range(2), memory=1, **attention)


def test_an_image_is_of_its_seed_and_is_what_a_single_run_paints(model):
    three, one = generate(model, PROMPT, [4, 5, 6], steps=2, size=64), generate(model, PROMPT, [5], steps=2, size=64)
    a, b = (np.asarray(p.pictures[i], int) for p, i in ((three, 1), (one, 0)))
    assert abs(a - b).max() <= 1
    assert three.plan.table() == denoising.plan(model, [PROMPT] * 3, steps=2, size=64).table()


def test_it_is_heard_with_previews_and_ended(model, runs):
    events: list[Progress] = []
    generate(model, PROMPT, [0, 1], steps=4, size=64, preview_every=2, on_progress=events.append)
    assert [(e.what, e.done) for e in events if e.preview is not None] == [("painting", 1), ("painting", 3)]
    assert [(e.done, e.over) for e in events if e.depth == 0] == [(0, False), (2, False), (2, True)]

    def stop(event: Progress) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        generate(model, PROMPT, [0], steps=4, size=64, on_progress=stop)
    assert runs == [2]
