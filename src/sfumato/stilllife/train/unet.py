"""The text-to-image UNet: predicts the noise on latents from captions that are drawn anew each time.

Noise levels weigh evenly and are stratified over the batch; a tenth of the captions is empty for classifier-free
guidance. Images are never mirrored: captions tell left from right.

Noise teaches slowly what a word looks like: most of an image's error is in its edges and textures. So while it is
trained, the features before the last level must also tell which kind, colour and view lie in each cell, which the
renderer knows (after REPA, Yu et al. 2025, with the truth in place of a pretrained network). The reader is thrown away.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTokenizer

from sfumato.media import pictures
from sfumato.stilllife import networks, weights
from sfumato.stilllife.captions import caption
from sfumato.stilllife.kinds import TRAINED
from sfumato.stilllife.scene import COLOURS, VIEWS, Scene
from sfumato.stilllife.train import Options, loop
from sfumato.stilllife.train.attention import SmallHeads
from sfumato.stilllife.train.data import Fresh, Shards, encode_shards, latents, source
from sfumato.stilllife.train.gpu import compiled
from sfumato.stilllife.train.pool import Pool, labels
from sfumato.stilllife.train.precision import autocast
from sfumato.stilllife.train.vae import finished

EMPTY = 0.1  # part of the captions that are left empty
GAMMA = 5.0  # min-SNR
WEIGHTING = "even"  # what is asked for is decided at high noise, which min-SNR hardly weighs
LAYOUT = 0.05  # weight of what the features must tell
NOTHING = 0.3  # weight of cells without a thing there
COUNTS = (0.6, 1.3, 0.8)  # how often scenes of one, two and three things are drawn: two are the hard ones
CAPTIONS = (0, 4)  # an image in a pool, on a CPU and on a GPU; 0 words them anew for every step
PROMPTS = (
    "a red cube on grass",
    "a blue robot seen from the front on sand",
    "a yellow duck on water at sunset",
    "a green sphere to the left of an orange cone",
    "a purple mug on wood, a watercolour",
    "a white house on snow at night",
    "a black car in front of a green tree",
    "a pencil sketch of a chair",
)


@dataclass(frozen=True)
class Frozen:
    """What a denoiser is trained with and does not change."""

    vae: AutoencoderKL
    clip: CLIPModel
    tokenizer: CLIPTokenizer
    device: torch.device

    @torch.no_grad()
    def embed(self, words: Sequence[str]) -> Float[Tensor, "b 77 d"]:
        """The text encoder's last layer, as the pipeline uses it."""
        tokens = self.tokenizer(
            list(words), padding="max_length", max_length=networks.TOKENS, truncation=True, return_tensors="pt"
        )
        return self.read(tokens.input_ids.to(self.device))

    @torch.no_grad()
    def read(self, tokens: Int[Tensor, "b 77"]) -> Float[Tensor, "b 77 d"]:
        """``embed`` of what is tokenised already."""
        with autocast(self.device):
            out = self.clip.text_model(input_ids=tokens).last_hidden_state
        return out.float()


@dataclass(frozen=True)
class Noisy:
    """Latents with noise: what the network reads, what it should say, and each image's weight."""

    z: Float[Tensor, "b 4 h w"]
    t: Float[Tensor, "b"]
    noise: Float[Tensor, "b 4 h w"]
    weight: Float[Tensor, "b"]

    def loss(self, prediction: Float[Tensor, "b 4 h w"], cells: Tensor | float = 1.0) -> Float[Tensor, ""]:
        """Mean squared error of the noise, each image weighted and, with ``cells`` (b, 1, h, w), each of its cells."""
        wrong = (prediction.float() - self.noise).square() * cells
        return (wrong.mean((1, 2, 3)) * self.weight).mean()


class Drawn(TypedDict):
    """b images without their pixels: scaled latents and an embedded caption each, on the device, and the truth.

    ``thing`` and ``depth`` are as in a shard, or ``thing`` has a cell of the latents each; ``labels`` are ``pool``'s.
    """

    latents: Tensor
    text: Tensor
    thing: Tensor
    depth: Tensor
    labels: Tensor


