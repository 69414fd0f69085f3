"""How well scenes learned from views show others: a still life, whose every view is known, and a real capture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from sfumato.bench.real import real
from sfumato.bench.report import Figure, Target
from sfumato.bench.session import Session
from sfumato.scene.capture import Capture, read_capture
from sfumato.scene.reconstruct import Recipe
from sfumato.stilllife.captures import cameras_around, capture
from sfumato.stilllife.scene import sample_scene
from sfumato.tasks.reconstruct import Reconstructed, reconstruct, reconstruct_by_gaussians

STEPS, FOX_STEPS = 800, 1500
VIEWS, SEEN, MOST = 32, 24, 2
RECIPE = Recipe()
STILL = replace(RECIPE, cells=96, distortion=0.01, variation=0.02)
"""Few views of a world that goes on: what few see is held together more."""

MEANINGS = {
    "reconstruct_psnr": "held out views of still lifes, photographs by day, learned by Gaussians from "
    f"{SEEN} of {VIEWS}, dB; of n scenes, {MOST} at most",
    "reconstruct_ssim": "their structural similarity",
    "reconstruct_perceptual": "how unlike they look to the VAE that ships",
    "reconstruct_minutes": "how long learning took, with this machine's cores",
    "reconstruct_voxels_psnr": "the same by a field of voxels, dB",
    "reconstruct_voxels_ssim": "their structural similarity",
    "reconstruct_voxels_perceptual": "how unlike they look to the VAE that ships",
    "reconstruct_voxels_minutes": "how long learning took",
    "fox_psnr": "every eighth view of a real capture (fox, 50 photographs of 270 x 480), held out, dB",
    "fox_ssim": "their structural similarity",
    "fox_perceptual": "how unlike they look to the VAE that ships",
    "fox_minutes": "how long learning took, with this machine's cores",
}
TARGETS = {
    "reconstruct_psnr": Target(28.0),
    "reconstruct_minutes": Target(4.0, at_least=False),
    "fox_psnr": Target(20.0),
    "fox_minutes": Target(10.0, at_least=False),
}


def scenes(session: Session) -> list[Capture]:
    """Views of still lifes all around; styles that paint on the picture rather than the world are left out."""
    out = []
    for i in range(min(session.n, MOST)):
        scene = replace(sample_scene(session.stream(20, i)), style="photo", light="day")
        out.append(capture(scene, cameras_around(scene, VIEWS))[0])
    return out


def still(session: Session) -> Mapping[str, Figure]:
    rows: list[dict[str, float]] = []
    for i, views in enumerate(scenes(session)):
        options: dict[str, Any] = {"held_out": 4, "seed": session.seed, "device": session.device}
        ways: dict[str, Reconstructed] = {
            "": reconstruct_by_gaussians(views, **options),
            "voxels_": reconstruct(views, STILL, steps=STEPS, **options),
        }
        rows.append({})
        for way, done in ways.items():
            session.keep(f"still-{way}{i}", torch.cat([done.truth, done.shown]), len(done.truth))
            found = {**done.figures.means(), "minutes": done.seconds / 60}
            rows[-1] |= {f"reconstruct_{way}{key}": value for key, value in found.items()}
    return {key: np.array([row[key] for row in rows]) for key in rows[0]}


def fox(session: Session) -> Mapping[str, Figure]:
    views = read_capture(real("fox_quarter"))
    done = reconstruct(views, RECIPE, steps=FOX_STEPS, held_out=8, seed=session.seed, device=session.device)
    session.keep("fox", torch.cat([done.truth, done.shown]), len(done.truth))
    each = {key: np.array(getattr(done.figures, key)) for key in ("psnr", "ssim", "perceptual")}
    return {f"fox_{key}": value for key, value in each.items()} | {"fox_minutes": done.seconds / 60}


MEASURES = (
    (tuple(key for key in MEANINGS if key.startswith("reconstruct_")), still),
    (("fox_psnr", "fox_ssim", "fox_perceptual", "fox_minutes"), fox),
)
