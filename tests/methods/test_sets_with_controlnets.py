"""One picture a frame to steer by, under the methods that look across frames: each frame is steered by its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from families import controlnet, write
from torch import Tensor

from sfumato.backbones.controlnets import ControlNet
from sfumato.backbones.load import load
from sfumato.core.denoising import denoise
from sfumato.core.method import Method
from sfumato.core.views import Tiles
from sfumato.methods.edit import PlugAndPlay, PromptToPrompt
from sfumato.methods.sets import FateZero, Pix2Video, SharedAttention, Text2VideoZero, TokenFlow

FRAMES = 3
ONWARD: dict[str, tuple[tuple[Method, ...], tuple[str, ...]]] = {
    "shared-attention": ((SharedAttention("first"),), ("main",)),
    "pix2video": ((Pix2Video(weight=2.0),), ("main",)),
    "text2video-zero": ((Text2VideoZero(begin=0.0, settled=0.4),), ("main",)),
    "prompt-to-prompt": ((PromptToPrompt(), SharedAttention("first+previous")), ("source", "target")),
}
"""What reads no frame behind itself."""
EVERYONE: dict[str, tuple[tuple[Method, ...], tuple[str, ...]]] = {
    "extended": ((SharedAttention("all"),), ("main",)),
    "token-flow": ((TokenFlow(every=1),), ("source", "target")),
    "plug-and-play": ((PlugAndPlay(res=1.0), TokenFlow(every=1)), ("source", "target")),
    "fate-zero": ((FateZero(sources="all"),), ("source", "target")),
}
"""What has no order of frames."""
SAID = {"main": "a red cube on grass", "source": "a red cube on grass", "target": "a blue cube on grass"}


@pytest.fixture(scope="module")
def steered(tmp_path_factory):
    place, found = tmp_path_factory.mktemp("models"), {}

    def of(family: str) -> tuple[Any, Any]:
        if family not in found:
            model: Any = load(str(write(family, place)), device="cpu")
            found[family] = model, controlnet(family, model.network)
        return found[family]

    return of


def pictures(seed: int = 0) -> Tensor:
    return torch.rand(FRAMES, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def painted(model, network, methods, streams, shown: Tensor | None, seeds=(5, 6, 7)) -> dict[str, Tensor]:
    prompts = {name: [SAID[name]] * FRAMES for name in streams}
    controls = [] if shown is None else [ControlNet(network, shown)]
    run = {"steps": 3, "size": 64, "guide": 3.0, "seed": list(seeds)}
    return {n: s.latents for n, s in denoise(model, prompts, methods=methods, controls=controls, **run).items()}


@pytest.mark.parametrize("family", ["sd", "sd3"])
@pytest.mark.parametrize("name", ONWARD)
def test_a_picture_steers_its_frame_and_none_before_it(steered, family, name):
    model, network = steered(family)
    methods, streams = ONWARD[name]
    one, last = pictures(), pictures()
    last[-1] = 1 - last[-1]
    found, other = (painted(model, network, methods, streams, shown) for shown in (one, last))
    plain, alone = painted(model, network, methods, streams, None), painted(model, network, (), streams, one)
    for stream in streams:
        assert found[stream].isfinite().all() and (found[stream] - plain[stream]).abs().max() > 1e-4
        assert torch.equal(found[stream][:-1], other[stream][:-1])
        assert (found[stream][-1] - other[stream][-1]).abs().max() > 1e-4
    assert max((found[s] - alone[s]).abs().max() for s in streams) > 1e-4


@pytest.mark.parametrize(
    ("family", "name"), [(f, n) for n in EVERYONE for f in ("sd", "sd3") if (f, n) != ("sd3", "plug-and-play")]
)
def test_frames_in_another_order_with_their_pictures_are_the_same_frames(steered, family, name):
    model, network = steered(family)
    methods, streams = EVERYONE[name]
    order, shown = [2, 0, 1], pictures()
    found = painted(model, network, methods, streams, shown)
    moved = painted(model, network, methods, streams, shown[order], seeds=[5 + i for i in order])
    mixed = painted(model, network, methods, streams, shown, seeds=[5 + i for i in order])
    alone = painted(model, network, (), streams, shown)
    for stream in streams:
        torch.testing.assert_close(moved[stream], found[stream][order], atol=1e-4, rtol=1e-4)
        assert (mixed[stream] - moved[stream]).abs().max() > 1e-3
    assert max((found[s] - alone[s]).abs().max() for s in streams) > 1e-4


@pytest.mark.slow
def test_frames_keep_the_depth_of_a_clip():
    """The silhouettes that the oracle sees lie where the true depth has them, four times as well as without."""
    from sfumato.bench.generate import depth_error
    from sfumato.stilllife import moves, networks, weights
    from sfumato.stilllife.oracle import Oracle
    from sfumato.stilllife.render import render
    from sfumato.stilllife.scene import sample_scene

    first = sample_scene(np.random.default_rng(11), count=1)
    turned = replace(first.camera, azimuth=first.camera.azimuth + 24)
    scenes = moves.between(first, replace(first, camera=turned), 4)
    truth = render(scenes, 128)
    control = ControlNet(weights.module("depth"), networks.depth_image(truth.depth.cpu()))
    model, oracle = load("stilllife", device="cpu"), Oracle.load()
    prompt = f"a {first.things[0].colour} {first.things[0].kind} on {first.ground}"
    run = {"steps": 12, "guide": 5.0, "seed": 3, "methods": [SharedAttention("first+previous")]}
    error = {}
    for name, controls in {"with": [control], "without": []}.items():
        frames = denoise(model, [prompt] * 4, controls=controls, **run).images
        error[name] = np.mean(
            [
                depth_error(torch.from_numpy(r.mask > 0), scenes[i], truth.depth[i].cpu(), truth.thing[i].cpu() >= 0)
                for i, r in enumerate(oracle.read(frames))
            ]
        )
    assert error["with"] < error["without"] / 4, error


def test_windows_are_steered_by_the_picture_of_their_image(steered):
    """Two canvases of one run, each with a picture: what each would be with its picture alone."""
    model, network = steered("sd")
    shown, prompts = pictures()[:2], ["a red cube", "a duck"]
    options: dict[str, Any] = {"steps": 2, "guide": 3.0, "size": (128, 192), "views": Tiles(8)}

    def wide(prompts: list[str], seed: int, shown: Tensor) -> Tensor:
        return denoise(model, prompts, seed=seed, controls=[ControlNet(network, shown)], **options).latents

    both = wide(prompts, 5, shown)
    for i in range(2):
        torch.testing.assert_close(
            both[i : i + 1], wide(prompts[i : i + 1], 5 + i, shown[i : i + 1]), atol=1e-4, rtol=1e-4
        )
