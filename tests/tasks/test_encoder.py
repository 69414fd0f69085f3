"""What an encoder is taught: renders of kinds that the model knows, pictures with captions, and what a CLIP sees."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from learners import own_models  # noqa: F401
from PIL import Image

from sfumato.backbones.video import MEAN
from sfumato.errors import SfumatoError
from sfumato.learning.encoding import Pretraining
from sfumato.stilllife.kinds import KINDS
from sfumato.tasks import encoder as task


def test_still_lifes_are_of_kinds_that_were_trained_and_say_where_they_stand(monkeypatch):
    seen = []

    def render(scenes, size):
        seen.extend(scenes)
        return SimpleNamespace(images=torch.zeros(len(scenes), 3, size, size))

    monkeypatch.setattr(task, "render", render)
    found = task.still_lifes(20, 0, 16)
    assert len(found) == len(seen) == 20 and found.pixels.shape == (20, 3, 16, 16)
    assert not any(KINDS[scene.things[0].kind].held_out for scene in seen)
    assert found.captions == tuple(f"a {{}} on {scene.ground}" for scene in seen)
    assert found.names[3] == f"{seen[3].things[0].colour} {seen[3].things[0].kind}"
    assert len({scene.things[0].kind for scene in seen}) > 5 and {scene.light for scene in seen} == {"day"}
    again, other = task.still_lifes(20, 0, 16), task.still_lifes(20, 1, 16)
    assert again.captions == found.captions != other.captions
    learned, kept = found.split(4)
    assert learned.names + kept.names == found.names
    assert learned.captions + kept.captions == found.captions and len(kept) == len(kept.captions) == 4
    with pytest.raises(SfumatoError, match="of 20 pictures 20 are kept to be painted"):
        found.split(20)


def test_captions_lie_beside_pictures_all_or_none(sd, tmp_path):
    for name in ("a", "b"):
        Image.new("RGB", (20, 30), "red").save(tmp_path / f"{name}.png")
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    assert task.of_files(files, sd).captions == ()
    (tmp_path / "a.txt").write_text("a {} on\n grass ")
    with pytest.raises(SfumatoError, match=r"b\.png has no caption, and others have"):
        task.of_files(files, sd)
    (tmp_path / "b.txt").write_text("the red duck")
    with pytest.raises(SfumatoError, match=r"b\.txt: a caption has {} for the thing, .* got 'the red duck'"):
        task.of_files(files, sd)
    (tmp_path / "b.txt").write_text("the {}")
    found = task.of_files(files, sd)
    assert found.captions == ("a {} on grass", "the {}") and found.pixels.shape == (2, 3, sd.size, sd.size)
    assert found.names == (), "one has no name"
    (tmp_path / "b.txt").write_text("the {red  duck} there")
    (tmp_path / "a.txt").write_text("a { cube } on grass")
    named = task.of_files(files, sd)
    assert named.names == ("cube", "red duck") and named.captions == ("a {} on grass", "the {} there")
    assert found.digest != task.Domain(found.pixels).digest
    assert len(task.of_files(files, sd, 1)) == 1


def test_settings_are_what_suits_the_model_and_what_is_given():
    assert task.settings("sd", rate=None) == Pretraining()
    assert task.settings("stilllife", batch=7) == task.replace(task.STILL_LIFE, batch=7)


def test_a_models_own_image_encoder_sees_pictures_as_clip_was_trained(sd):
    assert task.tower(sd) is None

    class Sees(torch.nn.Module):
        config = SimpleNamespace(image_size=8)

        def __init__(self):
            super().__init__()
            self.one = torch.nn.Parameter(torch.ones(()))

        def forward(self, pixels):
            return SimpleNamespace(image_embeds=pixels.mean((2, 3)))

    model = SimpleNamespace(name="another", pipe=SimpleNamespace(image_encoder=Sees()))
    sees = task.tower(model)
    grey = torch.tensor(MEAN).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    assert sees(grey).abs().max() < 1e-6 and sees(grey + 0.1).min() > 0.3


def test_an_encoder_s_file_is_read_for_its_model_and_paints(sd, tmp_path, monkeypatch):
    domain = task.Domain(torch.rand(2, 3, sd.size, sd.size, generator=torch.Generator().manual_seed(1)))
    made = task.train(sd, domain, "cube", Pretraining(rate=1e-2, batch=1, hidden=8), steps=1)
    made.save(tmp_path / "encoder.safetensors")
    assert task.load(tmp_path / "encoder.safetensors", sd).digest == made.digest
    assert task.painted(sd, made, domain.split(1)[1]).shape == (1, 3, sd.size, sd.size)
    said = []
    monkeypatch.setattr(
        task, "painting", lambda model, prompts, n, seed: said.append((model, prompts)) or torch.ones(n)
    )
    assert task.painted(sd, made, domain).tolist() == [1, 1]
    assert [words for _, words in said] == [[f"a {task.WORD}"]] * 2, "what is painted is not of the word"
    first, second = (model.own.words[task.WORD]["clip_l"] for model, _ in said)
    assert not torch.equal(first, second)
