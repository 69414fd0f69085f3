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


def drawn(step: int, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Clips that are one pattern, moved by a column a frame, of which every second instant is seen."""
    generator = torch.Generator().manual_seed(step)
    z = torch.randn(size, 1, 4, 8, 8, generator=generator)
    clip = torch.cat([z.roll(f, -1) for f in range(3)], 1)
    return clip, torch.randn(size, 5, 16, generator=generator), torch.tensor([[0, 2, 4]]).expand(size, 3)


def options(out: Path, **more: Any) -> Options:
    return Options(out=out, steps=4, batch=2, device="cpu", precision="float32", warmup=1, **more)


def weights(model: Any, moves: bool) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items() if ("motion_modules" in k) == moves}


def test_it_begins_with_nothing(base):
    model = motion.moving(base).eval()
    (z, text, _), frames = drawn(0, 2), 3
    with torch.no_grad():
        clip = model(z.transpose(1, 2), 401, text.repeat_interleave(frames, 0)).sample.transpose(1, 2).flatten(0, 1)
        alone = base(z.flatten(0, 1), 401, text.repeat_interleave(frames, 0)).sample
    torch.testing.assert_close(clip, alone, atol=1e-5, rtol=1e-5)
    learned = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learned and all(".motion_modules." in name and ".ff." not in name for name in learned)
    adapter = {n: p for n, p in model.named_parameters() if ".motion_modules." in n and n not in learned}
    assert adapter and not any(p.any() for p in adapter.values())  # which need not ship


def test_only_the_finer_levels_have_modules():
    """Of four levels, as the built-in model has: two on the way down, three on the way up, none in the middle."""
    levels = {"down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",), "block_out_channels": (8,) * 4,
              "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3)}  # fmt: skip
    model = motion.moving(unet(attention_head_dim=2, **levels))
    found = {".".join(n.split(".")[:2]) for n, p in model.named_parameters() if p.requires_grad}
    assert found == {"down_blocks.0", "down_blocks.1", "up_blocks.1", "up_blocks.2", "up_blocks.3"}


def test_once_it_writes_it_writes_what_differs_from_frames_that_are_near():
    """Its first layers are an average over frames, nearer ones and those alike weighing more, less what is there."""
    model: Any = motion.moving(unet(attention_head_dim=8, block_out_channels=(64, 64), norm_num_groups=16)).eval()
    module = model.up_blocks[1].motion_modules[0]
    with torch.no_grad():
        module.proj_out.weight.copy_(torch.eye(64))
        for each in motion.instants(module):  # without that of when they are
            each.pe.zero_()  # pyright: ignore[reportCallIssue]
        module.transformer_blocks[0].attn1.to_out[0].bias.zero_()
    one, other = torch.randn(2, 64, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        still, apart = (module(x, num_frames=4) - x for x in (torch.stack([one] * 4), torch.stack([one, other] * 2)))
    assert still.abs().mean() < 0.6 * apart.abs().mean()  # what a norm over places and one over channels differ by
    assert torch.cosine_similarity((apart - still)[0].flatten(), (one - other).flatten(), dim=0) > 0.75


def test_frames_are_when_they_are_and_not_one_by_one():
    """Codes of a clip's own instants; one by one they are what diffusers adds."""
    table = torch.arange(12.0).view(1, 6, 2)
    codes, x = motion.Instants(table), torch.zeros(4, 3, 2)  # two clips of two places
    assert torch.equal(codes(x), table[:, :3].expand(4, -1, -1))
    codes.at = torch.tensor([[0, 2, 4], [5, 4, 1]])
    assert torch.equal(codes(x)[:, :, 0], torch.tensor([[0.0, 4, 8], [0, 4, 8], [10, 8, 2], [10, 8, 2]]))


def test_every_second_clip_has_noise_in_common():
    own, common = torch.randn(2, 3, 4, 64, 64), torch.randn(2, 1, 4, 64, 64)
    noise = motion.alike(own, common, 0)
    assert torch.equal(noise[0], own[0]) and noise.var().sub(1).abs() < 0.02
    along = (noise[1, 0] * noise[1, 1]).mean()
    assert abs(along - 0.5) < 0.03 and torch.equal(motion.alike(own, common, 1)[1], own[1])


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
    assert all(each.at.tolist() == [[0, 2, 4]] * 2 for each in motion.instants(whole))  # it learnt when frames are
    assert all(each.at is None for each in motion.instants(ema))


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


def test_clips_move_by_their_scene():
    rng = np.random.default_rng(0)
    scene = sample_scene(rng)
    clip = motion.moved(scene, rng, 5)
    turns = [s.camera.azimuth for s in clip]
    assert len(clip) == 5 and clip[2].camera.azimuth == pytest.approx(scene.camera.azimuth)
    assert [t.yaw for t in clip[2].things] == pytest.approx([t.yaw for t in scene.things])
    assert turns in (sorted(turns), sorted(turns, reverse=True))
    assert motion.SWING[0] <= abs(turns[-1] - turns[0]) <= motion.SWING[1]


@pytest.mark.slow
def test_renders_are_clips_with_words(tmp_path):
    args = Options(out=tmp_path, data=tmp_path, device="cpu", clip=tmp_path / "none", vae=tmp_path / "none")
    frozen = load_frozen(args, torch.device("cpu"))
    z, text, at = motion.drawing(args, frozen)(0, 2)
    again, _, when = motion.drawing(args, frozen)(0, 2)
    assert z.shape == (2, motion.FRAMES, 4, 16, 16) and text.shape[:2] == (2, 77)
    assert torch.equal(z, again) and torch.equal(at, when)
    assert (z[:, 1:] - z[:, :-1]).abs().mean() < (z[0] - z[1]).abs().mean()  # neighbours are alike
    steps = at.diff(dim=1)
    assert (steps > 0).all() and at.min() >= 0 and at.max() < motion.MOST  # backwards they are counted from the end
    assert len(list((tmp_path / "clips").glob("*.safetensors"))) == 1  # one geometry, in several appearances
    seen, _, scenes = motion.kept(tmp_path / "clips", 0, 0, frozen)
    assert len(seen) == len(scenes) == 4 and len({s.things[0].shape for s in scenes}) == 1
    assert len({(s.ground, s.light, s.style, s.things[0].colour) for s in scenes}) > 1
