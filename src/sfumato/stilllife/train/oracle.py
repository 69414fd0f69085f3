"""Trains the oracle on renders: thing masks, votes for the middles of things, their traits, and the world."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from sfumato.stilllife import networks
from sfumato.stilllife.kinds import KINDS
from sfumato.stilllife.oracle import MARK_SEEN, REACH, SMALLEST, TRAITS, WORLD, Maps, Oracle, apart, pool, score
from sfumato.stilllife.scene import Scene
from sfumato.stilllife.train import Options, loop
from sfumato.stilllife.train.data import Batch, Shards, Source, held_out, source
from sfumato.stilllife.train.precision import autocast

RECONSTRUCTED = 1024  # renders that pass through the VAE, if there is one; they make a quarter of every batch
_SHIFT = 8  # pixels: the most an image is moved
_UNSURE = 2  # mark pixels on either side of MARK_SEEN that teach nothing
_NONE = -100  # cross_entropy's label for "no label"
_WEIGHTS = {"mask": 4.0, "offset": 4.0, "kind": 1.0, "colour": 1.0, "material": 0.5, "mark": 0.5}
_WEIGHTS |= {"ground": 0.3, "light": 0.3, "style": 0.3}


def run(args: Options) -> None:
    """Train the oracle and write it to ``OUT/final/oracle.safetensors``."""
    device = loop.start(args)
    out, batch = args.place("oracle"), args.batch or 32
    model = Oracle.load(args.init / "oracle.safetensors", device).train() if args.init else Oracle()
    model.to(device)
    renders = source(args, device)
    vae = _vae(args, device)
    copies = None if vae is None else _reconstructions(renders, vae)

    def step(i: int) -> tuple[Tensor, dict[str, Tensor]]:
        data = renders.batch(i, batch)
        if copies is not None and batch >= 4:
            data = _mixed(data, copies, batch // 4)
        images, thing = moved(data["images"].to(device), data["thing"].to(device).long())
        labels = {k: v.to(device) for k, v in targets(data["scenes"], data["mark"]).items()}
        with autocast(device):
            maps = model(worn(images))
        return objective(maps, thing, labels)

    ema = loop.fit("oracle", {"oracle": model}, step, args, rate=2e-3, batch=batch)["oracle"]
    assert isinstance(ema, Oracle)
    ema.save(out / "final" / "oracle.safetensors")
    oracle = Oracle.load(out / "final" / "oracle.safetensors", device)
    seen = held_out(args, device, 1000)
    figures = {f"{k}, held-out renders": v for k, v in judged(oracle, seen).items()}
    if vae is not None:
        again = Batch(**{**seen, "images": _through(vae, seen["images"])})
        figures |= {f"{k}, through the VAE": v for k, v in judged(oracle, again).items()}
    report = loop.report("oracle", args, {"oracle": oracle}, batch, figures)
    print(f"oracle: {figures}, written to {out / 'final'}, {report}")


def judged(oracle: Oracle, data: Batch) -> dict[str, float]:
    """The oracle's accuracies on a batch; see ``sfumato.stilllife.oracle.score``."""
    return score(oracle.read(data["images"]), data["scenes"], data["thing"], data["mark"])


def moved(
    images: Float[Tensor, "b 3 h w"], thing: Int[Tensor, "b h w"]
) -> tuple[Float[Tensor, "b 3 h w"], Int[Tensor, "b h w"]]:
    """Images and masks mirrored or not and shifted by up to 8 pixels together; the border repeats."""
    b, _, h, w = images.shape
    shift = torch.randint(-_SHIFT, _SHIFT + 1, (2, b, 1), device=images.device)
    rows = (torch.arange(h, device=images.device) + shift[0]).clamp(0, h - 1)
    columns = (torch.arange(w, device=images.device) + shift[1]).clamp(0, w - 1)
    columns = torch.where(torch.rand(b, 1, device=images.device) < 0.5, columns, w - 1 - columns)
    row, column, each = rows[:, :, None], columns[:, None, :], torch.arange(b, device=images.device)[:, None, None]
    return images.permute(0, 2, 3, 1)[each, row, column].permute(0, 3, 1, 2), thing[each, row, column]


