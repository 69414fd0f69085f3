"""The bench on real weights: on a folder of random ones in the same form, and on the real ones where they are."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import families
import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from laws import distilling, painting, reading, wordless
from safetensors.torch import save_file

from sfumato.backbones.load import family
from sfumato.bench import real
from sfumato.bench.ports import faces
from sfumato.core.denoising import denoise
from sfumato.distill import Latents, distil
from sfumato.errors import SfumatoError
from sfumato.inversion import Inversion

CONFIG = {
    "sample_size": 16, "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"], "block_out_channels": [64, 64], "layers_per_block": 1,
    "norm_num_groups": 8, "attention_head_dim": None, "num_train_timesteps": 300, "freq_shift": 1,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Random weights in the published form: a byte a number, a scale and a minimum a tensor."""
    torch.manual_seed(0)
    network = UNet2DModel.from_config(CONFIG)
    network.time_proj, network.time_embedding = Timesteps(256, False, 1), TimestepEmbedding(256, 256)
    families.randomised(network)
    codes, ranges = {}, {}
    for name, value in network.state_dict().items():
        low, high = float(value.min()), float(value.max())
        scale = (high - low) / 255 or 1.0
        codes[name], ranges[name] = ((value - low) / scale).round().byte(), [scale, low]
    place = tmp_path / "ddpm64"
    place.mkdir()
    save_file(codes, place / "model.safetensors", {"ranges": json.dumps(ranges)})
    (place / "config.json").write_text(json.dumps(CONFIG))
    monkeypatch.setenv("SFUMATO_REAL", str(tmp_path))
    return place


def test_weights_of_eight_bits_are_read_to_half_a_step(folder):
    network = faces.pipeline(folder).unet
    torch.manual_seed(0)
    wanted = UNet2DModel.from_config(CONFIG).conv_in.weight
    ranges = wanted.max() - wanted.min()
    assert (network.conv_in.weight - wanted).abs().max() <= ranges / 255 / 2 * 1.001


def test_an_attention_adds_to_its_normalised_input(folder):
    network = faces.pipeline(folder).unet
    attention = next(m for m in network.modules() if isinstance(m, Attention))
    x = torch.randn(2, 64, 8, 8)
    normal = attention.normalised_by(x)
    tokens = normal.flatten(2).transpose(1, 2)
    q, k, v = attention.to_q(tokens), attention.to_k(tokens), attention.to_v(tokens)
    told = attention.to_out[0]((q @ k.transpose(1, 2) / math.sqrt(64)).softmax(-1) @ v)
    torch.testing.assert_close(attention(x), normal + told.transpose(1, 2).view_as(x))


def test_its_schedule_is_the_cosine(folder):
    schedule = family("x", faces.pipeline(folder)).schedule
    for t in (5, 150, 290):
        at = lambda n: math.cos((n / 300 + 0.008) / 1.008 * math.pi / 2) ** 2  # noqa: E731
        assert float(schedule.at(t).alpha) ** 2 == pytest.approx(at(t + 1) / at(0), rel=1e-5)


def test_every_figure_is_measured(folder, run, tmp_path, monkeypatch):
    monkeypatch.setattr(real, "STEPS", 5)
    code, out, err = run("bench", "real", "--n", 3, "--seed", 1, "--json", "--out", tmp_path / "out")
    assert code == 0, err
    found = json.loads(out)["results"]
    assert list(found) == list(real.MEANINGS)
    assert found["plain_error"] <= 1e-4 and found["exact_psnr"] >= 45
    assert found["ddim_refined_psnr"] > found["ddim_psnr"]
    assert (tmp_path / "out" / "samples.png").exists()


def test_samples_of_two_seeds_are_others():
    batches = [real.RealSession(6, seed, torch.device("cpu"), None).batches for seed in (1, 2)]
    assert batches == [[[1000 * n + i for i in range(4)], [1000 * n + 4, 1000 * n + 5]] for n in (1, 2)]


