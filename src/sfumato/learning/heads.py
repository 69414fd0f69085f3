"""Heads: small networks that learn on a frozen model's features, or changes of its own; how they are taught, and a file
of what they learned.

A ``HeadMethod`` says what is learned and what is read off; a ``FeatureSource`` what an image is described by;
``Examples`` are pictures that were read once; ``train`` teaches; a ``Head`` reads images, and is a safetensors file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from sfumato.core.backbone import Backbone
from sfumato.core.method import Requires
from sfumato.core.settings import Settings
from sfumato.errors import SfumatoError
from sfumato.io.files import from_json, named, save_tensors, shared
from sfumato.io.progress import progress
from sfumato.learning import checkpoint
from sfumato.learning.loop import Problem, Run, learn
from sfumato.learning.seeds import generator
from sfumato.reading.reader import Image, Reader, pixels, read

HEADER = "sfumato head"
ROUNDS, DROPS = 400, 401  # what the order of pictures is drawn from, and what is dropped


class FeatureSource(Protocol):
    """What an image is described by: DIFT, label-efficient, or any dataclass of settings with this."""

    def features(self, reader: Reader) -> Float[Tensor, "c h w"]: ...


@dataclass(frozen=True)
class Given(Settings):
    """Features of one's own, a map (c, h, w) for each picture, in the place of a model's."""

    def features(self, reader: Reader) -> Float[Tensor, "c h w"]:
        """Raises ``SfumatoError``: nobody reads them of an image."""
        raise SfumatoError("this head reads features that are given, and none are; give those of the picture (--given)")


@dataclass(frozen=True)
class Latents(Settings):
    """An image as the model's autoencoder has it, without noise."""

    def features(self, reader: Reader) -> Float[Tensor, "c h w"]:
        return reader.latents[0]


OWN = {kind.__name__: kind for kind in (Given, Latents)}
"""Sources that are no methods."""


