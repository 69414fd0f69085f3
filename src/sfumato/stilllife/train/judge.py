"""How good a UNet is, from little: its error on held-out renders at five noise levels, and paintings of fixed prompts.

The noise, the captions, the prompts and the seeds are the same whatever is judged, so that two networks, or one at two
times, can be compared closer than either is known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sfumato.metrics.looks import detail
from sfumato.stilllife import networks, weights
from sfumato.stilllife.captions import Said, caption
from sfumato.stilllife.obedience import PROMPTS, obeyed
from sfumato.stilllife.train.data import Batch, latents
from sfumato.stilllife.train.precision import autocast

if TYPE_CHECKING:
    from sfumato.stilllife.oracle import Oracle
    from sfumato.stilllife.train.unet import Frozen

LEVELS = (100, 300, 500, 700, 900)  # noise levels, in the schedule's thousandths
ASKED = ("single", "pair", "view")
STEPS, GUIDANCE = 20, 5.0
PART = 64


@dataclass(frozen=True)
class Verdict:
    """How good a UNet is: its held-out error and, of each class, 1 for each painting that is what was asked, else 0."""

    error: float
    obeyed: Mapping[str, Sequence[float]]

    @property
    def right(self) -> float:
        """Paintings of all classes that are what was asked."""
        return sum(sum(each) for each in self.obeyed.values())


@dataclass
class Judge:
    """Judges UNets by ``n`` paintings of each class of prompts and by the held-out images ``seen``."""

    frozen: Frozen
    oracle: Oracle
    seen: Batch
    n: int = 60
    seed: int = 20_000

    @cached_property
    def _ready(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents and embedded captions of the held-out images."""
        rng = np.random.default_rng(self.seed)
        words = [caption(scene, rng) for scene in self.seen["scenes"]]
        pixels = self.seen["images"].to(self.frozen.device)
        z = torch.cat([latents(self.frozen.vae, x) for x in pixels.split(PART)])
        return z, torch.cat([self.frozen.embed(words[i : i + PART]) for i in range(0, len(words), PART)])

    @torch.no_grad()
    def errors(self, unet: Any) -> dict[str, float]:
        """Mean squared error of the predicted noise at each of ``LEVELS``, and their mean as ``error``."""
        z, text = self._ready
        alphas = networks.scheduler().alphas_cumprod
        noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(self.seed)).to(z)
        found = {}
        for t in LEVELS:
            x = alphas[t].sqrt() * z + (1 - alphas[t]).sqrt() * noise
            wrong = 0.0
            for part in torch.arange(len(z), device=z.device).split(PART):
                with autocast(self.frozen.device):
                    predicted = unet(x[part], t, text[part]).sample
                wrong += float((predicted.float() - noise[part]).square().mean((1, 2, 3)).sum())
            found[f"error at {t}"] = wrong / len(z)
        return {"error": float(np.mean(list(found.values()))), **found}

    def _prompts(self, key: str) -> list[tuple[Said, str]]:
        """What is asked of each painting of a class, and in which words."""
        rng = np.random.default_rng((self.seed, list(PROMPTS).index(key)))
        return [(stated := PROMPTS[key](rng, i), stated.phrase(rng)) for i in range(self.n)]

    def verdicts(self, shown: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
        """Of each class, 1 for each painting that is what was asked, else 0: (n,)."""
        wanted = {key: [stated for stated, _ in self._prompts(key)] for key in shown}
        return {key: obeyed(key, self.oracle.read(images), wanted[key]) for key, images in shown.items()}

    @torch.no_grad()
    def paintings(self, unet: Any, asked: Sequence[str] = ASKED) -> tuple[dict[str, float], Mapping[str, torch.Tensor]]:
        """The share of paintings that are what was asked, the detail of those of one thing over that of
        renders in no other style; and the paintings."""
        frozen = self.frozen
        pipe: Any = networks.pipeline(frozen.vae, weights.text_encoder(frozen.clip), unet, frozen.tokenizer)
        shown = {}
        for key in asked:
            words = [words for _, words in self._prompts(key)]
            parts = []
            for i in range(0, self.n, 20):
                seeds = [torch.Generator().manual_seed(self.seed + j) for j in range(i, min(i + 20, self.n))]
                settings = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "output_type": "pt"}
                with autocast(frozen.device):
                    parts.append(pipe(words[i : i + 20], generator=seeds, **settings).images.float().cpu())
            shown[key] = torch.cat(parts)
        figures = {key: float(verdicts.mean()) for key, verdicts in self.verdicts(shown).items()}
        if "single" in shown:
            photos = torch.tensor([scene.style == "photo" for scene in self.seen["scenes"]])
            renders = self.seen["images"][photos] if photos.any() else self.seen["images"]
            figures["detail"] = float(detail(shown["single"]).mean() / detail(renders).mean())
        return figures, shown

    def verdict(self, unet: Any) -> Verdict:
        """What ``worse`` compares."""
        right = self.verdicts(self.paintings(unet)[1])
        return Verdict(self.errors(unet)["error"], {key: each.tolist() for key, each in right.items()})


def worse(old: Verdict, new: Verdict) -> list[str]:
    """Why ``new`` is not better than ``old`` (see ``background.ship``); empty if it is."""
    reasons = []
    if not new.error < old.error:
        reasons.append(f"its error is not lower ({new.error:.5f}, {old.error:.5f} ships)")
    if new.right < old.right:
        reasons.append(f"fewer paintings are what was asked ({new.right:.0f}, {old.right:.0f})")
    for key, was in old.obeyed.items():
        changes = [b - a for a, b in zip(was, new.obeyed[key], strict=True)]
        mean, n = sum(changes) / len(changes), len(changes)
        sure = math.sqrt(sum((c - mean) ** 2 for c in changes) / (n - 1) / n)
        if mean < -2 * sure:
            reasons.append(f"{key} is worse by {-mean:.3f}, where two standard errors are {2 * sure:.3f}")
    return reasons
