"""A mesh: read any format, refuse what is none and say why, normalise, write.

`read` belongs inside a guarded worker (pool.py): door.py holds what a file promises against its size before it is
believed, but a hang or a crash in a native reader can only be caught from outside. polygon.py reads the formats whose
faces may be polygons, trimesh all else.
"""

import io
import json
import struct
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import trimesh

from lib import door, polygon

SUFFIXES = frozenset(polygon.READERS.keys() | door.PEEKS.keys() | door.ARCHIVES)

FACE_LIMIT = 50_000_000  # triangles once all instances are placed
LARGEST = 1e18  # a coordinate; its square still fits float32


def read(source) -> tuple[np.ndarray, np.ndarray]:
    """The triangles of a file, all its parts placed: V (n, 3) float64, F (m, 3) int64, every vertex used, none merged.

    Raises ValueError, with the path, the reason and what to do, for whatever is not a surface.
    """
    with _naming(source):
        V, F = _geometry(*door.open_mesh(Path(source), SUFFIXES))
        _check(V, F)
    used = _used(V, F)
    return (V, F) if used.all() else (V[used], (np.cumsum(used) - 1)[F])


def read_scene(source) -> trimesh.Scene:
    """The same file as trimesh's scene with its materials, where the source has it: for pictures, not for measures.

    A texture that is missing or lies outside the mesh's folder is left out, the geometry stays.
    """
    read(source)
    with _naming(source):
        data, suffix, beside = door.open_mesh(Path(source), SUFFIXES)
        return _scene(polygon.cut_obj(data) if suffix == ".obj" else data, suffix, beside, looks=True)


def check(V, F, source) -> None:
    """Raise ValueError unless V (n, 3) and F (m, 3) are a surface one can measure; unused vertices do not count."""
    with _naming(source):
        _check(np.asarray(V), np.asarray(F))


def normalise(V) -> tuple[np.ndarray, np.ndarray, float]:
    """V, center, scale: the longest side of its box comes to span exactly [-1, 1]; source = V * scale + center."""
    V = np.asarray(V, np.float64)
    low = V.min(0)
    V = V - low  # exact at low; half of the longest side is then exact too, and so are the two ends
    half = V.max(0) / 2
    scale = half.max()
    assert scale > 0, "check() lets no mesh without extent through"
    return (V - half) / scale, low + half, float(scale)


def write(target, V, F) -> None:
    """Write triangles as .obj, .ply (binary, float32), .glb or .stl, by the suffix; the same bytes each time."""
    V, F = np.asarray(V, np.float64), np.asarray(F, np.int64)
    target = Path(target)
    suffix = target.suffix.lower()
    if suffix == ".obj":
        with target.open("wb") as file:
            _write_obj(file, V, F)
    elif suffix == ".ply":
        head = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(V)}\n"
        head += "property float x\nproperty float y\nproperty float z\n"
        head += f"element face {len(F)}\nproperty list uchar int vertex_indices\nend_header\n"
        rows = np.empty(len(F), [("size", "u1"), ("corners", "<i4", 3)])
        rows["size"], rows["corners"] = 3, F
        target.write_bytes(head.encode() + V.astype("<f4").tobytes() + rows.tobytes())
    elif suffix == ".glb":
        target.write_bytes(_glb(V, F))
    elif suffix == ".stl":
        target.write_bytes(trimesh.Trimesh(V, F, process=False).export(file_type="stl"))
    else:
        raise ValueError(f"{target}: meshes are written as .obj, .ply, .glb or .stl, not as {suffix or 'no suffix'}")


def _glb(V, F) -> bytes:
    """glTF 2.0 in one file; indices of two bytes where they do, which makes small meshes a third smaller."""
    P = V.astype("<f4")
    corners = F.astype("<u2" if len(V) < 65535 else "<u4")
    parts = [P.tobytes(), corners.tobytes()]
    box = {"min": P.min(0).tolist(), "max": P.max(0).tolist()}
    kind = 5123 if corners.itemsize == 2 else 5125
    about = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1}]}],
        "accessors": [
            {"bufferView": 0, "componentType": 5126, "count": len(P), "type": "VEC3", **box},
            {"bufferView": 1, "componentType": kind, "count": F.size, "type": "SCALAR"},
        ],
        "bufferViews": [
            {"buffer": 0, "byteOffset": 0, "byteLength": len(parts[0]), "target": 34962},
            {"buffer": 0, "byteOffset": len(parts[0]), "byteLength": len(parts[1]), "target": 34963},
        ],
        "buffers": [{"byteLength": sum(map(len, parts))}],
    }
    chunks = ((b"JSON", json.dumps(about, separators=(",", ":")).encode(), b" "), (b"BIN\0", b"".join(parts), b"\0"))
    body = b""
    for name, content, filler in chunks:
        content += filler * (-len(content) % 4)
        body += struct.pack("<I", len(content)) + name + content
    return b"glTF" + struct.pack("<II", 2, 12 + len(body)) + body


