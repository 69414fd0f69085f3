"""The bench of what is lifted into scenes: its worlds, how things are counted, and colours as the oracle reads them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sfumato.bench.scene import features, injected
from sfumato.bench.scene.features import HELD, World, above, gathered, miou
from sfumato.bench.session import Session
from sfumato.stilllife.scene import COLOURS


@pytest.fixture(scope="module")
def twins() -> World:
    return World.twins(np.random.default_rng(5))


def test_every_key_has_a_meaning_and_a_measure():
    for module in (features, injected):
        keys = [key for some, _ in module.MEASURES for key in some]
        assert keys == list(module.MEANINGS) and set(module.TARGETS) <= set(keys)


def test_unions_are_counted_over_all_views():
    """1 of 1 places of the background, 1 of 2 of each word's thing."""
    found, truth = torch.tensor([[[0, 1]], [[1, 2]]]), torch.tensor([[[0, 1]], [[2, 2]]])
    assert miou(found, truth) == pytest.approx(2 / 3)
    assert miou(found, torch.where(truth == 1, 0, truth)) == pytest.approx((1 / 2 + 1 / 2) / 2)


def test_the_largest_above_a_threshold_has_the_place():
    scores = torch.tensor([[0.6, 0.3], [0.7, 0.4]]).view(1, 2, 1, 2)
    assert above(scores, 0.5).tolist() == [[[2, 0]]] and above(scores, 0.2).tolist() == [[[2, 2]]]


def test_twins_differ_in_colour_and_the_prompt_has_no_sides(twins):
    first, other = twins.scene.things
    assert (first.kind, first.shape, first.size) == (other.kind, other.shape, other.size)
    assert first.colour != other.colour and twins.words == (
        f"{first.colour} {first.kind}",
        f"{other.colour} {other.kind}",
    )
    assert all(word in twins.prompt for word in twins.words) and "left" not in twins.prompt
    assert len(twins.learned) + len(HELD) == len(twins.shots) and not set(twins.learned) & set(HELD)


def test_colours_are_read_at_the_things_places(twins):
    oracle = Session(1, 0, torch.device("cpu")).oracle
    images, things = twins.shots.images[::3], twins.seen.thing[::3].cpu() + 1
    wanted = [COLOURS.index(t.colour) for t in twins.scene.things]
    assert injected.right(oracle, images, things, wanted) > 0.8
    assert injected.right(oracle, images, things, wanted[::-1]) < 0.2


def test_parts_of_a_world_are_kept_apart(tmp_path):
    """A part that is there is not measured again; another one is."""
    measured = []

    def part(name):
        def measure(stage):
            measured.append(name)
            return {f"{name}: value": float(len(measured))}, torch.zeros(3, 4, 4)

        return measure

    for names in (("a",), ("a", "b")):
        session = Session(1, 0, torch.device("cpu"), tmp_path)
        rows = gathered(session, 32, lambda rng: None, {name: part(name) for name in names})
    assert measured == ["a", "b"] and rows == [{"a: value": 1.0, "b: value": 2.0}]
