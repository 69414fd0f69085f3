"""The laws of every method that reads images, on every family that it runs on."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from laws.reading import POINTS, ROWS, Row
from laws.traces import breaking, unchanged

from sfumato.methods.perceive.diff3f import VertexFeatures
from sfumato.reading.results import Matches, Segments

EACH = [
    pytest.param(
        word, family, id=f"{word}-{family}", marks=[] if i in (0, 1 + turn % max(1, last)) else [pytest.mark.slow]
    )
    for turn, (word, row) in enumerate(ROWS.items())
    for last in (len(row.families) - 1,)
    for i, family in enumerate(row.families or ("",))
]
"""Every day on the first, and on one of the others, which rows take in turn."""
ONE = [(word, row.families[0]) for word, row in ROWS.items() if row.families]


def tensors(found: Any) -> list[torch.Tensor]:
    if isinstance(found, Segments):
        return [found.scores, found.labels]
    if isinstance(found, VertexFeatures):
        return [found.values, found.seen]
    return list(vars(found).values()) if isinstance(found, Matches) else [found]


def assert_right(row: Row, way: Any, found: Any) -> None:
    """Shapes and ranges, of what each kind of answer is."""
    assert all(x.isfinite().all() for x in tensors(found))
    if isinstance(found, Segments):
        assert found.scores.ndim == 3 and (found.scores >= 0).all() and found.scores.std() > 0
        assert found.size == (48, 56) == tuple(found.labels.shape)
        assert found.labels.min() >= 0 and found.labels.max() < len(found.scores)
        assert not row.names or found.names == row.names
        assert len(found.names) in (0, len(found.scores))
        assert (found.scores[1:] <= row.most).all()
        if hasattr(way, "threshold") and "background" in row.names:
            assert (found.scores[0] == way.threshold).all()
        if row.highest is not None:
            torch.testing.assert_close(found.scores[1:].amax((1, 2)), torch.full((2,), row.highest))
        if row.whole:
            assert found.labels.unique().tolist() == list(range(len(found.scores)))
        if row.shares:
            torch.testing.assert_close(found.scores.sum(0), torch.ones(found.scores.shape[1:]))
    elif isinstance(found, Matches):
        assert torch.equal(found.source, POINTS) and found.target.shape == POINTS.shape
        assert ((found.target >= 0) & (found.target <= torch.tensor([48.0, 56.0]))).all()
        assert found.scores.shape == found.sure.shape == (len(POINTS),) and found.sure.dtype == torch.bool
    elif isinstance(found, VertexFeatures):
        many = len(found.shape.vertices)
        assert found.values.shape[0] == many and found.seen.shape == (many,) and found.seen.any()
        assert found.values.dtype == torch.float32 and found.values.std(0).max() > 0
        assert (found.values.norm(dim=1) <= 1 + 1e-5).all()  # means of directions
    elif row.word == "unsupervised-keypoints":
        assert found.shape == (3, 2) and (found >= 0).all() and (found <= 64).all()
    elif row.word == "landmark-regression":
        assert found.shape == (2, 2)
    elif row.word == "clip-patches":
        assert found.shape == (192, way.side // 16, round(56 / 48 * way.side / 16))
    else:
        assert found.shape == (1, 3, 48, 56)


@pytest.fixture(scope="module")
def answers() -> dict[tuple[str, str], list[Any]]:
    """What rows' ways have answered by (word, family), so that no law asks what another did."""
    return {}


def ask(row: Row, model: Any) -> list[Any]:
    return [row.ask(way, model) for way in row.ways]


@pytest.mark.parametrize(("word", "family"), EACH)
def test_its_answer_has_its_shape_and_range_and_nothing_is_left_behind(models, answers, word, family):
    row, model = ROWS[word], models(family) if family else None
    with unchanged(model) if model else nullcontext():
        answers[word, family] = ask(row, model)
    for way, found in zip(row.ways, answers[word, family], strict=True):
        assert_right(row, way, found)


@pytest.mark.parametrize("word", ROWS)
def test_asked_twice_it_says_the_same(models, answers, word):
    row = ROWS[word]
    family = row.families[0] if row.families else ""
    model = models(family) if family else None
    one = answers.get((word, family)) or ask(row, model)
    for a, b in zip(one, ask(row, model), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))


@pytest.mark.parametrize(("word", "family"), ONE, ids=[f"{a}-{b}" for a, b in ONE])
def test_nothing_is_left_behind_after_an_error_inside_the_network(models, word, family):
    row, model = ROWS[word], models(family)
    for way in row.ways:
        with unchanged(model), breaking(model, 0, 1):
            row.ask(way, model)
