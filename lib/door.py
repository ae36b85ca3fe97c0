"""What a file or an archive promises, held against what it is, before any reader believes it.

A promise is a size, a count, a place: readers allocate, follow and inflate what a header says, or pass over in silence
what they do not know. Whatever does not hold here is a ValueError with the reason; mesh.py adds the path.
"""

import io
import json
import re
import struct
import tarfile
import zipfile
from itertools import chain
from pathlib import PurePosixPath
from urllib.parse import unquote
from xml.etree import ElementTree

import trimesh

ARCHIVES = {".zip", ".zae", ".tar.gz", ".tar.bz2"}

FILE_LIMIT = 4 << 30  # bytes of a file
INFLATED_LIMIT = 2 << 30  # bytes inside an archive ...
RATIO_LIMIT = 100  # ... and how many times its own size, once past 64 MiB
MEMBER_LIMIT = 10_000  # files in an archive
INSTANCE_LIMIT = 100_000  # times a scene places its meshes


def open_mesh(path, suffixes):
    """The bytes of a mesh, its suffix, and what gives trimesh the files beside it (in its folder or archive)."""
    suffix = _suffix(path.name, suffixes)
    if not suffix:
        raise ValueError(f"the suffix of a mesh is one of {' '.join(sorted(suffixes))}")
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
    kinds = {name: _suffix(name.name, suffixes) for name in files}
    found = [name for name in files if kinds[name] and name.name[0] != "." and "__MACOSX" not in name.parts]
    if len(found) != 1 or kinds[found[0]] in ARCHIVES:
        raise ValueError(f"an archive holds one mesh, this one {len(found)}: unpack it into the folder of meshes")
    data, home = files[found[0]], found[0].parent
    _sniff(data)
    beside = {str(name.relative_to(home)): files[name] for name in files if name.is_relative_to(home)}
    return data, kinds[found[0]], trimesh.resolvers.ZipResolver(beside)


class _Beside(trimesh.resolvers.FilePathResolver):
    """trimesh's own resolver, which never leaves the folder, for names that may be percent-encoded."""

    def get(self, name):
        return super().get(unquote(name))


def _suffix(name, suffixes):
    return next((suffix for suffix in suffixes if name.lower().endswith(suffix)), None)


def _sniff(data):
    start = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(b"version https://git-lfs"):
        raise ValueError("a Git LFS pointer, not the file itself: run `git lfs pull` where it came from")
    if start.startswith((b"<!doctype html", b"<html")):
        raise ValueError("an HTML page, likely an error message saved in place of the file: download it again")
    if not data.strip(b"\0 \t\r\n"):
        raise ValueError("empty: only blanks")


def inside(name):
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


# -- what each format promises ----------------------------------------------------------------------------------------


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
            inside(file["uri"])
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
