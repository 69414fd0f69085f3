"""Laws of all fields, and what is particular to each."""

from __future__ import annotations

import itertools

import pytest
import torch

from sfumato.errors import SfumatoError
from sfumato.scene import harmonics
from sfumato.scene.cameras import Rays
from sfumato.scene.fields import Voxels
from sfumato.scene.fields_hash import PRIMES, HashGrid
from sfumato.scene.fields_networks import NeRF, Residual, waves
from sfumato.scene.regions import Box, Space
from sfumato.scene.render import FieldScene, Sampling
from sfumato.scene.store import FIELDS, load_scene, save_scene
from sfumato.scene.trilinear import Read, _corners, read, sampled

SMALL = {
    Voxels: {"resolution": 8},
    HashGrid: {"levels": 4, "log_size": 8, "base": 4, "width": 16},
    NeRF: {"width": 16, "depth": 6, "frequencies": 3},
    Residual: {"width": 16, "depth": 5, "frequencies": 3},
}
REGIONS = {"box": Box((0.1, 0.0, -0.1), 0.8), "space": Space((0.1, 0.0, -0.1), 0.8)}
LAWS = pytest.mark.parametrize("kind", FIELDS, ids=[kind.__name__ for kind in FIELDS])
BOTH = pytest.mark.parametrize("region", REGIONS.values(), ids=list(REGIONS))


def made(kind, **options):
    """A small field with something in it."""
    field = kind(**{**SMALL[kind], "degree": 1, **options})
    rng = torch.Generator().manual_seed(5)
    for p in field.parameters():
        p.data += 0.3 * torch.randn(p.shape, generator=rng)
    return field


def places(n: int, scale: float = 0.5) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(6)
    ways = torch.nn.functional.normalize(torch.randn(n, 3, generator=rng), dim=-1)
    return torch.randn(n, 3, generator=rng) * scale, ways


def outside() -> Rays:
    return Rays(torch.tensor([[5.0, 5.0, 5.0]]), torch.tensor([[0.0, 1.0, 0.0]]))


@LAWS
@BOTH
def test_densities_are_from_0_and_all_is_finite_far_away(kind, region):
    field = made(kind, region=region)
    for scale in (0.5, 1e6):
        points, ways = places(40, scale)
        matter = field(points, ways)
        assert bool((matter.density >= 0).all()) and bool(matter.density.isfinite().all())
        assert bool((matter.values >= 0).all()) and bool((matter.values <= 1).all())
        assert matter.density.shape == (40,) and matter.values.shape == (40, 3)
        torch.testing.assert_close(field.density(points), matter.density)


@LAWS
def test_a_ray_that_misses_the_box_sees_the_background(kind):
    seen = FieldScene(made(kind, region=REGIONS["box"]), sampling=Sampling(8)).trace(outside())
    assert seen.opacity.tolist() == [0] and torch.equal(seen.values, torch.full((1, 3), 0.5))


@LAWS
def test_gradients_reach_all_that_learns(kind):
    field = made(kind)
    matter = field(*places(300))
    (matter.density.sum() + matter.values.square().sum()).backward()
    for name, p in field.named_parameters():
        assert p.grad is not None and float(p.grad.abs().max()) > 0, name


@LAWS
def test_colours_change_with_the_view_only_where_they_are_to(kind):
    points, ways = places(30)
    turning, still = made(kind), made(kind, degree=0)
    assert float((turning(points, ways).values - turning(points, -ways).values).detach().abs().max()) > 1e-3
    assert torch.equal(still(points, ways).values, still(points, -ways).values)
    assert torch.equal(turning(points, ways).density, turning(points, -ways).density)


@LAWS
@BOTH
def test_a_scene_is_read_as_it_was_written(kind, region, tmp_path):
    scene = FieldScene(made(kind, region=region, blob=2.0), sampling=Sampling(9, coarse=12, skip=1e-4, cells=4))
    scene.occupancy.update(scene.field, torch.Generator().manual_seed(0))
    file = save_scene(tmp_path / "a.safetensors", scene, {"prompt": "a duck"})
    again, about = load_scene(file)
    assert about == {"prompt": "a duck"} and again.sampling == scene.sampling and again.field.region == region
    rays = Rays(*places(20))
    one, two = scene.trace(rays), again.trace(rays)
    assert torch.equal(one.values, two.values) and torch.equal(one.depth, two.depth)


@LAWS
def test_the_same_settings_make_the_same_field(kind):
    one, two = kind(**SMALL[kind]), kind(**SMALL[kind])
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    again = kind(**one.settings())
    assert again.settings() == one.settings()


@LAWS
def test_a_blob_is_thick_in_the_middle(kind):
    region = Box((0.2, 0.0, 0.0), 1.0)
    field = kind(**SMALL[kind], region=region, blob=10.0, blob_radius=0.5, shift=0.0)
    middle, edge = field.density(torch.tensor([[0.2, 0.0, 0.0], [0.2, 0.9, 0.0]])).tolist()
    assert middle > 8 and edge < 0.01


