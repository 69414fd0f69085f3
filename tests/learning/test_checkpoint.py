"""One file for every run; those of earlier formats still open and go on to the same bits."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sfumato.errors import SfumatoError
from sfumato.learning import seeds
from sfumato.learning.checkpoint import Checkpoint, reached, read
from sfumato.learning.loop import Problem, learn

PARTS = {"live": {"net.weight": torch.ones(2, 3)}, "memory": {"mean": torch.zeros(())}}


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "run.safetensors"
    Checkpoint(PARTS, 7, 1.5).save(path, "it")
    found = Checkpoint.load(path, "it")
    assert (found.step, found.elapsed) == (7, 1.5) == reached(path) and found.parts.keys() == PARTS.keys()
    assert torch.equal(found.parts["live"]["net.weight"], torch.ones(2, 3)) and found.parts["memory"]["mean"] == 0
    assert [p.name for p in tmp_path.iterdir()] == ["run.safetensors"]
    assert reached(tmp_path / "none.safetensors") == (0, 0.0)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "run.safetensors"
    Checkpoint(PARTS, 7).save(path, "three, rate=1 and more")
    with pytest.raises(SfumatoError, match=r"another model: it has rate=1 and more, and this run rate=2 and more"):
        Checkpoint.load(path, "three, rate=2 and more")
    with pytest.raises(SfumatoError, match=r"it has rate=1 and more, and this run less; take another place"):
        Checkpoint.load(path, "three")
    whole = path.read_bytes()
    for spoilt in (whole[: len(whole) // 2], b"x" * 100, b""):
        path.write_bytes(spoilt)
        with pytest.raises(SfumatoError, match=r"cannot go on: cannot read .*; remove it to start anew"):
            Checkpoint.load(path, "three")
    for spoilt in (b"x" * 100, whole[:50]):
        path.write_bytes(spoilt)
        with pytest.raises(SfumatoError, match="damaged"):
            reached(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(SfumatoError, match="is no checkpoint"):
        Checkpoint.load(path, "it")
    with pytest.raises(SfumatoError, match="there is no file"):
        read(tmp_path / "none.safetensors")


class Texts(Problem):
    """Two tensors, of which one may be asked for alone."""

    name, doing = "texts", "learning texts"

    def __init__(self, module="generator", both=True):
        torch.manual_seed(0)
        self.net = nn.ParameterDict({"a": torch.randn(3, 2)} | ({"b": torch.randn(4)} if both else {}))
        self.modules = {module: self.net}
        self.memory = {}

    def loss(self, step):
        noise = torch.randn(3, 2, generator=seeds.generator(1, step))
        self.last = {"noise": 0.5 * self.memory.get("noise", torch.zeros(3, 2)) + noise}
        others = self.net["b"].square().sum() if "b" in self.net else 0
        return (self.net["a"] - self.last["noise"]).abs().sum() + others

    def after_step(self, step, optimisers):
        self.memory = self.last

    def state(self):
        return {"memory": self.memory}

    def restore(self, state):
        self.memory = dict(state.get("memory", {}))


def ran(problem, steps=6, **more):
    optimiser = torch.optim.Adam(problem.groups(), 0.05)
    run = learn(problem, optimiser, steps=steps, **more)
    averaged = [p for m in run.averaged.values() for p in m.parameters()]
    return torch.cat([p.detach().flatten() for p in [*problem.net.values(), *averaged]]), optimiser


def test_distillations_whose_moments_were_counted_go_on(tmp_path):
    path, whole = tmp_path / "run.safetensors", ran(Texts())[0]
    _, optimiser = ran(begun := Texts(), 3)
    tensors = {f"generator.{k}": v.detach() for k, v in begun.net.items()}
    tensors |= {"memory.noise": begun.memory["noise"], "learner.x": torch.zeros(1)}
    for i, moments in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{i}.{k}": v for k, v in moments.items()}
    save_file(tensors, path, {"run": "it", "step": "3"})
    assert torch.equal(ran(Texts(), keep=path, about="it")[0], whole)
    save_file(tensors, path, {"run": "it", "step": "3"})
    with pytest.raises(SfumatoError, match="is of another run"):
        ran(Texts(), keep=path, about="that")


def test_keypoints_of_one_tensor_go_on(tmp_path):
    path, whole = tmp_path / "run.safetensors", ran(Forgetting("texts", both=False))[0]
    _, optimiser = ran(begun := Forgetting("texts", both=False), 3)
    moments = optimiser.state_dict()["state"][0]
    tensors = {"value": begun.net["a"].detach(), "first": moments["exp_avg"], "second": moments["exp_avg_sq"]}
    save_file(tensors, path, {"run": "it", "steps": "3", "rate": "0.05"})
    assert torch.equal(ran(Forgetting("texts", both=False), keep=path, about="it")[0], whole)


class Forgetting(Texts):
    def restore(self, state):
        pass

    def after_step(self, step, optimisers):
        pass


def test_trainers_with_running_means_go_on(tmp_path):
    """Their files had the names of today, and did not say of which run they are."""
    path, whole = tmp_path / "run.safetensors", ran(Forgetting("net"), ema=0.9)[0]
    problem = Forgetting("net")
    optimiser = torch.optim.Adam(problem.groups(), 0.05)
    run = learn(problem, optimiser, steps=3, ema=0.9)
    tensors = {f"live.net.{k}": v for k, v in problem.net.state_dict().items()}
    tensors |= {f"ema.net.{k}": v for k, v in run.averaged["net"].state_dict().items()}
    for name, p in problem.net.named_parameters():
        tensors |= {f"moments.net.{name}.{k}": v for k, v in optimiser.state[p].items()}
    save_file({k: v.detach() for k, v in tensors.items()}, path, {"state": json.dumps({"step": 3, "elapsed": 2.5})})
    assert torch.equal(ran(Forgetting("net"), keep=path, about="net", ema=0.9)[0], whole)
    assert reached(path)[0] == 6 and reached(path)[1] >= 2.5
