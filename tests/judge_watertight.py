"""Judge a closed mesh against its source with code of its own: its topology, distances both ways, what a ball reaches.

Nothing here asks lib/watertight.py what it believes, but for two flags that a user sees too: hollow, and how many caps.
"""

import functools

import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene
from igl import AABB, fast_winding_number
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

SAMPLES = 20_000  # points on either surface
SIDES = 5_000  # of them tell from how many sides the source is seen
FACES = 10_000  # triangles whose self-intersections are looked for
DIRECTIONS = 100  # from which it is looked at
CORNERS = 250_000_000  # of a dense grid, at the most
BOX = 1.05

BARS = {  # what a result is held to: name -> the most, and of what in the figures below; None where it does not apply
    "closed": (0, lambda f: f["open_edges"] + f["torn_fans"]),
    "volume": (0, lambda f: int(f["volume"] <= 0)),
    "outward": (0.01, lambda f: f["inward"]),
    "no_shells": (0, lambda f: f["shells"]),
    "mean": (0.25, lambda f: f["mean"] if f["solid"] else None),
    "near": (0.001, lambda f: f["far"] if f["solid"] else None),
    "kept": (0.001, lambda f: f["missed"]),
    "bounds": (1.2, lambda f: f["bounds"]),
    "flagged": (0, lambda f: int(f["hollow"] and not f["flagged"])),
    "simple": (0.0099, lambda f: f["crossing"]),
}


