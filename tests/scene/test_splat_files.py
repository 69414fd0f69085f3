"""Splats as files: PLY as others have it, and scenes that are opened again."""

from __future__ import annotations

import math
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from sfumato.errors import SfumatoError
from sfumato.scene.backgrounds import Harmonic, Plain
from sfumato.scene.cameras import Pinholes, orbit
from sfumato.scene.gaussians import PARTS, Gaussians
from sfumato.scene.splat_files import read_splats, write_splats
from sfumato.scene.store import load_scene, save_scene


def cloud(g=12, degree=0, seed=0, **options):
    rng = torch.Generator().manual_seed(seed)
    some = Gaussians(torch.randn(g, 3, generator=rng) * 0.4, torch.rand(g, 3, generator=rng), degree=degree,
                     scales=0.1 + 0.2 * torch.rand(g, 3, generator=rng), opacity=0.6, **options)  # fmt: skip
    with torch.no_grad():
        some.quaternions.copy_(torch.randn(g, 4, generator=rng))
        some.rest.copy_(0.2 * torch.randn(some.rest.shape, generator=rng))
        some.opacities += torch.randn(g, generator=rng)
        some.bands.fill_(degree)
    return some


@pytest.mark.parametrize("degree", [0, 1, 3])
def test_files_give_back_what_was_written_bit_for_bit(tmp_path, degree):
    some = cloud(degree=degree)
    again = read_splats(write_splats(tmp_path / "a.ply", some))
    assert all(torch.equal(getattr(some, name), getattr(again, name)) for name in PARTS)
    assert again.degree == degree == int(again.bands)
    views = orbit(2, (12, 12))
    plain = Plain((0.0, 0.0, 0.0))
    some.background = again.background = plain
    assert torch.equal(some.view(views).images, again.view(views).images)


