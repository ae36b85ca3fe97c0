"""Dual contouring on sparse cells: one vertex a cell, on the source itself and on its sharp edges, always manifold."""

import numpy as np

from lib import field, manifold

LOOSE = 0.4  # cells by which a feature may lie outside its cell
QUADS = 1 << 17  # worked off at once: each takes 700 bytes on the way
SHARP = np.cos(np.radians(30))  # an edge of the source is sharp where its faces' normals differ by more

# -- the surface ------------------------------------------------------------------------------------------------------


def dual(
    surface: field.Surface,
    keys: np.ndarray,
    values: np.ndarray,  # positive inside; repaired
    wall: np.ndarray,  # corners where the surface is not the source's but lies off it
    resolution: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """V, F and, for each vertex, whether it lies on the source."""
    h = field.spacing(resolution)
    lower, upper, axis = manifold.crossed_edges(keys, values)
    point, normal, real = crossings(surface, keys, values, wall, lower, upper, resolution)
    around = keys[lower][:, None] + manifold.AROUND[axis]  # (e, 4)
    cells = field.unique(around)
    cell = field.find(cells, around).astype(np.int32)
    del around  # gigabytes at 1024

    quads = np.where((values[lower] > 0)[:, None], cell, cell[:, ::-1])  # counter-clockwise seen from outside
    off = np.zeros(len(cells), bool)
    off[cell[wall[lower] | wall[upper]]] = True

    V, meet, feature, even = place(cells, cell, point, normal, real, resolution)
    feature &= ~off
    low = field.position(field.unpack(cells), resolution)
    onto, curved = V.copy(), ~off & ~even  # the mean of a plane's crossings lies on it
    onto[curved] = field.closest(surface, V[curved])[2]
    near = ~off & (np.linalg.norm(onto - V, axis=1) < h)
    V, moved = move(V, onto, near, quads, h)
    V, snapped = move(V, snap(surface, V, meet, feature, low, h), feature, quads, h)
    F, _ = split(V, quads, quad_normals(V, quads), snapped)
    return V, F.astype(np.int64), moved | snapped


def crossings(surface, keys, values, wall, lower, upper, resolution):
    """Point, outward normal and whether it is the source's own, of each crossed edge.

    A ray from the edge's outer end finds the source; where it lies off the source or there is none, values decide.
    """
    up = values[upper] > 0
    outer, inner = np.where(up, lower, upper), np.where(up, upper, lower)
    P, Q = (field.position(field.unpack(keys[end]), resolution) for end in (outer, inner))
    point = P + (Q - P) * np.clip(values[outer] / (values[outer] - values[inner]), 0.01, 0.99)[:, None]
    t, face = field.hits(surface, P, Q - P, 1)
    real = (t <= 1) & ~wall[outer] & ~wall[inner]
    normal = face_normals(surface.V, surface.F)[face]
    t = np.minimum(t, 1)
    with np.errstate(divide="ignore", invalid="ignore"):  # the same in double precision, but along the face
        exact = ((surface.V[surface.F[face, 0]] - P) * normal).sum(1) / ((Q - P) * normal).sum(1)
    t = np.where(np.abs(exact - t) < 1e-3, np.clip(exact, 0, 1), t)
    point[real] = (P + (Q - P) * t[:, None])[real]
    normal[((P - Q) * normal).sum(1) < 0] *= -1
    return point, normal, real


def face_normals(V: np.ndarray, F: np.ndarray) -> np.ndarray:
    N = np.cross(V[F[:, 1]] - V[F[:, 0]], V[F[:, 2]] - V[F[:, 0]])
    return N / np.maximum(np.linalg.norm(N, axis=1, keepdims=True), 1e-300)


def place(cells, cell, point, normal, real, resolution):
    """A vertex for each cell: the mean of its crossings, or where their planes meet if they differ: that is a feature.

    V within the cells; where the planes meet, if a little outside; which are features; which have one plane only.
    """
    n = len(cells)
    flat = cell.ravel().astype(np.int64)  # once, as every bincount would

    def total(x):
        return np.bincount(flat, np.repeat(x, 4), n)

    hits = total(real)
    weight = np.where(real, 1.0, 0.03)  # cells with but one of the source's own may share it
    mean = np.stack([total(x) for x in (point * weight[:, None]).T], -1) / total(weight)[:, None]
    normal = normal * real[:, None]
    agree = np.linalg.norm(np.stack([total(x) for x in normal.T], -1), axis=1)
    feature, even = agree < 0.985 * hits, agree > (1 - 1e-9) * np.bincount(flat, minlength=n)

    # Least squares of n . (v - x) over the crossings, from the mean point, in the directions that they determine.
    A = np.stack([total(x * y)[feature] for x in normal.T for y in normal.T], -1).reshape(-1, 3, 3)
    offset = (normal * point).sum(1)
    b = np.stack([total(x * offset)[feature] for x in normal.T], -1)
    b -= np.einsum("nij,nj->ni", A, mean[feature])
    size, axes = np.linalg.eigh(A)
    inverse = np.where(size > 0.06 * size[:, -1:], 1 / np.maximum(size, 1e-12), 0)
    meet = mean.copy()
    meet[feature] += np.einsum("nij,nj,nkj,nk->ni", axes, inverse, axes, b)
    low = field.position(field.unpack(cells), resolution)
    h = field.spacing(resolution)
    return np.clip(meet, low, low + h), np.clip(meet, low - LOOSE * h, low + (1 + LOOSE) * h), feature, even


def snap(surface, V, meet, feature, low, h):
    """Where features would like to be: on the source near the planes' meeting point, or on its sharp edge or corner."""
    wanted = V.copy()
    at = np.flatnonzero(feature)
    wanted[at] = field.closest(surface, meet[at])[2]
    edges, corners = sharp(surface.V, surface.F)
    for elements in (edges, corners):  # corners last: they win
        _, point = field.nearest(surface.V, elements, meet[at])
        inside = ((point > low[at] - LOOSE * h) & (point < low[at] + (1 + LOOSE) * h)).all(1)
        wanted[at[inside]] = point[inside]
    return wanted


def borders(V: np.ndarray, F: np.ndarray, rims: bool = True) -> np.ndarray:
    """Sharp edges (n, 2) of a mesh, and with rims those of one face only."""
    N = face_normals(V, F)
    a, b = F.ravel(), np.roll(F, -1, 1).ravel()
    key = np.minimum(a, b) * len(V) + np.maximum(a, b)
    order = np.argsort(key, kind="stable")
    same = key[order][1:] == key[order][:-1]
    one, two = order[:-1][same], order[1:][same]
    bent = (N[one // 3] * N[two // 3]).sum(1) * np.where(a[one] == a[two], -1, 1) < SHARP
    alone = order[~np.r_[False, same] & ~np.r_[same, False]]
    chosen = np.r_[one[bent], alone] if rims else one[bent]
    return np.stack([a[chosen], b[chosen]], -1)


def sharp(V: np.ndarray, F: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sharp edges (n, 2) of a mesh, and the vertices (m, 1) where they end, branch or turn."""
    edges = borders(V, F, rims=False)
    direction = V[edges[:, 1]] - V[edges[:, 0]]
    direction /= np.maximum(np.linalg.norm(direction, axis=1, keepdims=True), 1e-300)
    degree = np.bincount(edges.ravel(), minlength=len(V))
    away = np.stack([np.bincount(edges.ravel(), np.stack([d, -d], -1).ravel(), len(V)) for d in direction.T], -1)
    turns = (degree > 0) & ((degree != 2) | (np.linalg.norm(away, axis=1) > 2 * np.sin(np.radians(15))))
    return edges, np.flatnonzero(turns)[:, None]


def quad_normals(V: np.ndarray, quads: np.ndarray) -> np.ndarray:
    N = np.empty((len(quads), 3))
    for part in field.parts(len(quads), QUADS):
        a, b, c, d = V[quads[part]].swapaxes(0, 1)
        N[part] = np.cross(c - a, d - b)
        N[part] /= np.maximum(np.linalg.norm(N[part], axis=1, keepdims=True), 1e-300)
    return N


def split(V, quads, reference, feature):
    """Two triangles for each quad, and the worst cosine between them and the quad's reference normal.

    The diagonal is the better one by that cosine, but one that joins features goes first if it turns nothing over.
    """
    F, worst = np.empty((len(quads), 2, 3), quads.dtype), np.empty(len(quads))
    for part in field.parts(len(quads), QUADS):
        F[part], worst[part] = halves(V, quads[part], reference[part], feature)
    return F.reshape(-1, 3), worst


def halves(V, quads, reference, feature):
    a, b, c, d = quads.T
    both = np.stack([[a, b, c, a, c, d], [b, c, d, b, d, a]]).transpose(0, 2, 1).reshape(2, -1, 2, 3)
    N = np.cross(V[both[..., 1]] - V[both[..., 0]], V[both[..., 2]] - V[both[..., 0]])  # (2, n, 2, 3)
    size = np.linalg.norm(N, axis=-1)
    thin = size < 1e-3 * size.max((0, 2))[:, None]  # a face without area has no direction
    worst = np.where(thin, 0.0, (N * reference[:, None]).sum(-1) / np.maximum(size, 1e-300)).min(-1)  # (2, n)
    along, across = feature[a] & feature[c], feature[b] & feature[d]
    prefer = np.where(along == across, 0, np.where(along, 1, -1)) * (np.where(along, worst[0], worst[1]) > 0.2)
    second = np.where(prefer == 0, worst[1] > worst[0] + 1e-6, prefer < 0)  # no last bit decides
    return np.where(second[:, None, None], both[1], both[0]), np.where(second, worst[1], worst[0])


def move(V, wanted, may, quads, h):
    """Move vertices to where they want to be, but no two to one place and none that would turn a face over.

    And which were moved.
    """
    place = np.round(wanted / (1e-3 * h)).astype(np.int64)
    far = np.linalg.norm(wanted - V, axis=1)
    order = np.lexsort([far, *place.T, ~may])  # the nearest first
    again = np.zeros(len(V), bool)
    again[order[1:]] = (place[order[1:]] == place[order[:-1]]).all(1)
    del place, far, order
    may = may & ~again
    quads = quads[may[quads].any(1)]
    for _ in range(8):
        new = np.where(may[:, None], wanted, V)
        _, worst = split(new, quads, quad_normals(V, quads), may)
        blame = np.zeros(len(V), bool)
        blame[quads[worst < 0.1]] = True
        blame &= may
        if not blame.any():
            return new, may
        may &= ~blame
        quads = quads[blame[quads].any(1)]  # only these have changed
    return V, np.zeros_like(may)


def intersections(surface: field.Surface) -> np.ndarray:
    """Faces (m,) that an edge of another goes through: a ray along each edge, its first hit that is no neighbour.

    Single precision also hits what the edge only touches, so each is asked again in double.
    """
    F = surface.F
    a, b = F.ravel(), np.roll(F, -1, 1).ravel()
    once = a < b
    a, b = a[once], b[once]
    pierced = np.zeros(len(F), bool)
    for part in field.parts(len(a)):
        pierced[pierced_by(surface, a[part], b[part])] = True
    return pierced


def pierced_by(surface: field.Surface, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Faces that edges from a to b go through."""
    V, F, found = surface.V, surface.F, []
    start = np.full(len(a), 1e-3)
    todo = np.arange(len(a))
    for _ in range(4):  # neighbours lie along the ray, and are hit now and then: go on behind them
        D = V[b[todo]] - V[a[todo]]
        t, face = field.hits(surface, V[a[todo]] + D * start[todo, None], D, 1)
        t = t + start[todo]
        hit = (face >= 0) & (t < 1 - 1e-3)
        todo, face, t = todo[hit], face[hit], t[hit]
        neighbour = ((F[face] == a[todo, None]) | (F[face] == b[todo, None])).any(1)
        other = ~neighbour
        found.append(face[other][crosses(V[a[todo[other]]], V[b[todo[other]]], V[F[face[other]]])])
        start[todo] = t + 1e-3
        todo = todo[neighbour]
    return np.concatenate(found)


def crosses(P: np.ndarray, Q: np.ndarray, T: np.ndarray) -> np.ndarray:
    """Whether each segment from P to Q (n, 3) goes through the inside of a triangle (n, 3, 3)."""

    def volume(a, b, c):
        return (np.cross(a - P, b - P) * (c - P)).sum(1)

    A, B, C = T.swapaxes(0, 1)
    N = np.cross(B - A, C - A)
    apart = ((P - A) * N).sum(1) * ((Q - A) * N).sum(1) < 0
    turn = np.stack([volume(Q, A, B), volume(Q, B, C), volume(Q, C, A)])
    return apart & ((turn > 0).all(0) | (turn < 0).all(0))
