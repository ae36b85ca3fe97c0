"""The formats whose faces are polygons - OBJ, PLY, OFF - read by us, and their polygons cut into triangles.

trimesh cuts polygons into fans, and the fan of a concave polygon spills over its outline and closes its holes. (It also
misreads OBJ's relative indices, refuses a binary PLY of mixed faces, and takes a text file that was cut off for a
smaller mesh.) A reader gives V (n, 3), the polygons' corners one after another, and how many each polygon has.
"""

import re
import struct
from itertools import islice

import numpy as np

from lib.door import inside


def _obj_lines(data):
    """The lines of an OBJ, without comments, joined where they go on, vertices and faces at the start of theirs."""
    if b"\0" in data:
        raise ValueError("damaged: NUL bytes in a text file")
    data = re.sub(rb"\\\r?\n", b" ", re.sub(rb"#[^\r\n]*", b"", b"\n" + data))
    if re.search(rb"\n[ \t]|\n[vf]\t", data):
        data = re.sub(rb"(?m)^[ \t]*([vf])[ \t]", rb"\1 ", data)
    for names in re.findall(rb"\nmtllib(.*)", data):
        inside(names.decode("latin-1"))
    return data.splitlines()


def _read_obj(data):
    """Vertices (n, 3), the polygons' corners one after another, and how many each polygon has."""
    lines = _obj_lines(data)
    points = [line for line in lines if line[:2] == b"v "]
    faces = [line for line in lines if line[:2] == b"f "]
    if not points:
        raise ValueError("empty: no line of it is a vertex")
    V = np.loadtxt(points, usecols=(1, 2, 3), ndmin=2)
    sizes = np.array([len(line.split()) - 1 for line in faces], np.int64)
    if len(faces) and sizes[-1] < 3 and lines[-1] is faces[-1] and data[-1:] != b"\n":
        raise ValueError("truncated: its last line is an unfinished face")
    corners = np.array([int(c.partition(b"/")[0]) for line in faces for c in line[2:].split()], np.int64)
    if (corners < 0).any():  # counted back from the last vertex before the face
        so_far = np.cumsum([line[:2] == b"v " for line in lines])[[line[:2] == b"f " for line in lines]]
        corners += (corners < 0) * (np.repeat(so_far, sizes) + 1)
    return V, corners - 1, sizes


def cut_obj(data):
    """An OBJ with its polygons cut up and its indices absolute, for trimesh; corners keep their texture and normal."""
    V, corners, sizes = _read_obj(data)
    lines = _obj_lines(data)
    rest = [corner.partition(b"/")[1:] for line in lines if line[:2] == b"f " for corner in line[2:].split()]
    words = [b"%d%b%b" % (corner + 1, *more) for corner, more in zip(corners.tolist(), rest, strict=True)]
    cuts = iter([b"f " + b" ".join([words[i] for i in cut]) for cut in triangulate(V, corners, sizes).tolist()])
    counts = iter(np.maximum(sizes - 2, 0).tolist())
    return b"\n".join(b"\n".join(islice(cuts, next(counts))) if line[:2] == b"f " else line for line in lines)


def _read_off(data):
    text = re.sub(rb"#[^\n]*", b"", data)
    head = re.match(rb"\s*(ST)?C?N?OFF(?=[\s\d])", text)  # some files go on with the counts on the same line
    if not head:
        raise ValueError("its header is not OFF")
    rows = [line for line in text[head.end() :].splitlines() if line.strip()]
    points, faces = (int(count) for count in rows[0].split()[:2])
    _enough(1 + points + faces, len(rows), "lines")
    V = np.loadtxt(rows[1 : 1 + points], usecols=(0, 1, 2), ndmin=2)
    return V, *_polygon_rows(rows[1 + points : 1 + points + faces])


def _polygon_rows(rows, skip=0):
    words = [row.split() for row in rows]
    sizes = np.array([int(row[skip]) for row in words], np.int64)
    if any(len(row) <= skip + size for row, size in zip(words, sizes.tolist(), strict=True)):
        raise ValueError("truncated: a face has fewer corners than it promises")
    corners = [
        int(corner)
        for row, size in zip(words, sizes.tolist(), strict=True)
        for corner in row[skip + 1 : skip + 1 + size]
    ]
    return np.array(corners, np.int64), sizes


