"""render.py: depth against rays, normals of a sphere, points back on the surface; what draws is named and checked."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import trimesh
from PIL import Image as Pixels
from test_view import decode_normal

from lib import camera, dataset, field, mesh, paint, picture, pool, render, view
from lib.watertight import watertight

LENS = camera.lens(96)
POSES = camera.poses(5, LENS.distance)


@pytest.fixture(scope="module")
def opengl():
    try:
        return picture.opengl()
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.fixture(params=["rays", "opengl"])
def engine(request):
    if request.param == "opengl":
        request.getfixturevalue("opengl")
    return render.ENGINES[request.param]


def ball(level=4):
    shape = trimesh.creation.icosphere(level)
    return np.array(shape.vertices), np.array(shape.faces)


def pot():
    """A torus with a box through it: holes, creases, one body before the other."""
    shape = trimesh.creation.torus(0.7, 0.25) + trimesh.creation.box([0.3, 1.6, 0.4])
    return np.array(shape.vertices), np.array(shape.faces)


def corners():
    """A box as large as the dataset's."""
    box = trimesh.creation.box([2 * dataset.BOX] * 3)
    return np.array(box.vertices), np.array(box.faces)


def draw(V, F, engine, lens=LENS, poses=POSES, maps=("depth", "normal"), normals="world", shading="flat"):
    drawn = [{} for _ in poses]
    render.draw_maps(drawn, V, F, lens, poses, maps, normals, shading, engine)
    return drawn


def cast(V, F, lens, pose):
    """Every pixel's ray, without any of the engine's short cuts: depth (h, w) and face (h, w)."""
    row, column = np.indices((lens.size, lens.size))
    O, D = camera.rays(lens, pose, np.stack([column.ravel(), row.ravel()], 1) + 0.5)
    t, face = field.hits(field.prepare(V, F, rays_only=True), O, D)
    return t.reshape(row.shape), face.reshape(row.shape)


# -- depth and normals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lens", [LENS, camera.lens(96, "orthographic"), camera.lens(96, field_of_view=80)])
@pytest.mark.parametrize("shape", [ball, pot, corners])
def test_depth_is_what_rays_find(engine, lens, shape):
    V, F = shape()
    look = engine(V, F)
    for pose in camera.poses(5, lens.distance):
        face, depth = look(lens, pose)
        wanted, _ = cast(V, F, lens, pose)
        both = np.isfinite(depth) & np.isfinite(wanted)
        assert (np.isfinite(depth) != np.isfinite(wanted)).mean() < 1e-3 and both.any()
        assert ((face >= 0) == np.isfinite(depth)).all()
        far = np.abs(depth[both] - wanted[both])
        assert np.median(far) < 1e-5 and np.percentile(far, 99) < 1e-3


def test_encoded_depth_stays_within_half_a_step(engine):
    V, F = pot()
    for one, pose in zip(draw(V, F, engine), POSES, strict=True):
        wanted, _ = cast(V, F, LENS, pose)
        both = (one["depth"] > 0) & np.isfinite(wanted)
        far = np.abs(one["depth"] * LENS.depth_scale - wanted)[both]
        assert np.percentile(far, 98) < LENS.depth_scale / 2 + 1e-5  # the rest are edges of faces


def test_depth_of_a_ball_is_its_closed_form(engine):
    """Straight on, the ray through a pixel meets the unit ball at the smaller root of |o + t d| = 1."""
    (one,) = draw(*ball(6), engine, poses=POSES[:1])
    row, column = np.nonzero(one["depth"])
    O, D = camera.rays(LENS, POSES[0], np.stack([column, row], 1) + 0.5)
    a, b, c = (D * D).sum(1), (O * D).sum(1), (O * O).sum(1) - 1
    root = b**2 - a * c
    t = (-b - np.sqrt(np.maximum(root, 0))) / a
    inner = root > 0.05 * a  # not grazing
    assert np.abs(one["depth"][row, column] * LENS.depth_scale - t)[inner].max() < 1.5e-3
    assert 0.9 < len(row) / (np.pi * (LENS.focal / np.sqrt(LENS.distance**2 - 1)) ** 2) < 1.1  # its disk


