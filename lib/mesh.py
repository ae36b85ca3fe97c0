"""A mesh at the door: read any format, refuse what is no mesh and say why, normalise, write.

`read` belongs inside a guarded worker (pool.py): what a file promises is held against its size before it is believed,
but a hang or a crash in a native reader can only be caught from outside.

OBJ, PLY and OFF are read here, because their faces may be polygons: trimesh cuts those into fans, and the fan of a
concave polygon spills over its outline and closes its holes. (It also misreads OBJ's relative indices, refuses a binary
PLY of mixed faces, and takes a text file that was cut off for a smaller mesh.) trimesh reads all else, after a look at
what it would pass over in silence.
"""

import io
import json
import re
import struct
import tarfile
import warnings
import zipfile
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import trimesh

ARCHIVES = {".zip", ".zae", ".tar.gz", ".tar.bz2"}
SUFFIXES = frozenset(
    {".obj", ".ply", ".off", ".stl", ".glb", ".gltf", ".3mf", ".3dxml", ".dae", ".xaml", ".step", ".stp"} | ARCHIVES
)

FILE_LIMIT = 4 << 30  # bytes of a file
INFLATED_LIMIT = 2 << 30  # bytes inside an archive ...
RATIO_LIMIT = 100  # ... and how many times its own size, once past 64 MiB
MEMBER_LIMIT = 10_000  # files in an archive
INSTANCE_LIMIT = 100_000  # times a scene places its meshes
FACE_LIMIT = 50_000_000  # triangles once all instances are placed
LARGEST = 1e18  # a coordinate; its square still fits float32


def read(source) -> tuple[np.ndarray, np.ndarray]:
    """The triangles of a file, all its parts placed: V (n, 3) float64, F (m, 3) int64, every vertex used, none merged.

    Raises ValueError, with the path, the reason and what to do, for whatever is not a surface.
    """
    with _naming(source):
        V, F = _geometry(*_open(Path(source)))
        _check(V, F)
    used = _used(V, F)
    return (V, F) if used.all() else (V[used], (np.cumsum(used) - 1)[F])


def read_scene(source) -> trimesh.Scene:
    """The same file as trimesh's scene with its materials, where the source has it: for pictures, not for measures.

    A texture that is missing or lies outside the mesh's folder is left out, the geometry stays.
    """
    read(source)
    with _naming(source):
        data, suffix, beside = _open(Path(source))
        return _scene(_cut_obj(data) if suffix == ".obj" else data, suffix, beside, looks=True)


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
    elif suffix in (".glb", ".stl"):
        target.write_bytes(trimesh.Trimesh(V, F, process=False).export(file_type=suffix[1:]))
    else:
        raise ValueError(f"{target}: meshes are written as .obj, .ply, .glb or .stl, not as {suffix or 'no suffix'}")


def _write_obj(file, V, F, rows=50_000):
    """Seven decimals where half the longest side is near 1, shifted with the mesh's size otherwise."""
    half = np.ptp(V, 0).max() / 2
    decimals = int(np.clip(7 - np.floor(np.log10(half or 1)), 0, 30))
    V = np.round(V, decimals) + 0.0  # no -0.0
    for row, values in ((f"v %.{decimals}f %.{decimals}f %.{decimals}f\n", V), ("f %d %d %d\n", F + 1)):
        for part in (values[i : i + rows] for i in range(0, len(values), rows)):
            file.write((row * len(part) % tuple(part.ravel().tolist())).encode())


# -- the door ---------------------------------------------------------------------------------------------------------


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
            reason = f"the package that reads this format is missing ({error}): pip install lxml pycollada cascadio"
        reason = " ".join(reason.split())[:300]
        step = "Repair it or export it again, or take it out of the folder."
        raise ValueError(f"{source} is not read: {reason}. {step}") from error


def _check(V, F):
    if V.ndim != 2 or V.shape[1] != 3 or F.ndim != 2 or F.shape[1] != 3 or F.dtype.kind not in "iu":
        raise ValueError(f"V {V.shape} and F {F.shape} {F.dtype} are not (n, 3) vertices and (m, 3) indices")
    if not len(F):
        raise ValueError(f"points only: {len(V)} vertices, no faces" if len(V) else "empty: no vertices, no faces")
    _in_range(F, V)
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


