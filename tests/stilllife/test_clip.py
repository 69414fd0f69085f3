"""The pieces of the tiny CLIP's training."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sfumato.stilllife.captions import caption, parse, truth
from sfumato.stilllife.scene import sample_scene
from sfumato.stilllife.train.clip import contrast, image_processor, shifted, similarity, swapped


def test_contrast_of_undecided_logits_is_the_log_of_the_choices():
    loss, _ = contrast(torch.zeros(4, 4), ["a", "b", "c", "d"])
    assert float(loss) == pytest.approx(math.log(4))
    loss, _ = contrast(torch.zeros(4, 6), ["a", "b", "c", "d"])  # two further wrong texts, for the images only
    assert float(loss) == pytest.approx((math.log(4) + math.log(6)) / 2)


def test_contrast_shares_between_the_same_words():
    words = ["a", "b", "a"]
    same = torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 0, 1]])
    loss, right = contrast(same * 50, words)
    assert float(right) == 1.0
    assert float(loss) == pytest.approx(2 / 3 * math.log(2), abs=1e-4)
    assert contrast((1 - same) * 50, words)[0] > 10


def test_contrast_is_lost_to_a_wrong_text():
    logits = torch.cat([torch.eye(3) * 20, torch.full((3, 1), 40.0)], 1)
    loss, right = contrast(logits, ["a", "b", "c"])
    assert float(right) == 0.0
    assert loss > 9


def test_swapped_exchanges_the_colours_and_nothing_else():
    rng = np.random.default_rng(0)
    assert swapped("a red cube", rng) is None
    assert swapped("a red cube and a red duck", rng) is None
    assert swapped("two red cubes", rng) is None
    assert swapped("a cube and a blue duck", rng) is None  # the cube may be blue as well
    assert swapped("a red cube and a blue cube", rng) is None  # would say the same
    before = parse("a large red cube to the left of a striped blue duck on sand at night")
    after = parse(swapped(before.phrase(), rng) or "")
    assert [t.colour for t in after.things] == ["blue", "red"]
    assert [(t.kind, t.material, t.size) for t in after.things] == [(t.kind, t.material, t.size) for t in before.things]
    assert (after.relation, after.ground, after.light) == (before.relation, before.ground, before.light)


def test_swapped_captions_of_scenes_are_false():
    rng = np.random.default_rng(1)
    checked = 0
    for _ in range(200):
        scene = sample_scene(rng, count=2)
        text = swapped(caption(scene, rng), rng)
        if text is not None:
            assert truth(scene, parse(text)), (scene, text)
            checked += 1
    assert checked > 80


def test_shifted_moves_all_images_alike():
    images = torch.rand(2, 1, 1, 32).expand(2, 3, 32, 32).clone()
    images[1] = images[0]
    out = shifted(images, np.random.default_rng(4))
    assert out.shape == images.shape
    assert torch.equal(out[0], out[1])
    assert not torch.equal(out, images)


def test_similarity_is_the_cosine():
    a, b = torch.tensor([[3.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0, 1.0]])
    assert torch.allclose(similarity(a, b), torch.full((2, 1), math.sqrt(0.5)))


def test_image_processor_agrees_with_the_metrics():
    pixels = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    got = image_processor()(pixels, return_tensors="pt")["pixel_values"]
    expected = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1
    assert torch.allclose(got, expected, atol=1e-5)
