"""mesh.py: a hostile corpus made by code, read in a child process that is watched; and what honest files must give."""

import base64
import contextlib
import io
import json
import re
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import trimesh
from trimesh.transformations import random_rotation_matrix, rotation_matrix

from lib import mesh

CUBE = trimesh.creation.box()
SECONDS = 20  # a file may take; generous, they take milliseconds
MEMORY = 1 << 30  # bytes the child may ever hold

# -- the hostile corpus -----------------------------------------------------------------------------------------------


def gltf(**changes):
    """A triangle in a self-contained glTF, as a dictionary to damage."""
    data = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], "<f4").tobytes() + np.array([0, 1, 2, 0], "<u2").tobytes()
    tree = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1}]}],
        "accessors": [
            {"bufferView": 0, "componentType": 5126, "count": 3, "type": "VEC3"},
            {"bufferView": 1, "componentType": 5123, "count": 3, "type": "SCALAR"},
        ],
        "bufferViews": [{"buffer": 0, "byteLength": 36}, {"buffer": 0, "byteOffset": 36, "byteLength": 8}],
        "buffers": [{"byteLength": 44, "uri": "data:;base64," + base64.b64encode(data).decode()}],
    }
    return tree | changes


def with_accessor(index, drop=(), **changes):
    tree = gltf()
    tree["accessors"][index].update(changes)
    for key in drop:
        del tree["accessors"][index][key]
    return tree


def with_primitive(**changes):
    tree = gltf()
    tree["meshes"][0]["primitives"][0].update(changes)
    return tree


def glb(tree, binary=b"", length=None, chunk=None):
    text = json.dumps(tree).encode()
    text += b" " * (-len(text) % 4)
    body = struct.pack("<I4s", len(text) if chunk is None else chunk, b"JSON") + text
    if binary:
        body += struct.pack("<I4s", len(binary), b"BIN\0") + binary
    return struct.pack("<4sII", b"glTF", 2, len(body) + 12 if length is None else length) + body


def ply(vertices, faces, body=b"", kind="ascii", size="uchar"):
    head = f"ply\nformat {kind} 1.0\nelement vertex {vertices}\nproperty float x\nproperty float y\nproperty float z\n"
    return (head + f"element face {faces}\nproperty list {size} int vertex_indices\nend_header\n").encode() + body


def zipped(**members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def zip_link():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        info = zipfile.ZipInfo("cube.obj")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "../../secret.obj")
    return file.getvalue()


def tarred(kind=tarfile.REGTYPE, content=b"", name="cube.obj", link=""):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        info = tarfile.TarInfo(name)
        info.type, info.size, info.linkname = kind, len(content), link
        archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def threemf(resources, items='<item objectid="1"/>', prolog="", objects="1"):
    space = 'xmlns="http://schemas.microsoft.com/3dmanufacturing/core/2015/02"'
    text = f"{prolog}<model {space}><resources>{resources}</resources><build>{items}</build></model>"
    return zipped(**{"3D/3dmodel.model": text})


def dae(library, scene, prolog="", encoding="utf-8"):
    text = f'<?xml version="1.0" encoding="{encoding}"?>{prolog}'
    text += '<COLLADA xmlns="http://www.collada.org/2005/11/COLLADASchema" version="1.4.1">'
    text += f"<library_nodes>{library}</library_nodes><library_visual_scenes><visual_scene>{scene}</visual_scene>"
    return (text + "</library_visual_scenes></COLLADA>").encode(encoding)


def doubling(levels, node, uses):
    """A graph of `levels` nodes, each of which holds the next one twice."""
    return "".join(node.format(i, uses.format(i + 1) * 2) for i in range(levels))


TRIANGLE = "v 0 0 0\nv 1 0 0\nv 0 1 0\n"
XML_BOMB = '<!DOCTYPE lolz [<!ENTITY a "ha">' + "".join(
    f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefghi", "bcdefghij", strict=True)
)
XML_BOMB += "]>"
FACES = np.array([(3, 0, 1, 2)], [("n", "u1"), ("a", "<i4"), ("b", "<i4"), ("c", "<i4")]).tobytes()
STL = CUBE.export(file_type="stl")
OFF = CUBE.export(file_type="off").encode()
BINARY_PLY = CUBE.export(file_type="ply")
TEXT_PLY = CUBE.export(file_type="ply", encoding="ascii")
GLB = CUBE.export(file_type="glb")
NAN = np.array([[0, 0, 0], [1, 0, 0], [0, np.nan, 0]], "<f4").tobytes()
INF = np.array([[0, 0, 0], [1, 0, 0], [0, np.inf, 0]], "<f4").tobytes()
LITTLE = "binary_little_endian"
NODE = '<node id="n{0}">{1}</node>'
OBJECT = '<object id="{0}"><components>{1}</components></object>'

