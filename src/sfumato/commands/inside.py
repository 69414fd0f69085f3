"""``sfumato inside``: what a model's attention, latents and inversions are like, each a figure and its numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from sfumato.commands.figures import tell
from sfumato.commands.options import Device, Fit, Json, Model, Photo, Running, Seed, seed_of, whole
from sfumato.errors import SfumatoError
from sfumato.io.files import writable
from sfumato.io.terminal import quiet

Out = Annotated[Path, tyro.conf.arg(help="Folder for the figure and its numbers.")]
PLACE = Path("out/inside")


def attention(
    prompt: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PROMPT", help="What to paint, in quotes.")],
    *,
    words: Annotated[str, tyro.conf.arg(metavar="WORD,WORD", help="Words of it [default: all].")] = "",
    steps: Annotated[int, tyro.conf.arg(help="DDIM steps.")] = 50,
    guidance: Annotated[float, tyro.conf.arg(help="Scale of classifier-free guidance.")] = 7.5,
    model: Model = "stilllife",
    loading: tyro.conf.OmitArgPrefixes[Running],
    seed: Seed = 0,
    device: Device = "auto",
    out: Out = PLACE,
    json: Json = False,
) -> None:
    """Where words look while an image is painted, step by step, and how soon their maps settle.

    Example: sfumato inside attention "a red cube on grass" --words red,cube,grass
    """
    whole("--steps", steps, 2, 1000)
    seed_of(seed)
    writable(out)
    quiet()
    from sfumato.experiments import attention_over_steps as look

    net = loading.load(model, device)
    said = list(dict.fromkeys(w.strip(",.;:!?") for w, _ in net.words(prompt)))
    asked = [w.strip() for w in words.split(",") if w.strip()] or said
    course = look.attention_over_steps(net, prompt, asked, steps, guidance, seed)
    look.draw(course, out / "attention.png", f"{model}: {prompt}")
    tell(out / "attention.png", {"prompt": prompt, "words": look.numbers(course)}, json)


def equivariance(
    image: Photo,
    *,
    fit: Fit = "crop",
    model: Model = "stilllife",
    loading: tyro.conf.OmitArgPrefixes[Running],
    device: Device = "auto",
    out: Out = PLACE,
    json: Json = False,
) -> None:
    """Crop, turn and blur an image's latents, decode them, and compare with the image so changed, in dB.

    Example: sfumato inside equivariance photo.png
    """
    writable(out)
    quiet()
    from sfumato.experiments import equivariance as look
    from sfumato.media.images import read_image

    net = loading.load(model, device)
    found = look.equivariance(net, read_image(image, net, fit)[None])
    look.draw(found, out / "equivariance.png", f"{model}: {image.name}")
    tell(out / "equivariance.png", look.numbers(found), json)


def patches(
    *,
    views: Annotated[int, tyro.conf.arg(help="Cameras on an arc around a drawn scene.")] = 13,
    arc: Annotated[float, tyro.conf.arg(help="Its length in degrees.")] = 120.0,
    model: Model = "stilllife",
    loading: tyro.conf.OmitArgPrefixes[Running],
    seed: Seed = 0,
    device: Device = "auto",
    out: Out = PLACE,
    json: Json = False,
) -> None:
    """Correlate patches that show the same place from several cameras, in pixels and in latents, by angle and distance.

    Example: sfumato inside patches --seed 3
    """
    whole("--views", views, 3, 100)
    if not 1 <= arc <= 360:
        raise SfumatoError(f"--arc lies between 1 and 360 degrees, got {arc:g}")
    seed_of(seed)
    writable(out)
    quiet()
    from sfumato.experiments import patches as look

    net = loading.load(model, device)
    images, matched = look.still_life(seed, views, arc)
    if images.shape[-1] != net.size:
        raise SfumatoError(
            f"scenes are drawn at {images.shape[-1]} pixels, {model} works on {net.size}; take stilllife"
        )
    found = look.patch_correlations(net, images, matched)
    look.draw(found, matched, out / "patches.png", f"{model}: scene {seed}, {views} views")
    tell(out / "patches.png", {"views": look.numbers(found, matched)}, json)


def inversion(
    image: Photo,
    prompt: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PROMPT", help="What it shows.")] = "",
    *,
    steps: Annotated[int, tyro.conf.arg(help="DDIM steps.")] = 50,
    fit: Fit = "crop",
    model: Model = "stilllife",
    loading: tyro.conf.OmitArgPrefixes[Running],
    device: Device = "auto",
    out: Out = PLACE,
    json: Json = False,
) -> None:
    """Invert an image and its corruptions (colours, rotations, scalings), and see how far their noise strays.

    Example: sfumato inside inversion photo.png "a red cube on grass"
    """
    whole("--steps", steps, 2, 1000)
    writable(out)
    quiet()
    from sfumato.experiments import corrupted_inversion as look
    from sfumato.media.images import read_image

    net = loading.load(model, device)
    pixels = read_image(image, net, fit)
    found = look.corrupted_inversion(net, pixels[None], prompt, steps)
    look.draw(pixels, found, out / "inversion.png", f"{model}: {image.name}")
    tell(out / "inversion.png", {"prompt": prompt, "corruptions": look.numbers(found)}, json)


ALL = (attention, equivariance, patches, inversion)


def inside() -> None:
    """Look inside a model: attention, equivariance, patches, inversion. One word more says which.

    Example: sfumato inside equivariance photo.png
    """
