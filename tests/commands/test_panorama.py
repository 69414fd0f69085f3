"""``sfumato panorama``: what it paints is what the library does, what it costs is said, what cannot be is refused."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from sfumato.backbones.load import load
from sfumato.core.denoising import denoise
from sfumato.core.views import Ring, Tiles
from sfumato.errors import SfumatoError
from sfumato.media.images import tensor
from sfumato.methods.sets import SyncDiffusion
from sfumato.tasks import panorama as task

PROMPT, COMMON = "a red cube", ("--steps", 2, "--device", "cpu", "--json")


def test_it_paints_what_the_library_does(run, here, tmp_path):
    model = load("stilllife", device="cpu")
    for args, views, methods in (
        (("--stride", 8), Tiles(8), []),
        (("--stride", 8, "--feather"), Tiles(8, feather=True), []),
        (("--ring", "sync-diffusion", "--weight", 3.0), Ring(), [SyncDiffusion(3.0)]),
    ):
        code, out, err = run("panorama", PROMPT, "--size", "256x128", "--seed", 5, "--out", tmp_path, *COMMON, *args)
        assert code == 0, err
        found = json.loads(out)
        (image,) = found["images"]
        wanted = denoise(
            model, PROMPT, steps=2, guide=5.0, seed=5, size=(128, 256), views=views, methods=methods
        ).images[0]
        painted = tensor(Image.open(image["image"]))
        assert painted.shape == (3, 128, 256)
        torch.testing.assert_close(painted, wanted, atol=0.51 / 255, rtol=0)
        windows = 3 if not methods else 8
        assert found["cost"]["windows"] == windows and found["cost"]["rows"] == 2 * windows
        assert found["cost"]["times"] == windows * (2 if methods else 1)
        assert f"{windows} windows of 128 x 128 pixels: {2 * windows} rows in each of 2 steps" in err
        assert (image["size"], image.get("ring", False)) == ("256x128", bool(methods))


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (("--size", "128"), "WIDTHxHEIGHT, such as 1024x128, got '128'"),
        (("--size", "256x64"), "at least as large as what stilllife sees, 128 x 128 pixels, got 256 x 64"),
        (("--size", "250x128"), "each side of --size is a multiple of 8"),
        (("--size", "256x128", "--stride", "0"), "a stride lies between 1 and the window's side, 16 cells, got 0"),
        (("--size", "256x128", "--stride", "17"), "a stride lies between 1 and the window's side, 16 cells, got 17"),
        (("--size", "256x128", "--stride", "8", "spot-diffusion"), "leave the stride out"),
        (("--size", "256x128", "sdedit"), "starts from a picture"),
        (("--size", "256x128", "--sphere", "--ring"), "leave ring, stride and feather out"),
        (("--size", "384x128", "--sphere"), "twice as wide as it is high"),
    ],
)
def test_what_is_no_panorama_is_refused_in_one_line(run, here, tmp_path, args, text):
    code, out, err = run("panorama", PROMPT, "--out", tmp_path, *COMMON, *args)
    last = err.strip().splitlines()[-1]
    assert code == 2 and not out and last.startswith("sfumato: ") and text in last
    assert not list(tmp_path.glob("*.png"))


def test_several_are_each_what_their_seed_gives_alone(here):
    model = load("stilllife", device="cpu")
    both = task.panorama(model, PROMPT, [3, 4], (128, 256), stride=8, steps=2).pictures
    alone = task.panorama(model, PROMPT, [4], (128, 256), stride=8, steps=2).pictures
    assert both[1].tobytes() == alone[0].tobytes() and both[0].tobytes() != both[1].tobytes()
    with pytest.raises(SfumatoError, match="multiples of 8"):
        task.canvas(model, (128, 250))