@pytest.mark.parametrize("shading", ["flat", "smooth"])
@pytest.mark.parametrize("normals", ["world", "camera"])
def test_normals_of_a_ball_are_its_points(engine, shading, normals):
    V, F = ball(5)
    for one, pose in zip(draw(V, F, engine, normals=normals, shading=shading), POSES, strict=True):
        P = camera.unproject(LENS, pose, one["depth"] * LENS.depth_scale)
        wanted = P / np.linalg.norm(P, axis=1, keepdims=True)
        wanted = wanted if normals == "world" else wanted @ pose[:3, :3]
        found = decode_normal(one["normal"])[one["depth"] > 0]
        angle = np.degrees(np.arccos(np.clip((found * wanted).sum(1), -1, 1)))
        assert angle.max() < (2.2 if shading == "flat" else 0.8)  # faces are 2 degrees wide; 8 bits
        if normals == "camera":
            assert (found[:, 2] > -0.1).all()  # to the viewer


def test_smooth_keeps_creases(engine):
    box = trimesh.creation.box()
    V, F = np.array(box.vertices), np.array(box.faces)
    flat, smooth = (draw(V, F, engine, shading=shading) for shading in ("flat", "smooth"))
    for one, other in zip(flat, smooth, strict=True):
        assert np.array_equal(one["normal"], other["normal"])
        assert len(np.unique(one["normal"].reshape(-1, 3), axis=0)) <= 4  # three sides and nothing


def test_every_pixel_of_every_view_lies_on_the_surface(engine):
    V, F = pot()
    surface = field.prepare(V, F)
    poses = camera.poses(36, LENS.distance)
    for one, pose in zip(draw(V, F, engine, poses=poses), poses, strict=True):
        P = camera.unproject(LENS, pose, one["depth"] * LENS.depth_scale)
        far = field.closest(surface, P)[0]
        # OpenGL moves corners to the nearest 256th of a pixel before it asks which face a pixel sees.
        snapped = LENS.distance / LENS.focal / 128 if engine is render.by_opengl else 0
        assert len(P) > 200 and far.max() < 0.51 * LENS.depth_scale + snapped
        assert np.median(far) < LENS.depth_scale / 2
        view.check(one, 0)


def test_a_box_as_large_as_the_datasets_is_not_cut_off(engine):
    for lens in (LENS, camera.lens(96, "orthographic"), camera.lens(64, field_of_view=100)):
        for one in draw(*corners(), engine, lens, camera.poses(36, lens.distance)):
            view.check(one, 0)


def test_two_renders_are_equal_to_the_byte(engine):
    def whole():
        drawn = draw(*pot(), engine, shading="smooth")
        render.draw_images(drawn, paint.skin([(*pot(), "gold")]), LENS, POSES, engine)
        return drawn

    first, second = whole(), whole()
    draw(*ball(), engine)  # and what was drawn before does not matter
    third = whole()
    for name in view.MAPS:
        for a, b, c in zip(first, second, third, strict=True):
            assert view.png(a[name]) == view.png(b[name]) == view.png(c[name])


def test_one_plotter_draws_all_meshes_and_keeps_only_the_last(opengl):
    plotter = render.canvas()[0]
    for shape in (ball, pot, corners):
        draw(*shape(), render.by_opengl)
        assert render.canvas()[0] is plotter and len(plotter.actors) == 1


def test_engines_agree(opengl):
    """Depth to a step, normals to a level, but for the edges of faces."""
    one, two = (draw(*pot(), render.ENGINES[name]) for name in ("opengl", "rays"))
    for a, b in zip(one, two, strict=True):
        assert ((a["depth"] > 0) != (b["depth"] > 0)).mean() < 1e-3
        assert (np.abs(a["depth"].astype(int) - b["depth"]) > 1).mean() < 2e-3
        assert (np.abs(a["normal"].astype(int) - b["normal"]) > 1).any(-1).mean() < 5e-3


