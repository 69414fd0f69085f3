"""The table of the methods that paint: settings that act, settings that do nothing, where they run, what is not so."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from inspect import isfunction
from typing import Any

import families
import maps
import torch
from torch import Tensor

from sfumato.core.denoising import denoise
from sfumato.core.guidance import CFG
from sfumato.core.views import Tiles, Views
from sfumato.inversion import Inversion, Path, invert
from sfumato.methods.control import (
    AttendAndExcite,
    BoxDiff,
    ClassifierGuidance,
    DenseDiffusion,
    DynamicThresholding,
    GivenAttention,
    LayoutGuidance,
    LinguisticBinding,
    LlmGrounded,
    PerturbedAttention,
    RegionPrompts,
    RichText,
    SelfAttentionGuidance,
    SelfGuidance,
    SmoothedEnergy,
    SpaText,
    SpatialTemporal,
    StructuredDiffusion,
    UniversalGuidance,
)
from sfumato.methods.edit import (
    BlendedLatents,
    CollaborativeEditing,
    CrossImageAttention,
    DeltaDenoising,
    DiffEdit,
    EyeForAnEye,
    FeatureTransfer,
    FlowEdit,
    Injection,
    InstructPix2Pix,
    KVEdit,
    Ledits,
    MasaCtrl,
    PlugAndPlay,
    PromptToPrompt,
    SDEdit,
    StableFlow,
)
from sfumato.methods.sets import (
    ConsiStory,
    FateZero,
    FreeInit,
    FreeNoise,
    MergeAttendDiffuse,
    MultiDiffusion,
    Pix2Video,
    SharedAttention,
    SpotDiffusion,
    StyleAligned,
    SyncDiffusion,
    SyncTweedies,
    Text2VideoZero,
    TokenFlow,
)
from sfumato.prompts.layout import Layout, Mask, Region

ALL = tuple(families.FAMILIES)
UNETS = ("sd", "sd2", "sdxl", "deepfloyd")
CROSS = (*UNETS, "pixart")
JOINT = ("sd3", "flux")
MOVING = tuple(families.MOVING)
LAWS = {
    "acts": "what it paints is finite, and not what is painted without it",
    "off": "switched off it is plain sampling, or no edit, bit for bit",
    "source": "the first stream is what it is without the method, or the image",
    "same": "of the same words it makes no edit",
    "windows": "on a canvas that is seen in windows it runs, or is refused; one window is none",
    "batch": "each image of a batch is what it is alone, or a batch is refused",
}
SAID = {
    "source": ("a red cube and a duck", "a red duck on a cube"),
    "target": ("a blue cube and a duck", "a blue duck on the cube"),
    "appearance": ("a red duck on a cube", "a cube and the blue duck"),
}
SAID["main"] = SAID["target"]
"""What two images of a stream are told."""
LAYOUT = Layout((Region("cube", (0, 0, 0.5, 1)), Region("duck", (0.5, 0, 1, 1))))
LEFT = Mask((torch.arange(8) < 4).expand(8, 8))
WHOLE = Mask(torch.ones(8, 8, dtype=torch.bool))
LOOKED = {"cube": {"": LEFT.pixels.float()[None, None]}, "duck": {"": 1 - LEFT.pixels.float()[None, None]}}
STEPS = 2


@dataclass(frozen=True)
class Row:
    """A method in the table."""

    word: str
    """In the index; a colon and a name behind it tell a method's rows apart."""
    on: Any
    """The smallest settings that act; or what gives them for a model."""
    off: tuple[Any, ...] = ()
    """Settings with which a run is plain sampling from where it starts."""
    still: tuple[Any, ...] = ()
    """Settings with which the edit is the image."""
    same: Any = None
    """Settings with which the same words make no edit, where ``on`` are none."""
    streams: tuple[str, ...] = ("main",)
    families: tuple[str, ...] = ALL
    guide: float = 3.0
    guide_of_same: float | None = None
    """At which the same words make no edit, where it matters."""
    guides_itself: bool = False
    """Does it refuse any guidance but its own?"""
    largest: float | None = None
    """Numbers of which its result is a difference, by whose rounding the same words may change it."""
    set: bool = False
    """Are the images of a run one set, of which one alone is not changed?"""
    views: Views | None = None
    """How the network sees a canvas of twice its width, for methods of windows."""
    frames: int = 1
    """Of a clip, which is what counts as an image here."""
    close: float = 1e-4
    """How far an image of a batch may be from itself alone."""
    but: Mapping[str, str] = field(default_factory=dict)
    """Laws that it has none of, and why."""

    def settings(self, model: Any) -> Any:
        return self.on(model) if isfunction(self.on) else self.on


