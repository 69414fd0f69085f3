"""Training of the built-in model: ``python -m sfumato.stilllife.train {data,oracle,clip,vae,unet,instruct,depth}``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """What every training run can be told."""

    minutes: float = 30.0
    """Time budget; the learning rate falls along a cosine to its end."""
    steps: int | None = None
    """Budget in steps instead of minutes; such a run is reproducible to the bit."""
    resume: bool = False
    """Go on from the last checkpoint in --out (starts afresh when there is none)."""
    out: Path | None = None
    """Folder for checkpoints, log, previews and the final weights [default: cache/NAME]."""
    data: Path = Path("cache/data")
    """Folder of rendered shards; without shards a GPU renders fresh scenes while it trains."""
    device: str | None = None
    """cpu, cuda, cuda:1 ... [default: a GPU if there is one]."""
    seed: int = 0
    batch: int | None = None
    """Images a step [default: the network's own]."""
    threads: int | None = None
    """CPU threads [default: all cores]."""
    rate: float | None = None
    """Peak learning rate [default: the network's own]."""
    init: Path | None = None
    """A diffusers folder of this network to start from; for instruct its low-rank changes, as instruct.safetensors."""
    clip: Path = Path("cache/clip/final")
    """CLIP for the text embeddings; the shipped one if this folder does not exist."""
    vae: Path = Path("cache/vae/final")
    """VAE for the latents; the shipped one if this folder does not exist."""
    unet: Path = Path("cache/unet/final")
    """UNet that the relatives start from; the shipped one if this folder does not exist."""
    report: Path = Path("docs/stilllife")
    """Folder for the short report of the run."""

    def place(self, name: str) -> Path:
        """The folder of the run ``name``."""
        return self.out or Path("cache") / name


@dataclass(frozen=True)
class DataOptions:
    """Render shards for training on a CPU; shards that exist are kept, so an interrupted run goes on."""

    images: int = 20_000
    """Training images."""
    val: int = 1024
    """Held-out images."""
    pairs: int = 0
    """Pairs of images before and after a change, for the InstructPix2Pix."""
    out: Path = Path("cache/data")
    seed: int = 0
    processes: int = 2
    """Worker processes of one thread each."""