def judge(source: tuple, result: tuple, resolution: int, facts: dict, opened=None, seed: int = 0) -> dict:
    """Figures of a result (V, F) beside its source (V, F), both normalised; lengths are in cells.

    `opened` gives what is made of the same source without caps, if they are to be told from what is lost otherwise.
    """
    rng = np.random.default_rng(seed)
    h, eps = 2 * BOX / resolution, 2 / resolution
    source, result = Mesh(*drop_flat(*source)), Mesh(*result)
    figures = topology(result.V, result.F) | shells(result, 0.02 * h, rng)
    figures["crossing"] = crossing(result.V, result.F, rng)
    area = np.linalg.norm(result.normals, axis=1).sum() / 2
    figures["hollow"], figures["flagged"] = bool(figures["volume"] < 1.1 * area * eps), bool(facts["hollow"])
    ends = [np.array([m.V[m.F].min((0, 1)), m.V[m.F].max((0, 1))]) for m in (source, result)]
    figures["bounds"] = float(np.abs(ends[0] - ends[1]).max() / h)
    figures["spans"] = bool(np.isclose(np.ptp(ends[0], axis=0).max(), 2, rtol=0, atol=1e-6))

    # From the result to the source: where the source is thinner than 2 eps the result may be a wall around it.
    P, N, _ = sample(result, SAMPLES, rng)
    distance, touched, face = source.closest(P)
    far = distance > 1.3 * h
    thick = ~is_thin(source, touched, N, 2 * eps, h)
    if 0 < thick.sum() < len(P):  # the rim of a thin part belongs to it
        thick[thick] = cKDTree(P[~thick]).query(P[thick])[0] > 2 * eps
    if 0 < thick.sum() < len(P) and distance[thick].mean() > BARS["mean"][0] * h:
        thick[thick] = ~on_rim(source, result, P[thick], 2 * eps, h, np.random.default_rng(seed + 1))
    if thick.any() and distance[thick].mean() > BARS["mean"][0] * h:  # a sheet whose back a ball comes to is no solid
        wall = thick & ~far
        thick[wall] = to_flood(source, touched[wall] - eps * N[wall], eps, h / 2) > 0.9 * eps
    figures |= {
        "mean": float(distance[thick].mean() / h) if thick.mean() > 0.001 else 0.0,  # a stray sample has no mean
        "mean_all": float(distance.mean() / h),
        "far": float(far.mean()),
        "farthest": float(distance.max() / h),
        "thin": float(1 - thick.mean()),
    } | along_edges(source, P[thick], N[thick], face[thick], 2 * h)

    # Caps lie where the source has nothing: how much of what is far is theirs. It explains a miss, and excuses none.
    without = functools.cache(lambda: Mesh(*opened()))
    telling = facts["caps"] and opened and far.mean() > BARS["near"][0]
    figures["on_caps"] = float((without().closest(P[far])[0] > h / 2).mean()) if telling else 0.0

    # From the source to the result, where the source can be seen and a ball of radius eps can come near.
    P, N, _ = sample(source, SAMPLES, rng)
    seen = source.seen(P, N)
    figures["two_sided"] = float(seen[:SIDES].all(1).sum() / max(seen[:SIDES].any(1).sum(), 1))
    figures["solid"] = figures["two_sided"] < 0.002
    P, N = P[seen.any(1)], N[seen.any(1)]
    distance = result.closest(P)[0]
    lost = np.flatnonzero(distance > 2 * h)
    lost = rng.permutation(lost)[:400]  # a share of them tells enough
    each = (distance > 2 * h).mean() / max(len(lost), 1)
    reached, brushed, capped = np.zeros((3, len(lost)), bool)
    if each * len(lost) > 0.001:  # else it does not matter, and floods take seconds
        # Where a sheet becomes a wall its surface is where the ball's centre can be: the centre has to come near.
        reached = straight_in(source, P[lost], eps, 2 * h, h)
        if not reached.all():
            gap = to_flood(source, P[lost], eps, h)
            if each * (reached | (gap <= 2 * h)).sum() > 0.001:
                near = gap <= 2 * h + eps
                gap[near] = to_flood(source, P[lost[near]], eps, h / 2)
            brushed = reached | (gap <= 2 * h + eps)
            reached |= gap <= 2 * h
        else:
            brushed = reached
        if facts["caps"]:
            caps = result.F[source.closest(result.V[result.F].mean(1))[0] > 1.1 * h]
            capped = brushed & (to_flood(source, P[lost], eps, h, Mesh(result.V, caps)) > 2 * h + eps)
            reached, brushed = reached & ~capped, brushed & ~capped
            if opened and each * reached.sum() > 0.001:
                # Caps also close slits about a hole that a ball may just pass: what is there without them, they took.
                capped |= brushed & (without().closest(P[lost])[0] <= 2 * h)
                reached, brushed = reached & ~capped, brushed & ~capped
    else:
        reached = brushed = ~capped
    figures |= {
        "missed": float(each * reached.sum()),
        "brushed": float(each * brushed.sum()),  # where its skin comes within 2 cells
        "unreached": float(each * (~reached & ~capped).sum()),
        "capped": float(each * capped.sum()),
        "missed_at": [round(float(x), 4) for x in P[lost[reached.argmax()]]] if reached.any() else [],
        "seen": float(seen.any(1).mean()),
    }
    return figures


def verdict(figures: dict) -> dict:
    """Bar -> True, False, or None where it does not apply."""
    values = {name: value(figures) for name, (_, value) in BARS.items()}
    return {name: None if value is None else bool(value <= BARS[name][0]) for name, value in values.items()}


def over(figures: dict) -> dict:
    """Bar that is not met -> what came of it."""
    return {name: BARS[name][1](figures) for name, met in verdict(figures).items() if met is False}


def reach(figures: dict) -> float:
    """How much of what a bar allows is used, of the bar where it is most; above 1 one is missed."""
    used = [(value(figures), most) for most, value in BARS.values()]
    return max((value / most if most else value * np.inf for value, most in used if value), default=0.0)


# -- a mesh and its queries -------------------------------------------------------------------------------------------


