"""``sfumato invert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from sfumato.commands import uses
from sfumato.commands.options import (
    Device,
    Fit,
    Json,
    Model,
    Negative,
    Photo,
    Running,
    Seed,
    Steps,
    guidance_of,
    note_guidance,
    remark_pictures,
    seed_of,
    whole,
)
from sfumato.commands.steering import Steering
from sfumato.errors import SfumatoError
from sfumato.io.files import save_tensors, writable
from sfumato.io.terminal import print_json, quiet
from sfumato.tasks import kept
from sfumato.tasks.starts import How, inversion_of


def invert(
    image: Photo,
    prompt: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PROMPT", help="What it shows.")] = "",
    *,
    how: Annotated[How, tyro.conf.arg(help="The inversion.")] = "direct",
    negative: Negative = "",
    guidance: Annotated[
        float | None, tyro.conf.arg(help="Classifier-free guidance of the way back [default: the inversion's, or 7.5].")
    ] = None,
    steps: Steps = 50,
    steering: tyro.conf.OmitArgPrefixes[Steering],
    fit: Fit = "whole",
    model: Model = "stilllife",
    loading: tyro.conf.OmitArgPrefixes[Running],
    seed: Seed = 0,
    device: Device = "auto",
    out: Annotated[Path, tyro.conf.arg(help="Folder for the result.")] = Path("out/invert"),
    json: Json = False,
) -> None:
    """Find the noise that an image comes from, follow it back, and say how much of the image is found again.

    Example: sfumato invert photo.png "a red cube on grass" --how null-text
    """
    given = dict(locals())
    whole("--steps", steps, 1, 1000)
    seed_of(seed)
    guidance_of(guidance)
    writable(out)
    quiet()
    scale = 7.5 if guidance is None else guidance
    inversion = inversion_of(how, steps, scale, seed)
    if guidance is not None and inversion.source_guidance(guidance) != guidance:
        own = inversion.source_guidance(guidance)
        raise SfumatoError(f"{how} has a guidance of its own for the way back, {own:g}; leave --guidance out")
    uses.seed(seed, [(inversion,)])
    import torch

    from sfumato.media import images, pictures
    from sfumato.tasks.edit import invert_picture

    net = loading.load(model, device)
    loading.remark(model, prompt, negative)
    note_guidance(net, scale)
    fitted = images.fit(images.open_picture(image), net.size, net.multiple, fit)
    net = steering.steer(net, loading, steering.beside(net, fitted, fit), negative)
    done = invert_picture(net, fitted.pixels, prompt, inversion, scale, negative)
    path = done.path
    beside = pictures.grid([pictures.picture(x) for x in (fitted.pixels, done.best, done.found)])
    words = {"prompt": prompt, "how": how, "steps": steps, "guidance": done.guidance, "seed": seed}
    words |= {"negative": negative} if negative else {}
    words |= steering.settings()
    stem = kept.named(out, "invert", "-inverted.png", image.stem, kept.settings_of(given))
    sheet = pictures.write(beside, out / f"{stem}-inverted.png", words)
    tensors = {"start": path.latents, "image": path.image}
    tensors |= {"track": torch.stack([*path.track])} if path.track else {}
    tensors |= {"uncond": torch.stack([*path.uncond])} if path.uncond else {}
    tensors |= {"noises": torch.stack([*path.noises])} if path.noises else {}
    file = out / f"{stem}-path.safetensors"
    save_tensors(file, tensors, {k: str(v) for k, v in words.items()})
    figures = {"psnr": done.psnr, "psnr_vae": done.psnr_best}
    remark_pictures(model, lambda: [done.psnr_best])
    if json:
        print_json({"image": str(sheet), "path": str(file), **figures})
    else:
        print(
            f"{sheet}\n{file}\nfound again at {figures['psnr']:.1f} dB; the VAE alone has {figures['psnr_vae']:.1f} dB"
        )