def test_an_error_to_either_side_counts(folder, monkeypatch):
    monkeypatch.setattr(real, "STEPS", 2)
    session = real.RealSession(1, 1, torch.device("cpu"), None)
    for way in (-100, 100):
        monkeypatch.setattr(real, "denoise", lambda *_, way=way, start, **__: SimpleNamespace(latents=start + way))
        monkeypatch.setattr(real.RealSession, "ratio", lambda self, ours, theirs: float(ours().mean()))
        found = real.plain(session)
        assert found["plain_error"] > 50 and found["plain_vs_diffusers"] == pytest.approx(way, abs=1)


def test_figures_are_of_what_they_are_called(monkeypatch):
    """The worse of two inversions, and detail with guidance over detail without."""
    session = real.RealSession(2, 1, torch.device("cpu"), None)
    dB = {"EditFriendly": [50.0, 60.0], "EDICT": [55.0, 58.0]}
    monkeypatch.setattr(real, "found_again", lambda _, how: np.array(dB[type(how).__name__]))
    assert real.exactly(session)["exact_psnr"].tolist() == [50.0, 58.0]
    flat = 0.1 * torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(real.RealSession, "samples", flat)
    monkeypatch.setattr(real.RealSession, "painted", lambda self, methods: flat * (3 if methods[0].since else 0.5))
    assert real.attended(session)["sag_detail"] == pytest.approx([9.0, 9.0])
    assert real.attended(session)["sag_published_detail"] == pytest.approx([0.25, 0.25])


def test_missing_data_is_named(run, monkeypatch, tmp_path):
    monkeypatch.setenv("SFUMATO_REAL", str(tmp_path / "nowhere"))
    code, out, _ = run("bench", "real", "--n", 2, "--json")
    found = json.loads(out)
    assert code == 0 and set(found["results"].values()) == {None}
    assert "SFUMATO_REAL names the folder that has ddpm64" in found["why"]["ddim_psnr"]


@pytest.fixture(scope="module")
def denoiser():
    try:
        return family("ddpm64", faces.pipeline(real.real("ddpm64")))
    except SfumatoError as e:
        pytest.skip(str(e))


@pytest.fixture(scope="module")
def image(denoiser):
    return denoise(denoiser, "", seed=1000, steps=10).images[0]


@pytest.mark.slow
@pytest.mark.parametrize("word", wordless.PAINTING)
def test_a_method_that_paints_acts_on_the_real_denoiser(denoiser, image, word):
    row = painting.ROWS[word]
    on, options = wordless.settings(denoiser, row), {}
    if not isinstance(on, Inversion):
        options["start"] = denoiser.latents(range(len(row.streams) * (1 + row.set)), 64, 64)
    options |= {"said": wordless.EMPTY, "size": (64, 64)}
    out = painting.painted(denoiser, row, on, **options)
    without = painting.painted(denoiser, row, on, plain=True, path=out.path, **options)
    for stream, x in out.edits.items():
        assert x.isfinite().all()
        assert "acts" in row.but or stream == "appearance" or (x - without.latents[stream]).abs().max() > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    "word", [w for w, row in reading.ROWS.items() if row.families and w not in wordless.READING_WORDS]
)
def test_a_method_that_reads_answers_of_the_real_denoiser(denoiser, word):
    found = reading.ROWS[word].ask(reading.ROWS[word].ways[0], denoiser)
    assert all(v.isfinite().all() for v in vars(found).values() if isinstance(v, torch.Tensor))


@pytest.mark.slow
@pytest.mark.parametrize("word", [word for word, row in distilling.ROWS.items() if not row.ways[0].requires.words])
def test_a_method_that_distils_moves_an_image_of_the_real_denoiser(denoiser, word):
    canvas = Latents(denoiser.latents([1], 64, 64))
    distil(denoiser, canvas, [""], distilling.ROWS[word].ways[0], 2)
    (after,) = canvas.parameters()
    assert after.isfinite().all() and not torch.equal(after, denoiser.latents([1], 64, 64))
