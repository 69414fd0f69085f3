"""Splatting against a loop over pixels, closed forms, autograd's checks and gsplat's own formulas where it is there."""

from __future__ import annotations

import math
from importlib.util import find_spec
from itertools import pairwise

import numpy as np
import pytest
import torch
from rounding import assert_same_but_for_rounding

from sfumato.errors import SfumatoError
from sfumato.scene import splatting
from sfumato.scene.cameras import Pinholes, looking, orbit, towards
from sfumato.scene.harmonics import basis
from sfumato.scene.splatting import Splats, blend, project, rotations

D = torch.float64
needs_gsplat = pytest.mark.skipif(find_spec("gsplat") is None, reason="gsplat is not installed")
needs_cuda = pytest.mark.skipif(
    find_spec("gsplat") is None or not torch.cuda.is_available(), reason="needs gsplat and a GPU"
)


def drawn(g=40, seed=0, dtype=D, spread=0.8, scale=0.15):
    rng = torch.Generator().manual_seed(seed)

    def u(*shape):
        return torch.rand(*shape, generator=rng, dtype=D)

    means, turned = (2 * u(g, 3) - 1) * spread, torch.randn(g, 4, generator=rng, dtype=D)
    splats = Splats(means, turned, scale * (0.2 + u(g, 3)), 0.02 + 0.98 * u(g))
    return Splats(*(x.to(dtype) for x in splats)), u(g, 3).to(dtype)


def cameras(n=2, size=(18, 22), dtype=D):
    """Not square, off their axis, of two focal lengths."""
    some = orbit(n, size, distance=3.0, fov=45.0, elevation=25.0, first=30.0)
    shifted = Pinholes(some.poses, some.focal * torch.tensor([1.1, 0.9]), some.centre + torch.tensor([1.3, -0.7]), size)
    return shifted.to(dtype)


def seen_by(splats, values, some, side=splatting.SIDE):
    found = project(splats, some)
    return blend(found, splats.opacities[found.gaussian], values[found.gaussian], len(some), some.size, side=side)


def by_loops(splats, values, some):
    """Every pixel against every Gaussian, one after the other: the formulas of the papers, in numbers."""
    views, matrix = some.opencv()
    h, w = some.size
    image, opacity = torch.zeros(len(some), values.shape[1], h, w, dtype=D), torch.zeros(len(some), 1, h, w, dtype=D)
    turn = rotations(splats.quaternions)
    for n in range(len(some)):
        (fx, fy), (cx, cy) = matrix[n].diagonal()[:2].tolist(), matrix[n, :2, 2].tolist()
        flat = []
        for g in range(len(values)):
            at = views[n, :3, :3] @ splats.means[g] + views[n, :3, 3]
            x, y, z = at.tolist()
            if z <= 0.01:
                continue
            covariance = turn[g] @ torch.diag(splats.scales[g] ** 2) @ turn[g].T
            covariance = views[n, :3, :3] @ covariance @ views[n, :3, :3].T
            tx = min(max(x / z, -cx / fx - 0.15 * w / fx), (w - cx) / fx + 0.15 * w / fx) * z
            ty = min(max(y / z, -cy / fy - 0.15 * h / fy), (h - cy) / fy + 0.15 * h / fy) * z
            slope = torch.tensor([[fx / z, 0, -fx * tx / z**2], [0, fy / z, -fy * ty / z**2]], dtype=D)
            inverse = torch.linalg.inv(slope @ covariance @ slope.T + 0.3 * torch.eye(2, dtype=D))
            flat.append((z, torch.tensor([fx * x / z + cx, fy * y / z + cy], dtype=D), inverse, g))
        flat.sort(key=lambda one: one[0])
        for i in range(h):
            for j in range(w):
                light = 1.0
                for _, mean, inverse, g in flat:
                    d = torch.tensor([j + 0.5, i + 0.5], dtype=D) - mean
                    alpha = min(0.999, float(splats.opacities[g] * torch.exp(-0.5 * d @ inverse @ d)))
                    if alpha < 1 / 255:
                        continue
                    if light * (1 - alpha) <= 1e-4:
                        break
                    image[n, :, i, j] += alpha * light * values[g]
                    opacity[n, 0, i, j] += alpha * light
                    light *= 1 - alpha
    return image, opacity