class Mesh:
    """Triangles with igl's tree for distances and embree's for rays."""

    def __init__(self, V, F):
        self.V, self.F = np.array(V, np.float64, order="C"), np.array(F, np.int64, order="C")
        A, B, C = self.V[self.F].swapaxes(0, 1)
        self.normals = np.cross(B - A, C - A)  # as long as twice the area
        self.tree, self.scene = AABB(), EmbreeScene()
        self.tree.init(self.V, self.F)
        TriangleMesh(self.scene, self.V.astype(np.float32), self.F.astype(np.int32))

    def closest(self, P):
        """Distance, closest point and its face."""
        squared, face, point = self.tree.squared_distance(self.V, self.F, np.ascontiguousarray(P, np.float64))
        return np.sqrt(squared), point, face

    def first_hit(self, O, D):
        """How far a ray flies, inf if for ever."""
        if not len(O):
            return np.zeros(0)
        found = self.scene.run(np.ascontiguousarray(O, np.float32), np.ascontiguousarray(D, np.float32), output=True)
        return np.where(found["primID"] >= 0, found["tfar"], np.inf)

    def free(self, P, N, direction):
        """Whether points on the surface see the sky in a direction, from the side that faces it."""
        side = np.where(N @ direction > 0, 1.0, -1.0)[:, None]
        O = P + 1e-4 * side * N
        return np.isinf(self.first_hit(O, np.broadcast_to(direction, O.shape)))

    def seen(self, P, N):
        """(n, 2): seen from outside on the normal's side, and on the other."""
        seen = np.zeros((len(P), 2), bool)
        for direction in sphere():
            side = (N @ direction < 0).astype(int)
            todo = np.flatnonzero(~seen[np.arange(len(P)), side] & ((np.arange(len(P)) < SIDES) | ~seen.any(1)))
            seen[todo, side[todo]] = self.free(P[todo], N[todo], direction)
        return seen


def sphere(count: int = DIRECTIONS) -> np.ndarray:
    """Directions all around, evenly, none along an axis; neighbours in the list are far apart."""
    k = np.arange(count)
    z = 1 - (2 * k + 1) / count
    turn = k * np.pi * (3 - np.sqrt(5)) + 0.3
    r = np.sqrt(1 - z**2)
    return np.stack([r * np.cos(turn), r * np.sin(turn), z], -1)[np.random.default_rng(1).permutation(count)]


def drop_flat(V, F):
    """Without faces that have no area: they have no side to be seen from."""
    A, B, C = V[F].swapaxes(0, 1)
    return V, F[np.linalg.norm(np.cross(B - A, C - A), axis=1) > 1e-16]


def merged(V) -> np.ndarray:
    """One number (n,) for all vertices at one place."""
    place = np.round(V * 1e7).astype(np.int64)
    order = np.lexsort(place.T)
    number = np.empty(len(V), np.int64)
    number[order] = np.cumsum(np.r_[False, (place[order][1:] != place[order][:-1]).any(1)])
    return number


