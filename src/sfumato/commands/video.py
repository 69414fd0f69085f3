"""``sfumato video``."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from sfumato.commands import uses
from sfumato.commands.options import (
    Device,
    EditGuidance,
    EditSteps,
    Fit,
    Invert,
    Json,
    Memory,
    Model,
    Negative,
    Running,
    Seed,
    bytes_of,
    check_apart,
    guidance_of,
    note_guidance,
    seed_of,
    whole,
)
from sfumato.errors import SfumatoError, unknown
from sfumato.io.files import writable
from sfumato.io.terminal import note, print_json, quiet
from sfumato.methods import index
from sfumato.tasks import chain as chains
from sfumato.tasks.chain import Chain
from sfumato.tasks.kept import settings_of

if TYPE_CHECKING:
    from sfumato.core.noise import Noises

NOISES = ("independent", "shared", "mixed", "progressive", "translated")


def video(
    film: Annotated[
        tyro.conf.Positional[Path],
        tyro.conf.arg(metavar="VIDEO", help="A film, a GIF, a folder of frames, or a sequence such as shot-%04d.png."),
    ],
    *,
    source: Annotated[str, tyro.conf.arg(name="from", help="What the video shows.")],
    target: Annotated[str, tyro.conf.arg(name="to", help="What it should show.")],
    negative: Negative = "",
    steps: EditSteps = None,
    guidance: EditGuidance = None,
    invert: Invert = None,
    fps: Annotated[
        str | None,
        tyro.conf.arg(metavar="RATE", help="Frames a second that are taken, such as 12 [default: the video's own]."),
    ] = None,
    frames: Annotated[
        str | None, tyro.conf.arg(metavar="A:B", help="From frame A to before frame B of the video [default: all].")
    ] = None,
    chunk: Annotated[int, tyro.conf.arg(metavar="N", help="Frames that are painted together.")] = 8,
    anchor: Annotated[
        bool,
        tyro.conf.arg(help="Paint the first frame again with all others, for methods across frames."),
        tyro.conf.FlagCreatePairsOff,
    ] = False,
    noise: Annotated[
        str,
        tyro.conf.arg(
            metavar="KIND[:A]",
            help="What frames have of each other's noise: independent, shared, mixed:A, progressive:A, translated.",
        ),
    ] = "independent",
    beside: Annotated[
        bool, tyro.conf.arg(help="Write the video beside its edit, too."), tyro.conf.FlagCreatePairsOff
    ] = False,
    plan: Annotated[
        bool, tyro.conf.arg(help="Say what it would cost, and do not do it."), tyro.conf.FlagCreatePairsOff
    ] = False,
    fit: Fit = "whole",
    memory: Memory = 8.0,
    model: Model = "stilllife",
    loading: tyro.conf.OmitArgPrefixes[Running],
    seed: Seed = 0,
    device: Device = "auto",
    out: Annotated[
        Path | None,
        tyro.conf.arg(help="A film (.mp4), a .gif, or a folder of frames [default: out/video, of the same kind]."),
    ] = None,
    json: Json = False,
    chain: tyro.conf.Suppress[tyro.conf.Fixed[Chain]] = chains.NONE,
) -> None:
    """Edit a video by words, by any editing method: frame by frame, or its frames together.

    The methods come last, joined by +, as in sfumato edit. Frames are painted --chunk at a time and kept as PNGs in a
    folder beside the result: what is stopped goes on there when the same command is run again. What it will take is
    said before it begins; --plan says that alone.

    Example: sfumato video clip.mp4 --from "a red cube on grass" --to "a blue cube on grass" prompt-to-prompt

    Example: sfumato video clip.mp4 --from "a cube" --to "a sphere" --fps 8 --noise shared --out edit.gif sdedit

    Example: sfumato video shots/ --from "a red cube" --to "a blue cube" --chunk 16 --frames 0:48 --beside csd-edit
    """
    given = dict(locals())
    if steps is not None:
        whole("--steps", steps, 1, 1000)
    seed_of(seed)
    whole("--chunk", chunk, 1, 1024)
    limit, rate, span = bytes_of(memory), _rate(fps), _span(frames)
    guidance_of(guidance)
    noises = _noises(noise)
    if not chain.items:
        raise SfumatoError(f"video takes methods, joined by +; they are: {', '.join(index.words())}")
    uses.start(invert, [chain])
    from sfumato.media import video as videos

    found = videos.opened(film)
    place = out or Path("out/video") / f"{film.stem.replace('*', '').replace('%', '')}-edited{_suffix(film)}"
    kind = videos.writes(place)
    check_apart(place, film)
    kept = place if kind == "folder" else place.with_name(f"{place.stem}-frames")
    if not plan:
        writable(place.parent)
    quiet()
    from sfumato.tasks.edit import PictureEdit
    from sfumato.tasks.video import Footage, VideoEdit, edit_video, price
    from sfumato.tasks.video import beside as side_by_side

    footage = Footage(found, *span, rate)
    footage.check()
    net = loading.load(model, device)
    note_guidance(net, guidance)
    loading.remark(model, source, target, negative)
    uses.mask(None, net, [chain])
    edit = PictureEdit.of(chain, source, target, invert, steps, guidance, seed, None, negative)
    asked = VideoEdit(footage, edit, noises, chunk, anchor, seed, fit)
    uses.seed(seed, [(edit.start, *edit.methods)])
    uses.noise(noise != "independent", [(edit.start, *edit.methods)])
    cost = price(net, asked, limit)
    if plan:
        print_json(vars(cost)) if json else print(cost)
        return
    note(str(cost))
    others = ("out", "json", "film", "plan", "beside", "frames", "fps", "chunk", "anchor", "noise", "fit", "seed")
    settings = {k: v for k, v in settings_of(given, [chain]).items() if k not in others}
    done = edit_video(net, asked, kept, settings=settings, memory=limit)
    if done.again:
        note(f"{done.again} of {done.count} frames were there")
    files = {"frames": kept}
    if kind != "folder":
        files["video"] = videos.write(videos.opened(kept).frames(), place, footage.fps)
    if beside:
        both = place.with_name(f"{place.stem}-beside{place.suffix}")
        files["beside"] = videos.write(side_by_side(asked, kept), both, footage.fps)
    shown = {key: str(file) for key, file in files.items()}
    about = {"count": done.count, "rate": float(footage.fps), "seconds": round(done.seconds, 2), "steps": done.steps}
    print_json({**shown, **about}) if json else print("\n".join(shown.values()))


def _suffix(film: Path) -> str:
    """What a result is written as, by what was given."""
    from sfumato.media.video import FILMS

    suffix = film.suffix.lower()
    return "" if film.is_dir() or not film.is_file() else suffix if suffix in (*FILMS, ".gif") else ".mp4"


def _rate(text: str | None) -> Fraction | None:
    """Frames a second of ``--fps``."""
    if text is None:
        return None
    try:
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if rate <= 0:
        raise SfumatoError(f"--fps is a number of frames a second, such as 12 or 24000/1001, got {text!r}")
    return rate


def _span(text: str | None) -> tuple[int, int | None]:
    """Of ``--frames``: A:B, A: and :B."""
    start, colon, stop = (text or ":").partition(":")
    if not colon or not all(n.isdecimal() or not n for n in (start, stop)):
        raise SfumatoError(f"--frames is A:B, from frame A to before frame B, such as 0:48, got {text!r}")
    span = int(start or 0), int(stop) if stop else None
    if span[1] is not None and span[1] <= span[0]:
        raise SfumatoError(f"--frames {text} holds no frame; B is above A")
    return span


def _noises(text: str) -> Noises:
    """What ``--noise`` names."""
    kind, colon, number = text.partition(":")
    if kind not in NOISES:
        raise unknown("noise", kind, NOISES)
    from sfumato.methods.sets import noise

    made = getattr(noise, kind.capitalize())
    if not colon:
        return made()
    if kind not in ("mixed", "progressive"):
        raise SfumatoError(f"noise that is {kind} has no number; leave :{number} out")
    try:
        return made(float(number))
    except ValueError:
        raise SfumatoError(f"--noise {kind}:A takes a number, such as {kind}:1, got {number!r}") from None
