"""Steppers against closed forms: the exact denoiser of a Gaussian, and diffusers' own schedulers."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler
from families import Always

from sfumato.backbones.exact import Exact, Mixture
from sfumato.core.denoising import denoise
from sfumato.core.schedule import Schedule, joined
from sfumato.core.solvers import DEIS, LMS, PLMS, DPMSolver, Heun, Midpoint, Singlestep, UniPC
from sfumato.core.steppers import DDIM, DDPM, LCM, Euler, limiting
from sfumato.errors import SfumatoError
from sfumato.stilllife import networks

SD = {"_class_name": "DDIMScheduler", **networks.scheduler().config}
CLEAN = {**SD, "set_alpha_to_one": True}
MEAN = torch.linspace(-1, 1, 16).view(1, 1, 4, 4)
SECOND = [DPMSolver(), DPMSolver(data=False), DEIS(), UniPC(), UniPC(3), LMS(2), LMS()]
"""Of second order and more to the end."""
ENDS = [DPMSolver(3), Singlestep(), Heun(), Midpoint(), PLMS()]
"""So too, but for their last step, or where steps are not equal."""
STEPPERS = [
    DDIM(),
    DDIM(0.5),
    DDPM(),
    Euler(),
    Euler(ancestral=True),
    LCM(),
    LCM(None),
    *SECOND,
    *ENDS,
    DPMSolver(tau=1.0),
    Singlestep(tau=1.0),
    Midpoint(ancestral=True),
    UniPC(tau=Always(1.0), rule="bh1"),
]


def exact(std: float, mean: torch.Tensor = MEAN) -> Exact:
    return Exact({"": Mixture(mean, std), "x": Mixture(mean, std)}, Schedule.read(CLEAN))


CONFIGS: list[dict[str, Any]] = [
    {"set_alpha_to_one": True},
    {"set_alpha_to_one": False},
    {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    {"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True},
    {"_class_name": "DPMSolverMultistepScheduler", "final_sigmas_type": "sigma_min"},
    {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
]


@pytest.mark.parametrize(
    ("stepper", "spacing", "options"),
    [
        pytest.param(
            stepper,
            spacing,
            options,
            id=f"{stepper!r}-{spacing}-{k}",
            marks=[pytest.mark.slow] if (i + j + k) % 3 else [],  # any two of them meet every day
        )
        for i, stepper in enumerate(STEPPERS)
        for j, spacing in enumerate(("leading", "trailing", "linspace"))
        for k, options in enumerate(CONFIGS)
    ],
)
def test_it_is_finite_at_every_spacing_and_number_of_steps(stepper, spacing, options):
    """Or refused in a sentence, where a level would be visited twice."""
    config = {**CLEAN, "num_train_timesteps": 12, "timestep_spacing": spacing, **options}
    model = Exact({"x": Mixture(MEAN, 0.5)}, Schedule.read(config))
    for steps in (1, 2, 3, 11, 12):
        try:
            out = denoise(model, ["x", "x"], guide=1, steps=steps, stepper=stepper)
        except SfumatoError as error:
            assert "twice or at none" in str(error)
        else:
            assert out.latents.isfinite().all() and out.latents.abs().max() < 10, steps


@pytest.mark.parametrize("stepper", STEPPERS, ids=repr)
def test_an_image_of_a_batch_is_what_its_seed_gives_alone(stepper):
    """Whatever is drawn on the way is the image's own, and streams that are told the same draw the same."""
    model, options = exact(0.5), {"guide": 1, "steps": 5, "stepper": stepper}
    both = denoise(model, {"a": ["x", "x"], "b": ["", ""]}, seed=3, **options)
    for i in range(2):
        alone = denoise(model, "x", seed=3 + i, **options).latents
        for stream in both.values():
            torch.testing.assert_close(stream.latents[i : i + 1], alone)
    listed = denoise(model, ["x", "x"], seed=[9, 4], **options).latents
    torch.testing.assert_close(listed[1:], both["a"].latents[1:])
    assert (listed[0] - listed[1]).abs().max() > 0.1


@pytest.mark.parametrize("stepper", [s for s in STEPPERS if s != LCM()], ids=repr)  # which keeps a little of x
def test_a_point_is_found_exactly(stepper):
    out = denoise(exact(0.0), "x", guide=1, steps=5, stepper=stepper)
    torch.testing.assert_close(out.latents, MEAN, atol=1e-6, rtol=0)


