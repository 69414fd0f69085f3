"""Which stepper a checkpoint's scheduler is."""

from __future__ import annotations

from sfumato.core.schedule import Schedule
from sfumato.core.solvers import DEIS, LMS, PLMS, DPMSolver, Heun, Midpoint, Singlestep, UniPC
from sfumato.core.steppers import DDIM, DDPM, LCM, Euler, Stepper


def suited(schedule: Schedule) -> Stepper:
    """The stepper that a checkpoint comes with, by its scheduler's class and config; see ``differs``."""
    config = schedule.config
    match schedule.kind:
        case "LCMScheduler":
            return LCM(config["timestep_scaling"])
        case "FlowMatchLCMScheduler":
            return LCM(None)
        case "DDPMScheduler" | "DDPMParallelScheduler":
            return DDPM()
        case "EulerAncestralDiscreteScheduler":
            return Euler(ancestral=True)
        case "HeunDiscreteScheduler" | "FlowMatchHeunDiscreteScheduler":
            return Heun()
        case "KDPM2DiscreteScheduler" | "KDPM2AncestralDiscreteScheduler":
            return Midpoint(ancestral="Ancestral" in schedule.kind)
        case "LMSDiscreteScheduler":
            return LMS()
        case "PNDMScheduler":
            return PLMS()
        case "DEISMultistepScheduler":
            return DEIS(config["solver_order"], few=15 if config["lower_order_final"] else 0)
        case "UniPCMultistepScheduler":
            rule = "bh1" if config["solver_type"] == "bh1" else "bh2"
            return UniPC(
                config["solver_order"], data=config["predict_x0"], rule=rule, ends=config["lower_order_final"],
                uncorrected=tuple(config["disable_corrector"]),
            )  # fmt: skip
        case "SASolverScheduler":
            data = config["algorithm_type"] == "data_prediction"
            return UniPC(
                config["predictor_order"], config["corrector_order"], data, config["tau_func"] or _middle,
                rule="bh1" if data else "exact", ends=config["lower_order_final"],
            )  # fmt: skip
        case "DPMSolverMultistepScheduler" | "DPMSolverSinglestepScheduler":
            return _dpm_solver(schedule)
        case _:
            return LCM(None) if config.get("stochastic_sampling") else DDIM()


def differs(schedule: Schedule) -> str | None:
    """How the steps of ``suited`` are not those of the scheduler itself, in a sentence; None where they are."""
    config = schedule.config
    match schedule.kind:
        case "DDPMScheduler" | "DDPMParallelScheduler" if config["variance_type"] == "fixed_large_log":
            return "noise has the variance of fixed_large (of fixed_large_log diffusers makes no number)"
        case "DDPMScheduler" | "DDPMParallelScheduler" if "small" not in config["variance_type"] and (
            config["timestep_spacing"] != "leading" or config["steps_offset"]
        ):
            return f"the last step adds no noise, whatever variance_type {config['variance_type']} says"
        case "PNDMScheduler" if not config["skip_prk_steps"]:
            return "steps are PLMS' from the first on, without Runge and Kutta's (skip_prk_steps is false)"
        case "ScoreSdeVeScheduler":
            return "steps are DDIM's, without new noise and without its corrector"
        case "UniPCMultistepScheduler" if config["solver_p"] is not None:
            return "steps are UniPC's own (solver_p is not read)"
        case "DPMSolverMultistepScheduler" | "DPMSolverSinglestepScheduler" if config["solver_order"] == 3 and config[
            "algorithm_type"
        ].startswith("sde"):
            return "steps of third order with new noise have k-diffusion's signs"
        case _:
            return None


def _dpm_solver(schedule: Schedule) -> Stepper:
    config = schedule.config
    order, data = config["solver_order"], not config["algorithm_type"].endswith("dpmsolver")
    tau, rule = (
        float(config["algorithm_type"].startswith("sde")),
        "heun" if config["solver_type"] == "heun" else "midpoint",
    )
    if schedule.kind == "DPMSolverSinglestepScheduler":
        return Singlestep(order, data, tau, rule, config["lower_order_final"])
    few = 15 if config["lower_order_final"] else 0
    return DPMSolver(order, data, tau, rule, few, config["euler_at_final"])


def _middle(t: float) -> float:
    """SA-Solver's noise, as diffusers has it unless said otherwise."""
    return float(200 <= t <= 800)
