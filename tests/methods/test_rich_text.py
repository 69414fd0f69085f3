"""Laws of rich text on every family, its regions and formulas on random tensors, and its file format."""

from __future__ import annotations

import json
from typing import Any

import families
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sfumato.core.attention import Call
from sfumato.core.denoising import denoise
from sfumato.core.method import Step
from sfumato.core.rows import Rows
from sfumato.core.schedule import Level
from sfumato.errors import SfumatoError
from sfumato.methods.control.formats import NAMED, nearest_name, rgb
from sfumato.methods.control.rich_text import RichText, _weighed, pull
from sfumato.ops.regions import attended_clusters, spectral

PROMPT = "a red cube on grass"
CLOSE = {"atol": 2e-4, "rtol": 2e-4}


@pytest.fixture(params=families.SOME)
def model(request, models):
    return models(request.param)


@pytest.fixture
def unet(sd):
    return sd


def run(model, *methods, prompts: Any = PROMPT, **options: Any):
    side = 64 if model.factor > 1 else 16
    return denoise(model, prompts, methods=methods, steps=2, size=side, guide=3.0, **options)


def test_a_region_with_the_whole_text_is_plain_sampling_and_one_with_another_is_not(model):
    plain = run(model).latents
    same = run(model, RichText(regions={"cube": PROMPT}, clusters=3))
    torch.testing.assert_close(same.latents, plain, **CLOSE)
    other = run(model, RichText(regions={"cube": "a blue duck of the sphere"}, clusters=3))
    assert (other.latents - plain).abs().max() > 1e-4


def test_the_background_can_be_the_plain_pass(unet):
    """Put back after the last step, what belongs to no word is exactly the plain image."""
    method = RichText(regions={"cube": "a blue duck"}, clusters=3, threshold=2.0, background=1.0)
    out = run(unet, method).latents
    plain = run(unet).latents
    same = torch.isclose(out, plain, **CLOSE).all(1)
    assert 0 < same.float().mean() < 1


def test_what_it_cannot_do_is_said(unet):
    for match, method in {
        "has no 'teapot'; its words are: a, red, cube": RichText(regions={"teapot": "a teapot"}),
        "a colour is #rrggbb or one of brown": RichText(colours={"cube": "#12"}),
        "at resolution 0.37": RichText(regions={"cube": "a duck"}, res=0.37),
    }.items():
        with pytest.raises(SfumatoError, match=match):
            run(unet, method)


def test_clusters_are_the_blocks_of_an_affinity():
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(4, (60,), generator=generator)
    affinity = (truth[:, None] == truth).float() + 0.05 * torch.rand(60, 60, generator=generator)
    labels = spectral(affinity, 4)
    assert torch.equal(labels, spectral(affinity, 4)) and len(labels.unique()) == 4
    for n in range(4):
        assert len(labels[truth == n].unique()) == 1


def test_labels_are_the_published_scores():
    """Normalised maps, mean in each cluster, greatest over the tokens, above the threshold."""
    labels = torch.from_numpy(np.random.default_rng(0).integers(0, 5, (8, 8)))
    maps = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(1)) ** 3 * 1e-3
    for threshold in (0.1, 0.25, 0.3):
        wanted = torch.zeros(8, 8)
        for c in range(5):
            mask = (labels == c).float()
            scores = [float((mask * (m - m.min()) / (m.max() - m.min())).sum() / mask.sum()) for m in maps]
            if max(scores) > threshold:
                wanted += mask
        assert torch.equal(attended_clusters(labels, maps, threshold), wanted) or not wanted.any()
    assert attended_clusters(labels, maps, 2.0).sum() in [(labels == c).sum() for c in range(5)]