@dataclass(frozen=True, eq=False)
class Examples:
    """What a head learns from: features that are read once, and what is known of the pictures."""

    features: Float[Tensor, "n views c h w"]
    """In half precision; ``maps`` gives them. A picture's views are those of ``HeadMethod.views``."""
    labels: Int[Tensor, "n H W"] | None = None
    """Classes of pixels; negative where that is not known."""
    captions: tuple[str, ...] = ()
    """A sentence of each picture."""
    texts: Float[Tensor, "n k e"] | None = None
    """Where a text encoder has each caption, and what else is read of it, of methods that learn from that."""
    points: Float[Tensor, "n k 2"] | None = None
    """Places in parts of the sides, (x, y); not a number where one is not seen."""
    names: tuple[str, ...] = ()
    """Of the classes, or of the points."""
    device: torch.device | str = "cpu"
    about: str = ""
    """A word for all of it: a run goes on with the same alone."""

    @classmethod
    def of(
        cls,
        method: HeadMethod,
        model: Backbone,
        source: FeatureSource,
        pictures: Sequence[Image],
        *,
        side: int | None = None,
        **known: Any,
    ) -> Examples:
        """Read pictures of one shape, each view once; ``known``: labels, captions, points, names. ``side``: see Reader.

        Raises ``SfumatoError`` where there are none, and for pictures of several shapes.
        """
        if not pictures:
            raise SfumatoError("a head learns from pictures, and there is none")
        known = method.known(model, source, known)
        maps: list[Tensor] = []
        with progress("reading features", len(pictures)) as advance:
            for number, picture in enumerate(pictures):
                of_one = []
                for view in method.views(pixels(picture), number):
                    with read(model, view, side) as reader:
                        of_one.append(halved(source.features(reader)))
                if maps and (len(of_one), of_one[0].shape) != (len(maps[0]), maps[0][0].shape):
                    raise SfumatoError(
                        f"picture {number + 1} has features of {tuple(of_one[0].shape)}, the first one of "
                        f"{tuple(maps[0][0].shape)}; crop all pictures to one shape"
                    )
                maps.append(torch.stack(of_one))
                advance()
        return cls.given(maps, device=model.device, **known)

    @classmethod
    def given(cls, maps: Sequence[Float[Tensor, "views c h w"]], device: Any = "cpu", **known: Any) -> Examples:
        """Of features that are there already, (views, c, h, w) a picture. ``SfumatoError`` for what does not fit."""
        if len({tuple(map.shape) for map in maps}) != 1 or maps[0].ndim != 4:
            shapes = ", ".join(sorted({str(tuple(map.shape)) for map in maps})) or "none"
            raise SfumatoError(f"features of pictures are (views, c, h, w), of all alike; got {shapes}")
        whole = torch.stack([halved(map) for map in maps])
        for name in ("labels", "captions", "texts", "points"):
            value = known.get(name)
            if value is not None and len(value) and len(value) != len(whole):
                raise SfumatoError(f"each picture has its {name}; got {len(whole)} pictures and {len(value)} {name}")
        made = cls(whole, device=device, **known)
        digest = hashlib.sha256(whole.numpy().tobytes())
        for tensor in (made.labels, made.texts, made.points):
            digest.update(b"" if tensor is None else tensor.cpu().numpy().tobytes())
        digest.update(json.dumps([made.captions, made.names]).encode())
        return cls(whole, device=device, about=digest.hexdigest()[:16], **known)

    def __len__(self) -> int:
        return len(self.features)

    @property
    def width(self) -> int:
        """Of a feature."""
        return self.features.shape[2]

    def drawn(self, seed: int, step: int, batch: int) -> list[int]:
        """Which pictures a step sees: each once before any comes again, in an order of each round."""
        places = (divmod(place, len(self)) for place in range(step * batch, (step + 1) * batch))
        rounds: dict[int, Tensor] = {}
        found = []
        for round_, at in places:
            if round_ not in rounds:
                rounds[round_] = torch.randperm(len(self), generator=generator(seed, ROUNDS, round_))
            found.append(int(rounds[round_][at]))
        return found

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of a map."""
        return self.features.shape[3], self.features.shape[4]

    def maps(self, which: Sequence[int] | Int[Tensor, " b"], view: int = 0) -> Float[Tensor, "b c h w"]:
        """Features of some pictures, in float32 on the device."""
        return self.features[torch.as_tensor(which), view].to(self.device).float()

    def moments(self) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
        """Mean and standard deviation of each channel over all cells of all pictures and views."""
        cells = self.features.transpose(0, 2).flatten(1)
        some = [(row.mean(), row.std()) for row in map(Tensor.float, cells)]
        return torch.stack([mean for mean, _ in some]), torch.stack([std for _, std in some]).clamp_min(1e-6)

    def pooled(self, labels: Int[Tensor, "n H W"]) -> Int[Tensor, "n h w"]:
        """Labels at the features' resolution: of the pixel in the middle of each cell."""
        return F.interpolate(labels[:, None].float(), self.grid, mode="nearest-exact")[:, 0].long()


def halved(map: Float[Tensor, "*of"]) -> Float[Tensor, "*of"]:
    """As features are kept: half precision, on the CPU."""
    return map.detach().clamp(-65504, 65504).half().cpu()


