"""The closest face of a mesh to many points, by a tree of boxes that is compiled when it is first used.

Twice as fast as libigl's tree: boxes are in single precision, eight side by side, and a search starts with the face
that the point before had found. What is found is exact in double precision all the same, and no order of the points
changes a bit of it. Compiling takes 3 seconds, once on a machine: numba keeps the result beside this file, or
where NUMBA_CACHE_DIR says.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from numba import njit

WIDE = 8  # children of a node, whose boxes one loop measures


class Tree(NamedTuple):
    """Boxes about boxes about faces. Compiled code reads it, so it is plain arrays."""

    boxes: np.ndarray  # (n, 6, 8) single precision: low x, y, z and high x, y, z of each child of a node, a little wide
    child: np.ndarray  # (n, 8) the child's node, or -1 - its face in the order of the tree
    face: np.ndarray  # (m,) the mesh's number of each face in the order of the tree
    corners: np.ndarray  # (m, 12) a, b - a, c - a and the products of these two with each other


def plant(V: np.ndarray, F: np.ndarray) -> Tree:
    """The tree of faces (m, 3) of corners V; a face may be a point, three times the same corner."""
    X = V[F]  # (m, 3, 3)
    low, high, face = X.min(1), X.max(1), np.arange(len(F))
    boxes, child = np.empty((len(F), 6, WIDE), np.float32), np.empty((len(F), WIDE), np.int32)
    wide = np.abs(X).max() * 2.0**-21  # covers what single precision takes from the boxes and from points near them
    count = divide(low - wide, high + wide, (low + high) / 2, face, boxes, child)
    a, u, v = X[face, 0], X[face, 1] - X[face, 0], X[face, 2] - X[face, 0]
    products = [np.einsum("ij,ij->i", *pair)[:, None] for pair in ((u, u), (u, v), (v, v))]
    return Tree(boxes[:count].copy(), child[:count].copy(), face, np.hstack([a, u, v, *products]))


def search(V: np.ndarray, F: np.ndarray) -> Callable:
    """For field.prepare."""
    return partial(closest, plant(V, F))


def closest(tree: Tree, P: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distance (n,), face (n,) and point (n, 3) closest to each P (n, 3); fastest if neighbours follow each other."""
    distance, place, point = np.empty(len(P)), np.empty(len(P), np.int64), np.empty((len(P), 3))
    descend(tree.boxes, tree.child, tree.corners, np.ascontiguousarray(P, np.float64), distance, place, point)
    return distance, tree.face[place], point


@njit(cache=True, nogil=True)  # a claim's heartbeat goes on meanwhile
def divide(low, high, middle, face, boxes, child):
    """Fill boxes and child, and put the faces and their middles in the tree's order; how many nodes there are.

    A node's faces are halved where their middles lie widest apart, the larger part first, until there are eight parts.
    """
    todo, count = [(0, len(face), 0)], 1
    part = np.empty((WIDE, 2), np.int64)
    while len(todo):
        start, stop, node = todo.pop()
        part[0, 0], part[0, 1], parts = start, stop, 1
        while parts < WIDE:
            k = 0
            for i in range(1, parts):
                if part[i, 1] - part[i, 0] > part[k, 1] - part[k, 0]:
                    k = i
            start, stop = part[k]
            if stop - start == 1:
                break
            half = (start + stop) // 2
            axis, width = 0, -1.0
            for d in range(3):
                least = most = middle[start, d]
                for i in range(start, stop):
                    least, most = min(least, middle[i, d]), max(most, middle[i, d])
                if most - least > width:
                    axis, width = d, most - least
            select(face, middle, axis, start, stop, half)
            part[k, 1], part[parts, 0], part[parts, 1] = half, half, stop
            parts += 1
        child[node] = 0  # none: the root is nobody's child
        for i in range(parts):
            start, stop = part[i]
            if stop - start == 1:
                child[node, i] = -1 - start
            else:
                child[node, i] = count
                todo.append((start, stop, count))
                count += 1
    for node in range(count - 1, -1, -1):  # children come after their parents
        for i in range(WIDE):
            k = child[node, i]
            for d in range(3):
                least, most = np.float32(1e18), np.float32(1e18)  # of no child: no point is near
                if k < 0:
                    least, most = np.float32(low[face[-1 - k], d]), np.float32(high[face[-1 - k], d])
                elif k > 0:
                    least, most = boxes[k, d, 0], boxes[k, 3 + d, 0]
                    for j in range(1, WIDE):
                        if child[k, j] != 0:
                            least, most = min(least, boxes[k, d, j]), max(most, boxes[k, 3 + d, j])
                boxes[node, d, i], boxes[node, 3 + d, i] = least, most
    return count


