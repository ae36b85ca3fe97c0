import numpy as np
import pytest
import trimesh
from scipy.spatial import cKDTree

from lib import dataset, field, mesh, pool, sharp_sample, signed, winding

FEW = {"coarse": 500, "sharp": 1200, "draws": 3000, "uniform": 2000}


def arrays(m):
    return np.array(m.vertices), np.array(m.faces)


def sample(m, **parameters):
    return sharp_sample.sample(*arrays(m), **FEW | parameters)


def torus(sections=64):
    return trimesh.creation.torus(0.7, 0.25, major_sections=sections, minor_sections=sections)


def ball(fine=4):
    return trimesh.creation.icosphere(subdivisions=fine, radius=0.9)


def wedge(degrees):
    """A prism whose ridge at z = 0.5 bends by so many degrees, and whose other edges bend by more than 90."""
    half = np.radians(degrees) / 2
    drop = 0.5 * np.tan(half)
    V = [(x, y, z) for x in (-0.8, 0.8) for y, z in ((-0.5, 0.5 - drop), (0, 0.5), (0.5, 0.5 - drop), (0, -0.9))]
    return trimesh.convex.convex_hull(V)


def on_surface(m, P):
    return field.closest(field.prepare(*arrays(m)), P)[0].max()


def farthest(P, count):
    """Farthest-point sampling as it is defined, the oracle."""
    gap, chosen = np.full(len(P), np.inf), [0]
    while len(chosen) < count:
        gap = np.minimum(gap, ((P - P[chosen[-1]]) ** 2).sum(1))
        chosen.append(int(gap.argmax()))
    return np.array(chosen)


# -- where points are -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [ball, torus, trimesh.creation.box, lambda: wedge(40)])
def test_before_storage_surface_points_lie_on_the_surface_and_have_its_normals(make):
    m = make()
    points, _ = sample(m)
    for key, n in (("fps_coarse_surface", 500), ("fps_sharp_surface", 1200)):
        assert points[key].shape == (n, 1, 6)
        P, N = points[key][:, 0, :3], points[key][:, 0, 3:]
        assert on_surface(m, P) < 1e-6
        assert np.allclose(np.linalg.norm(N, axis=1), 1)
        step = signed.distance(signed.prepare(*arrays(m)), P + 1e-4 * N)
        assert (step < -5e-5).all()  # outward


def test_a_cubes_sharp_points_lie_on_its_twelve_edges_in_equal_measure():
    points, facts = sample(trimesh.creation.box())
    P = points["fps_sharp_surface"][:, 0, :3]
    on = np.isclose(np.abs(P), 0.5, rtol=0, atol=1e-12)
    assert (on.sum(1) >= 2).all()
    edge = [tuple(np.where(o, np.sign(p), 0)) for o, p in zip(on, P, strict=True)]
    counts = [edge.count(e) for e in set(edge)]
    assert len(counts) == 12 and set(counts) <= {99, 100, 101}
    N = points["fps_sharp_surface"][:, 0, 3:]
    assert np.allclose(np.where(on, np.sign(P), 0) / np.sqrt(2), N, rtol=0, atol=1e-9)  # the mean of two faces'
    assert (facts["sharp_edges"], facts["on_sharp"], facts["smooth"], facts["filled"]) == (12, 1.0, False, "")
    assert np.isclose(facts["sharp_length"], 12)


def test_long_edges_get_more_points_than_short_ones_and_subdivision_changes_nothing():
    m = trimesh.creation.box(extents=[2, 0.5, 0.25])
    for _ in range(3):
        P = sample(m)[0]["fps_sharp_surface"][:, 0, :3]
        along = (np.abs(P) < np.array([1, 0.25, 0.125]) - 1e-9).argmax(1)
        assert np.allclose(np.bincount(along), 1200 * np.array([2, 0.5, 0.25]) / 2.75, atol=3)
        m = m.subdivide()