def sample(mesh: Mesh, count: int, rng) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points at random, evenly over the area, their unit normals and faces."""
    size = np.linalg.norm(mesh.normals, axis=1)
    face = rng.choice(len(mesh.F), count, p=size / size.sum())
    a, b = np.sqrt(rng.random(count)), rng.random(count)
    weight = np.stack([1 - a, a * (1 - b), a * b], -1)
    return np.einsum("nk,nkx->nx", weight, mesh.V[mesh.F[face]]), mesh.normals[face] / size[face, None], face


# -- the result alone -------------------------------------------------------------------------------------------------


def topology(V, F) -> dict:
    """Edges that have not exactly two faces, one each way; vertices with more than one fan of faces; volume."""
    m = len(F)
    a, b = F[:, [0, 1, 2]].ravel(), F[:, [1, 2, 0]].ravel()
    low, high, ahead = np.minimum(a, b), np.maximum(a, b), a < b
    order = np.lexsort((ahead, high, low))
    edge = np.stack([low, high], -1)[order]
    start = np.flatnonzero(np.r_[True, (edge[1:] != edge[:-1]).any(1)])
    count = np.diff(np.r_[start, len(edge)])
    two = start[count == 2]
    good = ahead[order][two] != ahead[order][two + 1]
    # Corners of faces (3 m of them) are joined around a vertex where their faces share an edge that ends there.
    one, other = order[two], order[two + 1]
    turn = (a[one] == a[other]).astype(int)  # the two faces run along the edge the same way
    here = np.r_[one, next_corner(one)]
    there = np.r_[np.where(turn, other, next_corner(other)), np.where(turn, next_corner(other), other)]
    fans, _ = connected_components(coo_array((np.ones(len(here), bool), (here, there)), shape=(3 * m, 3 * m)), False)
    A, B, C = V[F].swapaxes(0, 1)
    return {
        "faces": m,
        "open_edges": int((count != 2).sum() + (~good).sum()),
        "torn_fans": int(fans - len(np.unique(F))),
        "volume": float(np.einsum("ij,ij->", A, np.cross(B, C)) / 6),
    }


def next_corner(corner):
    return corner + 1 - 3 * (corner % 3 == 2)


def shells(mesh: Mesh, step: float, rng) -> dict:
    """Winding numbers just off the surface: 0 outside and 1 inside, else it faces inward or lies in another shell."""
    F, part = mesh.F, parts(mesh.V, mesh.F)
    largest = np.lexsort((-np.linalg.norm(mesh.normals, axis=1), part))
    rank = np.empty(len(F), int)
    rank[largest] = np.arange(len(F)) - np.searchsorted(part[largest], part[largest])
    face = np.unique(np.r_[np.flatnonzero(rank < 5), rng.integers(0, len(F), 5000)])  # some of each part
    N = mesh.normals[face] / np.maximum(np.linalg.norm(mesh.normals[face], axis=1, keepdims=True), 1e-300)
    P = mesh.V[F[face]].mean(1)
    sides = []
    for M in (N, -N):  # halfway to the next face, if that is nearer: parts may stand on one another
        room = 1e-6 + mesh.first_hit(P + 1e-6 * M, M) / 2
        sides.append(P + np.minimum(room, step)[:, None] * M)
    outer, inner = np.split(fast_winding_number(mesh.V, F, np.concatenate(sides)), 2)
    wrong = (np.abs(outer) > 0.3) | (np.abs(inner - 1) > 0.3)
    each = np.bincount(part[face], wrong) / np.bincount(part[face])
    A, B, C = mesh.V[F].swapaxes(0, 1)
    volume = np.bincount(part, np.einsum("ij,ij->i", A, np.cross(B, C)))  # below 0: a void
    # A part that crosses itself may have samples between its sheets: a shell is wrong nearly everywhere.
    bad = (each > 0.5) | (volume <= 0)
    return {"parts": len(bad), "shells": int(bad.sum()), "inward": float(wrong.mean())}


def parts(V, F) -> np.ndarray:
    """The number (m,) of the connected part that each face belongs to."""
    n = len(V)
    _, part = connected_components(
        coo_array((np.ones(F.size, bool), (F.ravel(), np.roll(F, 1, 1).ravel())), shape=(n, n)), directed=False
    )
    return np.unique(part[F[:, 0]], return_inverse=True)[1]


def crossing(V, F, rng) -> float:
    """Share of triangles that cross another: those drawn, held against all whose boxes meet theirs."""
    T = V[F]
    center, low, high = T.mean(1), T.min(1), T.max(1)
    radius = np.linalg.norm(T - center[:, None], axis=2).max(1)
    mine = rng.permutation(len(F))[:FACES]
    size = np.ceil(np.log2(np.maximum(radius, 1e-9))).astype(int)
    hit = np.zeros(len(F), bool)
    for one in np.unique(size):  # by size, so that a few large faces do not make all of them candidates
        those = np.flatnonzero(size == one)
        tree = cKDTree(center[those])
        for part in np.array_split(mine, max(1, len(mine) // 2000)):
            near = tree.query_ball_point(center[part], radius[part] + radius[those].max())
            a, b = np.repeat(part, list(map(len, near))), those[np.concatenate(near).astype(int)]
            meet = (low[a] <= high[b]).all(1) & (high[a] >= low[b]).all(1) & (a != b)
            a, b = a[meet], b[meet]
            for k in range(3):
                hit[a[pierces(T, F, a, b, k) | pierces(T, F, b, a, k)]] = True
    return float(hit[mine].mean())


def pierces(T, F, a, b, k) -> np.ndarray:
    """Whether the k-th edge of each triangle a goes through triangle b; edges that end on a corner of b do not."""
    P, D = T[a, k], T[a, (k + 1) % 3] - T[a, k]
    E, G = T[b, 1] - T[b, 0], T[b, 2] - T[b, 0]
    N = np.cross(E, G)
    slope = (D * N).sum(1)
    scale = np.linalg.norm(D, axis=1) * np.linalg.norm(N, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        R = P - T[b, 0]
        t = -(R * N).sum(1) / slope
        Q = R + t[:, None] * D
        u, v = (np.cross(Q, G) * N).sum(1) / (N * N).sum(1), (np.cross(E, Q) * N).sum(1) / (N * N).sum(1)
        inside = (np.minimum(t, 1 - t) > 1e-9) & (np.minimum(np.minimum(u, v), 1 - u - v) > 1e-9)
    own = ((F[b] == F[a, k][:, None]) | (F[b] == F[a, (k + 1) % 3][:, None])).any(1)
    return inside & ~own & (np.abs(slope) > 1e-9 * scale)


def is_thin(source: Mesh, touched, N, least, h) -> np.ndarray:
    """Whether the source, from where it is touched, is not that thick against N."""
    return 0.01 * h + source.first_hit(touched - 0.01 * h * N, -N) < least


def on_rim(source: Mesh, result: Mesh, P, reach, h, rng) -> np.ndarray:
    """Whether a thin part of the result lies within reach of each point: on a large one it takes more samples."""
    Q, N, _ = sample(result, 20 * SAMPLES, rng)
    near = cKDTree(P).query(Q, distance_upper_bound=reach)[0] <= reach
    Q, N = Q[near], N[near]
    Q = Q[is_thin(source, source.closest(Q)[1], N, reach, h)] if len(Q) else Q
    return cKDTree(Q).query(P)[0] <= reach if len(Q) else np.zeros(len(P), bool)


def along_edges(source: Mesh, P, N, face, reach) -> dict:
    """Of the result's area near sharp edges of the source: the share whose normal is within 10 degrees of its face."""
    edges = sharp_edges(source)
    near = np.zeros(len(P), bool)
    if len(edges) and len(P):
        tree = AABB()
        tree.init(source.V, edges)
        near = tree.squared_distance(source.V, edges, np.ascontiguousarray(P))[0] < reach**2
    M = source.normals[face[near]]
    true = np.abs((M * N[near]).sum(1)) > np.cos(np.radians(10)) * np.linalg.norm(M, axis=1)  # faces may be flipped
    return {
        "edges": float(true.mean()) if near.sum() >= 200 else None,
        "near_edges": float(near.sum() / max(len(near), 1)),
    }


