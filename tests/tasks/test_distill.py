"""Flat images distilled as one call: heard while it goes on, ended by who listens, gone on with to the same images."""

from __future__ import annotations

import pytest
import torch

from sfumato.backbones.load import load
from sfumato.errors import SfumatoError
from sfumato.io.progress import Progress, Stopped
from sfumato.methods.distill.score_distillation import ScoreDistillation
from sfumato.tasks.distill import distill_images, regularised

PROMPT, SDS = "a red cube on grass", ScoreDistillation(7.5)


@pytest.fixture
def model(here):
    return load("stilllife", device="cpu")


def test_an_image_a_prompt_or_several_of_one(model):
    two = distill_images(model, [PROMPT, "a duck"], SDS, 2, seed=3)
    assert two.images.shape[0] == 2 and len(two.frames) == 1 and len(two.strength) == 2
    same = distill_images(model, PROMPT, SDS, 2, n=2, seed=3)
    torch.testing.assert_close(same.images[0], two.images[0], atol=1e-5, rtol=0)
    assert (same.images[1] - two.images[1]).abs().max() > 0


def test_previews_are_the_frames_and_a_run_that_was_ended_goes_on_to_the_same_images(model, tmp_path):
    events: list[Progress] = []
    whole = distill_images(model, PROMPT, SDS, 4, frame_every=2, on_progress=events.append)
    previews = [e.preview for e in events if e.preview is not None]
    assert [p.tobytes() for p in previews] == [f.tobytes() for f in whole.frames[:-1]]
    assert len(previews) == 2 and events[-1].over and events[-1].of == 4

    def stop(event: Progress) -> None:
        if event.done >= 2:
            raise Stopped

    kept = tmp_path / "run.safetensors"
    with pytest.raises(Stopped):
        distill_images(model, PROMPT, SDS, 4, keep=kept, on_progress=stop)
    assert kept.exists()
    again: list[Progress] = []
    rest = distill_images(model, PROMPT, SDS, 4, keep=kept, on_progress=again.append)
    assert torch.equal(rest.images, whole.images)
    assert next(e.done for e in again if e.done) == 2, "what was done is not done again"


def test_an_image_brings_its_size_and_a_seed_what_is_drawn(model):
    image = torch.full((3, 64, 96), 0.5)
    assert distill_images(model, PROMPT, SDS, 1, space="pixel", image=image).images.shape == (1, 3, 64, 96)
    drawn = [distill_images(model, PROMPT, SDS, 2, space="pixel", image=image, seed=s).images for s in (0, 1)]
    assert not torch.equal(*drawn), "what is drawn on the way is of the seed"
    with pytest.raises(SfumatoError, match="cannot start from an image"):
        distill_images(model, PROMPT, SDS, 1, space="coordinates", image=image)


def test_losses_with_a_weight_are_those_of_a_reference_or_of_a_painting(model):
    like = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert regularised(model, PROMPT, reference=like) == []
    one, other = regularised(model, PROMPT, saturation=1.0, histogram=0.5, reference=like)
    assert (type(one).__name__, type(other).__name__) == ("Saturation", "Histogram")
    assert len(regularised(model, PROMPT, hue=1.0)) == 1