@pytest.mark.parametrize(("angle", "ridge"), [(29.9, True), (30.1, False)])
def test_an_edge_is_sharp_when_its_faces_bend_by_more_than_the_angle(angle, ridge):
    points, _ = sample(wedge(30), angle=angle)
    P = points["fps_sharp_surface"][:, 0, :3]
    assert (np.isclose(P[:, 2], 0.5, atol=1e-9) & (np.abs(P[:, 0]) < 0.79)).any() == ridge


@pytest.mark.parametrize("angle", [15, 35, 60])
def test_every_sharp_point_lies_on_an_edge_that_bends_by_more(angle):
    rng = np.random.default_rng(0)
    m = trimesh.convex.convex_hull(rng.normal(size=(60, 3)) * 0.3)
    P = sample(m, angle=angle)[0]["fps_sharp_surface"][:, 0, :3]
    bend = np.degrees(m.face_adjacency_angles)
    ends = m.face_adjacency_edges[bend > angle]
    assert 0 < len(ends) < len(bend)
    assert field.nearest(np.array(m.vertices), np.array(ends), P)[0].max() < 1e-12


def test_moved_points_are_as_far_off_as_asked_and_the_rest_fill_the_box():
    parameters = {"near": [0.001, 0.05], "sharp_near": [0.002, 0.01, 0.03], "draws": 20000, "sharp": 20000}
    points, _ = sample(trimesh.creation.box(), **parameters)
    assert points["sharp_near_surface"].shape == (60000, 3) and points["rand_points"].shape == (42000, 3)
    sharp = points["fps_sharp_surface"][:, 0, :3]
    for k, sigma in enumerate(parameters["sharp_near"]):
        moved = points["sharp_near_surface"][20000 * k : 20000 * (k + 1)] - sharp
        assert np.allclose(moved.std(0), sigma, rtol=0.03) and np.abs(moved.mean(0)).max() < 4 * sigma / np.sqrt(20000)
    surface = field.prepare(*arrays(trimesh.creation.box()))
    for k, sigma in enumerate(parameters["near"]):  # off a plane the distance is half-normal
        distance = field.closest(surface, points["rand_points"][20000 * k : 20000 * (k + 1)])[0]
        assert np.isclose(np.median(distance), 0.6745 * sigma, rtol=0.06)
    anywhere = points["rand_points"][-2000:]
    assert np.abs(anywhere).max() < dataset.BOX
    assert np.allclose(np.histogram(anywhere, 7, (-dataset.BOX, dataset.BOX))[0], 6000 / 7, atol=150)


# -- meshes without what is wanted ------------------------------------------------------------------------------------


def test_a_smooth_mesh_gets_points_where_it_bends_most_and_says_so():
    m = ball(5)
    m.apply_scale([1, 0.5, 0.5])  # bends most at the two tips
    points, facts = sample(m)
    assert (facts["smooth"], facts["on_sharp"], facts["filled"], facts["sharp_edges"]) == (True, 0.0, "curvature", 0)
    assert {key: value.shape for key, value in points.items()} == {
        key: value.shape for key, value in sample(trimesh.creation.box())[0].items()
    }
    P = points["fps_sharp_surface"][:, 0, :3]
    tips, evenly = (np.mean(np.abs(Q[:, 0]) > 0.7) for Q in (P, winding.sample(*arrays(m), 5000)[0]))
    assert tips > 1.3 * evenly
    assert on_surface(m, P) < 1e-6


def test_a_sphere_bends_everywhere_and_is_covered_evenly():
    P = sample(ball(5))[0]["fps_sharp_surface"][:, 0, :3]
    eighth = (P > 0) @ [4, 2, 1]
    assert np.allclose(np.bincount(eighth, minlength=8), 150, atol=25)