# name: (content, words that must be in the reason); a dictionary is a glTF
HOSTILE = {
    "zero.obj": (b"", "0 bytes"),
    "zeros.stl": (bytes(5000), "only blanks"),
    "pointer.glb": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git LFS"),
    "page.obj": (b"\n<!DOCTYPE html><html><body>404 Not Found</body></html>", "HTML"),
    "page.stl": (b"<html><body>429 Too many requests</body></html>" * 9, "HTML"),
    "prose.obj": (b"very fine prose, found in a file\n" * 9, "no line of it is a vertex"),
    "prose.stl": (b"solid ground for a story, told in a file of the wrong kind\n" * 9, "neither"),
    "prose.ply": (b"plywood is not a mesh\n" * 9, "header"),
    "prose.off": (b"OFFICE hours\n" * 9, "header"),
    "picture.glb": (b"\x89PNG\r\n\x1a\n" + bytes(range(100)), "header"),
    "cube.xyz": (b"0 0 0\n1 0 0\n", "suffix"),
    "nothing.obj": (b"# nothing but a comment\n", "no line of it is a vertex"),
    "nothing.stl": (b"solid\nendsolid\n", "neither"),
    "no_triangles.stl": (bytes(84), "blanks"),
    "no_facets.stl": (b"made by nobody".ljust(80) + bytes(4), "empty"),
    "no_scene.gltf": (gltf(scenes=[]), "no faces"),
    "no_nodes.gltf": (gltf(scenes=[{}]), "no faces"),
    "points.obj": (TRIANGLE.encode(), "points only"),
    "edges.obj": (TRIANGLE.encode() + b"l 1 2\nf 1 2\n", "points only"),
    "points.ply": (ply(3, 0, b"0 0 0\n1 0 0\n0 1 0\n"), "points only"),
    "points.gltf": (with_primitive(mode=0), "no faces"),
    "nan.obj": (b"v 0 0 nan\nv 1 0 0\nv 0 1 0\nf 1 2 3\n", "NaN"),
    "nan.ply": (ply(3, 1, NAN + FACES, LITTLE), "NaN"),
    "inf.ply": (ply(3, 1, INF + FACES, LITTLE), "NaN or Inf"),
    "nan.stl": (bytes(80) + struct.pack("<I12fH", 1, *(0, 0, 1, 0, 0, 0, 1, 0, 0, np.nan, 1, 0), 0), "NaN"),
    "beyond_float.obj": (b"v 0 0 0\nv 1e400 0 0\nv 0 1 0\nf 1 2 3\n", "Inf"),
    "1e38.obj": (b"v 0 0 0\nv 1e38 0 0\nv 0 1e38 0\nf 1 2 3\n", "1e+38"),
    "decimal_commas.obj": (b"v 0,0 0,5 0,0\nv 1,0 0,0 0,0\nv 0,0 1,0 0,0\nf 1 2 3\n", "0,0"),
    "index.obj": (TRIANGLE.encode() + b"f 1 2 99999999\n", "out of range"),
    "index_0.obj": (TRIANGLE.encode() + b"f 0 1 2\n", "out of range"),
    "index_-4.obj": (TRIANGLE.encode() + b"f -1 -2 -4\n", "out of range"),
    "index_polygon.obj": (TRIANGLE.encode() + b"f 1 2 3 4 5\n", "out of range"),
    "index.ply": (ply(3, 1, b"0 0 0\n1 0 0\n0 1 0\n3 0 1 99999999\n"), "out of range"),
    "index.off": (b"OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 -1\n", "out of range"),
    "index.gltf": (with_accessor(1, bufferView=0, byteOffset=12, componentType=5125), "out of range"),
    "4e9.stl": (b"lies".ljust(80) + struct.pack("<I", 4_000_000_000) + STL[84:], "header promises"),
    "cut.stl": (STL[:-100], "header promises"),
    "cut_solid.stl": (b"solid but binary".ljust(80) + STL[80:-100], "header promises"),
    "cut_text.stl": (CUBE.export(file_type="stl_ascii").encode()[:-200], "truncated"),
    "4e9_text.ply": (ply(4_000_000_000, 1, b"0 0 0\n"), "header promises"),
    "4e9_binary.ply": (ply(4_000_000_000, 1, NAN, LITTLE), "header promises"),
    "4e9_faces.ply": (ply(3, 4_000_000_000, NAN + FACES, LITTLE), "header promises"),
    "4e9_list.ply": (ply(3, 1, NAN + struct.pack("<I", 4_000_000_000), LITTLE, "uint"), "header promises"),
    "long_word.obj": (b"v 0 0 " + b"x" * 100_000 + b"\n", "could not convert"),
    "negative_list.ply": (ply(3, 1, NAN + struct.pack("<i3i", -5, 0, 1, 2), LITTLE, "int"), "not read"),
    "negative_count.ply": (ply(3, -1, NAN + FACES, LITTLE), "not read"),
    "cut_binary.ply": (BINARY_PLY[:-10], "header promises"),
    "cut_text.ply": (TEXT_PLY[:-10], "truncated"),
    "cut_rows.ply": (TEXT_PLY[: -len(b"\n".join(TEXT_PLY.splitlines()[-3:]))], "truncated"),
    "cut_header.ply": (BINARY_PLY[:60], "header"),
    "too_many_rows.ply": (ply(3, 0, b"0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n"), "header lies"),
    "4e9.off": (b"OFF\n4000000000 4000000000 0\n0 0 0\n", "header promises"),
    "cut.off": (b"\n".join(OFF.splitlines()[:-3]), "header promises"),
    "cut_line.off": (OFF.rstrip()[:-2], "truncated"),
    "cut.obj": (TRIANGLE.encode() + b"f 1 2 3\nf 2 3", "truncated"),
    "cut_vertex.obj": (b"f 1 2 3\nv 0 0 0\nv 1 0 0\nv 0 1", "not read"),
    "zeroed_tail.obj": (TRIANGLE.encode() + b"f 1 2 3\n" + bytes(100), "NUL"),
    "cut.glb": (GLB[:-20], "header promises"),
    "length.glb": (glb(gltf(), length=4_000_000_000), "header promises"),
    "chunk.glb": (glb(gltf(), chunk=4_000_000_000), "header promises"),
    "garbage.glb": (glb(gltf()).replace(b"accessors", b'acces"ors'), "not read"),
    "list.gltf": (b"[1, 2, 3]", "not read"),
    "deep.gltf": (b"[" * 100_000, "not read"),
    "accessor.gltf": (with_accessor(0, count=4_000_000_000), "header promises"),
    "no_view.gltf": (with_accessor(0, ["bufferView"], count=4_000_000_000), "header promises"),
    "zeros.gltf": (with_accessor(0, ["bufferView"]), "compressed"),
    "sparse.gltf": (with_accessor(0, sparse={"count": 1}), "sparse"),
    "normalized.gltf": (with_accessor(0, normalized=True), "normalized"),
    "view.gltf": (gltf(bufferViews=[{"buffer": 0, "byteLength": 4_000_000_000}] * 2), "not read"),
    "draco.gltf": (gltf(extensionsRequired=["KHR_draco_mesh_compression"]), "KHR_draco"),
    "fan.gltf": (with_primitive(mode=6), "fans"),
    "cycle.gltf": (gltf(nodes=[{"mesh": 0, "children": [1]}, {"children": [0]}]), "cycle"),
    "doubling.gltf": (gltf(nodes=[{"children": [i + 1, i + 1]} for i in range(60)] + [{"mesh": 0}]), "places"),
    "shared.gltf": (gltf(nodes=[{"children": [1, 2]}, {"children": [3]}, {"children": [3]}, {"mesh": 0}]), "2 placed"),
    "http.gltf": (gltf(buffers=[{"byteLength": 44, "uri": "http://127.0.0.1:9/a.bin"}]), "outside"),
    "network_path.gltf": (gltf(buffers=[{"byteLength": 44, "uri": "//127.0.0.1/a.bin"}]), "outside"),
    "parent.gltf": (gltf(buffers=[{"byteLength": 44, "uri": "../../secret.bin"}]), "outside"),
    "parent_encoded.gltf": (gltf(buffers=[{"byteLength": 44, "uri": "%2e%2e%2fsecret.bin"}]), "outside"),
    "absolute.gltf": (gltf(buffers=[{"byteLength": 44, "uri": "/etc/passwd"}]), "outside"),
    "file.gltf": (gltf(buffers=[{"byteLength": 44, "uri": "file:///etc/passwd"}]), "outside"),
    "windows.gltf": (gltf(buffers=[{"byteLength": 44, "uri": "..\\secret.bin"}]), "outside"),
    "link.gltf": (gltf(buffers=[{"byteLength": 44, "uri": "link.bin"}]), "not read"),  # to ../secret.bin
    "missing.gltf": (gltf(buffers=[{"byteLength": 44, "uri": "gone.bin"}]), "gone.bin"),
    "image.gltf": (gltf(images=[{"uri": "https://127.0.0.1:9/wood.png"}]), "outside"),
    "mtllib.obj": (b"mtllib ../secret.mtl\n" + TRIANGLE.encode() + b"f 1 2 3\n", "outside"),
    "mtllib_2.obj": (b"mtllib a.mtl ..\\secret.mtl\n" + TRIANGLE.encode() + b"f 1 2 3\n", "outside"),
    "mtllib_http.obj": (b"mtllib http://127.0.0.1:9/a.mtl\n" + TRIANGLE.encode() + b"f 1 2 3\n", "outside"),
    "mtllib_root.obj": (b"# a\nmtllib /etc/passwd\n" + TRIANGLE.encode() + b"f 1 2 3\n", "outside"),
    "bomb.zip": (zipped(**{"cube.obj": bytes(80 << 20)}), "bomb"),
    "bomb.3mf": (zipped(**{"3D/3dmodel.model": bytes(80 << 20)}), "bomb"),
    "bomb.tar.gz": (tarred(content=bytes(80 << 20)), "bomb"),
    "slip.zip": (zipped(**{"../evil.obj": TRIANGLE + "f 1 2 3"}), "outside"),
    "slip_root.zip": (zipped(**{"/tmp/evil.obj": TRIANGLE + "f 1 2 3"}), "outside"),
    "slip_drive.zip": (zipped(**{"C:\\evil.obj": TRIANGLE + "f 1 2 3"}), "outside"),
    "link.zip": (zip_link(), "link"),
    "link.tar.gz": (tarred(tarfile.SYMTYPE, link="../../secret.obj"), "link"),
    "two.zip": (zipped(**{"a.obj": TRIANGLE + "f 1 2 3", "b.obj": TRIANGLE + "f 1 2 3"}), "this one 2"),
    "many.zip": (zipped(**{f"{i}.txt": "" for i in range(10_001)}), "more than"),
    "cut.zip": (zipped(**{"a.obj": TRIANGLE})[:-30], "not read"),
    "entities.3mf": (threemf("", prolog=XML_BOMB), "entity"),
    "cycle.3mf": (threemf(OBJECT.format(1, '<component objectid="1"/>')), "cycle"),
    "doubling.3mf": (threemf(doubling(60, OBJECT, '<component objectid="{0}"/>'), '<item objectid="0"/>'), "places"),
    "entities.dae": (dae("", "&j;", XML_BOMB), "entity"),
    "entities_16.dae": (dae("", "&j;", XML_BOMB, "utf-16"), "entity"),
    "entities_7.dae": (dae("", "", XML_BOMB, "utf-7"), "encoding"),
    "reference.xaml": (b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>', "entity"),
    "cycle.dae": (
        dae(NODE.format(0, '<instance_node url="#n0"/>'), '<node><instance_node url="#n0"/></node>'),
        "cycle",
    ),
    "doubling.dae": (
        dae(
            doubling(60, NODE, '<instance_node url="#n{0}"/>') + NODE.format(60, ""),
            '<node><instance_node url="#n0"/></node>',
        ),
        "places",
    ),
    "cut.step": (b"ISO-10303-21;\nHEADER;\nENDSEC;\nDATA;\n#1=CARTESIAN_POINT('',(0.,0.,0.));\n", "truncated"),
    "degenerate.obj": (b"v 0 0 0\nv .1 .2 .3\nv .3 .6 .9\nf 1 2 3\nf 3 2 1\nf 1 1 2\n", "degenerate"),
    "one_point.obj": (b"v 7.1 7.2 7.3\n" * 3 + b"f 1 2 3\n", "zero extent"),
    "almost_one_point.obj": (b"v 1e6 0 0\nv 1000000.0000000001 0 0\nv 1e6 0 1e-8\nf 1 2 3\n", "zero extent"),
}

# Reads each path of its standard input and tells how that ended, and every file, socket and process it touched.
WATCHED = """
import json, os, sys, time
import trimesh, numpy
from lib import mesh
try:
    import resource
except ImportError:
    resource = None
allowed = [os.path.realpath(p) for p in (sys.prefix, sys.base_prefix, os.path.dirname(mesh.__file__), "/proc", "/sys")]
touched = []
def watch(event, arguments):
    if event.startswith(("socket.", "subprocess.", "os.system", "os.remove", "os.rename", "os.mkdir")):
        touched.append([event, str(arguments)])
        raise PermissionError(event)
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        path, mode, flags = os.path.realpath(os.fsdecode(arguments[0])), arguments[1], arguments[2]
        if not any(path.startswith(p) for p in allowed):
            touched.append(["write" if flags & (os.O_WRONLY | os.O_RDWR) else "read", path])
sys.addaudithook(watch)
for line in sys.stdin:
    path = json.loads(line)
    touched.clear()
    start = time.monotonic()
    try:
        result = ["read", [len(a) for a in mesh.read(path)]]
    except ValueError as error:
        result = ["refused", str(error)]
    except BaseException as error:
        result = ["raised", repr(error)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 if resource and sys.platform == "linux" else 0
    print(json.dumps([path, *result, time.monotonic() - start, peak, touched]), flush=True)
"""


def watch(paths):
    """{path: [how it ended, message, seconds, peak bytes, what it touched]}, in a child; a crash costs one file."""
    results, left = {}, list(paths)
    while left:
        feed = "".join(json.dumps(path) + "\n" for path in left)
        command = [sys.executable, "-c", WATCHED]
        child = subprocess.run(
            command, input=feed, capture_output=True, text=True, timeout=300, cwd=Path(mesh.__file__).parents[1]
        )
        results |= {path: rest for path, *rest in map(json.loads, child.stdout.splitlines())}
        left = [path for path in left if path not in results]
        if left:
            results[left[0]] = ["died", f"{child.returncode} {child.stderr[-2000:]}", 0, 0, []]
            left = left[1:]
    return results


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    folder = outside / "meshes"
    folder.mkdir()
    for name in ("secret.mtl", "secret.bin", "secret.obj"):
        (outside / name).write_bytes(b"newmtl canary\n" * 99)
    with contextlib.suppress(OSError):  # Windows without developer mode
        (folder / "link.bin").symlink_to(outside / "secret.bin")
    for name, (content, _) in HOSTILE.items():
        (folder / name).write_bytes(json.dumps(content).encode() if isinstance(content, dict) else content)
    results = watch(str(folder / name) for name in HOSTILE)
    return {Path(path).name: (path, *result) for path, result in results.items()}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile(name, verdicts):
    path, ended, message, seconds, peak, touched = verdicts[name]
    assert ended == "refused", f"{ended}: {message}"
    assert message.startswith(path) and HOSTILE[name][1] in message[len(path) :], message
    assert message.endswith("take it out of the folder."), message
    assert len(message) < len(path) + 500
    assert seconds < SECONDS and peak < MEMORY
    assert touched in ([], [["read", str(Path(path).resolve())]]), (
        touched
    )  # itself, no neighbour, no socket, no writing


def test_the_watch_sees(tmp_path):
    """The corpus proves nothing if the watch is blind: it must see a neighbour that is read."""
    data = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], "<f4").tobytes() + np.array([0, 1, 2, 0], "<u2").tobytes()
    (tmp_path / "a b.bin").write_bytes(data)
    (tmp_path / "tri.gltf").write_text(json.dumps(gltf(buffers=[{"byteLength": 44, "uri": "a%20b.bin"}])))
    ended, sizes, _, _, touched = watch([str(tmp_path / "tri.gltf")])[str(tmp_path / "tri.gltf")]
    assert (ended, sizes) == ("read", [3, 1])
    assert ["read", str((tmp_path / "a b.bin").resolve())] in touched


