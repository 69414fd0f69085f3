"""The run of what learns: exact resumes, rates by name, parameters that are replaced, what is refused."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from sfumato.errors import SfumatoError
from sfumato.io.progress import Stopped, heard
from sfumato.learning import seeds
from sfumato.learning.checkpoint import reached
from sfumato.learning.loop import Problem, learn
from sfumato.learning.optimisers import grouped


class Cloud(nn.Module):
    """Points of which there may be more in what it reads."""

    def __init__(self, n=4):
        super().__init__()
        self.points = nn.Parameter(torch.arange(2.0 * n).view(n, 2) / 10)
        self.colours = nn.Parameter(torch.full((n, 3), 0.5))

    def _load_from_state_dict(self, state, prefix, *args):
        for name, parameter in list(self._parameters.items()):
            if parameter.shape != state[prefix + name].shape:
                setattr(self, name, nn.Parameter(torch.empty_like(state[prefix + name])))
        super()._load_from_state_dict(state, prefix, *args)


class Points(Problem):
    """Points and colours are drawn to noisy goals; ``at`` maps a step to what happens in it."""

    name, doing = "points", "learning points"

    def __init__(self, at=None, rates=None):
        self.cloud, self.at = Cloud(), at or {}
        self.modules = {"cloud": self.cloud}
        self.rates = rates or {}
        self.seen, self.memory = [], torch.zeros(2)

    def loss(self, step):
        self.seen.append((step, self.fraction))
        factor = self.at[step]() if step in self.at else 1.0
        noise = torch.randn(2, generator=seeds.generator(0, step))
        self.next = 0.5 * self.memory + noise
        away = (self.cloud.points - self.next).square().sum() + (self.cloud.colours - noise[0]).abs().sum()
        return away * (1.0 if factor is None else factor)

    def after_step(self, step, optimisers):
        self.memory = self.next

    def state(self):
        return {"memory": {"noise": self.memory}}

    def restore(self, state):
        self.memory = state["memory"]["noise"]


class Growing(Points):
    """The first point is doubled after step 2, its moments with it, and the colours are kept below 0.6."""

    def after_backward(self, step, optimisers):
        self.gradient = self.cloud.points.grad.clone()

    def after_step(self, step, optimisers):
        super().after_step(step, optimisers)
        if step == 2:
            for name in ("points", "colours"):
                old = getattr(self.cloud, name)
                setattr(self.cloud, name, nn.Parameter(torch.cat([old.data, old.data[:1]])))
                optimisers.replace(f"cloud.{name}", getattr(self.cloud, name), lambda m: torch.cat([m, m[:1]]))
        self.cloud.colours.data.clamp_(max=0.6)


def adam(problem, rate=0.1):
    return torch.optim.Adam(problem.groups(), rate)


def ran(problem, steps=8, rate=0.1, **more):
    run = learn(problem, adam(problem, rate), steps=steps, **more)
    return torch.cat([p.detach().flatten() for p in problem.learned().values()]), run


def stop():
    os.kill(os.getpid(), signal.SIGINT)


def fail():
    raise RuntimeError("cut off")


@pytest.mark.parametrize("kind", [Points, Growing])
@pytest.mark.parametrize("cut", [1, 2, 3, 6])
def test_a_run_that_was_cut_off_goes_on_bit_for_bit(tmp_path, kind, cut):
    """Whatever its parameters' shapes were when it began and when it was cut."""
    keep, rates = tmp_path / "run.safetensors", {"cloud.points": 0.03}
    whole, _ = ran(kind(rates=rates))
    with pytest.raises(RuntimeError, match="cut off"):
        ran(kind({cut: fail}, rates), keep=keep, about="it")
    problem = kind(rates=rates)
    again, run = ran(problem, keep=keep, about="it")
    assert torch.equal(again, whole) and run.step == 8
    assert [step for step, _ in problem.seen] == list(range(cut, 8))
    assert len(problem.cloud.points) == (5 if kind is Growing else 4)


