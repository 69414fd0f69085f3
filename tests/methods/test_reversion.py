"""ReVersion: its contrastive loss by hand, how often levels are seen, whose captions are whose, what is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import learners
import pytest
import torch

from sfumato.errors import SfumatoError
from sfumato.learning.personal import teach
from sfumato.methods.personalise import reversion
from sfumato.methods.personalise.prepositions import BASIS, named
from sfumato.methods.personalise.reversion import ReVersion, importance, steering
from sfumato.tasks import recipes

KNOWN = ("on", "behind", "of", "at", "by")
QUICK = ReVersion(batch=3, basis=KNOWN)
CAPTIONS = (
    ("a red cube {} a duck", "a cube <duck> the blue sphere"),
    ("a mug {} a green lamp",),
    ("a tree {} snow", "the robot {} a car"),
)


def asked(model, captions=CAPTIONS, **options):
    given = learners.asked(model, **options)
    return replace(given, kind="and", captions=captions)


def test_the_contrastive_loss_is_that_worked_by_hand():
    x, y = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    found = steering(3 * x[None], torch.stack([2 * x, y]), -5 * x[None], 1.0)
    assert float(found) == pytest.approx(math.log(math.e + 1 + 1 / math.e) - math.log(math.e + 1))
    colder = steering(x[None], y[None], x[None], 0.5)  # cosines of 0 and 1, twice
    assert float(colder) == pytest.approx(math.log(1 + math.exp(2)))
    both = steering(torch.stack([x, y]), y[None], x[None], 0.5)
    assert float(both) == pytest.approx((math.log(1 + math.exp(2)) + math.log(1 + math.exp(-2))) / 2)
    assert float(steering(x[None], y[None], x[:0].view(0, 2), 0.07)) == 0, "nothing is named beside the relation"


def test_noisy_levels_are_seen_as_often_as_published(models):
    odds = importance(1000, 0.5)
    assert float(odds.sum()) == pytest.approx(1) and float(odds[500]) == pytest.approx(1 / 999.5)
    assert float(odds[0]) == pytest.approx(0.5 / 999.5) and bool((odds.diff() > 0).all())
    assert torch.equal(importance(7, 0.0), torch.full((7,), 1 / 7, dtype=torch.float64))
    bins, problem = 10, replace(QUICK, batch=4000).problem(asked(models("sd")))
    seen = torch.bincount(torch.cat([problem.levels(0, step).t for step in range(10)]).long() // 100, minlength=bins)
    wanted = 40_000 * odds.view(bins, -1).sum(1)
    assert float(((seen - wanted).square() / wanted).sum()) < 27.9  # 9 degrees of freedom, one in a thousand
    assert torch.equal(problem.levels(0, 3).t, problem.levels(0, 3).t)
    assert not torch.equal(problem.levels(0, 3).t, problem.levels(0, 4).t)


def test_captions_name_things_beside_prepositions_and_stop_words():
    assert named("A red Cube <R> the blue, 'duck' by day; on grass.", "<r>") == [
        *("red", "cube", "blue", "duck", "day", "grass"),
    ]
    assert len(BASIS) == len(set(BASIS)) == 56 and named("and within it", "<R>") == []


def test_each_picture_has_a_caption_of_its_own(models):
    problem = QUICK.problem(asked(models("sd")))
    seen = set()
    for step in range(12):
        taught = problem.teach(0, step)
        for which, caption in zip(taught.drawn.which, taught.captions, strict=True):
            assert caption in [each.replace("{}", "<duck>") for each in CAPTIONS[which]]
            seen.add(caption)
    assert len(seen) == sum(map(len, CAPTIONS)), "of several captions one is never drawn"


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_the_loss_is_that_of_the_prediction_and_the_mean_contrast_of_each_picture(models, name):
    given = asked(models(name))
    model, word = given.model, {key: rows + 0.3 for key, rows in given.model.vectors("and").items()}

    def loss(**weights):
        problem = replace(QUICK, positives=len(KNOWN), **weights).problem(given)
        for key, rows in word.items():
            problem.rows[key].data.copy_(rows)
        return problem.loss(5), problem.teach(0, 5).captions

    value, captions = loss(denoise=0.0, steer=1.0)
    basis = {key: torch.cat([model.vectors(each)[key] for each in KNOWN]) for key in word}
    contrasts = [
        steering(rows, basis[key], model.vectors(" ".join(named(caption, "<duck>")))[key], 0.07)
        for caption in captions
        for key, rows in word.items()
    ]
    assert value.item() == pytest.approx(float(torch.stack(contrasts).mean()), rel=1e-5)
    prediction = loss(steer=0.0)[0].item()
    assert loss(denoise=2.0, steer=0.5)[0].item() == pytest.approx(2 * prediction + 0.5 * value.item(), rel=1e-5)


def test_prepositions_are_drawn_anew_for_each_picture_and_none_twice(models, monkeypatch):
    drawn = []
    monkeypatch.setattr(reversion, "steering", lambda own, positives, *rest: drawn.append(positives) or own.sum())
    problem = replace(QUICK, positives=4).problem(asked(models("sd")))
    for step in (0, 1, 1):
        problem.loss(step)
    rows = problem.basis["clip_l"]
    which = [sorted(int((rows == one).all(1).nonzero()) for one in each) for each in drawn]
    assert len(which) == 9 and all(len(set(each)) == 4 for each in which)
    assert which[3:6] == which[6:] and len(set(map(tuple, which[:6]))) > 1


def test_steering_brings_the_word_to_prepositions(models):
    model = models("sd")
    method = replace(QUICK, denoise=0.0, steer=1.0, rate=0.05)
    rows = teach(method, asked(model), steps=15).rows["clip_l"]
    basis = torch.cat([model.vectors(word)["clip_l"] for word in KNOWN])
    others = model.vectors("red cube duck blue sphere mug lamp tree snow robot car")["clip_l"]

    def nearer(own):
        return float(torch.cosine_similarity(own, basis).mean() - torch.cosine_similarity(own, others).mean())

    assert nearer(rows) > nearer(model.vectors("and")["clip_l"]) + 0.2


def test_it_begins_as_and_or_as_the_tokens_that_it_is_given(models):
    assert recipes.learning("reversion", "sd-1.5") == (ReVersion(), "and")
    assert recipes.learning("reversion", "stilllife")[1] == "and"
    given = replace(asked(models("sd")), kind="on top of")
    rows = QUICK.problem(given).rows["clip_l"]
    assert torch.equal(rows, given.model.vectors("on top of")["clip_l"]) and len(rows) == 3


def test_what_says_nothing_of_pictures_is_refused(models):
    model = models("sd")
    for captions, says in (
        ((), "ReVersion learns from what is said of each picture; give captions, as 'a cat {} a table'"),
        (CAPTIONS[:2], "3 pictures have captions each, got those of 2"),
        ((*CAPTIONS[:2], ()), "3 pictures have captions each"),
        ((*CAPTIONS[:2], ("a tree on snow",)), "has {} or <duck> for what is learned, got 'a tree on snow'"),
    ):
        with pytest.raises(SfumatoError) as error:
            teach(QUICK, asked(model, captions), steps=1)
        assert says in str(error.value)
    with pytest.raises(SfumatoError, match="of a mirrored picture they may be false"):
        teach(QUICK, asked(model, mirrored=True), steps=1)
    with pytest.raises(SfumatoError, match="knows 2 of 3 prepositions as words, and 3 are drawn"):
        teach(replace(QUICK, basis=("on", "of", "alongside"), positives=3), asked(model), steps=1)
    for options, says in (({"positives": 57}, "prepositions of a picture lies between 1 and 56"),):
        with pytest.raises(SfumatoError, match=says):
            ReVersion(**options)