def test_no_file(tmp_path):
    (tmp_path / "folder.obj").mkdir()
    for name in ("folder.obj", "gone.obj"):
        with pytest.raises(ValueError, match="not there, or not a file"):
            mesh.read(tmp_path / name)


# -- honest files -----------------------------------------------------------------------------------------------------


def solid(V, F):
    """Volume and Euler number after merging, as STL and others repeat their vertices."""
    merged = trimesh.Trimesh(V, F)
    assert merged.is_watertight
    return merged.volume, merged.euler_number


def triangles(V, F):
    """The triangles as a set, whatever the order of faces and their first corners."""
    T = np.round(V[F], 9) + 0.0  # (m, 3, 3)
    return sorted(min(tuple(map(tuple, np.roll(t, k, 0).tolist())) for k in range(3)) for t in T)


WRITERS = {
    ".obj": {},
    ".off": {},
    ".ply": {},
    "_text.ply": {"encoding": "ascii"},
    ".stl": {},
    "_text.stl": {"file_type": "stl_ascii"},
    ".glb": {},
    ".gltf": {},
    ".dae": {},
    ".3mf": {},
    ".zip": {},
    ".tar.gz": {},
}


@pytest.mark.parametrize("ending", WRITERS)
@pytest.mark.parametrize("shape", ["box", "icosphere"])
def test_every_format(ending, shape, tmp_path):
    source, path = getattr(trimesh.creation, shape)(), tmp_path / f"shape{ending}"
    if ending in (".dae", ".3mf"):
        pytest.importorskip("collada" if ending == ".dae" else "lxml")
    if ending == ".gltf":
        for name, content in source.export(file_type="gltf").items():
            (tmp_path / name.replace("model", "shape")).write_bytes(content)
    elif ending in (".zip", ".tar.gz"):
        content = source.export(file_type="obj").encode()
        path.write_bytes(zipped(**{"a/cube.obj": content}) if ending == ".zip" else tarred(content=content))
    else:
        source.export(path, **WRITERS[ending])
    V, F = mesh.read(path)
    assert V.dtype == np.float64 and F.dtype == np.int64 and len(F) == len(source.faces)
    assert solid(V, F) == (pytest.approx(source.volume, rel=1e-5), 2)


