"""What is learned from: pictures that files and folders hold, masks beside them, and words that are new."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import families
import numpy as np
import pytest
import torch
from learners import own_models  # noqa: F401
from PIL import Image

from sfumato.backbones.load import family
from sfumato.errors import SfumatoError
from sfumato.learning.concepts import Concept
from sfumato.learning.lessons import Lesson
from sfumato.methods.personalise.dream_booth import DreamBooth
from sfumato.methods.personalise.encoder_tuning import EncoderTuning
from sfumato.methods.personalise.textual_inversion import TextualInversion
from sfumato.reading.results import Segments
from sfumato.tasks import learn as task


@pytest.fixture
def wordless():
    torch.manual_seed(0)
    return family("ddpm", families.ddpm())


def picture(path, size=(20, 30), colour=(200, 30, 30), mode="RGB"):
    Image.new(mode, size, colour if mode == "RGB" else 120).save(path)
    return path


def test_folders_and_files_are_one_list_and_what_is_no_picture_is_noted(tmp_path, capsys):
    places = [picture(tmp_path / name) for name in ("b.png", "a.jpg")]
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / ".hidden.png").write_bytes(b"")
    alone = picture(tmp_path.parent / "alone.png")
    assert task.listed([tmp_path, alone, tmp_path / "a.jpg"]) == [places[1], places[0], alone]
    assert "as no pictures: notes.txt\n" in capsys.readouterr().err
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(SfumatoError, match=r"there is no picture in .*empty: none of 0 files"):
        task.listed([empty])
    with pytest.raises(SfumatoError, match=r"there is no photograph or folder .*nowhere"):
        task.listed([tmp_path / "nowhere"])


def test_pictures_of_any_size_and_mode_are_centre_squares_at_the_models_size(sd, tmp_path, capsys):
    half = Image.fromarray(np.repeat(np.uint8([[[255, 0, 0]], [[0, 255, 0]], [[0, 0, 255]]]), 12, 1).repeat(4, 0))
    half.transpose(Image.Transpose.TRANSPOSE).save(tmp_path / "wide.png")  # green between red and blue
    picture(tmp_path / "grey.png", (9, 40), mode="L")
    found = task.read([tmp_path], sd, 10)
    assert found.pixels.shape == (2, 3, sd.size, sd.size) and found.masks is None
    green = found.pixels[1, :, :, sd.size // 2]
    assert green[1].min() > 0.8 > 0.2 > green[0].max(), "the middle is not the picture's"
    assert "one photograph" not in capsys.readouterr().err
    task.read([tmp_path / "grey.png"], sd, 10)
    assert "one photograph says little" in capsys.readouterr().err


def test_of_many_photographs_as_many_are_read_as_the_run_sees_evenly(sd, tmp_path, capsys, monkeypatch):
    for i in range(10):
        picture(tmp_path / f"{i}.png", (8, 8), (25 * i, 0, 0))
    found = task.read([tmp_path], sd, 4)
    assert [f.stem for f in found.files] == ["0", "2", "5", "7"]
    assert "of 10 photographs the run sees 4" in capsys.readouterr().err
    assert len(task.read([tmp_path], sd, 1)) == 1 and "one photograph" not in capsys.readouterr().err
    monkeypatch.setattr(task, "ROOM", 3 * 12 * sd.size**2)
    assert [f.stem for f in task.read([tmp_path], sd, 10**9).files] == ["0", "3", "6"]


def test_masks_go_by_name_and_mark_something(sd, tmp_path):
    photos, masks = tmp_path / "photos", tmp_path / "masks"
    photos.mkdir(), masks.mkdir()
    for name in ("a.png", "b.jpg"):
        picture(photos / name, (16, 16))
    white = Image.new("L", (16, 16), 0)
    white.paste(255, (0, 0, 16, 8))
    white.save(masks / "a.png")
    with pytest.raises(SfumatoError, match=r"has no mask of b\.jpg; a mask is a picture of the same name"):
        task.read([photos], sd, 9, masks)
    Image.new("L", (16, 16), 0).save(masks / "b.png")
    found = task.read([photos], sd, 9, masks)
    assert found.masks is not None
    assert found.masks[0].mean() == pytest.approx(0.5, abs=0.05) and found.masks[0, 0].min() > 0.9
    with pytest.raises(SfumatoError, match="nothing is in the mask of picture 2"):
        Lesson.of(sd, found.pixels, found.masks)
    assert task.Photographs(found.files, found.pixels).digest != found.digest


def test_of_several_things_each_has_a_folder_of_masks(sd, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a.png", "b.png"):
        picture(photos / name, (16, 16))
    for thing, names in (("mug", ("a",)), ("ball", ("a", "b"))):
        (tmp_path / thing).mkdir()
        for name in names:
            white = Image.new("L", (16, 16), 0)
            white.paste(255, (0, 0, 8, 16) if thing == "mug" else (8, 0, 16, 16))
            white.save(tmp_path / thing / f"{name}.png")
    found = task.read([photos], sd, 9, tmp_path, things=["mug", "ball"])
    assert found.masks is not None and found.masks.shape == (2, 2, sd.size, sd.size)
    half = sd.size // 2
    assert found.masks[0, 0, :, : half - 4].min() > 0.9 and found.masks[0, 0, :, half + 4 :].max() < 0.1
    assert found.masks[0, 1, :, half + 4 :].min() > 0.9 and not found.masks[1, 0].any()
    (tmp_path / "ball" / "b.png").unlink()
    with pytest.raises(SfumatoError, match=r"has no mask of b\.png"):
        task.read([photos], sd, 9, tmp_path, things=["mug", "ball"])


def test_masks_of_words_are_what_a_segmenter_finds(capsys):
    labels = torch.zeros(4, 8, 8)
    labels[1, :, :4], labels[2, :2, 4:] = 2, 1
    both = task.Photographs((Path("a.png"),), torch.zeros(1, 3, 8, 8))
    found = task.segmented(both, lambda pixels: Segments(labels, (8, 8)), ("mug", "ball"))
    assert found.masks is not None and torch.equal(found.masks[0], (labels[1:3] > 0).float())
    assert "a.png: 50% mug, 12% ball" in capsys.readouterr().err
    one = task.segmented(both, lambda pixels: Segments(labels[:2], (8, 8)), ("mug",))
    assert one.masks is not None and one.masks.shape == (1, 8, 8) and found.digest != both.digest
    with pytest.raises(SfumatoError, match=r"nothing in a\.png is mug or ball; mark the things by hand"):
        task.segmented(both, lambda pixels: Segments(torch.ones(1, 8, 8), (8, 8)), ("mug", "ball"))


@pytest.mark.parametrize("word", ["cube", "a|b", "", "  ", "<>", "x" * 70])
def test_a_word_is_new_and_such_as_prompts_can_hold(sd, word):
    with pytest.raises(SfumatoError, match=r"a word that|a concept's word is such as"):
        task.new_word(sd, word)


def test_words_of_ones_own_are_taken(sd):
    for word in ("<cube>", "my cube", "zorblax*"):
        task.new_word(sd, word)


def test_what_is_painted_is_of_the_seeds_alone(sd):
    two, one = task.painted(sd, ["a cube"], 2, 5), task.painted(sd, ["a cube"], 1, 6)
    torch.testing.assert_close(two[1:], one, atol=2e-5, rtol=0)
    assert task.painted(sd, ["a cube"], 0).shape == (0, 3, sd.size, sd.size)


def test_cameras_go_by_name(sd, tmp_path):
    picture(tmp_path / "a.png"), picture(tmp_path / "b.png")
    cameras = tmp_path / "cameras.json"
    for text, says in (
        ('{"a.png": [0, 20]}', r"KeyError\('b.png'\)"),
        ("[1, 2]", "says where each picture was seen from"),
        ('{"a.png": [0, 20], "b.png": [90]}', "says where each picture was seen from"),
        ('{"a.png": [0, 20, 3], "b.png": [90, 20, 3]}', "an azimuth and an elevation of each picture"),
        ('{"a.png": [0, 20], "b.png": [NaN, 20]}', "NaN is no finite number"),
    ):
        cameras.write_text(text)
        with pytest.raises(SfumatoError, match=says):
            task.read([tmp_path], sd, 9, cameras=cameras)
    cameras.write_text('{"b.png": [90, 20], "a.png": [0, 10.5], "other": 3}')
    found = task.read([tmp_path], sd, 9, cameras=cameras)
    assert found.cameras is not None and found.cameras.tolist() == [[0, 10.5], [90, 20]]
    with pytest.raises(SfumatoError, match=r"there is no file .*nowhere"):
        task.read([tmp_path], sd, 9, cameras=tmp_path / "nowhere.json")


def test_pictures_of_the_kind_are_painted_once_and_kept(sd, tmp_path):
    place = tmp_path / "cubes"
    photographs = task.Photographs((), torch.rand(2, 3, sd.size, sd.size))
    method = DreamBooth(steps=1, class_pictures=2, identifier="red")
    task.learn(sd, photographs, "<duck>", method, kind="cube", prior=place, samples=0)
    kept = {file.name: file.read_bytes() for file in place.glob("*.png")}
    assert len(kept) == 2
    task.learn(sd, photographs, "<goose>", method, kind="cube", prior=place, samples=0)
    assert {file.name: file.read_bytes() for file in place.glob("*.png")} == kept
    done = task.learn(sd, photographs, "<duck>", replace(method, prior_weight=0.0), kind="cube", samples=0)
    assert done.concept.changes, "nothing was learned"


def test_captions_go_by_name_one_or_several(sd, tmp_path):
    picture(tmp_path / "a.png"), picture(tmp_path / "b.png")
    captions = tmp_path / "text.json"
    for text, says in (
        ('{"a.png": "a cat {} a table"}', r"KeyError\('b.png'\)"),
        ("[1, 2]", "says what each picture shows, as"),
        ('{"a.png": "a cat {} a table", "b.png": 3}', "says what each picture shows"),
        ('{"a.png": "a cat {} a table", "b.png": []}', "not a caption: ''"),
        ('{"a.png": ["a cat {} a table", " "], "b.png": "x"}', "not a caption: ' '"),
    ):
        captions.write_text(text)
        with pytest.raises(SfumatoError, match=says):
            task.read([tmp_path], sd, 9, captions=captions)
    captions.write_text('{"b.png": ["a dog {} a chair", "a dog"], "a.png": "a cat {} a table", "other": 3}')
    found = task.read([tmp_path], sd, 9, captions=captions)
    assert found.captions == (("a cat {} a table",), ("a dog {} a chair", "a dog"))
    assert found.digest != replace(found, captions=found.captions[::-1]).digest


def test_photographs_of_all_modes_are_read(sd, tmp_path):
    for mode in ("1", "L", "LA", "P", "RGBA", "CMYK", "I;16"):
        Image.new(mode, (9 + len(mode), 30)).save(
            tmp_path / f"{mode.replace(';', '')}.{'tif' if mode == 'CMYK' else 'png'}"
        )
    found = task.read([tmp_path], sd, 10)
    assert len(found) == 7 and found.pixels.shape[1:] == (3, sd.size, sd.size) and found.pixels.isfinite().all()
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(SfumatoError, match=r"broken\.png"):
        task.read([tmp_path], sd, 10)


def test_a_model_without_words_learns_by_all_its_weights(wordless):
    """DreamBooth as plain fine-tuning: the only caption is the empty one, of the pictures and of the kind's."""
    photographs = task.Photographs((), torch.rand(2, 3, wordless.size, wordless.size))
    before = {key: value.clone() for key, value in wordless.network.state_dict().items()}
    method = DreamBooth(steps=2, rate=1e-3, class_pictures=1)
    done = task.learn(wordless, photographs, "<smile>", method, samples=1)
    assert done.concept.changes and not done.concept.rows
    assert all(torch.equal(value, before[key]) for key, value in wordless.network.state_dict().items())
    assert (done.samples - task.painted(wordless, [""], 1)).abs().max() > 1e-3
    with pytest.raises(SfumatoError, match="teaches a word, which Stable Diffusion"):
        task.learn(wordless, photographs, "<smile>", TextualInversion(steps=1), samples=0)


def test_methods_that_learn_in_a_handful_of_steps_see_no_picture_mirrored(sd, monkeypatch):
    ways = []

    def taught(method, asked, **how):
        ways.append(asked.lesson.latents.shape[1])
        return Concept("<it>", {"clip_l": torch.zeros(1, 16)})

    monkeypatch.setattr(task, "teach", taught)
    shown = task.Photographs((), torch.rand(1, 3, sd.size, sd.size, generator=torch.Generator().manual_seed(1)))
    for method in (EncoderTuning(), TextualInversion()):
        task.learn(sd, shown, "<it>", method, samples=0)
    assert ways == [1, 2]
