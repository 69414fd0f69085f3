"""What a model knows of a kind, painted by itself: it is to stay as it is (Ruiz et al. 2022, section 3.3)."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core.denoising import denoise
from sfumato.errors import SfumatoError, integer
from sfumato.io.files import writable
from sfumato.io.progress import progress, worth
from sfumato.learning.lessons import Lesson
from sfumato.media.images import flat, opened, tensor
from sfumato.media.pictures import picture, write, written


def class_pictures(
    model: Any,
    kind: str,
    n: int,
    seed: int = 0,
    folder: str | Path | None = None,
    *,
    template: str = "a {}",
    steps: int = 50,
    guide: float | None = None,
    batch: int = 4,
    mirrored: bool = False,
) -> Lesson:
    """``n`` pictures of a kind as the model paints them, of the seeds from ``seed`` on, as a lesson.

    In a ``folder`` each is kept as a PNG once it is painted, and the same call takes those that are there: it goes on
    after a stop, and more are added to fewer. ``template`` is the prompt with {} for the kind, ``guide`` and ``steps``
    those of painting. Raises ``SfumatoError`` for a folder with other pictures of these names.
    """
    if integer("a number of pictures", n) < 1:
        raise SfumatoError(f"a prior has one picture of {kind!r} or more, got {n}")
    prompt = template.replace("{}", kind) if model.text_tokens else ""
    place = None if folder is None else writable(folder)
    about = {"prompt": prompt, "model": model.name, "steps": steps, "guide": guide, "size": model.size}
    about["place"] = hashlib.sha256(model.name.encode()).hexdigest()[:12]  # models of one name lie in several folders
    latents: list[Tensor] = []
    with progress(f"painting {kind}", n) as advance:
        for first in range(0, n, batch):
            some = range(first, min(first + batch, n))
            files = {i: place / f"{seed + i:05}.png" for i in some} if place else {}
            found = {i: _read(file, about) for i, file in files.items() if file.exists()}
            if missing := [i for i in some if i not in found]:
                seeds = [seed + i for i in missing]
                with worth(len(missing)):
                    made = denoise(model, [prompt] * len(missing), seed=seeds, steps=steps, guide=guide).images
                for i, image in zip(missing, made, strict=True):
                    kept = picture(image)  # in bytes, so that it is the same with a folder and without
                    found[i] = tensor(kept)
                    if i in files:
                        write(kept, files[i], about)
            images: Float[Tensor, "b 3 H W"] = torch.stack([found[i] for i in some])
            latents.append(Lesson.of(model, images, mirrored=mirrored).latents)
            advance(len(some))
    return Lesson(torch.cat(latents))


def _read(file: Path, about: dict[str, Any]) -> Float[Tensor, "3 H W"]:
    found = opened(file)
    if other := [key for key, value in about.items() if found.info.get(key) != written(value)]:
        raise SfumatoError(
            f"{file} was not painted by this run: its {other[0]} is {found.info.get(other[0])!r}, not "
            f"{written(about[other[0]])!r}; take another folder"
        )
    return tensor(flat(found))
