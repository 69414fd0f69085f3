"""The repair of learned words: lengths and angles that it says, the published formula, and what stays."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.learning.concepts import Concept
from sfumato.learning.repair import adjusted, repaired

RNG = torch.Generator().manual_seed(2)
ROWS = torch.randn(3, 16, generator=RNG) * 5
GOAL = torch.randn(3, 16, generator=RNG)


def angle(a: Tensor, b: Tensor) -> Tensor:
    return torch.acos(torch.cosine_similarity(a.double(), b.double(), dim=-1).clamp(-1, 1))


def published(v, c, rotation, norm):
    """Slerp of both at the same length, written as in the paper."""
    v, c = v.double(), c.double()
    long = (1 - norm) * v.norm() + norm * c.norm()
    a, b = long * v / v.norm(), long * c / c.norm()
    theta = math.acos(float(v @ c / v.norm() / c.norm()))
    return (math.sin((1 - rotation) * theta) * a + math.sin(rotation * theta) * b) / math.sin(theta)


@pytest.mark.parametrize(("rotation", "norm"), [(0.2, 0.5), (0.0, 1.0), (1.0, 0.0), (0.7, 0.3)])
def test_lengths_and_angles_are_taken_back_by_their_parts(rotation, norm):
    made = adjusted(ROWS, GOAL, rotation, norm)
    torch.testing.assert_close(made.norm(dim=-1), (1 - norm) * ROWS.norm(dim=-1) + norm * GOAL.norm(dim=-1))
    torch.testing.assert_close(angle(made, GOAL), (1 - rotation) * angle(ROWS, GOAL), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(angle(made, ROWS), rotation * angle(ROWS, GOAL), rtol=1e-4, atol=1e-5)
    expected = torch.stack([published(v, c, rotation, norm) for v, c in zip(ROWS, GOAL, strict=True)])
    torch.testing.assert_close(made.double(), expected, rtol=1e-4, atol=1e-5)


def test_ends_are_the_vectors_themselves():
    torch.testing.assert_close(adjusted(ROWS, GOAL, 0.0, 0.0), ROWS)
    torch.testing.assert_close(adjusted(ROWS, GOAL, 1.0, 1.0), GOAL)
    along = adjusted(ROWS, 3 * ROWS, 0.5, 0.5)
    torch.testing.assert_close(along, 2 * ROWS)
    torch.testing.assert_close(adjusted(ROWS, -ROWS, 0.5, 0.5).norm(dim=-1), ROWS.norm(dim=-1))
    assert torch.equal(adjusted(torch.zeros(1, 16), GOAL[:1], 0.5, 0.5), torch.zeros(1, 16))


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_a_concept_is_adjusted_towards_its_kind_in_each_encoder_layer_and_time(models, name):
    model = models(name)
    begun = model.vectors("red cube")
    for of in ((), (4,), (5, 1)):
        rows = {key: torch.randn(*of, 3, 16, generator=RNG) * 4 for key in begun}
        concept = Concept("<own>", rows, about={"kind": "red cube", "seed": 1})
        made = repaired(concept, model)
        for key, each in made.rows.items():
            goal = begun[key][[0, 1, 1]]  # the last counts for all beyond
            torch.testing.assert_close(angle(each, goal), 0.8 * angle(rows[key], goal), rtol=1e-3, atol=1e-4)
        assert made.about["repaired"] == {"kind": "red cube", "rotation": 0.2, "norm": 0.5} and made.about["seed"] == 1
        other = repaired(concept, model, "duck", rotation=0.0, norm=1.0)
        for key, each in other.rows.items():
            length = model.vectors("duck")[key].norm()
            torch.testing.assert_close(each.norm(dim=-1), length.expand(each.shape[:-1]), rtol=1e-5, atol=1e-6)


def test_a_longer_word_says_more_in_a_prompt_until_it_is_repaired(models):
    """What tells the other words apart is nearer to what it is beside the kind itself."""
    model = models("sd")
    cube = model.vectors("cube")["clip_l"]
    long = Concept("<own>", {"clip_l": 30 * (cube + 0.5 * torch.randn(1, 16, generator=RNG) * cube.norm() / 4)})
    prompt = "a <own> on grass"

    def away(concept):
        return float((concept.on(model).embed([prompt]).text - model.embed(["a cube on grass"]).text)[0, 2:6].norm())

    assert away(repaired(long, model, "cube", norm=1.0)) < away(long)


def test_what_cannot_be_repaired_is_refused(models):
    model = models("sd")
    for concept, kind, options, says in (
        (Concept("<x>", {}, {"unet.a": ROWS}), "cube", {}, "'<x>' has no vectors to repair"),
        (Concept("<x>", {"clip_l": ROWS}), "", {}, "'<x>' has no kind; say what it is"),
        (
            Concept("<x>", {"clip_l": torch.ones(1, 24)}),
            "cube",
            {},
            r"is \{'clip_l': 24\} wide, and .* \{'clip_l': 16\}",
        ),
        (
            Concept("<x>", {"clip_l": ROWS}),
            "cube",
            {"rotation": 1.5},
            "rotation and norm of a repair lie between 0 and 1",
        ),
        (Concept("<x>", {"clip_l": ROWS}), "cube", {"norm": -0.1}, "rotation and norm of a repair lie between 0 and 1"),
    ):
        with pytest.raises(SfumatoError, match=says):
            repaired(concept, model, kind, **options)