class HeadMethod(Settings):
    """A frozen dataclass of settings with published defaults: which head, what it descends, and what is read off it."""

    requires: ClassVar[Requires] = Requires()
    wants: ClassVar[tuple[str, ...]] = ()
    """What it learns from beside features: labels, captions, points."""
    source: ClassVar[FeatureSource | None] = None
    """What it learns of, where that is nothing else."""
    takes_words: ClassVar[bool] = False
    """Are its classes any words, said when an image is read (``Head.with_words``)?"""
    takes_support: ClassVar[bool] = False
    """Does it read an image by others with masks (``Head.with_support``)?"""
    mirrors: bool = False
    """Is a mirrored image read as well where an image is read?"""
    changes_pictures: ClassVar[bool] = False
    """Does it learn from changed pictures (``views``), so that features alone are not enough?"""
    steps: int
    rate: float
    """Of Adam."""
    clip: float | None = None
    """The greatest norm of all gradients."""
    seed: int

    def length(self, examples: Examples) -> int:
        """Steps of a run where nobody says how many."""
        return self.steps

    def views(self, picture: Float[Tensor, "3 h w"], number: int) -> Sequence[Float[Tensor, "3 h w"]]:
        """Pictures whose features are read of the ``number``-th one: itself, unless it is changed."""
        return [picture]

    def known(self, model: Backbone, source: FeatureSource, known: dict[str, Any]) -> dict[str, Any]:
        """What is known of the pictures, with what else the model has to read of that."""
        return known

    def naming(self, head: Head, model: Backbone, words: Sequence[str]) -> Head:
        """The head with these words as its classes, of methods that take any. Raises ``SfumatoError`` for others."""
        has = f"{', '.join(head.names)} and no others" if head.names else "no words"
        raise SfumatoError(f"a head of {type(self).__name__} has {has}; leave the words out")

    def supported(self, head: Head, support: Sequence[Reader], masks: Sequence[Float[Tensor, "h w"]]) -> Head:
        """The head that looks for what these masks show, of methods that do. Raises ``SfumatoError`` for others."""
        raise SfumatoError(f"a head of {type(self).__name__} knows what it looks for; leave the examples out")

    def sizes(self, examples: Examples) -> dict[str, int]:
        """What ``network`` is made by, and a file says."""
        return {"width": examples.width}

    def network(self, **sizes: int) -> nn.Module:
        """What learns, with weights of torch's global generator, which is seeded."""
        raise NotImplementedError

    def begun(self, sizes: Mapping[str, int], model: Backbone | str) -> nn.Module:
        """What learns, whose weights depend on the seed alone; or of a model (by its name where nobody has it), which
        stays as it is."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return self.network(**sizes)

    def restored(self, sizes: Mapping[str, int], tensors: Mapping[str, Tensor]) -> nn.Module:
        """What learned, from a file's tensors. Raises ``RuntimeError`` where they do not fit."""
        network = self.begun(sizes, "")
        network.load_state_dict(tensors)
        return network

    def problem(self, examples: Examples, network: nn.Module) -> HeadProblem:
        """The run."""
        return HeadProblem(self, examples, network)

    def loss(self, network: Any, examples: Examples, step: int) -> Float[Tensor, ""]:
        """To descend at a step; what is drawn depends on the seed and the step's number alone."""
        raise NotImplementedError

    def optimiser(self, groups: list[Any]) -> torch.optim.Optimizer:
        return torch.optim.Adam(groups, lr=self.rate)

    def paced(self, rate: float, step: int, fraction: float) -> float:
        """The rate once this part of the run is over."""
        return rate

    def answer(self, head: Head, maps: Sequence[Float[Tensor, "c h w"]], size: tuple[int, int]) -> Any:
        """What the head says of an image of this size, by its features; the mirrored image's behind, where read."""
        raise NotImplementedError

    def check(self, examples: Examples) -> None:
        """Raise ``SfumatoError`` for what it cannot learn from."""
        name = type(self).__name__
        for what in self.wants:
            value = getattr(examples, what)
            if value is None or not len(value):
                raise SfumatoError(f"{name} learns from pictures with {what}, and these have none; give {what} of each")


class HeadProblem(Problem):
    """A head that descends its method's loss; modules go by ``head``."""

    doing = "learning a head"

    def __init__(self, method: Any, examples: Examples, network: Any) -> None:
        self.method, self.examples, self.network = method, examples, network
        self.name = type(method).__name__
        self.modules = {"head": network}

    def loss(self, step: int) -> Float[Tensor, ""]:
        return self.method.loss(self.network, self.examples, step)

    def finish(self) -> None:
        """The run is over: what of the network is made once in the end."""


