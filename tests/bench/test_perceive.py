"""The bench of recognition, on the tiny model: every key has a figure, and what was measured is kept."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from sfumato.bench import landmarks, perceive, truth
from sfumato.reading.reader import read
from sfumato.stilllife.kinds import KINDS
from sfumato.stilllife.render import kinds_of
from sfumato.tasks.recipes import RECIPES, Recipe, find

CPU = torch.device("cpu")


@pytest.fixture
def quick(here, monkeypatch):
    """Everything as small as it can be."""
    small = {
        "label-efficient": {"epochs": 1, "members": 2, "pixels": 16, "t": (50,), "blocks": (5,)},
        "unsupervised-keypoints": {
            "steps": 1,
            "tokens": 12,
            "candidates": 10,
            "grid": 16,
            "augmentations": 1,
            "parts": (1.0,),
        },
        "prompt-embeddings": {"steps": 1, "restarts": 1, "parts": (1.0,), "bank": 2, "found": 4},
        "pacl": {"steps": 1, "batch": 2},
        "diffews": {"steps": 1, "batch": 1, "rank": 1},
        "stego": {"steps": 2, "points": 4, "standard": True},
        "picie": {"epochs": 1, "batch": 4},
        "dift": {"blocks": (0,), "ensemble": 1, "layers": ()},
    }
    for word, fields in small.items():
        row = find(word)
        monkeypatch.setitem(RECIPES, (row.model, word), replace(row, settings={**row.settings, **fields}))
    monkeypatch.setitem(RECIPES, ("stilllife", "few-shot"), Recipe("few-shot"))
    fitting, blocks = find("prompt-embeddings").method, find("dift").method
    monkeypatch.setattr(perceive.prompt_embeddings, "PUBLISHED", fitting)
    matching = perceive.few_shot.FeatureMatching(blocks=(0,), ensemble=1)
    monkeypatch.setattr(perceive, "MATCHING", matching)
    monkeypatch.setattr(perceive, "COARSER", matching)
    monkeypatch.setattr(perceive, "LABELLED", (2, 20))
    renders = truth.renders
    monkeypatch.setattr(truth, "renders", lambda rng, n, *more, **scene: renders(rng, min(n, 4), *more, **scene))
    monkeypatch.setattr(perceive, "SHOTS", (1, 2))
    monkeypatch.setattr(perceive, "LEARNED", 2)
    monkeypatch.setattr(perceive, "UNLABELLED", 4)
    monkeypatch.setattr(perceive, "CAPTIONED", 3)
    monkeypatch.setattr(perceive, "TAUGHT", 2)
    monkeypatch.setattr(perceive, "TAUGHT_KINDS", ("cube",))
    monkeypatch.setattr(landmarks, "LEARNED", 2)
    monkeypatch.setattr(landmarks, "METHOD", landmarks.LandmarkRegression(virtual=2, steps=2))
    monkeypatch.setattr(perceive, "SIDE", 64)
    monkeypatch.setattr(
        perceive,
        "SEGMENTERS",
        {
            "DiffSeg": perceive.Tried(perceive.diff_seg.DiffSeg(), side=64),
            "DiffSeg + graph cut": perceive.Tried(perceive.diff_seg.DiffSeg(), cut=True, side=64),
            "k-means on pixels": perceive.Tried(perceive.by_pixels, side=64),
            "k-means on features": perceive.Tried(perceive.by_features, side=64),
        },
    )
    monkeypatch.setattr(
        perceive,
        "MATCHERS",
        {
            "DIFT": perceive.Tried(blocks, side=64),
            "optimised embeddings": perceive.Tried(fitting, side=64),
            **{name: perceive.MATCHERS[name] for name in perceive.BASE},
        },
    )
    monkeypatch.setattr(perceive, "FEW_PAIRS", 1)


def test_regions_kinds_and_parts_are_the_renders_own():
    shown = truth.renders(np.random.default_rng(0), 2, kinds=("duck",), count=1)
    for i in range(2):
        regions, parts = truth.regions(shown, i), truth.parts(shown, i)
        assert torch.equal(regions >= 2, shown.thing[i] >= 0) and torch.equal(regions == 1, shown.ground[i])
        assert torch.equal(kinds_of(shown, i, ("cube", "duck")) == 3, shown.thing[i] == 0)
        assert torch.equal(parts > 0, shown.thing[i] == 0) and parts.max() <= len(KINDS["duck"].parts())


def test_points_of_a_pair_lie_on_the_thing_in_both_images():
    for pair in truth.pairs(np.random.default_rng(0), 3, points=5):
        for side in range(2):
            x, y = pair.points[side].long().T
            assert (pair.masks[side][y, x] == 1).all()
    for pair in truth.pairs(np.random.default_rng(0), 2, named=True):
        assert len(pair.named) == pair.points.shape[1] >= 2 and 8 < pair.box <= 128


def test_every_key_is_measured_and_nothing_twice(quick, tmp_path, monkeypatch):
    first = perceive.run(1, 0, "cpu", tmp_path)
    assert not first.why and None not in first.results.values()
    assert {"segments", "words", "clicks", "labelled", "heads", "captions", "shots", "points", "keypoints"} <= set(
        first.compared
    )
    noted = first.methods["segments: DiffSeg"]
    assert {"miou", "pooled_miou", "pixels_right", "seconds", "peak_mb"} <= set(noted)
    assert (tmp_path / "words.png").exists() and (tmp_path / "heads-STEGO.png").exists()
    assert {"miou matched once", "miou matched per image", "learning_seconds"} <= set(first.methods["heads: STEGO"])
    assert {"miou of other kinds", "learning_seconds"} <= set(first.methods["shots: DiffewS, 1"])
    monkeypatch.setattr(perceive.Tried, "segments", None)  # what is kept is not measured again
    assert (
        perceive.segments(perceive.PerceiveSession(1, 0, CPU, tmp_path))["diffseg_miou"].tolist()
        == first.figures["diffseg_miou"].tolist()
    )


def test_landmarks_are_the_renders_own_and_found_where_their_features_are():
    shown = truth.renders(np.random.default_rng(0), 2, kinds=("robot",), count=1, view="front")
    at = landmarks.annotated(shown)
    assert at.isfinite().any() and not at.isfinite().all()
    x, y = (at[at.isfinite().all(-1)] * 128).long().T
    assert (shown.thing[at.isfinite().all(-1).nonzero()[:, 0], y, x] == 0).float().mean() > 0.9
    map = torch.zeros(3, 4, 8)
    map[0, 1, 2] = map[1, 3, 7] = map[2, 0, 0] = 5.0
    map[2, 1, 2] = 3.0
    map[:2, 2, 4] = 5.0  # like both renders of the first landmark by 0.71, and by the mean the most
    features = [torch.tensor([[0.0, 0.1, 0.0], [0.2, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 1.0]])]
    found = landmarks.matched(features, map)  # of the first landmark the second render's is less alike, 0.86
    assert found.tolist() == [[7.5 / 8, 3.5 / 4], [0.5 / 8, 0.5 / 4]]
    torch.testing.assert_close(landmarks.at_place(map, torch.tensor([2.5 / 8, 1.5 / 4])), map[:, 1, 2])
    torch.testing.assert_close(landmarks.at_place(map, torch.tensor([3 / 8, 1.5 / 4])), map[:, 1, 2] / 2)


def test_chance_is_anywhere_and_colours_find_a_colour(here):
    from sfumato.backbones.load import load

    model = load("stilllife", device="cpu")
    image = torch.zeros(3, 64, 64)
    image[0, 10, 20] = 1.0
    other = torch.zeros(3, 64, 64)
    other[0, 12, 24] = 1.0
    with read(model, image, 64) as a, read(model, other, 64) as b:
        found = perceive.by_colour(a, b, torch.tensor([[20.5, 10.5]]))
        assert found.target.tolist() == [[24.5, 12.5]]
        spread = perceive.by_chance(a, b, torch.rand(500, 2) * 64).target
    assert (spread >= 0).all() and (spread <= 64).all() and abs(float(spread.mean()) - 32) < 3
