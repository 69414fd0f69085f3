"""Laws of every method that teaches a frozen model: it stays as it was, runs go on bit for bit, files hold it all."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from laws.personalising import METHODS, WAYS, asked
from learners import own_models  # noqa: F401

from sfumato.errors import SfumatoError
from sfumato.learning.concepts import Concept
from sfumato.learning.personal import Asked, teach

EACH = pytest.mark.parametrize(("word", "i", "way"), WAYS, ids=[f"{word}-{i}" for word, i, _ in WAYS])
FIRST = pytest.mark.parametrize(
    ("word", "name", "way"),
    [
        pytest.param(
            row.word, name, row.ways[0], id=f"{row.word}-{name}",
            marks=[] if j == i % len(row.families) else [pytest.mark.slow],
        )
        for i, row in enumerate(METHODS)
        for j, name in enumerate(row.families)
    ],
)  # fmt: skip
"""Every day on one, which rows take in turn; the other laws are held on the first."""


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(value, b[key]) for key, value in a.items())


def seen(concept, model, prompt):
    """What the network predicts under a prompt, of a model that knows the concept."""
    known = concept.on(model)
    x = torch.randn(1, 4, model.cells, model.cells, generator=torch.Generator().manual_seed(1))
    return known.predict(x, 500.0, known.embed([prompt]))


@EACH
def test_k_steps_and_k_more_are_2k_bit_for_bit(models, tmp_path, word, i, way):
    model, keep = models("sd"), tmp_path / "run.safetensors"

    def stop(run):
        if run.step == 1:
            raise KeyboardInterrupt

    whole = teach(way, asked(model), steps=2)
    with pytest.raises(KeyboardInterrupt):
        teach(way, asked(model), steps=2, keep=keep, on_progress=stop, every=1)
    for _ in range(2):  # the second time nothing is left to do
        again = teach(way, asked(model), steps=2, keep=keep)
        assert same(whole.rows, again.rows) and same(whole.changes, again.changes) and same(whole.mapper, again.mapper)
    with pytest.raises(SfumatoError, match="is of another run"):
        teach(way, asked(model, seed=1), steps=2, keep=keep)


@FIRST
def test_the_model_stays_as_it_was_and_its_file_holds_all_that_was_learned(models, tmp_path, word, name, way):
    model = models(name)
    networks = [part for part in model.pipe.components.values() if isinstance(part, torch.nn.Module)]
    before, text = [deepcopy(each.state_dict()) for each in networks], model.embed(["a <own> on grass"]).text
    concept = teach(way, asked(model), steps=2)
    assert all(same(each.state_dict(), state) for each, state in zip(networks, before, strict=True))
    assert all(p.grad is None for each in networks for p in each.parameters())
    assert torch.equal(model.embed(["a <own> on grass"]).text, text)
    concept.save(tmp_path / "own.safetensors")
    found = Concept.read(tmp_path / "own.safetensors")
    assert (
        found.about["kind"] == "cube"
        and found.about["steps"] == 2
        and found.about["method"].startswith(type(way).__name__)
    )
    prompt = "a <own> on grass"
    assert torch.equal(seen(found, model, prompt), seen(concept, model, prompt))
    assert (seen(concept, model, prompt) - seen(Concept("<own>"), model, prompt)).abs().max() > 1e-6
    if not concept.changes:
        assert torch.equal(seen(concept, model, "a duck"), seen(Concept("<own>"), model, "a duck"))


@pytest.mark.parametrize("row", METHODS, ids=[row.word for row in METHODS])
def test_what_it_cannot_learn_with_is_refused(models, row):
    lesson = asked(models("sd")).lesson
    if row.ways[0].teaches_words:
        with pytest.raises(
            SfumatoError, match="teaches a word, which Stable Diffusion 1, 2, XL and the built-in model"
        ):
            teach(row.ways[0], Asked(models("flux"), lesson, "<own>"))
    with pytest.raises(SfumatoError, match="a concept's word is such as '<duck>'"):
        teach(row.ways[0], Asked(models("sd"), lesson, "(!)"))
    with pytest.raises(SfumatoError, match="a run has one step or more, got 0"):
        teach(row.ways[0], asked(models("sd")), steps=0)
