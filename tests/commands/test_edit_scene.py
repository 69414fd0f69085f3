"""``sfumato edit-scene`` and ``segment-scene``: what they write, and what they refuse."""

from __future__ import annotations

import json

import pytest
import torch

from sfumato.media.images import open_picture, tensor
from sfumato.scene.cameras import orbit
from sfumato.scene.capture import Capture, read_capture, write_capture
from sfumato.scene.fields import Voxels
from sfumato.scene.gaussians import Gaussians
from sfumato.scene.render import FieldScene, Sampling
from sfumato.scene.store import load_scene, save_scene
from sfumato.tasks import segment_scene

VIEWS, SIDE = 3, 32


@pytest.fixture
def capture(tmp_path):
    images = torch.rand(VIEWS, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
    return write_capture(tmp_path / "capture", Capture(images, orbit(VIEWS, (SIDE, SIDE)), tuple("abc"))).parent


@pytest.fixture
def scene(tmp_path):
    return save_scene(tmp_path / "scene.safetensors", FieldScene(Voxels(4), sampling=Sampling(4)))


def test_an_edit_is_written_and_goes_by_the_scene_that_was_given(run, here, capture, scene, tmp_path):
    out = tmp_path / "out"
    args = ("edit-scene", capture, "csd-edit", "--from", "a red cube", "--to", "a blue duck", "--scene", scene)
    options = ("--steps", 2, "--edit-steps", 1, "--together", 2, "--between", 1, "--every", 1, "--out", out, "--json")
    code, said, err = run(*args, *options)
    assert code == 0, err
    record = json.loads(said)
    assert record["edited"] == VIEWS and "hardly fitted" in err
    names = {f.rsplit("/", 1)[1] for f in record["files"]}
    stem = "a-blue-duck-csd-edit"
    assert names == {f"{stem}.safetensors", f"{stem}.png", f"{stem}.gif", "a.png", "b.png", "c.png"}
    found, about = load_scene(out / f"{stem}.safetensors")
    assert about["to"] == "a blue duck"
    first = load_scene(scene)[0]
    assert not torch.equal(found.field.grid, first.field.grid)  # type: ignore[union-attr]
    again = json.loads(run(*args, *options)[1])
    assert {**again, "seconds": 0} == {**record, "seconds": 0}


def test_gaussians_are_edited_and_a_thing_alone_is_found_by_a_field_beside_them(
    run, here, capture, tmp_path, monkeypatch
):
    upper = torch.arange(SIDE)[:, None] < SIDE // 2
    asked = []

    def masks(model, shots, scene, word, *_, **__):
        asked.append((type(scene), word))
        return upper.expand(VIEWS, SIDE, SIDE)

    monkeypatch.setattr(segment_scene, "thing_masks", masks)
    rng = torch.Generator().manual_seed(2)
    means, colours = torch.rand(20, 3, generator=rng) - 0.5, torch.rand(20, 3, generator=rng)
    scene, out = save_scene(tmp_path / "splats.safetensors", Gaussians(means, colours, opacity=0.8)), tmp_path / "out"
    of = "--from", "a red cube", "--to", "a blue cube"
    args = ("edit-scene", capture, "csd-edit", *of, "--scene", scene, "--only", "cube")
    steps = "--fit-steps", 1, "--steps", 1, "--edit-steps", 1
    code, said, err = run(*args, *steps, "--together", 3, "--out", out, "--json")
    assert code == 0, err
    record = json.loads(said)
    edited = torch.stack([tensor(open_picture(f)) for f in record["files"] if "-views/" in f])
    photos = read_capture(capture).images
    changed = (edited - photos).abs().amax(1) > 0.6 / 255
    assert asked == [(FieldScene, "cube")] and changed[:, : SIDE // 2].any() and not changed[:, SIDE // 2 :].any()
    found = load_scene(next(f for f in record["files"] if f.endswith("csd-edit.safetensors")))[0]
    assert isinstance(found, Gaussians) and len(found) == 20
    assert len(list(out.glob(".fit.*"))) == 1, "the field by which it was found is kept for the next time"


def test_a_scene_is_fitted_by_what_is_asked_for(run, here, capture, tmp_path):
    of = ("edit-scene", capture, "csd-edit", "--from", "a red cube", "--to", "a blue cube", "--fit-steps", 1)
    options = ("--steps", 1, "--edit-steps", 1, "--together", 3, "--every", 9, "--json")
    for field, kind in (("gaussians", Gaussians), ("voxels", FieldScene)):
        out = tmp_path / field
        code, said, err = run(*of, *options, "--field", field, "--out", out)
        assert code == 0, err
        assert isinstance(load_scene(json.loads(said)["files"][0])[0], kind)


def test_things_are_written(run, here, capture, scene, tmp_path):
    out = tmp_path / "out"
    code, said, err = run(
        "segment-scene", capture, "--words", "cube,duck", "--scene", scene, "--steps", 2, "--frames", 2, "--out", out,
        "--json",
    )  # fmt: skip
    assert code == 0, err
    record = json.loads(said)
    assert record["words"] == ["cube", "duck"] and len(record["share"]) == 2
    names = {f.rsplit("/", 1)[1] for f in record["files"]}
    assert names == {"cube-duck.safetensors", "cube-duck.png", "cube-duck.gif", *(f"{v}-labels.png" for v in "abc")}


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (("edit-scene", "CAPTURE", "make it blue", "nerf"), "unknown way to edit a scene"),
        (("edit-scene", "CAPTURE", "csd-edit"), "needs what to do"),
        (("edit-scene", "CAPTURE"), "after the capture come"),
        (("edit-scene", "CAPTURE", "dds", "--from", "a cube"), "belong together"),
        (("edit-scene", "CAPTURE", "x", "csd-edit", "--from", "a", "--to", "b"), "not by both"),
        (("edit-scene", "CAPTURE", "x", "csd-edit", "--steps", 0), "--steps"),
        (("edit-scene", "CAPTURE", "x", "csd-edit", "--fit-steps", 0), "--fit-steps"),
        (("edit-scene", "CAPTURE", "dds", "--from", "a", "--to", "b", "--only", "a"), "knows no --only"),
        (("edit-scene", "nowhere", "x", "csd-edit"), "nowhere"),
        (("segment-scene", "CAPTURE"), "looks for --words"),
        (("segment-scene", "CAPTURE", "--words", "a", "--click", 0, 1, 1), "looks for --words"),
        (("segment-scene", "CAPTURE", "--click", 7, 1, 1), "--click names a view from 0 to 2"),
        (("segment-scene", "CAPTURE", "--words", "a", "--threshold", 2), "--threshold"),
    ],
)
def test_bad_input_is_one_clear_line(run, here, capture, tmp_path, args, match):
    code, _, err = run(*(capture if a == "CAPTURE" else a for a in args), "--out", tmp_path / "out")
    assert code == 2 and match in err and len(err.strip().splitlines()) == 1
