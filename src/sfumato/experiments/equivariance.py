"""What becomes of an image when its latents are cropped, turned or blurred (Jambon 2023, table 4.2 and figure 4.3).

The latents are transformed, bilinear, and decoded; beside it the image itself is transformed. Were the autoencoder
equivariant, both would be the same. The source used images of some 500 pixels: blurs are of a picture of 512, and
scaled to the one at hand. It compares all pixels; here only those that come from inside the image, so that what lies
outside does not count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core.backbone import Backbone
from sfumato.experiments.experiment import Experiment, Findings
from sfumato.media import plots
from sfumato.media.images import Fit, read_image
from sfumato.ops.blur import blur
from sfumato.ops.warps import Similarity

PUBLISHED = {
    "identity": (22.86, 25.37, 20.05, 22.66),
    "crop 0.25": (19.72, 19.43, 17.06, 17.87),
    "crop 0.5": (20.42, 19.89, 17.59, 19.19),
    "crop 0.75": (20.16, 20.45, 18.10, 19.87),
    "rotation 5": (17.30, 18.29, 16.69, 17.62),
    "rotation 10": (15.95, 16.66, 15.52, 16.17),
    "rotation 20": (14.46, 14.94, 14.15, 14.60),
    "rotation 45": (13.07, 13.25, 12.82, 13.23),
    "blur 4": (28.25, 28.93, 25.66, 27.82),
    "blur 8": (25.40, 21.74, 24.57, 24.60),
    "blur 16": (22.41, 20.18, 25.66, 22.44),
}
"""PSNR in dB of Stable Diffusion's autoencoder on four scenes (fern, flower, benchflower, playground): table 4.2."""


@dataclass(frozen=True)
class Compared:
    """One transformation: through the latents, of the image, and how far they are apart in dB, an image each."""

    decoded: Float[Tensor, "b 3 h w"]
    truth: Float[Tensor, "b 3 h w"]
    psnr: Float[Tensor, " b"]


@dataclass(frozen=True)
class Table(Findings):
    """Transformations by their names."""

    compared: Mapping[str, Compared]

    def numbers(self) -> dict[str, dict[str, float]]:
        """Mean PSNR of each transformation, and the source's."""
        return {
            name: {"psnr": float(each.psnr.mean()), "published": sum(PUBLISHED[name]) / len(PUBLISHED[name])}
            for name, each in self.compared.items()
        }

    def draw(self, path: Path, about: str = "") -> None:
        """Pictures of the first image, and the figures beside the source's."""
        found, table = self.compared, self.numbers()
        names = list(found)
        with plots.figure(
            path, (1.1 * len(names), 4.6), "Transformed in the latents, and in the image", about
        ) as figure:
            grid = figure.add_gridspec(3, len(names), height_ratios=(1, 1, 1.7))
            for column, name in enumerate(names):
                plots.image(figure.add_subplot(grid[0, column]), found[name].decoded[0], name)
                plots.image(figure.add_subplot(grid[1, column]), found[name].truth[0])
            axes = figure.add_subplot(grid[2, :])
            at = range(len(names))
            axes.plot(at, [table[n]["psnr"] for n in names], "o-", color=plots.COLOURS[0], label="measured here")
            axes.plot(
                at, [table[n]["published"] for n in names], "o--", color=plots.COLOURS[1], label="source, four scenes"
            )
            axes.set_xticks(list(at), names)
            axes.set_ylabel("PSNR, dB")
            axes.legend()


@torch.no_grad()
def equivariance(model: Backbone, images: Float[Tensor, "b 3 h w"]) -> Table:
    """The transformations of table 4.2, of images that the model can encode as they are."""
    latents = model.encode(images.to(model.device))
    side = min(images.shape[-2:])
    out = {}
    for name in PUBLISHED:
        kind, _, amount = name.partition(" ")
        value = float(amount or 0)
        move = Similarity(turn=value if kind == "rotation" else 0.0, scale=1 / value if kind == "crop" else 1.0)
        sigma = value * side / 512 if kind == "blur" else 0.0

        def moved(x: Tensor, cell: int, move: Similarity = move, sigma: float = sigma) -> Tensor:
            return blur(x, sigma / cell) if sigma else move(x, padding="reflection")

        decoded, truth = model.decode(moved(latents, model.factor)).cpu(), moved(images, 1)
        counted = move.whole(images.shape[-2], images.shape[-1])
        error = (decoded - truth).square().mean(1)[:, counted].mean(1)
        out[name] = Compared(decoded, truth, -10 * error.clamp_min(1e-12).log10())
    return Table(out)


@dataclass(frozen=True)
class Equivariance(Experiment):
    """Crop, turn and blur an image's latents, decode them, and compare with the image so changed, in dB.

    Example: sfumato experiment equivariance photo.png
    """

    image: Path
    """Any picture file."""
    fit: Fit = "crop"
    """How the picture becomes what the model sees."""

    def run(self, model: Backbone) -> Table:
        return equivariance(model, read_image(self.image, model, self.fit)[None])