def test_sizes_weigh_attention_as_published(model):
    rows = Rows(("main",), ("uncond", "cond"))
    site = next(s for s in model.sites if "image->text" in s.pairs)
    h, w = site.grid((16, 16))
    n = h * w
    text = model.text_tokens
    q = torch.randn(2, site.heads, n * ("image" in site.query) + text * ("text" in site.query), 8)
    k = torch.randn(2, site.heads, n * ("image" in site.key) + text * ("text" in site.key), 8)
    call = Call(site, rows, (h, w), 0, {"q": q, "k": k, "v": k}, attn_mask=None)
    weights = torch.ones(1, 1, 1, text)
    weights[..., 3], weights[..., 5] = 2.5, -4.0
    before = call.probs(("main", "cond")).clone()
    _weighed("main", weights)(call)
    logits = (q[1] @ k[1].transpose(-1, -2) / 8**0.5).double()
    pixels, words = call.segment("q", "image"), call.segment("k", "text")
    exp = (logits - logits.amax(-1, keepdim=True)).exp()[:, pixels]
    exp[..., words.start + 3] *= 2.5
    exp[..., words.start + 5] *= 4
    wanted = exp / exp.sum(-1, keepdim=True)
    wanted[..., words.start + 5] *= -1
    after = call.probs(("main", "cond"))[0]
    torch.testing.assert_close(after[:, pixels].double(), wanted, atol=1e-5, rtol=1e-4)
    if "text" in site.query:
        rest = call.segment("q", "text")
        assert torch.equal(after[:, rest], before[0][:, rest])


def test_the_pull_is_the_gradient_of_the_mean_colours():
    """100 times the mean square between a region's mean colour and its own, by the next latents, inside the regions."""

    class Linear:
        """Pixels are channels of the latents, twice as large."""

        def decode(self, x):
            return F.interpolate(x[:, :3], scale_factor=2.0)

    generator = torch.Generator().manual_seed(0)
    x, eps = torch.randn(2, 2, 4, 4, 4, generator=generator)
    level = Level.of(400, 0.8, 0.6)
    step = Step(0, level, level, x, type("Run", (), {"model": Linear()})(), None)  # pyright: ignore
    step.x_next, step.eps = x, eps
    masks = torch.zeros(2, 3, 4, 4)
    masks[:, 0, :2], masks[:, 1, 2:, :2], masks[:, 2, 2:, 2:] = 1, 1, 1
    found = pull(step, torch.arange(2), masks, [rgb("red"), None])
    x0 = (x - level.sigma * eps) / level.alpha
    big = F.interpolate(masks[:, :1], (8, 8), mode="bicubic", antialias=True).clamp(0, 1)
    share = big / big.sum((2, 3), keepdim=True)
    mean = (F.interpolate(x0[:, :3], scale_factor=2.0) * share).sum((2, 3))
    slope = 100 * 2 / 3 * (mean - rgb("red"))[:, :, None, None] * F.avg_pool2d(share, 2) * 4 / level.alpha
    wanted = torch.cat([slope * masks[:, :1], torch.zeros(2, 1, 4, 4)], 1)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_colours_by_name_and_number():
    assert rgb("orange").tolist() == pytest.approx([1, 165 / 255, 0])
    assert nearest_name("#fc0410") == "red" and nearest_name("#707878") == "gray"
    assert all(nearest_name(name) == name for name in NAMED)


def test_a_file_of_a_rich_text_editor(tmp_path):
    ops = [
        {"insert": "a "},
        {"insert": "cat", "attributes": {"link": "A cat wearing sunglasses.", "color": "#ff8800"}},
        {"insert": " on a "},
        {"insert": "scooter,", "attributes": {"font": "slabo", "size": "18px", "strike": True}},
        {"insert": " photo\n"},
    ]
    (tmp_path / "rich.json").write_text(json.dumps({"ops": ops}))
    prompt, method = RichText.read(tmp_path / "rich.json")
    assert prompt == "a cat on a scooter, photo"
    assert method.regions == {
        "cat": "A cat wearing sunglasses.",
        "scooter": "scooter in the style of Vincent van Gogh",
    }
    assert method.colours == {"cat": "#ff8800"} and method.sizes == {"scooter": -6.0}
    (tmp_path / "poor.json").write_text('{"regions": []}')
    for name, says in (("poor.json", "is no rich text"), ("none.json", "there is no file")):
        with pytest.raises(SfumatoError, match=says):
            RichText.read(tmp_path / name)
