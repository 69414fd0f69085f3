"""Surfaces of triangles: normals, areas, lengths along them, the cotangent Laplacian and what is smooth by it.

Pure functions of tensors. What is of a surface's connections sees vertices at one place as one, as files cut surfaces
open where their textures or normals do.
"""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from scipy import sparse
from scipy.sparse.csgraph import connected_components, dijkstra
from scipy.spatial import ConvexHull, QhullError, cKDTree
from torch import Tensor

from sfumato.errors import SfumatoError


def face_normals(vertices: Float[Tensor, "v 3"], faces: Int[Tensor, "f 3"]) -> Float[Tensor, "f 3"]:
    """Of a length twice the face's area, outwards where faces are counterclockwise."""
    a, b, c = vertices.double()[faces].unbind(1)
    return torch.linalg.cross(b - a, c - a)


def vertex_normals(vertices: Float[Tensor, "v 3"], faces: Int[Tensor, "f 3"]) -> Float[Tensor, "v 3"]:
    """The mean of the faces' around each vertex by their area, of length 1; 0 where no face is."""
    places, index = welded(vertices)
    normals = face_normals(vertices, faces)
    sums = torch.zeros(len(places), 3, dtype=torch.float64, device=vertices.device)
    for corner in range(3):
        sums.index_add_(0, index[faces[:, corner]], normals)
    return F.normalize(sums, dim=1)[index].float()


def vertex_areas(vertices: Float[Tensor, "v 3"], faces: Int[Tensor, "f 3"]) -> Float[Tensor, " v"]:
    """A third of the faces around each vertex."""
    each = face_normals(vertices, faces).norm(dim=1) / 6
    return torch.zeros(len(vertices), dtype=torch.float64).index_add_(0, faces.flatten(), each.repeat_interleave(3))


def welded(vertices: Float[Tensor, "v 3"]) -> tuple[Float[Tensor, "p 3"], Int[Tensor, " v"]]:
    """The places where vertices are, and of each vertex which of them it is at."""
    places, index = torch.unique(vertices, dim=0, return_inverse=True)
    return places, index


def diameter(vertices: Float[Tensor, "v 3"]) -> float:
    """The largest distance of two vertices."""
    points = vertices.double().cpu().numpy()
    if len(points) > 500:
        with suppress(QhullError):  # of a flat shape all points are looked at
            points = points[ConvexHull(points, qhull_options="QJ").vertices]
    some = torch.from_numpy(points)
    return max(float(torch.cdist(part, some).max()) for part in some.split(1000))


def edges(vertices: Float[Tensor, "v 3"], faces: Int[Tensor, "f 3"]) -> tuple[sparse.csr_matrix, Int[Tensor, " v"]]:
    """Lengths of the edges between places, both ways, and which place each vertex is at."""
    places, index = welded(vertices)
    f = index[faces]
    pairs = torch.cat([f[:, [0, 1]], f[:, [1, 2]], f[:, [2, 0]]])
    pairs = torch.unique(pairs.sort(1).values, dim=0)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    lengths = (places[pairs[:, 0]].double() - places[pairs[:, 1]].double()).norm(dim=1).numpy()
    one, two = pairs.T.numpy()
    half = sparse.coo_matrix((lengths, (one, two)), (len(places), len(places)))
    return (half + half.T).tocsr(), index


def components(vertices: Float[Tensor, "v 3"], faces: Int[Tensor, "f 3"]) -> int:
    """Of how many pieces a surface is, which do not touch."""
    graph, index = edges(vertices, faces)
    _, labels = connected_components(graph, directed=False)
    return len(np.unique(labels[index[faces.flatten()].numpy()]))


def geodesics(
    vertices: Float[Tensor, "v 3"], faces: Int[Tensor, "f 3"], start: Int[Tensor, " n"]
) -> Float[Tensor, "n v"]:
    """Lengths along the surface from some vertices to all, inf to other pieces.

    Along edges, and across each two faces that share one, from corner to corner of the pair laid flat where that line
    crosses their edge: a few per cent too long, never too short.
    """
    graph, index = edges(vertices, faces)
    found = dijkstra(_joined(vertices, faces, index, graph), directed=False, indices=index[start].numpy())
    return torch.from_numpy(found)[:, index]


