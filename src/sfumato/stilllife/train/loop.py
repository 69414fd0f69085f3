"""The training loop that all networks share: time budget, EMA, checkpoints that resume exactly, log, report.

Randomness is drawn anew for every step from (seed, step), so a checkpoint needs no random state, and nothing that runs
between two steps (a preview, a save) changes what is learned.

Started by ``torchrun --nproc-per-node N -m sfumato.stilllife.train ...``, N processes (one a CPU core or a GPU) each
work through a batch of their own and average their gradients: on two CPU cores a quarter faster than two threads.
"""

from __future__ import annotations

import copy
import json
import math
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sfumato.errors import SfumatoError
from sfumato.io.files import atomic, write_text
from sfumato.stilllife.train import Options
from sfumato.stilllife.train.optimise import Several, optimisers
from sfumato.stilllife.train.precision import choose

Modules = dict[str, nn.Module]
Figures = Mapping[str, float | Tensor]


def start(args: Options) -> torch.device:
    """Set threads and matmul precision; the device to train on. Raises ``SfumatoError`` if there is none such."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    torch.set_num_threads(args.threads or max(1, (os.cpu_count() or 1) // processes))
    torch.set_float32_matmul_precision("high")
    local = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    asked = args.device or (local if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(asked)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as e:
        raise SfumatoError(f"cannot use the device {asked!r}: {str(e).splitlines()[0]}; try --device cpu") from e
    if processes > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    choose(device, args.precision)
    return device


def share() -> tuple[int, int]:
    """This process's number and how many train together: (0, 1) unless ``torchrun`` started them."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


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
    rank, world = share()
    checkpoint, log = out / "checkpoint.safetensors", out / "log.jsonl"
    if checkpoint.exists() and not resume:
        raise SfumatoError(f"{out} holds a training run; go on with --resume, or give another --out, or remove it")
    if world > 1:  # what is not loaded was drawn by each process for itself
        for module in modules.values():
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, 0)
    averaged: Modules = {k: copy.deepcopy(m).eval().requires_grad_(False) for k, m in modules.items()}
    optimizer = optimisers((p for _, p in _trained(modules)), optimiser, weight_decay, betas)
    first, before = 0, 0.0
    if resume and checkpoint.exists():
        first, before = _load(checkpoint, modules, averaged, optimizer)
    records = [r for r in read_log(out) if r["step"] <= first]
    if rank == 0:
        write_text(log, "".join(json.dumps(r) + "\n" for r in records))

    began = saved = shown = time.monotonic()
    elapsed = before
    sums: dict[str, Any] = {}
    counted, since = 0, began
    i = first
    done = _fraction(i, elapsed, steps, minutes) >= 1.0
    with _interrupts() as interrupted, _progress(name, rank == 0) as say:
        while not done:
            fraction = _fraction(i, elapsed, steps, minutes)
            now_at = rate * min(1.0, (i + 1) / warmup) * _falling(fraction, cooldown)
            optimizer.rate(now_at)
            draw = i * world + rank
            torch.manual_seed(_mix(seed, draw))
            loss, figures = step(draw, fraction) if timed else step(draw)
            optimizer.zero_grad()
            loss.backward()
            _share_gradients(optimizer.parameters, world)
            norm = nn.utils.clip_grad_norm_(optimizer.parameters, clip)
            optimizer.step()
            _average(averaged, modules, min(ema, (1 + i) / (10 + i)))
            for key, value in {"loss": loss, "norm": norm, **figures}.items():
                sums[key] = sums.get(key, 0.0) + (value.detach() if isinstance(value, Tensor) else value)
            counted += 1
            i += 1
            now = time.monotonic()
            elapsed, stop = _agree(before + now - began, interrupted(), world)
            done = _fraction(i, elapsed, steps, minutes) >= 1.0
            if i % log_every == 0 or done:
                record = {k: float(v) / counted for k, v in sums.items()}
                if not math.isfinite(record["loss"]):
                    raise SfumatoError(f"the loss of {name} is not finite at step {i}; lower --rate and --resume")
                per_second = counted * batch * world / max(now - since, 1e-9)
                speed = {"rate": now_at, "images_per_second": per_second}
                if rank == 0:
                    _append(log, {"step": i, "elapsed": elapsed, **speed, **record})
                say(_fraction(i, elapsed, steps, minutes), i, record, per_second)
                sums, counted, since = {}, 0, now
            if rank == 0 and (now - saved > save_every or done or stop):
                _save(checkpoint, modules, averaged, optimizer, i, elapsed)
                saved = time.monotonic()
            if stop:
                raise KeyboardInterrupt(f"{name} stopped at step {i} and saved; go on with --resume")
            if rank == 0 and preview is not None and now - shown > preview_every and not done:
                preview(averaged, out / f"preview-{i:06d}.png")
                shown = time.monotonic()
    if rank:
        dist.destroy_process_group()
        sys.exit()
    if preview is not None and i > first:
        preview(averaged, out / f"preview-{i:06d}.png")
    return averaged


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
        f"- {last['step']:,} steps of {batch * share()[1]} images, {last['elapsed'] / 60:.1f} minutes",
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
        return f"{share()[1]} x {torch.cuda.get_device_name()}"
    return f"{share()[1]} x {torch.get_num_threads()} CPU threads ({platform.machine()})"


