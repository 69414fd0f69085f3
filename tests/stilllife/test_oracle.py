"""The oracle: from perfect maps it must read the very scene; what ships must read fresh renders."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sfumato.errors import SfumatoError
from sfumato.stilllife import render
from sfumato.stilllife.captions import parse
from sfumato.stilllife.kinds import KINDS, TRAINED
from sfumato.stilllife.oracle import (
    COUNTED,
    REACH,
    TRAITS,
    WORLD,
    Maps,
    Oracle,
    Reading,
    ReadThing,
    group,
    interpret,
    matches,
    pool,
    score,
)
from sfumato.stilllife.scene import Camera, Scene, Thing, relation, sample_scene
from sfumato.stilllife.train.data import marks
from sfumato.stilllife.train.oracle import moved, objective, targets, worn


@pytest.fixture(scope="module")
def truth():
    """Scenes of all sorts with their masks and visible mark pixels."""
    rng = np.random.default_rng(5)
    scenes = [sample_scene(rng) for _ in range(12)]
    scenes += [sample_scene(rng, relation=r, count=2) for r in ("on top of", "behind", "in front of") for _ in range(2)]
    scenes += [sample_scene(rng, count=n, same=True) for n in (2, 3) for _ in range(2)]
    drawn = render.render(scenes)
    return scenes, drawn.images, drawn.thing + 1, marks(scenes, drawn.thing, drawn.part)


def perfect(scenes: list[Scene], thing: torch.Tensor, mark: torch.Tensor) -> Maps:
    """The maps of a network that makes no mistake."""
    labels = targets(scenes, mark)
    offset = torch.zeros(len(scenes), 2, *thing.shape[1:])
    traits = torch.zeros(len(scenes), sum(map(len, TRAITS.values())), thing.shape[1] // 4, thing.shape[2] // 4)
    for i, scene in enumerate(scenes):
        for k in range(len(scene.things)):
            y, x = torch.nonzero(thing[i] == k + 1, as_tuple=True)
            if not len(x):
                continue
            offset[i, :, y, x] = torch.stack([x.float().mean() - x, y.float().mean() - y]) / REACH
            there = F.max_pool2d((thing[i] == k + 1).float()[None], 4)[0].bool()
            first = 0
            for key, words in TRAITS.items():
                value = int(labels[key][i, k])
                if key != "mark":
                    traits[i, first + value, there] += 5.0
                else:
                    traits[i, first, there] = 5.0 if value == 1 else -5.0
                first += len(words)
    world = torch.cat([F.one_hot(labels[k], len(words)) for k, words in WORLD.items()], 1).float()
    return Maps((thing > 0).float() * 2 - 1, offset, traits, world)


def test_perfect_maps_read_as_the_scene(truth):
    scenes, _, thing, mark = truth
    maps = perfect(scenes, thing, mark)
    readings = interpret(maps, group(maps.mask, maps.offset))
    figures = score(readings, scenes, thing, mark)
    assert figures.pop("relation") >= 0.95  # rules on boxes, not a matter of maps
    assert figures == dict.fromkeys(figures, 1.0)


def test_votes_may_be_unsure_by_a_few_pixels(truth):
    scenes, _, thing, mark = truth
    maps = perfect(scenes, thing, mark)
    noise = torch.randn(maps.offset.shape, generator=torch.Generator().manual_seed(0)) * 2.5 / REACH
    figures = score(interpret(maps, group(maps.mask, maps.offset + noise)), scenes, thing, mark)
    assert figures["count"] == 1.0
    assert figures["pixels"] > 0.999


def test_three_equal_cubes_are_three_and_specks_are_none():
    mask, offset = -torch.ones(1, 64, 128), torch.zeros(1, 2, 64, 128)
    for x in (10, 50, 90):
        mask[0, 20:40, x : x + 20] = 1
        offset[0, 0, 20:40, x : x + 20] = (x + 9.5 - torch.arange(x, x + 20)) / REACH
        offset[0, 1, 20:40, x : x + 20] = (29.5 - torch.arange(20, 40)[:, None]) / REACH
    label = group(mask, offset)
    assert label.unique().tolist() == [0, 1, 2, 3]
    assert [(label == k).sum().item() for k in (1, 2, 3)] == [400, 400, 400]
    mask[:] = -1
    mask[0, 3, 4:9] = 1  # five pixels
    assert group(mask, offset).max() == 0


@pytest.mark.parametrize("piece", [3, 12])
def test_a_piece_that_votes_apart_joins_the_nearest_thing(piece):
    """Pixels whose votes stray are no thing of their own, be they few or many that miss their own middle."""
    mask, offset = -torch.ones(1, 64, 64), torch.zeros(1, 2, 64, 64)
    mask[0, 10:40, 10:40] = 1
    x = torch.arange(10, 40)
    offset[0, 0, 10:40, 10:40] = (24.5 - x) / REACH
    offset[0, 1, 10:40, 10:40] = (24.5 - x[:, None]) / REACH
    offset[0, 0, 10 : 10 + piece, 10 : 10 + piece] += 30 / REACH
    label = group(mask, offset)
    assert (label == 1).sum() == 900


def test_pool_is_the_mean_over_a_things_pixels():
    label = torch.zeros(1, 16, 16, dtype=torch.long)
    label[0, :8], label[0, 8:, :4] = 1, 2
    traits = torch.arange(16.0).view(1, 1, 4, 4)
    pooled = pool(traits, label)[0, :, 0]
    assert pooled.tolist() == [3.5, 10.0, 0.0]


def test_network_gives_maps_of_the_stated_shapes_and_the_same_twice():
    torch.manual_seed(0)
    oracle = Oracle()
    images = torch.rand(2, 3, 64, 96)
    maps = oracle(images)
    assert maps.mask.shape == (2, 64, 96)
    assert maps.offset.shape == (2, 2, 64, 96)
    assert maps.traits.shape == (2, 29, 16, 24)
    assert maps.world.shape == (2, 14)
    first, second = oracle.read(images), oracle.read(images)
    assert [r.to_dict() for r in first] == [r.to_dict() for r in second]
    assert sum(p.numel() for p in oracle.parameters()) * 2 <= 3 * 2**20
    with pytest.raises(SfumatoError, match="multiples of 16"):
        oracle(torch.rand(1, 3, 100, 100))


def test_an_image_and_its_mirror_image_read_alike():
    from sfumato.stilllife.oracle import mean, mirrored

    torch.manual_seed(0)
    oracle, images = Oracle().eval(), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        here, there = oracle(images), oracle(images.flip(-1))
    both = mean(here, mirrored(there))
    for a, b in zip(mirrored(both), mean(there, mirrored(here)), strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(both.offset[:, 0, :, 5], (here.offset[:, 0, :, 5] - there.offset[:, 0, :, 58]) / 2)


def test_saved_and_loaded_it_reads_the_same(tmp_path):
    torch.manual_seed(1)
    oracle = Oracle(widths=(8, 16, 16, 24), depths=(1, 1, 1, 1))
    with torch.no_grad():
        for p in oracle.parameters():
            p.copy_(p.half().float())
    oracle.save(tmp_path / "oracle.safetensors")
    again = Oracle.load(tmp_path / "oracle.safetensors")
    images = torch.rand(1, 3, 32, 32)
    assert torch.allclose(again(images).world, oracle(images).world, atol=1e-6)
    (tmp_path / "broken.safetensors").write_bytes((tmp_path / "oracle.safetensors").read_bytes()[:1000])
    with pytest.raises(SfumatoError, match="holds no oracle"):
        Oracle.load(tmp_path / "broken.safetensors")


def test_it_learns(truth):
    """A few steps on a few images must lower every term of the loss."""
    scenes, images, thing, mark = truth
    torch.manual_seed(0)
    oracle = Oracle(widths=(16, 32, 32, 32), depths=(1, 1, 1, 1))
    optimizer = torch.optim.AdamW(oracle.parameters(), 4e-3)
    images, thing, labels = images[:8, :, ::2, ::2], thing[:8, ::2, ::2], targets(scenes[:8], mark[:8])
    history = []
    for _ in range(25):
        loss, terms = objective(oracle(images), thing, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append({k: float(v.detach()) for k, v in terms.items()})
    first, last = (({k: np.mean([h[k] for h in part]) for k in history[0]}) for part in (history[:5], history[-5:]))
    assert {k for k in first if last[k] >= first[k]} == set()


def test_perfect_maps_have_almost_no_loss(truth):
    scenes, _, thing, mark = truth
    maps = perfect(scenes, thing, mark)
    maps = maps._replace(mask=maps.mask * 20, traits=maps.traits * 20, world=maps.world * 20)
    _, terms = objective(maps, thing, targets(scenes, mark))
    assert max(float(terms[k]) for k in ("mask", "offset", "ground", "light", "style")) < 1e-3
    # two things may share a cell of the trait maps, so the traits are not quite free of loss
    assert max(float(terms[k]) for k in ("kind", "colour", "material", "mark")) < 0.2


def test_images_and_masks_move_together(truth):
    _, _, thing, _ = truth
    torch.manual_seed(3)
    picture = (thing > 0).float()[:, None].expand(-1, 3, -1, -1)
    images, masks = moved(picture, thing)
    assert torch.equal(images[:, 0] > 0, masks > 0)
    assert not torch.equal(masks, thing)


def test_wear_keeps_a_quarter_as_it_is_and_colours_near(truth):
    _, images, _, _ = truth
    torch.manual_seed(0)
    out = worn(images)
    assert out.shape == images.shape
    quarter = -(-len(images) // 4)
    assert torch.equal(out[:quarter], images[:quarter])
    drift = (F.avg_pool2d(out, 16) - F.avg_pool2d(images, 16)).abs()
    assert 0.005 < drift[quarter:].mean() < 0.05
    assert out.min() >= 0
    assert out.max() <= 1


def _things(*things: ReadThing, ground="grass", light="day", style="photo") -> Reading:
    return Reading(things, ground, light, style, np.zeros((128, 128), int))


def _at(kind: str, colour: str, x: float, bottom: int, material: str = "plain", face: bool = False) -> ReadThing:
    box = (int(x) - 20, bottom - 40, int(x) + 20, bottom)
    return ReadThing(kind, colour, material, box, (x, bottom - 20.0), 1000, face)


def test_describe_says_what_was_seen():
    pair = _things(_at("cube", "red", 30, 90), _at("duck", "blue", 90, 92))
    assert pair.describe() == "a red cube left of a blue duck on grass, by day, photo"
    tower = _things(_at("cube", "orange", 64, 100, "striped"), _at("sphere", "white", 65, 62), light="fog")
    assert tower.describe() == "a white sphere on top of a striped orange cube on grass, in fog, photo"
    assert _things(style="mosaic").describe() == "nothing on grass, by day, mosaic"
    assert parse(pair.describe()).relation == "left of"
    three = _things(*(_at("cube", c, x, 90) for c, x in (("red", 20), ("blue", 60), ("green", 100))), light="night")
    assert three.describe() == "a red cube, a blue cube and a green cube on grass, at night, photo"


@pytest.mark.parametrize("word", ["left of", "right of", "in front of", "behind", "on top of"])
def test_relations_in_the_image_are_those_of_the_scene(word):
    rng = np.random.default_rng(11)
    scenes = [sample_scene(rng, count=2, relation=word) for _ in range(12)]
    seen = render.trace(scenes, 32)
    thing = seen.grid(seen.thing) + 1
    right = 0
    for scene, mask in zip(scenes, thing, strict=True):
        read = []
        for k in range(2):
            y, x = torch.nonzero(mask == k + 1, as_tuple=True)
            box = (int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1)
            centre = (float(x.float().mean()), float(y.float().mean()))
            read.append(ReadThing("cube", "red", "plain", box, centre, len(x), False))
        assert relation(scene, 0, 1) == word
        right += _things(*read).relation(0, 1) == word
    assert right >= 11


def test_score_counts_each_mistake_where_it_belongs(truth):
    scenes, _, thing, mark = truth
    pick = [i for i, s in enumerate(scenes) if len(s.things) == 2][:4]
    scenes, thing, mark = [scenes[i] for i in pick], thing[pick], mark[pick]
    maps = perfect(scenes, thing, mark)
    readings = interpret(maps, group(maps.mask, maps.offset))
    first = readings[0]
    other = next(c for c in ("red", "blue") if c != first.things[0].colour)
    wrong = replace(first, things=(replace(first.things[0], colour=other), first.things[1]), ground="none")
    figures = score([wrong, *readings[1:]], scenes, thing, mark)
    assert figures["colour"] == pytest.approx(7 / 8)
    assert figures["ground"] == pytest.approx(3 / 4)
    assert figures["kind"] == figures["pixels"] == figures["count"] == 1.0
    lost = replace(first, things=first.things[:1], mask=np.where(first.mask == 1, 1, 0))
    figures = score([lost, *readings[1:]], scenes, thing, mark)
    assert figures["kind"] == figures["colour"] == pytest.approx(7 / 8)
    assert figures["count"] == pytest.approx(3 / 4)
    assert figures["pixels"] < 1


def test_score_leaves_out_what_is_hardly_visible():
    scene = Scene((Thing("cube", "red", x=-0.7), Thing("cube", "blue", x=0.7)))
    truth = torch.zeros(1, 128, 128, dtype=torch.long)
    truth[0, 60:90, 20:50] = 1
    truth[0, 70:73, 90:100] = 2  # 30 pixels, below COUNTED
    assert (truth == 2).sum() < COUNTED
    mask = np.where(truth[0].numpy() == 1, 1, 0)
    reading = Reading(
        (ReadThing("cube", "red", "plain", (20, 60, 50, 90), (35, 75), 900, False),), "grass", "day", "photo", mask
    )
    figures = score([reading], [scene], truth, torch.zeros(1, 3))
    assert figures["pixels"] == figures["kind"] == figures["colour"] == 1.0
    assert np.isnan(figures["count"])


MATCHES = [
    ("a red cube", {"things": True}),
    ("a blue cube", {"things": False}),
    ("a red sphere", {"things": False}),
    ("a red cube on grass", {"things": True, "ground": True}),
    ("a red cube on sand at night", {"things": True, "ground": False, "light": False}),
    ("a red cube by day, mosaic", {"things": True, "light": True, "style": False}),
    ("a striped red cube", {"things": False}),
    ("a red cube and a blue duck", {"things": False}),
    ("two red cubes", {"things": False}),
]


@pytest.mark.parametrize(("text", "expected"), MATCHES)
def test_matches_one_thing(text, expected):
    verdicts = matches(_things(_at("cube", "red", 60, 90)), parse(text))
    assert {k: v for k, v in verdicts.items() if v is not None} == expected


def test_matches_binds_colours_and_relations():
    pair = _things(_at("cube", "red", 30, 90), _at("duck", "blue", 90, 92))
    assert matches(pair, parse("a red cube and a blue duck"))["things"] is True
    assert matches(pair, parse("a blue cube and a red duck"))["things"] is False
    assert matches(pair, parse("a blue duck to the right of a red cube"))["relation"] is True
    assert matches(pair, parse("a blue duck to the left of a red cube"))["relation"] is False
    assert matches(pair, parse("a blue duck to the left of a red cube"))["things"] is True
    assert matches(pair, parse("a blue cube to the left of a red duck"))["relation"] is False


def test_matches_counts_and_takes_the_kindest_order():
    cubes = _things(_at("cube", "red", 30, 90), _at("cube", "red", 90, 92))
    assert matches(cubes, parse("two red cubes"))["things"] is True
    assert matches(cubes, parse("three red cubes"))["things"] is False
    assert matches(cubes, parse("a red cube to the right of a red cube"))["relation"] is True


@pytest.mark.parametrize(
    ("said", "face", "verdict"),
    [
        ("front", True, True),
        ("front", False, False),
        ("back", True, False),
        ("back", False, True),
        ("side", True, None),
    ],
)
def test_matches_views_by_the_mark(said, face, verdict):
    robot = _things(_at("robot", "red", 60, 90, face=face))
    assert matches(robot, parse(f"{said} view of a red robot"))["view"] is verdict
    assert matches(robot, parse("a red robot"))["view"] is None


def test_only_trained_kinds_can_be_read():
    assert set(TRAITS["kind"]) == set(TRAINED)
    assert not any(KINDS[k].held_out for k in TRAITS["kind"])


def _judged(count: int, seed: int, wear=lambda images: images) -> dict[str, float]:
    rng = np.random.default_rng(seed)
    oracle = Oracle.load()
    scenes, readings, things, seen = [], [], [], []
    for first in range(0, count, 50):
        some = [sample_scene(rng) for _ in range(min(50, count - first))]
        drawn = render.render(some)
        scenes += some
        readings += oracle.read(wear(drawn.images))
        things.append(drawn.thing + 1)
        seen.append(marks(some, drawn.thing, drawn.part))
    return score(readings, scenes, torch.cat(things), torch.cat(seen))


def test_what_ships_reads_fresh_renders():
    """A quick look at 30 scenes; the bounds leave room for the chance of so few."""
    figures = _judged(30, 901)
    assert figures["pixels"] >= 0.98
    assert figures["kind"] >= 0.95
    assert figures["colour"] >= 0.96


@pytest.mark.slow
def test_what_ships_is_right_on_a_thousand_fresh_renders():
    figures = _judged(1000, 902)
    assert figures["pixels"] >= 0.98
    assert figures["kind"] >= 0.97
    assert figures["colour"] >= 0.98
    assert min(figures[k] for k in ("ground", "light", "style", "count")) >= 0.97


@pytest.mark.slow
def test_what_ships_reads_reconstructions():
    from sfumato.stilllife import networks, weights

    vae = weights.module("vae")
    figures = _judged(300, 903, lambda images: networks.reconstruct(vae, images))
    assert figures["pixels"] >= 0.97
    assert figures["kind"] >= 0.95
    assert figures["colour"] >= 0.96


def test_overhead_views_are_read_too():
    scene = Scene(
        (Thing("cube", "red", x=-0.7), Thing("cube", "red", x=0.7)), camera=Camera(elevation=70, distance=4.1)
    )
    drawn = render.render([scene])
    thing, mark = drawn.thing + 1, marks([scene], drawn.thing, drawn.part)
    maps = perfect([scene], thing, mark)
    reading = interpret(maps, group(maps.mask, maps.offset))[0]
    assert [t.kind for t in reading.things] == ["cube", "cube"]
    assert reading.relation(0, 1) == "left of"