EDIT = ("source", "target")
LOOKS = ("source", "target", "appearance")
ALONE = {"source": "it has no source", "same": "it has no source"}
SET = {"batch": "the images of a run are one set, and each has a part in the others' attention"}
CLIP = {"windows": "a clip is seen whole, and views are refused before any method is asked"}
ANEW = {"same": "paints anew what noise has covered"}


def squares(x: Tensor) -> Tensor:
    return x.square().sum()


def small(x: Tensor, level: Any) -> Tensor:
    return -x.square().flatten(1).sum(1)


def moved(model: Any, **options: Any) -> dict[str, Any]:
    """Moved features, of which only UNets have all."""
    unet = any(layer.kind == "residual" for layer in model.layers)
    return {"features": float(unet), "attention": 1.0, "cross": 1.0, "right": 0.25, **options}


METHODS = (
    Row(
        "blended-latents", BlendedLatents(LEFT, skip=0.0, steps=2), streams=EDIT,
        off=(BlendedLatents(WHOLE, steps=4),), still=(BlendedLatents(LEFT, skip=1.0, steps=3),), but=ANEW,
    ),
    Row(
        "collaborative-editing", CollaborativeEditing(rate=0.3, steps=2), streams=EDIT,
        still=(CollaborativeEditing(rate=0.0, steps=1),),
        but={"batch": "the images of a run are one set, and each has a part in the others' step"},
    ),
    Row(
        "cross-image-attention",
        CrossImageAttention(fine=(0, 1), coarse=(0, 1), adain=(0.5, 1), early=0.4, word="cube", appearance_word="duck"),
        off=(CrossImageAttention(fine=(1, 1), coarse=(1, 1), adain=(1, 1), word="cube", appearance_word="duck"),),
        same=CrossImageAttention(fine=(0, 1), coarse=(0, 1), adain=(0.5, 1), contrast=1, word="cube"), streams=LOOKS,
    ),
    Row(
        "delta-denoising", DeltaDenoising(rate=0.3, steps=2), streams=EDIT,
        still=(DeltaDenoising(rate=0.0, steps=1),),
        but={"batch": "levels are drawn for a whole run; its own test writes down the loop of two"},
    ),
    Row(
        "diff-edit", DiffEdit(LEFT, strength=1.0, steps=2), streams=EDIT,
        off=(DiffEdit(WHOLE, strength=1.0, steps=3),),
        still=(DiffEdit(LEFT, strength=0.0, steps=3), DiffEdit(maps=1, threshold=1.0, steps=3)),
        same=DiffEdit(maps=1, steps=3),
    ),
    Row(
        "eye-for-an-eye",
        EyeForAnEye(tokens=(0, 1), adain=(0.5, 1), every=0, word="cube", appearance_word="duck"),
        off=(EyeForAnEye(tokens=(1, 1), adain=(1, 1)),),
        same=EyeForAnEye(tokens=(0, 1), adain=(0.5, 1), every=0, word="cube"), streams=LOOKS,
    ),
    Row(
        "feature-transfer", lambda model: FeatureTransfer(**moved(model), extract="forward", steps=2), streams=EDIT,
        same=lambda model: FeatureTransfer(**moved(model, right=0.0), steps=3), guide_of_same=1.0,
        but={"off": "an edit starts from latents that are moved; without those it is the injection of the next row"},
    ),
    Row(
        "feature-transfer: injection", lambda model: Injection(**moved(model)), streams=EDIT,
        off=(Injection(features=0.0, attention=0.0), Injection(inject="guided", features=0.0, attention=0.0)),
        same=lambda model: Injection(**moved(model, right=0.0)), guide_of_same=1.0,
    ),
    Row(
        "feature-transfer: guided", lambda model: Injection(**moved(model, inject="guided")), streams=EDIT,
        off=(Injection(inject="guided", features=0.0, attention=0.0),),
        but={"same": "a loss of nothing has a slope of full size, with the sign of rounding"},
    ),
    Row(
        "flow-edit", FlowEdit(3.5, 6.0, skip=0.25, steps=3), streams=EDIT, still=(FlowEdit(skip=1.0, steps=3),),
        same=FlowEdit(5.0, 5.0, skip=0.4, average=2, steps=3), largest=60.0,
    ),
    Row(
        "instruct-pix2pix", InstructPix2Pix(steps=2), streams=EDIT, families=tuple(families.INSTRUCTED),
        guides_itself=True,
        but={"acts": "without it its network cannot paint", "off": "without it its network cannot paint",
             "same": "words are an instruction, and the source's are not read"},
    ),
    Row(
        "kv-edit", KVEdit(LEFT, skip=0.0, steps=2), streams=EDIT, still=(KVEdit(LEFT, skip=1.0, steps=3),),
        but={"same": "the region goes its own way, the source is put back on its track"},
    ),
    Row(
        "ledits", Ledits(remove=("grass",), steps=2, skip=0.0, threshold=0.5), streams=EDIT, guides_itself=True,
        off=(Ledits(steps=3, skip=0.4, warmup=3, source_scale=0.0),),
        but={"same": "words are what to add, whatever the source's are"},
    ),
    Row(
        "masactrl", MasaCtrl(after=0.0, layer=0.0), off=(MasaCtrl(after=1.0, layer=0.3, source="cube"),), streams=EDIT
    ),
    Row(
        "masactrl: masks", MasaCtrl(after=0.0, layer=0.3, source="cube", threshold=0.5), streams=EDIT,
        off=(MasaCtrl(after=1.0, layer=0.3, source="cube", threshold=0.5),),
        but={"same": "outside of its region the target reads itself"},
    ),
    Row(
        "plug-and-play", PlugAndPlay(features=1.0, attention=1.0), off=(PlugAndPlay(features=0.0, attention=0.0),),
        guide_of_same=1.0, streams=EDIT, families=UNETS,
    ),
    Row("prompt-to-prompt", PromptToPrompt(0.5, 0.5), off=(PromptToPrompt(cross=0.0, self=0.0),), streams=EDIT),
    Row(
        "sdedit", SDEdit(1.0, steps=2), streams=EDIT, off=(SDEdit(0.8, steps=4),), still=(SDEdit(0.0, steps=4),),
        but={**ANEW, "acts": "it is where it starts", "source": "the source is painted as well"},
    ),
    Row("stable-flow", StableFlow(), off=(StableFlow(()),), streams=EDIT, families=JOINT),
    Row(
        "attend-and-excite", AttendAndExcite(refine_at=(0.0,), refine_to=(0.9,), refinements=2),
        off=(AttendAndExcite(scale=0.0), AttendAndExcite(until=0.0)), but=ALONE,
    ),
    Row(
        "box-diff", BoxDiff(LAYOUT, res=1.0, refinements=2),
        off=(BoxDiff(LAYOUT, until=0.0), BoxDiff(LAYOUT, scale=0.0)), but=ALONE,
    ),
    Row("classifier-guidance", ClassifierGuidance(small, 0.1), 
        but={**ALONE, "off": "a slope of nothing is taken as well, which changes the order of the sums"}),
    Row(
        "dense-diffusion", DenseDiffusion(LAYOUT, until=1.0),
        off=(DenseDiffusion(LAYOUT, until=0.0), DenseDiffusion(LAYOUT, cross=0.0, self=0.0, apart=False, until=1.0)),
        but=ALONE,
    ),
    Row(
        "dynamic-thresholding", DynamicThresholding(0.6), families=("deepfloyd",),
        but={**ALONE, "off": "what is not clipped is left as it is, and that is all of it in no picture of noise"},
    ),
    Row(
        "given-attention", GivenAttention(LOOKED, until=1.0),
        off=(GivenAttention({}), GivenAttention(LOOKED, until=0.0), GivenAttention(LOOKED, strength=0.0)), but=ALONE,
    ),
    Row(
        "given-attention: shapes", GivenAttention(LOOKED, until=1.0, spread=True),
        off=(GivenAttention(LOOKED, until=0.0, spread=True),), but=ALONE,
    ),
    Row(
        "layout-guidance", LayoutGuidance(LAYOUT, until=1.0, iterations=2),
        off=(LayoutGuidance(LAYOUT, until=0.0), LayoutGuidance(LAYOUT, scale=0.0, until=1.0),
             LayoutGuidance(LAYOUT, iterations=0, until=1.0), LayoutGuidance(LAYOUT, enough=1.0, until=1.0)),
        but=ALONE,
    ),
    Row(
        "layout-guidance: forward", LayoutGuidance(LAYOUT, "forward", until=1.0),
        off=(LayoutGuidance(LAYOUT, "forward", until=0.0), LayoutGuidance(LAYOUT, "forward", strength=0.0, until=1.0)),
        but=ALONE,
    ),
    Row(
        "linguistic-binding", LinguisticBinding(res=1.0),
        off=(LinguisticBinding(scale=0.0), LinguisticBinding(until=0.0)), but=ALONE,
    ),
    Row(
        "llm-grounded", LlmGrounded(LAYOUT, iterations=(1,), enough=0.0),
        off=(LlmGrounded(LAYOUT, scale=0.0, frozen=0.0),), but=ALONE,
    ),
    Row("free-init", FreeInit(2), off=(FreeInit(1),), families=MOVING, frames=3, but={**ALONE, **CLIP}),
    Row(
        "free-noise", FreeNoise(4, 2), off=(FreeNoise(6, 1), FreeNoise(8)), families=MOVING, frames=6,
        but={**ALONE, **CLIP},
    ),
    Row("perturbed-attention", PerturbedAttention(), off=(PerturbedAttention(0.0),), but=ALONE),
    Row(
        "region-prompts", RegionPrompts(LAYOUT, until=1.0),
        off=(RegionPrompts(LAYOUT, until=0.0), RegionPrompts(LAYOUT, whole=1.0, until=1.0)), but=ALONE,
    ),
    Row(
        "rich-text", RichText(sizes={"cube": -3.0}), streams=EDIT,
        off=(RichText(sizes={"cube": 1.0}),), but={"same": "sizes are of any words"},
    ),
    Row(
        "rich-text: colours", RichText(colours={"cube": "#10ff20"}, clusters=3), streams=EDIT,
        off=(RichText(),), but={"same": "colours are of any words"},
    ),
    Row(
        "self-attention-guidance", SelfAttentionGuidance(),
        off=(SelfAttentionGuidance(0.0), SelfAttentionGuidance(until=0.0)), but=ALONE,
    ),
    Row(
        "self-guidance", SelfGuidance(("cube",), move=(0.3, 0.0), early=1.0, until=1.0, scale=1e5), streams=EDIT,
        off=(SelfGuidance(("cube",), move=(0.3, 0.0), scale=0.0),), close=1e-3,
        but={"same": "things are moved whatever the words"},
    ),
    Row(
        "self-guidance: shapes",
        SelfGuidance(("cube",), grow=1.5, keep_shape=("cube",), early=1.0, until=1.0, scale=1e5),
        off=(SelfGuidance(("cube",), grow=1.5, scale=0.0),), streams=EDIT, close=1e-3,
        but={"same": "things grow whatever the words"},
    ),
    Row(
        "self-guidance: looks",
        SelfGuidance(("cube",), size=0.6, keep_appearance=("cube",), early=1.0, until=1.0, scale=1e5),
        off=(SelfGuidance(("cube",), size=0.6, scale=0.0),), streams=EDIT, close=1e-3,
        but={"same": "sizes are set whatever the words"},
    ),
    Row(
        "consi-story", ConsiStory("cube", dropout=0.0), off=(ConsiStory("cube", until=0.0, inject=0.0),), set=True,
        but={**ALONE, **SET},
    ),
    Row(
        "consi-story: queries", ConsiStory("cube", dropout=0.0, queries_until=1.0, inject=0.0), set=True,
        but={**ALONE, **SET, "off": "switched off as in the row above"},
    ),
    Row(
        "fate-zero", FateZero(1.0, 1.0), off=(FateZero(0.0, 0.0, "self"),), streams=EDIT, set=True,
        but={**SET, "source": "the source reads the middle frame as well"},
    ),
    Row(
        "fate-zero: word", FateZero(0.0, 1.0, finest=1.0, word="cube", threshold=0.6),
        off=(FateZero(0.0, 0.0, "self", word="cube"),), streams=EDIT, set=True,
        but={**SET, "source": "the source reads the middle frame as well"},
    ),
    Row(
        "pix2video", Pix2Video(until=0.5), off=(Pix2Video("self", weight=0.0), Pix2Video("self", until=0.0)), set=True,
        but={**ALONE, **SET},
    ),
    Row(
        "shared-attention", SharedAttention("all"), off=(SharedAttention("self"), SharedAttention(until=0.0)), set=True,
        but={**ALONE, **SET},
    ),
    Row("smoothed-energy", SmoothedEnergy(), off=(SmoothedEnergy(0.0),), but=ALONE),
    Row(
        "spatext", lambda model: SpaText(LAYOUT, maps.file(model)), families=("sd", "sd2", "sdxl"),
        but={**ALONE, "off": "it paints by a network of its own; one that has learned nothing answers as before"},
    ),
    Row(
        "spatext: each condition by itself", lambda model: SpaText(LAYOUT, maps.file(model), 2.0),
        families=("sd", "sdxl"), but={**ALONE, "off": "it paints by a network of its own, and reads regions alone"},
    ),
    Row(
        "spatial-temporal", SpatialTemporal(LAYOUT, epochs=0), off=(SpatialTemporal(LAYOUT, epochs=0, coefficient=0),),
        streams=EDIT, families=CROSS, but={"same": "regions have sentences of their own"},
    ),
    Row(
        "structured-diffusion", StructuredDiffusion(), off=(StructuredDiffusion(weight=0.0),), families=CROSS,
        but=ALONE,
    ),
    Row(
        "style-aligned", StyleAligned(), set=True,
        but={**ALONE, **SET, "off": "an image that does not read the reference is another method's"},
    ),
    Row(
        "text2video-zero", Text2VideoZero(0.25, 0.13, begin=0.0, settled=0.5), set=True,
        but={**ALONE, **SET, "off": "frames that do not move are copies of the first one"},
    ),
    Row(
        "token-flow", TokenFlow(every=2), off=(TokenFlow(until=0.0),), streams=EDIT, set=True,
        but={**SET, "same": "frames get what keyframes got"},
    ),
    Row(
        "merge-attend-diffuse", MergeAttendDiffuse(1.0), off=(MergeAttendDiffuse(0.0),), views=Tiles(8), but=ALONE,
    ),
    Row(
        "multi-diffusion", MultiDiffusion(LAYOUT, bootstrap=0.5),
        off=(MultiDiffusion(Layout((Region("{}", (0, 0, 1, 1)),))),), views=Tiles(8), but=ALONE,
    ),
    Row(
        "spot-diffusion", SpotDiffusion(), views=Tiles(),
        but={**ALONE, "off": "its windows lie side by side, wherever it moves them"},
    ),
    Row(
        "sync-diffusion", SyncDiffusion(200.0), off=(SyncDiffusion(0.0), SyncDiffusion(until=0.0)), views=Tiles(8),
        but=ALONE,
    ),
    Row(
        "sync-diffusion: detached", SyncDiffusion(2000.0, network=False), off=(SyncDiffusion(0.0, network=False),),
        views=Tiles(8), but=ALONE,
    ),
    Row(
        "sync-tweedies", SyncTweedies(2, 0.0), off=(SyncTweedies(6),), views=Tiles(8),
        families=("sd", "sd2", "sdxl", "pixart"), but=ALONE,  # tiny joint attention moves a canvas hardly at all
    ),
    Row(
        "universal-guidance", UniversalGuidance(squares, 0.1, on="x0"),
        off=(UniversalGuidance(squares, 0.1, on="x0", steps=(0, 0)),), but=ALONE,
    ),
)  # fmt: skip
ROWS = {row.word: row for row in METHODS}


