"""A real capture: matched points of its photographs lie on the lines on which its cameras say they do."""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

REAL = Path(os.environ.get("SFUMATO_REAL", "../shared/real"))
FOX, WEIGHTS = REAL / "fox_quarter", REAL / "alike" / "alike-n.safetensors"
needs = pytest.mark.skipif(not (FOX.exists() and WEIGHTS.exists()), reason=f"there is no {FOX}, or no {WEIGHTS}")


@needs
@pytest.mark.slow
def test_taking_the_lens_off_brings_matches_nearer_to_their_lines():
    from alike import Alike, matches, off_the_line

    from sfumato.media.images import read_image
    from sfumato.scene.capture import read_capture
    from sfumato.scene.transforms import read_transforms

    capture = read_capture(FOX)
    shots, net, some = read_transforms(FOX / "transforms.json").shots, Alike(WEIGHTS), range(0, 50, 5)
    lens = shots[0].lens
    focal, centre = torch.tensor(lens.focal), torch.tensor(lens.centre)
    raw = {i: net.points(read_image(shots[i].file)) for i in some}
    wrong = replace(lens, radial=tuple(-k for k in lens.radial), tangential=tuple(-p for p in lens.tangential))
    ways = {
        "as they are": raw,
        "points unbent": {i: (_at(lens, p, focal, centre), d) for i, (p, d) in raw.items()},
        "bent once more": {i: (_at(wrong, p, focal, centre), d) for i, (p, d) in raw.items()},
        "images straightened": {i: net.points(capture.images[i]) for i in some},
    }
    off = {}
    for way, found in ways.items():
        pairs = [(i, j, *matches(found[i], found[j])) for i, j in pairwise(some)]
        off[way] = torch.cat([off_the_line(capture.cameras, *pair) for pair in pairs])
    middle = {way: float(x.median()) for way, x in off.items()}
    print(middle, {way: (len(x), float((x < 3).float().mean())) for way, x in off.items()})
    assert all(len(x) > 500 and float((x < 3).float().mean()) > 0.98 for x in off.values())
    assert middle["points unbent"] < 0.9 * middle["as they are"] < 0.9 * middle["bent once more"]
    assert middle["images straightened"] < 0.9 * middle["as they are"]


def _at(lens, points, focal, centre):
    return lens.unbent((points.double() - centre) / focal).float() * focal + centre


@needs
def test_the_fox_is_in_the_middle_of_its_world():
    from sfumato.scene.capture import read_capture

    capture = read_capture(FOX, side=96)
    assert len(capture) == 50 and capture.cameras.size == (96, 54)
    assert capture.names[0] == "images/0001.jpg" and capture.split()[1].names[1] == "images/0012.jpg"
    torch.testing.assert_close(capture.middle, torch.zeros(3), atol=1e-5, rtol=0)
    assert float(capture.cameras.eyes.norm(dim=1).max()) == pytest.approx(1, abs=1e-5)
    assert float(capture.cameras.poses[:, 1, 1].min()) > 0.8, "a phone was held upright, more or less"
    assert 0.02 < capture.span[0] < 0.2 and 2 < capture.span[1] < 5
