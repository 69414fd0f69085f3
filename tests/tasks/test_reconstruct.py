"""``sfumato reconstruct``, and the task behind it, of a few small views."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from sfumato.cli import main
from sfumato.metrics.image import psnr
from sfumato.scene.cameras import orbit
from sfumato.scene.capture import Capture, write_capture
from sfumato.scene.reconstruct import Recipe
from sfumato.scene.store import load_scene
from sfumato.tasks import reconstruct as task

RECIPE = Recipe(cells=16, stages=(0.5,), rays=64, samples=8, coarse=12, degree=0)


def views(n: int = 6, size: int = 24, **where) -> Capture:
    cameras = orbit(n, (size, size), distance=2.0, **where)
    images = cameras.rays().directions.permute(0, 3, 1, 2) / 2 + 0.5
    return Capture(images, cameras, tuple(f"view {i}" for i in range(n)))


def test_what_is_held_out_is_judged_by_its_own_views():
    done = task.reconstruct(views(), RECIPE, steps=4, held_out=3, seed=1)
    assert done.figures.names == ("view 0", "view 3")
    torch.testing.assert_close(done.truth, views().images[[0, 3]])
    cameras = views().cameras[[0, 3]]
    torch.testing.assert_close(done.shown, done.scene.view(cameras).images.clamp(0, 1))
    assert done.figures.psnr == pytest.approx(psnr(done.shown, done.truth).tolist(), rel=1e-5)


def test_pixels_that_do_not_count_are_not_judged():
    truth = views(2)
    masks = torch.ones(2, 24, 24, dtype=torch.bool)
    masks[:, :8] = False
    worse = truth.images.clone()
    worse[:, :, :8] = 0.0
    found = task.figures(worse, replace(truth, masks=masks))
    assert found.psnr == (100.0, 100.0)
    assert found.ssim == pytest.approx((1, 1)) and found.perceptual == pytest.approx((0, 0), abs=1e-5)
    assert min(task.figures(worse, truth).perceptual) > 0.01


def test_a_turn_goes_all_around_or_back_and_forth():
    around = task.turning(views(8, elevation=25.0), 12)
    torch.testing.assert_close(around.eyes.norm(dim=-1), torch.full((12,), 2.0), atol=1e-3, rtol=0)
    azimuth = torch.rad2deg(torch.atan2(around.eyes[:, 0], around.eyes[:, 2]))
    assert len({round(float(a)) % 360 // 30 for a in azimuth + 0.5}) == 12
    some = views(36)[[0, 1, 2, 3, 33, 34, 35]]  # from -30 to 30 degrees
    swing = task.turning(some, 12)
    azimuth = torch.rad2deg(torch.atan2(swing.eyes[:, 0], swing.eyes[:, 2]))
    assert float(azimuth.min()) == pytest.approx(-30, abs=1) and float(azimuth.max()) == pytest.approx(30, abs=1)
    torch.testing.assert_close(azimuth[1:6], azimuth[7:].flip(0), atol=1e-2, rtol=0)


def test_a_folder_becomes_a_scene_with_its_figures(tmp_path, capsys):
    folder, out = tmp_path / "my photos", tmp_path / "out"
    write_capture(folder, views())
    args = ["reconstruct", str(folder), "--steps", "3", "--rays", "32", "--cells", "16", "--held-out", "3",
            "--frames", "3", "--device", "cpu", "--out", str(out), "--json"]  # fmt: skip
    assert main([*args, "--plan"]) == 0 and json.loads(capsys.readouterr().out)["seconds"] >= 0
    assert not out.exists()
    assert main(args) == 0
    heard = capsys.readouterr()
    found = json.loads(heard.out)
    assert "learning takes about" in heard.err
    names = sorted(p.name for p in out.iterdir() if not p.name.startswith("."))
    assert names == [f"my-photos-voxels.{end}" for end in ("gif", "json", "png", "safetensors")]
    assert [v["name"] for v in found["held_out"]] == ["view 0", "view 3"]
    assert found["psnr"] == pytest.approx(sum(v["psnr"] for v in found["held_out"]) / 2)
    scene, about = load_scene(out / "my-photos-voxels.safetensors")
    assert about["steps"] == 3 and about["views"] == 6 and scene.field.resolution == 16
    assert main([*args[:-1], "--plan", "--held-out", "7"]) == 2
    assert "has 6 images" in capsys.readouterr().err
    assert main(["reconstruct", str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
