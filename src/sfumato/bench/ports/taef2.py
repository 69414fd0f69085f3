"""A real autoencoder: TAEF2, of FLUX.2's latents, by github.com/madebyollin/taesd (MIT).

Photographs at 8 x 8 pixels a cell and 32 channels a cell. It is diffusers' ``AutoencoderTiny`` but for what its blocks
nearest to the latents add to what they read: a mixture of channels that is normalised over the whole image.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

CHANNELS = 32


def autoencoder(folder: Path) -> Any:
    """The VAE of a folder with its encoder and its decoder, as diffusers' ``AutoencoderTiny`` for a pipeline's ``vae``.

    Its own images lie in [0, 1]; those of the class, as of every VAE of diffusers, in [-1, 1].
    """
    from diffusers import AutoencoderTiny
    from safetensors.torch import load_file

    vae = AutoencoderTiny(latent_channels=CHANNELS)
    for part, before in ((vae.encoder, 0), (vae.decoder, 1)):  # the decoder's first is what the class does by itself
        name = "decoder" if before else "encoder"
        tensors = load_file(folder / f"taef2_{name}.safetensors")
        places = {key: key.split(".", 1) for key in tensors}
        numbered = {(int(n) - before, rest): tensors[key] for key, (n, rest) in places.items()}
        layers: Any = part.layers
        for number in {number for number, key in numbered if key.startswith("pool.")}:
            layers[number] = _Pooled(layers[number])
        layers.load_state_dict({f"{number}.{key}": v.float() for (number, key), v in numbered.items()})
    return vae.eval().requires_grad_(False)


class _Pooled(nn.Module):
    """A block that reads beside its input what four times as many channels, normalised in four groups, say of it."""

    def __init__(self, block: Any, width: int = 64):
        super().__init__()
        self.conv, self.skip, self.fuse = block.conv, block.skip, block.fuse
        mixed = 4 * width
        self.pool = nn.Sequential(
            nn.Conv2d(width, mixed, 1, bias=False), nn.GroupNorm(4, mixed), nn.ReLU(),
            nn.Conv2d(mixed, width, 1, bias=False),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.pool(x)
        return self.fuse(self.conv(x) + self.skip(x))
