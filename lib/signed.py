"""Signed distance to a closed mesh: exact near it, as exact as half precision far away, positive inside.

Queries go along a curve that fills space: neighbours then ask the same boxes of the tree, and begin with a face that is
nearly theirs. Far from the surface that is 2.5 times as fast as in random order.
"""

from typing import NamedTuple

import igl
import numpy as np

from lib import field, nearest

HALF = 2.0**-12  # by which share of itself a number may change when it is rounded to half precision
STRIDE = 8  # of so many neighbours on the curve one tells which are too near to be asked
TOUCH = 0.03  # of points anywhere: up to here the closest face says on which side one is, then its neighbours do
ASKEW = np.array(  # directions along which nothing is built
    [[0.53, 0.32, 0.79], [-0.61, 0.47, -0.64], [0.35, -0.81, 0.47], [-0.29, 0.57, 0.77], [0.71, 0.38, -0.59]]
)


class Solid(NamedTuple):
    """A closed outward mesh made ready for queries."""

    tree: nearest.Tree
    surface: field.Surface  # for rays
    N: np.ndarray  # normals of its faces


def prepare(V: np.ndarray, F: np.ndarray) -> Solid:
    surface = field.prepare(V, F, rays_only=True)
    return Solid(nearest.plant(surface.V, surface.F), surface, igl.per_face_normals(surface.V, surface.F, np.zeros(3)))


def distance(solid: Solid, P: np.ndarray, beyond: float = np.inf) -> np.ndarray:
    """Distance (n,) of each P (n, 3), positive inside.

    Exact up to the distance `beyond`; from there on an error as large as half precision's rounding may save time.
    """
    order = along_curve(P)
    P = np.ascontiguousarray(P[order], np.float64)
    if np.isinf(beyond):
        gap, face, point = nearest.closest(solid.tree, P)
        inside = behind(solid, P, face, point)
    else:
        gap = far_distance(solid, P, beyond)
        rest = np.flatnonzero(np.isnan(gap))
        gap[rest], face, point = nearest.closest(solid.tree, P[rest])
        inside = together(solid, P, gap)
        touch = np.flatnonzero(gap[rest] < TOUCH)
        inside[rest[touch]] = behind(solid, P[rest[touch]], face[touch], point[touch])
    found = np.empty(len(P))
    found[order] = np.where(inside, gap, -gap)
    return found


# -- distance ---------------------------------------------------------------------------------------------------------


