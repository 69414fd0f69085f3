"""The weights in the package itself."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from sfumato.stilllife import weights


def test_what_ships_is_whole_and_within_its_budget():
    listed = weights.manifest()
    for file in listed:
        assert weights.path(file).is_file()
    assert sum(row["bytes"] for row in listed.values()) <= 52 * 2**20
    there = {p.relative_to(weights.folder()).as_posix() for p in weights.folder().rglob("*") if p.is_file()}
    assert there == {*listed, weights.MANIFEST}
    assert {row["name"] for row in weights.table() if row["shipped"]} >= {"stilllife", "oracle"}


@pytest.mark.slow
def test_ctrl_c_half_way_stops_cleanly(tmp_path):
    half_way = tmp_path / "half-way"
    code = f"""
import sys
from pathlib import Path
from sfumato import cli, denoising

denoise = denoising.denoise

def and_say(*args, **options):
    out = denoise(*args, **options)
    Path({str(half_way)!r}).touch()
    return out

denoising.denoise = and_say
sys.exit(cli.main(["generate", "a red cube", "--n", "64", "--out", {str(tmp_path / "out")!r}]))
"""
    command = [sys.executable, "-c", code]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not half_way.exists() and running.poll() is None:  # the first 8 of 64 images
        time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate()
    assert (running.returncode, out, err) == (130, "", "sfumato: stopped\n")
    assert list((tmp_path / "out").iterdir()) == []
