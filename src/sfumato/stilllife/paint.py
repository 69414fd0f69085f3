"""Sampling with a pipeline so that an image depends on its seed and its prompt, not on the batch it was in."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.io.progress import progress
from sfumato.prompts.weights import plain
from sfumato.stilllife import captions


def noise(seeds: Sequence[int], size: int = 128, channels: int = 4) -> Float[Tensor, "b channels size//8 size//8"]:
    """Unit normal latents, one generator an image, drawn on the CPU so that every device starts from the same."""
    side = size // 8
    return torch.stack([torch.randn(channels, side, side, generator=torch.Generator().manual_seed(s)) for s in seeds])


def paint(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    negative: str = "",
    steps: int = 30,
    guidance: float = 5.0,
    size: int = 128,
    batch: int = 8,
    what: str = "painting",
    each: Callable[[int, int], dict[str, Any]] | None = None,
) -> Float[Tensor, "b 3 size size"]:
    """Images in [0, 1] for prompts and seeds, in batches of ``batch``, with a progress bar.

    ``each(start, stop)`` gives what else the pipeline takes for that slice of the images (a condition image, say).
    """
    takes = inspect.signature(pipe.__call__).parameters
    shape = {"height": size, "width": size} if "height" in takes else {}  # an edit has its image's
    images = []
    with progress(what, steps * -(-len(prompts) // batch)) as advance:

        def stepped(*args: Any) -> dict[str, Any]:
            advance()
            return args[-1]

        for at in range(0, len(prompts), batch):
            some = list(prompts[at : at + batch])
            images.append(
                pipe(
                    some,
                    negative_prompt=[negative] * len(some) if negative else None,
                    latents=noise(seeds[at : at + batch], size).to(pipe.device, pipe.unet.dtype),
                    num_inference_steps=steps,
                    guidance_scale=guidance,
                    **shape,
                    output_type="pt",
                    callback_on_step_end=stepped,
                    **(each(at, at + len(some)) if each else {}),
                )
                .images.float()
                .cpu()
            )
    return torch.cat(images)


def remark(*prompts: str) -> str | None:
    """What a person should know of prompts for the built-in model: which words it never met."""
    strange = captions.unknown_words(" ".join(map(plain, prompts)))
    if not strange:
        return None
    named = ", ".join(strange[:8]) + (f" and {len(strange) - 8} more" if len(strange) > 8 else "")
    return f"the built-in model never met: {named}; it paints what it knows"


HELD = 25.0
"""dB at which the built-in autoencoder finds again 19 of 20 renders of what it learned from; of photographs few."""


def strange(kept: float) -> str | None:
    """What a person should know of a picture that the built-in autoencoder alone finds again at so many dB."""
    if kept >= HELD:
        return None
    return (
        f"the built-in model's autoencoder alone finds this picture again at {kept:.1f} dB, and what it was made for "
        f"at {HELD:g} or more: detail will be lost, in an edit more; a larger model holds it, such as --model sd-1.5"
    )
