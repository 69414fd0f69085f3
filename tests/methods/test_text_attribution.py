"""Words' maps against the formula written again, another text by its own keys, and runs on every family."""

from __future__ import annotations

from typing import Any

import families
import pytest
import torch
import torch.nn.functional as F

from sfumato.core.choice import choose
from sfumato.errors import SfumatoError
from sfumato.methods.perceive.text_attribution import STEPS, TextAttribution, attribute, read_at
from sfumato.reading.reader import Noise, Reader

PROMPT, OTHER = "a red cube on grass", "the blue duck and a cube"


def reading(model, ratio: float = 1.5):
    side = families.side(model)
    image = torch.rand(3, side, int(side * ratio), generator=torch.Generator().manual_seed(0))
    return Reader(model, image, side)


def seen(reader, prompt: str, t: float):
    """Every head's probabilities at every site but a UNet's middle."""
    sites = [s for s in choose(reader.model, "image->text", reader.grid) if s.stage != "mid"]
    return reader.extract(sites, lambda c: c.block(c.rows.names[0], "image->text"), Noise(t), prompt)


@pytest.mark.parametrize("family", ["sd", "sdxl", "pixart"])
def test_a_words_map_is_the_mean_over_steps_sites_heads_and_tokens(models, family):
    model = models(family)
    reader = reading(model)
    at = model.words(PROMPT)[2][1]
    steps = (1, 400)
    wanted = 0
    for t in steps:
        of = []
        for site, probs in seen(reader, PROMPT, t).items():
            flat = probs.mean(0)[:, at].mean(1).view(1, 1, *site.grid(reader.grid))
            of.append(F.interpolate(flat, reader.grid, mode="bicubic")[0, 0].clamp_min(0))
        wanted = wanted + torch.stack(of).mean(0) / len(steps)
    found = attribute(reader, PROMPT, ["cube"], steps)
    torch.testing.assert_close(found[0], wanted, atol=1e-5, rtol=1e-4)


def test_a_word_of_several_tokens_is_their_mean(models):
    reader = reading(models("sd"))
    prompt = "a teapotty cube"
    (at,) = (at for word, at in reader.model.words(prompt) if word == "teapotty")
    assert at.stop - at.start > 1
    wanted = 0
    for site, probs in seen(reader, prompt, 1).items():
        flat = probs.mean(0)[:, at].mean(1).view(1, 1, *site.grid(reader.grid))
        wanted = wanted + F.interpolate(flat, reader.grid, mode="bicubic")[0, 0].clamp_min(0) / len(read_at(reader))
    torch.testing.assert_close(attribute(reader, prompt, ["teapotty"], (1,))[0], wanted, atol=1e-5, rtol=1e-4)