def test_a_stray_crease_takes_its_share_and_not_all():
    m = ball(5)
    V, F = arrays(m)
    V[0] *= 0.93  # one dimple
    points, facts = sharp_sample.sample(V, F, **FEW)
    assert 0 < facts["sharp_length"] < 1
    assert np.isclose(facts["on_sharp"], facts["sharp_length"] / 2, atol=1e-3) and facts["filled"] == "curvature"
    assert len(points["fps_sharp_surface"]) == 1200


def test_where_nothing_else_bends_the_rest_lies_anywhere():
    m = trimesh.creation.box(extents=[0.1, 0.1, 0.1])  # its edges are too short for all
    points, facts = sample(m)
    assert np.isclose(facts["on_sharp"], 0.6, atol=1e-3) and facts["filled"] == "uniform"
    P = points["fps_sharp_surface"][:, 0, :3]
    assert np.isclose((np.isclose(np.abs(P), 0.05).sum(1) >= 2).sum(), 720, atol=1)
    assert on_surface(m, P) < 1e-6


def test_rims_folds_doubled_and_flipped_faces_lose_no_mesh():
    half = trimesh.creation.box()
    half.update_faces(half.triangles_center[:, 2] < 0.49)  # open: one side is missing
    points, facts = sample(half)
    P = points["fps_sharp_surface"][:, 0, :3]
    assert facts["sharp_edges"] == 12 and (np.isclose(np.abs(P), 0.5).sum(1) >= 2).all()
    V = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0.0]])
    sheet = np.array([[0, 1, 2], [2, 1, 3]])
    for F in (sheet, np.r_[sheet, sheet[:, ::-1]], np.r_[sheet, sheet], np.array([[0, 1, 2], [1, 2, 3]])):
        points, _ = sharp_sample.sample(V, F, **FEW)
        assert all(np.isfinite(array).all() for array in points.values())
        assert np.allclose(np.linalg.norm(points["fps_sharp_surface"][:, 0, 3:], axis=1), 1)


# -- labels -----------------------------------------------------------------------------------------------------------


def of_ball(P):
    return 0.9 - np.linalg.norm(P, axis=1)


def of_torus(P):
    return 0.25 - np.linalg.norm(np.c_[np.linalg.norm(P[:, :2], axis=1) - 0.7, P[:, 2]], axis=1)


def of_box(P):
    q = np.abs(P) - 0.5
    return -np.linalg.norm(np.maximum(q, 0), axis=1) - np.minimum(q.max(1), 0)


@pytest.mark.parametrize(
    ("make", "exact", "within"),
    [(lambda: ball(5), of_ball, 4e-4), (lambda: torus(160), of_torus, 6e-4), (trimesh.creation.box, of_box, 1e-6)],
)
@pytest.mark.parametrize("precision", ["float16", "float32"])
def test_labels_are_the_signed_distance_of_the_stored_points(make, exact, within, precision):
    m = make()  # `within`: how far the mesh lies from the shape it stands for
    points, _ = sample(m)
    stored = sharp_sample.label(*arrays(m), points, precision, FEW["uniform"])
    assert {key: array.shape for key, array in stored.items()} == {
        "fps_coarse_surface": (500, 1, 6),
        "fps_sharp_surface": (1200, 1, 6),
        "sharp_near_surface": (4800, 4),
        "rand_points": (8000, 4),
    }
    for key in ("sharp_near_surface", "rand_points"):
        array = stored[key].astype(float)
        assert stored[key].dtype == precision
        true, label = exact(array[:, :3]), array[:, 3]
        assert (np.sign(true) == np.sign(label))[np.abs(true) > within].all()
        assert (np.abs(true - label) < within + np.abs(label) * 2.0 ** (-10.4 if precision == "float16" else -24)).all()
        mesh_label = signed.distance(signed.prepare(*arrays(m)), array[:, :3])
        assert np.abs(mesh_label - label)[np.abs(mesh_label) < 0.25].max() < 1e-4
        rounding = {"float16": 2.0**-11, "float32": 2.0**-24}[precision]
        assert np.abs(array[:, :3] - points[key]).max() <= 1.3 * rounding


