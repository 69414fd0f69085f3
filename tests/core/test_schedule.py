"""Levels as diffusers' schedulers have them, and the algebra of predictions both ways."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler, PNDMScheduler

from sfumato.core.schedule import PREDICTIONS, Level, Schedule, add_noise, score
from sfumato.errors import SfumatoError
from sfumato.stilllife import networks

SD = networks.scheduler().config


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_data_and_noise_are_found_again(kind):
    schedule = Schedule.read(SD).predicting(kind)
    x0, eps = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    level = Level.of(0, 0.8, 0.2) if kind == "flow" else Level.of(0, 0.8, 0.6)
    x = add_noise(x0, eps, level)
    found = schedule.x0_and_eps(schedule.prediction_of(x0, eps, level), x, level)
    torch.testing.assert_close(found, (x0, eps), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(score(eps, level), -eps / level.sigma)


@pytest.mark.parametrize("steps", [1, 7, 30, 50, 1000])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_levels_are_the_schedulers(steps, spacing):
    scheduler = DDIMScheduler.from_config(SD, timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    levels = Schedule.read(scheduler.config).levels(steps)
    assert len(levels) == steps
    wanted = scheduler.timesteps.clamp(max=999)
    assert levels.all.t[:-1].tolist() == wanted.tolist()
    torch.testing.assert_close(levels.all.alpha[:-1].float() ** 2, scheduler.alphas_cumprod[wanted])
    assert levels[steps].alpha ** 2 == pytest.approx(float(scheduler.alphas_cumprod[0]))  # set_alpha_to_one is false
    assert all(abs(level.alpha**2 + level.sigma**2 - 1) < 1e-12 for level in levels)


def test_configs_of_other_schedulers_are_read():
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    euler = Schedule.read(EulerDiscreteScheduler(**betas).config).levels(10)
    assert euler[10].sigma == 0 and euler[10].alpha == 1
    pndm = Schedule.read(PNDMScheduler(**betas, steps_offset=1).config).levels(50)
    assert pndm.all.t[:2].tolist() == [981, 961] and pndm[50].sigma > 0
    zero = Schedule.read(
        DDIMScheduler(
            **betas, rescale_betas_zero_snr=True, timestep_spacing="trailing", prediction_type="v_prediction"
        ).config
    )
    first = zero.levels(10)[0]
    assert first.t == 999 and first.alpha < 1e-6
    x = torch.randn(1, 4, 2, 2)
    with pytest.raises(SfumatoError, match="alpha is zero"):
        zero.predicting("epsilon").x0_and_eps(x, x, Level.of(999, 0.0, 1.0))


def test_flows_have_the_shift_of_their_checkpoint():
    plain = FlowMatchEulerDiscreteScheduler(shift=3.0)
    plain.set_timesteps(28)
    levels = Schedule.read(plain.config).levels(28)
    torch.testing.assert_close(levels.all.sigma.float(), plain.sigmas)
    torch.testing.assert_close(levels.all.alpha + levels.all.sigma, torch.ones(29, dtype=torch.float64))
    flux = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256, max_image_seq_len=4096
    )
    flux.set_timesteps(sigmas=torch.linspace(1, 1 / 20, 20).tolist(), mu=0.5 + 0.65 * (1024 - 256) / 3840)
    levels = Schedule.read(flux.config).levels(20, tokens=1024)
    torch.testing.assert_close(levels.all.sigma.float(), flux.sigmas)


def test_only_the_last_steps():
    levels = Schedule.read(SD).levels(50)
    part = levels.last(40)
    assert len(part) == 40 and part[0] == levels[10] and part[40] == levels[50]
    assert len(levels.last(0)) == 0
    with pytest.raises(SfumatoError, match="there are 50 steps"):
        levels.last(51)


def test_what_cannot_be_read_is_said():
    with pytest.raises(SfumatoError, match="unknown prediction type 'score'"):
        Schedule.read({**SD, "prediction_type": "score"})
    schedule = Schedule.read(SD)
    with pytest.raises(SfumatoError, match="between 1 and 1000 steps, got 0"):
        schedule.levels(0)
    for t in (1000, -1, 0.5):
        with pytest.raises(SfumatoError, match="whole number from 0 to 999"):
            schedule.at(t)