def picture(model: Any, of: int, size: tuple[int, int] | None = None) -> Tensor:
    """Noise that stands for an image."""
    height, width = size or (families.side(model),) * 2
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(of))


def started(model: Any, word: str, size: Any) -> tuple[Any, dict[str, Any]]:
    """What takes part in a run of a row on a canvas of this size, and the run's options."""
    row, method = ROWS[word], ROWS[word].settings(model)
    if isinstance(method, Inversion):
        path = invert(
            model, torch.rand(3, *size, generator=torch.Generator().manual_seed(0)), SAID["source"][0], method
        )
        return path, {"start": path, "guide": method.guide(model)}
    options = {"methods": [method], "guide": CFG(row.guide), "steps": STEPS, "size": size, "seed": 3}
    return method, {**options, "frames": row.frames}


@dataclass(frozen=True)
class Painted:
    """A run's latents by stream, and the path of one that starts from an image."""

    latents: dict[str, Tensor]
    path: Path | None

    @property
    def edits(self) -> dict[str, Tensor]:
        """All but the first stream, or the only one."""
        first = next(iter(self.latents))
        return {k: v for k, v in self.latents.items() if k != first or len(self.latents) == 1}


def bare(path: Path) -> Path:
    """Where a path starts and how it steps, and nothing that its kind does on the way."""
    return Path(**{f.name: getattr(path, f.name) for f in fields(Path)})