def test_the_volume_judges_the_labels():
    V, F = arrays(torus())
    points, _ = sharp_sample.sample(V, F, **FEW)
    stored = sharp_sample.label(V, F, points, "float16", FEW["uniform"])
    facts = sharp_sample.judge(V, F, stored, FEW["uniform"])
    assert facts["off"] < 4 and np.isclose(facts["volume"] * 2.1**3, torus().volume)
    assert -1.7 < facts["farthest"] < 0 < facts["deepest"] <= 0.25
    stored["rand_points"][:, 3] *= -1
    assert sharp_sample.judge(V, F, stored, FEW["uniform"])["off"] > 10


# -- spread -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("total", "count"), [(3000, 500), (3000, 2500), (3000, 40), (500, 500), (50, 1)])
@pytest.mark.parametrize("make", [torus, trimesh.creation.box])
def test_points_are_as_well_spread_as_by_farthest_point_sampling(make, total, count):
    P = winding.sample(*arrays(make()), total)[0]
    chosen = sharp_sample.spread(P, count, np.random.default_rng(0))
    assert len(set(chosen)) == count
    if 1 < count < total:
        (apart, reach), (best_apart, best_reach) = (spacing(P, c) for c in (chosen, farthest(P, count)))
        assert apart > 0.85 * best_apart and reach < 1.15 * best_reach


def spacing(P, chosen):
    """The smallest distance between chosen points, the largest from any point to one of them."""
    tree = cKDTree(P[chosen])
    return tree.query(P[chosen], [2])[0].min(), tree.query(P)[0].max()


def test_points_in_one_place_or_on_a_line_are_spread_too():
    rng = np.random.default_rng(0)
    same = np.repeat(rng.random((10, 3)), 30, axis=0)
    assert len(set(sharp_sample.spread(same, 100, rng))) == 100
    assert len(np.unique(same[sharp_sample.spread(same, 10, rng)], axis=0)) == 10
    line = np.c_[np.linspace(0, 1, 2000), np.zeros((2000, 2))]
    apart, reach = spacing(line, sharp_sample.spread(line, 100, rng))
    assert apart > 0.005 and reach < 0.01


# -- the stage --------------------------------------------------------------------------------------------------------


@pytest.fixture
def closed(tmp_path):
    """A tree with what 01 leaves: four closed meshes and their facts."""
    shapes = {"ball": ball(3), "box": trimesh.creation.box(), "torus": torus(24), "wedge": wedge(50)}
    (tmp_path / "meshes").mkdir()
    for name, m in shapes.items():
        m.export(tmp_path / "meshes" / f"{name}.obj")

    def make(tree):
        items = dataset.collect(tmp_path / "meshes", tmp_path / tree, 32)
        for item, m in zip(items, shapes.values(), strict=True):
            leave(item, lambda path, m=m: mesh.write(path, *arrays(m)))
        return items

    return make


def leave(item, write):
    """Write an item's closed mesh and note it as 01 does."""
    with item.writing("_normalized.obj") as path:
        write(path)
    record = {"version": 1, "parameters": {}, "inputs": {}, "outputs": dict(item.written), "facts": {}}
    dataset.write_facts(item, dataset.read_facts(item) | {"01_watertight": record})
    item.written.clear()


def run(items, folder, jobs=1, **parameters):
    parameters = sharp_sample.checked(**FEW | parameters)
    return pool.map(
        sharp_sample.sharp_sample, items, "02_sharp_sample", folder, parameters, inputs=("_normalized.obj",), jobs=jobs
    )


def written(items):
    return [item.path(suffix).read_bytes() for item in items for suffix in ("_sample_points.npz", "_sharp_sample.ply")]


