"""polygon.py: OBJ, PLY and OFF as people write them; concave faces, and faces with holes, against their areas."""

import struct

import numpy as np
import pytest
from trimesh.transformations import random_rotation_matrix

from lib import mesh

TRIANGLE = "v 0 0 0\nv 1 0 0\nv 0 1 0\n"
LITTLE = "binary_little_endian"


def ply(vertices, faces, body=b"", kind="ascii", size="uchar"):
    head = f"ply\nformat {kind} 1.0\nelement vertex {vertices}\nproperty float x\nproperty float y\nproperty float z\n"
    return (head + f"element face {faces}\nproperty list {size} int vertex_indices\nend_header\n").encode() + body


# -- OBJ as people write it -------------------------------------------------------------------------------------------

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


# -- polygons ---------------------------------------------------------------------------------------------------------


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


def test_scene_has_the_same_surface(tmp_path):
    """A concave face with texture coordinates and relative indices, for which trimesh alone would draw a square."""
    outline = np.array(OUTLINES["ell"][0], float)
    text = "mtllib a.mtl\nusemtl wood\n" + "".join(f"v {x} {y} 0\nvt {x / 2} {y / 2}\n" for x, y in outline)
    (tmp_path / "a.obj").write_text(text + "f 2/2 3/3 4/4 5/5 6/6 1/1\nf -5/2 -4/3 -3/4\n" + "v 9 9 9\n")
    scene = mesh.read_scene(tmp_path / "a.obj")
    (part,) = scene.geometry.values()
    assert part.area == pytest.approx(3 + 0.5)
    assert part.visual.uv == pytest.approx(part.vertices[:, :2] / 2)


# -- PLY --------------------------------------------------------------------------------------------------------------


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
