"""Encoders that see a picture and say what word it is, with offsets of weights beside them; and their pre-training.

Gal et al. 2023, arXiv 2302.12228: on many things of one domain an encoder learns how far a word's vectors are from
those of the domain's own word, and attention learns to read such words.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sfumato.core.conditions import Cond
from sfumato.core.schedule import Level
from sfumato.core.settings import Settings
from sfumato.errors import SfumatoError, whole
from sfumato.io.files import save_tensors
from sfumato.learning import adapters
from sfumato.learning.adapters import SCALE_HIGH, SCALE_LOW, Weights
from sfumato.learning.checkpoint import read
from sfumato.learning.concepts import padded
from sfumato.learning.lessons import Lesson
from sfumato.learning.loop import Run, learn
from sfumato.learning.seeds import generator
from sfumato.learning.teaching import Part, Taught, Teaching, filled
from sfumato.reading.reader import Noise, extract, feature

HEADER = "sfumato encoder"
READS = ("to_q", "to_k", "to_v")
"""Projections of attention whose weights have offsets."""
WORD = "<encoded>"
BEGIN = -21
"""What a generator is for."""
Sees = Callable[[Float[Tensor, "n 3 h w"]], Float[Tensor, "n c"]]
"""What a CLIP makes of pictures in [0, 1]."""
Rows = Mapping[str, Float[Tensor, "*n k d"]]
"""By the text encoder's key: clip_l, clip_g."""


