"""``sfumato bench control``: are all things there, have they their own colours, do they stand where they should?

Prompts name two or three things of different kinds and colours; layouts are those of renders, with things where a
camera would see them. The oracle reads what was painted. All methods start from the same noise.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.bench.generate import fresh
from sfumato.bench.report import Comparison, Figure, Report, Target, gather
from sfumato.bench.session import Session
from sfumato.bench.units import Row, Units, columns, timed
from sfumato.core.choice import choose as sites_of
from sfumato.core.choice import nearest_side
from sfumato.core.denoising import denoise
from sfumato.core.method import Method
from sfumato.io.device import choose
from sfumato.io.progress import progress
from sfumato.methods.control import (
    AttendAndExcite,
    DenseDiffusion,
    LinguisticBinding,
    RegionPrompts,
    SelfAttentionGuidance,
    SpaText,
    StructuredDiffusion,
)
from sfumato.methods.control.attend_and_excite import AUTHORS
from sfumato.methods.perceive.clip_patches import ClipPatches
from sfumato.prompts.layout import Box, Layout, Mask, Region
from sfumato.stilllife.captions import Said, SaidThing
from sfumato.stilllife.kinds import TRAINED
from sfumato.stilllife.oracle import Reading, matches
from sfumato.stilllife.render import render
from sfumato.stilllife.scene import COLOURS, GROUNDS, sample_scene
from sfumato.tasks import recipes
from sfumato.tasks import train_head as task
from sfumato.tasks.recipes import find

STEPS, GUIDANCE = 30, 7.5
SIDE = 128
BATCH = 4  # images at once beside diffusers' pipeline
PLACED = ("present", "bound", "inside", "layout_iou", "inside_by_colour", "iou_by_colour")
SCENES = 480  # of which SpaText learns
INSIDE = 0.6
"""Part of a thing's pixels that must lie in its box."""

MEANINGS = {
    "plain_present": "two or three things: all kinds are there, no method",
    "plain_bound": "and each has its own colour",
    "attend_excite_repaired": "of plain's failures those that Attend-and-Excite repairs; the less of both",
    "attend_excite_present": "all kinds are there, with it",
    "attend_excite_bound": "and each has its own colour",
    "attend_excite_vs_diffusers_time": f"its time over that of diffusers' pipeline on the same, in batches of {BATCH}",
    "attend_excite_vs_diffusers_present": "kinds there, ours less theirs, same seeds",
    "plain_inside": "layouts: things of the right kind inside their boxes, no method told of them",
    "layout_best_inside": "the same, of the best layout method that needs no training",
    "spatext_inside": f"the same, of SpaText, which learned of {SCENES} scenes",
    "spatext_over_region_prompts": "things inside their boxes, by SpaText less by region prompts, same seeds",
}
TARGETS = {
    "attend_excite_repaired": Target(0.5),
    "attend_excite_vs_diffusers_time": Target(0.6, at_least=False),
    "attend_excite_vs_diffusers_present": Target(0.0),
    "layout_best_inside": Target(0.8),
    "spatext_over_region_prompts": Target(0.0),
}


@dataclass(frozen=True)
class Prompt:
    """What is asked for: things, and in a layout where each should be."""

    things: tuple[SaidThing, ...]
    seed: int
    ground: str
    boxes: tuple[Box, ...] = ()

    @cached_property
    def words(self) -> str:
        return f"{' and '.join(t.phrase() for t in self.things)} on {self.ground}"

    @cached_property
    def layout(self) -> Layout:
        """With phrases of the prompt."""
        return Layout(tuple(Region(f"{t.colour} {t.kind}", b) for t, b in zip(self.things, self.boxes, strict=True)))

    @cached_property
    def own_words(self) -> Layout:
        """With a prompt for each region."""
        sentences = (f"{t.phrase()} on {self.ground}" for t in self.things)
        return Layout(tuple(Region(s, b) for s, b in zip(sentences, self.boxes, strict=True)))