def _in_range(indices, V):
    low, high = (indices.min(), indices.max()) if indices.size else (0, -1)
    if low < 0 or high >= len(V):
        raise ValueError(f"index out of range: faces name vertices {low} to {high}, counted from 0, of {len(V)}")


def _has_area(T):
    """Whether any of the triangles T (m, 3, 3) is more than a line."""
    edges = T - np.roll(T, 1, 1)  # (m, 3, 3)
    longest = (edges**2).sum(2).max(1)
    return bool((np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]), axis=1) > 1e-10 * longest).any())


def _open(path):
    """The bytes of a mesh, its suffix, and what gives trimesh the files beside it (in its folder or archive)."""
    suffix = _suffix(path.name)
    if not suffix:
        raise ValueError(f"the suffix of a mesh is one of {' '.join(sorted(SUFFIXES))}")
    if not path.is_file():
        raise ValueError("it is not there, or not a file")
    size = path.stat().st_size
    if size == 0:
        raise ValueError("empty: 0 bytes")
    if size > FILE_LIMIT:
        raise ValueError(f"it has {size >> 20} MiB, the limit is {FILE_LIMIT >> 20}")
    data = path.read_bytes()
    _sniff(data)
    if suffix not in ARCHIVES:
        return data, suffix, _Beside(str(path.absolute()))

    files = {PurePosixPath(name): content for name, content in _unpack(data, tar=".tar" in suffix).items()}
    found = [name for name in files if _suffix(name.name) and name.name[0] != "." and "__MACOSX" not in name.parts]
    if len(found) != 1 or _suffix(found[0].name) in ARCHIVES:
        raise ValueError(f"an archive holds one mesh, this one {len(found)}: unpack it into the folder of meshes")
    data, home = files[found[0]], found[0].parent
    _sniff(data)
    beside = {str(name.relative_to(home)): files[name] for name in files if name.is_relative_to(home)}
    return data, _suffix(found[0].name), trimesh.resolvers.ZipResolver(beside)


class _Beside(trimesh.resolvers.FilePathResolver):
    """trimesh's own resolver, which never leaves the folder, for names that may be percent-encoded."""

    def get(self, name):
        return super().get(unquote(name))


def _suffix(name):
    return next((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), None)


def _sniff(data):
    start = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(b"version https://git-lfs"):
        raise ValueError("a Git LFS pointer, not the file itself: run `git lfs pull` where it came from")
    if start.startswith((b"<!doctype html", b"<html")):
        raise ValueError("an HTML page, likely an error message saved in place of the file: download it again")
    if not data.strip(b"\0 \t\r\n"):
        raise ValueError("empty: only blanks")


def _inside(name):
    """Refuse the name of another file unless it stays in the mesh's folder."""
    name = unquote(name).strip()
    if re.match(r"[a-zA-Z][\w+.-]*:|[/\\]", name) or ".." in re.split(r"[\\/\s]+", name):
        raise ValueError(f"it refers to {name[:200]!r}, outside its own folder: bring the file there and name it so")


def _unpack(data, tar=False):
    """The files of an archive as {name: bytes}: nothing is written, and no more inflated than is honest."""
    files, total = {}, 0
    for name, size, plain, get in _members(data, tar):
        if re.match(r"[a-zA-Z]:|[/\\]", name) or ".." in re.split(r"[\\/]+", name):
            raise ValueError(f"its member {name[:200]!r} would land outside the folder")
        if not plain:
            raise ValueError(f"its member {name[:200]!r} is a link, a device or encrypted")
        total += size
        if total > INFLATED_LIMIT or total > max(RATIO_LIMIT * len(data), 64 << 20):
            raise ValueError(f"an archive bomb: {len(data)} bytes that inflate to {total} or more")
        if len(files) >= MEMBER_LIMIT:
            raise ValueError(f"an archive of more than {MEMBER_LIMIT} files")
        files[name] = get()
    return files


