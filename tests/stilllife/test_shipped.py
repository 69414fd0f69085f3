"""The weights in the package itself."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from sfumato.stilllife import weights
from sfumato.stilllife.paint import strange
from sfumato.stilllife.render import render
from sfumato.stilllife.scene import sample_scene
from sfumato.tasks.edit import kept_by


def test_what_ships_is_whole_and_within_its_budget():
    listed = weights.manifest()
    for file in listed:
        assert weights.path(file).is_file()
    assert sum(row["bytes"] for row in listed.values()) <= 52 * 2**20
    there = {p.relative_to(weights.folder()).as_posix() for p in weights.folder().rglob("*") if p.is_file()}
    assert there == {*listed, weights.MANIFEST}
    assert {row["name"] for row in weights.table() if row["shipped"]} >= {"stilllife", "oracle"}


def test_what_the_autoencoder_holds_is_told_from_what_it_does_not():
    """The floor, of what it was made for; the rest is what a photograph is like to it: fine detail everywhere."""
    from sfumato import load

    model, dice = load("stilllife", device="cpu"), np.random.default_rng(5)
    scenes = render([sample_scene(dice) for _ in range(6)], model.size).images
    kept = [kept_by(model, image) for image in scenes]
    assert sum(strange(each) is None for each in kept) >= 5, kept
    noise = torch.rand(3, model.size, model.size, generator=torch.Generator().manual_seed(0))
    photograph = (scenes[0] + 0.3 * (noise - 0.5)).clamp(0, 1)
    assert f"finds this picture again at {kept_by(model, photograph):.1f} dB" in (
        strange(kept_by(model, photograph)) or ""
    )


@pytest.mark.slow
def test_ctrl_c_half_way_stops_cleanly_and_keeps_what_is_painted(tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "sfumato.cli", "generate", "a red cube", "--n", "64", "--out", str(out)]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while len([*out.glob("a-red-cube-*.png")]) < 8 and running.poll() is None:  # the first 8 of 64 images
        time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    said, err = running.communicate()
    assert (running.returncode, said) == (130, "") and err.endswith("sfumato: stopped\n") and "Traceback" not in err
    assert 8 <= len([*out.glob("*.png")]) < 64
