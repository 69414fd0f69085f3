"""``sfumato bench core``: what the core costs, how well images are found again, whether Prompt-to-Prompt edits them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from sfumato.bench.generate import applied, fresh
from sfumato.bench.report import Figure, Report, Target, gather
from sfumato.bench.session import Session
from sfumato.core.attention import Call
from sfumato.core.backbone import Backbone
from sfumato.core.choice import choose as sites_of
from sfumato.core.denoising import denoise
from sfumato.core.method import Edit, Method, Need, Phases, Run, Where
from sfumato.inversion import (
    EDICT,
    DDIMInversion,
    Direct,
    EditFriendly,
    Inversion,
    Noise,
    NullText,
    invert,
    reconstruct,
)
from sfumato.io.device import choose
from sfumato.media import pictures
from sfumato.media.images import fit, tensor
from sfumato.methods.edit import LocalBlend, PromptToPrompt
from sfumato.metrics.image import psnr
from sfumato.stilllife import change, networks
from sfumato.stilllife.captions import caption
from sfumato.stilllife.render import render
from sfumato.stilllife.scene import sample_scene
from sfumato.tasks.edit import edit_pictures
from sfumato.tasks.recipes import BLEND, EDITING

STEPS, GUIDANCE = 50, 7.5
PROMPT = "a red cube to the left of a blue sphere on grass"
BATCH = 8
SLOW = 4  # images that the slow inversions are timed on
PASSES = 20  # through the network, timed as one

MEANINGS = {
    "plain_vs_diffusers": "time of denoise over diffusers' pipeline, same model, steps, batch; median",
    "identity_tap_overhead": "all sites tapped and nothing changed, over plain",
    "capture_overhead": "cross-attention maps of one resolution, head mean, over plain",
    "grad_pass_cost": "one gradient of 16 x 16 maps over one plain prediction",
    "ddim_invert_psnr": "DDIM inversion at guidance 1, dB above the VAE's own",
    "null_text_psnr": "null-text at guidance 7.5, dB above the VAE's own",
    "direct_psnr": "direct inversion at 7.5",
    "edit_friendly_psnr": "edit-friendly inversion at 7.5",
    "edict_psnr": "EDICT at 7.5",
    "null_text_seconds": "null-text of a batch over a plain port, image by image",
    "p2p_success": "recolour and reshape of renders by Prompt-to-Prompt: read as asked",
    "p2p_background_psnr": "outside of what may change, dB",
    "p2p_psnr_to_truth": "against the counterfactual's render, dB",
    "no_edit_psnr_to_truth": "the same, of the picture left as it was",
    "sdedit_psnr_to_truth": "the same, of SDEdit",
    "map_iou": "a word's cross-attention map against its thing's mask, best threshold",
}
STREAMS = {"ddim_invert_psnr": 4, "null_text_psnr": 5, "p2p_success": 10, "map_iou": 15}
"""The random numbers of a measure, which keep to it."""
TARGETS = {
    "plain_vs_diffusers": Target(1.0, at_least=False),
    "identity_tap_overhead": Target(1.05, at_least=False),
    "capture_overhead": Target(1.10, at_least=False),
    "grad_pass_cost": Target(2.0, at_least=False),
    "ddim_invert_psnr": Target(-1.5),
    "null_text_psnr": Target(-2.0),
    "direct_psnr": Target(-0.1),
    "edit_friendly_psnr": Target(-0.1),
    "edict_psnr": Target(-0.1),
    "null_text_seconds": Target(0.5, at_least=False),
    "p2p_success": Target(0.7),
    "p2p_background_psnr": Target(24.0),
}


class CoreSession(Session):
    """What the measures share."""

    def rng(self, what: str) -> np.random.Generator:
        """A generator for one measure, the same whatever else is measured."""
        return self.stream(1, STREAMS[what])


def run(n: int, seed: int, device: str = "auto", out: Path | None = None) -> Report:
    """Measure everything."""
    session = CoreSession(n, seed, choose(device), out)
    return gather(Report("core", n, seed, str(session.device), MEANINGS, TARGETS), MEASURES, session, out)


class _Looking(Method):
    """Taps every site and does nothing."""

    def start(self, run: Run) -> Phases:
        pairs = sorted({p for s in run.model.sites for p in s.pairs})
        return Phases(tuple(Edit(Where(pair), "qkv", lambda call: None) for pair in pairs))


class _Capturing(Method):
    def start(self, run: Run) -> Phases:
        return Phases(needs=(Need(Where("image->text", 16, rows="cond")),))


def speed(session: CoreSession) -> Mapping[str, Figure]:
    model = session.model
    pipe = cast("Any", model).pipe  # the very same network: two copies differ by where they lie in memory
    noise = model.latents([0], 128, 128)
    options = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "output_type": "latent"}

    def plain(*methods: Method) -> object:
        return denoise(model, PROMPT, steps=STEPS, guide=GUIDANCE, start=noise, methods=methods)

    def theirs() -> object:
        return pipe(PROMPT, latents=noise, **options)

    return {
        "plain_vs_diffusers": session.ratio(plain, theirs),
        "identity_tap_overhead": session.ratio(lambda: plain(_Looking()), plain),
        "capture_overhead": session.ratio(lambda: plain(_Capturing()), plain),
    }


def gradient(session: CoreSession) -> Mapping[str, Figure]:
    """As Attend-and-Excite does: the conditional row alone, a loss on the maps at 16 x 16, back to the latents."""
    model = session.model
    x, cond = model.latents([0], 128, 128), model.embed([PROMPT])
    both = model.embed(["", PROMPT])
    sites = sites_of(model, Where("image->text", 16), (16, 16))

    def mean(call: Call) -> Tensor:
        return call.probs(("main", "cond")).mean(1)[..., 2]

    def once() -> None:
        with torch.enable_grad():
            start = x.clone().requires_grad_()
            maps = model.maps(start, 401.0, cond, sites, mean)
            torch.autograd.grad(1 - torch.stack(list(maps.values())).mean(0).amax(), start)

    @torch.no_grad()
    def predict() -> None:
        model.predict(x.repeat(2, 1, 1, 1), 401.0, both)

    return {
        "grad_pass_cost": session.ratio(
            lambda: [once() for _ in range(PASSES)], lambda: [predict() for _ in range(PASSES)]
        )
    }


def _above(model: Backbone, latents: Tensor, images: Tensor) -> Float[np.ndarray, " b"]:
    """dB above what the VAE alone makes of the images."""
    own = networks.reconstruct(model.vae, images)  # pyright: ignore[reportAttributeAccessIssue]
    with torch.no_grad():
        found = model.decode(latents.to(model.device)).cpu()
    return (psnr(found, images) - psnr(own, images)).double().numpy()


def _described(session: CoreSession, what: str, n: int) -> list[tuple[Tensor, list[str]]]:
    """Batches of fresh renders with captions."""
    rng = session.rng(what)
    scenes, images = fresh(rng, n, session.device)
    captions = [caption(s, rng) for s in scenes]
    return [(images[i : i + BATCH], captions[i : i + BATCH]) for i in range(0, n, BATCH)]


def inverting(key: str, kind: Callable[[], Inversion], scale: float) -> Callable[[CoreSession], Mapping[str, Figure]]:
    """PSNR of renders that are inverted and painted again."""

    def measure(session: CoreSession) -> Mapping[str, Figure]:
        began, out, how = time.perf_counter(), [], kind()
        for images, captions in _described(session, "ddim_invert_psnr", session.n):
            path = invert(session.model, images, captions, how)
            out.append(_above(session.model, reconstruct(session.model, path, scale), images))
        figure = np.concatenate(out)
        seconds = (time.perf_counter() - began) / session.n
        session.methods[type(how).__name__] = {"psnr_above_vae": float(figure.mean()), "seconds_per_image": seconds}
        return {key: figure}

    return measure


def null_text(session: CoreSession) -> Mapping[str, Figure]:
    """Quality, and time against the algorithm as published, which works image by image and keeps weights' gradients."""
    n = min(SLOW, session.n)
    ((images, captions),) = _described(session, "null_text_psnr", n)
    model, how = session.model, NullText(GUIDANCE, steps=STEPS)
    began = time.perf_counter()
    path = invert(model, images, captions, how)
    ours = time.perf_counter() - began
    began = time.perf_counter()
    for i in range(n):
        track = invert(model, images[i], captions[i], DDIMInversion(steps=STEPS)).track
        plain_null_text(model, track, captions[i])
    theirs = time.perf_counter() - began
    figure = _above(model, reconstruct(model, path, GUIDANCE), images)
    session.methods["NullText"] = {"psnr_above_vae": float(figure.mean()), "seconds_per_image": ours / n}
    return {"null_text_psnr": figure, "null_text_seconds": ours / theirs}


