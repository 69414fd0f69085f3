"""Parts of a scene: maps of heads, of words, what a click is like, and where an edit may change views."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from families import FAMILIES, randomised, seeded

from sfumato.backbones.load import family
from sfumato.errors import SfumatoError
from sfumato.methods.perceive.graph_cut import GraphCut
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


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    """Votes on as many cells as the pictures have pixels."""
    monkeypatch.setattr(task, "FINE", SIDE)


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
        method = TextAttribution(("cube",), PROMPT, steps=(101,), stage="all")
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


def test_views_vote_for_what_is_read_in_them(model):
    shots, method = capture(), TextAttribution(("cube", "grass"), PROMPT, threshold=0.6, steps=(101,))
    cut = GraphCut(smooth=0.5)
    plain, moved = (task.votes(model, shots.images[:2], method, cut=c) for c in (None, cut))
    with read(model, shots.images[1]) as reader:
        found = method(reader)
        whole = replace(found, scores=found.whole)
        wanted = (found.labels, cut.refine(whole, shots.images[1]).labels)
    for votes, labels in zip((plain, moved), wanted, strict=True):
        assert votes.shape == (2, 3, SIDE, SIDE) and (votes.sum(1) == 1).all()
        assert torch.equal(votes[1].argmax(0), labels)
    assert not torch.equal(plain, moved)


def votes_of(monkeypatch, *masks: torch.Tensor) -> None:
    """Of each view for these, and the rest for the background."""
    cast = torch.stack([1 - torch.stack(masks).sum(0), *masks], 1)
    monkeypatch.setattr(task, "votes", lambda model, images, method, side=None, cut=None: cast)


def test_a_thing_is_where_its_word_looks_and_edits_of_it_stay_there(model, monkeypatch):
    """Votes that are the thing's outline come back as masks of it, from views that were not read as well."""
    made, shots = scene(), capture()
    outline = made.view(shots.cameras).alpha
    assert outline is not None
    inside = (outline[:, 0] > 0.5).float()
    votes_of(monkeypatch, inside)
    method = TextAttribution(("cube",))
    unseen = orbit(2, (SIDE, SIDE), distance=3.0, first=45.0, elevation=40.0)
    found = task.segment_scene(model, shots, made, method, unseen, steps=60)
    truth = made.view(unseen).alpha
    assert truth is not None and found.features.branch.own.grid.shape[-1] == task.FINE
    assert iou(found.masks[:, 0], truth[:, 0] > 0.5) > 0.85
    masks = task.thing_masks(model, shots, made, "cube", steps=60)
    assert masks.shape == (VIEWS, SIDE, SIDE) and 0.02 < masks.float().mean() < 0.6
    assert (masks & (inside > 0)).sum() > 0.95 * inside.sum()
    votes_of(monkeypatch, 0 * inside)
    with pytest.raises(SfumatoError, match="found nowhere"):
        task.thing_masks(model, shots, made, "cube", steps=2)


def iou(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a & b).sum() / (a | b).sum())


def test_a_view_that_is_wrong_is_outvoted(model, monkeypatch):
    """It sees nothing of the thing, and one beside it; four others around it do not."""
    made, cameras = scene(), orbit(36, (SIDE, SIDE), distance=3.0)[[0, 1, 2, 34, 35]]
    shots = Capture(torch.rand(5, 3, SIDE, SIDE), cameras, tuple("abcde"))
    inside = (made.view(shots.cameras).alpha[:, 0] > 0.5).float()
    wrong = torch.cat([inside[:1].roll(8, -1), inside[1:]])
    votes_of(monkeypatch, wrong)
    found = task.segment_scene(model, shots, made, TextAttribution(("cube",)), steps=60)
    assert iou(found.masks[0, 0], inside[0] > 0) > 0.8 > 0.4 > iou(wrong[0] > 0, inside[0] > 0)


def test_words_compete_for_a_pixel(model, monkeypatch):
    """What has most votes has the place."""
    made, shots = scene(), capture()
    inside = (made.view(shots.cameras).alpha[:, 0] > 0.5).float()
    votes_of(monkeypatch, 0.6 * inside, 0.3 * inside)
    found = task.segment_scene(model, shots, made, TextAttribution(("a", "b")), steps=90)
    assert iou(found.masks[:, 0], inside > 0) > 0.85 and not found.masks[:, 1].any()
    assert found.scores.shape == found.masks.shape == (VIEWS, 2, SIDE, SIDE)
    middle = found.scores[:, :, SIDE // 2, SIDE // 2].mean(0)
    torch.testing.assert_close(middle, torch.tensor([0.6, 0.3]), atol=0.1, rtol=0)


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
