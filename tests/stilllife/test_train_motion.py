"""The motion adapter's trainer: it begins with nothing, learns only what is new, goes on to the bit, and loads."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import unet

from sfumato.backbones.load import load
from sfumato.core.denoising import denoise
from sfumato.stilllife.scene import sample_scene
from sfumato.stilllife.train import Options, motion
from sfumato.stilllife.train.unet import load_frozen


@pytest.fixture
def base() -> Any:
    torch.manual_seed(1)
    return unet(attention_head_dim=2)


def drawn(step: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips that are one pattern, moved by a column a frame; of a step's own noise."""
    generator = torch.Generator().manual_seed(step)
    z = torch.randn(size, 1, 4, 8, 8, generator=generator)
    clip = torch.cat([z.roll(f, -1) for f in range(3)], 1)
    return clip, torch.randn(size, 5, 16, generator=generator)


def options(out: Path, **more: Any) -> Options:
    return Options(out=out, steps=4, batch=2, device="cpu", precision="float32", warmup=1, **more)


def weights(model: Any, moves: bool) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items() if ("motion_modules" in k) == moves}


def test_it_begins_with_nothing(base):
    model = motion.moving(base).eval()
    (z, text), frames = drawn(0, 2), 3
    with torch.no_grad():
        clip = model(z.transpose(1, 2), 401, text.repeat_interleave(frames, 0)).sample.transpose(1, 2).flatten(0, 1)
        alone = base(z.flatten(0, 1), 401, text.repeat_interleave(frames, 0)).sample
    torch.testing.assert_close(clip, alone, atol=1e-5, rtol=1e-5)
    assert all(p.requires_grad == (".motion_modules." in name) for name, p in model.named_parameters())


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_same_bits_and_leaves_the_unet(tmp_path, base):
    def run(name: str, draw: Any = drawn, **more: Any) -> Any:
        torch.manual_seed(5)
        model = motion.moving(base)
        return model, motion.learnt(model, draw, options(tmp_path / name, **more))

    def stopping(step: int, size: int) -> Any:
        if step == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return drawn(step, size)

    whole, ema = run("whole")
    with pytest.raises(KeyboardInterrupt, match="step 2"):
        run("parts", stopping)
    again, ema_again = run("parts", resume=True)
    for a, b in ((whole, again), (ema, ema_again)):
        assert all(torch.equal(a.state_dict()[k], v) for k, v in b.state_dict().items())
    torch.manual_seed(5)
    first = motion.moving(base)
    for key, value in weights(first, moves=False).items():
        assert torch.equal(value, whole.state_dict()[key]), key
    changed = [k for k, v in weights(first, moves=True).items() if not torch.equal(v, whole.state_dict()[k])]
    assert any("proj_out" in key for key in changed)


@pytest.mark.slow
def test_what_it_writes_gives_a_model_time(tmp_path, base, models):
    """As an adapter of its own, for the UNet that it was learnt on."""
    model = motion.moving(base)
    ema = motion.learnt(model, drawn, options(tmp_path / "run"))
    ema.save_motion_modules(str(tmp_path / "final"))
    painter = load(str(models("sd").name), motion=str(tmp_path / "final"), device="cpu")
    clip = denoise(painter, "a duck", frames=3, steps=1, size=32)
    assert painter.frames == motion.MOST and clip.latents.shape == (3, 4, 4, 4)
    own = dict(painter.network.named_modules())["up_blocks.1.motion_modules.0.proj_out"].weight
    assert torch.equal(own, ema.up_blocks[1].motion_modules[0].proj_out.weight)


def test_clips_move_and_begin_with_their_scene():
    rng = np.random.default_rng(0)
    scene = sample_scene(rng)
    clip = motion.moved(scene, rng, 5)
    assert len(clip) == 5 and clip[0] == scene
    turns = [abs(s.camera.azimuth - scene.camera.azimuth) for s in clip]
    assert turns == sorted(turns) and motion.SWING[0] <= turns[-1] <= motion.SWING[1]


@pytest.mark.slow
def test_renders_are_clips_with_words(tmp_path):
    args = Options(out=tmp_path, device="cpu", clip=tmp_path / "none", vae=tmp_path / "none")
    z, text = motion.drawing(args, load_frozen(args, torch.device("cpu")))(0, 2)
    again, _ = motion.drawing(args, load_frozen(args, torch.device("cpu")))(0, 2)
    assert z.shape == (2, motion.FRAMES, 4, 16, 16) and text.shape[:2] == (2, 77) and torch.equal(z, again)
    assert (z[:, 1:] - z[:, :-1]).abs().mean() < (z[0] - z[1]).abs().mean()  # neighbours are alike
