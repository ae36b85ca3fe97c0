"""door.py: a hostile corpus made by code, read in a child process that is watched for all it touches."""

import base64
import contextlib
import io
import json
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import trimesh
from test_polygon import LITTLE, TRIANGLE, ply

from lib import mesh

CUBE = trimesh.creation.box()
SECONDS = 20  # a file may take; generous, they take milliseconds
MEMORY = 1 << 30  # bytes the child may ever hold

# -- the corpus -------------------------------------------------------------------------------------------------------


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


# -- the watch --------------------------------------------------------------------------------------------------------

# Reads each path of its standard input and tells how that ended, and every file, socket and process it touched.
WATCHED = """
import json, os, pathlib, re, sys, time
import trimesh, numpy
from lib import mesh
status = pathlib.Path("/proc/self/status")  # ru_maxrss begins with what the parent holds
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
    peak = 1024 * int(re.search("VmHWM:\\s*([0-9]+)", status.read_text())[1]) if status.exists() else 0
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
    itself = ["read", str(Path(path).resolve())]
    assert touched in ([], [itself]), touched  # no neighbour, no socket, no writing


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