def test_voxels_are_read_trilinearly_with_x_last():
    field = Voxels(4, region=Box(half=2.0), shift=0.0)
    rng = torch.Generator().manual_seed(7)
    field.grid.data = torch.randn(field.grid.shape, generator=rng)
    points = (torch.rand(20, 3, generator=rng) - 0.5) * 3  # the outermost centres lie at 1.5
    at = (points + 2) - 0.5
    low = at.floor().clamp(0, 2)
    wanted = torch.zeros(4, 20)
    for corner in itertools.product((0, 1), repeat=3):
        one = torch.tensor(corner)
        part = torch.where(one.bool(), at - low, 1 - (at - low)).prod(-1)
        x, y, z = (low.long() + one).unbind(-1)
        wanted += part * field.grid.data[0, :, z, y, x]
    torch.testing.assert_close(field.raw(points), wanted, atol=1e-5, rtol=1e-5)


def test_many_places_are_read_as_few_are(monkeypatch):
    from sfumato.scene import trilinear

    grid, local = torch.randn(1, 2, 4, 4, 4, requires_grad=True), torch.rand(101, 3) * 2 - 1
    one = sampled(grid, local)
    monkeypatch.setattr(trilinear, "SHARED", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    two = sampled(grid, local)
    assert torch.equal(one, two)
    ways = torch.randn_like(one)
    (first,) = torch.autograd.grad(one, grid, ways)
    (second,) = torch.autograd.grad(two, grid, ways)
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize(("channels", "sides"), [(4, (5, 6, 7)), (1, (2, 2, 2)), (9, (2, 9, 3))])
def test_the_gradient_cell_by_cell_is_torchs(channels, sides):
    rng = torch.Generator().manual_seed(9)
    grid = torch.randn(1, channels, *sides, generator=rng, dtype=torch.float64, requires_grad=True)
    local = torch.rand(400, 3, generator=rng, dtype=torch.float64) * 2.6 - 1.3  # beyond the border, too
    local[:8] = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=3)))
    ways = torch.randn(channels, 400, generator=rng, dtype=torch.float64)
    one, two = sampled(grid, local), Read.apply(grid, local)
    assert torch.equal(one, two)
    rows = torch.stack([rows for rows, _ in _corners(local, torch.Size(sides))])
    assert int(rows.min()) == 0 and int(rows.max()) == grid[0, 0].numel() - 1  # none beyond the last cell
    torch.testing.assert_close(
        torch.autograd.grad(two, grid, ways)[0], torch.autograd.grad(one, grid, ways)[0], atol=1e-12, rtol=1e-12
    )


def test_a_place_that_is_not_finite_makes_a_gradient_that_is_not_and_writes_nowhere_else():
    grid = torch.randn(1, 2, 3, 4, 5, requires_grad=True)
    local = torch.zeros(2, 3)
    local[1] = torch.nan
    rows = torch.stack([rows for rows, _ in _corners(local, grid.shape[2:])])
    assert int(rows.min()) >= 0 and int(rows.max()) < grid[0, 0].numel()
    assert not torch.autograd.grad(Read.apply(grid, local).sum(), grid)[0].isfinite().all()