def train(
    method: HeadMethod,
    examples: Examples,
    *,
    model: Backbone | str = "",
    source: FeatureSource | None = None,
    side: int | None = None,
    steps: int | None = None,
    keep: Path | None = None,
    every: int | None = None,
    seconds: float | None = 60.0,
    on_progress: Callable[[Run], None] | None = None,
) -> Head:
    """Teach a head for the method's ``steps``, or so many; from ``keep``, a checkpoint, the same call goes on.

    ``model``, ``source`` and ``side``: of what the examples are features; none for those that are given. Raises
    ``SfumatoError`` for examples without what the method wants, for what is not finite, and for a checkpoint of other
    settings, features or another model.
    """
    method.check(examples)
    count = method.length(examples) if steps is None else steps
    if count < 1:
        raise SfumatoError(f"a run has one step or more, got {count}")
    name = model if isinstance(model, str) else model.name
    source = Given() if source is None else source
    sizes = method.sizes(examples)
    network = method.begun(sizes, model).to(examples.device)
    problem = method.problem(examples, network)
    about = f"{method!r}, {count} steps, features of {source!r} at {side or 'its'} side, {name or 'no model'}"
    learn(
        problem, method.optimiser(problem.groups()), steps=count, keep=keep, about=f"{about}, {examples.about}",
        every=every, seconds=seconds, rate=method.paced, clip=method.clip, on_progress=on_progress,
    )  # fmt: skip
    problem.finish()
    made = {"steps": count, "pictures": len(examples)}
    return Head(method, source, network.eval(), sizes, examples.names, name, side, made)


