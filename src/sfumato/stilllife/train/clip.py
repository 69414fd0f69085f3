"""Trains the tiny CLIP on renders and captions that are drawn anew each step; see ``run``.

The text encoder comes from ``words`` and stays, so the UNet that it conditions need not wait for the image half.
A caption that fits several images of a batch word for word is right for each of them. For pairs of things the same
caption with the colours exchanged is a further wrong answer: telling who has which colour is what batches of random
captions teach last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.metrics.clip import clip_features, image_features, text_features
from sfumato.stilllife import networks
from sfumato.stilllife.captions import caption, parse
from sfumato.stilllife.scene import Scene
from sfumato.stilllife.train import Options, loop
from sfumato.stilllife.train.data import held_out, source
from sfumato.stilllife.train.facts import Facts, facts
from sfumato.stilllife.train.precision import autocast

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPTokenizer

WORDS = Path("cache/words/final")  # where ``words`` leaves its CLIP
_SHIFT = 4  # pixels: the most a batch is moved
_SHARPEST = 100.0  # the most that similarities are multiplied by
_FACTS = 0.2  # weight of what both embeddings must tell


def run(args: Options) -> None:
    """Train the tiny CLIP and write it, with its tokenizer and image processor, to ``OUT/final``."""
    from transformers import CLIPModel

    device = loop.start(args)
    out, batch = args.place("clip"), args.batch or 128
    if not (begin := args.init or WORDS).is_dir():
        raise SfumatoError(f"no CLIP to start from in {begin}; train its text half first, with `train words`")
    model: Any = CLIPModel.from_pretrained(begin)
    # on CPUs the plain form of attention trains twice as fast as the fused one at these lengths
    model.set_attn_implementation("eager" if device.type == "cpu" else "sdpa")
    model.to(device).train()
    model.text_model.requires_grad_(False)
    reader = Facts(model.config.projection_dim).to(device)
    tokenizer = networks.tokenizer()
    renders = source(args, device)

    def step(i: int) -> tuple[Tensor, dict[str, Tensor]]:
        data = renders.batch(i, batch)
        rng = np.random.default_rng((args.seed, i, 2))
        words = [caption(scene, rng) for scene in data["scenes"]]
        wrong = [w for w in (swapped(text, rng) for text in words) if w is not None]
        images = shifted(data["images"].to(device), rng)
        with autocast(device):
            seen = image_features(images, model)
            read = text_features(words + wrong, model, tokenizer)
        logits = model.logit_scale.exp().clamp(max=_SHARPEST) * similarity(seen, read)
        loss, right = contrast(logits, words)
        wanted = facts(words).to(device)
        of_image, of_text = reader.loss(seen, wanted), reader.loss(read[:batch], wanted)
        figures = {"top1": right, "scale": model.logit_scale.exp(), "image facts": of_image, "text facts": of_text}
        return loss + _FACTS * (of_image + of_text), figures

    modules = {"clip": model, "facts": reader}
    ema: Any = loop.fit("clip", modules, step, args, rate=1e-3, batch=batch, weight_decay=0.05)["clip"]
    ema.set_attn_implementation("sdpa")
    ema.save_pretrained(out / "final")
    tokenizer.save_pretrained(out / "final")
    image_processor().save_pretrained(out / "final")
    data = held_out(args, device, 1024)
    figures = judged(ema, tokenizer, data["images"], data["scenes"])
    report = loop.report("clip", args, {"clip": ema}, batch, figures)
    print(f"clip: {figures}, written to {out / 'final'}, {report}")


def image_processor():
    """What prepares images for the tiny CLIP: 128 x 128 pixels, values in [-1, 1]."""
    from transformers import CLIPImageProcessor

    half, side = [0.5] * 3, {"height": networks.SIZE, "width": networks.SIZE}
    return CLIPImageProcessor(size=side, crop_size=side, do_center_crop=False, image_mean=half, image_std=half)


def contrast(logits: Float[Tensor, "b texts"], words: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Symmetric InfoNCE, and the share of images whose own caption comes first.

    The first b texts are the images' own, ``words``; further ones are wrong for all images. Own texts that are the same
    sentence share the probability.
    """
    b, texts = logits.shape
    number = {text: i for i, text in enumerate(words)}
    which = torch.tensor([number[text] for text in words], device=logits.device)
    same = which[:, None] == which
    target = same / same.sum(1, keepdim=True)
    by_image = F.cross_entropy(logits, F.pad(target, (0, texts - b)))
    by_text = F.cross_entropy(logits[:, :b].T, target)
    right = F.pad(same, (0, texts - b)).gather(1, logits.argmax(1, keepdim=True))
    return (by_image + by_text) / 2, right.float().mean()


def similarity(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """Cosines of all with all."""
    return F.normalize(a.float(), dim=1) @ F.normalize(b.float(), dim=1).T


def swapped(text: str, rng: np.random.Generator) -> str | None:
    """The caption with the colours of its first two things exchanged; None unless that must be false."""
    stated = parse(text)
    if len(stated.things) < 2:
        return None
    a, b, *rest = stated.things
    if None in (a.colour, b.colour) or a.colour == b.colour or (a.kind == b.kind and stated.relation is None):
        return None
    return replace(stated, things=(replace(a, colour=b.colour), replace(b, colour=a.colour), *rest)).phrase(rng)


def shifted(images: Float[Tensor, "b 3 h w"], rng: np.random.Generator) -> Float[Tensor, "b 3 h w"]:
    """All images moved alike by up to 4 pixels; the border repeats. Never mirrored: captions tell left from right."""
    h, w = images.shape[2:]
    row, column = rng.integers(0, 2 * _SHIFT + 1, 2)
    return F.pad(images, (_SHIFT,) * 4, mode="replicate")[:, :, row : row + h, column : column + w]


@torch.no_grad()
def judged(
    model: CLIPModel, tokenizer: CLIPTokenizer, images: Float[Tensor, "b 3 h w"], scenes: Sequence[Scene]
) -> dict[str, float]:
    """On images that were not trained on, each with one caption: ``top1``, the share of images whose own caption comes
    first among 64, and ``swap``, the share of captions of pairs that are
    nearer to their image than the same with the colours exchanged. Identical captions count as right."""
    rng = np.random.default_rng(0)
    words = [caption(scene, rng) for scene in scenes]
    order = rng.permutation(len(words))
    parts = [order[i : i + 64] for i in range(0, len(order) - len(order) % 64, 64)] or [order]
    seen = clip_features(images, model)
    read = text_features(words, model, tokenizer)
    first = [
        words[part[row]] == words[part[int(best)]]
        for part in parts
        for row, best in enumerate(similarity(seen[part], read[part]).argmax(1))
    ]
    figures = {"top1 of 64": float(np.mean(first))}
    pairs = [(i, text) for i, w in enumerate(words) if (text := swapped(w, rng)) is not None]
    if pairs:
        at = [i for i, _ in pairs]
        other = text_features([text for _, text in pairs], model, tokenizer)
        nearer = F.cosine_similarity(seen[at], read[at]) > F.cosine_similarity(seen[at], other)
        figures["colours bound"] = float(nearer.float().mean())
    return figures
