"""Small networks that say what a word is read as: by time and layer (NeTI), and by where it is seen from (ViewNeTI)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from sfumato.errors import SfumatoError

Rows = Mapping[str, Tensor]
"""By the encoder's key: clip_l, clip_g."""
PARTS = ("view", "thing")
"""What a word is read as, one vector each, in this order; one without cameras is a thing alone."""
CAMERA, RING = "camera", "ring"
"""Where a concept's word is seen from; vectors of a word at azimuths all around."""


def features(x: Float[Tensor, "*b i"], waves: Float[Tensor, "n i"]) -> Float[Tensor, "*b 2n"]:
    """Random Fourier features (Tancik et al. 2020): sines, then cosines, of x along each wave; of length sqrt(n)."""
    angles = x @ waves.T
    return torch.cat([angles.sin(), angles.cos()], -1)


class Mapper(nn.Module):
    """(time, layer, camera) -> a word's vector, and what values are made of beside it (Alaluf et al. 2023).

    Fourier features of the inputs, a layer of anchors where there are some, two layers with LayerNorm and LeakyReLU,
    and one that gives vectors. ``widths``: of the vectors, by encoder; ``norms``: their lengths. ``waves``: (n, inputs)
    of the features; ``shift`` and ``scale``: inputs are first ``(x - shift) * scale``; ``length``: of the features.
    ``anchors``: inputs whose features begin as weights. ``bypass``: length of what values are made of beside, in parts
    of the encoder's own; 0: nothing.
    """

    waves: Tensor
    shift: Tensor
    scale: Tensor
    length: Tensor
    bypass: Tensor
    layers: Tensor
    total: Tensor
    usual: Tensor

    def __init__(
        self,
        widths: Mapping[str, int],
        norms: Mapping[str, float],
        waves: Float[Tensor, "n i"],
        *,
        layers: int,
        total: int,
        shift: Float[Tensor, " i"],
        scale: Float[Tensor, " i"],
        length: float,
        hidden: int,
        anchors: Float[Tensor, "a i"] | None = None,
        bypass: float = 0.0,
        usual: Float[Tensor, " m"] | None = None,
    ) -> None:
        super().__init__()
        self.hidden = hidden
        numbers = {"length": length, "bypass": bypass, "layers": layers, "total": total}
        numbers |= {f"norm_{key}": norms[key] for key in widths}
        for name, value in numbers.items():
            self.register_buffer(name, torch.tensor(float(value)))
        self.register_buffer("usual", torch.zeros(0) if usual is None else usual.float())
        for name, value in {"waves": waves, "shift": shift, "scale": scale}.items():
            self.register_buffer(name, value.float())
        given = 2 * len(waves)
        self.anchors = nn.Identity() if anchors is None else nn.Linear(given, len(anchors))
        if isinstance(self.anchors, nn.Linear) and anchors is not None:
            with torch.no_grad():
                self.anchors.weight.copy_(self.encoded(anchors.to(self.waves)))
            given = len(anchors)
        wide = [given, hidden, hidden]
        self.inner = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(wide))
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(2))
        outs = {key: nn.Linear(hidden, width * (1 + (bypass > 0))) for key, width in widths.items()}
        self.out = nn.ModuleDict(outs)

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Mapper:
        """The one that has these tensors as its state."""
        weights = {k.split(".")[1]: v for k, v in tensors.items() if k.startswith("out.") and k.endswith("weight")}
        bypass, waves = float(tensors["bypass"]), tensors["waves"]
        anchors = (
            None if "anchors.weight" not in tensors else waves.new_zeros(len(tensors["anchors.weight"]), waves.shape[1])
        )
        found = cls(
            {key: len(weight) // (1 + (bypass > 0)) for key, weight in weights.items()},
            {key: float(tensors[f"norm_{key}"]) for key in weights},
            waves, layers=int(tensors["layers"]), total=int(tensors["total"]), shift=tensors["shift"],
            scale=tensors["scale"], length=float(tensors["length"]), hidden=len(tensors["inner.0.weight"]),
            anchors=anchors, bypass=bypass, usual=tensors["usual"],
        )  # fmt: skip
        found.load_state_dict(dict(tensors))
        return found.eval().requires_grad_(False)

    @property
    def apart(self) -> int:
        """How many layers it tells apart: one, where no wave goes along them."""
        return int(self.layers) if bool(self.waves[:, 1].any()) else 1

    def begins_as(self, rows: Mapping[str, Float[Tensor, "k d"]], spread: float = 0.1) -> None:
        """Let it give, at first, the last of these vectors everywhere, with so much of its own beside each number."""
        with torch.no_grad():
            for key, row in ((key, own[-1]) for key, own in rows.items()):
                out: Any = self.out[key]
                width = len(row)
                out.weight[:width] *= spread
                out.bias[:width] = row / row.square().mean().sqrt()

    def encoded(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b 2n"]:
        """What the first layer reads of inputs."""
        return features((x - self.shift) * self.scale, self.waves) * self.length / math.sqrt(len(self.waves))

    def forward(
        self,
        t: Float[Tensor, " b"],
        camera: Float[Tensor, "*b m"] | None = None,
        kept: Int[Tensor, "b layers"] | None = None,
    ) -> tuple[Rows, Rows | None]:
        """Vectors (b, layers, d) by encoder, and what is beside them; (b, 1, d) of one that no layer tells apart.

        ``camera``: of all rows or a row each. ``kept``: of the hidden numbers all but so many first ones are dropped.
        """
        layers = self.apart
        at = torch.arange(layers, device=t.device, dtype=torch.float32).expand(len(t), -1)
        inputs = [t.float()[:, None].expand(-1, layers)[..., None], at[..., None]]
        if camera is not None:
            numbers = numbered(camera.float().to(t.device))
            inputs.append(numbers.expand(len(t), -1)[:, None].expand(-1, layers, -1))
        h = self.anchors(self.encoded(torch.cat(inputs, -1)))
        for inner, norm in zip(self.inner, self.norms, strict=True):
            h = F.leaky_relu(norm(inner(h)))
        if kept is not None:
            h = h * (torch.arange(h.shape[-1], device=h.device) < kept[..., None])
        found = {key: out(h) for key, out in self.out.items()}
        if not float(self.bypass):
            return {key: self._scaled(key, own) for key, own in found.items()}, None
        halves = {key: own.chunk(2, -1) for key, own in found.items()}
        beside = {key: F.normalize(second, dim=-1) * self.bypass for key, (_, second) in halves.items()}
        return {key: self._scaled(key, first) for key, (first, _) in halves.items()}, beside

    def _scaled(self, key: str, vectors: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        return F.normalize(vectors, dim=-1) * getattr(self, f"norm_{key}")

    def plain(self, camera: Float[Tensor, "*b m"] | None, kept: Tensor | None = None) -> Rows:
        """In the middle of the times, the mean of all layers: (d) by encoder, or (b, d) of a camera a row."""
        middle = (self.total / 2).expand(1 if camera is None or camera.ndim == 1 else len(camera))
        found = {key: self._scaled(key, own.mean(1)) for key, own in self(middle, camera, kept)[0].items()}
        return found if camera is not None and camera.ndim == 2 else {key: own[0] for key, own in found.items()}


@dataclass(eq=False)
class Mapped:
    """A word that mappers give, one vector each (``sfumato.backbones.own_words.Word``)."""

    mappers: Sequence[Mapper]
    camera: Float[Tensor, "*b m"] | None = None
    """For those that read one: of all rows, or one each."""
    kept: Sequence[Int[Tensor, "b layers"] | None] | None = None
    """How many hidden numbers each mapper keeps."""
    timed: bool = True

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Mapped:
        """What a concept holds: tensors of mappers by ``PARTS``, and a ``camera`` where it is seen from one.

        Without a camera a thing that was learned with cameras is read as the thing alone.
        """
        camera = tensors.get(CAMERA)
        parts = {part: _under(tensors, part) for part in PARTS}
        found = [Mapper.of(own) for part, own in parts.items() if own and (part == "thing" or camera is not None)]
        if not found:
            raise SfumatoError("the concept is damaged: it has no mapper of a thing; learn it again")
        return cls(found, camera)

    @cached_property
    def plain(self) -> Rows:
        """Vectors (k, d), or (b, k, d) of a camera a row."""
        each = [mapper.plain(self._camera(mapper)) for mapper in self.mappers]
        widest = max(next(iter(rows.values())).ndim for rows in each)
        many = len(self.camera) if widest == 2 and self.camera is not None else 1
        return {
            key: torch.stack([rows[key] if widest == 1 else rows[key].expand(many, -1) for rows in each], -2)
            for key in each[0]
        }

    def at(self, t: Float[Tensor, " b"], layers: int) -> tuple[Rows, Rows | None]:
        both = []
        for i, mapper in enumerate(self.mappers):
            if layers != int(mapper.layers):
                raise SfumatoError(
                    f"the concept was learned with {int(mapper.layers)} layers that read the text, and this model has "
                    f"{layers}; take one that was learned with a model of this kind"
                )
            times = t.to(mapper.waves.device)
            both.append(mapper(times, self._camera(mapper), None if self.kept is None else self.kept[i]))
        rows = {key: torch.stack([own[key] for own, _ in both], -2) for key in both[0][0]}
        if all(beside is None for _, beside in both):
            return rows, None
        zero = {key: torch.zeros_like(own[..., 0, :]) for key, own in rows.items()}
        return rows, {key: torch.stack([(beside or zero)[key] for _, beside in both], -2) for key in rows}

    def _camera(self, mapper: Mapper) -> Tensor | None:
        return self.camera if len(mapper.usual) else None


def numbered(cameras: Float[Tensor, "*n m"]) -> Float[Tensor, "*n k"]:
    """What a mapper reads of cameras: of azimuth and elevation in degrees the direction, so that 0 is 360; others as
    they are."""
    if cameras.shape[-1] != 2:
        return cameras
    azimuth, elevation = cameras.deg2rad().unbind(-1)
    flat = elevation.cos()
    return torch.stack([azimuth.sin() * flat, elevation.sin(), azimuth.cos() * flat], -1)


def read_as(tensors: Mapping[str, Tensor]) -> Mapped | Rows:
    """What the word of a concept with these tensors is read as: by mappers, or the vectors of its azimuth."""
    ring = _under(tensors, RING)
    if not ring:
        return Mapped.of(tensors)
    azimuth, neighbours = tensors.get(CAMERA, ring.pop("usual")), int(ring.pop("neighbours"))
    return {key: around(rows, azimuth, neighbours)[0] for key, rows in ring.items()}


def around(rows: Float[Tensor, "m k d"], azimuth: Float[Tensor, " b"], neighbours: int) -> Float[Tensor, "b k d"]:
    """Vectors at azimuths in degrees, of those at m azimuths all around from 0 on (Jambon 2023, eq. 6.1).

    The nearest ones count 1 / distance, of a sum of 1; one that is met is taken alone.
    """
    places = torch.arange(len(rows), device=rows.device) * (360 / len(rows))
    away = ((azimuth.to(places)[:, None] - places + 180) % 360 - 180).abs()
    least, which = away.topk(neighbours, largest=False)
    weights = torch.where(least[:, :1] > 0, 1 / least.clamp_min(1e-9), (least == 0).float())
    weights = weights / weights.sum(1, keepdim=True)
    return (weights[..., None, None] * rows[which]).sum(1)


def seen_from(tensors: Mapping[str, Tensor], camera: Sequence[float]) -> dict[str, Tensor]:
    """Tensors of a concept as seen from a camera; numbers that are left out are the mean of what was learned from."""
    usual = next((v for k, v in tensors.items() if k.endswith(".usual") and len(v)), None)
    if usual is None:
        raise SfumatoError("the concept was learned without cameras; view-inversion learns what things look like from")
    if len(camera) > len(usual) or not all(math.isfinite(number) for number in camera):
        what = {1: "an azimuth in degrees", 2: "azimuth and elevation in degrees"}.get(len(usual))
        got = ", ".join(map(str, camera))
        raise SfumatoError(f"the concept is seen from {what or f'{len(usual)} numbers'}, got {got}")
    return {**tensors, CAMERA: torch.cat([torch.tensor(list(map(float, camera))), usual[len(camera) :]])}


def named(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """What a concept keeps of mappers by their parts."""
    return {
        f"{part}.{k}": v.detach().clone() for part, module in modules.items() for k, v in module.state_dict().items()
    }


def _under(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    return {k.removeprefix(f"{part}."): v for k, v in tensors.items() if k.startswith(f"{part}.")}
