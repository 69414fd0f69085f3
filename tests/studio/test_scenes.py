"""A scene in a browser: cameras are the visitor's, pictures come small and then fine, the newest camera first."""

from __future__ import annotations

import builtins
import math
import threading

import numpy as np
import pytest
import torch
from balls import coloured_ball

from sfumato.errors import SfumatoError
from sfumato.studio.scenes import Drawing, pinhole, serve


def test_a_camera_of_visers_looks_where_it_looks():
    """No turn is OpenCV's: it looks along +z with y down; half a turn about x is upright and looks along -z."""
    still = pinhole((1, 0, 0, 0), (0, 0, -3), math.radians(40), 1.0, 8)
    ways = still.rays().directions[0]
    assert ways[..., 2].min() > 0 and ways[0, 0, 1] < 0 < ways[-1, 0, 1]  # the upper row goes down in the world
    upright = pinhole((0, 1, 0, 0), (0, 0, 3), math.radians(40), 1.5, 8)
    ways = upright.rays().directions[0]
    assert upright.size == (8, 12) and ways[..., 2].max() < 0 and ways[0, 0, 1] > 0 > ways[0, 0, 0]
    assert upright.eyes.tolist() == [[0, 0, 3]]
    half = math.sqrt(0.5)
    left = pinhole((half, 0, half, 0), (0, 0, 0), 0.5, 1.0, 2).rays().directions[0].mean((0, 1))
    torch.testing.assert_close(left / left.norm(), torch.tensor([1.0, 0, 0]))  # z turned about y is x
    assert pinhole((1, 0, 0, 0), (0, 0, 0), 0.5, 99.0, 10).size == (10, 25)


def drawing(shown, **more):
    scene = coloured_ball()

    def camera(height):
        return pinhole((0, 1, 0, 0), (0, 0, 3), math.radians(40), 1.0, height)

    return Drawing(scene, camera, lambda picture: shown.append(picture.shape[0]), sides=(4, 8, 16), **more)


def test_pictures_come_small_then_fine_and_end():
    shown: list[int] = []
    one = drawing(shown)
    while one.step():
        pass
    assert shown == [4, 8, 16] and not one.step() and shown == [4, 8, 16]
    one.moved()
    assert one.step() and shown[-1] == 4


def test_a_camera_that_moves_meanwhile_is_drawn_small_again():
    shown: list[int] = []
    one = drawing(shown)
    one.show = lambda picture: (shown.append(picture.shape[0]), len(shown) == 2 and one.moved())[0]
    worker = threading.Thread(target=one.run)
    one.moved()
    worker.start()
    while len(shown) < 5:
        threading.Event().wait(0.01)
    one.leave()
    worker.join()
    assert shown[:5] == [4, 8, 4, 8, 16]


def test_pictures_are_of_the_scene():
    kept: list[np.ndarray] = []
    one = drawing([])
    one.show = kept.append
    one.sides = (24,)
    assert not one.step()
    (picture,) = kept
    assert picture.dtype == np.uint8 and picture.shape == (24, 24, 3)
    assert picture[12, 16, 2] > picture[12, 16, 0] and picture[12, 8, 0] > picture[12, 8, 2]


def test_without_viser_one_line_names_the_extra_and_the_film(monkeypatch):
    kept = builtins.__import__

    def missing(name, *args, **options):
        if name == "viser":
            raise ImportError(name)
        return kept(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(SfumatoError, match=r"sfumato\[studio\].*export-scene SCENE --out turn\.mp4"):
        serve(coloured_ball())


def test_the_command_refuses_in_one_line(run, tmp_path):
    code, _, err = run("show", "scene", tmp_path / "none.safetensors")
    assert code == 2 and "there is no file" in err and err.count("\n") == 1
    code, _, err = run("show", "scene", tmp_path / "none.safetensors", "--port", 0)
    assert code == 2 and "--port lies between 1 and 65535" in err
