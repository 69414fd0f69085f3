"""Vectors at azimuths: each picture teaches those near it, and a view is an ordinary word."""

from __future__ import annotations

import learners
import pytest
import torch

from sfumato.errors import SfumatoError
from sfumato.learning.mappers import around
from sfumato.learning.personal import teach
from sfumato.methods.personalise.azimuth_inversion import AzimuthInversion
from sfumato.methods.personalise.textual_inversion import TextualInversion

QUICK = AzimuthInversion(batch=2, vectors=2, templates=("a {}",))
VIEWS = torch.tensor([[0.0, 20.0], [60.0, 20.0], [130.0, 50.0]])


def test_it_begins_as_textual_inversion_and_a_picture_teaches_what_is_near_it(models):
    asked = learners.asked(models("sd"), cameras=VIEWS)
    problem = QUICK.problem(asked)
    plain = TextualInversion(batch=2, vectors=2, templates=QUICK.templates).problem(asked)
    loss, other = problem.loss(0), plain.loss(0)
    torch.testing.assert_close(loss, other, atol=0, rtol=1e-6)
    loss.backward(inputs=[*problem.rows.values()])
    other.backward(inputs=[*plain.rows.values()])
    weights = around(torch.eye(6)[:, None], problem.azimuths[list(problem.teach(0, 0).drawn.which)], 3)[:, 0]
    moved = problem.rows["clip_l"].grad.abs().amax((1, 2)) > 0
    assert moved.tolist() == (weights.sum(0) > 0).tolist()
    torch.testing.assert_close(problem.rows["clip_l"].grad.sum(0), plain.rows["clip_l"].grad[0], rtol=1e-4, atol=1e-9)


def test_a_view_is_the_vectors_of_its_azimuth(models, tmp_path):
    model = models("sdxl")
    concept = teach(QUICK, learners.asked(model, cameras=VIEWS), steps=2)
    found = learners.kept(concept.seen_from(80), tmp_path)
    for key, rows in found.on(model).own.words["<duck>"].items():
        assert torch.equal(rows, around(concept.mapper[f"ring.{key}"], torch.tensor([80.0]), 3)[0])
    assert torch.equal(learners.painted(found, model), learners.painted(concept.seen_from(440), model))
    assert torch.equal(learners.painted(concept, model), learners.painted(concept.seen_from(0), model))
    assert not torch.equal(learners.painted(found, model), learners.painted(concept, model))


def test_other_cameras_and_numbers_are_refused(models):
    with pytest.raises(SfumatoError, match="cameras have 3 numbers; give azimuth"):
        teach(QUICK, learners.asked(models("sd"), cameras=torch.zeros(3, 3)), steps=1)
    with pytest.raises(SfumatoError, match="azimuths that count"):
        AzimuthInversion(azimuths=2)