def _members(data, tar):
    """(name, size, plain file?, its bytes) of each file in a zip or tar, the sizes as promised."""
    if not tar:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = [info for info in archive.infolist() if not info.is_dir()]
            if sum(info.file_size for info in infos) > INFLATED_LIMIT:
                raise ValueError(f"an archive bomb: {len(data)} bytes that inflate to over {INFLATED_LIMIT}")
            for info in infos:
                plain = not info.flag_bits & 1 and info.external_attr >> 28 in (0, 8)
                yield info.filename, info.file_size, plain, lambda info=info: archive.read(info)
    else:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            for info in (info for info in archive if not info.isdir()):
                yield info.name, info.size, info.isfile(), lambda info=info: archive.extractfile(info).read()


# -- by trimesh -------------------------------------------------------------------------------------------------------


def _geometry(data, suffix, beside):
    if suffix in POLYGONS:
        V, corners, sizes = POLYGONS[suffix](data)
        return V, corners[triangulate(V, corners, sizes)]
    expected = PEEKS[suffix](data)
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
        _in_range(F, V)  # or it would name the next part's
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


def _peek_stl(data):
    count = int.from_bytes(data[80:84], "little")
    if len(data) >= 84 and len(data) == 84 + 50 * count:
        return
    if not re.match(rb"(?i)\s*solid", data) or not re.search(rb"(?i)facet", data[:10_000]):
        raise ValueError(f"neither STL text, nor what its header promises: {84 + 50 * count} bytes, it has {len(data)}")
    if not re.search(rb"(?i)endsolid", data[-10_000:]):
        raise ValueError("truncated: no endsolid at its end")


def _peek_step(data):
    if b"ISO-10303-21" not in data[:1000] or b"END-ISO-10303-21" not in data[-1000:]:
        raise ValueError("truncated, or no STEP file: it does not run from ISO-10303-21 to END-ISO-10303-21")


def _peek_xml(data):
    """No format here needs a DTD, and a DTD is where entity bombs and references to other files live."""
    data = data.replace(b"\0", b"")  # utf-16, near enough
    encoding = re.search(rb"<\?xml[^>]*encoding\s*=\s*[\"']([^\"']*)", data[:300])
    if encoding and not re.fullmatch(rb"(?i)utf-?(8|16)|(us-)?ascii|(iso-8859|windows)-?\d+(-\d+)?", encoding[1]):
        raise ValueError(f"XML in the encoding {encoding[1].decode('latin-1')}: save it as utf-8")
    if re.search(rb"(?i)<!(doctype|entity)", data):
        raise ValueError("XML with a DTD or entity declarations, as entity bombs have: remove them")


def _peek_dae(data):
    _peek_xml(data)
    root = ElementTree.fromstring(data)
    named = {"#" + node.get("id", ""): node for node in root.iterfind(".//{*}node")}

    def below(node):
        return node.findall("{*}node") + [named[i.get("url")] for i in node.iterfind("{*}instance_node")]

    _count_parts(root.iterfind(".//{*}visual_scene/{*}node"), below, lambda node: 1)


def _peek_3dxml(data):
    for name, part in _unpack(data).items():
        if not name.lower().endswith((".png", ".jpg", ".jpeg")):
            _peek_xml(part)


def _peek_3mf(data):
    _peek_3dxml(data)
    main = next((part for name, part in _unpack(data).items() if "3d/3dmodel.model" in name.lower()), None)
    if main is None:
        raise ValueError("no 3D/3dmodel.model in it")
    objects, items, current = {}, [], None
    for tag, attributes in re.findall(rb"<(?:\w+:)?(object|component|item)\b([^>]*)", main):
        value = dict(re.findall(rb"([\w:]+)\s*=\s*[\"']([^\"']*)", attributes))
        if tag == b"object":
            current = objects.setdefault(value[b"id"], [])
        elif tag == b"item":
            items.append(value[b"objectid"])
        else:  # what lies in another file of the archive, at a path, is an end
            path = next((text for key, text in value.items() if key.endswith(b"path")), b"")
            current.append(path + value[b"objectid"])
    return _count_parts(items, lambda name: objects.get(name, ()), lambda name: not objects.get(name))


def _count_parts(roots, below, own):
    """How many parts a scene graph places, own(node) by each node. Refuses cycles, and graphs that multiply."""
    placed = {}

    def walk(node):
        if node not in placed:
            placed[node] = None  # on the way
            placed[node] = own(node) + sum(map(walk, below(node)))
        if placed[node] is None:
            raise ValueError("its node graph has a cycle")
        return placed[node]

    total = sum(map(walk, roots))
    if not total:
        raise ValueError("no faces: its scene places no surface")
    if total > INSTANCE_LIMIT:
        raise ValueError(f"its node graph places {float(total):.0f} parts, the limit is {INSTANCE_LIMIT}")
    return total