def plain_null_text(model: Any, track: Sequence[Tensor], prompt: str) -> list[Tensor]:
    """The published loop, straight: one image, both texts predicted again after a fit, the weights' gradients too."""
    levels = model.schedule.levels(STEPS)
    cond, text = model.embed([prompt]).text, model.embed([""]).text.clone()
    x, found = track[0], []

    def network(x: Tensor, text: Tensor, k: int) -> Tensor:
        return model.network(x, levels[k].t, encoder_hidden_states=text).sample

    def step(x: Tensor, eps: Tensor, k: int) -> Tensor:
        at, to = levels[k], levels[k + 1]
        return to.alpha * (x - at.sigma * eps) / at.alpha + to.sigma * eps

    model.network.requires_grad_(True)
    try:
        for k in range(STEPS):
            text = text.clone().detach().requires_grad_()
            adam = torch.optim.Adam([text], lr=1e-2 * (1 - k / 100))
            with torch.no_grad():
                prediction = network(x, cond, k)
            for _ in range(10):
                empty = network(x, text, k)
                loss = F.mse_loss(step(x, empty + GUIDANCE * (prediction - empty), k), track[k + 1])
                adam.zero_grad()
                loss.backward()
                adam.step()
                if loss.item() < 1e-5 + k * 2e-5:
                    break
            found.append(text.detach())
            with torch.no_grad():
                empty, again = network(torch.cat([x, x]), torch.cat([text, cond]), k).chunk(2)
                x = step(x, empty + GUIDANCE * (again - empty), k)
    finally:
        model.network.requires_grad_(False)
        model.network.zero_grad(set_to_none=True)
    return found