@pytest.mark.parametrize("side", [4, 8])
def test_images_are_those_of_a_loop_over_pixels_and_gaussians(side):
    splats, values = drawn(40, spread=1.1, scale=0.3)
    splats = splats._replace(opacities=splats.opacities.where(torch.arange(40) % 5 > 0, torch.ones(40, dtype=D)))
    aside = torch.tensor([[2.2, 0, 0], [-2.2, 0, 0], [0, 0, 2.2], [0, 0, -2.2]], dtype=D)  # they reach in from beside
    splats.means[:4], splats.scales[:4] = aside, 0.8
    some = cameras(2, (10, 13))
    found = seen_by(splats, values, some, side)
    image, opacity = by_loops(splats, values, some)
    assert float(opacity.max()) > 0.99 and float(opacity.min()) < 0.5
    torch.testing.assert_close(found.values, image, atol=1e-12, rtol=0)
    torch.testing.assert_close(found.opacity, opacity, atol=1e-12, rtol=0)


def test_a_pixel_that_is_done_takes_no_more():
    """Walls of alpha 0.999 behind each other: the second would leave 1e-6, below 1e-4, so that one is all."""
    n = 3
    means = torch.tensor([[0.0, 0, 0.1 * i] for i in range(n)], dtype=D)
    splats = Splats(means, torch.tensor([[1.0, 0, 0, 0]], dtype=D).expand(n, 4), torch.full((n, 3), 30.0, dtype=D),
                    torch.ones(n, dtype=D))  # fmt: skip
    found = seen_by(splats, torch.ones(n, 1, dtype=D), orbit(1, (8, 8)).to(D))
    torch.testing.assert_close(found.opacity, torch.full_like(found.opacity, 0.999), atol=1e-12, rtol=0)


def test_one_gaussian_is_the_plain_gaussian_of_two_dimensions():
    """On the axis at depth z: standard deviations f s / z, and the blur of 0.3 of a pixel squared."""
    z, f, (sx, sy) = 4.0, 30.0, (0.3, 0.2)
    camera = Pinholes(towards(torch.tensor([[0.0, 0, z]]), torch.zeros(1, 3)), torch.tensor([[f, f]]),
                      torch.tensor([[12.0, 9.0]]), (18, 24)).to(D)  # fmt: skip
    one = Splats(torch.zeros(1, 3, dtype=D), torch.tensor([[1.0, 0, 0, 0]], dtype=D),
                 torch.tensor([[sx, sy, 0.1]], dtype=D), torch.tensor([0.8], dtype=D))  # fmt: skip
    found = seen_by(one, torch.ones(1, 1, dtype=D), camera).opacity[0, 0]
    y, x = torch.meshgrid(torch.arange(18, dtype=D) - 8.5, torch.arange(24, dtype=D) - 11.5, indexing="ij")
    wanted = 0.8 * torch.exp(-0.5 * (x**2 / ((f * sx / z) ** 2 + 0.3) + y**2 / ((f * sy / z) ** 2 + 0.3)))
    wanted[wanted < 1 / 255] = 0
    assert 0 < int((wanted == 0).sum()) < wanted.numel()
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=0)


def test_what_is_nearer_hides_what_is_farther_from_either_side():
    ends = torch.tensor([[0.0, 0, 0.5], [0, 0, -0.5]], dtype=D)
    splats = Splats(ends, torch.tensor([[1.0, 0, 0, 0]], dtype=D).expand(2, 4), torch.full((2, 3), 0.3, dtype=D),
                    torch.tensor([0.95, 0.95], dtype=D))  # fmt: skip
    values = torch.tensor([[1.0, 0], [0, 1]], dtype=D)
    front, back = seen_by(splats, values, orbit(2, (16, 16), elevation=0.0).to(D)).values[:, :, 8, 8]
    assert front[0] > 0.9 and front[1] < 0.1 and back[1] > 0.9 and back[0] < 0.1


def test_nothing_behind_a_camera_or_out_of_its_sight_is_seen():
    splats, values = drawn(20)
    away = looking(towards(torch.tensor([[0.0, 0, 3]]), torch.tensor([[0.0, 0, 6]])), 40.0, (8, 8)).to(D)
    assert not len(project(splats, away).gaussian)
    found = seen_by(splats, values, away)
    assert found.values.shape == (1, 3, 8, 8) and not found.opacity.any() and not found.values.any()
    found = seen_by(splats._replace(opacities=torch.full((20,), 0.003, dtype=D)), values, cameras())
    assert not found.opacity.any()


def test_views_together_are_the_views_alone():
    splats, values = drawn(60, dtype=torch.float32)
    some = cameras(5, dtype=torch.float32)
    together = seen_by(splats, values, some)
    for i in range(5):
        alone = seen_by(splats, values, some[i : i + 1])
        assert_same_but_for_rounding(alone.values[0], together.values[i])
        assert_same_but_for_rounding(alone.opacity[0], together.opacity[i])