def far_distance(solid: Solid, P: np.ndarray, beyond: float) -> np.ndarray:
    """Distance (n,) by the nearest corner, off by at most HALF of itself; nan nearer and where it would be more.

    No point of a face is farther than r from a corner of it: if that is v away, the mesh is between sqrt(v^2 - r^2) and
    v. Of faces with too large an r for `beyond` the middles of the edges are corners too, which halves it: a few else
    decide for all. A tree of points answers three to five times as fast as one of triangles, since far away many
    triangles are about as near.
    """
    V, F = solid.surface.V, solid.surface.F
    radius = covering_radius(V, F)
    large = radius > 2 * np.sqrt(HALF) * beyond
    reach = max(radius[~large].max(initial=0), radius[large].max(initial=0) / 2)
    start = max(reach / (2 * np.sqrt(HALF)), np.hypot(beyond, reach))  # from this v on both are so
    a, b = F[large], np.roll(F[large], -1, 1)
    edges = field.unique(np.minimum(a, b) * len(V) + np.maximum(a, b))
    corners = np.r_[V, (V[edges // len(V)] + V[edges % len(V)]) / 2]
    tree = nearest.plant(corners, np.arange(len(corners))[:, None].repeat(3, 1))
    # A point's v is at most its neighbour's and the way there: this tells of most that are too near to be asked.
    asked = np.arange(STRIDE // 2, len(P), STRIDE) if len(P) > STRIDE else np.arange(len(P))
    of = asked[np.minimum(np.arange(len(P)) // STRIDE, len(asked) - 1)]
    v = np.empty(len(P))
    v[asked] = nearest.closest(tree, P[asked])[0]
    far = v[of] + np.linalg.norm(P - P[of], axis=1) > start
    rest = np.flatnonzero(far & (of != np.arange(len(P))))
    v[rest] = nearest.closest(tree, P[rest])[0]
    far = np.flatnonzero(far)
    far = far[v[far] > start]
    distance = np.full(len(P), np.nan)
    distance[far] = np.sqrt(v[far] ** 2 - reach**2 / 2)
    return distance


def covering_radius(V: np.ndarray, F: np.ndarray) -> np.ndarray:
    """Of each face (m,): no point of it is farther from the nearest of its corners."""
    corners = V[F]  # (m, 3, 3)
    sides = corners - np.roll(corners, 1, 1)
    a, b, c = np.einsum("ijk,ijk->ji", sides, sides)  # squared
    around = a * b * c / np.maximum(4 * a * b - (a + b - c) ** 2, 1e-300)  # to the circle's centre, which is inside
    longest = np.maximum(np.maximum(a, b), c)
    acute = 2 * longest < a + b + c
    return np.sqrt(np.where(acute, np.minimum(around, longest / 3), longest / 4))  # else half of the longest


def along_curve(P: np.ndarray) -> np.ndarray:
    """Indices (n,) of points (n, 3) in their order along the curve."""
    return np.sort(field.morton(P) << 32 | np.arange(len(P))) & 0xFFFFFFFF  # twice as fast as argsort


# -- sign -------------------------------------------------------------------------------------------------------------


def behind(solid: Solid, P: np.ndarray, face: np.ndarray, point: np.ndarray) -> np.ndarray:
    """Whether points (n, 3) are enclosed of which the closest face and point are known.

    The closest face is wrong behind a spike, and so is one that lies folded over its neighbours, for all points that
    ask it: of 200 artists' meshes nine had hundreds of signs wrong, up to 1 from the surface. A ray away from it meets
    another one first: where these two differ winding numbers decide.
    """
    away, O = P - point, P.astype(np.float32)
    inside, along = np.einsum("ij,ij->i", away, solid.N[face]) < 0, away @ ASKEW[0] > 0
    differ = np.empty(len(P), bool)
    for D, part in ((ASKEW[0], np.flatnonzero(along)), (-ASKEW[0], np.flatnonzero(~along))):
        differ[part] = meets_back(solid, O[part], D) != inside[part]  # two directions: neighbours' rays go alike
    doubt = np.flatnonzero(differ)
    doubt = doubt[np.linalg.norm(away[doubt], axis=1) > 1e-5]  # nearer, rays of single precision know nothing
    inside[doubt] = enclosed(solid, P[doubt])
    return inside


def winding_number(solid: Solid, P: np.ndarray, D: np.ndarray) -> np.ndarray:
    """How many more faces a ray along D from each P (n, 3) meets from behind than from before, all the way out.

    Exact for a closed mesh, however folded, if the ray misses no face: several directions should agree.
    """
    number, last, on, O = np.zeros(len(P), int), np.full(len(P), -1), np.arange(len(P)), P
    for _ in range(1000):
        t, face = field.hits(solid.surface, O, np.broadcast_to(D, O.shape))
        hit = face >= 0
        on, O, t, face = on[hit], O[hit], t[hit], face[hit]
        if not len(on):
            break
        number[on] += np.where(face == last[on], 0, np.sign(solid.N[face] @ D).astype(int))
        last[on] = face
        O = O + (t + 1e-6)[:, None] * D  # so much further that rounding does not find the same face again
    return number


def together(solid: Solid, P: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Whether points (n, 3) are enclosed, in an order in which most are nearer to the one before than both to the mesh.

    Such two are on one side, as the balls about them that reach to the mesh meet, and none of it is in them; so one in
    32 tells for all, by five rays, and where these disagree by winding numbers.
    """
    first = np.ones(len(P), bool)  # of each run of such points
    first[1:] = np.linalg.norm(np.diff(P, axis=0), axis=1) > 0.99 * (distance[:-1] + distance[1:])
    run = np.cumsum(first) - 1
    asked = np.flatnonzero((np.arange(len(P)) - np.flatnonzero(first)[run]) % 32 == 0)
    votes = sum(meets_back(solid, P[asked], D).astype(int) for D in ASKEW)
    inside, doubt = votes > 0, np.flatnonzero((votes > 0) & (votes < len(ASKEW)))
    inside[doubt] = enclosed(solid, P[asked[doubt]])
    return (np.bincount(run[asked], inside - 0.5) > 0)[run]


def enclosed(solid: Solid, P: np.ndarray) -> np.ndarray:
    """Whether points (n, 3) are enclosed, by the winding numbers that most of five rays count."""
    return np.median([winding_number(solid, P, D) for D in ASKEW], 0) > 0


def meets_back(solid: Solid, P: np.ndarray, D: np.ndarray) -> np.ndarray:
    """Whether a ray along D (3,) from each P (n, 3) first meets a face from behind."""
    back, found = np.r_[solid.N @ D > 0, False], np.empty(len(P), bool)  # face -1 is none
    for part, face in field.rays(solid.surface, P, np.broadcast_to(D, P.shape), 1e37, {}):
        found[part] = back[face]
    return found