def painted(
    model: Any,
    row: Row,
    how: Any = None,
    *,
    plain: bool = False,
    images: Sequence[int] = (1,),
    said: Mapping[str, Sequence[str]] = SAID,
    streams: Sequence[str] = (),
    guide: float | None = None,
    size: tuple[int, int] | None = None,
    path: Path | None = None,
    **options: Any,
) -> Painted:
    """A run of a row with these settings, or of the same without the method (``plain``); from this path, if given."""
    how = row.settings(model) if how is None else how(model) if isfunction(how) else how
    images = (images[0], 1 - images[0]) if row.set else images
    prompts = {stream: [said[stream][i] for i in images] for stream in streams or row.streams}
    if isinstance(how, Inversion):
        if hasattr(how, "seed"):
            how = replace(how, seed=how.seed + images[0])  # pyright: ignore
        path = path or invert(model, torch.stack([picture(model, i, size) for i in images]), prompts["source"], how)
        own = how.guide(model) if guide is None else CFG(guide)
        options |= {"start": bare(path) if plain else path, "guide": own, "seed": images[0]}
    else:
        if row.views is not None:
            options |= {"views": row.views, "size": (model.size, 2 * model.size)}
        options |= {"size": size or options.get("size") or (families.side(model),) * 2}
        options |= {"methods": [] if plain else [how], "steps": STEPS, "seed": [3 + i for i in images]}
        options |= {"guide": CFG(row.guide if guide is None else guide)}
    out = denoise(model, prompts, frames=row.frames, **options)
    whole = {stream: sample.latents.unflatten(0, (-1, row.frames)).flatten(1, 2) for stream, sample in out.items()}
    return Painted(whole, path)


