"""``sfumato bench edit``: every editing method on the same renders, judged by what the edits should have been.

A case is a render and its counterfactual: the same scene with one thing changed. An edit is asked for by the captions
of both, painted, read by the oracle and compared with the counterfactual's own render. Seven kinds of change, in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.bench.generate import applied
from sfumato.bench.report import Comparison, Figure, Report, Target, gather
from sfumato.bench.session import Session
from sfumato.bench.units import Row, Units, columns, timed
from sfumato.core.denoising import denoise
from sfumato.core.method import Method
from sfumato.errors import SfumatoError
from sfumato.inversion import Direct, Inversion, invert
from sfumato.inversion import Path as Track
from sfumato.io.device import choose
from sfumato.io.progress import progress
from sfumato.media import pictures
from sfumato.media.images import fit, tensor
from sfumato.methods.edit import (
    BlendedLatents,
    CrossImageAttention,
    EyeForAnEye,
    KVEdit,
    LocalBlend,
    PromptToPrompt,
    SDEdit,
)
from sfumato.methods.edit.appearance import START, transfer
from sfumato.metrics.image import psnr
from sfumato.prompts.layout import Mask
from sfumato.stilllife import change
from sfumato.stilllife.captions import Said, SaidThing
from sfumato.stilllife.kinds import KINDS as THINGS
from sfumato.stilllife.oracle import Reading, matches
from sfumato.stilllife.render import render
from sfumato.stilllife.scene import Scene, sample_scene, view
from sfumato.tasks.edit import edit_pictures
from sfumato.tasks.recipes import BLEND, EDITING, find
from sfumato.tasks.starts import start_of

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

STEPS = 30
KINDS: dict[str, tuple[str, ...]] = {
    "recolour": ("recolour",),
    "reshape": ("reshape",),
    "material": ("material",),
    "ground or light": ("ground", "light"),
    "style": ("style",),
    "add": ("add",),
    "turn": ("turn",),
}
ENOUGH = 0.7
"""Success at which a kind of edit counts as done."""
BASELINES = ("no edit", "reconstruct", "SDEdit 0.4", "SDEdit 0.6", "SDEdit 0.8", "InstructPix2Pix")
KEYS = ("success", "psnr_to_truth", "background_psnr", "structure", "clip_direction", "seconds", "peak_mb")

MEANINGS = {
    "kinds_success": f"of {len(KINDS)} kinds of edit, those whose best method is read as asked {ENOUGH:g} of the time",
    "kinds_truth": "those whose best method is nearer to the counterfactual (dB) than no edit and every SDEdit",
    "appearance_success": "appearance transfer: colour and material of the reference on the thing of the picture",
    "appearance_iou": "the same: the thing's mask against what it was",
    "injection_overhead": "time of painting with injected attention over that without, same batch; the worst method",
}
TARGETS = {
    "kinds_success": Target(5),
    "kinds_truth": Target(5),
    "appearance_success": Target(0.6),
    "appearance_iou": Target(0.7),
    "injection_overhead": Target(1.15, at_least=False),
}


@dataclass(frozen=True, eq=False)
class Case:
    """One edit that is asked for, and what it should be."""

    kind: str
    edit: change.Counterfactual
    before: Float[Tensor, "3 h w"]
    after: Float[Tensor, "3 h w"]
    seed: int
    tracks: dict[str, tuple[Track, dict[str, float]]] = field(default_factory=dict)

    @property
    def source(self) -> str:
        return self.edit.captions[0]

    @property
    def target(self) -> str:
        return self.edit.captions[1]

    @cached_property
    def kept(self) -> Tensor:
        """Pixels that the change does not touch."""
        return ~change.masks(self.edit, self.before.shape[-1])

    @cached_property
    def things(self) -> Tensor:
        """The counterfactual's things: 0 for none, else 1 and more."""
        return render([self.edit.after]).thing[0].cpu() + 1

    def nouns(self) -> tuple[str, str]:
        """The word for the changed thing before and after; ``SfumatoError`` where the change is of no single thing."""
        at = getattr(self.edit.change, "thing", None)
        if not isinstance(at, int):
            raise SfumatoError("this change is of the whole picture")
        return self.edit.before.things[at].kind, self.edit.after.things[at].kind


@dataclass(frozen=True)
class Asked:
    """How a method is run on a case."""

    start: Inversion
    methods: Sequence[Method] = ()
    guidance: float | None = None
    prompts: Mapping[str, str] | None = None
    model: str = "stilllife"


Runner = Callable[[Case], Asked]

