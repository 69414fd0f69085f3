"""Parts of a scene: maps of heads, of words, what a click is like, and where an edit may change views."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from families import FAMILIES, randomised, seeded

from sfumato.backbones.load import family
from sfumato.errors import SfumatoError
from sfumato.methods.perceive.text_attribution import TextAttribution
from sfumato.reading.reader import chosen, read
from sfumato.scene.cameras import orbit
from sfumato.scene.capture import Capture
from sfumato.scene.features import FeatureField
from sfumato.scene.fields import Voxels
from sfumato.scene.render import FieldScene, Sampling
from sfumato.tasks import segment_scene as task

SIDE, VIEWS, PROMPT = 32, 4, "a red cube on grass"


@pytest.fixture(scope="module")
def model():
    pipe = seeded(FAMILIES["sd"])
    randomised(*pipe.components.values())
    return family("tiny", pipe)


def scene() -> FieldScene:
    """A small solid thing in the middle of nothing."""
    made = FieldScene(Voxels(16), sampling=Sampling(32))
    at = torch.stack(torch.meshgrid(*[(torch.arange(16) + 0.5) / 8 - 1] * 3, indexing="ij"))
    with torch.no_grad():
        made.field.grid[0, 0] = torch.where(at.norm(dim=0) < 0.5, 10.0, -10.0)
    return made


def capture() -> Capture:
    images = torch.rand(VIEWS, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
    return Capture(images, orbit(VIEWS, (SIDE, SIDE), distance=3.0), tuple("abcd"))


def test_maps_of_heads_have_the_mean_that_the_reader_has(model):
    shots = capture()
    maps, names = task.head_maps(model, shots.images[:2], PROMPT, "cube", steps=(101,), stage=None)
    assert maps.shape[1] == len(names) == len(set(names)) and names[0].endswith("head 0")
    with read(model, shots.images[1]) as reader:
        sites = chosen(reader, "image->text", None, 0, "it")
        heads = len(names) // len(sites)
        method = TextAttribution(("cube",), PROMPT, steps=(101,))
        mean = method.maps(reader)[0]
    assert heads * len(sites) == len(names)
    own = maps[1].mean(0)
    assert torch.corrcoef(torch.stack([own.flatten(), mean.flatten()]))[0, 1] > 0.9


def lifted(channels: int = 1) -> FeatureField:
    """1 inside of the thing, 0 all around."""
    made = scene()
    features = FeatureField(made, channels, resolution=16)
    with torch.no_grad():
        features.branch.own.grid[:, 1:] = 1.0
    return features


def test_a_thing_is_where_its_word_looks_and_edits_of_it_stay_there(model, monkeypatch):
    """Maps that are the thing's outline come back as masks of it, from views that were not read as well."""
    made, shots = scene(), capture()
    outline = made.view(shots.cameras).alpha
    assert outline is not None
    coarse = torch.nn.functional.avg_pool2d(outline, 4)
    monkeypatch.setattr(task, "word_maps", lambda model, images, method, side=None: 0.03 * torch.cat([coarse] * 1, 1))
    method = TextAttribution(("cube",), threshold=0.5)
    unseen = orbit(2, (SIDE, SIDE), distance=3.0, first=45.0, elevation=40.0)
    found = task.segment_scene(model, shots, made, method, unseen, steps=60, smooth=0.5)
    truth = made.view(unseen).alpha
    assert truth is not None
    inside = truth > 0.5
    assert ((found.masks & inside).sum() / (found.masks | inside).sum()) > 0.75
    masks = task.thing_masks(model, shots, made, "cube", steps=60)
    assert masks.shape == (VIEWS, SIDE, SIDE) and 0.02 < masks.float().mean() < 0.6
    assert (masks & (outline[:, 0] > 0.5)).sum() > 0.9 * (outline > 0.5).sum()
    monkeypatch.setattr(task, "word_maps", lambda model, images, method, side=None: 0 * coarse)
    with pytest.raises(SfumatoError, match="found nowhere"):
        task.thing_masks(model, shots, made, "cube", steps=2)


def test_words_compete_for_a_pixel(model, monkeypatch):
    made, shots = scene(), capture()
    outline = made.view(shots.cameras).alpha
    assert outline is not None
    two = torch.cat([outline, 0.4 * (1 - outline)], 1)
    monkeypatch.setattr(task, "word_maps", lambda model, images, method, side=None: two)
    found = task.segment_scene(model, shots, made, TextAttribution(("a", "b"), threshold=0.3), steps=60, smooth=0.0)
    assert not (found.masks[:, 0] & found.masks[:, 1]).any() and found.masks.any((0, 2, 3)).all()
    torch.testing.assert_close(found.scores.amax((0, 2, 3)), torch.ones(2))


def test_a_click_finds_what_is_like_it():
    features = lifted()
    with torch.no_grad():
        features.behind.fill_(-1.0)
    view = orbit(1, (16, 48), distance=3.0)
    others = orbit(3, (SIDE, SIDE), distance=3.0, first=40.0)
    thing = features.scene.view(others).alpha[:, 0]
    for point, wanted in (((24.0, 8.0), thing > 0.6), ((40.0, 1.0), thing < 0.4)):
        masks, cosine = task.clicked(features, view, point, others)
        assert (masks == wanted)[(thing > 0.6) | (thing < 0.4)].all() and cosine.shape == masks.shape
    with pytest.raises(SfumatoError, match="outside of the view"):
        task.clicked(features, view, (50.0, 1.0), others)


def test_a_turntable_is_of_captures_that_have_all_sides():
    shots = capture()
    turn = task.turntable(shots, 6)
    assert len(turn) == 6 and turn.size == (SIDE, SIDE)
    torch.testing.assert_close(turn.eyes.norm(dim=1), torch.full((6,), 3.0), atol=1e-3, rtol=0)
    half = replace(shots[[0, 1]])
    assert task.turntable(half, 6) is half.cameras