def test_neither_order_nor_workers_nor_threads_change_a_byte(closed, tmp_path, monkeypatch):
    one, two = closed("one"), closed("two")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("IGL_NUM_THREADS", "1")
    run(one, tmp_path / "run_one")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("IGL_NUM_THREADS", "3")
    run(two[::-1], tmp_path / "run_two", jobs=3)
    assert written(one) == written(two)
    again = run(one, tmp_path / "run_one")
    assert set(again.status) == {"kept"}
    before = written(one)
    assert set(run(one, tmp_path / "run_one", seed=1).status) == {"done"}
    assert all(a != b for a, b in zip(before, written(one), strict=True))


@pytest.mark.parametrize("precision", ["float16", "float32"])
def test_files_are_what_doras_loader_and_a_viewer_expect(closed, tmp_path, precision):
    items = closed("tree")
    ledger = run(items, tmp_path / "run", precision=precision)
    for item, row in zip(items, ledger.to_dict("records"), strict=True):
        with np.load(item.path("_sample_points.npz"), allow_pickle=False) as file:
            stored = dict(file)
        assert list(stored) == ["fps_coarse_surface", "fps_sharp_surface", "sharp_near_surface", "rand_points"]
        assert all(array.dtype == precision and np.isfinite(array).all() for array in stored.values())
        cloud = trimesh.load(item.path("_sharp_sample.ply"))
        half_a_step = {"float16": 2.0**-12, "float32": 0}[precision]  # the points' below 1; the cloud is always single
        assert np.allclose(cloud.vertices, stored["fps_sharp_surface"][:, 0, :3], rtol=0, atol=half_a_step)
        head, _, body = item.path("_sharp_sample.ply").read_bytes().partition(b"end_header\n")
        assert b"binary_little_endian" in head and b"property float nz" in head
        P = np.frombuffer(body, "<f4").reshape(-1, 6)
        assert np.allclose(P, stored["fps_sharp_surface"][:, 0], rtol=0, atol=half_a_step)
        assert row["bytes"] == sum(len(file) for file in written([item]))
        assert row["seconds_label"] > 0 and row["off"] < 4.5
    assert ledger.set_index("item").smooth.to_dict() == {item.name: item.name.startswith("ball") for item in items}


def test_damaged_meshes_are_put_aside_with_their_paths_and_hurt_no_other(closed, tmp_path, capsys):
    items = closed("tree")
    run(items, tmp_path / "run")
    reasons = {
        "garbage": "empty",
        "v 0 0 0\nv 5 0 0\nv 0 5 0\nf 1 2 3\n": "reaches 5; wanted",
        "v 0 0\nf 1": "is not read",
    }
    for item, text in zip(items, reasons, strict=False):
        leave(item, lambda path, text=text: path.write_text(text))
    items.append(dataset.Item("gone", "gone.obj", "", items[0].dataset, 32))
    ledger = run(items, tmp_path / "run").set_index("item")
    for item, reason in zip(items, reasons.values(), strict=False):
        row = ledger.loc[item.name]
        assert row.status == "quarantined" and str(item.path("_normalized.obj")) in row.reason and reason in row.reason
        assert not item.path("_sample_points.npz").exists()
    assert len(ledger) == 4 and ledger.loc[items[3].name].status == "kept"
    assert "1 items are left out, they lack _normalized.obj" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"coarse": 4000}, "draws = 3000 is less than coarse = 4000"),
        ({"uniform": 0}, "uniform = 0; wanted 1 or more"),
        ({"near": []}, "near = []"),
        ({"sharp_near": [0.1, -1]}, "wanted distances"),
        ({"near": [float("nan")]}, "wanted distances"),
        ({"angle": 200.0}, "angle = 200.0; wanted degrees"),
        ({"seed": -1}, "seed = -1"),
        ({"precision": "float8"}, "'float16', 'float32'"),
    ],
)
def test_parameters_that_make_no_sense_are_refused_before_anything_is_touched(wrong, said):
    with pytest.raises(ValueError, match=r"wanted|less") as error:
        sharp_sample.checked(**FEW | wrong)
    assert said in str(error.value)