@pytest.mark.parametrize("suffix", [".obj", ".ply", ".glb", ".stl"])
@pytest.mark.parametrize("size", [1, 1e-6, 1e6])
def test_write_then_read(suffix, size, tmp_path):
    source = trimesh.creation.icosphere(3)
    V, F = source.vertices @ random_rotation_matrix()[:3, :3] * size, source.faces
    for name in "ab":
        mesh.write(tmp_path / (name + suffix), V, F)
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
    W, G = mesh.read(tmp_path / f"a{suffix}")
    assert np.abs(W[G] - V[F]).max() < 1e-7 * size
    if suffix != ".stl":
        assert np.array_equal(F, G) and len(W) == len(V)


def test_obj_text_is_plain(tmp_path):
    mesh.write(tmp_path / "a.obj", [[-1, -1e-12, 0], [1, 0, 0], [0, 0.123456789, 0]], [[0, 1, 2]])
    lines = (tmp_path / "a.obj").read_text().splitlines()
    assert lines == [
        "v -1.0000000 0.0000000 0.0000000",
        "v 1.0000000 0.0000000 0.0000000",
        "v 0.0000000 0.1234568 0.0000000",
        "f 1 2 3",
    ]


def test_write_names_its_formats(tmp_path):
    with pytest.raises(ValueError, match=r"a\.fbx: meshes are written as \.obj, \.ply"):
        mesh.write(tmp_path / "a.fbx", CUBE.vertices, CUBE.faces)


