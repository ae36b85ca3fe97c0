"""Whatever goes in comes out to the bit; and how much smaller what stages write becomes."""

import io
import lzma

import numpy as np
import pytest
import trimesh

from lib import mesh, squeeze


def obj(tmp_path, levels: int = 4, scale: float = 1.0) -> bytes:
    ball = trimesh.creation.icosphere(levels)
    mesh.write(tmp_path / "m.obj", scale * ball.vertices, ball.faces)
    return (tmp_path / "m.obj").read_bytes()


def npz(save=np.savez, **arrays) -> bytes:
    file = io.BytesIO()
    save(file, **arrays)
    return file.getvalue()


def points(kind=np.float16) -> dict:
    P = np.random.default_rng(0).normal(size=(5000, 6)).astype(kind)
    return {"fps_coarse_surface": P[:, None], "rand_points": P[:3001, :4], "one": kind(3), "none": P[:0]}


@pytest.mark.parametrize("scale", [1e-6, 1.0, 7e5])
def test_a_mesh_comes_back_to_the_bit_in_less_than_xz_makes(tmp_path, scale):
    data = obj(tmp_path, scale=scale)
    ending, made = squeeze.squeeze("a_normalized.obj", data)
    assert ending == ".mesh.xz" and squeeze.expand(ending, made) == data
    assert len(made) < 0.9 * len(lzma.compress(data, preset=6)), len(made) / len(lzma.compress(data, preset=6))


@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_points_come_back_to_the_bit_in_less_than_xz_makes(kind):
    data = npz(**points(kind))
    ending, made = squeeze.squeeze("a_sample_points.npz", data)
    assert ending == ".planes.xz" and squeeze.expand(ending, made) == data
    assert len(made) < 0.95 * len(lzma.compress(data, preset=6))


@pytest.mark.parametrize(
    "text",
    [
        "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n",
        "# from elsewhere\nv 0.5 0.25 1.125\nf 1//1 2//2 3//3\n",
        "v 0.50 0.25 1.12\nv 1.00 0.00 -0.00\nv 0.00 1.00 0.00\nf 1 2 3\n",  # -0.00 would be lost
        "v 0.50 0.25 1.12\r\nf 1 1 1\r\n",
        "v 0.50 0.25 1.12\nf 1 1 1",
        "v 0.50 nan 1.12\nf 1 1 1\n",
        "v 9999999999.50 0.25 1.12\nf 1 1 1\n",
        "",
    ],
)
def test_what_is_written_otherwise_still_comes_back(text):
    for data in (text.encode(), text.encode() * 50):
        ending, made = squeeze.squeeze("a.obj", data)
        assert squeeze.expand(ending, made) == data and len(made) <= len(data)


def test_what_could_not_be_made_again_to_the_bit_is_left_as_it_is():
    rng = np.random.default_rng(0)
    assert squeeze.squeeze("a.png", b"\x89PNG" + bytes(9999)) == ("", b"\x89PNG" + bytes(9999))
    packed = npz(np.savez_compressed, a=rng.normal(size=1000))
    assert squeeze.squeeze("a.npz", packed)[0] == ""
    noise = rng.bytes(5000)
    for name in ("a.npz", "a.ply", "a.obj"):
        assert squeeze.squeeze(name, noise) == ("", noise)


def test_arrays_that_are_cut_off_come_back_as_they_are():
    data = npz(**points())
    for cut in (0, 1, 40, len(data) // 2, len(data) - 1):
        ending, made = squeeze.squeeze("a.npz", data[:cut])
        assert squeeze.expand(ending, made) == data[:cut]
