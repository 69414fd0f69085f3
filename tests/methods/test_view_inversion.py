"""View-dependent inversion: each picture is read with its own camera, a view is a concept, cameras are checked."""

from __future__ import annotations

from dataclasses import replace

import learners
import pytest
import torch

from sfumato.commands.options import _concept
from sfumato.errors import SfumatoError
from sfumato.learning.mappers import Mapped, numbered
from sfumato.learning.personal import teach
from sfumato.methods.personalise.neural_inversion import NeuralInversion
from sfumato.methods.personalise.view_inversion import ViewInversion

QUICK = ViewInversion(batch=3, templates=("a {}",))
SHARED = replace(QUICK, layer_spread=0.0, bypass=0.0, begin="kind")
VIEWS = torch.tensor([[0.0, 20.0], [90.0, 20.0], [200.0, 50.0]])


@pytest.fixture(scope="module")
def concept(models):
    return teach(QUICK, learners.asked(models("sd"), cameras=VIEWS), steps=3)


@pytest.mark.parametrize("method", [QUICK, SHARED], ids=["by layer", "all alike"])
def test_each_picture_is_read_with_its_own_camera(models, method):
    model = models("sd")
    asked = learners.asked(model, cameras=VIEWS)
    problem = method.problem(asked)
    taught, concept = problem.teach(0, 1), method.concept(asked, problem)
    assert sorted(taught.drawn.which) == [0, 1, 2] and taught.drawn.which != (0, 1, 2)
    with torch.no_grad():
        cond = problem.cond([taught])
        read = cond.layered(cond, taught.at.t)
    for row, i in enumerate(taught.drawn.which):
        known = concept.seen_from(*VIEWS[i].tolist()).on(model)
        wanted = learners.texts(known, "a <duck>", float(taught.at.t[row]))
        torch.testing.assert_close(read.keys[row], wanted.keys[0], atol=1e-5, rtol=1e-5)
        if method is SHARED:
            assert read.values is None and torch.equal(read.keys[row], read.keys[row, :1].expand_as(read.keys[row]))
        else:
            torch.testing.assert_close(read.values[row], wanted.values[0], atol=1e-5, rtol=1e-5)


def test_cameras_are_brought_to_one_by_what_was_learned_from_and_stay_so(models, concept, tmp_path):
    mapper = Mapped.of(learners.kept(concept, tmp_path).seen_from(0).mapper).mappers[0]
    numbers = (numbered(VIEWS) - mapper.shift[2:]) * mapper.scale[2:]
    torch.testing.assert_close(numbers.amin(0), torch.full((3,), -1.0))
    torch.testing.assert_close(numbers.amax(0), torch.full((3,), 1.0))
    assert mapper.shift[:2].tolist() == [500, models("sd").text_layers / 2]
    assert mapper.scale[:2].tolist() == [pytest.approx(1 / 500), 2 / models("sd").text_layers]
    flat = QUICK.problem(learners.asked(models("sd"), cameras=VIEWS * torch.tensor([1.0, 0.0]))).mappers["view"]
    assert flat.scale[3] == 0 and (flat.scale[[2, 4]] > 0).all()


def test_it_begins_as_published(models):
    view, thing = ViewInversion().problem(learners.asked(models("sd"), cameras=VIEWS)).all
    assert view.waves.shape == (32, 5) and thing.waves.shape == (32, 2)
    assert view.inner[0].weight.shape == thing.inner[1].weight.shape == (64, 64)
    assert float(view.bypass) == float(thing.bypass) == 5
    assert torch.equal(thing.waves, view.waves[:, :2]) and float(view.waves[:, 0].std()) < 0.05
    assert 1 < float(view.waves[:, 1].std()) < 3 and 0.3 < float(view.waves[:, 2:].std()) < 0.7