@dataclass(frozen=True)
class Asked:
    """How a method paints a prompt."""

    methods: Sequence[Method] = ()


Runner = Callable[[Prompt], Asked]


def _with(*methods: Method) -> Runner:
    return lambda prompt: Asked(methods)


def _placing(method: Any) -> Runner:
    """A layout method with the prompt's own layout."""
    return lambda prompt: Asked((replace(method, layout=prompt.layout),))


def _regions(prompt: Prompt) -> RegionPrompts:
    """Each region reads a prompt of its own, what is around them one of the ground."""
    return replace(find("region-prompts").method, layout=prompt.own_words, background=f"on {prompt.ground}")


def _beside_regions(method: Any) -> Runner:
    return lambda prompt: Asked((_regions(prompt), replace(method, layout=prompt.layout)))


ATTRIBUTES: dict[str, Runner] = {
    "plain": _with(),
    "attend and excite": lambda prompt: Asked((AttendAndExcite(tuple(t.kind for t in prompt.things)),)),
    "structured diffusion": _with(StructuredDiffusion()),
    "linguistic binding": _with(LinguisticBinding()),
    "self-attention guidance": _with(SelfAttentionGuidance()),
    "perturbed attention": _with(find("perturbed-attention").method),
    "smoothed energy": _with(find("smoothed-energy").method),
    "LLM-grounded, own layout": _with(find("llm-grounded").method),
}
LEARNED, BESIDE = "SpaText", "region prompts"
LAYOUTS: dict[str, Runner] = {
    "plain": _with(),
    "dense diffusion": _placing(DenseDiffusion()),
    "layout guidance": _placing(find("layout-guidance").method),
    "BoxDiff": _placing(find("box-diff").method),
    "LLM-grounded": _placing(find("llm-grounded").method),
    BESIDE: lambda prompt: Asked((_regions(prompt),)),
    "region prompts + layout guidance": _beside_regions(find("layout-guidance").method),
    "region prompts + BoxDiff": _beside_regions(find("box-diff").method),
}
"""Each as it suits the built-in model best."""


@dataclass
class ControlSession(Session):
    @cached_property
    def units(self) -> Units:
        return Units(None if self.out is None else self.out / "control-units.jsonl")

    @cached_property
    def spatext(self) -> Path:
        """What SpaText paints by: a head that learns once, and goes on where it was stopped, where anything is kept."""
        method = recipes.teaching("spatext", "stilllife")
        unit = f"SpaText of {SCENES} scenes, {method!r}"
        file = self.units.beside(unit, ".safetensors") or Path(self.scratch.name) / "spatext.safetensors"
        if not file.exists():
            seen = task.still_lifes(str(SCENES), self.model.size, method.seed, apart=True)
            so_far = file.with_suffix(".run.safetensors")
            task.train_head(self.model, seen, method, ClipPatches(), keep=so_far).save(file)
            so_far.unlink(missing_ok=True)
        return file

    @cached_property
    def scratch(self) -> TemporaryDirectory[str]:
        return TemporaryDirectory()


def run(n: int, seed: int, device: str = "auto", out: Path | None = None) -> Report:
    """Measure everything. With ``out``, what was measured is kept there, and not measured again."""
    session = ControlSession(n, seed, choose(device), out)
    report = Report("control", n, seed, str(session.device), MEANINGS, TARGETS)
    return gather(report, MEASURES, session, out)


def prompts(session: ControlSession) -> list[Prompt]:
    """Two things, every third time three, of different kinds and colours."""
    out = []
    for i in range(session.n):
        rng = session.stream(3, i)
        count = 3 if i % 3 == 2 else 2
        kinds = rng.choice(np.array(TRAINED, dtype=object), count, replace=False)
        colours = rng.choice(np.array(COLOURS, dtype=object), count, replace=False)
        ground = str(rng.choice(GROUNDS))
        out.append(Prompt(tuple(map(SaidThing, kinds, colours)), int(rng.integers(2**30)), ground))
    return out


