"""Pictures of a kind that a model paints itself: which, where they are kept, and that the painting goes on."""

from __future__ import annotations

import pytest
import torch
from learners import own_models  # noqa: F401

from sfumato.core.denoising import denoise
from sfumato.errors import SfumatoError
from sfumato.learning import priors
from sfumato.learning.priors import class_pictures
from sfumato.media.images import open_picture, tensor


def test_they_are_the_models_own_of_the_seeds_from_the_first(models, tmp_path):
    model = models("sd")
    lesson = class_pictures(model, "cube", 3, 5, tmp_path, steps=2, batch=2)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["00005.png", "00006.png", "00007.png"]
    for i in range(3):
        image = denoise(model, "a cube", seed=5 + i, steps=2).images
        seen = tensor(open_picture(tmp_path / f"0000{5 + i}.png"))
        assert (seen - image[0]).abs().max() <= 1.01 / 255
        torch.testing.assert_close(lesson.latents[i, 0], model.encode(seen[None])[0], atol=1e-5, rtol=1e-4)
    assert lesson.latents.shape[:2] == (3, 1) and lesson.masks is None
    alone = class_pictures(model, "cube", 3, 5, steps=2, batch=2)
    assert torch.equal(alone.latents, lesson.latents)


def test_painting_goes_on_where_it_was_stopped(models, tmp_path, monkeypatch):
    model, asked = models("sd"), []

    def counted(model, prompts, **more):
        asked.append(more["seed"])
        if len(asked) == 2:
            raise KeyboardInterrupt
        return denoise(model, prompts, **more)

    monkeypatch.setattr(priors, "denoise", counted)
    with pytest.raises(KeyboardInterrupt):
        class_pictures(model, "cube", 3, folder=tmp_path, steps=2, batch=2)
    (tmp_path / "00001.png").unlink()
    lesson = class_pictures(model, "cube", 3, folder=tmp_path, steps=2, batch=2)
    assert asked == [[0, 1], [2], [1], [2]]
    more = class_pictures(model, "cube", 4, folder=tmp_path, steps=2, batch=2)
    assert asked[4:] == [[3]]
    torch.testing.assert_close(more.latents[:3], lesson.latents, atol=1e-5, rtol=1e-4)


def test_pictures_of_another_run_are_refused(models, tmp_path):
    model = models("sd")
    class_pictures(model, "cube", 1, folder=tmp_path, steps=2)
    with pytest.raises(SfumatoError, match="its prompt is 'a cube', not 'a duck'"):
        class_pictures(model, "duck", 1, folder=tmp_path, steps=2)
    with pytest.raises(SfumatoError, match="its steps is '2', not '3'"):
        class_pictures(model, "cube", 1, folder=tmp_path, steps=3)
    with pytest.raises(SfumatoError, match="one picture of 'cube' or more, got 0"):
        class_pictures(model, "cube", 0)


def test_models_without_words_paint_what_they_know(models):
    assert len(class_pictures(models("ddpm"), "emoji", 1, steps=2)) == 1