def test_the_same_view_twice_is_the_same_text_and_another_view_another(models, concept):
    model = models("sd")
    a, b, c, around = (
        learners.texts(concept.seen_from(azimuth, 20).on(model), "a <duck> on grass") for azimuth in (90, 90, 200, 450)
    )
    assert torch.equal(a.keys, b.keys) and torch.equal(a.values, b.values)
    torch.testing.assert_close(a.values, around.values, atol=1e-4, rtol=1e-4)
    assert (a.keys - c.keys).abs().amax() > 1e-4 and (a.values - c.values).abs().amax() > 1e-3


def test_a_view_is_two_vectors_and_none_the_thing_alone(models, concept):
    model = models("sd")
    seen, alone = concept.seen_from(90, 20).on(model), concept.on(model)
    assert seen.own.words["<duck>"].plain["clip_l"].shape == (2, 16)
    assert alone.own.words["<duck>"].plain["clip_l"].shape == (1, 16)
    t = torch.tensor([10.0])
    both, thing = (m.own.words["<duck>"].at(t, model.text_layers)[0]["clip_l"] for m in (seen, alone))
    assert torch.equal(both[:, :, 1], thing[:, :, 0])
    assert not torch.equal(learners.painted(concept, model), learners.painted(concept.seen_from(90), model))


def test_numbers_that_are_left_out_are_the_mean(models, concept, tmp_path):
    mean = float(VIEWS[:, 1].mean())
    left = learners.kept(concept.seen_from(90), tmp_path)
    assert torch.equal(
        learners.painted(left, models("sd")), learners.painted(concept.seen_from(90, mean), models("sd"))
    )


def test_a_command_is_told_the_view_behind_the_file(concept, tmp_path):
    concept.save(tmp_path / "duck.safetensors")
    file = str(tmp_path / "duck.safetensors")
    found = _concept(f"{file}@90,20:<side>")
    assert found.word == "<side>" and found.mapper["camera"].tolist() == [90, 20]
    assert _concept(f"{file}@-30").mapper["camera"][0] == -30 and _concept(f"{file}@-30").word == "<duck>"
    assert "camera" not in _concept(file).mapper and _concept(f"{file}:<x>").word == "<x>"
    with pytest.raises(SfumatoError, match=r"as .*@90,20, got 'left'"):
        _concept(f"{file}@left")


def test_views_of_one_concept_stand_in_one_prompt(models, concept):
    model = models("sd")
    known = concept.seen_from(90).called("<side>").on(concept.seen_from(0).on(model))
    found = learners.texts(known, "a <duck> and a <side>")
    assert (found.keys - found.values).abs().amax((0, 1, 3)).nonzero().flatten().tolist() == [2, 3, 6, 7]


def test_other_numbers_of_a_camera_are_read_as_they_are(models):
    cameras = torch.randn(3, 12, generator=torch.Generator().manual_seed(0))
    asked = learners.asked(models("sd"), cameras=cameras)
    found = teach(QUICK, asked, steps=1)
    assert Mapped.of(found.seen_from(*cameras[0].tolist()).mapper).mappers[0].waves.shape == (32, 14)
    with pytest.raises(SfumatoError, match="seen from 12 numbers, got"):
        found.seen_from(*range(13))


@pytest.mark.parametrize(
    "cameras, mirrored, what",
    [
        (None, False, "give its azimuth and elevation"),
        (VIEWS[:2], False, r"3 pictures have a camera each, got \(2, 2\)"),
        (VIEWS[0], False, "have a camera each"),
        (VIEWS * torch.inf, False, "not finite"),
        (VIEWS, True, "leave mirroring out"),
    ],
)
def test_cameras_that_do_not_fit_are_refused(models, cameras, mirrored, what):
    with pytest.raises(SfumatoError, match=what):
        teach(QUICK, learners.asked(models("sd"), cameras=cameras, mirrored=mirrored), steps=1)


def test_a_concept_without_cameras_has_no_views(models):
    asked = learners.asked(models("sd"))
    method = NeuralInversion(waves=16)
    with pytest.raises(SfumatoError, match="learned without cameras"):
        method.concept(asked, method.problem(asked)).seen_from(90)