def _write_obj(file, V, F, rows=50_000):
    """Seven decimals where half the longest side is near 1, shifted with the mesh's size otherwise."""
    half = np.ptp(V, 0).max() / 2 if len(V) else 0  # a half-trained network may draw nothing
    decimals = int(np.clip(7 - np.floor(np.log10(half or 1)), 0, 30))
    V = np.round(V, decimals) + 0.0  # no -0.0
    for row, values in ((f"v %.{decimals}f %.{decimals}f %.{decimals}f\n", V), ("f %d %d %d\n", F + 1)):
        for part in (values[i : i + rows] for i in range(0, len(values), rows)):
            file.write((row * len(part) % tuple(part.ravel().tolist())).encode())


# -- what they are made of --------------------------------------------------------------------------------------------


@contextmanager
def _naming(source):
    """Whatever goes wrong inside becomes a ValueError with the path, the reason and the next step."""
    try:
        yield
    except MemoryError:  # the pool's to tell
        raise
    except Exception as error:
        reason = str(error) if isinstance(error, ValueError) else f"its reader fails: {type(error).__name__} {error}"
        if isinstance(error, ImportError):
            reason = f"a package to read this format is missing: {error} (for STEP: pip install cascadio)"
        reason = " ".join(reason.split())[:300]
        step = "Repair it or export it again, or take it out of the folder."
        raise ValueError(f"{source} is not read: {reason}. {step}") from error


def _check(V, F):
    if V.ndim != 2 or V.shape[1] != 3 or F.ndim != 2 or F.shape[1] != 3 or F.dtype.kind not in "iu":
        raise ValueError(f"V {V.shape} and F {F.shape} {F.dtype} are not (n, 3) vertices and (m, 3) indices")
    if not len(F):
        raise ValueError(f"points only: {len(V)} vertices, no faces" if len(V) else "empty: no vertices, no faces")
    polygon.in_range(F, V)
    U = V[_used(V, F)]
    finite = np.isfinite(U).all(1)
    if not finite.all():
        raise ValueError(f"NaN or Inf: {(~finite).sum()} of {len(U)} vertices are not finite numbers")
    largest = np.abs(U).max()
    if largest > LARGEST:
        raise ValueError(f"coordinates up to {largest:.3g}, the limit is {LARGEST:g}")
    extent = np.ptp(U, 0).max()
    if extent <= 1e-12 * largest:
        raise ValueError("zero extent: all its vertices lie in one point")
    if not any(_has_area(V[part] / extent) for part in np.array_split(F, 1 + len(F) // 100_000)):
        raise ValueError(f"degenerate: none of its {len(F)} faces has an area")


def _used(V, F):
    used = np.zeros(len(V), bool)
    used[F] = True
    return used


def _has_area(T):
    """Whether any of the triangles T (m, 3, 3) is more than a line."""
    edges = T - np.roll(T, 1, 1)  # (m, 3, 3)
    longest = (edges**2).sum(2).max(1)
    return bool((np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]), axis=1) > 1e-10 * longest).any())


def _geometry(data, suffix, beside):
    if suffix in polygon.READERS:
        V, corners, sizes = polygon.READERS[suffix](data)
        return V, corners[polygon.triangulate(V, corners, sizes)]
    expected = door.PEEKS[suffix](data)
    V, F, placed = _flatten(_scene(data, suffix, beside))
    if expected is not None and placed != expected:
        raise ValueError(f"of its {expected} placed parts trimesh reads {placed}")
    return V, F


def _scene(data, suffix, beside, looks=False):
    options = dict(process=False, skip_materials=not looks, allow_remote=False, resolver=beside)
    with warnings.catch_warnings():  # numpy < 2.4 only warns when numbers stop in the middle
        warnings.filterwarnings("error", "string or file could not be read", DeprecationWarning)
        return trimesh.load_scene(io.BytesIO(data), file_type=suffix[1:], **options)


def _flatten(scene):
    """All triangles of a scene where its transforms put them, and how many parts that are."""
    Vs, Fs, size, faces = [], [], 0, 0
    for node in scene.graph.nodes_geometry:
        matrix, name = scene.graph[node]
        part = scene.geometry.get(name)
        if not len(getattr(part, "faces", ())):  # points, lines
            continue
        V, F = part.vertices.view(np.ndarray), part.faces.view(np.ndarray)
        polygon.in_range(F, V)  # or it would name the next part's
        faces += len(F)
        if faces > FACE_LIMIT:
            raise ValueError(f"its instances come to over {FACE_LIMIT} triangles")
        Vs.append(V @ matrix[:3, :3].T + matrix[:3, 3])
        Fs.append(size + (F[:, ::-1] if np.linalg.det(matrix[:3, :3]) < 0 else F))  # a mirror turns faces over
        size += len(V)
    if not Vs:
        points = sum(len(getattr(part, "vertices", ())) for part in scene.geometry.values())
        raise ValueError(f"points only: {points} vertices, no faces" if points else "empty: no faces")
    return np.concatenate(Vs), np.concatenate(Fs), len(Vs)