def test_the_order_of_gaussians_is_nothing():
    splats, values = drawn(60)
    back = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    one = seen_by(splats, values, cameras())
    other = seen_by(Splats(*(x[back] for x in splats)), values[back], cameras())
    torch.testing.assert_close(one.values, other.values, atol=1e-13, rtol=0)


def test_a_world_that_is_turned_with_its_cameras_looks_the_same():
    splats, values = drawn(40)
    turn = rotations(torch.tensor([0.3, 0.5, -0.7, 0.2], dtype=D))
    w, x, y, z = torch.nn.functional.normalize(torch.tensor([0.3, 0.5, -0.7, 0.2], dtype=D), dim=0)
    left = torch.stack([torch.stack(row) for row in ((w, -x, -y, -z), (x, w, -z, y), (y, z, w, -x), (z, -y, x, w))])
    turned = splats._replace(means=splats.means @ turn.T, quaternions=splats.quaternions @ left.T)
    some = cameras()
    poses = some.poses.clone()
    poses[:, :3] = turn @ poses[:, :3]
    moved = Pinholes(poses, some.focal, some.centre, some.size)
    torch.testing.assert_close(
        seen_by(turned, values, moved).values, seen_by(splats, values, some).values, atol=1e-11, rtol=0
    )


def test_gradients_are_those_of_finite_differences():
    """To all that Gaussians are made of; opacities keep away from the cap and from where alpha is cut off."""
    rng = torch.Generator().manual_seed(3)
    g = 5
    means = (torch.rand(g, 3, generator=rng, dtype=D) - 0.5) * 0.6
    parts = (means, torch.randn(g, 4, generator=rng, dtype=D), 0.5 + torch.rand(g, 3, generator=rng, dtype=D),
             0.3 + 0.5 * torch.rand(g, generator=rng, dtype=D), torch.rand(g, 2, generator=rng, dtype=D))  # fmt: skip
    some = looking(towards(torch.tensor([[0.3, 0.4, 3.0], [2.9, -0.5, 0.6]]), torch.zeros(2, 3)), 20.0, (5, 6)).to(D)

    def shown(means, quaternions, scales, opacities, values):
        found = seen_by(Splats(means, quaternions, scales, opacities), values, some)
        return found.values, found.opacity

    assert torch.autograd.gradcheck(shown, [p.requires_grad_() for p in parts], atol=1e-7)


def test_gradients_stop_at_the_cap_and_beside_the_cut_off():
    splats, values = drawn(1)
    parts = [x.clone().requires_grad_() for x in (*splats._replace(
        means=torch.zeros(1, 3, dtype=D), scales=torch.full((1, 3), 50.0, dtype=D), opacities=torch.ones(1, dtype=D)
    ), values)]  # fmt: skip
    seen_by(Splats(*parts[:4]), parts[4], cameras()).values.sum().backward()
    assert not any(p.grad.any() for p in parts[:4]) and parts[4].grad.all()


def test_harmonics_are_orthonormal_and_begin_with_the_closed_forms():
    """Over the sphere by Gauss and Legendre's rule in z and even angles, which is exact for products of degree 6."""
    z, weight = (torch.from_numpy(x) for x in np.polynomial.legendre.leggauss(8))
    angle = torch.arange(16, dtype=D) * (2 * math.pi / 16)
    r = (1 - z * z).sqrt()[:, None]
    points = torch.stack([r * angle.cos(), r * angle.sin(), z[:, None].expand(8, 16)], -1).flatten(0, 1)
    of = basis(points, 3)
    product = of.T @ (of * (weight[:, None].expand(8, 16).flatten() * 2 * math.pi / 16)[:, None])
    torch.testing.assert_close(product, torch.eye(16, dtype=D), atol=1e-12, rtol=0)
    for degree, of_degree in ((0, 1), (1, 4), (2, 9)):
        assert torch.equal(basis(points, degree), of[:, :of_degree])
    x, y, z = points.unbind(1)
    known = {0: 0.28209479177387814 * torch.ones_like(x), 1: -0.4886025119029199 * y, 2: 0.4886025119029199 * z,
             3: -0.4886025119029199 * x, 6: 0.31539156525252005 * (2 * z * z - x * x - y * y),
             12: 0.3731763325901154 * z * (2 * z * z - 3 * x * x - 3 * y * y)}  # fmt: skip
    for k, wanted in known.items():
        torch.testing.assert_close(of[:, k], wanted, atol=1e-12, rtol=0)


