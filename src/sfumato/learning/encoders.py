"""Encoders that see a picture and say what word it is, with offsets of weights beside them; and their files.

Gal et al. 2023, arXiv 2302.12228: on many things of one domain an encoder learns how far a word's vectors are from
those of the domain's own word, and attention learns to read such words.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sfumato.errors import SfumatoError
from sfumato.io.files import from_json, save_tensors, shared
from sfumato.learning import adapters
from sfumato.learning.adapters import SCALE_HIGH, SCALE_LOW, Weights
from sfumato.learning.checkpoint import read
from sfumato.learning.concepts import padded
from sfumato.learning.lessons import Lesson
from sfumato.reading.reader import Noise, extract, feature

HEADER = "sfumato encoder"
READS = ("to_q", "to_k", "to_v")
"""Projections of attention whose weights have offsets."""
Sees = Callable[[Float[Tensor, "n 3 h w"]], Float[Tensor, "n c"]]
"""What a CLIP makes of pictures in [0, 1]."""
Rows = Mapping[str, Float[Tensor, "*n k d"]]
"""By the text encoder's key: clip_l, clip_g."""


class Straight(nn.Module):
    """A linear map that was found in closed form, and does not learn."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"]) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, x: Float[Tensor, "n i"]) -> Float[Tensor, "n o"]:
        return nn.functional.linear(x, self.weight, self.bias)


class Encoder(nn.Module):
    """Features of pictures -> how far a word's vectors are from where they begin; not at all at first.

    ``given``: how many features; ``widths``: of the vectors, by text encoder; ``vectors``: of a word; ``hidden``: width
    of its two inner layers. Features are brought to mean 0 and variance 1 over the pictures that it learned from. Where
    these had names (``encoding.learn_names``), what it learns is added to what they say.
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
        self.straight = nn.ModuleDict()
        """By the text encoder's key, where names were learned."""

    def begin(self, features: Float[Tensor, "n c"], rng: torch.Generator) -> Encoder:
        """As it is before it learns, for features such as these."""
        self.mean.copy_(features.mean(0))
        if len(features) > 1:  # of one picture nothing is known of how features vary
            self.deviation.copy_(features.std(0).clamp_min(1e-4))
        with torch.no_grad():
            layer: Any
            for layer in self.inner:
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=rng) * (2 / layer.weight.shape[1]) ** 0.5)
                layer.bias.zero_()
            for parameter in self.out.parameters():
                parameter.zero_()
        return self

    def seen(self, features: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """Features at mean 0 and variance 1."""
        return (features - self.mean) / self.deviation

    def forward(self, features: Float[Tensor, "n c"]) -> dict[str, Float[Tensor, "n k d"]]:
        h = seen = self.seen(features)
        for layer in self.inner:
            h = nn.functional.leaky_relu(layer(h))
        given = {key: out(h) for key, out in self.out.items()}
        given |= {key: given[key] + straight(seen) for key, straight in self.straight.items()}
        return {key: own.unflatten(-1, (self.vectors, -1)) for key, own in given.items()}


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
    """Of the network, whose features it sees: their mean and deviation over all cells."""
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
            features = self.features(model, lesson)
            found = self.encoder.to(features.device)(features)
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
        outs: dict[str, Any] = dict(self.encoder.out.items())
        own = {key: out.out_features // self.encoder.vectors for key, out in outs.items()}
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
        save_tensors(path, tensors, {HEADER: json.dumps(shared(kept))})

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
            kept = from_json(header[HEADER], dict)
            for key, value in tensors.items():
                part, _, name = key.partition(".")
                parts[part][name] = value
            state, vectors = parts["encoder"], int(kept["vectors"])
            outs = {k.split(".")[1]: len(v) // vectors for k, v in state.items() if k.startswith("out.") and v.ndim > 1}
            encoder = Encoder(len(state["mean"]), outs, vectors, len(state["inner.0.weight"]))
            for key in (k.split(".")[1] for k in state if k.startswith("straight.") and k.endswith(".weight")):
                encoder.straight[key] = Straight(state[f"straight.{key}.weight"], state[f"straight.{key}.bias"])
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
    """Features of the network under the empty prompt at one level of noise, the same for all pictures, of each its mean
    and its deviation over all cells; and behind them those of a CLIP, where there is one."""
    known = [layer for layer in model.layers if layer.kind == "hidden" and layer.path in layers]
    plain = model.embed([""])

    def pooled(seen: Any) -> Float[Tensor, "rows c"]:
        cells = feature(seen).flatten(2)  # what is small in a picture is lost in the mean
        return torch.cat([cells.mean(2), cells.std(2, correction=0)], 1)

    maps = extract(model, lesson.latents[:, 0], plain, Noise(t), known, pooled, batch)
    found = [maps[layer] for layer in known]
    if sees is not None:
        if lesson.pictures is None:
            raise SfumatoError("a CLIP sees pictures, and there are latents alone; give a lesson with its pictures")
        found.append(torch.cat([sees(some.to(model.device)) for some in lesson.pictures.split(batch)]))
    return torch.cat([each.float() for each in found], 1)