def _peek_glb(data):
    magic, version, length = struct.unpack_from("<4sII", data) if len(data) >= 20 else (b"", 0, 0)
    if magic != b"glTF" or version != 2:
        raise ValueError("its header is not that of a GLB of glTF 2")
    if length != len(data):
        raise ValueError(f"its header promises {length} bytes, the file has {len(data)}")
    at, kinds = 12, []
    while at < length:
        size, kind = struct.unpack_from("<I4s", data, at)
        kinds.append(kind)
        at += 8 + size
    if at != length or kinds[0] != b"JSON":
        raise ValueError(f"its header promises chunks of {at} bytes in all, the file has {length}")
    (size,) = struct.unpack_from("<I", data, 12)
    return _peek_gltf(data[20 : 20 + size])


def _peek_gltf(data):
    """How many parts its nodes place; refuses what trimesh would follow, zero-fill or leave out without a word."""
    tree = json.loads(data)
    for file in tree.get("buffers", []) + tree.get("images", []):
        if not file.get("uri", "data:").startswith("data:"):
            _inside(file["uri"])
    for name in tree.get("extensionsRequired", []):
        if not re.search(r"material|texture|light|quantization", name):
            raise ValueError(f"it needs the glTF extension {name}: export it without")
    meshes, nodes, views, accessors = (tree.get(key, []) for key in ("meshes", "nodes", "bufferViews", "accessors"))
    for accessor in accessors:
        room = views[accessor["bufferView"]]["byteLength"] if "bufferView" in accessor else 100 * len(data)
        if not 0 <= accessor["count"] <= room:
            raise ValueError(f"its header promises {accessor['count']} items in a buffer of {room} bytes")

    surfaces = [[p for p in mesh["primitives"] if p.get("mode", 4) > 3] for mesh in meshes]  # no points, no lines
    for primitive in chain(*surfaces):
        used = [accessors[i] for i in (primitive["attributes"]["POSITION"], primitive.get("indices")) if i is not None]
        if any("sparse" in a or a.get("normalized") or "bufferView" not in a for a in used):
            raise ValueError("sparse, normalized or compressed vertices are not read: export it without")
        if primitive.get("mode") == 6:
            raise ValueError("triangle fans are not read: export it as triangles")

    roots = tree["scenes"][tree.get("scene", 0)].get("nodes", []) if tree.get("scenes") else []
    return _count_parts(
        roots,
        lambda i: nodes[i].get("children", []),
        lambda i: len(surfaces[nodes[i]["mesh"]]) if "mesh" in nodes[i] else 0,
    )


PEEKS = {
    ".stl": _peek_stl,
    ".glb": _peek_glb,
    ".gltf": _peek_gltf,
    ".3mf": _peek_3mf,
    ".3dxml": _peek_3dxml,
    ".dae": _peek_dae,
    ".xaml": _peek_xml,
    ".step": _peek_step,
    ".stp": _peek_step,
}


# -- polygons ---------------------------------------------------------------------------------------------------------


def _obj_lines(data):
    """The lines of an OBJ, without comments, joined where they go on, vertices and faces at the start of theirs."""
    if b"\0" in data:
        raise ValueError("damaged: NUL bytes in a text file")
    data = re.sub(rb"\\\r?\n", b" ", re.sub(rb"#[^\r\n]*", b"", b"\n" + data))
    if re.search(rb"\n[ \t]|\n[vf]\t", data):
        data = re.sub(rb"(?m)^[ \t]*([vf])[ \t]", rb"\1 ", data)
    for names in re.findall(rb"\nmtllib(.*)", data):
        _inside(names.decode("latin-1"))
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


def _cut_obj(data):
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


POLYGONS = {".obj": _read_obj, ".off": _read_off, ".ply": _read_ply}


def triangulate(V, corners, sizes) -> np.ndarray:
    """Cut polygons into triangles inside their outlines: (m, 3) places in `corners`, in the order of the polygons."""
    _in_range(corners, V)
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