@pytest.mark.parametrize(
    "name", ["Stuhl (ä) 椅子.obj", "-rf.obj", "{x}.obj", "%41 100%.obj", "~.obj", "q'\"s.OBJ", "a.b.c.obj"]
)
def test_names(name, tmp_path):
    mesh.write(tmp_path / name, CUBE.vertices, CUBE.faces)
    V, F = mesh.read(tmp_path / name)
    assert solid(V, F) == (pytest.approx(1), 2)
    assert mesh.read_scene(tmp_path / name).volume == pytest.approx(1)


def test_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mesh.write("-.obj", CUBE.vertices, CUBE.faces)
    assert len(mesh.read("-.obj")[1]) == 12


@pytest.mark.parametrize("ending", [".glb", ".gltf"])
def test_scene_is_flattened(ending, tmp_path):
    """Nested transforms, an instance and a mirror; every triangle where it belongs, every part turned outwards."""
    scene, steps = (
        trimesh.Scene(),
        [
            rotation_matrix(0.3, [1, 2, 3], [4, 0, 1]),
            np.diag([2.0, 0.5, 1, 1]) + np.eye(4, k=3) * 3,
            np.diag([-1.0, 1, 1, 1]) + np.eye(4, k=3) * 4,
        ],
    )
    scene.add_geometry(CUBE, geom_name="cube", node_name="a", transform=steps[0])
    for node, parent, matrix in (("b", "a", steps[1]), ("c", "b", steps[2])):
        scene.graph.update(frame_from=parent, frame_to=node, matrix=matrix, geometry="cube")
    path = tmp_path / f"scene{ending}"
    if ending == ".gltf":
        for name, content in scene.export(file_type="gltf").items():
            (tmp_path / name.replace("model", "scene")).write_bytes(content)
    else:
        scene.export(path)
    V, F = mesh.read(path)

    expected, matrix = [], np.eye(4)
    for step in steps:
        matrix = matrix @ step
        part = CUBE.vertices @ matrix[:3, :3].T + matrix[:3, 3]
        expected.append(part[CUBE.faces[:, ::-1] if np.linalg.det(matrix) < 0 else CUBE.faces])
    assert len(F) == 36
    found, wanted = triangles(V, F), triangles(np.concatenate(expected).reshape(-1, 3), np.arange(108).reshape(-1, 3))
    assert np.allclose(found, wanted, atol=1e-6)
    parts = trimesh.Trimesh(V, F).split()
    assert [part.volume > 0 for part in parts] == [True] * 3


def test_3mf_and_collada_are_flattened(tmp_path):
    """Two parts in an assembly that is placed twice, written out by hand: where the corner (1, 0, 0) must go."""
    pytest.importorskip("lxml")
    pytest.importorskip("collada")
    corners = "".join(f'<vertex x="{x}" y="{y}" z="0"/>' for x, y in ((0, 0), (1, 0), (0, 1)))
    part = f'<mesh><vertices>{corners}</vertices><triangles><triangle v1="0" v2="1" v3="2"/></triangles></mesh>'
    turn, shift = "0 1 0 -1 0 0 0 0 1 0 0 0", "1 0 0 0 1 0 0 0 1 5 0 0"  # columns of the rotation, then the shift
    uses = f'<component objectid="1"/><component objectid="1" transform="{shift}"/>'
    items = f'<item objectid="2" transform="{turn}"/><item objectid="2" transform="{shift}"/>'
    resources = f'<object id="1">{part}</object><object id="2"><components>{uses}</components></object>'
    (tmp_path / "a.3mf").write_bytes(threemf(resources, items))

    part = """<library_geometries><geometry id="part"><mesh>
        <source id="p"><float_array id="f" count="9">0 0 0 1 0 0 0 1 0</float_array><technique_common>
        <accessor count="3" source="#f" stride="3"><param name="X" type="float"/><param name="Y" type="float"/>
        <param name="Z" type="float"/></accessor></technique_common></source>
        <vertices id="v"><input semantic="POSITION" source="#p"/></vertices><triangles count="1">
        <input offset="0" semantic="VERTEX" source="#v"/><p>0 1 2</p></triangles></mesh></geometry>
        </library_geometries>"""
    use, turn = '<instance_geometry url="#part"/>', "<matrix>0 -1 0 0 1 0 0 0 0 0 1 0 0 0 0 1</matrix>"
    shift = "<matrix>1 0 0 5 0 1 0 0 0 0 1 0 0 0 0 1</matrix>"
    assembly = f'<node id="n2">{use}<node id="n3">{shift}{use}</node></node>'
    scene = "".join(f'<node id="n{i}">{m}<instance_node url="#n2"/></node>' for i, m in ((4, turn), (5, shift)))
    text = dae(assembly, scene).decode().replace("<library_nodes>", part + "<library_nodes>")
    text = text.replace("<visual_scene>", '<visual_scene id="s">').replace(
        "</COLLADA>", '<scene><instance_visual_scene url="#s"/></scene></COLLADA>'
    )
    (tmp_path / "a.dae").write_text(text)
    for path in (tmp_path / "a.3mf", tmp_path / "a.dae"):
        V, F = mesh.read(path)
        assert sorted(np.round(V[F[:, 1]], 9).tolist()) == [[0, 1, 0], [0, 6, 0], [6, 0, 0], [11, 0, 0]]


