"""How all networks train: as the options say, on the one run of what learns, with a log, previews and a report.

Started by ``torchrun --nproc-per-node N -m sfumato.stilllife.train ...``, N processes (one a CPU core or a GPU) each
work through a batch of their own and average their gradients: on two CPU cores a quarter faster than two threads.
"""

from __future__ import annotations

import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sfumato.errors import SfumatoError
from sfumato.io.files import write_text
from sfumato.learning import seeds
from sfumato.learning.checkpoint import reached
from sfumato.learning.loop import Modules, Problem, Run, learn
from sfumato.stilllife.train import Options
from sfumato.stilllife.train.optimise import optimisers
from sfumato.stilllife.train.precision import choose

Figures = Mapping[str, float | Tensor]
APART = 15.0  # seconds between two lines where there is no terminal


def start(args: Options) -> torch.device:
    """Set threads and matmul precision; the device to train on. Raises ``SfumatoError`` if there is none such."""
    torch.set_float32_matmul_precision("high")
    local = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    asked = args.device or (local if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(asked)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as e:
        raise SfumatoError(f"cannot use the device {asked!r}: {str(e).splitlines()[0]}; try --device cpu") from e
    together(device)
    asked_for = os.environ.get("OMP_NUM_THREADS", "") if processes() == 1 else ""  # torchrun sets it to 1
    torch.set_num_threads(args.threads or int(asked_for or 0) or max(1, (os.cpu_count() or 1) // processes()))
    choose(device, args.precision)
    return device


def together(device: torch.device) -> Any:
    """The ``Accelerator`` of the processes that ``torchrun`` has started; None where this one is alone."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return None
    from accelerate import Accelerator

    return Accelerator(cpu=device.type == "cpu")


def processes() -> int:
    """How many train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def train(
    name: str,
    modules: Modules,
    step: Callable[..., tuple[Tensor, Figures]],
    *,
    out: Path,
    minutes: float,
    rate: float,
    batch: int,
    steps: int | None = None,
    seed: int = 0,
    resume: bool = False,
    ema: float = 0.999,
    warmup: int = 100,
    cooldown: float | None = None,
    optimiser: str = "adam",
    timed: bool = False,
    clip: float = 1.0,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.99),
    preview: Callable[[Modules, Path], None] | None = None,
    preview_every: float = 600.0,
    save_every: float = 180.0,
    log_every: int = 20,
) -> Modules:
    """Train ``modules`` in place and return their EMA copies (in evaluation mode).

    ``step(i)`` gives the loss of draw ``i`` and figures for the log; when ``timed``, ``step(i, fraction)``
    does, with the part of the budget that is used. It draws its data by ``i`` and may use torch's global generator,
    which is seeded for it. Of N processes, each makes every N-th draw; the first one writes, and only
    there does this return: the others end. Only parameters that require a gradient are trained. ``preview(ema,
    path)`` writes a PNG now and then and at the end. With ``steps`` the budget is counted in steps, not ``minutes``.
    The rate rises over ``warmup`` steps, then stays until the last part ``cooldown`` of the budget, over which it falls
    to nothing as 1 - sqrt (Hägele et al. 2024, 2405.18392); without a ``cooldown`` it follows a cosine all the way.

    In ``out``: ``checkpoint.safetensors`` (written whole or not at all), ``log.jsonl`` (a record each ``log_every``
    steps), ``preview-*.png``. Ctrl-C saves after the current step and raises ``KeyboardInterrupt``. Raises
    ``SfumatoError`` when ``out`` holds a run and ``resume`` is false, or when the loss is not finite.
    """
    checkpoint, log = out / "checkpoint.safetensors", out / "log.jsonl"
    if checkpoint.exists() and not resume:
        raise SfumatoError(f"{out} holds a training run; go on with --resume, or give another --out, or remove it")
    first, before = reached(checkpoint)
    accelerator = together(next(p for m in modules.values() for p in m.parameters()).device)
    problem, world = _Training(name, modules, step, timed, seed), processes()
    writes = accelerator is None or accelerator.is_main_process
    optimising = optimisers(problem.groups(), optimiser, rate, weight_decay, betas)
    if writes:
        write_text(log, "".join(json.dumps(r) + "\n" for r in read_log(out) if r["step"] <= first))
    sums: dict[str, Any] = {}
    shown, printed, since = time.monotonic(), -math.inf, (first, before)

    def risen(own: float, i: int, fraction: float) -> float:
        return own * min(1.0, (i + 1) / warmup) * _falling(fraction, cooldown)

    def watch(run: Run) -> None:
        nonlocal shown, printed, since
        for key, value in {"loss": run.loss, "norm": run.norm, **problem.figures}.items():
            sums[key] = sums.get(key, 0.0) + (value.detach() if isinstance(value, Tensor) else value)
        now = time.monotonic()
        if run.step % log_every == 0 or run.over:
            counted = run.step - since[0]
            record = {k: float(v) / counted for k, v in sums.items()}
            speed = counted * batch * world / max(run.elapsed - since[1], 1e-9)
            rates = {"rate": optimising[0].param_groups[0]["lr"], "images_per_second": speed}
            _append(log, {"step": run.step, "elapsed": run.elapsed, **rates, **record})
            figures = " ".join(f"{k} {v:.4g}" for k, v in record.items() if k != "norm")
            run.say(words := f"{name} step {run.step} {figures} {speed:.1f} img/s")
            if not sys.stderr.isatty() and (now - printed > APART or run.over):
                print(f"{run.fraction:4.0%} {words}", file=sys.stderr, flush=True)
                printed = now
            sums.clear()
            since = run.step, run.elapsed
        if preview is not None and now - shown > preview_every and not run.over:
            preview(run.averaged, out / f"preview-{run.step:06d}.png")
            shown = time.monotonic()

    try:
        run = learn(
            problem, optimising, steps=steps, minutes=minutes, rate=risen, clip=clip, ema=ema, check=log_every,
            keep=checkpoint, about=name, seconds=save_every, accelerator=accelerator,
            on_progress=watch if writes else None,
        )  # fmt: skip
    except KeyboardInterrupt as e:
        raise KeyboardInterrupt(f"{e}; go on with --resume") from e
    if accelerator is not None and not writes:
        accelerator.end_training()
        sys.exit()
    if preview is not None and run.step > first:
        preview(run.averaged, out / f"preview-{run.step:06d}.png")
    return run.averaged


class _Training(Problem):
    """A step of ``train`` as the run's problem: its draws come from torch's global generator."""

    def __init__(self, name: str, modules: Modules, step: Callable[..., Any], timed: bool, seed: int) -> None:
        self.name, self.doing, self.modules = name, name, modules
        self.step, self.timed, self.seed = step, timed, seed
        self.figures: Figures = {}

    def loss(self, step: int) -> Tensor:
        seeds.reseed(self.seed, step)
        loss, self.figures = self.step(step, self.fraction) if self.timed else self.step(step)
        return loss


def fit(
    name: str,
    modules: Modules,
    step: Callable[..., tuple[Tensor, Figures]],
    args: Options,
    *,
    rate: float,
    batch: int,
    **settings: Any,
) -> Modules:
    """``train`` as the options say; ``rate`` is the network's own, ``settings`` are further arguments of ``train``."""
    return train(
        name,
        modules,
        step,
        out=args.place(name),
        minutes=args.minutes,
        steps=args.steps,
        rate=args.rate or rate,
        batch=batch,
        seed=args.seed,
        resume=args.resume,
        warmup=args.warmup,
        cooldown=args.cooldown,
        **{**settings, **({"optimiser": args.optimiser} if args.optimiser else {})},
    )


def read_log(out: Path) -> list[dict[str, float]]:
    """The records of a run's ``log.jsonl``, oldest first; none when there is no log."""
    log = out / "log.jsonl"
    if not log.exists():
        return []
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines() if line.endswith("}")]


def report(name: str, args: Options, modules: Mapping[str, nn.Module], batch: int, results: Mapping[str, Any]) -> Path:
    """Write ``args.report / NAME.md``: what was trained, on what, for how long, to what figures. Returns its path."""
    records = read_log(args.place(name))
    last = records[-1]
    tail = records[-max(1, len(records) // 20) :]
    means = {k: sum(r[k] for r in tail if k in r) / len(tail) for k in last if k not in _NOT_FIGURES}
    lines = [
        f"# Training of {name}",
        "",
        *(f"- {k}: {sum(p.numel() for p in m.parameters()) / 1e6:.2f} M parameters" for k, m in modules.items()),
        f"- {last['step']:,} steps of {batch * processes()} images, {last['elapsed'] / 60:.1f} minutes",
        f"- {_device_words(args)}",
        f"- torch {torch.__version__}, seed {args.seed}",
        *(f"- {k}: {v:.4g}" if isinstance(v, float) else f"- {k}: {v}" for k, v in results.items()),
        "",
        "Means over the last twentieth of the run: " + ", ".join(f"{k} {v:.4g}" for k, v in means.items()) + ".",
        "",
        "| minutes | step | images/s | loss |",
        "| ---: | ---: | ---: | ---: |",
    ]
    for at in range(1, 11):
        chunk = records[(at - 1) * len(records) // 10 : max(1, at * len(records) // 10)]
        if chunk:
            end = chunk[-1]
            speed = sum(r["images_per_second"] for r in chunk) / len(chunk)
            loss = sum(r["loss"] for r in chunk) / len(chunk)
            lines.append(f"| {end['elapsed'] / 60:.1f} | {end['step']} | {speed:.1f} | {loss:.4f} |")
    path = args.report / f"{name}.md"
    write_text(path, "\n".join(lines) + "\n")
    return path


_NOT_FIGURES = ("step", "elapsed", "rate", "images_per_second", "norm")


def _device_words(args: Options) -> str:
    if args.device != "cpu" and torch.cuda.is_available():
        return f"{processes()} x {torch.cuda.get_device_name()}"
    return f"{processes()} x {torch.get_num_threads()} CPU threads ({platform.machine()})"


def _falling(fraction: float, cooldown: float | None) -> float:
    """What part of the rate is left when this ``fraction`` of the budget is used."""
    if cooldown is None:
        return 0.5 * (1 + math.cos(math.pi * fraction))
    return 1 - math.sqrt(max(0.0, (fraction - (1 - cooldown)) / cooldown)) if cooldown > 0 else 1.0


def _append(path: Path, record: Mapping[str, float]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({k: float(f"{v:.6g}") if k != "step" else v for k, v in record.items()}) + "\n")
