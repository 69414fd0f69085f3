"""``sfumato video``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from sfumato.commands import uses
from sfumato.commands.fields import sketched
from sfumato.commands.options import (
    Boxes,
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
    layout_of,
    mask_of,
    note_guidance,
    remark_pictures,
    seed_of,
    whole,
)
from sfumato.commands.steering import FilmSteering
from sfumato.errors import SfumatoError, unknown
from sfumato.io.files import writable
from sfumato.io.terminal import note, print_json, quiet
from sfumato.methods import index
from sfumato.methods.outline import look
from sfumato.tasks import chain as chains
from sfumato.tasks.chain import Chain
from sfumato.tasks.kept import named, settings_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from sfumato.core.noise import Noises
    from sfumato.ops.motion import Motion

NOISES = {
    "independent": "Independent",
    "shared": "Shared",
    "mixed": "Mixed",
    "progressive": "Progressive",
    "translated": "Translated",
    "advected": "Advected",
    "warped": "IntegralWarp",
}
OTHERS = ("out", "json", "film", "plan", "beside", "steering")
OTHERS += ("frames", "fps", "chunk", "anchor", "noise", "fit", "seed")
"""Options on which frames do not depend, or that are known of them otherwise."""
NUMBERED, FLOWING = ("mixed", "progressive", "advected"), ("advected", "warped")


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
    chunk: Annotated[int, tyro.conf.arg(metavar="N", help="Frames that go through the network together.")] = 8,
    anchor: Annotated[
        bool,
        tyro.conf.arg(help="Paint the first frame again with every part, for what looks across frames but not parts."),
        tyro.conf.FlagCreatePairsOff,
    ] = False,
    noise: Annotated[
        str,
        tyro.conf.arg(
            metavar="KIND[:A]",
            help="What frames have of each other's noise: independent, shared, mixed:A, progressive:A, translated; or "
            "along the video's own flow, advected:A or warped.",
        ),
    ] = "independent",
    mask: Annotated[
        Path | None,
        tyro.conf.arg(
            metavar="IMAGE",
            help="The part of every frame that may change: for inpainting checkpoints and methods with a mask.",
        ),
    ] = None,
    box: Boxes = (),
    steering: tyro.conf.OmitArgPrefixes[FilmSteering],
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

    The methods come last, joined by +, as in sfumato edit. Frames go through the network --chunk at a time; methods
    that look across them (token-flow, shared-attention) see all of the video nevertheless. Frames are kept as PNGs in a
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
    drawn = _noises(noise)
    if not chain.names:
        raise SfumatoError(f"video takes methods, joined by +; they are: {', '.join(index.words())}")
    layout = layout_of(box)
    uses.boxes(layout, [sketched(chain).given(layout=layout)])
    uses.start(invert, [chain])
    for file in (film, *steering.control):
        look("media.video:opened", file)
    if out is not None:
        look("media.video:writes", out)
    chain = chain.given(layout=layout, mask=(hole := mask_of(mask)))
    from sfumato.media import images
    from sfumato.media import video as videos

    found = videos.opened(film)
    place = out or _place(film, None if plan else settings_of(given, [chain]))
    kind = videos.writes(place)
    check_apart(place, film, *steering.control)
    kept = place if kind == "folder" else place.with_name(f"{place.stem}-frames")
    if not plan:
        writable(place.parent)
    quiet()
    from sfumato.core.noise import Independent
    from sfumato.tasks.edit import PictureEdit, kept_by
    from sfumato.tasks.frames import Aligned, Reads, motion_of
    from sfumato.tasks.video import Footage, VideoEdit, edit_video, mark, price
    from sfumato.tasks.video import beside as side_by_side

    footage = Footage(found, *span, rate)
    footage.check()
    beside_it = [Footage(videos.opened(control), *span, rate) for control in steering.control]
    for control in beside_it:
        if len(control) < len(footage):
            raise SfumatoError(
                f"{control.video.path} has {len(control)} of the frames, and the video {len(footage)}; one to steer "
                "by is of the same ones"
            )
    net = loading.load(model, device)
    note_guidance(net, guidance)
    loading.remark(model, source, target, negative)
    hole = uses.mask(hole, net, [chain])
    controls = tuple(Aligned(one.frames, f"{one.video.path} {mark(one.video)[:16]}") for one in beside_it)
    steered = steering.steered(net, loading, negative)
    first = images.fit(next(footage.frames()), net.size, net.multiple, fit)
    remark_pictures(model, lambda: [kept_by(net, first.pixels)])
    edit = PictureEdit.of(chain.seeing(first), source, target, invert, steps, guidance, seed, None, negative)
    asked = VideoEdit(footage, edit, Independent(), chunk, anchor, seed, fit, Reads(controls, steered, hole, fit))
    uses.seed(seed, [(edit.start, *edit.methods)])
    uses.noise(noise != "independent", [(edit.start, *edit.methods)])
    cost = price(net, asked, limit)
    if plan:
        print_json(vars(cost)) if json else print(cost)
        return
    note(str(cost))
    motion: list[Motion] = []
    if noise.partition(":")[0] in FLOWING:
        motion.append(motion_of(images.fit(frame, net.size, net.multiple, fit).pixels for frame in footage.frames()))
    asked = replace(asked, noises=drawn(*motion))
    settings = {k: v for k, v in settings_of(given, [chain]).items() if k not in OTHERS}
    settings |= {"controlnet": steering.controlnet, "control_mode": steering.control_mode}
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


def _place(film: Path, settings: Mapping[str, object] | None) -> Path:
    """Where a result goes whose place is not named: one of its own for a run of these settings, if there is a run."""
    folder, tail, stem = Path("out/video"), f"-edited{_suffix(film)}", film.stem.replace("*", "").replace("%", "")
    if settings is not None:
        lies = film.stat() if film.exists() else None  # films are too long to be read for a name
        of_run = {k: v for k, v in settings.items() if k not in ("plan", "beside")}
        of_run |= {"film": str(film.resolve()), "steering": repr(settings["steering"])}
        of_run["lies"] = None if lies is None else [lies.st_size, lies.st_mtime_ns]
        stem = named(writable(folder), "video", tail, stem, of_run)
    return folder / f"{stem}{tail}"


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


def _noises(text: str) -> Callable[..., Noises]:
    """What makes what ``--noise`` names, of the flow where it goes along that."""
    kind, colon, number = text.partition(":")
    if kind not in NOISES:
        raise unknown("noise", kind, NOISES)
    if colon and kind not in NUMBERED:
        raise SfumatoError(f"noise that is {kind} has no number; leave :{number} out")
    try:
        value = float(number) if colon else None
    except ValueError:
        raise SfumatoError(f"--noise {kind}:A takes a number, such as {kind}:1, got {number!r}") from None
    given = () if value is None else (value,)
    if kind == "advected" and value is not None and not 0 <= value <= 1:
        raise SfumatoError(f"--noise advected:A keeps a part from 0 to 1, got {number}")

    def made(*motion: Motion) -> Noises:
        from sfumato.methods.sets import noise

        return getattr(noise, NOISES[kind])(*motion, *given)

    return made