def _enough(promised, found, unit):
    if promised > found:
        raise ValueError(f"its header promises {promised} {unit}, the file has {found}: truncated, or the header lies")


PLY_TYPES = {
    **dict(char="i1", uchar="u1", short="i2", ushort="u2", int="i4", uint="u4", float="f4", double="f8"),
    **dict(int8="i1", uint8="u1", int16="i2", uint16="u2", int32="i4", uint32="u4", float32="f4", float64="f8"),
}


def _read_ply(data):
    head, found, body = data.partition(b"end_header")
    body = body.partition(b"\n")[2]
    if not head.startswith(b"ply") or not found:
        raise ValueError("its header does not run from `ply` to `end_header`")
    elements, order = [], None
    for words in map(str.split, head.decode("latin-1").splitlines()):
        match words:
            case ["format", kind, _]:
                order = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}[kind]
            case ["element", name, count]:
                elements.append((name, int(count), []))
            case ["property", "list", size, item, name]:
                elements[-1][2].append((name, PLY_TYPES[item], PLY_TYPES[size]))
            case ["property", item, name]:
                elements[-1][2].append((name, PLY_TYPES[item], None))
    if order is None:
        raise ValueError("its header names no format")

    tables, rest = {}, memoryview(body) if order else [line for line in body.splitlines() if line.strip()]
    for element, count, properties in elements:
        if count:
            _enough(count, len(rest), "bytes" if order else "lines")  # a row takes a byte or more
            tables[element], rest = (_ply_binary if order else _ply_text)(rest, count, properties, order)
    if any(bytes(row).strip() for row in ([rest] if order else rest)):
        raise ValueError("its header lies: the file goes on after the last promised row")
    vertex, face = tables.get("vertex"), tables.get("face", {})
    lists = [face[name] for name in ("vertex_indices", "vertex_index") if name in face]
    if not vertex or not lists:
        return np.zeros((len(vertex["x"]) if vertex else 0, 3)), np.zeros(0, np.int64), np.zeros(0, np.int64)
    return np.stack([vertex[axis] for axis in "xyz"], 1).astype(np.float64), *lists[0]


def _ply_text(lines, count, properties, _):
    """One element of a text PLY as {property: values, or (values, lengths) of its list}, and the lines after it."""
    lists = [i for i, (_, _, size) in enumerate(properties) if size]
    if lists:
        return {properties[lists[0]][0]: _polygon_rows(lines[:count], lists[0])}, lines[count:]
    columns = np.loadtxt(lines[:count], ndmin=2).T
    return {name: column for (name, _, _), column in zip(properties, columns, strict=True)}, lines[count:]


def _ply_binary(body, count, properties, order):
    """The same of a binary PLY: at once if all rows are like the first, else row by row, for faces of mixed sizes."""
    fields, lengths = [], {}
    for name, item, size in properties:
        if size:
            (lengths[name],) = struct.unpack_from(order + np.dtype(size).char, body, np.dtype(fields).itemsize)
            _enough(max(lengths[name], 0) * np.dtype(item).itemsize, len(body), "bytes")
            fields.append((name + " length", order + size))
        fields.append((name, order + item, (lengths[name],)) if size else (name, order + item))
    row = np.dtype(fields)
    if count * row.itemsize <= len(body):
        rows = np.frombuffer(body, row, count)
        if all((rows[name + " length"] == length).all() for name, length in lengths.items()):
            lists = {name: (rows[name].ravel().astype(np.int64), np.full(count, n)) for name, n in lengths.items()}
            return {name: rows[name] for name, _, _ in properties} | lists, body[count * row.itemsize :]
    if len(lengths) != 1:
        _enough(count * row.itemsize, len(body), "bytes")
        raise ValueError("its faces have several lists of mixed lengths: save it triangulated")

    (name,) = lengths
    before, after = row.fields[name + " length"][1], row.itemsize - row.fields[name][1] - row.fields[name][0].itemsize
    (item, size), at, pieces, sizes = next(p[1:] for p in properties if p[0] == name), 0, [], []
    length, width = struct.Struct(order + np.dtype(size).char), np.dtype(item).itemsize
    for _ in range(count):
        start = at + before + length.size
        sizes.append(length.unpack_from(body, at + before)[0])
        at = start + sizes[-1] * width + after
        pieces.append(body[start : start + sizes[-1] * width])
        _enough(at, len(body), "bytes")
    corners = np.frombuffer(b"".join(pieces), order + item).astype(np.int64)
    return {name: (corners, np.array(sizes, np.int64))}, body[at:]