def test_the_layout_is_the_authors(tmp_path):
    """62 names in their order; of the harmonics all of red first."""
    some = cloud(3, degree=3)
    data = write_splats(tmp_path / "a.ply", some).read_bytes()
    head, _, rows = data.partition(b"end_header\n")
    lines = head.decode().split("\n")
    assert lines[:3] == ["ply", "format binary_little_endian 1.0", "element vertex 3"]
    names = [line.split()[-1] for line in lines[3:-1]]
    assert all(line.startswith("property float ") for line in lines[3:-1])
    assert names == [*"xyz", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", *(f"f_rest_{i}" for i in range(45)),
                     "opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]  # fmt: skip
    table = np.frombuffer(rows, "<f4").reshape(3, 62)
    of = dict(zip(names, table.T, strict=True))
    assert of["f_rest_14"][1] == some.rest[1, 14, 0] and of["f_rest_15"][1] == some.rest[1, 0, 1]
    assert of["rot_0"][2] == some.quaternions[2, 0] and of["scale_1"][0] == some.scales[0, 1]
    assert of["opacity"][0] == some.opacities[0] and of["f_dc_2"][0] == some.base[0, 2]


def test_in_a_world_whose_y_goes_down_all_looks_the_same(tmp_path):
    """Seen by cameras that were turned with it: means, orientations and harmonics of degree 3."""
    some = cloud(degree=3, background=Plain((0.0, 0.0, 0.0)))
    file = write_splats(tmp_path / "a.ply", some, down=True)
    turned = read_splats(file, background=some.background)
    views = orbit(3, (16, 16))
    half = torch.diag(torch.tensor([1.0, -1, -1, 1]))
    moved = Pinholes(half @ views.poses, views.focal, views.centre, views.size)
    seen = some.view(views).images
    torch.testing.assert_close(turned.view(moved).images, seen, atol=1e-5, rtol=0)
    assert float((turned.view(views).images - seen).abs().max()) > 0.1
    back = read_splats(file, down=True, background=some.background)
    torch.testing.assert_close(back.view(views).images, seen, atol=1e-5, rtol=0)


@pytest.mark.skipif(find_spec("gsplat") is None, reason="gsplat is not installed")
def test_files_of_gsplat_are_read_and_have_its_names(tmp_path):
    from gsplat.exporter import export_splats

    some = cloud(degree=2)
    p = {name: getattr(some, name).detach() for name in PARTS}
    export_splats(p["means"], p["scales"], p["quaternions"], p["opacities"], p["base"][:, None], p["rest"],
                  save_to=str(tmp_path / "its.ply"))  # fmt: skip
    again = read_splats(tmp_path / "its.ply")
    assert all(torch.equal(p[name], getattr(again, name)) for name in PARTS)
    data = [f.read_bytes() for f in (tmp_path / "its.ply", write_splats(tmp_path / "a.ply", some))]
    names = [[x.split()[-1] for x in d[: d.find(b"end_header")].split(b"\n") if x[:8] == b"property"] for d in data]
    assert [n for n in names[1] if n not in (b"nx", b"ny", b"nz")] == [
        n for n in names[0] if n not in (b"nx", b"ny", b"nz")
    ]


def test_columns_may_be_more_and_of_other_types(tmp_path):
    some = cloud(4)
    data = write_splats(tmp_path / "a.ply", some).read_bytes()
    head, _, rows = data.partition(b"end_header\n")
    table = np.frombuffer(rows, "<f4").reshape(4, -1)
    names = [line.split()[-1] for line in head.decode().split("\n")[3:-1]]
    wide = np.zeros(4, np.dtype([("red", "u1"), *((n, "<f8" if n == "x" else "<f4") for n in names)]))
    for n, column in zip(names, table.T, strict=True):
        wide[n] = column
    lines = ["ply", "format binary_little_endian 1.0", "comment of another program", "element vertex 4",
             "property uchar red", *(f"property {'double' if n == 'x' else 'float'} {n}" for n in names),
             "element face 0", "property list uchar int vertex_indices", "end_header\n"]  # fmt: skip
    (tmp_path / "b.ply").write_bytes("\n".join(lines).encode() + wide.tobytes())
    again = read_splats(tmp_path / "b.ply")
    assert all(torch.equal(getattr(some, name), getattr(again, name)) for name in PARTS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: b"no " + d, "no PLY file"),
        (lambda d: d[:-3], "was cut off"),
        (lambda d: d.replace(b"binary_little_endian", b"ascii"), "not binary"),
        (lambda d: d.replace(b" opacity", b" brightnes"), "no opacity"),
        (lambda d: d.replace(b" f_rest_8", b" f_more_8"), "8 f_rest values"),
        (lambda d: d.replace(b"element vertex", b"element corner"), "begin with vertices"),
        (lambda d: d.replace(b"vertex 12", b"vertex 0"), "promises 0"),
        (lambda d: d[:-4] + np.float32(np.nan).tobytes(), "not finite"),
        (lambda d: d[:-16] + bytes(16), "without an orientation"),
        (lambda d: d.replace(b"property float x", b"property list x"), "lists or unknown"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, change, message):
    file = write_splats(tmp_path / "a.ply", cloud(degree=1))
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(SfumatoError, match=message):
        read_splats(file)


def test_latents_and_missing_files_are_refused(tmp_path):
    with pytest.raises(SfumatoError, match="channels are not"):
        write_splats(tmp_path / "a.ply", Gaussians(torch.zeros(1, 3), torch.zeros(1, 4), latent=True))
    broken = cloud()
    broken.means.data[0, 0] = math.nan
    with pytest.raises(SfumatoError, match="means of Gaussians"):
        write_splats(tmp_path / "a.ply", broken)
    with pytest.raises(SfumatoError, match="there is no file"):
        read_splats(tmp_path / "none.ply")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("degree", [0, 2])
def test_scenes_are_opened_again(tmp_path, degree):
    some = cloud(9, degree=degree, background=Harmonic(), extent=2.5)
    some.background.turning.data.normal_(generator=torch.Generator().manual_seed(0))
    again, about = load_scene(save_scene(tmp_path / "scene.safetensors", some, {"prompt": "a duck"}))
    assert isinstance(again, Gaussians) and about == {"prompt": "a duck"}
    assert again.extent == 2.5 and again.rates == some.rates
    views = orbit(2, (12, 12))
    assert torch.equal(again.view(views).images, some.view(views).images)
    latents = Gaussians(torch.zeros(3, 3), torch.rand(3, 4), latent=True)
    again, _ = load_scene(save_scene(tmp_path / "latents.safetensors", latents))
    assert again.space == "latent" and torch.equal(again.base, latents.base)
