"""The run of whatever learns: distillation, texts, heads, scenes, networks. ``learn(problem, optimiser)``.

Randomness is drawn anew in every step from the seed and the step's number (``seeds``), so an interrupted run goes on as
if nothing had happened: what is learned, the optimisers' moments and what the problem keeps are all that is saved.

Several processes, gradients summed over several draws and bf16 are ``accelerate``'s: whoever wants them hands in an
``Accelerator``. A plain run does not import it.
"""

from __future__ import annotations

import copy
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.errors import SfumatoError
from sfumato.io.progress import progress
from sfumato.learning.checkpoint import Checkpoint
from sfumato.learning.optimisers import Optimisers, grouped

Modules = dict[str, nn.Module]


class Problem:
    """What a run learns, and from what; only ``loss`` must be written."""

    name: str
    """In errors."""
    doing: str
    """Beside the bar."""
    modules: Modules
    """Parameters that require gradients are learned; all of the state is part of a checkpoint, by these names."""
    rates: Mapping[str, float] = MappingProxyType({})
    """Of parameters, or of all below a module, by name; others have the optimiser's own."""
    fraction: float = 0.0
    """Part of the budget that is used, in [0, 1); the run writes it."""

    def learned(self) -> dict[str, nn.Parameter]:
        """Each parameter under its module's name and its own."""
        named = ((f"{k}.{n}", p) for k, module in self.modules.items() for n, p in module.named_parameters())
        return {name: p for name, p in named if p.requires_grad}

    def groups(self) -> list[Any]:
        """What to make an optimiser of. Raises ``SfumatoError`` where nothing can be learned."""
        if not (named := self.learned()):
            raise SfumatoError(f"{self.name} has nothing to move: it has no parameters that require gradients")
        return grouped(named, self.rates)

    def loss(self, step: int) -> Float[Tensor, ""]:
        """To descend. Of N processes each asks for every N-th."""
        raise NotImplementedError

    def backward(self, loss: Float[Tensor, ""], parameters: Sequence[nn.Parameter]) -> None:
        """Leave what the loss asks of the parameters in their gradients; an ``accelerator`` has its own way."""
        loss.backward(inputs=parameters)

    def after_backward(self, step: int, optimisers: Optimisers) -> None:
        """Gradients are there: look at them, change them, or replace parameters."""

    def after_step(self, step: int, optimisers: Optimisers) -> None:
        """Parameters have moved: bring them back to where they may be, or replace them."""

    def finished(self) -> bool:
        """May the run end before its budget is used?"""
        return False

    def state(self) -> Mapping[str, Mapping[str, Tensor]]:
        """What else goes on from a checkpoint: named tensors of named parts."""
        return {}

    def restore(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Go on from such parts; they lie on the CPU."""


@dataclass
class Run:
    """How far a run is, as whoever watches it sees it after each step."""

    step: int = 0
    """Whole steps."""
    elapsed: float = 0.0
    """Seconds."""
    fraction: float = 0.0
    """Of the budget."""
    loss: Tensor = field(default_factory=lambda: torch.zeros(()))
    norm: Tensor = field(default_factory=lambda: torch.zeros(()))
    """Of all gradients before they are clipped, where they are."""
    averaged: Modules = field(default_factory=dict)
    """Running means of the modules, in evaluation mode, where they are asked for."""
    say: Callable[[str], None] = lambda words: None
    """Beside the bar."""

    @property
    def over(self) -> bool:
        return self.fraction >= 1


@torch.enable_grad()
def learn(
    problem: Problem,
    optimiser: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
    *,
    steps: int | None = None,
    minutes: float = 0.0,
    rate: Callable[[float, int, float], float] | None = None,
    clip: float | None = None,
    ema: float | None = None,
    keep: Path | None = None,
    about: str = "",
    every: int | None = None,
    seconds: float | None = None,
    check: int = 1,
    accelerator: Any = None,
    on_progress: Callable[[Run], None] | None = None,
) -> Run:
    """Learn for so many ``steps``, or, where there are none, ``minutes``, those before an interruption included.

    ``rate``: a group's rate of (its first rate, step, part of the budget used). ``clip``: the greatest norm of all
    gradients. ``ema``: what running means keep in a step, less in the first ones; not of parameters that are replaced.
    ``check``: steps between two looks at whether losses and gradients are finite. ``accelerator``: of ``accelerate``.

    ``keep``: a checkpoint, written each ``every`` steps, after so many ``seconds``, at the end and when the run is cut
    off, from which the same call goes on; ``about``: of which run it is. With it the first Ctrl-C or SIGTERM waits for
    the end of the step.

    Raises ``SfumatoError`` where no gradient comes or one that is not finite (naming the step; nothing has moved) and
    for a checkpoint of another run; ``KeyboardInterrupt`` once an interrupted run is saved.
    """
    draws, rank, world = 1, 0, 1
    if accelerator is not None:
        draws, rank = accelerator.gradient_accumulation_steps, accelerator.process_index
        world = accelerator.num_processes
        _made_equal(problem.modules)
    autocast = nullcontext if accelerator is None else accelerator.autocast
    optimisers = Optimisers(problem.learned(), optimiser)
    averaged = {} if ema is None else {k: copy.deepcopy(m).eval() for k, m in problem.modules.items()}
    run = Run(averaged={k: m.requires_grad_(False) for k, m in averaged.items()})
    if keep is not None and keep.exists():
        _restore(keep, about, problem, optimisers, run)
    began, before, saved_step = time.monotonic(), run.elapsed, run.step
    saved = began
    sound = True  # no step is half done, and what moved last was looked at

    def save() -> None:
        nonlocal saved_step, saved
        if keep is not None and rank == 0 and run.step > saved_step:
            if not run.loss.isfinite():
                raise SfumatoError(_NOT_FINITE.format(run.step - 1, problem.name, "the loss"))
            _checkpoint(problem, optimisers, run).save(keep, about)
            saved_step, saved = run.step, time.monotonic()

    total = 60 * minutes if steps is None else steps

    def backward(loss: Tensor) -> None:
        if accelerator is None:
            problem.backward(loss, optimisers.parameters)
        else:
            accelerator.backward(loss, inputs=optimisers.parameters)

    def position() -> float:
        return min(run.elapsed if steps is None else run.step, total)

    def used() -> float:
        return position() / total if total > 0 else 1.0

    run.fraction = used()
    bar = progress(problem.doing, round(total)) if rank == 0 else nullcontext(lambda *_: None)
    with _interrupts(keep is not None) as interrupted, bar as advance:
        run.say = partial(advance, 0)
        try:
            if shown := position():
                advance(shown)
            while not run.over and not problem.finished():
                step, problem.fraction = run.step, run.fraction
                if rate is not None:
                    optimisers.rate(lambda own: rate(own, run.step, run.fraction))
                optimisers.zero_grad()
                losses = []
                for k in range(draws):
                    with autocast():
                        loss = problem.loss((step * draws + k) * world + rank)
                    backward(loss)
                    losses.append(loss.detach())
                loss = torch.stack(losses).mean()
                gradients = [p.grad for p in optimisers.parameters if p.grad is not None]
                _shared(gradients, accelerator, world)
                if looked := (step + 1) % check == 0 or step + 1 == steps:
                    _look(problem, step, loss, gradients)
                problem.after_backward(step, optimisers)
                if clip is not None:
                    run.norm = _clipped(optimisers.parameters, clip)
                sound = False
                optimisers.step()
                problem.after_step(step, optimisers)
                if ema is not None:
                    _average(run.averaged, problem.modules, min(ema, (1 + step) / (10 + step)))
                run.step, run.loss, sound = step + 1, loss, looked
                now = time.monotonic()
                run.elapsed, stop = _agreed(before + now - began, interrupted(), accelerator, world)
                run.fraction = used()
                if on_progress is not None:
                    on_progress(run)
                advance(position() - shown)
                shown = position()
                if stop or (every and run.step % every == 0) or (seconds is not None and now - saved > seconds):
                    save()
                if stop:
                    raise KeyboardInterrupt(f"{problem.name} stopped at step {run.step} and saved")
            sound = True
        finally:
            if sound:
                save()
    return run


_NOT_FINITE = "step {} of {}: {} is not finite; look at what the loss is made of, or take a lower rate"


def _look(problem: Problem, step: int, loss: Tensor, gradients: Sequence[Tensor]) -> None:
    if not gradients:
        raise SfumatoError(f"step {step} of {problem.name}: no gradient reaches the parameters that it moves")
    if not loss.isfinite():
        raise SfumatoError(_NOT_FINITE.format(step, problem.name, "the loss"))
    if nn.utils.get_total_norm(gradients).isfinite():  # in one pass; a norm may also be too large for its type
        return
    if not all(gradient.isfinite().all() for gradient in gradients):
        raise SfumatoError(_NOT_FINITE.format(step, problem.name, "a gradient of the parameters"))


def _clipped(parameters: Sequence[nn.Parameter], most: float) -> Tensor:
    """The norm of all gradients, which is brought to ``most`` where it is greater."""
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if not norm.is_cpu or norm + 1e-6 > most:  # a device is not waited for
        nn.utils.clip_grads_with_norm_(parameters, most, norm)
    return norm


# Checkpoints


def _tensors(modules: Modules) -> dict[str, Tensor]:
    return {f"{name}.{key}": v for name, module in modules.items() for key, v in module.state_dict().items()}


def _checkpoint(problem: Problem, optimisers: Optimisers, run: Run) -> Checkpoint:
    parts = {"live": _tensors(problem.modules), "ema": _tensors(run.averaged), "moments": optimisers.moments()}
    return Checkpoint({**parts, **problem.state()}, run.step, run.elapsed)


def _restore(keep: Path, about: str, problem: Problem, optimisers: Optimisers, run: Run) -> None:
    found = Checkpoint.load(keep, about, list(optimisers.named))
    for part, modules in (("live", problem.modules), ("ema", run.averaged)):
        tensors = found.parts.get(part, {})
        for name, module in modules.items():
            own = {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}
            try:
                module.load_state_dict(own)
            except RuntimeError as e:
                reason = " ".join(str(e).split())[:200]
                raise SfumatoError(
                    f"cannot go on: {keep} is of another network or generator ({reason}); remove it to start anew"
                ) from e
    for name, parameter in problem.learned().items():  # a module may have grown for what it has read
        if parameter is not optimisers.named[name]:
            optimisers.replace(name, parameter, lambda moment: moment)
    optimisers.restore(found.parts.get("moments", {}))
    problem.restore({k: v for k, v in found.parts.items() if k not in ("live", "ema", "moments")})
    run.step, run.elapsed = found.step, found.elapsed


@torch.no_grad()
def _average(averaged: Modules, modules: Modules, decay: float) -> None:
    """The running mean of what is learned; buffers are copied."""
    for name, module in modules.items():
        pairs = zip(averaged[name].parameters(), module.parameters(), strict=True)
        learned = [(a, p) for a, p in pairs if p.requires_grad]
        torch._foreach_lerp_([a for a, _ in learned], [p for _, p in learned], 1 - decay)
        for a, b in zip(averaged[name].buffers(), module.buffers(), strict=True):
            a.copy_(b)


# Processes


def _made_equal(modules: Modules) -> None:
    """What is not read from a checkpoint was drawn by each process for itself."""
    from accelerate.utils import broadcast

    broadcast([tensor for module in modules.values() for tensor in module.state_dict().values()])


def _shared(gradients: Sequence[Tensor], accelerator: Any, world: int) -> None:
    """Average the gradients of all processes, in one message."""
    if world > 1:
        mean = accelerator.reduce(torch.cat([g.flatten() for g in gradients]), "mean")
        for g, part in zip(gradients, mean.split([g.numel() for g in gradients]), strict=True):
            g.copy_(part.view_as(g))


def _agreed(elapsed: float, stop: bool, accelerator: Any, world: int) -> tuple[float, bool]:
    """The longest time of all processes, and whether any was interrupted, so that all end at the same step."""
    if world == 1:
        return elapsed, stop
    both = torch.tensor([[elapsed, float(stop)]], dtype=torch.float64, device=accelerator.device)
    longest, any_stop = accelerator.gather(both).amax(0).tolist()
    return longest, bool(any_stop)


@contextmanager
def _interrupts(caught: bool) -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C (or SIGTERM) into a flag, so that no step is torn; the second one acts as usual."""
    seen: list[int] = []
    old: dict[int, Any] = {}

    def note(number: int, frame: Any) -> None:
        seen.append(number)
        signal.signal(number, old[number])

    with suppress(ValueError):  # not the main thread: signals are someone else's
        for number in (signal.SIGINT, signal.SIGTERM) if caught else ():
            old[number] = signal.signal(number, note)
    try:
        yield lambda: bool(seen)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