class Encoder(nn.Module):
    """Features of pictures -> how far a word's vectors are from where they begin; not at all at first.

    ``given``: how many features; ``widths``: of the vectors, by text encoder; ``vectors``: of a word; ``hidden``: width
    of its two inner layers. Features are brought to mean 0 and variance 1 over the pictures that it learned from.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, given: int, widths: Mapping[str, int], vectors: int = 1, hidden: int = 128) -> None:
        super().__init__()
        self.vectors = vectors
        self.register_buffer("mean", torch.zeros(given))
        self.register_buffer("deviation", torch.ones(given))
        self.inner = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise((given, hidden, hidden)))
        self.out = nn.ModuleDict({key: nn.Linear(hidden, vectors * width) for key, width in widths.items()})

    def begin(self, features: Float[Tensor, "n c"], rng: torch.Generator) -> Encoder:
        """As it is before it learns, for features such as these."""
        self.mean.copy_(features.mean(0))
        if len(features) > 1:  # of one picture nothing is known of how features vary
            self.deviation.copy_(features.std(0).clamp_min(1e-4))
        with torch.no_grad():
            for layer in self.inner:
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=rng) * (2 / layer.weight.shape[1]) ** 0.5)
                layer.bias.zero_()
            for parameter in self.out.parameters():
                parameter.zero_()
        return self

    def forward(self, features: Float[Tensor, "n c"]) -> dict[str, Float[Tensor, "n k d"]]:
        h = (features - self.mean) / self.deviation
        for layer in self.inner:
            h = nn.functional.leaky_relu(layer(h))
        return {key: out(h).unflatten(-1, (self.vectors, -1)) for key, out in self.out.items()}


class Offset(nn.Module):
    """A weight W as W * (1 + high low), number by number."""

    def __init__(self, low: Float[Tensor, "r i"], high: Float[Tensor, "o r"]) -> None:
        super().__init__()
        self.low, self.high = nn.Parameter(low.float().clone()), nn.Parameter(high.float().clone())

    def forward(self, weight: Float[Tensor, "o i"]) -> Float[Tensor, "o i"]:
        return (weight.float() * (1 + self.high @ self.low)).to(weight)


def none(model: Any) -> dict[str, Tensor]:
    """Offsets of a model's attention that change nothing, as a concept's ``changes`` have them."""
    part, network = _network(model)
    found: dict[str, Tensor] = {}
    for path, layer in network.named_modules():
        if path.endswith(tuple(f".{name}" for name in READS)):
            weight = getattr(layer, "base_layer", layer).weight
            name = f"{part}.{path}"
            found[f"{name}.{SCALE_LOW}"] = torch.ones(1, weight.shape[1], device=weight.device)
            found[f"{name}.{SCALE_HIGH}"] = torch.zeros(len(weight), 1, device=weight.device)
    return found


def offset(model: Any, offsets: Mapping[str, Tensor]) -> tuple[Any, Weights]:
    """A model whose weights have these offsets, which learn; the model itself stays as it is."""
    part, network = _network(model)
    own, _ = adapters.copied(network)
    named: dict[str, nn.Parameter] = {}
    for low in (key for key in offsets if key.endswith(SCALE_LOW)):
        name = low.removesuffix(f".{SCALE_LOW}")
        layer: Any = own.get_submodule(name.removeprefix(f"{part}."))
        high = f"{name}.{SCALE_HIGH}"
        made = Offset(offsets[low], offsets[high]).to(model.device)
        parametrize.register_parametrization(getattr(layer, "base_layer", layer), "weight", made)
        named |= {low: made.low, high: made.high}
    return model.with_parts({part: own}), Weights(named)


def _network(model: Any) -> tuple[str, Any]:
    part = next(name for name in ("unet", "transformer") if getattr(model.pipe, name, None) is not None)
    network = getattr(model.pipe, part)
    return part, getattr(network, "_orig_mod", network)


@dataclass(frozen=True, eq=False)
class Pretrained:
    """An encoder that has seen a domain, with what it needs to be used."""

    encoder: Encoder
    offsets: Mapping[str, Tensor]
    """Of weights, as a concept's ``changes`` have them."""
    kind: str
    """The domain's own word, from whose vectors words are."""
    layers: tuple[str, ...]
    """Of the network, whose features it sees, averaged over their cells."""
    t: float
    """At which level of noise, in thousandths."""
    scale: float
    """What its offsets count."""
    clip: int = 0
    """How many features of a CLIP it sees behind those of the network."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """How it came to be: model, settings, steps, seed, pictures."""
    sees: Sees | None = None
    """The CLIP."""

    def features(self, model: Any, lesson: Lesson) -> Float[Tensor, "n c"]:
        """What it sees of pictures. Raises ``SfumatoError`` where it needs a CLIP and there is none."""
        if self.clip and self.sees is None:
            raise SfumatoError("the encoder sees what a CLIP makes of pictures, and there is none; give it (sees)")
        found = described(model, lesson, self.layers, self.t, self.sees if self.clip else None)
        if found.shape[1] != len(self.encoder.mean):
            raise SfumatoError(
                f"the encoder sees {len(self.encoder.mean)} features of a picture, and {model.name} has "
                f"{found.shape[1]}; take one that was learned with a model of this kind"
            )
        return found

    def first(self, model: Any) -> dict[str, Float[Tensor, "k d"]]:
        """Vectors of the domain's own word."""
        return first(model, self.kind, self.encoder.vectors)

    def word(self, model: Any, lesson: Lesson) -> dict[str, Float[Tensor, "k d"]]:
        """What it reads pictures of one thing as, without any tuning: the mean of theirs."""
        with torch.no_grad():
            found = self.encoder(self.features(model, lesson))
        begin = self.first(model)
        return {key: begin[key] + self.scale * own.mean(0) for key, own in found.items()}

    @property
    def digest(self) -> str:
        """A word for what it is."""
        known = sha256()
        for _, value in sorted({**self.encoder.state_dict(), **self.offsets}.items()):
            known.update(value.float().cpu().contiguous().numpy().tobytes())
        return known.hexdigest()[:16]

    def check(self, model: Any) -> None:
        """Raise ``SfumatoError`` for a model of another kind than it was learned with."""
        check(model, "an encoder")
        widths = {key: rows.shape[-1] for key, rows in model.vectors(self.kind).items()}
        own = {key: out.out_features // self.encoder.vectors for key, out in self.encoder.out.items()}
        shapes = {key: value.shape for key, value in none(model).items()}
        known = {layer.path for layer in model.layers if layer.kind == "hidden"}
        other = {key for key, value in self.offsets.items() if shapes.get(key) != value.shape}
        if widths != own or other or (missing := [path for path in self.layers if path not in known]):
            what = (
                f"gives words {own} wide, not {widths}" if widths != own
                else f"changes {min(other)!r}, which is not there or of another shape" if other
                else f"sees {missing[0]!r}, which is not there"
            )  # fmt: skip
            raise SfumatoError(
                f"the encoder is of another model than {model.name}: it {what}; take one that was learned with a "
                "model of this kind"
            )

    def save(self, path: str | Path) -> None:
        """Write it; whole or not at all."""
        tensors = {f"encoder.{k}": v for k, v in self.encoder.state_dict().items()}
        tensors |= {f"offsets.{k}": v for k, v in self.offsets.items()}
        kept = {"kind": self.kind, "layers": list(self.layers), "t": self.t, "scale": self.scale, "clip": self.clip,
                "vectors": self.encoder.vectors, "about": dict(self.about)}  # fmt: skip
        save_tensors(path, tensors, {HEADER: json.dumps(kept)})

    @classmethod
    def load(cls, path: str | Path, sees: Sees | None = None) -> Pretrained:
        """Read it. Raises ``SfumatoError`` for a file that is damaged, or no encoder."""
        path = Path(path).expanduser()
        if not path.is_file():
            raise SfumatoError(f"there is no encoder {path}; sfumato train-encoder makes one")
        tensors, header = read(path)
        if HEADER not in header:
            raise SfumatoError(f"{path} is no encoder; sfumato train-encoder makes one")
        parts: dict[str, dict[str, Tensor]] = {"encoder": {}, "offsets": {}}
        try:
            kept = json.loads(header[HEADER])
            for key, value in tensors.items():
                part, _, name = key.partition(".")
                parts[part][name] = value
            state, vectors = parts["encoder"], int(kept["vectors"])
            outs = {k.split(".")[1]: len(v) // vectors for k, v in state.items() if k.startswith("out.") and v.ndim > 1}
            encoder = Encoder(len(state["mean"]), outs, vectors, len(state["inner.0.weight"]))
            encoder.load_state_dict(state)
            return cls(
                encoder.eval().requires_grad_(False), parts["offsets"], str(kept["kind"]), tuple(kept["layers"]),
                float(kept["t"]), float(kept["scale"]), int(kept["clip"]), dict(kept["about"]), sees,
            )  # fmt: skip
        except (KeyError, ValueError, TypeError, AttributeError, RuntimeError, ZeroDivisionError) as e:
            reason = " ".join(str(e).split())[:120]
            raise SfumatoError(f"the encoder {path} is damaged ({reason}); make it anew") from e


def check(model: Any, who: str) -> None:
    """Raise ``SfumatoError`` for a model that encoders cannot speak to."""
    if not getattr(model, "learns", False):
        raise SfumatoError(
            f"{who} gives a word, which Stable Diffusion 1, 2, XL and the built-in model learn; {model.name} does not"
        )
    adapters.check(model)


def first(model: Any, kind: str, vectors: int) -> dict[str, Float[Tensor, "k d"]]:
    """Vectors of the last words of a kind, the last as often as it takes."""
    return {key: padded(rows[-vectors:], vectors) for key, rows in model.vectors(kind).items()}


def seen_layers(model: Any) -> tuple[str, ...]:
    """Paths of what flows on through the first half of a network."""
    return tuple(x.path for x in model.layers if x.kind == "hidden" and x.stage in ("down", "mid"))


@torch.no_grad()
def described(
    model: Any, lesson: Lesson, layers: Sequence[str], t: float, sees: Sees | None, batch: int = 16
) -> Float[Tensor, "n c"]:
    """Features of the network under the empty prompt at one level of noise, the same for all pictures, each the mean
    over its cells; and behind them those of a CLIP, where there is one."""
    known = [layer for layer in model.layers if layer.kind == "hidden" and layer.path in layers]
    plain = model.embed([""])
    maps = extract(model, lesson.latents[:, 0], plain, Noise(t), known, lambda a: feature(a).mean((2, 3)), batch)
    found = [maps[layer] for layer in known]
    if sees is not None:
        if lesson.pictures is None:
            raise SfumatoError("a CLIP sees pictures, and there are latents alone; give a lesson with its pictures")
        found.append(torch.cat([sees(some.to(model.device)) for some in lesson.pictures.split(batch)]))
    return torch.cat([each.float() for each in found], 1)


@dataclass(eq=False)
class Encoding(Teaching):
    """The words that an encoder gives are to make the network see the pictures (Gal et al. 2023, section 4)."""

    encoder: Encoder = field(default_factory=lambda: Encoder(1, {}))
    features: Float[Tensor, "n c"] = field(default_factory=lambda: torch.zeros(0, 1))
    """Of each picture."""
    first: Rows = field(default_factory=dict)
    scale: float = 0.1
    penalty: float = 0.01
    """What the squared length of an offset counts: of what the encoder gives, not of the word."""
    together: bool = False
    """Do all pictures show one thing, whose word is the mean of theirs?"""
    each: Sequence[str] = ()
    """A caption of each picture; none: any for any."""
    since: float = 0.0
    """Levels below this part of all times are not seen."""
    weights_of: Mapping[str, nn.Module] = field(default_factory=dict)
    """What else learns."""
    word: str = WORD
    name: str = "the encoder"

    def __post_init__(self) -> None:
        self.modules = {"encoder": self.encoder, **self.weights_of}
        self.model = self.model.with_words({self.word: self.first})
        self.given: Rows = {}

    def levels(self, part: int, step: int) -> Level:
        at = super().levels(part, step)
        if not self.since:
            return at
        later = self.since * self.model.schedule.train_steps + (1 - self.since) * at.t
        return self.model.schedule.at(later if self.model.schedule.prediction == "flow" else later.long())

    def teach(self, part: int, step: int) -> Taught:
        taught = super().teach(part, step)
        if not self.each:
            return taught
        return taught._replace(captions=tuple(self.each[i] for i in taught.drawn.which))

    def offsets(self, which: Sequence[int]) -> Rows:
        """What the encoder gives for some pictures."""
        if self.together:
            return {key: own.mean(0) for key, own in self.encoder(self.features).items()}
        return self.encoder(self.features[list(which)])

    def rows(self, offsets: Rows) -> dict[str, Float[Tensor, "*n k d"]]:
        """The word with these offsets."""
        return {key: self.first[key] + self.scale * own for key, own in offsets.items()}

    def cond(self, taught: Sequence[Taught]) -> Cond:
        self.given = self.offsets([i for each in taught for i in each.drawn.which])
        captions = [caption for each in taught for caption in each.captions]
        return self.model.read(captions, {self.word: self.rows(self.given)})

    def beside(self, taught: Sequence[Taught], predicted: Tensor) -> Tensor | float:
        squares = [own.square().sum((-2, -1)).mean() for own in self.given.values()]
        return self.penalty * torch.stack(squares).sum()


@dataclass(frozen=True)
class Pretraining(Settings):
    """How an encoder is taught a domain; by default as published, for Stable Diffusion."""

    steps: int = 100_000
    rate: float = 1.6e-5
    """Of AdamW."""
    offset_rate: float | None = None
    """Of the offsets of weights; none: the same."""
    batch: int = 16
    """Pictures of a step."""
    penalty: float = 0.01
    """What the squared length of an offset counts."""
    scale: float = 0.1
    """What an offset counts in the word."""
    vectors: int = 1
    """How many a word is read as."""
    hidden: int = 128
    """Width of the encoder."""
    t: float = 261
    """At which level of noise the network sees a picture, in thousandths."""
    since: float = 0.0
    """Levels below this part of all times are not learned from."""
    decay: float = 0.01
    """Weight decay."""
    templates: tuple[str, ...] = ("a photo of a {}",)
    """Captions of pictures that have none of their own, with {} for the word."""

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("vectors of a word", self.vectors, 1, 70)
        whole("pictures of a step", self.batch, 1, 4096)
        whole("the width of an encoder", self.hidden, 1, 65536)
        if min(self.rate, self.offset_rate or 0, self.penalty, self.decay) < 0 or not 0 <= self.since < 1:
            raise SfumatoError("rates, penalty and decay of a pre-training are 0 or more, since is in [0, 1)")


def pretrain(
    model: Any,
    lesson: Lesson,
    kind: str,
    settings: Pretraining | None = None,
    *,
    captions: Sequence[str] = (),
    sees: Sees | None = None,
    steps: int | None = None,
    seed: int = 0,
    keep: Path | None = None,
    about: str = "",
    on_progress: Callable[[Run], None] | None = None,
) -> Pretrained:
    """Teach an encoder the pictures of a domain, whose own word is ``kind``; the model stays as it is.

    ``captions``: one of each picture, with {} for its thing. ``sees``: a CLIP, of whose features it is to see too.
    From ``keep``, a checkpoint, the same call goes on, bit for bit; ``about``: what the pictures are. Raises
    ``SfumatoError`` for a model that learns no words, for captions that do not pair, and for what is not finite.
    """
    settings = settings or Pretraining()
    check(model, "an encoder")
    count = settings.steps if steps is None else steps
    if count < 1:
        raise SfumatoError(f"a run has one step or more, got {count}")
    if captions and len(captions) != len(lesson):
        raise SfumatoError(f"{len(lesson)} pictures have a caption each, got {len(captions)}")
    layers = seen_layers(model)
    features = described(model, lesson, layers, settings.t, sees)
    clip = 0 if sees is None or lesson.pictures is None else sees(lesson.pictures[:1].to(model.device)).shape[1]
    begin = first(model, kind, settings.vectors)
    widths = {key: rows.shape[-1] for key, rows in begin.items()}
    encoder = Encoder(features.shape[1], widths, settings.vectors, settings.hidden)
    encoder = encoder.begin(features.cpu(), generator(seed, BEGIN)).to(model.device)
    own, weights = offset(model, none(model))
    problem = Encoding(
        own, [Part(lesson, filled(settings.templates, WORD), settings.batch)], seed, encoder=encoder, features=features,
        first=begin, scale=settings.scale, penalty=settings.penalty, each=filled(captions, WORD) if captions else (),
        since=settings.since, weights_of={"offsets": weights},
    )  # fmt: skip
    if settings.offset_rate is not None:
        problem.rates = {"offsets": settings.offset_rate}
    run = f"{settings} of {kind}, {count} steps, seed {seed}, model {model.name}, clip {clip}, {about}"
    optimiser = torch.optim.AdamW(problem.groups(), lr=settings.rate, weight_decay=settings.decay, fused=True)
    learn(problem, optimiser, steps=count, keep=keep, about=run, seconds=60.0, on_progress=on_progress)
    made = {"settings": repr(settings), "steps": count, "seed": seed, "model": model.name, "pictures": len(lesson)}
    offsets = {name: value.detach().clone() for name, value in weights.named.items()}
    found = deepcopy(encoder).eval().requires_grad_(False)
    return Pretrained(found, offsets, kind, layers, settings.t, settings.scale, clip, made, sees)