def sharp_edges(mesh: Mesh) -> np.ndarray:
    """Edges (n, 2) of two faces that meet at more than 30 degrees; vertices at one place are one."""
    F = merged(mesh.V)[mesh.F]
    a, b = F[:, [0, 1, 2]].ravel(), F[:, [1, 2, 0]].ravel()
    order = np.lexsort((np.maximum(a, b), np.minimum(a, b)))
    low, high = np.minimum(a, b)[order], np.maximum(a, b)[order]
    start = np.flatnonzero(np.r_[True, (low[1:] != low[:-1]) | (high[1:] != high[:-1])])
    two = start[np.diff(np.r_[start, len(low)]) == 2]
    one, other = order[two], order[two + 1]
    N = mesh.normals / np.linalg.norm(mesh.normals, axis=1, keepdims=True)
    turn = np.where(a[one] == a[other], -1, 1)  # wound against each other: one of the faces is flipped
    sharp = (N[one // 3] * N[other // 3]).sum(1) * turn < np.cos(np.radians(30))
    corner = mesh.F.ravel()
    return np.stack([corner, np.roll(mesh.F, -1, 1).ravel()], -1)[one[sharp]]


# -- what can be reached ----------------------------------------------------------------------------------------------


def straight_in(source: Mesh, P, eps, reach, h) -> np.ndarray:
    """Whether a ball of radius eps that comes straight from afar gets its centre within reach of each point (n, 3)."""
    found = np.zeros(len(P), bool)
    for direction in sphere():
        todo = np.flatnonzero(~found)
        t = np.full(len(todo), reach)
        while len(going := np.flatnonzero(t < 4)):
            room = source.closest(P[todo[going]] + t[going, None] * direction)[0] - eps
            t[going] = np.where(room < 0, np.nan, t[going] + np.maximum(room, 0.2 * h))
        found[todo[t >= 4]] = True
    return found


def to_flood(source: Mesh, P, eps, step, caps=None) -> np.ndarray:
    """How near its centre gets on any way along the axes of a grid, but not through caps; inf from 3.3 eps.

    Between two corners of the grid the ball may be up to half a step too large for its way: where a flood decides
    against a result it is done again in half steps.
    """
    free, origin, step = flood(source, eps, step, caps)
    reach = int(np.ceil(3.3 * eps / step))
    window = np.array(list(np.ndindex(*[2 * reach + 1] * 3))) - reach
    found = np.full(len(P), np.inf)
    for part in np.array_split(np.arange(len(P)), len(P) // 100 + 1):
        corner = np.round((P[part, None] - origin) / step).astype(int) + window  # (n, k, 3)
        gap = np.linalg.norm(origin + corner * step - P[part, None], axis=2)
        corner = np.clip(corner, 0, np.array(free.shape) - 1)
        found[part] = np.where(free[tuple(np.moveaxis(corner, 2, 0))], gap, np.inf).min(1)
    return found


def flood(source: Mesh, eps, step, caps=None) -> tuple[np.ndarray, np.ndarray, float]:
    """Which corners of a dense grid a ball of radius eps reaches from afar in steps along the axes; origin, step."""
    low, high = source.V[source.F].min((0, 1)) - 3.87 * eps, source.V[source.F].max((0, 1)) + 3.5 * eps
    size = (high - low) / step
    if size.prod() > CORNERS:
        step, size = 2 * step, size / 2
    free = np.ones(np.ceil(size).astype(int) + 1, bool)
    for mesh in (source, caps) if caps and len(caps.F) else (source,):
        blocked = within(mesh, eps, low, step, free.shape)
        free[tuple(blocked.T)] = False
    label, _ = ndimage.label(free)
    return label == label[0, 0, 0], low, step


def within(mesh: Mesh, reach, low, h, shape) -> np.ndarray:
    """Corners (n, 3) of a grid that are within reach of a mesh."""
    step = 32
    blocks = np.stack(np.meshgrid(*(np.arange(0, n, step) for n in shape), indexing="ij"), -1).reshape(-1, 3)
    while True:
        near = mesh.closest(low + (blocks + (step - 1) / 2) * h)[0] <= reach + (step - 1) / 2 * h * np.sqrt(3)
        blocks = blocks[near]
        if step == 1:
            return blocks[(blocks < shape).all(1)]
        step //= 2
        blocks = (blocks[:, None] + step * np.array(list(np.ndindex(2, 2, 2)))).reshape(-1, 3)
