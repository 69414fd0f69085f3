"""Every scheduler's own stepper against diffusers' steps, whatever its config says."""

from __future__ import annotations

import inspect
import sys
from dataclasses import replace
from typing import Any

import diffusers
import families
import pytest
import torch
from families import Always
from torch import Tensor

from sfumato.backbones.load import family
from sfumato.core.denoising import denoise, plan
from sfumato.core.schedule import KNOWN, Schedule
from sfumato.core.solvers import PLMS, DPMSolver, Heun
from sfumato.core.steppers import DDIM, Stepper, limiting
from sfumato.core.suited import differs, suited
from sfumato.errors import SfumatoError
from sfumato.inversion import DDIMInversion, Noise, invert
from sfumato.methods.control import PerturbedAttention, UniversalGuidance

BETAS = {"beta_start": 0.0085, "beta_end": 0.12, "beta_schedule": "scaled_linear", "num_train_timesteps": 100}
THOUSAND = {"beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}
V = {"prediction_type": "v_prediction"}
COSINE = {"beta_schedule": "squaredcos_cap_v2", **V}
KARRAS = {"use_karras_sigmas": True}
TRAILING = {"timestep_spacing": "trailing"}
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
MIN = {"final_sigmas_type": "sigma_min"}
ORDERS = ({"solver_order": 1}, {}, {"solver_order": 3})
DPM: list[dict[str, Any]] = [
    {"algorithm_type": kind, "solver_type": rule, **order, **more}
    for kind, more in (("dpmsolver++", {}), ("dpmsolver", MIN), ("sde-dpmsolver++", {}), ("sde-dpmsolver", MIN))
    for rule in ("midpoint", "heun")
    for order in ORDERS
    if not ("sde" in kind and "solver_order" in order and order["solver_order"] == 3)
]
CASES: dict[str, list[dict[str, Any]]] = {
    "DDIMScheduler": [{}, {**V, "rescale_betas_zero_snr": True}, {"clip_sample": True, "clip_sample_range": 0.5}],
    "DDPMScheduler": [{"variance_type": "fixed_small_log"}, {"clip_sample": True},
                      COSINE],
    "EulerDiscreteScheduler": [{}, KARRAS, TRAILING, V, MIN, COSINE],
    "EulerAncestralDiscreteScheduler": [{}, TRAILING, V, COSINE],
    "HeunDiscreteScheduler": [{}, KARRAS, TRAILING, V, COSINE, {"clip_sample": True, "clip_sample_range": 0.5}],
    "KDPM2DiscreteScheduler": [{}, KARRAS, {"use_exponential_sigmas": True}, TRAILING, V, COSINE],
    "KDPM2AncestralDiscreteScheduler": [{}, KARRAS, {"use_beta_sigmas": True}, TRAILING, V, COSINE],
    "LMSDiscreteScheduler": [{}, KARRAS, TRAILING, V, COSINE],
    "PNDMScheduler": [
        {"skip_prk_steps": True, "steps_offset": 1}, {"skip_prk_steps": True, "set_alpha_to_one": True, **V},
        {"skip_prk_steps": True, **COSINE},
    ],
    "DPMSolverMultistepScheduler": [
        *DPM, KARRAS, {**KARRAS, "solver_order": 3, "lower_order_final": False}, V, FLOW, COSINE, TRAILING,
        {"euler_at_final": True, **MIN, "lower_order_final": False}, {"thresholding": True, "sample_max_value": 1.2},
        {**FLOW, "solver_order": 3}, {"use_lu_lambdas": True},
    ],
    "DPMSolverSinglestepScheduler": [
        *(c for c in DPM if c["algorithm_type"] != "sde-dpmsolver"), KARRAS, V, FLOW, COSINE,
        {"lower_order_final": True}, {"lower_order_final": True, **MIN},
        {"lower_order_final": True, **MIN, "solver_order": 3},
    ],
    "DEISMultistepScheduler": [
        *ORDERS, KARRAS, {**KARRAS, "solver_order": 3, "lower_order_final": False}, V, FLOW, COSINE,
    ],
    "UniPCMultistepScheduler": [
        *({"solver_type": bh, "predict_x0": data, **order, **MIN} for bh in ("bh1", "bh2") for data in (True, False)
          for order in ORDERS),
        {}, KARRAS, V, FLOW, {"disable_corrector": [0, 2]}, COSINE, {"lower_order_final": False, **MIN}, TRAILING,
    ],
    "SASolverScheduler": [
        {}, *({"predictor_order": p, "corrector_order": c} for p in (1, 2, 3) for c in (1, 2, 3)), V, FLOW,
        {"algorithm_type": "noise_prediction"},
        {"tau_func": Always(0.0)}, {"tau_func": Always(0.7)}, KARRAS, COSINE, {"lower_order_final": False},
    ],
    "LCMScheduler": [{}, TRAILING],
    "TCDScheduler": [{}],
    "FlowMatchEulerDiscreteScheduler": [{"shift": 3.0}, {"stochastic_sampling": True}],
    "FlowMatchHeunDiscreteScheduler": [{}, {"shift": 3.0}],
    "FlowMatchLCMScheduler": [{"shift": 3.0}],
}  # fmt: skip


def network(x: Tensor, t: float) -> Tensor:
    """Any smooth function of x and t."""
    return torch.sin(2 * x + t / 200) * 0.8 + 0.1 * x


def start() -> Tensor:
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def draws() -> Any:
    generator = torch.Generator().manual_seed(1)
    return lambda *_, **__: torch.randn(1, 4, 8, 8, generator=generator)


def ours(schedule: Schedule, steps: int, stepper: Stepper | None = None) -> tuple[Tensor, list[float]]:
    stepper, noise = stepper or suited(schedule), draws()
    levels = stepper.visits(schedule.levels(steps), schedule)
    move, x = limiting(stepper.start(schedule, len(levels)), schedule), levels.spread * start()
    for i in range(len(levels)):
        x0, eps = schedule.x0_and_eps(network(x, float(levels[i].t)), x, levels[i])
        x = move(x, x0, eps, levels[i], levels[i + 1], noise)
    return x, levels.all.t[:-1].tolist()


def theirs(scheduler: Any, steps: int, monkeypatch: Any) -> tuple[Tensor, list[float]]:
    module = sys.modules[type(scheduler).__module__]
    if hasattr(module, "randn_tensor"):
        monkeypatch.setattr(module, "randn_tensor", draws())
    scheduler.set_timesteps(steps)
    x = start() * getattr(scheduler, "init_noise_sigma", 1.0)
    more: dict[str, Any] = {"eta": 0.0} if isinstance(scheduler, diffusers.TCDScheduler) else {}
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(network(scaled, float(t)), t, x, **more)[0]
    return x, [float(t) for t in scheduler.timesteps]


@pytest.mark.parametrize(
    ("kind", "config"), [pytest.param(kind, c, id=f"{kind}-{c}") for kind, some in CASES.items() for c in some]
)
def test_steps_are_those_of_the_scheduler_itself(kind, config, monkeypatch):
    made = getattr(diffusers, kind)
    known = inspect.signature(made).parameters
    options = {**BETAS, "timestep_spacing": "leading", "clip_sample": False, **config}
    options |= THOUSAND if kind == "SASolverScheduler" else {}  # whose noise is of times from 200 to 800
    own = {k: v for k, v in options.items() if k in known}
    schedule = Schedule.read(made(**own))
    assert differs(schedule) is None
    for steps in (1, 2, 6, 17):
        found, times = ours(schedule, steps)
        wanted, visited = theirs(made(**own), steps, monkeypatch)
        torch.testing.assert_close(times, visited, atol=1e-3, rtol=0)
        assert float((found - wanted).abs().max()) <= 1e-4 * max(1.0, float(wanted.abs().max())), steps


def test_every_scheduler_is_compared():
    assert set(KNOWN) - set(CASES) == {"DDIMParallelScheduler", "DDPMParallelScheduler", "ScoreSdeVeScheduler"}


def remarkable(kind: str, **config: Any) -> str | None:
    return differs(Schedule.read(getattr(diffusers, kind)(**config)))


def test_what_is_not_the_schedulers_own_step_to_the_letter_is_said():
    assert remarkable("DDPMScheduler", variance_type="learned_range") is None
    for more in ({"steps_offset": 1}, {"timestep_spacing": "trailing"}):
        assert "adds no noise" in str(remarkable("DDPMScheduler", variance_type="fixed_large", **more))
    assert "fixed_large_log" in str(remarkable("DDPMScheduler", variance_type="fixed_large_log"))
    assert "without Runge and Kutta's" in str(remarkable("PNDMScheduler"))
    assert "without its corrector" in str(remarkable("ScoreSdeVeScheduler"))
    third = {"algorithm_type": "sde-dpmsolver++", "solver_order": 3}
    for kind in ("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"):
        assert "k-diffusion's signs" in str(remarkable(kind, **third))
        assert remarkable(kind, **third | {"solver_order": 2}) is None
    unipc = Schedule.read(diffusers.UniPCMultistepScheduler())
    assert "solver_p" in str(differs(replace(unipc, config={**unipc.config, "solver_p": object()})))


REPEATING = UniversalGuidance(lambda x0: x0.square().sum(), 0.01, "x0", repeats=2, network=False)


@pytest.fixture(scope="module")
def pndm() -> Any:
    return family("tiny", families.stable_diffusion(scheduler=diffusers.PNDMScheduler(skip_prk_steps=True)))


def test_methods_and_plans_count_what_a_stepper_visits(pndm):
    seen: list[float] = []
    denoise(pndm, "a", steps=4, size=64, guide=1, callback=lambda step: seen.append(float(step.level.t)))
    assert seen == [751, 501, 501, 251, 1]
    options: dict[str, Any] = {"steps": 4, "size": 64, "guide": 1, "methods": [PerturbedAttention()]}
    assert plan(pndm, "a", **options).run.steps == 5
    assert plan(pndm, "a", **options, stepper=DDIM()).run.steps == 4
    assert plan(pndm, "a", **options, stepper=Heun()).run.steps == 7


def test_steps_that_are_repeated_are_ddims_unless_a_stepper_was_chosen(pndm, capsys):
    options: dict[str, Any] = {"steps": 3, "size": 64, "guide": 1, "methods": [REPEATING]}
    own = denoise(pndm, "a", **options).latents
    assert "cannot repeat one, so steps are DDIM's and not those of the model's PNDM" in capsys.readouterr().err
    assert torch.equal(own, denoise(pndm, "a", stepper=DDIM(), **options).latents) and not capsys.readouterr().err
    assert plan(pndm, "a", **options).run.steps == 3
    with pytest.raises(SfumatoError, match="PLMS remembers the last step and cannot repeat one; take DDIM"):
        denoise(pndm, "a", stepper=PLMS(), **options)


def test_a_path_is_followed_by_its_own_stepper_and_at_its_own_levels(pndm):
    path = invert(pndm, torch.rand(1, 3, 64, 64), "a", DDIMInversion(steps=3))
    assert path.stepper == DDIM()
    steps: list[int] = []
    denoise(pndm, "a", start=path, guide=1, callback=lambda step: steps.append(step.i))
    assert steps == [0, 1, 2]
    denoise(pndm, "a", start=path, guide=1, stepper=DPMSolver())
    with pytest.raises(SfumatoError, match="Heun asks the network at more levels than the path has; take DDIM"):
        denoise(pndm, "a", start=path, guide=1, stepper=Heun())
    noised = invert(pndm, torch.rand(1, 3, 64, 64), "a", Noise(steps=4, strength=0.5))
    assert len(noised.levels) == 2
    for options, count in (({}, 3), ({"stepper": DDIM()}, 2), ({"methods": [REPEATING]}, 2)):
        steps.clear()
        denoise(pndm, "a", start=noised, guide=1, callback=lambda step: steps.append(step.i), **options)
        assert len(steps) == count
