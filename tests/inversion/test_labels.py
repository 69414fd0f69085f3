"""Which level the network is told, and where the latents then are: of every inversion, call by call."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from sfumato.backbones.exact import Exact, Mixture
from sfumato.core.schedule import Schedule
from sfumato.inversion import (
    EDICT,
    DDIMInversion,
    Direct,
    EditFriendly,
    NegativePrompt,
    NullText,
    Residual,
    RFInversion,
    invert,
)
from sfumato.stilllife import networks

DDIM = Schedule.read({"_class_name": "DDIMScheduler", **networks.scheduler().config})
FLOW = Schedule.read({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 1.0})
UP, DOWN = [1, 251, 501, 751], [751, 501, 251, 1]  # four steps, to noise and back
SIDE = 16


class Listening(Exact):
    """An exact denoiser that keeps what it is asked, and whose text is added to what it says."""

    def __init__(self, schedule: Schedule = DDIM):
        ramp = torch.linspace(-1, 1, 3 * SIDE * SIDE).view(1, 3, SIDE, SIDE)
        super().__init__({"": Mixture(ramp * 0, 0.5), "a": Mixture(ramp, 0.4)}, schedule)
        self.asked: list[tuple[int, Tensor, tuple[str, ...], bool]] = []

    def predict(self, x, t, cond):
        self.asked.append((round(float(t)), x.detach(), cond.prompts, torch.is_grad_enabled()))
        return super().predict(x, t, cond) + cond.text[..., None]


def heard(how, schedule: Schedule = DDIM, n: int = 1):
    model = Listening(schedule)
    image = torch.rand(n, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    path = invert(model, image, "a", how)
    return path, model.asked, [t for t, *_ in model.asked]


@pytest.mark.parametrize(
    "how", [DDIMInversion(steps=4), DDIMInversion(3.0, steps=4), Direct(steps=4), NegativePrompt(steps=4)], ids=repr
)
def test_a_step_to_noise_is_told_where_it_leads_while_the_latents_are_one_cleaner(how):
    path, asked, told = heard(how)
    assert told == UP
    for (_, x, *_), cleaner in zip(asked, reversed(path.track[1:]), strict=True):
        assert all(torch.equal(row, cleaner[0]) for row in x)


@pytest.mark.parametrize("how", [DDIMInversion(refine=2, steps=4), Direct(refine=2, steps=4)], ids=repr)
def test_a_step_that_is_repeated_is_told_the_same_at_the_latents_that_it_led_to(how):
    path, asked, told = heard(how)
    assert told == [t for t in UP for _ in range(3)]
    assert all(torch.equal(x, cleaner) for (_, x, *_), cleaner in zip(asked[::3], path.track[:0:-1], strict=True))
    assert all((x - last).abs().max() > 1e-5 for (_, last, *_), (_, x, *_) in zip(asked[::3], asked[1::3], strict=True))


def test_edict_tells_both_of_its_latents_the_level_that_they_leave():
    assert heard(EDICT(steps=4, strength=1.0))[2] == [t for t in UP for _ in range(2)]
    assert heard(EDICT(steps=4, strength=0.5))[2] == [1, 1, 251, 251]


def test_a_flow_is_told_where_its_latents_are_and_the_cache_where_they_are_next():
    """Three steps of a flow, evenly from 1000 to 1, and the image at 0."""
    assert heard(RFInversion(steps=3), FLOW)[2] == [0, 1, 501]
    assert heard(Residual(steps=3), FLOW)[2] == [1, 501, 1000]


def test_edit_friendly_noises_are_independent_and_told_by_their_own_levels():
    path, asked, told = heard(EditFriendly(steps=4, skip=0.0), n=2)
    assert told == DOWN
    noise = []
    for (_, x, *_), level in zip(asked, path.levels, strict=False):
        noise += [((own - level.alpha * image) / level.sigma) for own, image in zip(x[:2], path.image, strict=True)]
    flat = torch.stack([one.flatten() for one in noise[:6]])  # of four levels the last is the image's own
    torch.testing.assert_close(flat.std(1), torch.ones(6), atol=0.1, rtol=0)
    likeness = torch.corrcoef(flat) - torch.eye(6)
    assert likeness.abs().max() < 5 / flat.shape[1] ** 0.5  # of independent ones a deviation is 1 / root n
    assert torch.equal(asked[0][1][:1], heard(EditFriendly(steps=4, skip=0.0))[1][0][1][:1])


def test_null_text_tells_its_fits_the_level_that_they_leave():
    asked = heard(NullText(steps=4, inner=2, tolerance=0.0))[1]
    assert [t for t, *_ in asked[:4]] == UP
    back = [asked[4 + 4 * i : 8 + 4 * i] for i in range(4)]  # the words, two fits, the step
    for at, calls in zip(DOWN, back, strict=True):
        assert [t for t, *_ in calls] == [at] * 4 and [fits for *_, fits in calls] == [False, True, True, False]
        assert [prompts for *_, prompts, _ in calls] == [("a",), ("",), ("",), ("",)]
        assert all(torch.equal(x, calls[0][1]) for _, x, *_ in calls)


def test_null_text_moves_on_from_the_last_levels_text_by_a_rate_that_falls():
    """Adam's first update moves a number by its rate, whatever the gradient."""
    path = heard(NullText(steps=4, inner=1, rate=1e-2, tolerance=0.0))[0]
    texts = [torch.zeros(1, 1, 1), *path.uncond]
    moved = [float((b - a).abs()) for a, b in pairwise(texts)]
    assert moved == pytest.approx([1e-2, 0.99e-2, 0.98e-2, 0.97e-2], rel=1e-4)


@pytest.mark.parametrize("i", [0, 1, 2])
def test_null_text_stops_at_an_error_that_grows_with_the_level(i):
    """1e-5 + 2e-5 i: with a tolerance 1e-5 below the level's error it stops after a fit, 1e-5 above it goes on."""
    how = {"steps": 4, "inner": 3, "rate": 1e-12}

    def fits(**more) -> list[int]:
        asked = heard(NullText(**{**how, **more}))[1][4:]
        begins = [n for n, call in enumerate(asked) if call[2] == ("a",)] + [len(asked)]
        return [end - begin - 2 for begin, end in pairwise(begins)]

    path, asked, _ = heard(NullText(**{**how, "inner": 0}))
    x = [asked[4 + 2 * n][1] for n in range(4)]
    error = float((x[i + 1] - path.track[i + 1]).square().mean())
    assert fits(tolerance=error - 2e-5 * i + 1e-5)[i] == 1
    assert fits(tolerance=error - 2e-5 * i - 1e-5)[i] == 3
