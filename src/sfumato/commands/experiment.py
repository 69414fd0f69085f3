"""``sfumato experiment``: the sources' own experiments, each a figure and its numbers, with their finding beside ours.

By default each takes at most a few minutes on two cores with the built-in model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from sfumato.commands.figures import tell
from sfumato.commands.options import Device, Json, Model, Running, Seed, seed_of, whole
from sfumato.errors import SfumatoError, unknown
from sfumato.io.files import writable
from sfumato.io.terminal import quiet
from sfumato.methods import index

if TYPE_CHECKING:
    from sfumato.core.backbone import Backbone
    from sfumato.distill import Distillation
    from sfumato.experiments.common import Subjects


@dataclass(frozen=True)
class Setting:
    """What an experiment is run on. As it stands it takes a few minutes on two cores, with the built-in model."""

    loading: tyro.conf.OmitArgPrefixes[Running] = field(default_factory=Running)
    prompt: str = ""
    """Paint this, n times; in the words of the built-in model [default: one thing on some ground, drawn n times]."""
    n: int = 2
    """Images."""
    model: Model = "stilllife"
    seed: Seed = 0
    device: Device = "auto"
    out: Annotated[Path, tyro.conf.arg(help="Folder for the figure and its numbers.")] = Path("out/experiment")
    json: Json = False

    def begin(self, least: int = 1) -> tuple[Backbone, Subjects]:
        """The model, and what is painted. ``SfumatoError`` for what cannot be, before anything is loaded."""
        whole("--n", self.n, least, 64)
        seed_of(self.seed)
        writable(self.out)
        quiet()
        from sfumato.experiments.common import Subjects

        drawn = Subjects.of(self.prompt, self.n, self.seed) if self.prompt else Subjects.drawn(self.n, self.seed)
        return self.loading.load(self.model, self.device), drawn

    def end(self, name: str, look: Any, found: Any, subjects: Subjects, **settings: Any) -> None:
        """Draw, write and say what was found."""
        said = {
            "model": self.model,
            "n": self.n,
            "seed": self.seed,
            **settings,
            "prompts": list(dict.fromkeys(subjects.prompts)),
        }
        about = ", ".join(
            [self.model, f"n {self.n}", *(f"{k.replace('_', ' ')} {_plain(v)}" for k, v in settings.items())]
        )
        look.draw(found, self.out / f"{name}.png", about)
        self.say(self.out / f"{name}.png", look.SOURCE, look.ours(found), said, look.numbers(found))

    def say(self, picture: Path, source: str, ours: str, settings: dict[str, Any], numbers: Any) -> None:
        """Both findings and the numbers, beside the figure."""
        document = {"source": source, "ours": ours, "settings": settings, "found": numbers}
        tell(picture, document, self.json, f"source: {source}\n\nours: {ours}\n")


Here = tyro.conf.OmitArgPrefixes[Setting]
ONE, TWO, FOUR = (Setting(n=n) for n in (1, 2, 4))
Guidances = Annotated[
    tuple[float, ...], tyro.conf.arg(metavar="S", help="Scales of classifier-free guidance, u + s (c - u).")
]
Methods = Annotated[
    str, tyro.conf.arg(metavar="WORD,WORD", help="Methods that distil; WORD:PRESET for one of their presets.")
]
RunSteps = Annotated[int, tyro.conf.arg(help="Steps of each run.")]


def guidance_grid(
    *,
    setting: Here = ONE,
    methods: Methods = "sds,nfsd,sdi",
    guidances: Guidances = (1.0, 7.5, 30.0, 100.0),
    space: Annotated[Literal["latent", "pixel"], tyro.conf.arg(help="What is moved.")] = "latent",
    views: Annotated[
        Literal["both", "straight", "random"], tyro.conf.arg(help="Are images turned and scaled at random?")
    ] = "both",
    steps: RunSteps = 60,
) -> None:
    """Pictures by guidance and method, with random views and without.

    Example: sfumato experiment guidance-grid --prompt "a red cube on grass" --n 1 --methods sds,nfsd
    """
    _steps(steps)
    scales = _scales("--guidances", guidances)
    named = _methods(methods)
    model, subjects = setting.begin()
    from sfumato.experiments import guidance_grid as look

    seen = {"both": (False, True), "straight": (False,), "random": (True,)}[views]
    found = look.guidance_grid(model, subjects, named, scales, steps, setting.seed, space, seen)
    setting.end("guidance-grid", look, found, subjects, methods=list(named), guidances=scales, space=space, steps=steps)


def saturation(
    *,
    setting: Here = TWO,
    methods: Methods = "sds,nfsd,sdi",
    guidances: Guidances = (1.0, 7.5, 30.0, 100.0),
    steps: RunSteps = 60,
) -> None:
    """How saturated results are by guidance, beside those of plain sampling and renders.

    Example: sfumato experiment saturation --methods sds,sdi --guidances 3 7.5 30 --steps 100
    """
    _steps(steps)
    scales = _scales("--guidances", guidances)
    named = _methods(methods)
    model, subjects = setting.begin()
    from sfumato.experiments import saturation as look

    found = look.saturation(model, subjects, named, scales, steps, setting.seed)
    setting.end("saturation", look, found, subjects, methods=list(named), guidances=scales, steps=steps)


def smoothness(
    *,
    setting: Here = ONE,
    guidances: Guidances = (1.0, 3.0, 7.5, 15.0, 30.0),
    steps: Annotated[int, tyro.conf.arg(help="DDIM steps.")] = 100,
) -> None:
    """How smooth guided sampling is: the figures of ``sfumato trajectory``, of one prompt, beside the source's finding.

    Example: sfumato experiment smoothness --prompt "a red cube on grass" --steps 50
    """
    whole("--steps", steps, 2, 1000)
    scales = _scales("--guidances", guidances)
    model, subjects = setting.begin()
    from sfumato.experiments import smoothness as look
    from sfumato.experiments import trajectory

    prompt, place = subjects.prompts[0], setting.out / "smoothness"
    course = trajectory.follow(model, prompt, scales, steps=steps, seed=setting.seed)
    files = trajectory.draw(course, place, {"prompt": prompt, "model": setting.model})
    said = {"model": setting.model, "seed": setting.seed, "steps": steps, "guidances": scales, "prompts": [prompt]}
    setting.say(files["similarity"], look.SOURCE, look.ours(course), said, course.numbers())


def one_noise(
    *,
    setting: Here = TWO,
    steps: Annotated[int, tyro.conf.arg(help="Steps of DDIM and of SDI.")] = 50,
    sds_steps: Annotated[int, tyro.conf.arg(help="Steps of SDS.")] = 200,
    guidance: Annotated[float, tyro.conf.arg(help="Of all.")] = 7.5,
    high: Annotated[float, tyro.conf.arg(help="Of SDS, a second time.")] = 100.0,
) -> None:
    """SDS, SDI and DDIM from one noise: how near they come, and how sharp they are.

    Example: sfumato experiment one-noise --prompt "a red cube on grass"
    """
    _steps(steps)
    _steps(sds_steps, "--sds-steps")
    _scales("--guidance and --high", (guidance, high))
    model, subjects = setting.begin()
    from sfumato.experiments import one_noise as look

    found = look.one_noise(model, subjects, steps, guidance, high, setting.seed, sds_steps)
    setting.end("one-noise", look, found, subjects, steps=steps, sds_steps=sds_steps, guidance=guidance, high=high)


def kappa_error(
    *,
    setting: Here = TWO,
    images: Annotated[
        Literal["both", "run", "renders"], tyro.conf.arg(help="Of a run of SDI as they are then, or finished renders.")
    ] = "both",
    levels: Annotated[int, tyro.conf.arg(help="Levels at which the error is measured.")] = 10,
    steps: RunSteps = 30,
) -> None:
    """The error of five choices of the noise in eq. 4.4, as a difference of clean images, against t.

    Example: sfumato experiment kappa-error --images run --levels 5
    """
    _steps(steps, least=2)
    whole("--levels", levels, 2, steps)
    model, subjects = setting.begin()
    from sfumato.experiments import kappa_error as look

    where: list[look.Where] = ["run", "renders"] if images == "both" else [images]
    found = look.kappa_error(model, subjects, steps, levels, setting.seed, where)
    setting.end("kappa-error", look, found, subjects, steps=steps, levels=levels)


def inversion_guidance(
    *,
    setting: Here = TWO,
    guidance: Annotated[float, tyro.conf.arg(help="The g of 1/1, g/g, 1/g, -g/g and 0/0.")] = 7.5,
    trajectory: Annotated[int, tyro.conf.arg(help="DDIM steps of a whole trajectory.")] = 30,
    steps: RunSteps = 30,
) -> None:
    """Guidance of an inversion against that of the way back: whole trajectories, and distillation.

    Example: sfumato experiment inversion-guidance --guidance 5 --trajectory 50
    """
    _steps(steps, least=2)
    whole("--trajectory", trajectory, 2, 1000)
    _scales("--guidance", (guidance,))
    if guidance in (0, 1):
        raise SfumatoError(f"--guidance is another than 0 and 1, which are there as well, got {guidance:g}")
    model, subjects = setting.begin()
    from sfumato.experiments import inversion_guidance as look

    found = look.inversion_guidance(
        model, subjects, look.strategies(guidance), steps, trajectory, min(6, steps), setting.seed
    )
    setting.end("inversion-guidance", look, found, subjects, guidance=guidance, trajectory=trajectory, steps=steps)


def inversion_steps(
    *,
    setting: Here = TWO,
    counts: Annotated[tuple[int, ...], tyro.conf.arg(metavar="N", help="Steps of an inversion up to t = 1.")] = (
        3, 5, 10, 20, 30,
    ),
    steps: RunSteps = 30,
) -> None:  # fmt: skip
    """How many steps an inversion needs: pictures, error and seconds.

    Example: sfumato experiment inversion-steps --counts 3 10 30
    """
    _steps(steps, least=2)
    for count in counts:
        whole("--counts", count, 1, 1000)
    if not counts or len(set(counts)) < len(counts):
        raise SfumatoError(f"--counts are different numbers, got {' '.join(map(str, counts)) or 'none'}")
    model, subjects = setting.begin()
    from sfumato.experiments import inversion_steps as look

    found = look.inversion_steps(model, subjects, counts, steps, min(6, steps), setting.seed)
    setting.end("inversion-steps", look, found, subjects, counts=list(counts), steps=steps)


def collaboration(
    *,
    setting: Here = FOUR,
    guidance: Annotated[float, tyro.conf.arg(help="Of all runs.")] = 20.0,
    repulsion: Annotated[float, tyro.conf.arg(help="Times the kernel's own gradient, in a third run.")] = 1e3,
    steps: RunSteps = 150,
) -> None:
    """A set of images of one prompt, with Stein variational gradient descent and without. --n is the set's number.

    Example: sfumato experiment collaboration --prompt "a red cube on grass" --n 8
    """
    _steps(steps)
    _scales("--guidance", (guidance,))
    _scales("--repulsion", (repulsion,))
    model, subjects = setting.begin(least=2)
    from sfumato.experiments import collaboration as look

    subjects = subjects.alike()
    found = look.collaboration(model, subjects, steps, guidance, repulsion, setting.seed)
    setting.end("collaboration", look, found, subjects, guidance=guidance, repulsion=repulsion, steps=steps)


def baseline(
    *,
    setting: Here = FOUR,
    colour: Annotated[str, tyro.conf.arg(help="What the thing becomes [default: blue, or red if it is blue].")] = "",
    guidance: Annotated[float, tyro.conf.arg(help="Of all runs.")] = 7.5,
    rate: Annotated[float, tyro.conf.arg(help="Of plain gradient descent.")] = 0.1,
    steps: RunSteps = 60,
) -> None:
    """CSD-Edit of a set, --n sides of a thing: with its baseline, with random noise as baseline, and without SVGD.

    Example: sfumato experiment baseline --prompt "a red cube on grass" --colour blue --n 4
    """
    _steps(steps)
    _scales("--guidance", (guidance,))
    if not (math.isfinite(rate) and rate > 0):
        raise SfumatoError(f"--rate is a number above 0, got {rate:g}")
    model, subjects = setting.begin(least=2)
    from sfumato.experiments import baseline as look

    subjects = subjects.alike()
    becomes = colour or ("red" if subjects.said[0].things[0].colour == "blue" else "blue")
    found = look.baseline(model, subjects, becomes, steps, guidance, rate, setting.seed)
    setting.end("baseline", look, found, subjects, colour=becomes, guidance=guidance, rate=rate, steps=steps)


ALL = (
    guidance_grid,
    saturation,
    smoothness,
    one_noise,
    kappa_error,
    inversion_guidance,
    inversion_steps,
    collaboration,
    baseline,
)


def experiment() -> None:
    """The sources' experiments on score distillation, their findings beside ours. One word more says which.

    Example: sfumato experiment one-noise
    """


def _steps(value: int, name: str = "--steps", least: int = 1) -> None:
    whole(name, value, least, 100_000)


def _scales(name: str, values: Sequence[float]) -> list[float]:
    scales = sorted(map(float, values))
    if not scales or len(set(scales)) < len(scales) or not all(math.isfinite(s) for s in scales):
        given = " ".join(f"{s:g}" for s in values) or "none"
        raise SfumatoError(f"{name}: different numbers are meant, got {given}")
    return scales


def _methods(text: str) -> dict[str, Distillation]:
    """Methods by their words, each with a guidance that can be varied."""
    asked = [word.strip() for word in text.split(",") if word.strip()]
    known = index.words(index.DISTILLING, aliases=True)
    if not asked or len(set(asked)) < len(asked):
        raise SfumatoError(f"--methods are different words with commas, got {text!r}; known: {', '.join(known)}")
    for spec in asked:
        word = spec.partition(":")[0]
        if word not in known:
            raise unknown("method that distils", word, known)
    return {spec: index.default(spec) for spec in asked}


def _plain(value: Any) -> str:
    """A setting as a few words."""
    if isinstance(value, list):
        return " ".join(map(_plain, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