def test_quaternions_turn_about_their_axes():
    half = math.sin(math.pi / 4)
    about_y = rotations(torch.tensor([2 * half, 0, 2 * half, 0], dtype=D))
    wanted = torch.tensor([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]], dtype=D)
    torch.testing.assert_close(about_y, wanted, atol=1e-12, rtol=0)


# -- beside gsplat


def its_projection(splats, some):
    from gsplat.cuda._torch_impl import _fully_fused_projection, _quat_scale_to_covar_preci

    covariances, _ = _quat_scale_to_covar_preci(splats.quaternions, splats.scales, compute_preci=False)
    views, matrix = some.opencv()
    return _fully_fused_projection(splats.means, covariances, views, matrix, some.size[1], some.size[0])


@needs_gsplat
@pytest.mark.parametrize("dtype", [torch.float32, D])
def test_projections_and_their_gradients_are_gsplats(dtype):
    """Some Gaussians lie behind the cameras, some beside their images, where the Jacobian's place is held."""
    splats, _ = drawn(200, dtype=dtype, spread=2.5)
    some = cameras(3, dtype=dtype)
    parts = [x.clone().requires_grad_() for x in splats[:3]]
    found = project(Splats(*parts, splats.opacities), some)
    at = (found.camera, found.gaussian)
    flat = found.means.detach() - some.centre[found.camera]
    assert bool((flat.abs() > 0.65 * torch.tensor([22, 18])).any())
    mine = [found.means, found.conics, found.depth]
    pull = [torch.randn(x.shape, generator=torch.Generator().manual_seed(i), dtype=D).to(dtype)
            for i, x in enumerate(mine)]  # fmt: skip
    by_mine = torch.autograd.grad(mine, parts, pull)
    radii, means, depth, conics, _ = its_projection(Splats(*parts, splats.opacities), some)
    its = [means[at], conics[at], depth[at]]
    by_its = torch.autograd.grad(its, parts, pull)
    for a, b in (*zip(mine, its, strict=True), *zip(by_mine, by_its, strict=True)):
        if dtype == D:
            torch.testing.assert_close(a, b, atol=1e-13 * float(b.abs().max()), rtol=0)
        else:
            assert_same_but_for_rounding(a.detach(), b.detach())
    visible = torch.zeros_like(radii[..., 0], dtype=torch.bool)
    visible[at] = True
    assert not (visible & (radii == 0).any(-1)).any(), "what is seen here is seen there"


@needs_gsplat
def test_harmonics_are_gsplats():
    from gsplat.cuda._torch_impl import _spherical_harmonics

    rng = torch.Generator().manual_seed(0)
    way, of = torch.randn(50, 3, generator=rng, dtype=D), torch.randn(50, 16, 3, generator=rng, dtype=D)
    unit = torch.nn.functional.normalize(way, dim=-1)
    for degree in range(4):
        k = (degree + 1) ** 2
        mine = (basis(unit, degree)[..., None] * of[:, :k]).sum(1)
        torch.testing.assert_close(mine, _spherical_harmonics(degree, way, of), atol=1e-12, rtol=0)