class Runs:
    """Runs that several laws look at, made once."""

    def __init__(self, models: Callable[[str], Any]):
        self.models = models
        self.made: dict[Any, Painted] = {}

    def on(self, word: str, family: str) -> Painted:
        """A row's own."""
        if (word, family) not in self.made:
            self.made[word, family] = painted(self.models(family), ROWS[word])
        return self.made[word, family]

    def first(self, word: str, family: str) -> Painted:
        """A row's own of the first image, where it is the second else."""
        if (word, family, "first") not in self.made:
            self.made[word, family, "first"] = painted(self.models(family), ROWS[word], images=(0,))
        return self.made[word, family, "first"]

    def plain(self, word: str, family: str) -> Painted:
        """The same without the method; of what starts from an image along its bare path."""
        row, model = ROWS[word], self.models(family)
        starts = isinstance(row.settings(model), Inversion)
        key = (word, family, "bare") if starts else (family, row.streams, row.guide, row.set, row.views, row.frames)
        if key not in self.made:
            path = self.on(word, family).path if starts else None
            self.made[key] = painted(model, row, plain=True, path=path)
        return self.made[key]


def everywhere(law: str) -> list[Any]:
    """(row, family) wherever a law holds."""
    return [(word, family) for word, row in ROWS.items() if law not in row.but for family in row.families]