def layouts(session: ControlSession) -> list[Prompt]:
    """Two things where a render has them: neither hidden, nor so small that its box says nothing."""
    out = []
    for i in range(session.n):
        rng = session.stream(4, i)
        while len(out) == i:
            scene = sample_scene(rng, count=2)
            if len({t.kind for t in scene.things}) < 2 or len({t.colour for t in scene.things}) < 2:
                continue
            label = render([scene], device=session.device).thing[0].cpu()
            boxes = [_box(label == k) for k in range(2)]
            if any(b is None for b in boxes):
                continue
            things = tuple(SaidThing(t.kind, t.colour) for t in scene.things)
            seen = tuple(b for b in boxes if b is not None)
            out.append(Prompt(things, int(rng.integers(2**30)), scene.ground, seen))
    return out


def _box(mask: Tensor) -> Box | None:
    """Around a thing's pixels; None for a thing under a fortieth of the image."""
    if mask.float().mean() < 1 / 40:
        return None
    return Layout((Region("thing", mask=Mask(mask)),)).boxes()[0]


def paint(session: ControlSession, prompt: Prompt, asked: Asked) -> tuple[Float[Tensor, "3 h w"], dict[str, float]]:
    options = {"methods": asked.methods, "guide": GUIDANCE, "steps": STEPS, "seed": prompt.seed}
    return timed(lambda: denoise(session.model, prompt.words, **options).images[0], session.device)


def judged(reading: Reading, prompt: Prompt) -> Row:
    """``present``: each kind is among the things; ``bound``: exactly these things, with their colours."""
    kinds = [t.kind for t in reading.things]
    row: Row = {
        "present": float(all(t.kind in kinds for t in prompt.things)),
        "bound": float(matches(reading, Said(prompt.things))["things"] is True),
    }
    if prompt.boxes:
        for which, inside, iou in (("kind", "inside", "layout_iou"), ("colour", "inside_by_colour", "iou_by_colour")):
            placed = [_placed(reading, which, t, box) for t, box in zip(prompt.things, prompt.boxes, strict=True)]
            row |= {inside: float(np.mean([p[0] for p in placed])), iou: float(np.mean([p[1] for p in placed]))}
    return row


def _placed(reading: Reading, which: str, stated: SaidThing, box: Box) -> tuple[bool, float]:
    """Does a thing of this kind (or colour) lie in the box, and how well does its own box agree? Of several, best."""
    h, w = reading.mask.shape
    sides = (box[0] * w, box[1] * h, box[2] * w, box[3] * h)
    left, top, right, bottom = (round(v) for v in sides)
    best = (False, 0.0)
    for k, seen in enumerate(reading.things):
        if getattr(seen, which) == getattr(stated, which):
            within = (reading.mask[top:bottom, left:right] == k + 1).sum() / max(1, (reading.mask == k + 1).sum())
            best = max(best, (bool(within >= INSIDE), _iou(seen.box, sides)))
    return best


def _iou(a: Sequence[float], b: Sequence[float]) -> float:
    width, height = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    both = max(0.0, width) * max(0.0, height)
    return both / (sum((s[2] - s[0]) * (s[3] - s[1]) for s in (a, b)) - both)