@needs_gsplat
def test_the_other_road_is_called_as_gsplat_is(monkeypatch):
    """Its kernels' places taken by plain formulas, the glue gives the plain images: order, shapes and all settings."""
    import inspect

    from gsplat.cuda import _torch_impl, _wrapper

    splats, values = drawn(50, dtype=torch.float32)
    some = cameras(2, (20, 37), dtype=torch.float32)
    signatures = {name: inspect.signature(getattr(_wrapper, name)) for name in (
        "fully_fused_projection", "isect_tiles", "isect_offset_encode", "rasterize_to_pixels"
    )}  # fmt: skip

    def projection(*args, **kwargs):
        given = signatures["fully_fused_projection"].bind(*args, **kwargs).arguments
        assert given["packed"] and given["eps2d"] == 0.3 and given["near_plane"] == 0.01
        some = Splats(given["means"], given["quats"], given["scales"], given["opacities"])
        shape = (given["height"], given["width"])
        k = given["Ks"]
        flat = Pinholes.of_opencv(given["viewmats"], k, shape)
        radii, means, depth, conics, _ = its_projection(some, flat)
        camera, gaussian = torch.nonzero((radii > 0).all(-1), as_tuple=True)
        at = (camera, gaussian)
        return torch.zeros_like(camera), camera, gaussian, radii[at], means[at], depth[at], conics[at], None

    def tiles(*args, **kwargs):
        given = signatures["isect_tiles"].bind(*args, **kwargs).arguments
        assert given["packed"] and given["n_images"] == 2
        n, m = given["n_images"], len(given["means2d"])
        spread = [torch.zeros(n, m, *given[k].shape[1:], dtype=given[k].dtype) for k in ("means2d", "radii", "depths")]
        for x, k in zip(spread, ("means2d", "radii", "depths"), strict=True):
            x[given["image_ids"], torch.arange(m)] = given[k].detach()
        of, pairs, flat = _torch_impl._isect_tiles(
            *spread, given["tile_size"], given["tile_width"], given["tile_height"]
        )
        return of, pairs, (flat % m).int()

    def offsets(*args, **kwargs):
        given = signatures["isect_offset_encode"].bind(*args, **kwargs).arguments
        return _torch_impl._isect_offset_encode(*given.values())

    def pixels(*args, **kwargs):
        given = signatures["rasterize_to_pixels"].bind(*args, **kwargs).arguments
        assert given["packed"] and given["isect_offsets"].shape == (2, 2, 3)
        ends = [*given["isect_offsets"].flatten().tolist(), len(given["flatten_ids"])]
        h, w, side = given["image_height"], given["image_width"], given["tile_size"]
        image, opacity = torch.zeros(2, h, w, given["colors"].shape[1]), torch.zeros(2, h, w, 1)
        for t, (start, end) in enumerate(pairwise(ends)):
            n, y, x = t // 6, t % 6 // 3, t % 3
            rows = given["flatten_ids"][start:end].long()
            for i in range(y * side, min(h, y * side + side)):
                for j in range(x * side, min(w, x * side + side)):
                    d = given["means2d"][rows] - torch.tensor([j + 0.5, i + 0.5])
                    a, b, c = given["conics"][rows].unbind(1)
                    power = 0.5 * (a * d[:, 0] ** 2 + c * d[:, 1] ** 2) + b * d[:, 0] * d[:, 1]
                    alpha = (given["opacities"][rows] * (-power).exp()).clamp_max(0.999)
                    alpha = alpha * (alpha >= 1 / 255)
                    light = torch.cat([torch.ones(1), (1 - alpha).cumprod(0)])
                    weight = alpha * light[:-1] * (light[1:] > 1e-4)
                    image[n, i, j], opacity[n, i, j, 0] = weight @ given["colors"][rows], weight.sum()
        return image, opacity

    for name, instead in (("fully_fused_projection", projection), ("isect_tiles", tiles),
                          ("isect_offset_encode", offsets), ("rasterize_to_pixels", pixels)):  # fmt: skip
        monkeypatch.setattr(_wrapper, name, instead)
    with torch.no_grad():
        found = splatting._project_by_gsplat(splats, some)
        given = (splats.opacities[found.gaussian], values[found.gaussian], 2, some.size)
        its, mine = splatting._blend_by_gsplat(found, *given), seen_by(splats, values, some)
    assert its.values.shape == mine.values.shape and float(mine.opacity.max()) > 0.9
    assert_same_but_for_rounding(mine.values, its.values)
    assert_same_but_for_rounding(mine.opacity, its.opacity)


@needs_cuda
def test_on_a_gpu_gsplat_gives_the_same_images_and_gradients():
    """Kernels use a fast exponential, so that alphas are off by its few parts in a million; 1e-4 of the largest."""
    splats, values = drawn(500, dtype=torch.float32, scale=0.05)
    some = cameras(3, (70, 90), dtype=torch.float32).to("cuda")
    results = []
    for backend in ("torch", "gsplat"):
        parts = [x.cuda().requires_grad_() for x in (*splats, values)]
        found = project(Splats(*parts[:4]), some, backend)
        found.means.retain_grad()
        of = (parts[3][found.gaussian], parts[4][found.gaussian], 3, some.size)
        image = blend(found, *of, backend=backend)
        ((image.values - 0.3).square().sum() + image.opacity.square().sum()).backward()
        places = torch.zeros(3, 500, 2).cuda()
        places[found.camera, found.gaussian] = found.means.grad
        results.append([image.values, image.opacity, places, *(p.grad for p in parts)])
    for mine, its in zip(*results, strict=True):
        torch.testing.assert_close(mine, its, atol=1e-4 * float(mine.abs().max()), rtol=0)


def test_gsplat_is_refused_where_it_cannot_run():
    splats, _ = drawn(3)
    with pytest.raises(SfumatoError, match=r"gsplat .*take the backend torch"):
        project(splats, cameras(), "gsplat")