def test_faces_are_told_apart_beyond_16_bits(opengl):
    """Numbers of faces pass through three bytes of a colour."""
    V, F = ball(7)
    assert len(F) > 1 << 18
    face, _ = render.ENGINES["opengl"](V, F)(LENS, POSES[2])
    _, wanted = cast(V, F, LENS, POSES[2])
    seen = (face >= 0) & (wanted >= 0)
    assert (face == wanted)[seen].mean() > 0.9 and face.max() > 1 << 16


# -- images -----------------------------------------------------------------------------------------------------------

SQUARE = np.array([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]]), np.array([[0, 1, 2], [0, 2, 3]])


def front(lens=LENS):
    pose = np.eye(4)
    pose[2, 3] = lens.distance
    return pose[None]


def photograph(parts, engine, poses=None):
    poses = front() if poses is None else poses
    drawn = [{} for _ in poses]
    render.draw_images(drawn, paint.skin(parts), LENS, poses, engine)
    return [one["image"] for one in drawn]


def test_a_picture_has_its_texture_upright_its_colours_and_nothing_behind(engine):
    texture = np.uint8([[[240, 0, 0], [0, 240, 0]], [[0, 0, 240], [240, 240, 0]]]).repeat(8, 0).repeat(8, 1)
    uv = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    (image,) = photograph([(*SQUARE, (uv, texture))], engine)
    light = paint.lit(np.full((1, 3), 240.0), np.array([[0, 0, 1.0]]))[0, 0]
    for (row, column), colour in zip(((38, 38), (38, 58), (58, 38), (58, 58)), ("r", "g", "b", "y"), strict=True):
        wanted = {"r": [1, 0, 0], "g": [0, 1, 0], "b": [0, 0, 1], "y": [1, 1, 0]}[colour]
        assert np.abs(image[row, column, :3] - light * np.array(wanted)).max() < 2 and image[row, column, 3] == 255
    assert not image[:20].any()


def test_alpha_is_how_much_of_a_pixel_is_covered(engine):
    (image,) = photograph([(*SQUARE, "white")], engine)
    covered = (2 * LENS.focal / LENS.distance) ** 2
    assert (image[..., 3] / 255).sum() == pytest.approx(covered, rel=0.02)
    (image,) = photograph([(*ball(), "#808080")], engine)
    partly = (image[..., 3] > 0) & (image[..., 3] < 255)
    assert partly.any() and image[partly][:, :3].min() > 20  # the rim is as bright as the ball: no black is mixed in


def test_a_face_is_lit_alike_from_both_sides(engine):
    V, F = SQUARE
    (one,), (other,) = photograph([(V, F, "white")], engine), photograph([(V, F[:, ::-1], "white")], engine)
    assert np.array_equal(one, other)


def test_an_image_and_the_maps_show_the_same_place(engine):
    V, F = pot()
    images = photograph([(V, F, "gold")], engine, POSES)
    for image, one in zip(images, draw(V, F, engine), strict=True):
        assert view.overlap(image, one["depth"] > 0) > 0.95


def test_pictures_of_both_engines_agree(opengl):
    one, two = (photograph([(*pot(), "gold")], render.ENGINES[name], POSES) for name in ("opengl", "rays"))
    for a, b in zip(one, two, strict=True):
        assert (np.abs(a.astype(int) - b) > 2).any(-1).mean() < 2e-3


def test_a_sheet_that_shows_its_edge_is_told_from_a_blind_renderer(engine):
    V, F = SQUARE
    parts = [(V[:, [2, 0, 1]], F, "white")]  # in the plane x = 0, where the camera stands
    drawn = [{} for _ in range(1)]
    assert render.draw_images(drawn, paint.skin(parts), LENS, front(), engine) == [0]
    assert not drawn[0]["image"].any()

    def blind(V, F):
        return lambda lens, pose: (np.full((lens.size,) * 2, -1), np.full((lens.size,) * 2, np.inf))

    assert render.draw_images(drawn, paint.skin([(*SQUARE, "white")]), LENS, front(), blind) == []