@pytest.fixture
def interruptible():
    """Ctrl-C as at a terminal: a process in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_waits_for_the_end_of_the_step_and_saves(tmp_path, interruptible):
    keep = tmp_path / "run.safetensors"
    whole, _ = ran(Points())
    with pytest.raises(KeyboardInterrupt, match="points stopped at step 4 and saved"):
        ran(Points({3: stop}), keep=keep)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    problem = Points()
    assert torch.equal(ran(problem, keep=keep)[0], whole) and problem.seen[0] == (4, 0.5)
    with pytest.raises(KeyboardInterrupt) as raised:  # without a place to save to there is nothing to wait for
        ran(Points({3: stop}))
    assert not raised.value.args


def test_each_step_is_heard_of_and_a_listener_may_stop_the_run(tmp_path):
    keep, events = tmp_path / "run.safetensors", []
    with heard(events.append):
        whole, _ = ran(Points(), 4)
    assert [(e.done, e.of, e.over) for e in events] == [*((k, 4, False) for k in range(5)), (4, 4, True)]

    def two(event):
        if event.done == 2 and not event.over:
            raise Stopped

    with pytest.raises(Stopped), heard(two):
        ran(Points(), 4, keep=keep)
    with heard(events.append):
        assert reached(keep)[0] == 2 and torch.equal(ran(Points(), 4, keep=keep)[0], whole)
    assert [e.done for e in events[6:]] == [0, 2, 3, 4, 4]


def test_moments_go_by_names(tmp_path):
    keep = tmp_path / "run.safetensors"
    ran(Growing(), steps=4, keep=keep)
    found = load_file(keep)
    assert found["moments.cloud.points.exp_avg"].shape == (5, 2) and found["moments.cloud.colours.step"] == 4
    assert set(k.split(".")[0] for k in found) == {"live", "moments", "memory"}


def test_rates_are_of_parameters_by_name_and_follow_the_schedule():
    named = Points().learned()
    some = grouped(named, {"cloud": 0.5, "cloud.points": 0.1})
    assert [(g["lr"], g["params"][0] is named["cloud.points"]) for g in some] == [(0.1, True), (0.5, False)]
    assert grouped(named, {}) == list(named.values())
    assert "lr" not in grouped(named, {"cloud.points": 0.1})[1]
    with pytest.raises(SfumatoError, match=r"a rate for cloud.point; what learns is cloud.points, cloud.colours"):
        grouped(named, {"cloud.point": 0.1})
    problem, rates = Points(rates={"cloud.points": 0.5}), []
    optimiser = torch.optim.SGD(problem.groups(), 0.1)

    def halved(own, step, fraction):
        assert fraction == step / 4
        return own / 2**step

    watch = lambda run: rates.append([g["lr"] for g in optimiser.param_groups])  # noqa: E731
    learn(problem, optimiser, steps=4, rate=halved, on_progress=watch)
    assert rates == [[0.5 / 2**k, 0.1 / 2**k] for k in range(4)]


def test_a_replaced_parameter_is_moved_as_if_it_had_always_been_there():
    """Adam on the doubled point: the copy moves as the first, and moments are those of the whole run."""
    problem = Growing()
    ran(problem, steps=6)
    assert torch.equal(problem.cloud.points[4], problem.cloud.points[0]) and problem.gradient.shape == (5, 2)
    assert torch.equal(problem.cloud.points[:4], (other := Points()) and ran(other, steps=6) and other.cloud.points)
    assert problem.cloud.colours.max() <= 0.6


def test_gradients_are_clipped_by_their_norm_and_running_means_follow_their_formula():
    problem, wanted, moved = Points(), [Points().cloud.points.detach()], []
    optimiser = torch.optim.SGD(problem.groups(), 1.0)

    def watch(run):
        moved.append(problem.cloud.points.detach().clone())
        decay = min(0.5, run.step / (9 + run.step))
        wanted.append(decay * wanted[-1] + (1 - decay) * moved[-1])
        assert run.norm > 0.01 and run.averaged["cloud"].points.requires_grad is False

    run = learn(problem, optimiser, steps=5, clip=0.01, ema=0.5, on_progress=watch)
    assert (moved[0] - Points().cloud.points).norm() < 0.0101
    torch.testing.assert_close(run.averaged["cloud"].points, wanted[-1])


def test_a_run_may_be_finished_early_and_time_is_a_budget(tmp_path, monkeypatch):
    class Enough(Points):
        def finished(self):
            return len(self.seen) == 3

    early = tmp_path / "early.safetensors"
    assert ran(Enough(), check=10, keep=early)[1].step == 3 == reached(early)[0]
    clock = iter(float(k) for k in range(10_000))  # a second a look
    monkeypatch.setattr("sfumato.learning.loop.time.monotonic", lambda: next(clock))
    keep = tmp_path / "run.safetensors"
    run = ran(Points(), None, minutes=0.5, keep=keep)[1]
    assert 30 <= run.elapsed <= 32 and run.over and 5 < run.step < 32
    assert ran(again := Points(), None, minutes=0.5, keep=keep)[1].step == run.step and not again.seen


def test_what_is_not_finite_is_refused_naming_the_step_and_the_state_before_is_kept(tmp_path):
    keep = tmp_path / "run.safetensors"
    with pytest.raises(SfumatoError, match="step 3 of points: the loss is not finite"):
        ran(Points({3: lambda: math.inf}), keep=keep)
    whole, _ = ran(Points())
    assert torch.equal(ran(Points(), keep=keep)[0], whole)

    class Root(Points):
        def loss(self, step):
            return super().loss(step) + ((self.cloud.points * 0).sum().sqrt() if step == 2 else 0)

    with pytest.raises(SfumatoError, match="step 2 of points: a gradient of the parameters is not finite"):
        ran(Root())
    other = tmp_path / "seldom.safetensors"
    with pytest.raises(SfumatoError, match="step 7 of points: the loss is not finite"):
        ran(Points({3: lambda: math.inf}), check=10, keep=other)  # at the end all are looked at
    assert not other.exists()
    with pytest.raises(SfumatoError, match="not finite"):  # what is saved in between is looked at, too
        ran(Points({5: lambda: math.inf}), check=50, every=2, keep=other)
    assert torch.equal(ran(Points(), keep=other)[0], whole)


def test_what_cannot_learn_is_said(tmp_path):
    still = Points()
    still.cloud.requires_grad_(False)
    with pytest.raises(SfumatoError, match="points has nothing to move: it has no parameters that require gradients"):
        ran(still)

    class Away(Points):
        def loss(self, step):
            return torch.zeros((), requires_grad=True) * 1

    with pytest.raises(SfumatoError, match="step 0 of points: no gradient reaches the parameters"):
        ran(Away())
    keep = tmp_path / "run.safetensors"
    ran(Points(), 2, keep=keep, about="one")
    with pytest.raises(SfumatoError, match=r"is of another run.* it has one, and this run two; take another place"):
        ran(Points(), keep=keep, about="two")
    other = Points()
    other.modules = {"cloud": nn.Linear(2, 2)}
    with pytest.raises(SfumatoError, match="is of another network or generator"):
        ran(other, keep=keep, about="one")


def test_checkpoints_are_written_as_often_as_asked(tmp_path):
    keep, found = tmp_path / "run.safetensors", []
    ran(
        Points(), 5, keep=keep, every=2, on_progress=lambda run: found.append(keep.exists() and keep.stat().st_mtime_ns)
    )
    assert found[:2] == [False, False] and found[2] and found[2] == found[3] != found[4]
    assert [p.name for p in tmp_path.iterdir()] == ["run.safetensors"]


def test_several_draws_a_step_and_bf16_are_accelerate_s(tmp_path):
    """The mean over two draws, as if both had been in the loss; products are bf16's where that is asked for."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    class Both(Points):
        def loss(self, step):
            return (super().loss(2 * step) + super().loss(2 * step + 1)) / 2

        def after_step(self, step, optimisers):
            pass

    class Product(Points):
        def loss(self, step):
            self.kind = (self.cloud.points @ torch.ones(2, 2)).dtype
            return super().loss(step)

        def after_step(self, step, optimisers):
            pass

    AcceleratorState._reset_state(reset_partial_state=True)
    two, _ = ran(Product(), accelerator=Accelerator(cpu=True, gradient_accumulation_steps=2))
    torch.testing.assert_close(two, ran(Both())[0])
    AcceleratorState._reset_state(reset_partial_state=True)
    problem = Product()
    ran(problem, accelerator=Accelerator(cpu=True, mixed_precision="bf16"))
    assert problem.kind == torch.bfloat16 and problem.cloud.points.dtype == torch.float32
    AcceleratorState._reset_state(reset_partial_state=True)


def test_a_plain_run_imports_no_accelerate():
    """Not even where it is not installed."""
    code = "import sys; sys.modules['accelerate'] = None; sys.path.insert(0, sys.argv[1])\n"
    code += "from test_loop import Points, ran; assert ran(Points())[1].step == 8"
    done = subprocess.run([sys.executable, "-c", code, str(Path(__file__).parent)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