def test_unused_vertices_are_dropped(tmp_path):
    (tmp_path / "a.obj").write_text("v nan 9 9\n" + TRIANGLE + "v 5 5 5\nf 2 3 4\nv 6 6 6\n")
    V, F = mesh.read(tmp_path / "a.obj")
    assert V.tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0]] and F.tolist() == [[0, 1, 2]]


def test_vertices_are_not_merged(tmp_path):
    (tmp_path / "a.obj").write_text(TRIANGLE * 2 + "f 1 2 3\nf 4 5 6\n")
    assert [len(a) for a in mesh.read(tmp_path / "a.obj")] == [6, 2]


# -- OBJ, PLY and OFF as people write them ----------------------------------------------------------------------------

SPELLINGS = {
    "slashes": TRIANGLE + "vt 0 0\nvn 0 0 1\nf 1/1/1 2/1/1 3/1/1\nf 3//1 2//1 1//1\nf 1/1 3/1 2/1\n",
    "carriage_returns": TRIANGLE.replace("\n", "\r\n") + "f 1 2 3\r\n",
    "old_mac": TRIANGLE.replace("\n", "\r") + "f 1 2 3",
    "continued": TRIANGLE + "f 1 2 \\\n3\n",
    "blanks": TRIANGLE.replace("v ", " v\t") + "\tf  1\t2  3  \n",
    "comments": "#v 9 9 9\n" + TRIANGLE + "f 1 2 3 # f 3 2 1\n",
    "colours": TRIANGLE.replace("0\n", "0 .5 .5 .5\n") + "f 1 2 3",
    "weights": TRIANGLE.replace("0\n", "0 1.0\n") + "f 1 2 3",
    "some_colours": TRIANGLE + "v 1 1 0 1 0 0\nf 1 2 3",
    "relative": "v 9 9 9\nv 9 9 9\nv 9 9 9\nf 1 2 3\n" + TRIANGLE + "f -3 -2 -1\nv 8 8 8\nf -4/7 -3 -2\n",
    "no_mtl": "mtllib gone.mtl\nusemtl wood\n" + TRIANGLE + "f 1 2 3\n",
    "latin_1": "o Stühle\n" + TRIANGLE + "f 1 2 3\n",
    "groups": "g a\n" + TRIANGLE + "s off\nusemtl x\nf 1 2 3\ng b\nf 1 3 2\n",
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_obj_spelling(name, tmp_path):
    (tmp_path / "a.obj").write_bytes(SPELLINGS[name].encode("latin-1"))
    V, F = mesh.read(tmp_path / "a.obj")
    assert {tuple(t) for t in np.sort(V[F][..., 0], axis=1).tolist()} <= {(0, 0, 1), (9, 9, 9)}
    assert set(map(tuple, V.tolist())) <= {(0, 0, 0), (1, 0, 0), (0, 1, 0), (9, 9, 9)}
    assert len(F) == {"slashes": 3, "relative": 3, "groups": 2}.get(name, 1)


def polygons_as(suffix, V, polygons, path):
    """Write polygons of any size as text or as binary of either byte order."""
    if suffix == ".obj":
        lines = [f"v {x!r} {y!r} {z!r}" for x, y, z in V.tolist()] + [
            "f " + " ".join(str(i + 1) for i in p) for p in polygons
        ]
        path.write_text("\n".join(lines))
    elif suffix in (".off", ".ply"):
        rows = [f"{x!r} {y!r} {z!r}" for x, y, z in V.tolist()] + [" ".join(map(str, [len(p), *p])) for p in polygons]
        head = f"OFF\n{len(V)} {len(polygons)} 0\n" if suffix == ".off" else ply(len(V), len(polygons)).decode()
        path.write_text(head.replace("float", "double") + "\n".join(rows) + "\n")
    else:
        order, kind = {"<.ply": ("<", LITTLE), ">.ply": (">", "binary_big_endian")}[suffix]
        faces = b"".join(struct.pack(f"{order}B{len(p)}i", len(p), *p) for p in polygons)
        head = ply(len(V), len(polygons), kind=kind).replace(b"float", b"double")
        path.write_bytes(head + V.astype(order + "f8").tobytes() + faces)


def comb(teeth):
    x = np.arange(2 * teeth)
    return [(0, 0), (2 * teeth - 1, 0)] + [(k, 3 if k // 2 % 2 else 1) for k in (2 * teeth - 1 - x)] if teeth else []


OUTLINES = {
    "square": ([(0, 0), (1, 0), (1, 1), (0, 1)], 1),
    "arrow": ([(0, 0), (2, 1), (0, 2), (1, 1)], 1),  # a concave quad: the fan from its first corner is wrong
    "ell": ([(0, 0), (2, 0), (2, 1), (1, 1), (1, 2), (0, 2)], 3),
    "u": ([(0, 0), (3, 0), (3, 3), (2, 3), (2, 1), (1, 1), (1, 3), (0, 3)], 7),
    "star": (
        [((2, 1)[k % 2] * np.cos(k * np.pi / 7), (2, 1)[k % 2] * np.sin(k * np.pi / 7)) for k in range(14)],
        14 * np.sin(np.pi / 7),
    ),
    "frame": (
        [(0, 0), (3, 0), (3, 3), (0, 3), (0, 0), (1, 1), (1, 2), (2, 2), (2, 1), (1, 1)],
        8,
    ),  # a hole by a bridge
    "spiral": ([(0, 0), (5, 0), (5, 5), (1, 5), (1, 2), (3, 2), (3, 3), (2, 3), (2, 4), (4, 4), (4, 1), (0, 1)], 15),
    "collinear": ([(0, 0), (1, 0), (2, 0), (2, 2), (1, 2), (1, 1), (0, 1)], 3),
}


@pytest.mark.parametrize("suffix", [".obj", ".off", ".ply", "<.ply", ">.ply"])
@pytest.mark.parametrize("name", OUTLINES)
def test_polygons_are_cut_inside_their_outline(name, suffix, tmp_path):
    """Triangles that all face one way and add up to the polygon's area cover it once and nothing else."""
    outline, area = OUTLINES[name]
    outline = np.array(outline, float)
    rotate = random_rotation_matrix(np.random.default_rng(5).random(3))[:3, :3]
    flat = np.pad(outline, ((0, 0), (0, 1)))
    for turn in range(len(flat)):
        for way in (1, -1):
            V = np.roll(flat, turn, 0)[::way] @ rotate.T
            V = np.concatenate([V, V[:3] + 9])  # and a triangle, so that the sizes are mixed
            path = tmp_path / f"a{suffix.strip('<>')}"
            polygons_as(suffix, V, [list(range(len(flat))), [len(flat) + i for i in range(3)]], path)
            W, F = mesh.read(path)
            normals = np.cross(W[F[:, 1]] - W[F[:, 0]], W[F[:, 2]] - W[F[:, 0]])[:-1] @ rotate[:, 2] / 2
            assert len(F) == len(flat) - 1
            assert (normals * way > -1e-9).all()
            assert np.abs(normals).sum() == pytest.approx(area, rel=1e-9)


def test_bent_and_crossed_polygons_are_survived(tmp_path):
    V = np.random.default_rng(0).normal(size=(40, 3))
    V[3] = V[2]
    polygons_as(".obj", V, [list(range(40)), [0, 1, 2, 3], [0, 0, 0, 0, 0], [0, 5, 1, 6]], tmp_path / "a.obj")
    V, F = mesh.read(tmp_path / "a.obj")
    assert len(F) == 38 + 2 + 3 + 2


def test_order_of_faces_is_kept(tmp_path):
    V = np.random.default_rng(0).normal(size=(9, 3))
    polygons_as(".obj", V, [[0, 1, 2, 3], [4, 5, 6], [5, 6, 7, 8], [0, 4, 8]], tmp_path / "a.obj")
    _, F = mesh.read(tmp_path / "a.obj")
    assert F[2].tolist() == [4, 5, 6] and F[5].tolist() == [0, 4, 8]


def test_ply_with_everything(tmp_path):
    """Properties of all types and orders, an element before and one after, lists beside the indices; trimesh agrees."""
    head = "ply\r\nformat {0} 1.0\r\ncomment TextureFile ../secret.png\r\nelement camera 1\r\nproperty double f\r\n"
    head += "element vertex 3\r\nproperty uchar red\r\nproperty double z\r\nproperty float32 x\r\nproperty short y\r\n"
    head += "element face 2\r\nproperty uchar flags\r\nproperty list uint8 int32 vertex_index\r\n"
    head += "property list uchar float texcoord\r\nelement edge 1\r\nproperty int vertex1\r\n"
    head += "property int vertex2\r\nend_header\n"
    for order, kind in (("<", LITTLE), (">", "binary_big_endian")):
        body = struct.pack(order + "d", 7.0)
        body += b"".join(
            struct.pack(order + "Bdfh", 255, z, x, y) for x, y, z in ((0, 0, 0.5), (1, 0, 0.25), (0, 1, 0))
        )
        body += struct.pack(order + "BB3iB6f", 1, 3, 0, 1, 2, 6, *range(6)) + struct.pack(
            order + "BB3iB6f", 1, 3, 2, 1, 0, 6, *range(6)
        )
        body += struct.pack(order + "2i", 0, 1)
        (tmp_path / "a.ply").write_bytes(head.format(kind).encode() + body)
        V, F = mesh.read(tmp_path / "a.ply")
        assert V.tolist() == [[0, 0, 0.5], [1, 0, 0.25], [0, 1, 0]] and F.tolist() == [[0, 1, 2], [2, 1, 0]]
    text = "7\n255 0.5 0 0\n255 .25 1 0\n255 0 0 1\n1 3 0 1 2 6 0 1 2 3 4 5\n1 3 2 1 0 6 0 1 2 3 4 5\n0 1\n"
    (tmp_path / "a.ply").write_bytes(head.format("ascii").encode() + text.encode())
    W, G = mesh.read(tmp_path / "a.ply")
    assert np.array_equal(V, W) and np.array_equal(F, G)


# -- the scene, the door, the box -------------------------------------------------------------------------------------


def textured(folder, texture, mtl="a.mtl"):
    lines = f"mtllib {mtl}\nusemtl wood\n" + TRIANGLE + "vt 0 0\nvt 1 0\nvt 0 1\nf 1/1 2/2 3/3\n"
    (folder / "a.obj").write_text(lines)
    (folder / "a.mtl").write_text(f"newmtl wood\nKd .1 .2 .3\nmap_Kd {texture}\n")
    return folder / "a.obj"


def test_scene_has_its_texture(tmp_path):
    from PIL import Image

    Image.new("RGB", (2, 2), (255, 0, 0)).save(tmp_path / "wood.png")
    (part,) = mesh.read_scene(textured(tmp_path, "wood.png")).geometry.values()
    assert part.visual.material.image.size == (2, 2)


@pytest.mark.parametrize(
    "texture", ["gone.png", "../secret.png", "/etc/secret.png", "http://127.0.0.1:9/secret.png", "C:\\secret.png"]
)
def test_texture_that_is_lost_or_outside_costs_no_geometry(texture, tmp_path):
    """Real files name the disk of whoever made them; such a picture is never opened, the mesh is read."""
    from PIL import Image

    (tmp_path / "in").mkdir()
    Image.new("RGB", (2, 2)).save(tmp_path / "secret.png")
    path = textured(tmp_path / "in", texture)
    assert len(mesh.read(path)[1]) == 1
    (part,) = mesh.read_scene(path).geometry.values()
    assert part.visual.material.image is None and len(part.faces) == 1


def test_scene_has_the_same_surface(tmp_path):
    """A concave face with texture coordinates and relative indices, for which trimesh alone would draw a square."""
    outline = np.array(OUTLINES["ell"][0], float)
    text = "mtllib a.mtl\nusemtl wood\n" + "".join(f"v {x} {y} 0\nvt {x / 2} {y / 2}\n" for x, y in outline)
    (tmp_path / "a.obj").write_text(text + "f 2/2 3/3 4/4 5/5 6/6 1/1\nf -5/2 -4/3 -3/4\n" + "v 9 9 9\n")
    scene = mesh.read_scene(tmp_path / "a.obj")
    (part,) = scene.geometry.values()
    assert part.area == pytest.approx(3 + 0.5)
    assert part.visual.uv == pytest.approx(part.vertices[:, :2] / 2)


def test_scene_is_refused_like_the_mesh(tmp_path):
    path = textured(tmp_path, "wood.png", "../a.mtl")
    with pytest.raises(ValueError, match="outside its own folder"):
        mesh.read_scene(path)


BAD_ARRAYS = {
    "points": (np.zeros((3, 3)), np.zeros((0, 3), int), "points only"),
    "empty": (np.zeros((0, 3)), np.zeros((0, 3), int), "empty"),
    "flat": (np.zeros((3, 2)), np.array([[0, 1, 2]]), r"\(3, 2\)"),
    "quads": (np.eye(4)[:, :3], np.array([[0, 1, 2, 3]]), r"\(1, 4\)"),
    "floats": (np.eye(3), np.array([[0.0, 1, 2]]), "float64"),
    "range": (np.eye(3), np.array([[0, 1, 3]]), "0 to 3"),
    "negative": (np.eye(3), np.array([[0, 1, -1]]), "-1"),
    "nan": (np.array([[0, 0, 0], [1, 0, 0], [0, np.nan, 0]]), np.array([[0, 1, 2]]), "NaN"),
    "line": (np.arange(9.0).reshape(3, 3), np.array([[0, 1, 2]]), "degenerate"),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_check(name):
    V, F, reason = BAD_ARRAYS[name]
    with pytest.raises(ValueError, match=f"chair.*{reason}.*Repair"):
        mesh.check(V, F, "chair")


def test_check_lets_the_small_the_large_and_the_flat_through():
    V, F = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]]), np.array([[0, 1, 2]])
    for size in (1e-300, 1e-9, 1, 1e9, 1e18):
        mesh.check(V * size, F, "a")
    mesh.check(V * 1e-3 + 1e6, F, "a")
    mesh.check(V * [1, 1e-6, 1], F, "a sliver")


@pytest.mark.parametrize("seed", range(20))
def test_normalise(seed):
    """Exactly [-1, 1] along the longest side, centred along the others, and back, at any size and place."""
    rng = np.random.default_rng(seed)
    size = 10.0 ** rng.integers(-12, 12)
    V = rng.normal(size=(50, 3)) * rng.uniform(0, 1, 3) * size + rng.normal(size=3) * size * 10.0 ** rng.integers(-3, 6)
    before = V.copy()
    N, center, scale = mesh.normalise(V)
    assert np.array_equal(V, before)
    axis = np.ptp(V, 0).argmax()
    assert N[:, axis].min() == -1 and N[:, axis].max() == 1
    assert np.abs(N).max() == 1
    assert N.max(0) + N.min(0) == pytest.approx(0, abs=1e-15)
    assert N * scale + center == pytest.approx(V, abs=1e-15 * np.abs(V).max() * 4)
    again, center, scale = mesh.normalise(N)
    assert again == pytest.approx(N, abs=1e-15) and scale == 1 and center == pytest.approx(0, abs=1e-15)


def test_reader_that_is_not_installed_is_named(tmp_path):
    if trimesh.exchange.load.mesh_loaders["3mf"].__class__ is not type(None):
        pytest.skip("it is installed")
    (tmp_path / "a.3mf").write_bytes(threemf('<object id="1"><mesh/></object>'))
    with pytest.raises(ValueError, match="pip install lxml"):
        mesh.read(tmp_path / "a.3mf")


def test_suffixes_are_those_of_trimesh():
    """Every mesh format trimesh knows is in SUFFIXES, or left out for a reason."""
    known = {f".{kind}" for kind in [*trimesh.exchange.load.mesh_loaders, *trimesh.exchange.load.compressed_loaders]}
    points = {".xyz"}
    needs_programs = {".ctm", ".drc"}
    known = {suffix for suffix in known if re.fullmatch(r"\.[a-z0-9.]+", suffix)}  # stl_ascii is a way of writing
    assert mesh.SUFFIXES - known <= {".tar.bz2"}
    assert known - mesh.SUFFIXES <= points | needs_programs | {".bz2"}
