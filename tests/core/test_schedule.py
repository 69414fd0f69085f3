"""Levels as diffusers' schedulers have them, and the algebra of predictions both ways."""

from __future__ import annotations

import inspect
import re
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

from sfumato.core.schedule import KNOWN, PREDICTIONS, Level, Schedule, add_noise, score
from sfumato.errors import SfumatoError
from sfumato.stilllife import networks

SD = {"_class_name": "DDIMScheduler", **networks.scheduler().config}


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_data_and_noise_are_found_again(kind):
    schedule = Schedule.read(SD).predicting(kind)
    x0, eps = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    level = Level.of(0, 0.8, 0.2) if kind == "flow" else Level.of(0, 0.8, 0.6)
    x = add_noise(x0, eps, level)
    found = schedule.x0_and_eps(schedule.prediction_of(x0, eps, level), x, level)
    torch.testing.assert_close(found, (x0, eps), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(score(eps, level), -eps / level.sigma)


@pytest.mark.parametrize("steps", [1, 7, 30, 50, 999])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_levels_are_the_schedulers(steps, spacing):
    scheduler = DDIMScheduler.from_config(SD, timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    levels = Schedule.read(scheduler).levels(steps)
    assert len(levels) == steps
    wanted = scheduler.timesteps.clamp(max=999)
    assert levels.all.t[:-1].tolist() == wanted.tolist()
    torch.testing.assert_close(levels.all.alpha[:-1].float() ** 2, scheduler.alphas_cumprod[wanted])
    assert levels[steps].alpha ** 2 == pytest.approx(float(scheduler.alphas_cumprod[0]))  # set_alpha_to_one is false
    assert all(abs(level.alpha**2 + level.sigma**2 - 1) < 1e-12 for level in levels)


BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SPACINGS = ("leading", "trailing", "linspace")
SIGMAS = ({}, {"use_karras_sigmas": True}, {"use_exponential_sigmas": True}, {"use_beta_sigmas": True})
ZERO = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
FLOWS = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
BY_SIGMAS: dict[str, tuple[dict[str, Any], ...]] = {
    "EulerDiscreteScheduler": (
        *SIGMAS, ZERO, {"interpolation_type": "log_linear"}, {"final_sigmas_type": "sigma_min"}, {"steps_offset": 7},
        {"timestep_type": "continuous", "prediction_type": "v_prediction", "use_karras_sigmas": True},
    ),
    "EulerAncestralDiscreteScheduler": ({}, ZERO, {"steps_offset": 1}),
    "LMSDiscreteScheduler": (*SIGMAS, {"trained_betas": [0.01] * 1000}),
    "DPMSolverMultistepScheduler": (
        *SIGMAS, ZERO, FLOWS, {"use_lu_lambdas": True}, {"final_sigmas_type": "sigma_min"},
        {"beta_schedule": "squaredcos_cap_v2"},
    ),
    "DPMSolverSinglestepScheduler": (*SIGMAS, FLOWS, {"final_sigmas_type": "sigma_min"}),
    "DEISMultistepScheduler": (*SIGMAS, FLOWS),
    "UniPCMultistepScheduler": (*SIGMAS, ZERO, FLOWS),
    "SASolverScheduler": (*SIGMAS, FLOWS),
}  # fmt: skip


def each(options: dict[str, tuple[dict[str, Any], ...]]) -> Any:
    """Of a class the first config every day at all spacings, the others at one each, which they take in turn."""
    cases = [
        pytest.param(kind, config, spacing, marks=[pytest.mark.slow] if i and (i + j) % 3 else [])
        for kind, some in options.items()
        for i, config in enumerate(some)
        for j, spacing in enumerate(SPACINGS)
    ]
    return pytest.mark.parametrize(("kind", "config", "spacing"), cases)


@each(BY_SIGMAS)
def test_levels_are_the_sigmas_of_the_schedulers_class(kind, config, spacing):
    made = getattr(diffusers, kind)
    known = inspect.signature(made).parameters
    options = {**BETAS, "timestep_spacing": spacing, **config}
    scheduler = made(**{k: v for k, v in options.items() if k in known})
    schedule = Schedule.read(scheduler)
    for steps in (1, 3, 10):
        levels = schedule.levels(steps)
        scheduler.set_timesteps(steps)
        assert len(levels) == steps
        assert levels.all.t[:-1].tolist() == scheduler.timesteps.tolist()
        _, alpha, sigma = levels.all
        flow = config.get("use_flow_sigmas")
        wanted = scheduler.sigmas.double()[: steps + 1]
        torch.testing.assert_close(sigma if flow else sigma / alpha, wanted, atol=1e-9, rtol=1e-9)
        scaled = kind in ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "LMSDiscreteScheduler")
        size = alpha + sigma if flow else alpha**2 + sigma**2
        torch.testing.assert_close(size[:-1], torch.ones_like(size[:-1]))
        assert alpha[-1] == pytest.approx(1.0 if scaled else float(alpha[-1] / size[-1]))
        begins = sigma[0] if scaled and spacing != "leading" else 1.0
        assert levels.spread == pytest.approx(float(begins), rel=1e-6)


BY_TIMES: dict[str, tuple[dict[str, Any], ...]] = {
    "DDIMScheduler": ({}, ZERO, {"steps_offset": 1}, {"set_alpha_to_one": False}, {"num_train_timesteps": 100}),
    "DDIMParallelScheduler": ({"set_alpha_to_one": False},),
    "DDPMScheduler": ({}, {"beta_schedule": "sigmoid"}, {"steps_offset": 1}),
    "DDPMParallelScheduler": ({"trained_betas": [0.01] * 1000},),
    "LCMScheduler": ({}, {"original_inference_steps": 20}, {"set_alpha_to_one": False}),
    "TCDScheduler": ({}, {"original_inference_steps": 20}),
}


@each(BY_TIMES)
def test_levels_are_the_times_of_the_schedulers_class(kind, config, spacing):
    scheduler = getattr(diffusers, kind)(**{**BETAS, "timestep_spacing": spacing, **config})
    schedule = Schedule.read(scheduler)
    last = {
        "DDIM": scheduler.alphas_cumprod[0] if config.get("set_alpha_to_one") is False else 1.0,
        "TCDS": scheduler.alphas_cumprod[0],
    }.get(kind[:4], 1.0)
    for steps in (1, 3, 10):
        scheduler.set_timesteps(steps)
        levels = schedule.levels(steps)
        assert levels.all.t[:-1].tolist() == scheduler.timesteps.tolist() and levels.spread == 1
        wanted = torch.cat([scheduler.alphas_cumprod[scheduler.timesteps], torch.tensor([float(last)])])
        torch.testing.assert_close(levels.all.alpha**2, wanted.double(), atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("kind", ["PNDM", "Heun", "KDPM2", "KDPM2Ancestral"])
def test_what_asks_the_network_twice_a_step_has_the_levels_of_what_asks_once(kind):
    own = kind + ("Scheduler" if kind == "PNDM" else "DiscreteScheduler")
    scheduler = getattr(diffusers, own)(**BETAS, steps_offset=1, timestep_spacing="leading")
    once = DDIMScheduler if kind == "PNDM" else EulerDiscreteScheduler
    more = {"set_alpha_to_one": False} if kind == "PNDM" else {}
    same = once(**BETAS, steps_offset=1, timestep_spacing="leading", **more)
    assert Schedule.read(scheduler).levels(50) == Schedule.read(same).levels(50)


@pytest.mark.parametrize("config", [{}, {"prediction_type": "v_prediction", "timestep_type": "continuous"}])
def test_a_level_is_found_by_its_ratio(config):
    schedule = Schedule.read(EulerDiscreteScheduler(**BETAS, **config))
    level = schedule.at(1.0 if config else 500)
    found = schedule.at_ratio(level.sigma / level.alpha)
    torch.testing.assert_close(torch.stack(found), torch.stack(level))
    flow = Schedule.read(FlowMatchEulerDiscreteScheduler())
    torch.testing.assert_close(torch.stack(flow.at_ratio(torch.tensor(3.0).double())), torch.stack(flow.at(750)))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_between_two_steps_sigma_by_alpha_is_linear(prediction):
    schedule = Schedule.read(EulerDiscreteScheduler(**BETAS, prediction_type=prediction))
    found = schedule.at([500, 500.25, 501])
    ratio = found.sigma / found.alpha
    assert ratio[1] == pytest.approx(float(0.75 * ratio[0] + 0.25 * ratio[2]))
    levels = schedule.levels(7)
    again = schedule.at(levels.all.t[:-1])
    torch.testing.assert_close(again.sigma, levels.all.sigma[:-1], atol=1e-6, rtol=1e-6)


def test_zero_terminal_snr_says_nothing_of_the_image_by_its_noise():
    zero = Schedule.read(DDIMScheduler(**BETAS, **ZERO, timestep_spacing="trailing"))
    first = zero.levels(10)[0]
    assert first.t == 999 and first.alpha < 1e-6
    x = torch.randn(1, 4, 2, 2)
    with pytest.raises(SfumatoError, match="alpha is zero"):
        zero.predicting("epsilon").x0_and_eps(x, x, Level.of(999, 0.0, 1.0))


def test_flows_have_the_shift_of_their_checkpoint():
    plain = FlowMatchEulerDiscreteScheduler(shift=3.0)
    plain.set_timesteps(28)
    levels = Schedule.read(plain).levels(28)
    torch.testing.assert_close(levels.all.sigma.float(), plain.sigmas)
    torch.testing.assert_close(levels.all.alpha + levels.all.sigma, torch.ones(29, dtype=torch.float64))
    flux = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256, max_image_seq_len=4096
    )
    flux.set_timesteps(sigmas=torch.linspace(1, 1 / 20, 20).tolist(), mu=0.5 + 0.65 * (1024 - 256) / 3840)
    levels = Schedule.read(flux).levels(20, 1024, torch.linspace(1, 1 / 20, 20).tolist())
    torch.testing.assert_close(levels.all.sigma.float(), flux.sigmas)


@pytest.mark.parametrize(
    "config",
    [
        {"use_dynamic_shifting": True, "time_shift_type": "linear", "shift_terminal": 0.1},
        {"shift": 2.0, "use_karras_sigmas": True},
        {"use_exponential_sigmas": True},
        {"use_beta_sigmas": True},
        {"num_train_timesteps": 500, "stochastic_sampling": True},
    ],
)
def test_flows_have_every_option_of_their_checkpoint(config):
    scheduler: Any = FlowMatchEulerDiscreteScheduler(**config)
    mu = {"mu": 0.5 + 0.65 * (1024 - 256) / 3840} if "use_dynamic_shifting" in config else {}
    scheduler.set_timesteps(8, **mu)
    levels = Schedule.read(scheduler).levels(8, 1024)
    torch.testing.assert_close(levels.all.sigma.float(), scheduler.sigmas)
    assert levels.all.t[:-1].tolist() == scheduler.timesteps.tolist()


@pytest.mark.parametrize("kind", [k for k in KNOWN if not k.startswith("FlowMatch")])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_no_run_is_at_a_level_twice(kind, spacing):
    """Up to as many steps as there are; what is refused says how many there may be, and so many there are."""
    made = getattr(diffusers, kind)
    known = inspect.signature(made).parameters
    options = {**BETAS, "timestep_spacing": spacing, "steps_offset": 1, "num_train_timesteps": 60}
    schedule = Schedule.read(made(**{k: v for k, v in options.items() if k in known}))
    steps = 60
    while True:
        try:
            _, alpha, sigma = schedule.levels(steps).all
            break
        except SfumatoError as error:
            found = re.fullmatch(r".*(?:between 1 and (\d+) steps, got 60|with 60 steps; take (\d+))", str(error))
            assert found, error
            steps = int(found[1] or found[2])
    ratio = sigma / alpha
    assert (ratio[1:-1] < ratio[:-2]).all() and ratio[-1] <= ratio[-2]


def test_a_thousand_steps_with_an_offset_are_refused_with_a_word():
    with pytest.raises(SfumatoError, match="at a level twice or at none with 1000 steps; take 999"):
        Schedule.read(SD).levels(1000)
    terminal = Schedule.read(FlowMatchEulerDiscreteScheduler(shift_terminal=0.1))
    with pytest.raises(SfumatoError, match="with 1 steps; take 2"):
        terminal.levels(1)
    clipped = diffusers.DPMSolverMultistepScheduler(**BETAS, lambda_min_clipped=-2.0, timestep_spacing="trailing")
    with pytest.raises(SfumatoError, match="with 500 steps; take "):
        Schedule.read(clipped).levels(500)


def test_only_the_last_steps():
    levels = Schedule.read(SD).levels(50)
    part = levels.last(40)
    assert len(part) == 40 and part[0] == levels[10] and part[40] == levels[50]
    assert len(levels.last(0)) == 0
    with pytest.raises(SfumatoError, match="there are 50 steps"):
        levels.last(51)


def test_what_cannot_be_read_is_said(monkeypatch):
    with pytest.raises(SfumatoError, match="unknown prediction type 'score'"):
        Schedule.read({**SD, "prediction_type": "score"})
    with pytest.raises(
        SfumatoError,
        match=r"unknown scheduler 'EDMEulerScheduler'; did you mean EulerDiscreteScheduler .* known: DDIMScheduler, ",
    ):
        Schedule.read(diffusers.EDMEulerScheduler())
    with pytest.raises(SfumatoError, match=r"unknown scheduler 'EDMEulerScheduler'"):
        Schedule.read({"_class_name": "EDMEulerScheduler", "sigma_data": 0.5})

    class Own(DDIMScheduler):
        pass

    assert Schedule.read(Own(**BETAS)) == Schedule.read(DDIMScheduler(**BETAS))
    monkeypatch.setattr(Own, "set_timesteps", lambda self, steps: None)
    with pytest.raises(SfumatoError, match="unknown scheduler 'Own'"):
        Schedule.read(Own(**BETAS))
    with pytest.raises(SfumatoError, match=r"does not say of which class it is; give the scheduler"):
        Schedule.read({"shift": 3.0})
    with pytest.raises(
        SfumatoError, match=r"DDIMScheduler has the option sigma_data \(0.5\), which no known scheduler"
    ):
        Schedule.read({**SD, "sigma_data": 0.5})
    with pytest.raises(SfumatoError, match=r"invert_sigmas"):
        Schedule.read(FlowMatchEulerDiscreteScheduler(invert_sigmas=True))
    with pytest.raises(SfumatoError, match=r"prediction_type 'epsilon' with use_flow_sigmas True"):
        Schedule.read(diffusers.UniPCMultistepScheduler(use_flow_sigmas=True))
    with pytest.raises(SfumatoError, match=r"cannot be made of its config: Only one of"):
        Schedule.read(
            {"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True, "use_exponential_sigmas": True}
        )
    with pytest.raises(SfumatoError, match=r"trained_betas are 3 and num_train_timesteps is 1000"):
        Schedule.read(DDIMScheduler(trained_betas=[0.1, 0.2, 0.3]))
    assert Schedule.read({**SD, "skip_prk_steps": True, "use_karras_sigmas": True}).levels(5) == Schedule.read(
        SD
    ).levels(5)
    with pytest.raises(SfumatoError, match="between 1 and 50 steps, got 51"):
        Schedule.read(diffusers.LCMScheduler()).levels(51)
    schedule = Schedule.read(SD)
    with pytest.raises(SfumatoError, match="between 1 and 1000 steps, got 0"):
        schedule.levels(0)
    for t in (1000, -1, 999.5):
        with pytest.raises(SfumatoError, match="t lies from 0 to 999"):
            schedule.at(t)
