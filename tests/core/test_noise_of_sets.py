"""All that a run and an inversion draw for several images is the set's: its start, its steps, an inversion's noise."""

from __future__ import annotations

import pytest
import torch

from sfumato.backbones.exact import Exact, Mixture
from sfumato.core.denoising import denoise
from sfumato.core.schedule import Schedule
from sfumato.core.steppers import DDIM
from sfumato.inversion import EditFriendly, invert
from sfumato.methods.edit import BlendedLatents, DeltaDenoising, FlowEdit, SDEdit
from sfumato.methods.sets.noise import Independent, Mixed, Progressive, Shared
from sfumato.prompts.layout import Mask


@pytest.fixture(scope="module")
def model():
    mixture = Mixture(torch.zeros(1, 3, 8, 8), 0.5)
    schedule = Schedule.read({"_class_name": "DDIMScheduler", "num_train_timesteps": 1000, "clip_sample": False})
    means = torch.stack([torch.full((3, 8, 8), 0.5), torch.full((3, 8, 8), -0.5)])
    return Exact({"a": mixture, "b": Mixture(means, 0.2, (0.5, 0.5))}, schedule)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_images_of_shared_noise_are_one_and_the_first_is_plain_sampling(model, eta):
    options = {"steps": 5, "guide": 1.0, "seed": 4, "stepper": DDIM(eta)}
    plain = denoise(model, ["a", "a"], **options).latents
    shared = denoise(model, ["a", "a"], noises=Shared(), **options).latents
    assert torch.equal(plain[:1], denoise(model, "a", noises=Shared(), **options).latents)
    assert torch.allclose(shared[1], shared[0]) and torch.allclose(shared[0], plain[0])
    assert not torch.allclose(plain[1], plain[0], atol=0.1)
    assert torch.equal(plain, denoise(model, ["a", "a"], noises=Independent(), **options).latents)


def test_a_run_starts_from_the_set_s_noise_and_the_model_is_left_as_it_was(model):
    started = []
    options = {"steps": 2, "guide": 1.0, "seed": 4}
    denoise(model, ["a"] * 3, noises=Progressive(1.0), callback=lambda step: started.append(step.x), **options)
    assert torch.allclose(started[0], Progressive(1.0).draw([4, 5, 6], (3, 8, 8)), atol=1e-6)
    assert isinstance(model.noises, Independent)
    inside = model.with_noises(Progressive(1.0))
    assert torch.equal(inside.latents([4, 5, 6], 8, 8), Progressive(1.0).draw([4, 5, 6], (3, 8, 8)))


@pytest.mark.parametrize(
    "how",
    [
        SDEdit(0.6, seed=3, steps=8),
        EditFriendly(scale=1.0, seed=3, steps=8),
        BlendedLatents(Mask(torch.ones(8, 8, dtype=torch.bool)), seed=3, steps=8),
        FlowEdit(1.0, 2.0, skip=0.25, seed=3, steps=8),
        DeltaDenoising(rate=0.1, seed=3, steps=8),
    ],
    ids=lambda how: type(how).__name__,
)
def test_an_edit_of_a_frame_twice_is_the_same_edit_when_they_share_their_noise(model, how):
    frame = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    twice = frame.expand(2, -1, -1, -1)

    def edited(noises):
        net = model.with_noises(noises)
        path = invert(net, twice, "a", how)
        out = denoise(net, {"source": ["a"] * 2, "target": ["b"] * 2}, start=path, guide=1.0)
        return out["target"].latents

    one, own, mixed = (edited(n) for n in (Shared(), Independent(), Mixed(1.0)))
    assert torch.allclose(one[0], one[1], atol=1e-6) and torch.allclose(one[0], own[0], atol=1e-6)
    assert not torch.allclose(own[0], own[1], atol=1e-3) and not torch.allclose(mixed[0], mixed[1], atol=1e-3)
