"""Two words: whole pictures teach both, what lies around teaches the second, and the first alone is kept."""

from __future__ import annotations

from dataclasses import replace

import learners
import pytest
import torch

from sfumato.core.schedule import add_noise
from sfumato.errors import SfumatoError
from sfumato.learning.lessons import Lesson
from sfumato.learning.personal import teach
from sfumato.learning.teaching import masked
from sfumato.methods.personalise.disentangled_inversion import DisentangledInversion

QUICK = DisentangledInversion(batch=3, templates=("a {}",), scene="grass")


def asked(model, masks=None):
    plain = learners.asked(model)
    if masks is None:
        masks = torch.zeros(3, 64, 64)
        masks[:, :32, :32] = 1
    return replace(plain, lesson=replace(plain.lesson, masks=None) if masks is False else lesson(plain.lesson, masks))


def lesson(plain, masks):
    small = torch.nn.functional.adaptive_avg_pool2d(masks[:, None], plain.latents.shape[-2:])
    return Lesson(plain.latents, small)  # (n, 1, h, w): mirrored ones are not seen


def test_what_lies_around_teaches_its_own_word_alone(models):
    problem = QUICK.problem(asked(models("sd")))
    assert problem.parts[0].captions == ("a <duck> in a grass <duck>@",) and problem.parts[0].lesson.masks is None
    assert problem.parts[1].captions == ("a grass <duck>@",) and [part.batch for part in problem.parts] == [2, 1]
    taught = [problem.teach(part, 0) for part in range(2)]
    found = problem.loss(0)
    x = torch.cat([add_noise(each.drawn.x0, each.noise, each.at) for each in taught])
    times = torch.cat([each.at.t for each in taught])
    predicted = problem.model.predict(x, times, problem.cond(taught))
    whole, around = predicted.split([2, 1])
    errors = [p - each.noise for p, each in zip((whole, around), taught, strict=True)]
    outside = errors[1].square().clone()
    half = x.shape[-1] // 2
    cells = outside[..., half:, :].flatten().tolist() + outside[..., :half, half:].flatten().tolist()
    wanted = errors[0].square().mean() + sum(cells) / len(cells)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)
    assert masked(errors[1], taught[1].drawn.mask).isfinite()
    own = {word: rows["clip_l"] for word, rows in problem.rows.items()}
    second = masked(errors[1], taught[1].drawn.mask)
    thing, rest = torch.autograd.grad(second, [own["<duck>"], own["<duck>@"]], retain_graph=True)
    assert thing.abs().amax() == 0 and rest.abs().amax() > 0
    thing, rest = torch.autograd.grad(errors[0].square().mean(), [own["<duck>"], own["<duck>@"]])
    assert thing.abs().amax() > 0 and rest.abs().amax() > 0


def test_the_things_word_is_kept_and_the_other_not(models, tmp_path):
    model = models("sdxl")
    concept = teach(QUICK, asked(model), steps=2)
    assert {key: tuple(rows.shape) for key, rows in concept.rows.items()} == {"clip_l": (1, 16), "clip_g": (1, 16)}
    assert torch.equal(learners.painted(learners.kept(concept, tmp_path), model), learners.painted(concept, model))
    problem = QUICK.problem(asked(model))
    with torch.no_grad():
        problem.rows["<duck>"]["clip_g"].fill_(1)
        problem.rows["<duck>@"]["clip_g"].fill_(2)
    assert QUICK.concept(asked(model), problem).rows["clip_g"].eq(1).all()
    assert not torch.equal(concept.rows["clip_l"], problem.words["<duck>"]["clip_l"])


def test_pictures_without_masks_or_surroundings_are_refused(models):
    with pytest.raises(SfumatoError, match="pictures with masks"):
        teach(QUICK, asked(models("sd"), False), steps=1)
    with pytest.raises(SfumatoError, match="nothing lies around the mask of picture 1"):
        teach(QUICK, asked(models("sd"), torch.ones(3, 64, 64)), steps=1)