@dataclass(frozen=True, eq=False)
class Head:
    """What a method has learned on frozen features, for images that are read by the same model."""

    method: Any
    source: Any
    network: Any
    sizes: Mapping[str, int]
    """What the network is made by; ``width`` is a feature's."""
    names: tuple[str, ...] = ()
    """Of classes or points, where they are known."""
    model: str = ""
    """Whose features it reads; nothing for features that are given."""
    side: int | None = None
    """Shorter side at which that model sees images."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """How it came to be: steps, pictures."""

    def __call__(self, reader: Reader) -> Any:
        """What it says of an image. Raises ``SfumatoError`` for another model than the one that it learned of."""
        self.check(reader.model)
        return self.of(self.features(reader), reader.size)

    def with_words(self, model: Backbone, words: Sequence[str]) -> Head:
        """The same with these words as its classes. Raises ``SfumatoError`` where its classes are what it learned."""
        self.check(model)
        return self.method.naming(self, model, words)

    def with_support(self, support: Sequence[Reader], masks: Sequence[Float[Tensor, "h w"]]) -> Head:
        """The same, which looks for what the masks show: 1 inside, each of its image's size.

        Raises ``SfumatoError`` where it needs no support, for masks that do not fit, and for another model.
        """
        if support:
            self.check(support[0].model)
        return self.method.supported(self, support, masks)

    def check(self, model: Backbone) -> None:
        """Raise ``SfumatoError`` for another model."""
        if not isinstance(self.source, Given) and named(model.name) != named(self.model):
            raise SfumatoError(
                f"{self._what} and cannot read those of {model.name}; --model {self.model}, or train anew"
            )

    def features(self, reader: Reader) -> list[Float[Tensor, "c h w"]]:
        """An image's, and the mirrored image's where the method wants them, at the side that was learned with."""
        found = []
        for mirrored in range(1 + self.method.mirrors):
            if not mirrored and reader.side == self.side:
                found.append(self.source.features(reader))
                continue
            with read(reader.model, reader.pixels.flip(-1) if mirrored else reader.pixels, self.side) as look:
                found.append(self.source.features(look))
        return found

    @torch.no_grad()
    def of(self, maps: Sequence[Float[Tensor, "c h w"]], size: tuple[int, int]) -> Any:
        """What it says of an image of this size, by its features. ``SfumatoError`` for those of another width."""
        if wrong := [map.shape[0] for map in maps if map.shape[0] != self.sizes["width"]]:
            raise SfumatoError(f"{self._what} and cannot read {wrong[0]} numbers a cell; train anew on such features")
        device = next(iter(self.network.state_dict().values())).device
        return self.method.answer(self, [map.to(device).float() for map in maps], size)

    @property
    def _what(self) -> str:
        source = "features that were given" if isinstance(self.source, Given) else f"{self.model}'s features"
        return (
            f"this head of {type(self.method).__name__} learned of {source} ({type(self.source).__name__}, "
            f"{self.sizes['width']} numbers a cell)"
        )

    def save(self, path: str | Path) -> None:
        """Write it, whole or not at all: tensors by their names in the network, and a header that says all else."""
        about = {
            "method": type(self.method).__name__, "settings": asdict(self.method), "sizes": dict(self.sizes),
            "source": type(self.source).__name__, "features": asdict(self.source), "side": self.side,
            "model": self.model, "names": self.names, "about": dict(self.about),
        }  # fmt: skip
        save_tensors(path, self.network.state_dict(), {HEADER: json.dumps(shared(about))})

    @classmethod
    def load(cls, path: str | Path, known: Callable[[str], Any], device: torch.device | str = "cpu") -> Head:
        """Read it; ``known`` gives the class of a method or a source by its name (``sfumato.methods.heads`` has all).

        Raises ``SfumatoError`` for a file that is damaged or no head, and for one of a method that is not known.
        """
        path = Path(path).expanduser()
        if not path.is_file():
            raise SfumatoError(f"there is no head {path}; sfumato train-head DATA METHOD --out {path.name} makes one")
        tensors, header = checkpoint.read(path)
        if HEADER not in header:
            raise SfumatoError(f"{path} is no head that sfumato train-head wrote")
        try:
            about = from_json(header[HEADER], dict)
            names = str(about["method"]), str(about["source"])
        except (ValueError, KeyError, TypeError) as e:
            raise SfumatoError(f"{path} is no head that sfumato train-head wrote, or damaged ({e!r})") from e
        kinds: list[Any] = [OWN[name] if name in OWN else known(name) for name in names]
        try:
            method, source = kinds[0](**_tuples(about["settings"])), kinds[1](**_tuples(about["features"]))
            network = method.restored(about["sizes"], tensors)
            made = dict(about["about"])
            parts = tuple(about["names"]), about["model"], about["side"], made
        except (SfumatoError, RuntimeError, KeyError, TypeError, ValueError) as e:
            reason = " ".join(str(e).split())[:200]
            raise SfumatoError(f"{path} is a head of {names[0]} that this version cannot read ({reason})") from e
        return cls(method, source, network.to(device).eval(), about["sizes"], *parts)


def _tuples(settings: Mapping[str, Any]) -> dict[str, Any]:
    """As settings have them, which JSON does not know."""

    def made(value: Any) -> Any:
        return tuple(made(each) for each in value) if isinstance(value, list) else value

    return {key: made(value) for key, value in settings.items()}


# What heads are made of


def cells(maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n c"]:
    """Features cell by cell, row after row."""
    return maps.flatten(2).transpose(1, 2)


class Standard(nn.Module):
    """Brings features to mean 0 and deviation 1 in each channel, or, at first, leaves them as they are."""

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    def learn(self, examples: Examples) -> None:
        """Take the moments of these."""
        mean, scale = examples.moments()
        self.mean.copy_(mean)
        self.scale.copy_(scale)

    def forward(self, x: Float[Tensor, "*b c"]) -> Float[Tensor, "*b c"]:
        return (x - self.mean) / self.scale


class Projection(nn.Module):
    """A linear layer, and beside it two with a ReLU between, cell by cell (the head of STEGO)."""

    def __init__(self, width: int, out: int, nonlinear: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(width, out)
        self.nonlinear = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, out)) if nonlinear else None

    def forward(
        self, x: Float[Tensor, "*b c"], drop: Callable[[Tensor], Tensor] = lambda x: x
    ) -> Float[Tensor, "*b out"]:
        """``drop``: what becomes of the features before each of the two."""
        out = self.linear(drop(x))
        return out if self.nonlinear is None else out + self.nonlinear(drop(x))


def dropping(part: float, seed: int, step: int) -> Callable[[Float[Tensor, "b n c"]], Float[Tensor, "b n c"]]:
    """Drops this part of the channels of each picture, in all its cells, anew at each call; the others grow for it."""
    rng = generator(seed, DROPS, step)

    def dropped(x: Tensor) -> Tensor:
        if not part:
            return x
        kept = torch.rand(len(x), 1, x.shape[-1], generator=rng) >= part
        return x * kept.to(x) / (1 - part)

    return dropped
