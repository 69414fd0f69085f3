"""Training of the built-in model: ``python -m sfumato.stilllife.train NAME``; its ``--help`` lists them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Options:
    """What every training run can be told."""

    minutes: float = 30.0
    """Time budget."""
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
    """CPU threads [default: OMP_NUM_THREADS, or all cores]."""
    rate: float | None = None
    """Learning rate [default: the network's own]."""
    optimiser: Literal["adam", "muon"] | None = None
    """AdamW for all, or Muon for the matrices [default: the network's own]."""
    cooldown: float | None = None
    """Part of the run, at its end, over which the rate falls to nothing; 0 keeps it, so that a later run can go on
    without loss [default: a cosine over the whole run]."""
    warmup: int = 100
    """Steps over which the rate rises."""
    weighting: Literal["min-snr", "even"] | None = None
    """How noise levels weigh in a denoiser's loss: by min(SNR, 5) / SNR, or as one over the root of SNR, which gives
    all levels an even part of it [default: the network's own]."""
    anchor: float | None = None
    """decoder: train the encoder too, with this weight on the mean square of what its latents change by."""
    rare: float = 0.5
    """unet: how often an image is drawn for each of these that holds of it, beside one without: a style, a light other
    than day, things of a material; 1 draws all alike. Of shards only."""
    captions: int | None = None
    """Captions an image that a denoiser learns from, tokenised once; 0 words them anew every time
    [default: 0 on a CPU, 4 on a GPU with shards]."""
    compile: bool = True
    """On a GPU, compile the UNet."""
    precision: Literal["auto", "bf16", "float32"] = "auto"
    """Arithmetic of the networks; auto measures which of the two is faster here."""
    init: Path | None = None
    """A diffusers folder of this network to start from; for instruct what it changes of the base, as
    instruct.safetensors holds it."""
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
class AllOptions:
    """Render, train every network, compare and pack them: all within a number of minutes.

    Each stage gets what is left of the minutes, shared out among those still to come. What there is no time for, and
    what fails, is skipped; the networks that ship stand in for it.
    """

    minutes: float = 9.0
    """Time for everything."""
    steps: int | None = None
    """Steps of each network, instead of its share of the minutes; nothing is then skipped for want of time."""
    resume: bool = False
    """Go on with what an interrupted run in --out has left; finished networks are kept."""
    start: Literal["shipped", "nothing"] = "shipped"
    """The weights to begin with."""
    shares: tuple[str, ...] = ()
    """Other shares of the time than these, as in ``--shares unet=0.5 depth=0``; 0 leaves a stage out. [default: render
    0.12, vae 0.16, words 0.06 (from nothing only), clip 0.07, oracle 0.06, unet 0.34, instruct 0.06, depth 0.06, bench
    0.07]"""
    out: Path = Path("cache/all")
    """Folder for the runs; the finished networks lie in OUT/ship, for ``train.ship --from OUT/ship``."""
    data: Path = Path("cache/data")
    """Folder of rendered shards; what it does not hold is rendered into it."""
    images: int | None = None
    """Training images to render [default: as many as the time allows, at most 131072]."""
    captions: int | None = None
    """Captions an image for the denoisers, tokenised once; 0 words them anew [default: 0 on a CPU, 4 on a GPU]."""
    device: str | None = None
    """cpu, cuda, cuda:1 ... [default: a GPU if there is one]."""
    seed: int = 0
    batch: int | None = None
    """Images a step, of every network [default: each network's own, larger on a GPU]; halved where memory is short."""
    compile: bool = True
    """On a GPU, compile the UNet."""
    threads: int | None = None
    """CPU threads [default: OMP_NUM_THREADS, or all cores]."""
    n: int = 50
    """Paintings of each class by which the UNet is compared with the one that ships."""


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
