"""The models that ship, by name."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Model:
    """A pipeline that ships: its files beyond the tokenizer, what it is for, the diffusers class that loads it."""

    files: tuple[str, ...]
    use: str
    pipeline: str


_BASE = ("unet.safetensors", "vae.safetensors", "clip.safetensors")
MODELS = {
    "stilllife": Model(_BASE, "text to image", "StableDiffusionPipeline"),
    "stilllife-instruct": Model(
        (*_BASE, "instruct.safetensors"), "image and instruction to image", "StableDiffusionInstructPix2PixPipeline"
    ),
    "stilllife-depth": Model(
        (*_BASE, "depth.safetensors"), "text and depth to image", "StableDiffusionControlNetPipeline"
    ),
}
BESIDE = {
    "oracle": ("image to what is in it", "sfumato.stilllife.oracle.Oracle"),
    "motion": ("text to clips, beside stilllife (--motion stilllife)", "MotionAdapter"),
}
