"""A pipeline is of the kind that its networks say, or refused: never of another, whatever optional keys it has."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import families
import pytest

from sfumato.backbones.kinds import ENCODERS, kind
from sfumato.errors import SfumatoError

KINDS = {
    "sd": "UNet", "sd2-depth": "Depth", "instruct": "UNet", "sdxl": "SDXL", "instruct-xl": "SDXL",
    "deepfloyd": "DeepFloyd", "if-ii": "DeepFloyd", "pixart": "PixArt", "sd3": "SD3", "flux": "Flux", "ddpm": "Pixels",
    "ldm": "Pixels",
}  # fmt: skip
MEANS = {
    "addition_embed_type": ("text", "text_time", "image", "image_hint", "text_image"),
    "class_embed_type": ("timestep", "projection", "identity", "simple_projection"),
    "num_class_embeds": (4,),
    "attention_type": ("gated", "gated-text-image"),
    "encoder_hid_dim_type": ("image_proj", "text_image_proj"),
    "in_channels": (2, 3, 4, 5, 6, 7, 8, 9, 16),
    "out_channels": (3, 4, 5, 6),
    "cross_attention_dim": (16, 24, 32, (16, 32)),
    "projection_class_embeddings_input_dim": (40, 36, 50),
    "joint_attention_dim": (16, 32),
    "caption_channels": (16, 32),
    "pooled_projection_dim": (16, 32),
}
"""Keys by which networks read and say other things."""
HARMLESS = {"time_cond_proj_dim": (8,), "sample_size": (8, 32), "act_fn": ("gelu",), "norm_eps": (1e-3,)}


@pytest.fixture(scope="module")
def pipes() -> dict[str, Any]:
    every = families.FAMILIES | families.VARIANTS | families.INSTRUCTED | families.WORDLESS
    return {name: every[name]() for name in KINDS}


def stand_in(pipe: Any, config: dict[str, Any], parts: dict[str, Any]) -> Any:
    """A pipeline with other parts, and a network of which the config says something else."""
    which = "unet" if hasattr(pipe, "unet") else "transformer"
    network = getattr(pipe, which)
    own = dict(network.config) | config
    other = type(type(network).__name__, (), {"config": SimpleConfig(own), "parameters": network.parameters})()
    return type(type(pipe).__name__, (), {**pipe.components, which: other, **parts})()


class SimpleConfig(SimpleNamespace):
    def __init__(self, options: dict[str, Any]):
        super().__init__(**options)

    def get(self, key: str, default: Any = None) -> Any:
        return getattr(self, key, default)

    def __getitem__(self, key: str) -> Any:
        return getattr(self, key)


def drawn(dice: random.Random, name: str, pipes: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    network = getattr(pipes[name], "unet", None) or pipes[name].transformer
    every = {k: v for k, v in (MEANS | HARMLESS).items() if k in network.config}
    config = {
        k: dice.choice(every[k]) for k in dice.sample(sorted(every), k=min(len(every), dice.choice((0, 1, 1, 2))))
    }
    parts: dict[str, Any] = {}
    if dice.random() < 0.4:
        part = dice.choice((*ENCODERS, "vae", "vqvae"))
        parts[part] = dice.choice([None, *(getattr(pipes[other], part, None) for other in KINDS)])
    return config, parts


def means_another(name: str, pipe: Any, config: dict[str, Any], parts: dict[str, Any]) -> bool:
    """Does something that was drawn mean something else than what was there?"""
    own = (getattr(pipe, "unet", None) or pipe.transformer).config
    read = any(k in MEANS and own[k] != v for k, v in config.items())
    return read or any(type(getattr(pipe, part, None)) is not type(v) for part, v in parts.items())


@pytest.mark.parametrize("name", KINDS)
def test_it_is_of_the_kind_or_refused(name, pipes):
    dice, known, refused = random.Random(name), 0, 0
    assert kind(name, stand_in(pipes[name], {}, {})) == KINDS[name]
    for _ in range(300):
        config, parts = drawn(dice, name, pipes)
        pipe = stand_in(pipes[name], config, parts)
        try:
            found = kind(name, pipe)
        except SfumatoError as error:
            assert means_another(name, pipes[name], config, parts), (config, parts, error)
            refused += 1
            continue
        known += 1
        assert found in (KINDS[name], {"UNet": "Depth", "Depth": "UNet"}.get(KINDS[name])), (config, parts)
    assert known > 20 and refused > 20


@pytest.mark.parametrize(
    ("name", "config", "parts", "words"),
    [
        ("sd", {"addition_embed_type": "text"}, {}, r"reads text \(addition_embed_type\) on a vae"),
        ("sd", {"addition_embed_type": "text"}, {"vae": None}, "makes 4 channels of 4, not pictures"),
        ("sd", {"addition_embed_type": "text_time"}, {}, "has no text_encoder_2, which its prompts need"),
        ("sd", {"cross_attention_dim": 32}, {}, r"text is 16 numbers wide, and its network reads 32 \(cross_attention"),
        ("sd", {}, {"text_encoder": "deepfloyd"}, "text_encoder is a T5EncoderModel, where UNet reads CLIPTextModel"),
        ("sd", {}, {"text_encoder_2": "sdxl"}, "text_encoder_2 is a CLIPTextModel.*, where UNet reads none there"),
        ("sdxl", {"addition_embed_type": None}, {}, "text_encoder_2 .* where UNet reads none there"),
        ("sdxl", {}, {"text_encoder_2": "sd"}, "text_encoder_2 is a CLIPTextModel, where SDXL reads"),
        (
            "sdxl",
            {"projection_class_embeddings_input_dim": 50},
            {},
            "reads 34 numbers beside the pooled text, not 5 or 6",
        ),
        ("deepfloyd", {}, {"vae": "sd"}, r"reads text \(addition_embed_type\) on a vae"),
        ("deepfloyd", {}, {"text_encoder": "sd"}, "text_encoder is a CLIPTextModel, where DeepFloyd reads T5"),
        ("flux", {"pooled_projection_dim": 32}, {}, "pooled text is 16 numbers wide, and its network reads 32"),
        ("sd3", {}, {"text_encoder": None}, "has no text_encoder, which its prompts need"),
        ("pixart", {"caption_channels": 32}, {}, "text is 16 numbers wide, and its network reads 32"),
        ("ddpm", {"in_channels": 6}, {}, "makes 3 channels of 6, and images have 3"),
        ("ddpm", {}, {"vae": "sd"}, "paints without words on a vae"),
        ("ddpm", {}, {"text_encoder": "sd"}, "where Pixels reads none there"),
    ],
)
def test_what_would_be_missing_in_silence_is_named(name, config, parts, words, pipes):
    others = {part: of and getattr(pipes[of], part if hasattr(pipes[of], part) else "text_encoder")
              for part, of in parts.items()}  # fmt: skip
    with pytest.raises(SfumatoError, match=words):
        kind(name, stand_in(pipes[name], config, others))


def test_models_with_fewer_texts_are_known(pipes):
    assert kind("sd3", stand_in(pipes["sd3"], {}, {"text_encoder_3": None})) == "SD3"
    with pytest.raises(SfumatoError, match="text is 16 numbers wide, and its network reads 32"):
        kind("refiner", stand_in(pipes["sdxl"], {}, {"text_encoder": None}))
    assert kind("refiner", stand_in(pipes["sdxl"], {"cross_attention_dim": 16}, {"text_encoder": None})) == "SDXL"