def _compared(
    session: ControlSession, what: str, asked: Sequence[Prompt], runners: Mapping[str, Runner], keys: Sequence[str]
) -> dict[str, dict[str, Row]]:
    """Rows of every method on every prompt; their images' likeness to renders and to each other in ``methods``."""
    found: dict[str, dict[str, Row]] = {name: {} for name in runners}
    images: dict[str, list[Tensor]] = {name: [] for name in runners}
    with progress(f"bench: {what}", len(asked) * len(runners)) as advance:
        for i, prompt in enumerate(asked):
            for name, runner in runners.items():
                how = runner(prompt)

                def measure(prompt: Prompt = prompt, how: Asked = how) -> tuple[Row, Tensor]:
                    image, cost = paint(session, prompt, how)
                    (reading,) = session.oracle.read(image[None])
                    return {**judged(reading, prompt), **cost}, image

                own = repr(how).replace(f"{session.out}{os.sep}", "")  # a head that lies there
                unit = f"{session.seed} {what} {i} {name} {STEPS} {GUIDANCE:g} {prompt.words!r} {own}"
                found[name][f"{what} {i}"], image = session.units.get(unit, measure)
                images[name].append(image)
                advance()
    for name, rows in found.items():
        noted = {key: float(np.mean(columns(rows, key))) for key in (*keys, "seconds", "peak_mb")}
        noted["time over plain"] = noted["seconds"] / float(np.mean(columns(found["plain"], "seconds")))
        if len(images[name]) > 1:
            noted |= _quality(session, torch.stack(images[name]))
        session.keep(f"{what}-{name}".replace(" ", "-"), torch.stack(images[name])[:64])
        session.methods[f"{what}: {name}"] = noted
    session.compared[what] = Comparison((*keys, "seconds", "peak_mb"), found)
    return found


def _quality(session: ControlSession, images: Float[Tensor, "n 3 h w"]) -> dict[str, float]:
    """Of a method's images: Frechet distance to as many renders, and mean distance of pairs (1 - cosine), by CLIP."""
    from sfumato.metrics.clip import clip_features, frechet

    _, renders = fresh(session.stream(5), len(images), session.device)
    features = clip_features(images, session.clip)
    unit = torch.nn.functional.normalize(features, dim=-1)
    n = len(images)
    distance = 1 - (unit @ unit.T).triu(1).sum() / (n * (n - 1) / 2)
    return {"frechet_clip": frechet(features, clip_features(renders, session.clip)), "pair_distance": float(distance)}


def attributes(session: ControlSession) -> Mapping[str, Figure]:
    """Prompts without layouts."""
    found = _compared(session, "things", prompts(session), ATTRIBUTES, ("present", "bound"))
    plain, excited = found["plain"], found["attend and excite"]
    repaired = []
    for key in ("present", "bound"):
        failed = [unit for unit, row in plain.items() if not row[key]]
        repaired.append(float(np.mean([excited[unit][key] or 0.0 for unit in failed])) if failed else 1.0)
        session.methods["things: attend and excite"][f"repaired_{key}"] = repaired[-1]
        kept = [unit for unit, row in plain.items() if row[key]]
        broken = float(np.mean([not excited[unit][key] for unit in kept])) if kept else 0.0
        session.methods["things: attend and excite"][f"broken_{key}"] = broken
    figures: dict[str, Figure] = {"attend_excite_repaired": min(repaired)}
    for name, rows in (("plain", plain), ("attend_excite", excited)):
        figures |= {f"{name}_{key}": np.array(columns(rows, key)) for key in ("present", "bound")}
    return figures