def worn(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Images as a VAE or a generator may deliver them: softer, with blotches, noise and colours a little off.

    A quarter of them stay as they are, so that fine texture is still learnt.
    """
    parts = list(images.split(max(1, -(-len(images) // 4))))
    for i, x in enumerate(parts[1:], 1):
        n, _, h, w = x.shape
        size = round(h / float(torch.empty(1).uniform_(1.0, 2.0)))
        x = F.interpolate(x, (size, size), mode="bilinear", antialias=True, align_corners=False)
        x = F.interpolate(x, (h, w), mode="bicubic", align_corners=False)
        blotches = F.interpolate(torch.randn(n, 3, h // 8, w // 8, device=x.device), (h, w), mode="bilinear")
        amount = torch.rand(3, n, 1, 1, 1, device=x.device)
        x = x + 0.05 * amount[0] * blotches + 0.04 * amount[1] * torch.randn_like(x)
        contrast, bright = torch.randn(2, n, 3, 1, 1, device=x.device) * 0.03
        parts[i] = (x * (1 + contrast) + bright * amount[2]).clamp(0, 1)
    return torch.cat(parts)


def targets(scenes: Sequence[Scene], mark: Int[Tensor, "b most"]) -> dict[str, Int[Tensor, "b ..."]]:
    """Labels by index: (b, most) for kind, colour, material and mark, (b,) for the world; -100 where there is none."""
    out = {k: torch.full((len(scenes), Scene.most), _NONE) for k in TRAITS}
    for row, scene in enumerate(scenes):
        for k, thing in enumerate(scene.things):
            for key in ("kind", "colour", "material"):
                out[key][row, k] = TRAITS[key].index(getattr(thing, key))
            seen = int(mark[row, k])
            if KINDS[thing.kind].mark is not None and (seen == 0 or abs(seen - MARK_SEEN) > _UNSURE):
                out["mark"][row, k] = int(seen >= MARK_SEEN)
    return out | {k: torch.tensor([words.index(getattr(s, k)) for s in scenes]) for k, words in WORLD.items()}


def objective(
    maps: Maps,
    thing: Int[Tensor, "b h w"],
    labels: dict[str, Int[Tensor, "b ..."]],
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """The loss, and its terms. ``thing`` holds 0 for none, else 1 + index."""
    each = apart(thing).float()
    size = each.sum((2, 3))
    present = size >= SMALLEST
    x, y = (torch.arange(n, device=thing.device, dtype=torch.float32) for n in reversed(thing.shape[1:]))
    middle = torch.stack([(each.sum(2) * x).sum(2), (each.sum(3) * y).sum(2)], 1) / size.clamp(min=1)[:, None]

    def spread(values: Float[Tensor, "b most"]) -> Float[Tensor, "b h w"]:
        """A number a thing to its pixels."""
        return F.pad(values, (1, 0)).gather(1, thing.flatten(1)).view(thing.shape)

    aim = torch.stack([spread(middle[:, 0]) - x, spread(middle[:, 1]) - y[:, None]], 1) / REACH
    error = F.smooth_l1_loss(maps.offset, aim, beta=0.05, reduction="none").sum(1)
    # every thing weighs the same, however few of its pixels show
    weight = spread(present / size.clamp(min=1) / present.sum().clamp(min=1))
    terms = {
        "mask": F.binary_cross_entropy_with_logits(maps.mask, (thing > 0).float()),
        "offset": (error * weight).sum(),
    }
    # a random share of a thing's pixels must tell its traits, so that what hides the others does no harm
    share = torch.rand(len(thing), 1, 1, device=thing.device) ** 2
    kept = thing * (torch.rand(thing.shape, device=thing.device) < share.clamp(min=0.02))
    traits = pool(maps.traits, kept).split([len(words) for words in TRAITS.values()], 2)
    absent = ~(present & apart(kept).flatten(2).any(2))
    for key, logits in zip(TRAITS, traits, strict=True):
        truth = labels[key].masked_fill(absent, _NONE)
        if key == "mark":
            known = truth != _NONE
            loss = F.binary_cross_entropy_with_logits(logits[..., 0][known], truth[known].float(), reduction="sum")
            terms[key] = loss / known.sum().clamp(min=1)
        else:
            terms[key] = F.cross_entropy(logits.flatten(0, 1), truth.flatten(), reduction="sum")
            terms[key] = terms[key] / (truth != _NONE).sum().clamp(min=1)
    for key, logits in zip(WORLD, maps.world.split([len(w) for w in WORLD.values()], 1), strict=True):
        terms[key] = F.cross_entropy(logits, labels[key])
    return torch.stack([_WEIGHTS[k] * v for k, v in terms.items()]).sum(), terms


def _vae(args: Options, device: torch.device) -> Any | None:
    if not args.vae.exists():
        return None
    from diffusers import AutoencoderKL

    vae: Any = AutoencoderKL.from_pretrained(args.vae)
    return vae.to(device).eval()


def _through(vae: Any, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    with autocast(vae.device):
        return networks.reconstruct(vae, images)


def _reconstructions(renders: Source, vae: Any) -> Batch:
    few = len(renders) if isinstance(renders, Shards) else RECONSTRUCTED
    data = renders.batch(-1 % 2**31, min(few, RECONSTRUCTED))
    return Batch(**{**data, "images": _through(vae, data["images"]).mul(255).round().byte()})


def _mixed(data: Batch, copies: Batch, count: int) -> Batch:
    """The batch with its last ``count`` images replaced by reconstructions."""
    at = torch.randint(len(copies["scenes"]), (count,))
    out = {k: torch.cat([data[k][:-count], copies[k][at].to(data[k].device)]) for k in ("thing", "depth", "mark")}
    images = copies["images"][at].to(data["images"]) / 255
    out["images"] = torch.cat([data["images"][:-count], images])
    return Batch(**out, scenes=[*data["scenes"][:-count], *(copies["scenes"][int(i)] for i in at)])
