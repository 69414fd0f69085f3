"""Laws of self-guidance on every family; its properties are the published formulas, and energies go down."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import families
import pytest
import torch

from sfumato.core.denoising import denoise
from sfumato.core.look import look
from sfumato.core.method import Method, Need, Phases, Run, Step, Where
from sfumato.core.views import Tiles
from sfumato.errors import SfumatoError
from sfumato.methods.control.self_guidance import SelfGuidance, appearance
from sfumato.ops.regions import carried, centroid, extent, soft

PROMPT, OTHER = "a red cube on grass", "a cube and the blue duck"
BOTH = {"source": [PROMPT, OTHER], "target": [PROMPT, OTHER]}
CLOSE = {"atol": 2e-4, "rtol": 2e-4}


@pytest.fixture(params=families.SOME)
def model(request, models):
    return models(request.param)


@pytest.fixture
def unet(sd):
    return sd


def run(model, *methods, prompts: Any = PROMPT, steps=2, **options: Any):
    return denoise(model, prompts, methods=methods, steps=steps, size=side(model), guide=3.0, **options)


def side(model) -> int:
    """Eight cells of latents, of pixels sixteen."""
    return 64 if model.factor > 1 else 16


class Watched(Method):
    """Keeps the energies of a method, and lets none of them act."""

    def __init__(self, method: Method):
        self.method = method
        self.energies: list[float] = []

    def start(self, run: Run) -> Phases:
        phases = self.method.start(run)

        def energy(step: Step) -> torch.Tensor:
            assert phases.energy is not None
            found = phases.energy.loss(step)
            self.energies.append(float(found))
            return 0 * found

        return replace(phases, energy=replace(phases.energy, loss=energy))


def test_what_has_the_sources_shapes_and_looks_has_no_energy(model):
    """Such as the same prompt from the same noise.

    What it is moved by is left out: energies are sums of |x|, whose slope is full-size beside 0 as well, with the sign
    of whatever rounding leaves there.
    """
    keep = SelfGuidance(keep_shape=("cube",), keep_appearance=("cube",), early=1.0, until=1.0, scale=1.0)
    for target, least, most in ((PROMPT, 0.0, 1e-5), (OTHER, 1e-3, 2.0)):
        watched = Watched(keep)
        run(model, watched, prompts={"source": PROMPT, "target": target})
        assert len(watched.energies) == 2 and all(least <= e < most for e in watched.energies), watched.energies


def test_every_second_step_later_on(unet):
    """Early steps are all guided, then the second, fourth, ... of the later ones, up to the last."""
    method = SelfGuidance(("cube",), to=(0.9, 0.1), early=0.2, until=0.8, scale=1e4)
    made = []

    def watch(step):
        made.append(bool((step.eps - plain(step)).abs().max() > 1e-6))

    def plain(step):
        prediction = step.parts["uncond"] + 3.0 * (step.parts["cond"] - step.parts["uncond"])
        return step.run.model.schedule.x0_and_eps(prediction, step.x, step.level)[1]

    run(unet, method, steps=10, callback=watch)
    assert made == [True, True, False, True, False, True, False, True, False, False]


def test_what_it_cannot_do_is_said(unet):
    def refused(match, method, prompts: Any = PROMPT, **options: Any):
        with pytest.raises(SfumatoError, match=match):
            run(unet, method, prompts=prompts, **options)

    refused("has no 'teapot'; its words are", SelfGuidance(("teapot",), to=(0, 0)))
    refused("move is relative to a source", SelfGuidance(("cube",), move=(0.1, 0)))
    refused("not by both", SelfGuidance(("cube",), to=(0.1, 0.1), move=(0.1, 0.1)), BOTH)
    refused("needs words and one of", SelfGuidance(("cube",)))
    refused("needs words and one of", SelfGuidance(to=(0.1, 0.1)))
    refused("no site of image->text", SelfGuidance(("cube",), to=(0.1, 0.1), stage="nowhere"))
    with pytest.raises(SfumatoError, match="seen in windows"):
        wide: dict[str, Any] = {"size": (128, 256), "views": Tiles(fuse="x0")}
        denoise(unet, PROMPT, methods=[SelfGuidance(("cube",), size=0.1)], steps=1, **wide)


def test_maps_measured_as_published():
    """The notebook's centroid and size, and its soft threshold, written again."""
    a = torch.rand(7, 5, generator=torch.Generator().manual_seed(0)) ** 4
    x, y = torch.linspace(0, 1, 5), torch.linspace(0, 1, 7)
    columns, rows = a.sum(0) / (a.sum() + 1e-4), a.sum(1) / (a.sum() + 1e-4)
    torch.testing.assert_close(centroid(a), torch.stack([(columns * x).sum(), (rows * y).sum()]))
    t = torch.sigmoid(10 * ((a - a.min()) / (a.max() - a.min() + 1e-4) - 0.5))
    t = (t - t.min()) / (t.max() - t.min() + 1e-4)
    torch.testing.assert_close(soft(a), t)
    torch.testing.assert_close(extent(a), t.mean())
    feature = torch.randn(3, 7, 5)
    wanted = torch.stack([(t * f).sum() / (t.sum() + 1e-4) for f in feature])
    torch.testing.assert_close(appearance([a, a], feature), wanted)


def test_a_carried_shape_lies_where_it_should():
    shape = torch.zeros(21, 21)
    shape[5:10, 4:9] = 1
    middle = centroid(shape)
    torch.testing.assert_close(carried(shape, middle, middle, 1.0), shape, atol=1e-4, rtol=1e-4)
    moved = carried(shape, middle, middle + torch.tensor([0.25, 0.1]), 1.0)
    assert torch.equal((moved > 0.5).float(), shape.roll((2, 5), (0, 1)))
    larger = carried(shape, middle, torch.tensor([0.5, 0.5]), 2.0)
    torch.testing.assert_close(centroid(larger), torch.tensor([0.5, 0.5]), atol=0.01, rtol=0)
    assert float(larger.sum() / shape.sum()) == pytest.approx(4, abs=0.6)


def test_the_maps_go_where_they_are_asked_to(unet):
    """On a tiny UNet: going down the energy brings the word's middle nearer to the goal."""
    need, goal = Need(Where("image->text", rows="cond")), (0.9, 0.2)
    tokens = unet.words(PROMPT)[2][1]
    away = []

    def watch(step):
        maps = look(step, [need], x=step.x_next)[need]
        found = [m["main", "cond"][0][:, tokens].mean(-1).view(s.grid(step.run.grid)) for s, m in maps.items()]
        away.append(float(torch.stack([(centroid(m) - torch.tensor(goal)).abs().mean() for m in found]).mean()))

    for scale in (0.0, 3e4):
        method = SelfGuidance(("cube",), to=goal, scale=scale, early=1.0, until=1.0)
        denoise(unet, PROMPT, methods=[method], steps=4, size=64, guide=1.0, callback=watch)
    assert away[7] < away[3]
