"""``sfumato generate``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import tyro

from sfumato.commands.options import Device, Json, Seed, check_size, is_image, seed_of, slug, whole
from sfumato.errors import SfumatoError
from sfumato.files import writable
from sfumato.terminal import note, print_json, quiet


def generate(
    prompt: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PROMPT", help="What to paint, in quotes.")],
    *,
    negative: Annotated[str, tyro.conf.arg(help="What the picture should not be.")] = "",
    n: Annotated[int, tyro.conf.arg(help="Images; image i is painted from seed + i.")] = 4,
    steps: Annotated[int, tyro.conf.arg(help="DDIM steps.")] = 30,
    guidance: Annotated[float, tyro.conf.arg(help="How closely to follow the words (classifier-free guidance).")] = 5.0,
    size: Annotated[int, tyro.conf.arg(help="Side in pixels, a multiple of 8; the built-in model knows 128.")] = 128,
    seed: Seed = 0,
    model: Annotated[
        str, tyro.conf.arg(help="stilllife, or a diffusers folder of Stable Diffusion's kind.")
    ] = "stilllife",
    device: Device = "auto",
    out: Annotated[Path, tyro.conf.arg(help="A folder, or a .png (with more than one image: their grid).")] = Path(
        "out/generate"
    ),
    json: Json = False,
) -> None:
    """Paint images from a sentence, as PNGs that carry the sentence, the seed and the settings.

    Example: sfumato generate "a red cube to the left of a blue duck on sand at sunset" --n 8 --seed 7
    """
    whole("--n", n, 1, 1000)
    whole("--steps", steps, 1, 1000)
    seed_of(seed)
    seed_of(seed + n - 1)
    check_size(size)
    if not math.isfinite(guidance) or guidance < 0:
        raise SfumatoError(f"--guidance is a number from 0, got {guidance}")
    single = is_image(out)
    folder, stem = (out.parent, out.stem) if single else (out, slug(prompt))
    writable(folder)

    quiet()
    from sfumato.device import choose
    from sfumato.stilllife import paint, pictures, weights

    target = choose(device)
    pipe = weights.pipeline(model, target)
    for remark in paint.remarks(pipe, prompt, of_the_world=model == "stilllife"):
        note(remark)
    images = paint.paint(
        pipe, [prompt] * n, range(seed, seed + n), negative=negative, steps=steps, guidance=guidance, size=size
    )
    painted = [pictures.picture(image) for image in images]
    settings = {
        "prompt": prompt,
        "negative": negative,
        "steps": steps,
        "guidance": guidance,
        "size": size,
        "model": model,
    }
    files = []
    for i, image in enumerate(painted):
        path = out if single and n == 1 else folder / f"{stem}-{seed + i}.png"
        files.append(pictures.write(image, path, {**settings, "seed": seed + i}))
    if n > 1:
        sheet = pictures.write(
            pictures.grid(painted), folder / f"{stem}.png", {**settings, "seed": f"{seed}-{seed + n - 1}"}
        )
    if json:
        rows = [{"image": str(path), **settings, "seed": seed + i} for i, path in enumerate(files)]
        print_json({"images": rows, "grid": str(sheet) if n > 1 else None})
    else:
        print("\n".join(str(path) for path in [*files, *([sheet] if n > 1 else [])]))