@pytest.mark.parametrize("stepper", STEPPERS, ids=repr)
def test_no_steps_lead_nowhere(stepper):
    x, model = torch.randn(1, 1, 4, 4), exact(0.5)
    none = model.schedule.levels(5).last(0)
    assert stepper.visits(none, model.schedule) == none
    assert torch.equal(denoise(model, "x", guide=1, start=x, levels=none, stepper=stepper).latents, x)


def ode(std: float, steps: int, stepper, seed: int = 0) -> float:
    """Error against the flow of the probability-flow ODE, which keeps (x - alpha m) / sqrt(alpha^2 s^2 + sigma^2)."""
    model = exact(std)
    first = model.schedule.levels(steps)[0]
    x = model.latents([seed], 4, 4)
    spread = (first.alpha**2 * std**2 + first.sigma**2) ** 0.5
    truth = MEAN + std * (x - first.alpha * MEAN) / spread
    out = denoise(model, "x", guide=1, steps=steps, stepper=stepper, start=x)
    return float((out.latents - truth).abs().max())


@pytest.mark.parametrize("stepper", [DDIM(), Euler()], ids=repr)
def test_ddim_converges_on_the_ode_in_first_order(stepper):
    errors = [ode(0.5, n, stepper) for n in (25, 50, 100)]
    assert all(1.6 < a / b < 2.4 for a, b in itertools.pairwise(errors)), errors


@pytest.mark.parametrize("stepper", SECOND, ids=repr)
def test_the_others_converge_in_second_order(stepper):
    errors = [ode(0.5, n, stepper) for n in (50, 100)]
    assert errors[0] / errors[1] > 3 and errors[1] < 0.3 * ode(0.5, 100, DDIM()), errors


@pytest.mark.parametrize("stepper", ENDS, ids=repr)
def test_what_ends_in_first_order_is_nearer_than_it(stepper):
    assert ode(0.5, 100, stepper) < 0.5 * ode(0.5, 100, DDIM())


@pytest.mark.parametrize(
    "stepper", [DDPM(), Euler(ancestral=True), DPMSolver(tau=1.0), Midpoint(ancestral=True)], ids=repr
)
def test_noisy_steppers_sample_the_gaussian(stepper):
    model = exact(0.5, torch.full((1, 1, 16, 16), 0.3))
    seeds = list(range(64))
    out = denoise(model, ["x"] * 64, guide=1, steps=200, stepper=stepper, seed=seeds).latents
    n = out.numel()
    assert abs(out.mean() - 0.3) < 4 * 0.5 / n**0.5
    assert abs(out.std() - 0.5) < 0.025  # 200 steps of the posterior's variance end a little below


def run(stepper, times: list[int], noises: list[torch.Tensor], network) -> torch.Tensor:
    """Ours, at the times at which theirs works."""
    schedule = Schedule.read(SD)
    steps = len(times)
    levels = joined(schedule.at(times), schedule.levels(1)[1])
    move, x = stepper.start(schedule, steps), torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for i in range(steps):
        x0, eps = schedule.x0_and_eps(network(x, levels[i].t), x, levels[i])
        x = move(x, x0, eps, levels[i], levels[i + 1], lambda z=noises[i]: z)
    return x


def theirs(scheduler, steps: int, noises: list[torch.Tensor], network, monkeypatch, **options) -> torch.Tensor:
    """diffusers' scheduler, given the same noises in turn."""
    turn = iter(noises)
    module = __import__(type(scheduler).__module__, fromlist=["randn_tensor"])
    if hasattr(module, "randn_tensor"):
        monkeypatch.setattr(module, "randn_tensor", lambda *a, **k: next(turn))
    scheduler.set_timesteps(steps)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, float(t)), t, x, **options).prev_sample
    return x


def network(x: torch.Tensor, t: float) -> torch.Tensor:
    """Any smooth function of x and t."""
    return torch.sin(3 * x + t / 100) * 0.8 + 0.1 * x