INSTRUCTING = find("instruct-pix2pix", "stilllife-instruct")


def _inverted(case: Case, word: str = "prompt-to-prompt") -> Inversion:
    """What suits a method without an inversion of its own."""
    return start_of(find(word).start, STEPS, EDITING, case.seed)


def _holding(word: str) -> Runner:
    """A method that takes from the source's own stream."""
    return lambda case: Asked(_inverted(case, word), (find(word).method,), find(word).guidance)


def _starting(word: str) -> Runner:
    """A method that starts from the picture in a way of its own."""
    return lambda case: Asked(replace(find(word).method, steps=STEPS, seed=case.seed), (), find(word).guidance)


def _noising(strength: float) -> Runner:
    return lambda case: Asked(SDEdit(strength, steps=STEPS, seed=case.seed), (), EDITING)


def _prompt_to_prompt(case: Case) -> Asked:
    """Where the change is of one thing, only that may change; of the whole picture, all of it."""
    local = hasattr(case.edit.change, "thing") and case.kind != "add"
    blend = LocalBlend(*case.nouns(), threshold=BLEND) if local else None
    return Asked(_inverted(case), [PromptToPrompt(blend=blend)], EDITING)


def _instructed(case: Case) -> Asked:
    start = replace(INSTRUCTING.method, steps=STEPS, seed=case.seed)
    return Asked(start, (), INSTRUCTING.guidance, {"target": case.edit.instruction}, INSTRUCTING.model)


def _told_where(case: Case) -> Mask:
    """Blended latents and KV-Edit are given the place: the pixels that the change may touch."""
    if case.kept.sum() == 0:
        raise SfumatoError("this change is of the whole picture")
    return Mask(~case.kept)


def _kv_edit(case: Case) -> KVEdit:
    return replace(find("kv-edit").method, mask=_told_where(case), seed=case.seed, steps=STEPS)


def _ledits(case: Case) -> Asked:
    start = replace(find("ledits").method, remove=(case.source,), steps=STEPS, seed=case.seed)
    return Asked(start, (), None, {"source": case.source, "target": case.target})


RUNNERS: dict[str, Runner] = {
    **{f"SDEdit {s:g}": _noising(s) for s in (0.4, 0.6, 0.8)},
    "InstructPix2Pix": _instructed,
    "Prompt-to-Prompt": _prompt_to_prompt,
    "MasaCtrl": _holding("masactrl"),
    "Plug-and-Play": _holding("plug-and-play"),
    "DiffEdit": _starting("diff-edit"),
    "LEDITS++": _ledits,
    "FlowEdit": _starting("flow-edit"),
    "delta denoising": lambda case: Asked(replace(find("delta-denoising").method, seed=case.seed), (), EDITING),
    "blended latents, told where": lambda case: Asked(
        BlendedLatents(_told_where(case), seed=case.seed, steps=STEPS), (), EDITING
    ),
    "KV-Edit, told where": lambda case: Asked(_kv_edit(case)),
    "KV-Edit + Prompt-to-Prompt, told where": lambda case: Asked(_kv_edit(case), [PromptToPrompt(self=0.0)]),
}
"""Each as it suits the built-in model best."""


@dataclass
class EditSession(Session):
    @cached_property
    def units(self) -> Units:
        return Units(None if self.out is None else self.out / "edit-units.jsonl")


def run(n: int, seed: int, device: str = "auto", out: Path | None = None) -> Report:
    """Measure everything. With ``out``, what was measured is kept there, and not measured again."""
    session = EditSession(n, seed, choose(device), out)
    report = Report("edit", n, seed, str(session.device), MEANINGS, TARGETS)
    return gather(report, MEASURES, session, out)


def cases(session: EditSession) -> list[Case]:
    """The kinds in turn, in scenes of one thing and of two."""
    edits, kinds = [], list(KINDS)
    for i in range(session.n):
        kind, turn = kinds[i % len(kinds)], i // len(kinds)
        op = KINDS[kind][turn % len(KINDS[kind])]
        edits.append(_drawn(session.stream(2, i), op, 1 + turn % 2))
    before, after = change.render_pairs(edits, device=str(session.device))
    shown = zip(edits, before.cpu(), after.cpu(), strict=True)
    return [Case(kinds[i % len(kinds)], e, b, a, session.seed + i) for i, (e, b, a) in enumerate(shown)]