# -- the stage --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def closed(tmp_path_factory):
    """Two shapes that 01 has closed, away from the centre: one without colours, one with a texture."""
    folder = tmp_path_factory.mktemp("closed")
    (folder / "meshes").mkdir()
    box = trimesh.creation.box([2, 4, 2])
    box.apply_translation([10, 20, 30])
    box.export(folder / "meshes" / "plain.stl")
    V, F = pot()
    image = Pixels.fromarray(np.full((4, 4, 3), (200, 40, 40), np.uint8))
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=image)
    look = trimesh.visual.TextureVisuals(np.full((len(V), 2), 0.5), material=material)
    trimesh.Trimesh(V * 3 + 5, F, visual=look, process=False).export(folder / "meshes" / "red.glb")
    items = dataset.collect(folder / "meshes", folder / "tree", 32)
    pool.map(watertight, items, "01_watertight", folder / "run", {"resolution": 32}, jobs=1)
    return items


@pytest.fixture
def tree(closed, tmp_path):
    """A copy of them to work on."""
    shutil.copytree(closed[0].dataset, tmp_path / "tree", symlinks=True)
    return [dataset.Item(item.name, item.source, item.sha256, str(tmp_path / "tree"), 32) for item in closed]


def run(tree, tmp_path, **parameters):
    parameters = {"views": 3, "size": 64} | parameters
    means = {name: parameters.pop(name) for name in ("engine", "gpu") if name in parameters}
    inputs = ("source", "_normalized.obj")
    return pool.map(render.render, tree, "03_render", tmp_path / "run", parameters, inputs=inputs, jobs=1, means=means)


def test_an_item_comes_out_as_the_design_says(tree, tmp_path):
    ledger = run(tree, tmp_path)
    assert list(ledger["status"]) == ["done", "done"], list(ledger["reason"])
    for item in tree:
        told = json.loads(item.path("_views.json").read_text())
        assert len(told["frames"]) == 3 and (told["w"], told["h"], told["cx"], told["cy"]) == (64, 64, 32, 32)
        assert told["fl_x"] == told["fl_y"] and told["depth_scale"] == camera.lens(64).depth_scale
        names = {f"{item.stem}_view_{k:03}_{name}.png" for k in range(3) for name in view.MAPS}
        made = {path.name for path in item.path("").parent.glob("*_view_*.png")}
        assert names == made and {frame["file_path"] for frame in told["frames"]} <= names
        modes = [Pixels.open(item.path(f"_view_000_{name}.png")).mode for name in view.MAPS]
        assert modes == ["RGBA", "I;16", "RGB"]
        surface = field.prepare(*mesh.read(item.path("_normalized.obj")))
        lens, poses, _ = camera.read(item.path("_views.json"))
        for k, pose in enumerate(poses):
            P = camera.unproject(lens, pose, view.read(item, k, "depth") * told["depth_scale"])
            assert field.closest(surface, P)[0].max() < told["depth_scale"]
    plain, red = ledger.to_dict("records")
    assert min(plain["overlap_least"], red["overlap_least"]) > 0.85  # the source lies where its closed mesh is
    assert (plain["textures"], red["textures"]) == (0, 1)
    assert red["bytes"] == sum(path.stat().st_size for path in tree[1].path("").parent.glob("*_view*"))
    image = view.read(tree[1], 0, "image").astype(int)
    solid = image[..., 3] == 255
    assert (image[solid][:, 0] > 3 * image[solid][:, 1]).all()  # red
    grey = view.read(tree[0], 0, "image").astype(int)
    assert np.ptp(grey[grey[..., 3] == 255][:, :3], axis=1).max() < 25
    table = render.depths(ledger, tree[0].dataset, 32)
    assert (table["most, steps"] < 1).all() and len(table) == 2


def test_done_again_it_is_kept_and_by_other_means_too(tree, tmp_path):
    first = run(tree, tmp_path, engine="rays")
    before = [path.read_bytes() for path in sorted(tree[0].path("").parent.glob("*_view*"))]
    assert set(first["renderer"]) == {"embree"} and set(first["engine_image"]) == {"rays"}
    assert set(run(tree, tmp_path, engine="auto")["status"]) == {"kept"}
    assert set(run(tree[:1], tmp_path, engine="rays", views=2)["status"]) == {"done"}
    assert not tree[0].path("_view_002_depth.png").exists()  # no view of the other run is left
    assert set(run(tree[:1], tmp_path, engine="rays")["status"]) == {"done"}
    assert before == [path.read_bytes() for path in sorted(tree[0].path("").parent.glob("*_view*"))]


