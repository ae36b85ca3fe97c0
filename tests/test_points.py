import numpy as np
import pytest

from lib import points
from lib.points import Points, augment, draw, pick


def box_distance(P, half=(1.0, 0.5, 0.25)):
    """Signed distance to a box, positive inside."""
    q = np.abs(P) - np.array(half)
    return -(np.linalg.norm(np.maximum(q, 0), axis=1) + np.minimum(q.max(1), 0))


def of_a_box(n=600, seed=0):
    """Points as 02 writes them, of the box [-1, 1] x [-0.5, 0.5] x [-0.25, 0.25]."""
    rng, half = np.random.default_rng(seed), np.array([1.0, 0.5, 0.25])
    N = np.eye(3)[rng.integers(3, size=n)] * rng.choice([-1, 1], (n, 1))
    surface = np.where(N != 0, N * half, rng.uniform(-half, half, (n, 3)))
    corner = np.sign(rng.normal(size=(n, 3)))
    sharp = np.where(np.eye(3)[rng.integers(3, size=n)] == 1, rng.uniform(-half, half, (n, 3)), corner * half)
    queries = [p + 0.01 * rng.normal(size=(n, 3)) for p in (sharp, surface)] + [rng.uniform(-1.05, 1.05, (n // 2, 3))]
    edges, near, uniform = (np.c_[q, box_distance(q)] for q in queries)
    return Points(np.c_[surface, N], np.c_[sharp, corner / 3**0.5], edges, near, uniform)


def write(path, shape, dtype=np.float16):
    """02's file, with its extra axis."""
    anywhere = np.concatenate([shape.near, shape.uniform])
    arrays = [shape.coarse[:, None], shape.sharp[:, None], shape.edges, anywhere]
    np.savez(path, **{key: array.astype(dtype) for key, array in zip(points.KEYS, arrays, strict=True)})
    return path


def test_what_02_writes_is_read_and_what_is_damaged_is_refused(tmp_path):
    shape = of_a_box()
    read = points.read(write(tmp_path / "box.npz", shape, np.float64))
    assert all(np.array_equal(a, b) for a, b in zip(read, shape, strict=True))
    other = points.read(tmp_path / "box.npz", uniform=100)  # another share of them lies anywhere
    assert len(other.uniform) == 100 and np.array_equal(other.uniform, shape.uniform[-100:])
    assert np.array_equal(other.near, np.concatenate([shape.near, shape.uniform[:-100]]))
    with pytest.raises(ValueError, match="900 rand_points, where 900"):
        points.read(tmp_path / "box.npz", uniform=900)
    whole = (tmp_path / "box.npz").read_bytes()
    for name, content in (("cut", whole[: len(whole) // 2]), ("empty", b""), ("text", b"no points at all")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name} holds no sample points.*02_sharp_sample"):
            points.read(tmp_path / name)
    np.savez(tmp_path / "other.npz", latents=np.zeros(3))
    with pytest.raises(ValueError, match="fps_coarse_surface"):
        points.read(tmp_path / "other.npz")
    shape.edges[3, 3] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        points.read(write(tmp_path / "nan.npz", shape))


def test_a_shelf_keeps_what_fits_and_gives_the_same_either_way(tmp_path):
    shapes = [of_a_box(seed=k) for k in range(3)]
    paths = [write(tmp_path / f"{k}.npz", shape) for k, shape in enumerate(shapes)]
    size = sum(array.nbytes for array in points.read(paths[0]))
    paths = [(path, 0) for path in paths]
    shelf, none = points.Shelf(paths, 2.5 * size / 2**30), points.Shelf(paths, 0)
    for k in (0, 1, 2, 1, 0):
        assert all(np.array_equal(a, b) for a, b in zip(shelf[k], none[k], strict=True))
    assert set(shelf.kept) == {0, 1} and not none.kept and len(shelf) == 3
    assert shelf[0] is shelf[0]


def test_rows_are_picked_once_if_there_are_enough():
    array, rng = np.arange(20.0).reshape(10, 2), np.random.default_rng(0)
    assert len(np.unique(pick(array, 7, rng)[:, 0])) == 7
    assert np.array_equal(pick(array, 10, rng), array) and pick(array, 10, rng).dtype == np.float32
    assert len(pick(array, 25, rng)) == 25


def test_a_draw_has_its_counts_and_comes_from_its_seed():
    shape = of_a_box()
    coarse, sharp, queries = draw(shape, np.random.default_rng(1), 64, (10, 20, 30))
    assert coarse.shape == sharp.shape == (64, 6) and queries.shape == (60, 4)
    known = [{tuple(row) for row in array.astype(np.float32)} for array in (shape.edges, shape.near, shape.uniform)]
    parts = np.split(queries, (10, 30))
    assert all(tuple(row) in whole for whole, part in zip(known, parts, strict=True) for row in part)
    again = draw(shape, np.random.default_rng(1), 64, (10, 20, 30))
    assert all(np.array_equal(a, b) for a, b in zip((coarse, sharp, queries), again, strict=True))
    whole = draw(shape, np.random.default_rng(1), 0, (10, 20, 30))[:2]
    assert all(np.array_equal(a, b.astype(np.float32)) for a, b in zip(whole, (shape.coarse, shape.sharp), strict=True))
    _, plain, asked = draw(shape, np.random.default_rng(1), 64, (10, 20, 30), edges=False)
    on_edges = {tuple(row) for row in shape.sharp.astype(np.float32)}
    assert not any(tuple(row) in on_edges for row in plain) and not any(tuple(row) in known[0] for row in asked)


@pytest.mark.parametrize("how", ["none", "flip", "turn", "rotate"])
def test_labels_stay_true(how):
    """The box turned along: its distances, asked in its own frame, are the labels; normals stay normals."""
    shape = of_a_box()
    seen = set()
    for seed in range(12):
        coarse, sharp, queries = augment(how, *draw(shape, np.random.default_rng(0), 600, (200, 200, 200)), rng(seed))
        plain = draw(shape, np.random.default_rng(0), 600, (200, 200, 200))
        A, *_ = np.linalg.lstsq(np.c_[plain[0][:, :3], np.ones(600)], coarse[:, :3], rcond=None)  # (4, 3)
        scale = np.cbrt(abs(np.linalg.det(A[:3])))
        back = (queries[:, :3] - A[3]) @ np.linalg.inv(A[:3])
        assert np.abs(scale * box_distance(back) - queries[:, 3]).max() < 1e-4
        assert np.allclose(coarse[:, 3:] @ np.linalg.inv(A[:3] / scale), plain[0][:, 3:], atol=1e-4)
        assert np.allclose(np.c_[sharp[:, :3], np.ones(600)] @ np.linalg.pinv(np.c_[A, [0, 0, 0, 1]])[:, :3],
                           plain[1][:, :3], atol=1e-4)  # fmt: skip
        box = np.ptp(np.concatenate([coarse, sharp])[:, :3], axis=0)
        assert box.max() == pytest.approx(2, abs=0.02) and np.abs(coarse[:, :3]).max() < 1.01
        seen.add(tuple(np.round(A.ravel(), 3) + 0.0))
    assert len(seen) == {"none": 1, "flip": 2}.get(how, len(seen)) and (how in ("none", "flip") or len(seen) > 4)


def test_rotations_are_rotations_and_an_unknown_one_is_refused():
    turns = np.array([points.random_rotation(rng(k)) for k in range(500)])
    assert np.allclose(turns @ turns.transpose(0, 2, 1), np.eye(3)) and np.allclose(np.linalg.det(turns), 1)
    assert np.abs(turns.mean(0)).max() < 0.1
    with pytest.raises(ValueError, match="'spin'"):
        augment("spin", *draw(of_a_box(), rng(0), 8, (8, 8, 8)), rng(0))


def rng(seed):
    return np.random.default_rng(seed)