def _fraction(step: int, elapsed: float, steps: int | None, minutes: float) -> float:
    return min(1.0, step / steps if steps is not None else elapsed / (60 * minutes) if minutes > 0 else 1.0)


def _falling(fraction: float, cooldown: float | None) -> float:
    """What part of the rate is left when this ``fraction`` of the budget is used."""
    if cooldown is None:
        return 0.5 * (1 + math.cos(math.pi * fraction))
    return 1 - math.sqrt(max(0.0, (fraction - (1 - cooldown)) / cooldown)) if cooldown > 0 else 1.0


def _mix(seed: int, step: int) -> int:
    return (seed * 1_000_003 + step * 7919 + 12345) % 2**63


def _share_gradients(params: list[nn.Parameter], world: int) -> None:
    """Average the gradients of all processes, in one message."""
    if world == 1:
        return
    grads = [p.grad for p in params if p.grad is not None]
    flat = torch.cat([g.flatten() for g in grads])
    dist.all_reduce(flat)
    for g, mean in zip(grads, (flat / world).split([g.numel() for g in grads]), strict=True):
        g.copy_(mean.view_as(g))


def _agree(elapsed: float, stop: bool, world: int) -> tuple[float, bool]:
    """The longest time of all processes, and whether any was interrupted, so that all end at the same step."""
    if world == 1:
        return elapsed, stop
    both = torch.tensor([elapsed, float(stop)], dtype=torch.float64)
    both = both.cuda() if dist.get_backend() == "nccl" else both
    dist.all_reduce(both, dist.ReduceOp.MAX)
    return float(both[0]), bool(both[1])


def _trained(modules: Modules) -> Iterator[tuple[str, nn.Parameter]]:
    for name, module in modules.items():
        for key, p in module.named_parameters():
            if p.requires_grad:
                yield f"{name}.{key}", p


@torch.no_grad()
def _average(averaged: Modules, modules: Modules, decay: float) -> None:
    """EMA of what is trained; buffers are copied."""
    for name, module in modules.items():
        slow, fast = [], []
        for a, p in zip(averaged[name].parameters(), module.parameters(), strict=True):
            if p.requires_grad:
                slow.append(a)
                fast.append(p)
        torch._foreach_lerp_(slow, fast, 1 - decay)
        for a, b in zip(averaged[name].buffers(), module.buffers(), strict=True):
            a.copy_(b)


def _tensors(prefix: str, modules: Modules) -> dict[str, Tensor]:
    return {f"{prefix}.{n}.{k}": v for n, m in modules.items() for k, v in m.state_dict().items()}