def test_only_what_is_asked_for_is_made(tree, tmp_path):
    ledger = run(tree[:1], tmp_path, maps=["depth"], engine="rays", projection="orthographic")
    assert ledger["status"][0] == "done", ledger["reason"][0]
    folder = tree[0].path("").parent
    assert {path.name.rpartition("_")[2] for path in folder.glob("*_view_*")} == {"depth.png"}
    lens, _, told = camera.read(tree[0].path("_views.json"))
    assert lens.projection == told["projection"] == "orthographic" and view.maps_of(told) == ["depth"]
    facts = render.render(tree[1], views=2, size=32, maps=["image"], engine="rays")
    assert facts["coverage"] > 0.03 and "faces" not in facts and "overlap" not in facts
    rows = pd.DataFrame({"item": [tree[1].name]})
    shown = view.cloud(rows, tree[1].dataset, tree[1].resolution)
    assert "no depth" in shown.alt and not len(render.depths(rows, tree[1].dataset, tree[1].resolution))


def test_a_blank_render_puts_the_item_aside_and_leaves_nothing(tree, monkeypatch):
    def blind(V, F):
        return lambda lens, pose: (np.full((lens.size,) * 2, -1), np.full((lens.size,) * 2, np.inf))

    monkeypatch.setitem(render.ENGINES, "rays", blind)
    with pytest.raises(ValueError, match=r"view 0: the (image|depth|normal) map is blank"):
        render.render(tree[0], views=2, size=32, engine="rays")
    assert not list(tree[0].path("").parent.glob("*_view*"))


def test_a_view_that_lacks_a_map_is_refused(tree, monkeypatch):
    monkeypatch.setattr(render, "draw_images", lambda *arguments: [])
    with pytest.raises(ValueError, match="view 0 lacks image"):
        render.render(tree[0], views=2, size=32, engine="rays")


def test_an_item_without_its_place_is_told_to_go_back(tree):
    facts = dataset.read_facts(tree[0])
    del facts["01_watertight"]["facts"]["scale"]
    dataset.write_facts(tree[0], facts)
    with pytest.raises(ValueError, match="Run 01_watertight"):
        render.render(tree[0], views=2, size=32, engine="rays")


# -- parameters and OpenGL --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "word"),
    [
        ({"views": 0}, "views = 0"),
        ({"views": 1001}, "views = 1001"),
        ({"size": 2}, "size = 2"),
        ({"maps": []}, "maps"),
        ({"maps": ["colour"]}, "maps"),
        ({"maps": "depth"}, "maps"),
        ({"normals": "tangent"}, "normals = 'tangent'"),
        ({"shading": "gouraud"}, "shading"),
        ({"engine": "blender"}, "engine"),
        ({"engine": "rays", "gpu": True}, "gpu"),
        ({"field_of_view": 200.0}, "field_of_view"),
    ],
)
def test_what_cannot_be_is_refused_before_any_item(parameters, word):
    with pytest.raises(ValueError, match=word):
        render.check(**parameters)


def test_gpu_true_is_refused_on_software(monkeypatch):
    monkeypatch.setattr(picture, "opengl", lambda: "llvmpipe (LLVM 15.0.6, 256 bits)")
    monkeypatch.setattr(render, "devices", list)
    render.opengl.cache_clear()
    with pytest.raises(ValueError, match=r"gpu = true.*llvmpipe.*gpu = false"):
        render.check(gpu=True)
    assert render.check(gpu=False).startswith("llvmpipe")
    monkeypatch.setattr(picture, "opengl", lambda: "NVIDIA H200/PCIe/SSE2")
    render.opengl.cache_clear()
    assert render.check(gpu=True).startswith("NVIDIA") and render.choose("auto", True, 500_000, 256) == "opengl"
    render.opengl.cache_clear()