def _joined(
    vertices: Float[Tensor, "v 3"], faces: Int[Tensor, "f 3"], index: Tensor, graph: sparse.csr_matrix
) -> sparse.csr_matrix:
    """The edges, and the ways across them."""
    f = index[faces]
    sides = torch.cat([f[:, [0, 1, 2]], f[:, [1, 2, 0]], f[:, [2, 0, 1]]])  # an edge and the corner opposite of it
    ends = sides[:, :2].sort(1).values
    key = ends[:, 0] * (int(index.max()) + 1) + ends[:, 1]
    by_key = key.argsort(stable=True)
    same = key[by_key][1:] == key[by_key][:-1]
    one, two = by_key[:-1][same], by_key[1:][same]
    places = torch.zeros(int(index.max()) + 1, 3, dtype=torch.float64)
    places[index] = vertices.double()
    a, b = places[ends[one, 0]], places[ends[one, 1]]
    p, q = places[sides[one, 2]], places[sides[two, 2]]
    along = F.normalize(b - a, dim=1)
    xp, xq = ((p - a) * along).sum(1), ((q - a) * along).sum(1)
    hp, hq = (p - a - xp[:, None] * along).norm(dim=1), (q - a - xq[:, None] * along).norm(dim=1)
    crossing = xp + (xq - xp) * hp / (hp + hq).clamp_min(1e-300)
    fits = (crossing >= 0) & (crossing <= (b - a).norm(dim=1)) & (sides[one, 2] != sides[two, 2])
    lengths = torch.hypot(xp - xq, hp + hq)[fits]
    i, j = sides[one, 2][fits], sides[two, 2][fits]
    known = graph.tocoo()
    rows = np.concatenate([known.row, i.numpy(), j.numpy()])
    columns = np.concatenate([known.col, j.numpy(), i.numpy()])
    values = np.concatenate([known.data, lengths.numpy(), lengths.numpy()])
    order = np.lexsort((values, columns, rows))  # of several ways between two places the shortest
    rows, columns, values = rows[order], columns[order], values[order]
    first = np.r_[True, (rows[1:] != rows[:-1]) | (columns[1:] != columns[:-1])]
    return sparse.csr_matrix((values[first], (rows[first], columns[first])), graph.shape)


def laplacian(
    vertices: Float[Tensor, "v 3"], faces: Int[Tensor, "f 3"]
) -> tuple[sparse.csr_matrix, Float[np.ndarray, " p"], Tensor]:
    """The cotangent Laplacian (positive), the area about each place, and which place each vertex is at."""
    places, index = welded(vertices)
    f = index[faces]
    corner = places.double()[f]
    n = len(places)
    rows, columns, values = [], [], []
    for k in range(3):
        i, j = f[:, (k + 1) % 3], f[:, (k + 2) % 3]
        u, v = corner[:, (k + 1) % 3] - corner[:, k], corner[:, (k + 2) % 3] - corner[:, k]
        cot = (u * v).sum(1) / torch.linalg.cross(u, v).norm(dim=1).clamp_min(1e-12)
        rows += [i, j]
        columns += [j, i]
        values += [cot / 2, cot / 2]
    w = sparse.coo_matrix(
        (torch.cat(values).numpy(), (torch.cat(rows).numpy(), torch.cat(columns).numpy())), (n, n)
    ).tocsr()
    area = vertex_areas(places, f).numpy()
    return (sparse.diags(np.asarray(w.sum(1)).ravel()) - w).tocsr(), np.maximum(area, area.max() * 1e-9), index


def harmonics(
    vertices: Float[Tensor, "v 3"], faces: Int[Tensor, "f 3"], many: int
) -> tuple[Float[Tensor, "v k"], Float[Tensor, " v"]]:
    """The ``many`` smoothest functions on a surface, orthonormal by area, and each vertex's area.

    By ``scipy``'s eigsh, from the same start each time. Raises ``SfumatoError`` where there are not as many.
    """
    from scipy.sparse.linalg import eigsh

    stiff, area, index = laplacian(vertices, faces)
    if not 1 <= many < len(area) - 1:
        raise SfumatoError(f"a surface of {len(area)} places has fewer than {many} smooth functions; take fewer")
    start = np.random.default_rng(0).standard_normal(len(area))
    small = 1e-8 * float(stiff.diagonal().mean() / area.mean())
    values, found = eigsh(stiff, many, sparse.diags(area), sigma=-small, which="LM", v0=start)
    order = values.argsort()
    return torch.from_numpy(found[:, order].copy())[index], torch.from_numpy(area)[index]


def nearest(points: Float[Tensor, "n 3"], others: Float[Tensor, "m 3"]) -> Int[Tensor, " n"]:
    """Of each point the nearest of others."""
    return torch.from_numpy(cKDTree(others.double().cpu().numpy()).query(points.double().cpu().numpy())[1]).long()


def rotation(points: Float[Tensor, "n 3"], others: Float[Tensor, "n 3"]) -> Float[Tensor, "3 3"]:
    """What turns others, about their mean, nearest to points about theirs (Kabsch 1976); never a mirror image."""
    a, b = (x.double() - x.double().mean(0) for x in (points, others))
    u, _, v = torch.linalg.svd(a.T @ b)
    last = torch.linalg.det(u @ v).sign()
    return ((u * torch.stack([torch.ones_like(last), torch.ones_like(last), last])) @ v).to(points)


def near(vertices: Float[Tensor, "v 3"], radius: float) -> sparse.csr_matrix:
    """1 for each two vertices within a radius, also for each with itself."""
    tree = cKDTree(vertices.double().cpu().numpy())
    pairs = tree.query_pairs(radius, output_type="ndarray")
    own = np.arange(len(vertices))
    rows, columns = np.r_[own, pairs[:, 0], pairs[:, 1]], np.r_[own, pairs[:, 1], pairs[:, 0]]
    return sparse.csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), (len(own), len(own)))