def _save(path: Path, modules: Modules, averaged: Modules, optimizer: Several, step: int, elapsed: float) -> None:
    tensors = _tensors("live", modules) | _tensors("ema", averaged)
    for name, p in _trained(modules):
        tensors |= {f"moments.{name}.{k}": v for k, v in optimizer.of(p).items()}
    with atomic(path) as part:
        state = json.dumps({"step": step, "elapsed": elapsed})
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, part, metadata={"state": state})


def _load(path: Path, modules: Modules, averaged: Modules, optimizer: Several) -> tuple[int, float]:
    try:
        with safe_open(path, framework="pt") as file:
            state = json.loads(file.metadata()["state"])
            names = set(file.keys())
            for prefix, group in (("live", modules), ("ema", averaged)):
                for n, m in group.items():
                    start_of = f"{prefix}.{n}."
                    m.load_state_dict({k[len(start_of) :]: file.get_tensor(k) for k in names if k.startswith(start_of)})
            for name, p in _trained(modules):
                keys = optimizer.keys(p)
                if f"moments.{name}.{keys[0]}" in names:  # what no loss has reached yet has no moments
                    optimizer.of(p).update({k: _laid(file.get_tensor(f"moments.{name}.{k}"), p) for k in keys})
    except (RuntimeError, KeyError, TypeError, ValueError, OSError) as e:
        reason = str(e).splitlines()[0]
        raise SfumatoError(f"cannot go on from {path}: damaged, or of another network ({reason}); remove it") from e
    except Exception as e:  # safetensors raises its own error, which shares no base with the others
        if type(e).__module__.startswith("safetensors"):
            raise SfumatoError(f"cannot go on from {path}: damaged ({e}); remove it") from e
        raise
    return int(state["step"]), float(state["elapsed"])


def _laid(moment: Tensor, p: Tensor) -> Tensor:
    """The moment in its parameter's memory format: a fused optimiser pairs them by their place in memory."""
    return torch.empty_like(p).copy_(moment) if moment.shape == p.shape else moment.to(p.device)


def _append(path: Path, record: Mapping[str, float]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({k: float(f"{v:.6g}") if k != "step" else v for k, v in record.items()}) + "\n")


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C (or SIGTERM) into a flag, so that no step is torn; the second one acts as usual."""
    seen: list[int] = []
    old: dict[int, Any] = {}

    def note(number: int, frame: Any) -> None:
        seen.append(number)
        signal.signal(number, old[number])

    def install(numbers: Iterable[int]) -> None:
        for number in numbers:
            old[number] = signal.getsignal(number)
            signal.signal(number, note)

    with suppress(ValueError):  # not the main thread: signals are someone else's
        install((signal.SIGINT, signal.SIGTERM))
    try:
        yield lambda: bool(seen)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@contextmanager
def _progress(name: str, shown: bool) -> Iterator[Callable[[float, int, Mapping[str, float], float], None]]:
    """A progress line on a terminal, else a plain line about each 15 seconds."""
    console = Console(stderr=True)
    last = 0.0

    def words(step: int, record: Mapping[str, float], speed: float) -> str:
        figures = " ".join(f"{k} {v:.4g}" for k, v in record.items() if k != "norm")
        return f"{name} step {step} {figures} {speed:.1f} img/s"

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f}%"), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not (shown and console.is_terminal)) as bar:
        task = bar.add_task(name, total=1.0)

        def say(fraction: float, step: int, record: Mapping[str, float], speed: float) -> None:
            nonlocal last
            if not shown:
                return
            if console.is_terminal:
                bar.update(task, completed=fraction, description=words(step, record, speed))
            elif time.monotonic() - last > 15 or fraction >= 1:
                last = time.monotonic()
                console.print(f"{fraction:4.0%} {words(step, record, speed)}", highlight=False, soft_wrap=True)

        yield say