def test_what_bicubic_interpolation_leaves_below_zero_is_none(models, monkeypatch):
    reader = reading(models("sd"))
    (site, *_) = read_at(reader, "mid")
    h, w = site.grid(reader.grid)
    peak = torch.zeros(1, 1, h, w)
    peak[..., h // 2, w // 2] = 1
    maps = peak.flatten(2).movedim(1, 2).expand(1, h * w, reader.model.text_tokens)
    monkeypatch.setattr("sfumato.methods.perceive.text_attribution.attended", lambda call, pair: maps)
    larger = F.interpolate(peak, reader.grid, mode="bicubic")[0, 0]
    assert larger.min() < -0.01
    torch.testing.assert_close(attribute(reader, PROMPT, ["cube"], (1,), (site,))[0], larger.clamp_min(0))


def test_the_middle_is_read_where_it_is_asked_for(models):
    reader = reading(models("sd"))
    assert "mid" in {site.stage for site in reader.model.sites}
    assert {s.stage for s in read_at(reader)} == {"down", "up"} and {s.stage for s in read_at(reader, "mid")} == {"mid"}
    assert {s.stage for s in read_at(reader, "all")} == {"down", "mid", "up"}


@pytest.mark.parametrize("family", ["sd3", "flux", "deepfloyd"])
def test_in_joint_attention_the_texts_part_is_made_one(models, family):
    model = models(family)
    reader = reading(model)
    at = model.words(PROMPT)[2][1]
    of = []
    for site, probs in seen(reader, PROMPT, 1).items():
        maps = probs.mean(0)
        flat = (maps / maps.sum(-1, keepdim=True))[:, at].mean(1).view(1, 1, *site.grid(reader.grid))
        of.append(F.interpolate(flat, reader.grid, mode="bicubic")[0, 0].clamp_min(0))
    found = attribute(reader, PROMPT, ["cube"], (1,))
    torch.testing.assert_close(found[0], torch.stack(of).mean(0), atol=1e-5, rtol=1e-4)


def test_words_that_compete_sum_to_one_over_the_sentence(models):
    reader = reading(models("sd"))
    maps = attribute(reader, PROMPT, PROMPT.split(), (1, 500), compete=True)
    torch.testing.assert_close(maps.sum(0), torch.ones_like(maps[0]))
    plain = attribute(reader, PROMPT, PROMPT.split(), (1, 500))
    torch.testing.assert_close(maps, plain / plain.sum(0))


def test_another_text_is_attended_to_by_the_images_own_queries(models):
    """At the first site nothing has yet been read of either text: there the maps are those of the other text alone."""
    model = models("sd")
    reader = reading(model)
    sites = choose(model, "image->text", reader.grid)
    first = attribute(reader, OTHER, ["duck"], (300,), sites[:1], read_with=PROMPT)
    torch.testing.assert_close(first, attribute(reader, OTHER, ["duck"], (300,), sites[:1]), atol=1e-6, rtol=1e-4)
    last = attribute(reader, OTHER, ["duck"], (300,), sites[-1:], read_with=PROMPT)
    assert (last - attribute(reader, OTHER, ["duck"], (300,), sites[-1:])).abs().max() > 1e-5
    queries, keys = (
        reader.extract(sites[-1:], lambda c, w=w: c.get(w, c.rows.names[0]), Noise(300), text)[sites[-1]]
        for w, text in (("q", PROMPT), ("k", OTHER))
    )
    probs = (queries @ keys.transpose(-1, -2) * queries.shape[-1] ** -0.5).softmax(-1).mean(0)
    flat = probs[:, model.words(OTHER)[2][1]].mean(1).view(1, 1, *sites[-1].grid(reader.grid))
    wanted = F.interpolate(flat, reader.grid, mode="bicubic")[0].clamp_min(0)
    torch.testing.assert_close(last, wanted, atol=1e-6, rtol=1e-4)


def test_the_same_text_as_another_is_the_text_itself(models):
    reader = reading(models("sd"))
    steps: Any = (1, 300)
    torch.testing.assert_close(
        attribute(reader, PROMPT, ["cube"], steps, read_with=PROMPT), attribute(reader, PROMPT, ["cube"], steps)
    )


def test_the_threshold_is_a_part_of_the_maximum(models):
    reader = reading(models("sd"))
    share = [
        float((TextAttribution(("cube",), threshold=t, steps=(1,))(reader).labels == 0).float().mean())
        for t in (0.0, 0.5, 0.9, 1.0)
    ]
    assert share[0] == 0 and share == sorted(share) and share[-1] > 0.9


def test_defaults_read_ten_levels_of_noise():
    assert len(STEPS) == 10 and STEPS[0] == 1 and STEPS[-1] == 991


def test_what_it_cannot_do_is_said(models):
    reader = reading(models("sd"))
    with pytest.raises(SfumatoError, match="has no 'teapot'"):
        TextAttribution(("teapot",), PROMPT)(reader)
    with pytest.raises(SfumatoError, match="needs words"):
        TextAttribution()(reader)
    with pytest.raises(SfumatoError, match="steps are empty"):
        TextAttribution(("cube",), steps=())
