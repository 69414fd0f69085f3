"""What the bench of learned things counts: likeness of things cut out, and what of a caption is read right."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sfumato.bench import personalise as bench
from sfumato.bench.personalise import relation, session, subject
from sfumato.bench.personalise.session import PersonalSession, Subject, cut
from sfumato.stilllife.captions import SaidThing, parse, truth
from sfumato.stilllife.oracle import Reading, ReadThing
from sfumato.stilllife.scene import relation as related

THINGS = (ReadThing("cube", "red", "plain", (0, 0, 9, 9), (4.0, 4.0), 30, False),) * 2


def reading(ground="grass", light="day", style="photo", mask=None):
    mask = np.zeros((32, 32), int) if mask is None else mask
    return Reading(THINGS if mask.any() else (), ground, light, style, mask)


def test_a_thing_is_cut_out_on_grey_and_fills_the_picture():
    image, mask = torch.zeros(1, 3, 64, 64), torch.zeros(1, 64, 64, dtype=torch.bool)
    mask[0, 40:60, 2:12] = True  # at the border, higher than wide
    image[0, 0] = mask[0].float()
    (found,) = cut(image, mask)
    assert found[:, 0, 0].tolist() == [0.5] * 3 and found[:, 32, 32].tolist() == [1, 0, 0]
    red = found[0] > 0.75
    assert red.any(1).float().mean() > 0.8 and 0.3 < red.any(0).float().mean() < 0.5
    assert torch.equal(cut(image, mask & False)[0], image[0]), "without a thing all is seen"


def test_statements_of_captions_are_counted(monkeypatch):
    of = Subject("teapot", "red", "snow", *[torch.zeros(0)] * 4, 0)
    said = subject.captions(of, "<it>")
    assert said[:2] == ["a <it> on snow", "a <it> on snow at night"] and said[2] == "a <it> on snow, watercolour"
    all_right = [reading("snow", light, style) for light, style in subject.WORLDS]
    assert subject.right(all_right, of) == 1.0
    assert subject.right([reading("sand"), *all_right[1:]], of) == pytest.approx(11 / 12)
    assert subject.right([reading("snow")] * 4, of) == pytest.approx(9 / 12)


def test_likeness_is_of_the_largest_thing_by_day(monkeypatch):
    seen = {}
    mask = np.zeros((32, 32), int)
    mask[:4], mask[8:30] = 1, 2
    things = (THINGS[0], ReadThing("cube", "red", "plain", (0, 0, 9, 9), (4.0, 4.0), 700, False))

    class Reads:
        def read(self, images):
            return [Reading(things, "snow", "day", "photo", mask)] * len(images)

    def alike(self, images, masks, of):
        seen["masks"] = masks
        return images.mean((1, 2, 3)).tolist()

    monkeypatch.setattr(PersonalSession, "oracle", Reads())
    monkeypatch.setattr(PersonalSession, "alike", alike)
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 32, 32)
    of = Subject("teapot", "red", "snow", *[torch.zeros(0)] * 4, 0)
    row = subject.judged(PersonalSession(2, 1, torch.device("cpu")), images, of)
    assert row["subject"] == 0.0 and seen["masks"].shape == (1, 32, 32), "pictures by night are compared"
    assert torch.equal(seen["masks"][0], torch.from_numpy(mask == 2))


def test_renders_to_compare_with_are_not_those_that_are_learned_from():
    both = PersonalSession(2, 1, torch.device("cpu")).subjects
    assert [s.kind for s in both] == list(session.HELD_OUT[:2])
    for one in both:
        assert len(one.pictures) == len(one.held) == session.SEEN and bool(one.masks.any(-1).any(-1).all())
        far = (one.pictures[:, None] - one.held).abs().mean((2, 3, 4))
        assert far.min() > 0.01


def test_pairs_of_a_relation_are_of_kinds_that_no_picture_shows(monkeypatch):
    scenes = []
    monkeypatch.setattr(
        relation, "render", lambda some, size: scenes.append(some) or SimpleNamespace(images=torch.zeros(8))
    )
    monkeypatch.setattr(PersonalSession, "model", SimpleNamespace(size=128))
    for i, (where, lower) in enumerate(zip(relation.RELATIONS * 2, ("cylinder", None, "cube", None), strict=True)):
        of = relation.related(PersonalSession(4, 1, torch.device("cpu")), i)
        assert of.relation == where and all(related(scene, 0, 1) == where for scene in scenes[i])
        seen = {thing.kind for scene in scenes[i] for thing in scene.things}
        new = {thing.kind for pair in of.pairs for thing in pair}
        assert not seen & new and all(a.kind != b.kind and a.colour != b.colour for a, b in of.pairs)
        assert where != "on top of" or {b.kind for _, b in of.pairs} == {lower}
        for caption, scene in zip(of.captions, scenes[i], strict=True):
            said = parse(caption.replace("{}", where))
            assert said.relation == where and not truth(scene, said), caption
        assert [parse(prompt).relation for prompt in of.prompts(where)] == [where] * relation.PAIRS


def test_a_relation_is_read_where_both_things_are(monkeypatch):
    pair = (SaidThing("duck", "red"), SaidThing("cube", "blue"))
    of = relation.Related("on top of", torch.zeros(0), (), (pair,) * 3, ("grass",) * 3, 0)
    cube = ReadThing("cube", "red", "plain", (10, 40, 50, 90), (30.0, 65.0), 900, False)
    above = ReadThing("duck", "blue", "plain", (15, 10, 45, 42), (30.0, 25.0), 400, False)
    beside = ReadThing("duck", "red", "plain", (60, 50, 90, 90), (75.0, 70.0), 400, False)
    found = [
        Reading(things, "grass", "day", "photo", np.zeros((1, 1), int))
        for things in ((above, cube), (cube, beside), (cube,))
    ]
    assert relation.judged(found, of) == {"relation": pytest.approx(1 / 3), "things": pytest.approx(2 / 3)}


def test_every_key_has_a_meaning():
    keys = {key for module in bench.MODULES for keys, _ in module.MEASURES for key in keys}
    assert keys == {key for module in bench.MODULES for key in module.MEANINGS}
    assert {key for module in bench.MODULES for key in module.TARGETS} <= keys