@njit(cache=True)
def select(face, middle, axis, start, stop, half):
    """Order faces so that those before `half` lie lower along the axis than those from it on (Hoare's selection)."""
    left, right = start, stop - 1
    while left < right:
        pivot = middle[(left + right) // 2, axis]
        i, j = left, right
        while i <= j:
            while middle[i, axis] < pivot:
                i += 1
            while middle[j, axis] > pivot:
                j -= 1
            if i <= j:
                face[i], face[j] = face[j], face[i]
                for d in range(3):  # moved along: lookups by the face's number would leave the cache
                    middle[i, d], middle[j, d] = middle[j, d], middle[i, d]
                i, j = i + 1, j - 1
        if half <= j:
            right = j
        elif half >= i:
            left = i
        else:
            return


@njit(cache=True, nogil=True, error_model="numpy")
def descend(boxes, child, corners, P, distance, place, point):
    """The nearest child first, and none that is no nearer than what was found."""
    todo, reach = np.empty(512, np.int64), np.empty(512, np.float32)  # 7 a level, of which there are 20 at most
    gap = np.empty(WIDE, np.float32)
    zero, last = np.float32(0), 0
    for n in range(len(P)):
        x, y, z = np.float32(P[n, 0]), np.float32(P[n, 1]), np.float32(P[n, 2])
        found, s, t = to_face(P[n, 0], P[n, 1], P[n, 2], corners, last)
        limit = np.float32(found * (1 + 2.0**-19))  # of squares of distances in single precision
        todo[0], reach[0], top = 0, 0, 1
        while top:
            top -= 1
            if reach[top] >= limit:
                continue
            node = todo[top]
            if node < 0:
                squared, s_new, t_new = to_face(P[n, 0], P[n, 1], P[n, 2], corners, -1 - node)
                if squared < found or (squared == found and -1 - node < last):  # or the order of points would decide
                    found, s, t, last = squared, s_new, t_new, -1 - node
                    limit = np.float32(found * (1 + 2.0**-19))
                continue
            for i in range(WIDE):
                dx = max(max(boxes[node, 0, i] - x, x - boxes[node, 3, i]), zero)
                dy = max(max(boxes[node, 1, i] - y, y - boxes[node, 4, i]), zero)
                dz = max(max(boxes[node, 2, i] - z, z - boxes[node, 5, i]), zero)
                gap[i] = dx * dx + dy * dy + dz * dz
            first = top
            for i in range(WIDE):
                if gap[i] < limit:
                    k = top
                    while k > first and reach[k - 1] < gap[i]:
                        todo[k], reach[k] = todo[k - 1], reach[k - 1]
                        k -= 1
                    todo[k], reach[k] = child[node, i], gap[i]
                    top += 1
        distance[n], place[n] = np.sqrt(found), last
        for d in range(3):
            point[n, d] = corners[last, d] + s * corners[last, 3 + d] + t * corners[last, 6 + d]


@njit(cache=True, error_model="numpy")  # which has no branch for a division by zero
def to_face(x, y, z, corners, k):
    """Squared distance to face k, and how far along its two sides the closest point lies (Ericson 2005, 5.1.5)."""
    px, py, pz = x - corners[k, 0], y - corners[k, 1], z - corners[k, 2]
    ux, uy, uz = corners[k, 3], corners[k, 4], corners[k, 5]
    vx, vy, vz = corners[k, 6], corners[k, 7], corners[k, 8]
    uu, uv, vv = corners[k, 9], corners[k, 10], corners[k, 11]
    d1, d2 = ux * px + uy * py + uz * pz, vx * px + vy * py + vz * pz
    d3, d4, d5, d6 = d1 - uu, d2 - uv, d1 - uv, d2 - vv
    s = t = 0.0
    if d1 > 0 or d2 > 0:  # else the first corner
        va, vb, vc = d3 * d6 - d5 * d4, d5 * d2 - d1 * d6, d1 * d4 - d3 * d2
        if d3 >= 0 and d4 <= d3:  # the second
            s = 1.0
        elif d6 >= 0 and d5 <= d6:  # the third
            t = 1.0
        elif vc <= 0 and d1 >= 0 and d3 <= 0 and d1 > d3:  # a side, if it has a length
            s = d1 / (d1 - d3)
        elif vb <= 0 and d2 >= 0 and d6 <= 0 and d2 > d6:
            t = d2 / (d2 - d6)
        elif va <= 0 and d4 >= d3 and d5 >= d6 and d4 - d3 + d5 - d6 > 0:
            t = (d4 - d3) / ((d4 - d3) + (d5 - d6))
            s = 1 - t
        elif va + vb + vc > 0:
            s, t = vb / (va + vb + vc), vc / (va + vb + vc)
    x, y, z = px - s * ux - t * vx, py - s * uy - t * vy, pz - s * uz - t * vz
    return x * x + y * y + z * z, s, t
