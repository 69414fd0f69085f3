"""One model in two threads: each run is what it is alone, wherever the other is."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
from families import randomised, write

from sfumato.backbones.load import load
from sfumato.core.denoising import denoise
from sfumato.core.guidance import cfg
from sfumato.methods.edit import PromptToPrompt
from sfumato.methods.edit.masactrl import MasaCtrl

DENOISE: Any = denoise
PAIR = {"source": "a red cube on grass", "target": "a blue cube on grass"}
OPTIONS: dict[str, Any] = {"steps": 3, "size": 64, "guide": cfg(4.0)}


def plain(model: Any) -> Any:
    return DENOISE(model, "a duck on grass", seed=3, **OPTIONS)


def weighed(model: Any) -> Any:
    return DENOISE(model, "a (duck:1.7) on grass", seed=3, **{**OPTIONS, "steps": 2})  # and is over first


def edited(method: Any) -> Callable[[Any], Any]:
    return lambda model: DENOISE(model, PAIR, methods=[method], seed=1, **OPTIONS)["target"]


def worded(model: Any) -> Any:
    rows = torch.linspace(-1, 1, 16)[None]
    return DENOISE(model.with_words({"<it>": rows}), "a <it> on grass", seed=3, **OPTIONS)


def changed(model: Any) -> Any:
    (key,) = [k for k, _ in model.pipe.unet.named_parameters() if k.endswith("mid_block.attentions.0.proj_in.weight")]
    change = torch.ones_like(model.pipe.unet.get_parameter(key))
    return DENOISE(model.with_changes({f"unet.{key}": change}), "a duck on grass", seed=3, **OPTIONS)


P2P, MASACTRL = edited(PromptToPrompt()), edited(MasaCtrl(after=0.0, layer=0.0))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Any:
    found = load(write("sd", tmp_path_factory.mktemp("models")), device="cpu")
    randomised(found.network)
    return found


@pytest.mark.parametrize(
    "runs", [(P2P, plain), (P2P, MASACTRL), (weighed, MASACTRL), (worded, MASACTRL), (changed, P2P), (worded, weighed)]
)
def test_two_runs_of_one_model_are_what_each_is_alone(model, runs):
    """Both are held until the other is in the same network too: at each step, and inside of it."""
    alone = [run(model).latents for run in runs]
    assert not torch.allclose(*alone)
    met, found, meeting = [0], dict[int, Any](), threading.Barrier(2)

    def meet(*_: Any) -> None:
        with suppress(threading.BrokenBarrierError):  # one has ended
            meeting.wait(timeout=20)
            met[0] += 1

    def work(number: int) -> None:
        try:
            found[number] = runs[number](model).latents
        except BaseException as e:
            found[number] = e
        meeting.abort()

    layers = (model.network.conv_in, model.network.mid_block, model.network.conv_out)
    hooks = [layer.register_forward_hook(meet) for layer in layers]
    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        for hook in hooks:
            hook.remove()
    assert met[0] >= 2 * len(layers), "they did not run at once"
    assert all(isinstance(found[i], torch.Tensor) and torch.equal(found[i], alone[i]) for i in range(2)), found


def test_threads_read_prompts_one_after_the_other(model, monkeypatch):
    """A tokenizer is told how to pad, and pads then: what another thread says in between must wait."""
    tokenizer = model.pipe.tokenizer
    told, wanted = tokenizer.set_truncation_and_padding, model.embed(["a red cube"]).text
    model._known.clear()

    def between(*args: Any, **named: Any) -> None:
        told(*args, **named)
        if threading.current_thread() is threading.main_thread():
            other = threading.Thread(target=model.words, args=("a blue duck on grass",))
            other.start()
            other.join(timeout=0.05)

    monkeypatch.setattr(tokenizer, "set_truncation_and_padding", between)
    assert torch.equal(model.embed(["a red cube"]).text, wanted)