def _drawn(rng: np.random.Generator, op: str, count: int) -> change.Counterfactual:
    """A change that the oracle can see: a turn is from the front to the back or the other way, of what has a face."""
    while True:
        edit = change.sample_counterfactual(rng, op, count)
        if not isinstance(edit.change, change.Turn):
            return edit
        at = edit.change.thing
        views = {view(scene, at) for scene in (edit.before, edit.after)}
        if views == {"front", "back"} and THINGS[edit.before.things[at].kind].mark is not None:
            return edit


def success(reading: Reading, edit: change.Counterfactual) -> bool:
    """Does the oracle see the scene after the change, in all that the change is about?"""
    if isinstance(edit.change, change.Turn):
        after, at = edit.after, edit.change.thing
        stated = [
            SaidThing(t.kind, t.colour, view=view(after, i) if i == at else None) for i, t in enumerate(after.things)
        ]
        verdicts = matches(reading, Said(tuple(stated)))
        return verdicts["things"] is True and verdicts["view"] is True
    return applied(reading, edit)


def painted(session: EditSession, case: Case, asked: Asked) -> tuple[Tensor, dict[str, float]]:
    """The picture that an edit came to, as ``sfumato edit`` writes it, with seconds and peak memory of all of it."""
    model = session.named(asked.model)
    key = f"{asked.model} {asked.start!r}"
    if key not in case.tracks:
        case.tracks[key] = timed(lambda: invert(model, case.before, case.source, asked.start), session.device)
    track, cost = case.tracks[key]
    prompts = dict(asked.prompts or {"source": case.source, "target": case.target})
    guide = asked.start.guide(model, asked.guidance)

    fitted = fit(pictures.picture(case.before), model.size, model.multiple)

    def paint() -> Tensor:
        options = {"methods": asked.methods, "guide": guide, "seed": case.seed}
        return tensor(edit_pictures(model, [fitted], track, prompts, **options).pictures[0])

    image, more = timed(paint, session.device)
    return image, {"seconds": cost["seconds"] + more["seconds"], "peak_mb": max(cost["peak_mb"], more["peak_mb"])}


def judged(session: EditSession, case: Case, image: Float[Tensor, "3 h w"]) -> Row:
    """What an edited picture is worth."""
    (reading,) = session.oracle.read(image[None])
    return {
        "success": float(success(reading, case.edit)),
        "psnr_to_truth": float(psnr(image[None], case.after[None])),
        "background_psnr": _background(image, case),
        "structure": structure(reading, case.things),
        "clip_direction": _direction(session, image, case),
    }


def _background(image: Tensor, case: Case) -> float | None:
    """dB outside of what may change; untouched pixels count as 100. None where all may."""
    if not case.kept.any():
        return None
    return min(100.0, float(psnr(image[None], case.before[None], case.kept[None])))


def structure(reading: Reading, things: Tensor) -> float:
    """Intersection over union of the counterfactual's things with what was read best in their places, their mean."""
    seen, out = torch.from_numpy(reading.mask.astype(np.int64)), []
    for i in range(1, int(things.max()) + 1):
        truth = things == i
        if not truth.any():
            continue
        found = [((seen == j) & truth).sum() / ((seen == j) | truth).sum() for j in range(1, int(seen.max()) + 1)]
        out.append(max((float(f) for f in found), default=0.0))
    return float(np.mean(out)) if out else 0.0


@torch.no_grad()
def _direction(session: EditSession, image: Tensor, case: Case) -> float:
    """Cosine of the change of the image and the change of the words, as CLIP sees them (Gal et al. 2022)."""
    from sfumato.metrics.clip import clip_features, text_features

    features = clip_features(torch.stack([case.before, image]), session.clip)
    words = text_features([case.source, case.target], session.clip, session.tokenizer).float()
    a, b = (torch.nn.functional.normalize(f, dim=-1) for f in (features, words))
    if torch.equal(features[0], features[1]):
        return 0.0
    return float(torch.nn.functional.cosine_similarity(a[1] - a[0], b[1] - b[0], dim=0))


def editing(session: EditSession) -> Mapping[str, Figure]:
    """All methods on all cases."""
    found: dict[str, dict[str, Row]] = {name: {} for name in (*BASELINES[:2], *RUNNERS)}
    shown: dict[str, dict[int, Tensor]] = {name: {} for name in found}
    all_cases = cases(session)
    with progress("bench: edit", session.n * len(found)) as advance:
        for i, case in enumerate(all_cases):
            for name in found:
                if done := _painted(session, name, i, case):
                    found[name][f"{case.kind} {i}"], shown[name][i] = done
                advance()
            case.tracks.clear()
    if session.out is not None:
        for at in range(0, session.n, len(KINDS)):
            some = range(at, min(at + len(KINDS), session.n))
            sheet = _side_by_side([all_cases[i] for i in some], [{n: shown[n].get(i) for n in RUNNERS} for i in some])
            pictures.write(sheet, session.out / f"edits-{at // len(KINDS)}.png")
    session.compared["edit"] = Comparison(KEYS, found)
    session.methods |= {name: _means(rows) for name, rows in found.items() if rows}
    return {"kinds_success": _kinds_success(found), "kinds_truth": _kinds_truth(found)}


