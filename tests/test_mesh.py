"""mesh.py: every format there and back, scenes with their transforms and textures, what check and normalise promise."""

import re

import numpy as np
import pytest
import trimesh
from test_door import dae, tarred, threemf, zipped
from test_polygon import TRIANGLE
from trimesh.transformations import random_rotation_matrix, rotation_matrix

from lib import mesh

CUBE = trimesh.creation.box()

# -- there and back ---------------------------------------------------------------------------------------------------


def solid(V, F):
    """Volume and Euler number after merging, as STL and others repeat their vertices."""
    merged = trimesh.Trimesh(V, F)
    assert merged.is_watertight
    return merged.volume, merged.euler_number


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


@pytest.mark.parametrize(("count", "width"), [(65534, 2), (65535, 4)])
def test_a_glb_has_short_indices_as_long_as_they_do(tmp_path, count, width):
    V = np.random.default_rng(0).normal(size=(count, 3)).astype(np.float32)
    F = np.arange(count - count % 3).reshape(-1, 3)
    mesh.write(tmp_path / "a.glb", V, F)
    read = trimesh.load(tmp_path / "a.glb", process=False).to_mesh()  # as others read it
    assert np.array_equal(read.vertices, V) and np.array_equal(read.faces, F)
    assert (tmp_path / "a.glb").stat().st_size == pytest.approx(12 * count + width * F.size, abs=1000)


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


def test_unused_vertices_are_dropped(tmp_path):
    (tmp_path / "a.obj").write_text("v nan 9 9\n" + TRIANGLE + "v 5 5 5\nf 2 3 4\nv 6 6 6\n")
    V, F = mesh.read(tmp_path / "a.obj")
    assert V.tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0]] and F.tolist() == [[0, 1, 2]]


def test_vertices_are_not_merged(tmp_path):
    (tmp_path / "a.obj").write_text(TRIANGLE * 2 + "f 1 2 3\nf 4 5 6\n")
    assert [len(a) for a in mesh.read(tmp_path / "a.obj")] == [6, 2]


def test_suffixes_are_those_of_trimesh():
    """Every mesh format trimesh knows is in SUFFIXES, or left out for a reason."""
    known = {f".{kind}" for kind in [*trimesh.exchange.load.mesh_loaders, *trimesh.exchange.load.compressed_loaders]}
    points = {".xyz"}
    needs_programs = {".ctm", ".drc"}
    known = {suffix for suffix in known if re.fullmatch(r"\.[a-z0-9.]+", suffix)}  # stl_ascii is a way of writing
    assert mesh.SUFFIXES - known <= {".tar.bz2"}
    assert known - mesh.SUFFIXES <= points | needs_programs | {".bz2"}


def test_reader_that_is_not_installed_is_named(tmp_path, monkeypatch):
    missing = trimesh.exceptions.ExceptionWrapper(ImportError("No module named 'lxml'"))  # as trimesh notes it
    monkeypatch.setitem(trimesh.exchange.load.mesh_loaders, "3mf", missing)
    (tmp_path / "a.3mf").write_bytes(threemf('<object id="1"><mesh/></object>'))
    with pytest.raises(ValueError, match="missing: No module named 'lxml'"):
        mesh.read(tmp_path / "a.3mf")


# -- scenes -----------------------------------------------------------------------------------------------------------


def triangles(V, F):
    """The triangles as a set, whatever the order of faces and their first corners."""
    T = np.round(V[F], 9) + 0.0  # (m, 3, 3)
    return sorted(min(tuple(map(tuple, np.roll(t, k, 0).tolist())) for k in range(3)) for t in T)


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


def test_scene_is_refused_like_the_mesh(tmp_path):
    path = textured(tmp_path, "wood.png", "../a.mtl")
    with pytest.raises(ValueError, match="outside its own folder"):
        mesh.read_scene(path)


# -- arrays -----------------------------------------------------------------------------------------------------------

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