def test_without_opengl_rays_draw_everything(tree, monkeypatch):
    def none():
        raise RuntimeError(picture.NO_OPENGL)

    monkeypatch.setattr(picture, "opengl", none)
    render.opengl.cache_clear()
    assert "embree" in render.check()
    facts = render.render(tree[1], views=2, size=48)
    assert facts["renderer"] == "embree" and facts["engine_maps"] == facts["engine_image"] == "rays"
    for chosen in ({"engine": "opengl"}, {"gpu": True}):
        with pytest.raises(ValueError, match="apt install"):
            render.check(**chosen)
    render.opengl.cache_clear()


def test_workers_take_the_gpus_in_turn(monkeypatch, tmp_path):
    monkeypatch.setattr(picture, "opengl", lambda: "llvmpipe")
    monkeypatch.setattr(render, "devices", lambda: [["1", "NVIDIA A"], ["2", "NVIDIA B"]])
    chosen = []
    for number in range(4):
        monkeypatch.delenv(render.INDEX, raising=False)
        monkeypatch.setattr(render, "turn", lambda number=number: number)
        render.opengl.cache_clear()
        chosen.append((render.opengl(True), os.environ[render.INDEX]))
    assert chosen == [("NVIDIA A", "1"), ("NVIDIA B", "2")] * 2
    monkeypatch.delenv(render.INDEX, raising=False)
    render.opengl.cache_clear()


@pytest.mark.parametrize(("count", "found"), [("3", [["0", "NVIDIA A"], ["2", "NVIDIA B"]]), ("1", []), ("", [])])
def test_gpus_are_known_by_their_egl_index_and_asked_for_once_a_run(monkeypatch, count, found):
    renderers, asked = {"0": "NVIDIA A", "1": "llvmpipe", "2": "NVIDIA B"}, []

    def probe(code, word, setting=None):
        asked.append(setting)
        return renderers[setting[render.INDEX]] if setting else count

    monkeypatch.setattr(picture, "probe", probe)
    monkeypatch.setenv(render.FOUND, "")  # so that it is as before in the end
    monkeypatch.delenv(render.FOUND)
    assert render.devices() == found
    probes = len(asked)
    assert render.devices() == found and len(asked) == probes == (4 if found else 1)


def test_a_gpu_that_the_person_chose_stays(monkeypatch):
    monkeypatch.setattr(picture, "opengl", lambda: "NVIDIA B")
    monkeypatch.setattr(render, "devices", lambda: pytest.fail("asked for all GPUs"))
    monkeypatch.setenv(render.INDEX, "2")
    render.opengl.cache_clear()
    assert render.opengl(True) == "NVIDIA B" and os.environ[render.INDEX] == "2"
    render.opengl.cache_clear()


def test_each_live_process_has_a_turn_of_its_own():
    code = "from lib import render; print(render.turn(), flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    workers = [subprocess.Popen([sys.executable, "-c", code], **pipes) for _ in range(2)]
    turns = [int(worker.stdout.readline()) for worker in workers]
    assert len(set(turns)) == 2
    workers[0].kill()  # a lock goes with its process
    workers[0].wait()
    third = subprocess.Popen([sys.executable, "-c", code], **pipes)
    assert int(third.stdout.readline()) <= turns[0]
    for worker in (workers[1], third):
        worker.communicate("\n")


def test_software_is_known_by_its_name():
    assert all(map(render.is_software, ("llvmpipe (LLVM 15.0.6, 256 bits)", "softpipe", "Google SwiftShader")))
    assert not any(map(render.is_software, ("NVIDIA GeForce RTX 3090/PCIe/SSE2", "Mesa Intel(R) UHD", "AMD Radeon")))


def test_the_engine_is_the_faster_one(monkeypatch):
    monkeypatch.setattr(render, "opengl", lambda gpu: "llvmpipe")
    assert render.choose("auto", False, 500_000, 256) == "rays" and render.choose("auto", False, 500, 512) == "opengl"
    assert render.choose("opengl", False, 500_000, 64) == "opengl"
    with pytest.raises(ValueError, match="faces"):
        render.choose("opengl", False, 1 << 24, 64)
    monkeypatch.setattr(render, "opengl", lambda gpu: "NVIDIA")
    assert render.choose("auto", False, 500_000, 256) == "opengl" and render.choose("auto", True, 1 << 24, 64) == "rays"