def _side_by_side(some: Sequence[Case], painted: Sequence[Mapping[str, Tensor | None]]) -> Picture:
    """A row a case: the picture, what it should become, and what the methods made of it; blank where one does not."""
    images, labels = [], []
    for case, by in zip(some, painted, strict=True):
        row = {f"{case.kind}": case.before, "truth": case.after, **by}
        images += [pictures.picture(torch.ones_like(case.before) if x is None else x) for x in row.values()]
        labels += [name.removesuffix(", told where").replace("Prompt-to-Prompt", "P2P") for name in row]
    return pictures.labelled(images, labels, len(images) // len(some))


def _painted(session: EditSession, name: str, i: int, case: Case) -> tuple[Row, Tensor] | None:
    """Figures and picture of one method on one case; None where it does not serve this kind of change."""
    if name == "no edit":
        return session.units.get(
            f"{session.seed} {i} {name}", lambda: (judged(session, case, case.before), case.before)
        )
    if name == "reconstruct":
        asked = Asked(Direct(steps=STEPS), (), 1.0, {"source": case.source, "target": case.source})
    else:
        try:
            asked = RUNNERS[name](case)
        except SfumatoError:
            return None

    def measure() -> tuple[Row, Tensor]:
        image, cost = painted(session, case, asked)
        return {**judged(session, case, image), **cost}, image

    return session.units.get(f"{session.seed} {i} {name} {STEPS} {asked!r}", measure)


def _means(rows: Mapping[str, Row]) -> dict[str, float]:
    """Each figure's mean; and the success and the distance to the truth of each kind."""
    out = {key: float(np.mean(found)) for key in KEYS if (found := columns(rows, key))}
    for kind in KINDS:
        mine = {unit: row for unit, row in rows.items() if unit.startswith(f"{kind} ")}
        for key in ("success", "psnr_to_truth"):
            if found := columns(mine, key):
                out[f"{key}, {kind}"] = float(np.mean(found))
    return out


def _best(found: Mapping[str, Mapping[str, Row]], kind: str, key: str, names: Sequence[str]) -> float:
    """The greatest mean of a figure among some methods, on one kind of change."""
    means = [
        np.mean(columns({u: r for u, r in found[name].items() if u.startswith(f"{kind} ")}, key))
        for name in names
        if any(u.startswith(f"{kind} ") for u in found[name])
    ]
    return float(max(means, default=-np.inf))


def _ours(found: Mapping[str, Any]) -> list[str]:
    return [name for name in found if name not in BASELINES]


def _seen(found: Mapping[str, Mapping[str, Row]]) -> list[str]:
    """The kinds of which there are cases; a small bench has not all."""
    return [kind for kind in KINDS if any(u.startswith(f"{kind} ") for u in found["no edit"])]


def _kinds_success(found: Mapping[str, Mapping[str, Row]]) -> float:
    return float(sum(_best(found, kind, "success", _ours(found)) >= ENOUGH for kind in _seen(found)))


def _kinds_truth(found: Mapping[str, Mapping[str, Row]]) -> float:
    plain = [name for name in BASELINES if name == "no edit" or name.startswith("SDEdit")]
    ours, key = _ours(found), "psnr_to_truth"
    return float(sum(_best(found, kind, key, ours) > _best(found, kind, key, plain) for kind in _seen(found)))


def transferring(session: EditSession) -> Mapping[str, Figure]:
    """One thing in the looks of another: has it their colour and material, and is it still where and what it was?"""
    pairs = [_two_looks(session.stream(6, i)) for i in range(session.n)]
    found: dict[str, dict[str, Row]] = {name: {} for name in TRANSFERS}
    shown: dict[str, list[Tensor]] = {name: [] for name in ("picture", "looks", *TRANSFERS)}
    with progress("bench: appearance", len(pairs) * len(TRANSFERS)) as advance:
        for i, (picture, looks) in enumerate(pairs):
            truth = render([picture, looks], device=session.device)
            for name, image in zip(("picture", "looks"), truth.images.cpu(), strict=True):
                shown[name].append(image)
            for name, method in TRANSFERS.items():
                how = method(picture, looks)
                unit = f"{session.seed} appearance {i} {name} {how!r}"

                def measure(how: Method = how, truth: Any = truth, looks: Scene = looks) -> tuple[Row, Tensor]:
                    return _transferred(session, how, truth, looks)

                found[name][f"appearance {i}"], image = session.units.get(unit, measure)
                shown[name].append(image)
                advance()
    for name, images in shown.items():
        session.keep(f"appearance-{name}".replace(" ", "-"), torch.stack(images)[:64], 7)
    keys = ("success", "structure", "seconds", "peak_mb")
    session.compared["appearance"] = Comparison(keys, found)
    for name, rows in found.items():
        session.methods[f"appearance: {name}"] = {key: float(np.mean(columns(rows, key))) for key in keys}
    best = max(found, key=lambda name: np.mean(columns(found[name], "success")))
    return {
        "appearance_success": np.array(columns(found[best], "success")),
        "appearance_iou": np.array(columns(found[best], "structure")),
    }


TRANSFERS: dict[str, Callable[[Scene, Scene], Method]] = {
    "cross-image attention": lambda picture, looks: CrossImageAttention(
        word=picture.things[0].kind, appearance_word=looks.things[0].kind
    ),
    "eye for an eye": lambda picture, looks: EyeForAnEye(
        word=picture.things[0].kind, appearance_word=looks.things[0].kind
    ),
}
"""As published but for the number of steps, with words that say only what the things are."""


def _two_looks(rng: np.random.Generator) -> tuple[Scene, Scene]:
    """Two pictures of one thing each, of different colours and materials."""
    while True:
        picture, looks = (sample_scene(rng, count=1) for _ in range(2))
        a, b = picture.things[0], looks.things[0]
        if a.colour != b.colour and a.material != b.material:
            return picture, looks


def _transferred(session: EditSession, how: Method, truth: Any, looks: Scene) -> tuple[Row, Tensor]:
    images = truth.images.cpu()
    named = cast("Any", how)
    captions = f"a photo of a {named.word}", f"a photo of a {named.appearance_word}"

    def work() -> Tensor:
        path, prompts = transfer(session.model, images[0], images[1], captions, replace(START, steps=STEPS))
        return denoise(session.model, prompts, start=path, guide=1.0, methods=[how])["target"].images[0]

    image, cost = timed(work, session.device)
    (reading,) = session.oracle.read(image[None])
    wanted = looks.things[0]
    largest = max(reading.things, key=lambda t: t.pixels, default=None)
    same = largest is not None and (largest.colour, largest.material) == (wanted.colour, wanted.material)
    return {"success": float(same), "structure": structure(reading, truth.thing[0].cpu() + 1), **cost}, image


INJECTING = ("Prompt-to-Prompt", "MasaCtrl", "Plug-and-Play", "KV-Edit, told where")


def injecting(session: EditSession) -> Mapping[str, Figure]:
    """What injection adds to painting both prompts from the same start, in time and in memory."""
    case = cases(replace(session, n=1))[0]
    ratios = []
    for name in INJECTING:
        asked = RUNNERS[name](case)
        plain = Asked(_inverted(case) if asked.methods else Direct(steps=STEPS), (), EDITING)
        ways = [_painting(session, case, way) for way in (asked, plain)]
        ratios.append(session.ratio(*ways))
        peaks = [timed(way, session.device)[1]["peak_mb"] for way in ways]
        session.methods[f"injection: {name}"] = {"time": ratios[-1], "peak_mb": peaks[0], "peak_mb_plain": peaks[1]}
    return {"injection_overhead": max(ratios)}


def _painting(session: EditSession, case: Case, asked: Asked) -> Callable[[], object]:
    """Paints both prompts; what comes before that is done."""
    model = session.model
    start, guide = invert(model, case.before, case.source, asked.start), asked.start.guide(model, asked.guidance)
    prompts = {"source": case.source, "target": case.target}
    return lambda: denoise(model, prompts, start=start, methods=asked.methods, guide=guide, seed=case.seed)


MEASURES: tuple[tuple[tuple[str, ...], Callable[[EditSession], Mapping[str, Figure]]], ...] = (
    (("kinds_success", "kinds_truth"), editing),
    (("appearance_success", "appearance_iou"), transferring),
    (("injection_overhead",), injecting),
)
