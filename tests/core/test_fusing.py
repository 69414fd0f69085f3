"""What views agree on, and where they are sampled: in closed form where the denoiser is exact."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from rounding import assert_same_but_for_rounding
from torch import Tensor

from sfumato.backbones.exact import Exact, Mixture
from sfumato.backbones.load import load
from sfumato.core.denoising import denoise
from sfumato.core.method import Energy, Method, Phases, Run
from sfumato.core.results import Trajectory
from sfumato.core.schedule import Schedule
from sfumato.core.steppers import DDIM
from sfumato.core.views import Looks, Ring, Tiles, Turned

PROMPT = "a red cube on grass"
FUSES = ["eps", "x0", "x_prev", "pixels"]
SIDES = ["canvas", "instance"]
IDENTITY, FLIP = Turned(), Turned(flipped=True)


@pytest.fixture
def model(here):
    return load("stilllife", device="cpu")


def exact(mean: Tensor) -> Exact:
    schedule = Schedule.read(
        DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    )
    return Exact({"x": Mixture(mean[None], 0.4)}, schedule)


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


class Doing(Method):
    """A method made of its phases."""

    def __init__(self, **phases):
        self.phases = phases

    def start(self, run: Run) -> Phases:
        return Phases(**self.phases)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("fuse", FUSES)
def test_an_identity_view_is_plain_sampling_bit_for_bit(model, fuse, side):
    prompts = {"a": [PROMPT, "a duck"], "b": ["a robot", "a cone"]}
    options: dict[str, Any] = {"steps": 3, "stepper": DDIM(1.0)}
    plain = denoise(model, prompts, **options)
    seen = denoise(model, prompts, views=Looks((IDENTITY,), fuse, side), **options)
    assert all(torch.equal(seen[name].latents, plain[name].latents) for name in prompts)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("fuse", FUSES)
@pytest.mark.parametrize("stepper", [DDIM(), DDIM(1.0)], ids=repr)
def test_a_picture_and_its_mirror_image_agree_on_their_mean(fuse, side, stepper):
    """Of a Gaussian the score is linear, so the mean of both is the score of the Gaussian around the mirrored mean."""
    mean = noise(3, 4, 6)
    options: dict[str, Any] = {"steps": 6, "guide": 1.0, "stepper": stepper, "start": noise(2, 3, 4, 6)}
    seen = denoise(exact(mean), ["x", "x"], views=Looks((IDENTITY, FLIP), fuse, side), **options)
    wanted = denoise(exact((mean + mean.flip(-1)) / 2), ["x", "x"], **options)
    torch.testing.assert_close(seen.latents, wanted.latents, atol=2e-3, rtol=2e-3)
    assert (denoise(exact(mean), ["x", "x"], **options).latents - wanted.latents).abs().max() > 0.1


@pytest.mark.parametrize("fuse", FUSES[:3])
@pytest.mark.parametrize("views", [Tiles, Ring])
def test_windows_sampled_each_by_itself_are_windows_of_a_canvas(model, views, fuse):
    """Windows start as parts of one noise, and a step without noise keeps them so; rows and guidance go by name."""
    prompts = {"a": [PROMPT, "a duck"], "b": ["a robot", "a cone"]}
    options: dict[str, Any] = {"steps": 3, "size": (128, 192), "guide": 4.0}
    whole = denoise(model, prompts, views=views(4, fuse), **options)
    apart = denoise(model, prompts, views=views(4, fuse, "instance"), **options)
    for name in prompts:
        torch.testing.assert_close(apart[name].latents, whole[name].latents, atol=1e-3, rtol=1e-3)


def test_windows_that_agree_on_pixels_are_decoded_and_encoded_again(model):
    """What a step stands for is the encoded mean of what its windows show decoded."""
    start, views = noise(1, 4, 16, 24), Tiles(8, "pixels")

    def x0(prompts: list[str], start: Tensor, views: Tiles | None = None) -> Tensor:
        kept = Trajectory(("x0",))
        denoise(model, prompts, steps=2, start=start, views=views, guide=1.0, trajectory=kept)
        return kept["x0"][0]

    left, right = x0([PROMPT, PROMPT], views.split(start, (16, 16)))
    with torch.no_grad():
        left, right = model.decode(torch.stack([left, right])).unbind(0)
        pixels = torch.cat([left[..., :64], (left[..., 64:] + right[..., :64]) / 2, right[..., 64:]], -1)
        whole = model.encode(pixels[None])
        windows = model.encode(torch.stack([pixels[..., :128], pixels[..., 64:]]))
    torch.testing.assert_close(x0([PROMPT], start, views), whole, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(x0([PROMPT], start, replace(views, side="instance")), windows, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    "phases",
    [
        {"energy": Energy(lambda step: 5 * (step.x0 - 0.3).square().sum(), through_network=False)},
        {"energy": Energy(lambda step: step.x0[:, :1].square().sum())},
        {"denoised": lambda step: setattr(step, "x0", step.x0.clamp(-0.5, 0.5))},
        {"noise": lambda step: torch.full_like(step.x, 0.1)},
    ],
    ids=["energy", "through the network", "denoised", "noise"],
)
def test_what_methods_change_on_a_canvas_each_view_moves_by(model, phases):
    """A step is linear, so that fused in x_prev it is as fused in x0, which is changed on the canvas itself."""
    options: dict[str, Any] = {"steps": 3, "size": (128, 192), "stepper": DDIM(1.0), "methods": [Doing(**phases)]}
    one, other = (denoise(model, PROMPT, views=Tiles(4, fuse), **options).latents for fuse in ("x0", "x_prev"))
    torch.testing.assert_close(other, one, atol=1e-3, rtol=1e-3)
    plain = denoise(model, PROMPT, views=Tiles(4), **{**options, "methods": []}).latents
    assert (other - plain).abs().max() > 0.05


def test_sampled_by_itself_each_view_is_an_image_to_methods(model):
    seen = []
    looking = Doing(denoised=lambda step: seen.append((step.x0.shape, step.run.rows, step.run.prompts)))
    prompts = {"a": [PROMPT, "a duck"], "b": ["a robot", "a cone"]}
    denoise(model, prompts, steps=1, size=(128, 192), views=Tiles(8, "x0", "instance"), methods=[looking])
    shape, rows, said = seen[0]
    assert shape == (8, 4, 16, 16) and (rows.of_stream, rows.views) == (4, 1)
    assert said == {"a": (PROMPT, PROMPT, "a duck", "a duck"), "b": ("a robot", "a robot", "a cone", "a cone")}
    assert rows.images("b") == slice(4, 8)


def test_a_view_feels_what_it_agrees_on_with_another():
    """Noise that goes to one of two views, which agree, comes to half of it in both."""
    model = exact(torch.zeros(1, 2, 2))
    first = Doing(noise=lambda step: torch.stack([torch.ones(1, 2, 2), torch.zeros(1, 2, 2)]))
    options: dict[str, Any] = {"steps": 2, "guide": 1.0, "start": noise(1, 1, 2, 2), "stepper": DDIM(1.0)}
    both = Doing(noise=lambda step: torch.full((2, 1, 2, 2), 0.5))
    one, other = (
        denoise(model, "x", views=Looks((IDENTITY, FLIP), "x_prev", "instance"), methods=[how], **options).latents
        for how in (first, both)
    )
    assert_same_but_for_rounding(one, other)