class Layout(nn.Module):
    """Tells kind, colour and view in each cell of the latents from the UNet's features before its last level."""

    words = tuple(1 + len(known) for known in (TRAINED, COLOURS, VIEWS))

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        tapped: Any = unet.up_blocks[-2]
        width = tapped.upsamplers[0].out_channels
        self.read = nn.Sequential(nn.GroupNorm(16, width), nn.SiLU(), nn.Conv2d(width, sum(self.words), 1))
        self._features: Tensor | None = None
        tapped.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        if module.training:  # the averaged copy has a copy of this hook
            self._features = output

    def forget(self) -> None:
        """Let go of the features of a call whose loss nobody asked for."""
        self._features = None

    def loss(self, thing: Int[Tensor, "b H W"], seen: Sequence[Scene] | Tensor) -> Float[Tensor, ""]:
        """Cross entropy of kind, colour and view for the UNet's last call. ``thing`` holds 0 for none, else 1 + index;
        what was ``seen`` are the scenes or their ``pool.labels``."""
        assert self._features is not None
        logits = self.read(self._features).float().split(self.words, 1)
        self.forget()
        step = thing.shape[-1] // logits[0].shape[-1]
        cells = thing[:, step // 2 :: step, step // 2 :: step].long().flatten(1)
        loss = torch.zeros((), device=cells.device)
        table = (seen if isinstance(seen, Tensor) else labels(seen)).to(cells.device)
        for k, part in enumerate(logits):
            weight = torch.ones(part.shape[1], device=cells.device)
            weight[0] = NOTHING
            loss = loss + F.cross_entropy(part.flatten(2), table[:, k].gather(1, cells), weight)
        return loss


def run(args: Options) -> None:
    """Train the UNet and write it to ``OUT/final``."""
    device = loop.start(args)
    out, batch = args.place("unet"), args.batch or 64
    model: Any = UNet2DConditionModel.from_pretrained(args.init) if args.init else networks.unet()
    model.to(device).train()
    quicken(model)
    layout = Layout(model).to(device)
    frozen = load_frozen(args, device)
    draw = images(args, frozen, EMPTY, 3, functools.partial(common, args.rare))
    diffuse = noiser(device, args.weighting)
    forward = model
    if device.type == "cuda" and args.compile:
        drawn = draw(0, batch)
        noisy = diffuse(drawn["latents"])
        forward = compiled(model, noisy.z, noisy.t, drawn["text"])
        layout.forget()

    def step(i: int) -> tuple[Tensor, dict[str, Tensor]]:
        drawn = draw(i, batch)
        noisy = diffuse(drawn["latents"])
        with autocast(device):
            prediction = forward(noisy.z, noisy.t, drawn["text"]).sample
            placed = layout.loss(drawn["thing"].to(device), drawn["labels"])
        noise = noisy.loss(prediction)
        return noise + LAYOUT * placed, {"noise": noise, "layout": placed}

    def preview(ema: loop.Modules, path: Path) -> None:
        live: Any = ema["unet"]
        pipe: Any = networks.pipeline(frozen.vae, weights.text_encoder(frozen.clip), live, frozen.tokenizer)
        seeds = [torch.Generator().manual_seed(i) for i in range(len(PROMPTS))]
        with autocast(device):
            shown = pipe(list(PROMPTS), num_inference_steps=20, guidance_scale=5.0, generator=seeds, output_type="pt")
        pictures.write(pictures.sheet(shown.images, 4), path)

    modules = {"unet": model, "layout": layout}
    ema: Any = loop.fit("unet", modules, step, args, rate=7e-4, batch=batch, ema=0.998, preview=preview)["unet"]
    ema.set_attn_processor(AttnProcessor2_0())
    ema.save_pretrained(out / "final")
    print(f"unet: written to {out / 'final'}, {loop.report('unet', args, {'unet': ema}, batch, {})}")


def quicken(model: nn.Module) -> None:
    """On a CPU, train with attention in the form whose backward pass is fast there; on a GPU, with channels last."""
    if next(model.parameters()).device.type == "cpu":
        model.set_attn_processor(SmallHeads())  # pyright: ignore[reportCallIssue]
    else:
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def load_frozen(args: Options, device: torch.device) -> Frozen:
    """The VAE and the CLIP that were trained, or else those that ship."""
    vae: Any = finished(AutoencoderKL, args.vae, "vae")
    clip: Any = finished(CLIPModel, args.clip, "clip")
    for model in (vae, clip):
        model.to(device).eval().requires_grad_(False)
    return Frozen(vae, clip, networks.tokenizer(), device)


def common(rare: float, scene: Scene) -> float:
    """How often a scene is drawn: ``COUNTS`` of its things, times ``rare`` for a style, for a light other than day, and
    for things of a material (a part of the things counts as such a part of a factor)."""
    made = sum(thing.material != "plain" for thing in scene.things) / len(scene.things)
    return COUNTS[len(scene.things) - 1] * rare ** ((scene.style != "photo") + (scene.light != "day") + made)


def images(
    args: Options, frozen: Frozen, empty: float, stream: int, odds: Callable[[Scene], float] | None = None
) -> Callable[[int, int], Drawn]:
    """What draws (step, size): from a pool of the shards, from the shards (each as often as its ``odds``), or fresh
    renders on a GPU.

    A part ``empty`` of the captions is left empty. Captions worded anew come from the random numbers of ``stream``.
    """
    found = source(args, frozen.device)

    def worded(step: int, scenes: Sequence[Scene]) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng((args.seed, step, stream))
        return frozen.embed(["" if rng.random() < empty else caption(s, rng) for s in scenes]), labels(scenes)

    if isinstance(found, Shards):
        encode_shards(found, frozen.vae)
        if odds is not None:
            found.prefer(odds)
        if count := args.captions if args.captions is not None else CAPTIONS[frozen.device.type == "cuda"]:
            pool = Pool(found, count, args.seed, frozen.device)

            def pooled(step: int, size: int) -> Drawn:
                p = pool.pick(step, size, empty)
                text = frozen.read(p.tokens)
                return {"latents": p.latents, "text": text, "thing": p.thing, "depth": p.depth, "labels": p.labels}

            return pooled

        def stored(step: int, size: int) -> Drawn:
            at = found.pick(step, size)
            thing, depth = (found.rows(k, at) for k in ("thing", "depth"))
            z = found.rows("latents", at).to(frozen.device).float()
            text, labels = worded(step, [found.scene(i) for i in at])
            return {"latents": z, "text": text, "thing": thing, "depth": depth, "labels": labels}

        return stored
    assert isinstance(found, Fresh)

    def fresh(step: int, size: int) -> Drawn:
        drawn = found.batch(step, size)
        z = latents(frozen.vae, drawn["images"])
        text, labels = worded(step, drawn["scenes"])
        return {"latents": z, "text": text, "thing": drawn["thing"], "depth": drawn["depth"], "labels": labels}

    return fresh


def noiser(device: torch.device, weighting: str | None = None) -> Callable[..., Noisy]:
    """A function that puts noise on scaled latents, at levels spread evenly over the batch; ``WEIGHTING`` by default.
    The noise may be given, and is else drawn.

    ``min-snr``: an image weighs min(SNR, 5) / SNR (Hang et al. 2023, 2303.09556). ``even``: 1 / sqrt(SNR), 1 on average
    over all levels. The error that is left goes about as sqrt(SNR), from 0.15 down to 0.006, so that with the first
    nearly all of the loss is edges, and with the second as much of it is what stands where.
    """
    alphas = networks.scheduler().alphas_cumprod.to(device)
    ratio = alphas / (1 - alphas)
    even = (weighting or WEIGHTING) == "even"
    weights = ratio.rsqrt() / ratio.rsqrt().mean() if even else (GAMMA / ratio).clamp(max=1.0)

    def diffuse(z: Float[Tensor, "b 4 h w"], noise: Float[Tensor, "b 4 h w"] | None = None) -> Noisy:
        b = len(z)
        at = (torch.arange(b, device=device) + torch.rand(b, device=device)) / b
        t = (at * len(alphas)).long().clamp_max(len(alphas) - 1)
        alpha = alphas[t].view(-1, 1, 1, 1)
        noise = torch.randn_like(z) if noise is None else noise
        return Noisy(alpha.sqrt() * z + (1 - alpha).sqrt() * noise, t, noise, weights[t])

    return diffuse