def beside_diffusers(session: ControlSession) -> Mapping[str, Figure]:
    """Attend-and-Excite against diffusers' pipeline: the same weights, noise, words, settings and maps, in batches."""
    from diffusers import StableDiffusionAttendAndExcitePipeline as Theirs

    model = cast("Any", session.model)
    parts = {
        k: v
        for k, v in model.pipe.components.items()
        if k not in ("safety_checker", "feature_extractor", "image_encoder")
    }
    pipe = cast("Any", Theirs)(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    # diffusers reads the maps of one grid alone, and of no other size than the latents divide into
    grid = (SIDE // model.factor, SIDE // model.factor)
    side = nearest_side(sites_of(model, "image->text", grid), grid, AUTHORS.res)

    def ours(prompts: Sequence[Prompt]) -> Tensor:
        kinds = tuple(dict.fromkeys(t.kind for p in prompts for t in p.things))
        noise = model.latents([p.seed for p in prompts], SIDE, SIDE)
        options = {"methods": [replace(AUTHORS, words=kinds)], "guide": GUIDANCE, "steps": STEPS, "start": noise}
        return denoise(model, [p.words for p in prompts], **options).images

    def theirs(prompts: Sequence[Prompt]) -> Tensor:
        at = [
            [span.start for word, span in model.words(p.words) if word.strip(",.") in {t.kind for t in p.things}]
            for p in prompts
        ]
        return pipe(
            [p.words for p in prompts], at, latents=model.latents([p.seed for p in prompts], SIDE, SIDE),
            guidance_scale=GUIDANCE, num_inference_steps=STEPS, max_iter_to_alter=STEPS // 2,
            thresholds={0: 0.05, STEPS // 5: 0.5, 2 * STEPS // 5: 0.8}, attn_res=(side, side), output_type="pt",
        ).images.float().cpu()  # fmt: skip

    asked, both = prompts(session)[: 2 * BATCH], {"ours": ours, "theirs": theirs}
    seconds = {name: 0.0 for name in both} | {f"{name}, one by one": 0.0 for name in both}
    present: dict[str, list[float]] = {name: [] for name in both}
    turns = [(i, BATCH) for i in range(0, len(asked), BATCH)] + [(i, 1) for i in range(len(asked[:BATCH]))]
    with progress("bench: beside diffusers", len(both) * (len(asked) + len(asked[:BATCH]))) as advance:
        for i, size in turns:
            batch = asked[i : i + size]
            for name, work in both.items():
                with torch.enable_grad() if name == "theirs" else torch.no_grad():
                    images, cost = timed(lambda work=work, batch=batch: work(batch), session.device)
                seconds[name if size > 1 else f"{name}, one by one"] += cost["seconds"]
                if size > 1:
                    read = session.oracle.read(images)
                    present[name] += [judged(r, p)["present"] or 0.0 for r, p in zip(read, batch, strict=True)]
                advance(len(batch))
    row = {f"seconds, {k}": v for k, v in seconds.items()}
    row |= {f"present, {k}": float(np.mean(v)) for k, v in present.items()}
    row["time, one by one"] = seconds["ours, one by one"] / seconds["theirs, one by one"]
    session.methods["Attend-and-Excite beside diffusers"] = row
    return {
        "attend_excite_vs_diffusers_time": seconds["ours"] / seconds["theirs"],
        "attend_excite_vs_diffusers_present": np.array(present["ours"]) - np.array(present["theirs"]),
    }


def placing(session: ControlSession) -> Mapping[str, Figure]:
    """Prompts with layouts."""
    learned: dict[str, Runner] = {LEARNED: lambda prompt: Asked((SpaText(prompt.layout, session.spatext),))}
    found = _compared(session, "layout", layouts(session), {**LAYOUTS, **learned}, PLACED)
    inside = {name: np.array(columns(rows, "inside")) for name, rows in found.items()}
    best = max((name for name in LAYOUTS if name != "plain"), key=lambda name: np.mean(inside[name]))
    session.methods[f"layout: {best}"]["best"] = 1.0
    return {
        "plain_inside": inside["plain"],
        "layout_best_inside": inside[best],
        "spatext_inside": inside[LEARNED],
        "spatext_over_region_prompts": inside[LEARNED] - inside[BESIDE],
    }


MEASURES: tuple[tuple[tuple[str, ...], Callable[[ControlSession], Mapping[str, Figure]]], ...] = (
    (
        ("plain_present", "plain_bound", "attend_excite_repaired", "attend_excite_present", "attend_excite_bound"),
        attributes,
    ),
    (("attend_excite_vs_diffusers_time", "attend_excite_vs_diffusers_present"), beside_diffusers),
    (("plain_inside", "layout_best_inside", "spatext_inside", "spatext_over_region_prompts"), placing),
)