READERS = {".obj": _read_obj, ".off": _read_off, ".ply": _read_ply}


# -- triangles --------------------------------------------------------------------------------------------------------


def triangulate(V, corners, sizes) -> np.ndarray:
    """Cut polygons into triangles inside their outlines: (m, 3) places in `corners`, in the order of the polygons."""
    in_range(corners, V)
    starts = np.cumsum(sizes) - sizes
    triangles, owners = [np.zeros((0, 3), np.int64)], [np.zeros(0, np.int64)]
    for k in np.unique(sizes[sizes >= 3]):  # faces of two corners are edges
        alike = np.flatnonzero(sizes == k)
        for some in np.array_split(alike, 1 + len(alike) * k // 1_000_000):
            places = starts[some, None] + np.arange(k)  # (n, k)
            cuts = _cut(V[corners[places]])  # (n, k - 2, 3)
            triangles.append(places[np.arange(len(some))[:, None, None], cuts].reshape(-1, 3))
            owners.append(np.repeat(some, k - 2))
    return np.concatenate(triangles)[np.argsort(np.concatenate(owners), kind="stable")]


def in_range(indices, V):
    low, high = (indices.min(), indices.max()) if indices.size else (0, -1)
    if low < 0 or high >= len(V):
        raise ValueError(f"index out of range: faces name vertices {low} to {high}, counted from 0, of {len(V)}")


def _cut(P):
    """Triangles (n, k - 2, 3) of polygons P (n, k, 3): a fan from the first corner that sees all others, or ears."""
    n, k = P.shape[:2]
    fan = np.stack([np.zeros(k - 2, np.int64), np.arange(1, k - 1), np.arange(2, k)], 1)  # (k - 2, 3)
    cuts = np.repeat(fan[None], n, 0)
    if k == 3:
        return cuts
    with np.errstate(all="ignore"):  # check() refuses NaN and Inf later
        P = P - P[:, :1]
        normal = np.cross(P, np.roll(P, -1, 1)).sum(1)  # (n, 3), Newell
        left = np.arange(n)
        for start in range(k):
            turned = (fan + start) % k
            A, B, C = (P[left][:, turned[:, i]] for i in range(3))
            area = np.einsum("nti,ni->nt", np.cross(B - A, C - A), normal[left])  # (n, k - 2)
            folded = (area < -1e-6 * (normal[left] ** 2).sum(1)[:, None]).any(1)
            cuts[left[~folded]] = turned
            left = left[folded]
            if not len(left):
                break
        for i in left:
            cuts[i] = _clip_ears(P[i], normal[i])
    return cuts


def _clip_ears(P, normal):
    """Triangles of a polygon P (k, 3): clip the ear of shortest cut that holds no other corner, and again."""
    Q = np.delete(P, np.abs(normal).argmax(), 1)  # (k, 2), seen along the axis nearest to the normal
    Q = Q * [np.sign(_turn(Q, np.roll(Q, -1, 0)).sum()), 1]
    ring, cuts = list(range(len(Q))), []
    while len(ring) > 3:
        B = Q[ring]
        A, C = np.roll(B, 1, 0), np.roll(B, -1, 0)
        ears = np.flatnonzero(_turn(B - A, C - B) >= 0)
        ears = ears[np.argsort(((C - A)[ears] ** 2).sum(1), kind="stable")]
        clip = ears[0] if len(ears) else 0  # an outline that crosses itself may have no ear
        for ear in ears:
            a, b, c = A[ear], B[ear], C[ear]
            if not ((_turn(b - a, B - a) > 0) & (_turn(c - b, B - b) > 0) & (_turn(a - c, B - c) > 0)).any():
                clip = ear
                break
        cuts.append((ring[clip - 1], ring[clip], ring[(clip + 1) % len(ring)]))
        del ring[clip]
    return [*cuts, tuple(ring)]


def _turn(a, b):
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