def prompt_to_prompt(session: CoreSession) -> Mapping[str, Figure]:
    """Edits of renders by counterfactuals' captions as ``sfumato edit`` writes them, beside SDEdit and no edit at all.

    ``as painted``: Prompt-to-Prompt's pictures before the unedited parts got their own pixels back.
    """
    rng, model = session.rng("p2p_success"), session.model
    edits = []
    for i in range(session.n):
        edits.append(change.sample_counterfactual(rng, ("recolour", "reshape")[i % 2], 1 + i // 2 % 2))
    before, after = change.render_pairs(edits, device=str(session.device))
    results: dict[str, list[Tensor]] = {"no edit": [], "PromptToPrompt": [], "as painted": [], "SDEdit": []}
    for i, edit in enumerate(edits):
        source, target = edit.captions
        assert isinstance(edit.change, change.Recolour | change.Reshape)
        kinds = [scene.things[edit.change.thing].kind for scene in (edit.before, edit.after)]
        path = invert(model, before[i], source, Direct(steps=STEPS))
        method = PromptToPrompt(blend=LocalBlend(kinds[0], kinds[1], threshold=BLEND))
        prompts = {"source": source, "target": target}
        fitted = fit(pictures.picture(before[i]), model.size, model.multiple)
        done = edit_pictures(model, [fitted], path, prompts, methods=[method], guide=EDITING)
        results["PromptToPrompt"].append(tensor(done.pictures[0]))
        results["as painted"].append(done.painted[0])
        noisy = invert(model, before[i], source, Noise(seed=i, steps=STEPS))
        results["SDEdit"].append(denoise(model, target, start=noisy, guide=EDITING).images[0])
        results["no edit"].append(before[i].cpu())
    kept = ~torch.stack([change.masks(e) for e in edits])
    figures: dict[str, dict[str, Figure]] = {}
    for name, found in results.items():
        painted = torch.stack(found)
        readings = session.oracle.read(painted)
        figures[name] = {
            "success": np.array([applied(r, e) for r, e in zip(readings, edits, strict=True)], float),
            "background_psnr": _finite(psnr(painted, before.cpu(), kept)),
            "psnr_to_truth": psnr(painted, after.cpu()).double().numpy(),
        }
        session.methods[name] = {k: float(np.mean(v)) for k, v in figures[name].items()}
        session.keep(name.replace(" ", "-"), painted[:64])
    session.keep("before", before[:64])
    session.keep("truth", after[:64])
    ours = figures["PromptToPrompt"]
    return {
        "p2p_success": ours["success"],
        "p2p_background_psnr": ours["background_psnr"],
        "p2p_psnr_to_truth": ours["psnr_to_truth"],
        "no_edit_psnr_to_truth": figures["no edit"]["psnr_to_truth"],
        "sdedit_psnr_to_truth": figures["SDEdit"]["psnr_to_truth"],
    }


def _finite(values: Tensor) -> Float[np.ndarray, " b"]:
    """Decibels, with identical images at 100 dB."""
    return values.double().clamp(max=100).numpy()


def attention(session: CoreSession) -> Mapping[str, Figure]:
    """Of one thing in each scene: maps of its kind's word halfway through the inversion of its render."""
    rng, model = session.rng("map_iou"), session.model
    found = []
    for at in range(0, session.n, BATCH):
        scenes = [sample_scene(rng, count=1) for _ in range(min(BATCH, session.n - at))]
        truth = render(scenes, device=session.device)
        captions = [change.captions.plain(s) for s in scenes]
        path = invert(model, truth.images, captions, DDIMInversion(steps=STEPS))
        maps = _maps(model, path.track[STEPS // 2], path.levels[STEPS // 2].t, captions)
        for i, scene in enumerate(scenes):
            words = dict(model.words(captions[i]))
            word = next(w for w in words if w.strip(",.") == scene.things[0].kind)
            map = maps[i][:, words[word]].sum(-1).view(1, 1, 16, 16)
            big = F.interpolate(map, truth.thing.shape[-2:], mode="bilinear")[0, 0]
            found.append(best_iou(big.cpu(), truth.thing[i].cpu() == 0))
    return {"map_iou": np.array(found)}


@torch.no_grad()
def _maps(model: Backbone, x: Tensor, t: Tensor, captions: list[str]) -> Float[Tensor, "b 256 77"]:
    sites = sites_of(model, Where("image->text", 16), (16, 16))
    maps = model.maps(x, t, model.embed(captions), sites, lambda call: call.probs(("main", "cond")).mean(1))
    return torch.stack(list(maps.values())).mean(0)


def best_iou(map: Float[Tensor, "h w"], mask: Bool[Tensor, "h w"]) -> float:
    """Intersection over union with the mask, at the threshold where it is greatest."""
    order = map.flatten().argsort(descending=True)
    inside = mask.flatten()[order].double().cumsum(0)
    union = torch.arange(1, len(order) + 1) + mask.sum() - inside
    return float((inside / union).max())


MEASURES: tuple[tuple[tuple[str, ...], Callable[[CoreSession], Mapping[str, Figure]]], ...] = (
    (("plain_vs_diffusers", "identity_tap_overhead", "capture_overhead"), speed),
    (("grad_pass_cost",), gradient),
    (("ddim_invert_psnr",), inverting("ddim_invert_psnr", lambda: DDIMInversion(steps=STEPS), 1.0)),
    (("null_text_psnr", "null_text_seconds"), null_text),
    (("direct_psnr",), inverting("direct_psnr", lambda: Direct(steps=STEPS), GUIDANCE)),
    (("edit_friendly_psnr",), inverting("edit_friendly_psnr", lambda: EditFriendly(GUIDANCE, steps=STEPS), GUIDANCE)),
    (("edict_psnr",), inverting("edict_psnr", lambda: EDICT(scale=GUIDANCE, steps=STEPS), GUIDANCE)),
    (
        (
            "p2p_success",
            "p2p_background_psnr",
            "p2p_psnr_to_truth",
            "no_edit_psnr_to_truth",
            "sdedit_psnr_to_truth",
        ),
        prompt_to_prompt,
    ),
    (("map_iou",), attention),
)