@pytest.mark.parametrize(
    ("ours", "scheduler", "options"),
    [
        (DDIM(), DDIMScheduler.from_config(SD), {}),
        (DDIM(0.7), DDIMScheduler.from_config(SD), {"eta": 0.7}),
        (DDPM(), DDIMScheduler.from_config(SD), {"eta": 1.0}),
        (DPMSolver(), DPMSolverMultistepScheduler.from_config(SD, final_sigmas_type="sigma_min"), {}),
    ],
    ids=["ddim", "eta", "ddpm", "dpm"],
)
def test_steps_are_diffusers_steps(ours, scheduler, options, monkeypatch):
    noises = list(torch.randn(20, 1, 4, 8, 8, generator=torch.Generator().manual_seed(1)))
    b = theirs(scheduler, 20, noises, network, monkeypatch, **options)
    a = run(ours, scheduler.timesteps.tolist(), noises, network)
    torch.testing.assert_close(a, b, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("kind", [DDIMScheduler, DDPMScheduler])
@pytest.mark.parametrize("limit", [{"clip_sample": True, "clip_sample_range": 0.7}, {"thresholding": True}])
def test_data_is_limited_as_in_the_schedulers_own_step(kind, limit, monkeypatch):
    """DDIM's keeps the noise that the network said, DDPM's takes it from the limited data."""
    scheduler = kind(**{k: v for k, v in SD.items() if k.startswith("beta")}, **limit, dynamic_thresholding_ratio=0.9)
    scheduler.set_timesteps(10)
    schedule, noise = Schedule.read(scheduler), torch.zeros(2, 4, 8, 8)
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: noise)
    move = limiting((DDIM() if kind is DDIMScheduler else DDPM()).start(schedule, 10), schedule)
    x, levels = 2 * torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), schedule.levels(10)
    eps = network(x, 500.0)
    wanted = scheduler.step(eps, scheduler.timesteps[5], x).prev_sample
    x0, eps = schedule.x0_and_eps(eps, x, levels[5])
    torch.testing.assert_close(move(x, x0, eps, levels[5], levels[6], lambda: noise), wanted, atol=1e-4, rtol=1e-4)
    assert (DDIM().start(schedule, 10)(x, x0, eps, levels[5], levels[6], lambda: noise) - wanted).abs().max() > 1e-2


def test_ddpm_is_the_ancestral_sampler_of_the_paper(monkeypatch):
    scheduler = DDPMScheduler.from_config(SD, timestep_spacing="leading", clip_sample=False)
    noises = list(torch.randn(10, 1, 4, 8, 8, generator=torch.Generator().manual_seed(1)))
    scheduler.set_timesteps(10)
    schedule = Schedule.read(SD)
    levels = schedule.levels(10)
    x = torch.randn(1, 4, 8, 8)
    for i in range(9):  # the last step of theirs goes to no noise at all
        monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *a, z=noises[i], **k: z)
        eps = network(x, levels[i].t)
        b = scheduler.step(eps, scheduler.timesteps[i], x).prev_sample
        x0, _ = schedule.x0_and_eps(eps, x, levels[i])
        a = DDPM().start(schedule, 10)(x, x0, eps, levels[i], levels[i + 1], lambda z=noises[i]: z)
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
        x = a


def test_ancestral_euler_is_k_diffusions(monkeypatch):
    scheduler = EulerAncestralDiscreteScheduler.from_config(SD, timestep_spacing="leading")
    scheduler.set_timesteps(10)
    noises = list(torch.randn(10, 1, 4, 8, 8, generator=torch.Generator().manual_seed(1)))
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_euler_ancestral_discrete.randn_tensor", lambda *a, **k: noises[i]
    )
    schedule = Schedule.read({**SD, "set_alpha_to_one": True})
    levels = schedule.levels(10)
    x = torch.randn(1, 4, 8, 8)
    k = x / levels[0].alpha  # k-diffusion's variable
    for i in range(10):
        t = scheduler.timesteps[i]
        k = scheduler.step(network(scheduler.scale_model_input(k, t), float(t)), t, k).prev_sample
        x0, eps = schedule.x0_and_eps(network(x, levels[i].t), x, levels[i])
        x = Euler(True).start(schedule, 10)(x, x0, eps, levels[i], levels[i + 1], lambda z=noises[i]: z)
        torch.testing.assert_close(x / levels[i + 1].alpha, k, atol=2e-3, rtol=2e-3)
