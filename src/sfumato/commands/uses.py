"""Options that only another option or some methods read: where none of them is there, they are refused before the work.

| option | is read by |
| --- | --- |
| ``--box`` (generate, panorama, edit, video, show plan) | methods with a layout that is not given behind their word |
| ``--mask`` (edit, video) | inpainting checkpoints, which need it; methods with a mask that none is behind |
| ``--appearance`` (edit) | methods that take a picture's looks; these go without the command's ``--guidance`` |
| ``--looks`` (edit) | ``--appearance`` |
| ``--invert`` (edit, video) | methods without a start of their own |
| ``--from`` (edit) | methods that tell the network what the picture shows; of the others it is noted |
| ``--seed`` (edit, invert, video) | what is drawn; where nothing is, it is noted |
| ``--noise`` (video) | the same |
| ``--embedding``, ``--concept`` | prompts that say its word; where none does, it is noted |
| ``--region`` | ``--compose apart``; not what is painted in windows or views |
| ``--also`` (edit) | methods of several pictures (``Requires.batch``); masks and boxes of the first are all pictures' |
| ``--negative`` | guidances with an empty prompt, at another scale than 1 (``core.guidance``) |
| ``--canvas`` | all that is painted; not beside ``--size``, and not by methods of whole images (``Requires.windows``) |
| ``--views``, ``--stride`` | ``--canvas`` |
| ``--perp-neg`` | ``--not`` |
| ``--show-attention`` | models that attend to words; in segment text-attribution |
| ``--labelled``, ``--learned`` (segment, keypoints) | methods that learn |
| ``--mask``, ``--edited`` (match) | dift; the edit is inside of the mask |
| ``--sweep`` (distill2d) | methods with a guidance |
| ``--mask``, ``--seen-from`` (lift) | ``--image`` |
| ``--reference`` (distill2d) | ``--saturation``, ``--hue``, ``--histogram`` |
| ``--guidance`` (invert) | inversions without a guidance of their own |
| ``--seed`` (render) | what is drawn: a caption, or a random scene |
| ``--variant`` | models that do not ship |
| ``--offload`` | a GPU |

``--memory`` and ``--offline`` are limits, which hold in any case.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from sfumato.errors import SfumatoError
from sfumato.io.terminal import note
from sfumato.methods import index
from sfumato.methods.about import having_field
from sfumato.methods.outline import derives
from sfumato.tasks.chain import Chain, values

if TYPE_CHECKING:
    from sfumato.commands.options import Loading
    from sfumato.core.backbone import Backbone
    from sfumato.prompts.layout import Layout, Mask


def beside(option: str, given: object, other: str, there: object) -> None:
    """Refuse an option that another one alone reads, which is not there."""
    if given and not there:
        raise SfumatoError(f"{option} is read with {other} alone; give that as well, or leave {option} out")


def boxes(layout: Layout | None, chains: Iterable[Chain]) -> None:
    """Refuse ``--box`` where no method of the chains, which were given it, has it for its layout."""
    found = [values(item) for chain in chains for item in chain.items]
    if layout is None or any(own.get("layout") is layout for own in found):
        return
    if any("layout" in own for own in found):
        raise SfumatoError("--box and a --layout behind a method say the same; give one of them")
    raise SfumatoError(f"--box is of methods with a layout: {', '.join(_with('layout'))}")


def regions(loading: Loading, what: str) -> None:
    """Refuse ``--region`` where the model sees parts of what is painted, in each of which it would lie."""
    if loading.region:
        raise SfumatoError(f"--region is of images that are seen whole, and {what} is not; leave it out")


def mask(given: Mask | None, model: Backbone, chains: Iterable[Chain]) -> Mask | None:
    """What an inpainting checkpoint paints anew: ``--mask``, or a method's own. None of another model.

    Refuses an inpainting checkpoint without it, and ``--mask`` where nothing reads it.
    """
    from sfumato.tasks.inpaint import inpaints

    own = [values(item).get("mask") for chain in chains for item in chain.items]
    found = given if given is not None else next((one for one in own if one is not None), None)
    if inpaints(model):
        if found is None:
            raise SfumatoError(
                f"{model.name} is an inpainting checkpoint; give --mask PICTURE, the part that may change"
            )
        return found
    if given is not None and not any(one is given for one in own):
        if any(one is not None for one in own):
            raise SfumatoError("--mask and a --mask behind a method say the same; give one of them")
        raise SfumatoError(f"--mask is of inpainting checkpoints and methods with a mask: {', '.join(_with('mask'))}")
    return None


def appearance(given: object, guidance: float | None, chains: Iterable[Chain]) -> None:
    """Refuse ``--appearance`` where no method takes looks, methods that do without it, and ``--guidance`` beside it."""
    taking = [n for c in chains for n, i in zip(c.names, c.items, strict=True) if "appearance_mask" in values(i)]
    if given is None:
        if taking:
            raise SfumatoError(f"{taking[0]} takes a picture's looks; give it --appearance PICTURE")
        return
    if not taking:
        raise SfumatoError(f"--appearance is of methods that take looks: {', '.join(_with('appearance_mask'))}")
    if start := next(filter(None, map(_starts, chains)), None):
        raise SfumatoError(f"--appearance starts in a way of its own, and so does {start}; leave one of them out")
    if guidance is not None:
        raise SfumatoError("--appearance goes without guidance; leave --guidance out, or say it behind the method")


def start(invert: str | None, chains: Iterable[Chain]) -> None:
    """Refuse ``--invert`` where every chain has a method that starts in a way of its own."""
    own = list(map(_starts, chains))
    if invert is not None and None not in own:
        raise SfumatoError(f"{own[0]} has a start of its own; leave --invert out")


def seed(given: int, runs: Iterable[Sequence[Any]]) -> None:
    """Say where nothing of any run is drawn, so that another ``--seed`` gives the same."""
    if given and not _draws(runs):
        note("nothing is drawn here, so --seed changes nothing")


def noise(given: bool, runs: Iterable[Sequence[Any]]) -> None:
    """Say where nothing of any run is drawn, so that another ``--noise`` gives the same."""
    if given and not _draws(runs):
        note("nothing is drawn here, so --noise changes nothing")


def _draws(runs: Iterable[Sequence[Any]]) -> bool:
    return any("seed" in values(item) for run in runs for item in run)


def painted(chain: Chain) -> None:
    """Refuse methods that start from a picture where none is given."""
    if name := _starts(chain):
        raise SfumatoError(f"{name} starts from a picture; it is a method of sfumato edit")


def _starts(chain: Chain) -> str | None:
    """The method of a chain that has a start of its own."""
    return next((n for n in chain.names if derives(index.find(n.partition(":")[0]), "Inversion")), None)


def _with(field: str) -> list[str]:
    """Words of the painting methods with such a field."""
    return having_field(field, index.words())