def test_a_grid_has_its_own_gradient_where_it_learns_from_many_places(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    grid, local = torch.randn(1, 2, 3, 3, 3), torch.rand(27, 3) * 2 - 1
    learned = grid.clone().requires_grad_()

    def own(grid, local):
        return "Read" in type(read(grid, local).grad_fn).__name__

    assert own(learned, local) and not own(learned, local[1:]) and not own(grid, local)
    assert not own(learned, local.clone().requires_grad_())  # which gives places their gradient
    with torch.no_grad():
        assert read(learned, local).grad_fn is None
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    assert not own(learned, local)


def test_finer_voxels_show_what_the_coarse_ones_did():
    field = Voxels(4, degree=1)
    z, y, x = torch.meshgrid(*[torch.linspace(-0.75, 0.75, 4)] * 3, indexing="ij")
    field.grid.data[0] = torch.stack([x + 2 * y, y, z, x - z])  # linear: interpolation is exact inside
    finer = field.refined(8)
    points = (torch.rand(30, 3) - 0.5) * 1.2
    assert finer.resolution == 8 and finer.turning.shape[-1] == 2
    torch.testing.assert_close(finer.raw(points), field.raw(points), atol=1e-5, rtol=0)
    field.load_state_dict(finer.state_dict())
    assert field.resolution == 8


@pytest.mark.parametrize("log_size", [6, 12], ids=["hashed", "dense"])
def test_the_hash_grid_is_brute_force_trilinear(log_size):
    field = made(HashGrid, levels=3, log_size=log_size, base=5, growth=1.5)
    local = torch.rand(25, 3) * 2 - 1
    wanted = torch.zeros(25, 3 * 2)
    start = 0
    for level in range(3):
        side = int(5 * 1.5**level)
        rows = min((side + 1) ** 3, 2**log_size)
        for p in range(25):
            at = [(float(c) + 1) / 2 * side for c in local[p]]
            low = [min(int(a), side - 1) for a in at]
            for corner in itertools.product((0, 1), repeat=3):
                part, row = 1.0, 0
                place = [a + b for a, b in zip(low, corner, strict=True)]
                for k in range(3):
                    part *= at[k] - low[k] if corner[k] else 1 - (at[k] - low[k])
                if (side + 1) ** 3 <= 2**log_size:
                    row = place[0] + (side + 1) * (place[1] + (side + 1) * place[2])
                else:
                    for c, prime in zip(place, PRIMES, strict=True):
                        row ^= c * prime
                    row %= 2**log_size
                wanted[p, 2 * level : 2 * level + 2] += part * field.table.data[start + row]
        start += rows
    assert len(field.table) == start
    torch.testing.assert_close(field.encoded(local), wanted, atol=1e-6, rtol=1e-5)


def test_levels_are_seen_one_after_the_other():
    field = made(HashGrid, levels=4, progressive=(1, 0.2, 0.1))
    local = torch.rand(9, 3)
    seen = []
    for progress in (0.0, 0.19, 0.2, 0.31, 0.9):
        field.at_step(progress)
        seen.append(int((field.encoded(local).abs().sum(0).view(4, 2).sum(1) > 0).sum()))
    assert seen == [1, 1, 2, 3, 4]


def test_published_sizes_of_the_hash_grid():
    field = HashGrid(log_size=12)  # 2^19 rows are slow to draw; cells a side do not depend on them
    assert field.sides[0] == 16 and field.sides[-1] in (4095, 4096) and field.levels == 16 and field.features == 2


def test_the_fifth_layer_of_a_nerf_sees_the_place_again():
    field = made(NeRF)
    at = waves(places(7)[0], 3)
    deep = at
    for i, layer in enumerate(field.layers):
        given = torch.cat([deep, at], -1) if i == 4 else deep
        deep = (given @ layer.weight.T + layer.bias).clamp_min(0)
    torch.testing.assert_close(field.trunk(at), deep)


def test_waves_are_the_published_ones():
    found = waves(torch.tensor([[0.25, -0.5, 1.0]]), 2)
    phases = torch.tensor([0.25, 0.5, -0.5, -1.0, 1.0, 2.0]) * torch.pi
    torch.testing.assert_close(found[0], torch.cat([torch.tensor([0.25, -0.5, 1.0]), phases.sin(), phases.cos()]))


def test_harmonics_are_orthonormal_on_the_sphere():
    n = 200  # midpoints in z and azimuth: exact for what has no higher degree than these resolve
    z = (torch.arange(n, dtype=torch.float64) + 0.5) / n * 2 - 1
    a = (torch.arange(n, dtype=torch.float64) + 0.5) / n * 2 * torch.pi
    flat = (1 - z.square()).sqrt()
    ways = torch.stack([flat[:, None] * a.cos(), flat[:, None] * a.sin(), z[:, None].expand(n, n)], -1).view(-1, 3)
    y = harmonics.basis(ways, 3)
    products = y.T @ y * (4 * torch.pi / n**2)
    torch.testing.assert_close(products, torch.eye(16, dtype=torch.float64), atol=1e-3, rtol=0)
    assert y[:, 1:4].sum(0).abs().max() < 1e-6
    up = harmonics.basis(torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]), 1)[:, 1:]
    torch.testing.assert_close(up, 0.4886025119 * torch.tensor([[0.0, 1, 0], [-1, 0, 0], [0, 0, -1]]))


@pytest.mark.parametrize(
    ("kind", "bad", "words"),
    [
        (Voxels, {"resolution": 1}, "2 cells"),
        (Voxels, {"degree": 4}, "degree from 0 to 3"),
        (HashGrid, {"levels": 0}, "a hash grid has levels"),
        (NeRF, {"depth": 0}, "a network has layers"),
        (Residual, {"channels": 0}, "a channel or more"),
    ],
)
def test_what_no_field_is_is_refused(kind, bad, words):
    with pytest.raises(SfumatoError, match=words):
        kind(**bad)


def test_a_file_that_is_no_scene_is_one_line(tmp_path):
    from safetensors.torch import save_file

    good = save_scene(tmp_path / "good.safetensors", FieldScene(Voxels(4)))
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(good.read_bytes()[:-100])
    other = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(2)}, other)
    strange = tmp_path / "strange.safetensors"
    text = good.read_bytes().replace(b'\\"field\\": \\"Voxels\\"', b'\\"field\\": \\"Clouds\\"')
    assert text != good.read_bytes()
    strange.write_bytes(text)
    words = tmp_path / "words.safetensors"
    words.write_text("hello")
    smaller = tmp_path / "smaller.safetensors"
    smaller.write_bytes(good.read_bytes().replace(b'\\"channels\\": 3', b'\\"channels\\": 2', 1))
    for file, line in (
        (cut, "cannot read"), (other, "is no scene"), (strange, "there is no Clouds, but Voxels"),
        (words, "cannot read"), (smaller, "not known here"), (tmp_path / "none.safetensors", "there is no file"),
    ):  # fmt: skip
        with pytest.raises(SfumatoError, match=line) as error:
            load_scene(file)
        assert "\n" not in str(error.value)
