"""picture.py: pixels show what is there, from where they should, and nothing crashes where there is no OpenGL."""

import io
import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import trimesh
from IPython.display import Latex
from PIL import Image as Pixels

from lib import picture
from lib.mesh import write

PAPER = np.array([0xFA, 0xF9, 0xF6])
LOUD = 0xE4, 0x00, 0x9B


@pytest.fixture
def opengl():
    try:
        return picture.opengl()
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.fixture(params=["opengl", "rays"])
def engine(request, monkeypatch):
    """Whatever draws, pictures show the same."""
    if request.param == "rays":
        monkeypatch.setattr(picture, "opengl", no_opengl)
    else:
        request.getfixturevalue("opengl")


def no_opengl():
    raise RuntimeError(picture.NO_OPENGL)


def pixels(image) -> np.ndarray:
    return np.asarray(Pixels.open(io.BytesIO(image.data)).convert("RGB")).astype(int)  # (height, width, 3)


def inked(cell: np.ndarray) -> np.ndarray:
    return np.abs(cell - PAPER).max(-1) > 12


def loud(cell: np.ndarray) -> int:
    """Pixels in the hue of the faces seen from behind."""
    red, green, blue = np.moveaxis(cell, -1, 0)
    return int(((red > 100) & (green < 0.3 * red) & (blue > 0.55 * red) & (blue < 0.85 * red)).sum())


def row(meshes, columns: int = 8, **view) -> list[np.ndarray]:
    """The pictures of a sheet of one row, (side, side, 3) each, without their titles."""
    image = picture.contact_sheet(meshes, [f"mesh {k}" for k in range(len(meshes))], columns, **view)
    side = 1200 // columns
    assert pixels(image).shape == (side + 46, 1200, 3)
    return np.split(pixels(image)[46:], columns, axis=1)


def sphere(radius=1.0):
    ball = trimesh.creation.icosphere(3, radius)
    return np.array(ball.vertices), np.array(ball.faces)


SQUARE = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]]), np.array([[0, 1, 2], [0, 2, 3]])


# -- sheets -----------------------------------------------------------------------------------------------------------


def test_each_mesh_is_drawn_in_its_cell_in_its_colour(engine):
    V, F = sphere()
    points, faces = (np.tile(np.uint8([20, 40, 220]), (len(k), 1)) for k in (V, F))
    red, by_point, by_face, clay, gone, *empty = row([(V, F, "red"), (V, F, points), (V, F, faces), (V, F), "gone"])
    for cell, channel in ((red, 0), (by_point, 2), (by_face, 2)):
        middle = cell[55:85, 55:85]
        assert (middle.argmax(-1) == channel).all() and np.ptp(middle[..., channel]) > 10  # its colour, and shaded
    assert np.ptp(clay[55:85, 55:85].mean((0, 1))) < 60 and inked(clay).sum() > 9000
    assert 0 < inked(gone).sum() < 1000  # a line of text
    assert not any(inked(cell).any() for cell in empty)


def test_a_texture_stands_upright_and_is_not_mirrored(engine):
    V, F = SQUARE
    image = np.uint8([[[250, 0, 0], [0, 250, 0]], [[0, 0, 250], [250, 250, 0]]]).repeat(8, 0).repeat(8, 1)
    (cell, *_) = row([(V, F, ((V[:, :2] + 1) / 2, image))], turn=0, tilt=0)
    quarters = [cell[y, x] > 100 for y in (40, 100) for x in (40, 100)]
    assert np.array_equal(quarters, [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]])


def test_parts_of_a_mesh_are_one_mesh(engine):
    V, F = SQUARE
    (cell, *_) = row([[(V - [1, 0, 0], F, "red"), (V - [-1, 0, 0], F, "blue")]], turn=0, tilt=0)
    assert cell[71, 30].argmax() == 0 and cell[71, 110].argmax() == 2


def test_faces_seen_from_behind_are_loud(engine):
    V, F = sphere()
    open_ = F[V[F].mean(1)[:, 1] < 0.5]  # its lid is off
    meshes = [(V, F), (V, open_), (V, F[:, ::-1]), (V, F[:, ::-1], "green")]
    whole, bowl, flipped, coloured = row(meshes, tilt=40)[:4]
    assert loud(whole) == 0
    assert 0.1 < loud(bowl) / inked(bowl).sum() < 0.7
    assert loud(flipped) > 0.9 * inked(flipped).sum() and loud(coloured) > 0.9 * inked(coloured).sum()


def test_neighbours_share_a_camera_only_if_they_are_together(engine):
    meshes = [sphere(1.0), sphere(0.5)]
    large, small = row(meshes, together=2)[:2]
    assert inked(small).sum() == pytest.approx(inked(large).sum() / 4, rel=0.1)
    large, small = row(meshes)[:2]
    assert inked(small).sum() == pytest.approx(inked(large).sum(), rel=0.02)


def test_before_and_after_stand_under_one_name(monkeypatch):
    monkeypatch.setattr(picture, "contact_sheet", lambda *sheet, **view: SimpleNamespace(sheet=sheet, view=view))
    V, F = SQUARE
    found = picture.before_after(["a", "b"], [([(V, F), (V, F)], [(V, F)]), ([(V, F)], "gone")], edges=True)
    meshes, titles, columns = found.sheet
    assert titles == ["a\nbefore, 4 faces", "\nafter, 2 faces", "b\nbefore, 2 faces", "\nafter"]
    assert len(meshes) == columns == 4
    assert found.view == {"together": 2, "edges": True, "alt": "Before and after: a, b"}


# -- the camera -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("turn", "tilt"), [(0, 0), (35, 20), (200, -60)])
def test_the_camera_has_all_in_view_and_comes_close(engine, turn, tilt):
    box = trimesh.creation.box((2, 0.3, 1))
    box.apply_scale(1e-3)
    box.apply_translation((5, -3, 1))  # small and far away, as scans are
    seen = inked(row([(box.vertices, box.faces)], 4, turn=turn, tilt=tilt)[0])
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    assert rows[0] > 2 and rows[-1] < 281 and columns[0] > 10 and columns[-1] < 289  # the border is free
    assert max(np.ptp(rows), np.ptp(columns)) > 0.85 * 284


def test_the_camera_turns_around_the_upright_axis(engine):
    V, F = sphere()
    sides = [(0.2 * V + at, F, paint) for at, paint in (((1, 0, 0), "red"), ((0, 1, 0), "lime"), ((0, 0, 1), "blue"))]
    front, right, above = (row([sides], turn=turn, tilt=tilt)[0] for turn, tilt in ((0, 0), (90, 0), (0, 85)))

    def place(cell: np.ndarray, channel: int) -> np.ndarray:
        """Where a colour is, (to the right, downwards)."""
        return np.argwhere((cell.argmax(-1) == channel) & (np.ptp(cell, -1) > 60)).mean(0)[::-1]

    assert place(front, 0)[0] > place(front, 2)[0] + 30 and place(front, 1)[1] < place(front, 2)[1] - 30
    assert place(right, 2)[0] < place(right, 0)[0] - 30 and place(right, 1)[1] < place(right, 0)[1] - 30
    assert place(above, 2)[1] > place(above, 0)[1] + 30


def test_a_long_title_runs_on_over_cells_without_one_and_is_broken_at_its_spaces():
    told = "missed 0.0123, distance_mean 0.00345, distance_max 0.0456, two_sided 0.5, thin 0.25, caps 3"
    (lines, room, last), (none, _, after), (word, narrow, _), _ = picture.headings(
        [f"{told}\nbefore", "\nafter", "x" * 99, "short"], columns=4, width=284
    )
    assert " ".join(lines) == told and 1 < len(lines) < 4 and (last, after, none) == ("before", "after", [""])
    assert all(picture.typeface().getlength(line) <= room == 2 * 284 for line in lines)
    assert word == ["x" * 99] and narrow == 284  # no space to break it at: label() shortens it
    assert len(picture.headings([told * 9], 4, 284)[0][0]) == 4


def test_faces_without_vertices_are_refused_before_vtk_crashes(engine):
    with pytest.raises(ValueError, match="indices from 0 to 2"):
        row([(np.eye(3), np.array([[0, 1, 7]]))])


# -- a file's own colours ---------------------------------------------------------------------------------------------


def test_an_original_keeps_its_texture_its_colours_or_is_stone(tmp_path):
    V, F = sphere()
    visuals = {
        "texture": trimesh.visual.TextureVisuals(uv=V[:, :2], image=Pixels.new("RGB", (4, 4), (9, 200, 60))),
        "colours": trimesh.visual.ColorVisuals(vertex_colors=np.tile(np.uint8([9, 200, 60, 255]), (len(V), 1))),
        "nothing": None,
    }
    for name, visual in visuals.items():
        trimesh.Trimesh(V, F, visual=visual, process=False).export(tmp_path / f"{name}.glb")
    (((W, G, (uv, image)),), ((_, _, colours),), ((_, _, paint),)) = (
        picture.original(str(tmp_path / f"{name}.glb")) for name in visuals
    )
    assert np.allclose(W[G], V[F], atol=1e-6) and np.allclose(uv, V[:, :2], atol=1e-6)
    assert (image == (9, 200, 60)).all() and (colours == (9, 200, 60)).all() and paint == picture.STONE


def test_coordinates_for_a_texture_that_is_not_there_are_no_colour(tmp_path):
    source = tmp_path / "bare.obj"
    source.write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 0 1\nf 1/1 2/2 3/3\n")
    ((_, _, paint),) = picture.original(str(source))
    assert paint == picture.STONE


def test_an_original_with_some_colours_keeps_all_its_parts(tmp_path):
    V, F = sphere()
    red = trimesh.visual.TextureVisuals(material=trimesh.visual.material.PBRMaterial(baseColorFactor=(255, 0, 0, 255)))
    plain, painted = trimesh.Trimesh(V, F), trimesh.Trimesh(V + 5, F, visual=red)
    trimesh.Scene([plain, painted]).export(tmp_path / "two.glb")
    paints = {V.mean() > 1: paint for V, F, paint in picture.original(str(tmp_path / "two.glb"))}
    assert paints[False] == picture.STONE and (paints[True] == (255, 0, 0)).all()


# -- small files ------------------------------------------------------------------------------------------------------


def test_a_picture_keeps_its_colours():
    ramp = np.stack(np.meshgrid(*[np.arange(256, dtype=np.uint8)] * 2), -1)  # (256, 256, 2): every red and green
    ramp = np.concatenate([ramp, np.full((256, 256, 1), 0x9B, np.uint8)], -1)
    image = picture.png(Pixels.fromarray(ramp), "a ramp")
    assert np.abs(pixels(image) - ramp).max() <= 2 and image.alt == "a ramp"


def test_a_row_of_spheres_with_edges_stays_small(opengl):
    ball = trimesh.creation.icosphere(5)
    image = picture.contact_sheet([(ball.vertices, ball.faces)] * 4, "abcd", edges=True)
    assert pixels(image).shape[1] == 1200 and len(image.data) < 100_000


def test_a_busy_picture_gets_smaller_and_a_few_loud_pixels_survive_in_it():
    reds = np.random.default_rng(0).integers((120, 0, 0), (256, 120, 200), (300, 1200, 3)).astype(np.uint8)
    reds[100:104, 200:204] = LOUD
    image = picture.png(Pixels.fromarray(reds), "reds")
    assert len(image.data) < 0.6 * reds.size
    assert np.abs(pixels(image) - reds).max() <= 8


# -- OpenGL -----------------------------------------------------------------------------------------------------------

linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere VTK has one kind of window")


@linux
def test_without_opengl_there_is_a_message_that_names_the_package(monkeypatch):
    monkeypatch.setenv("VTK_DEFAULT_OPENGL_WINDOW", "nowhere")  # VTK segfaults over this
    monkeypatch.setattr(picture, "opengl", picture.opengl.__wrapped__)  # ask again
    with pytest.raises(RuntimeError, match=r"No OpenGL.*libegl1"):
        picture.opengl()
    monkeypatch.setitem(sys.modules, "embreex", None)  # nor rays
    image = picture.contact_sheet([SQUARE], ["square"])
    assert "libegl1" in image.alt and inked(pixels(image)).any()


@linux
def test_the_first_window_that_draws_is_taken(monkeypatch):
    monkeypatch.setenv("VTK_DEFAULT_OPENGL_WINDOW", "to be restored")
    monkeypatch.delenv("VTK_DEFAULT_OPENGL_WINDOW")
    probe = "import os; k = os.environ['VTK_DEFAULT_OPENGL_WINDOW']; 'EGL' in k and os.abort(); print('renderer:', k)"
    monkeypatch.setattr(picture, "PROBE", probe)
    assert picture.opengl.__wrapped__() == os.environ["VTK_DEFAULT_OPENGL_WINDOW"] == "vtkOSOpenGLRenderWindow"


def test_growth_shows_each_shape_from_its_first_step_to_the_truth(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(picture, "contact_sheet", lambda meshes, titles, columns, **_: told.append((meshes, titles)))
    truth = sphere(1.0)
    for step in (0, 50, 100, 150, 1000):
        write(tmp_path / f"ball_step_{step:09d}.obj", *sphere(0.5 + step / 2000))
    (tmp_path / "ball_step_000000050.obj").write_text("no mesh")
    write(tmp_path / "truth.obj", *truth)
    items = [SimpleNamespace(name=name, path=lambda suffix: tmp_path / "truth.obj") for name in ("none", "ball")]
    picture.growth(tmp_path, items, "how it grew", columns=4)
    picture.growth(tmp_path, items, "how it grew", columns=8)
    (meshes, titles), (_, wide) = told
    assert wide[5:] == ["\ntruth", "\n", "\n"] and len(set(wide)) == 7  # five steps, none of them twice
    assert titles == ["ball\nstep 0", "\nstep 100", "\nstep 1,000", "\ntruth"]
    assert [round(float(np.abs(V).max()), 3) for V, _ in meshes] == [0.5, 0.55, 1.0, 1.0]
    assert picture.mesh_or_reason(tmp_path / "ball_step_000000050.obj").startswith("nothing to see: ")


THREADS = """
import threading, numpy as np, trimesh
from lib import picture
ball = trimesh.creation.icosphere(1)
uv, image = ball.vertices[:, :2], np.zeros((8, 8, 3), np.uint8)
made = []
def sheet():
    made.append(picture.contact_sheet([(np.array(ball.vertices), np.array(ball.faces), (uv, image))], ["ball"], 8).data)
sheet()
for _ in range(2):
    threads = [threading.Thread(target=sheet) for _ in range(2)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    sheet()
print("alike:", len(made), len(set(made)))
"""


def test_cells_and_widgets_draw_alike_from_their_threads(opengl):
    """JupyterLab calls widgets from a thread of their own; OpenGL kept by the other one ended the kernel."""
    assert picture.probe(THREADS, "alike:") == "7 1"


# -- live -------------------------------------------------------------------------------------------------------------


def test_what_widgets_show_is_plain_output_that_follows_them(monkeypatch):
    import ipywidgets
    from IPython.core.displaypub import CapturingDisplayPublisher
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell.instance()
    told = CapturingDisplayPublisher(shell=shell)
    monkeypatch.setattr(shell, "display_pub", told)
    ipywidgets.Widget.close_all()  # those of other tests
    choice = ipywidgets.Dropdown(options=["box", "ball"])
    picture.live([choice], lambda turn, tilt: (Latex(f"{choice.value} {turn} {tilt}"), Latex("facts")))
    controls, still, facts = told.outputs
    assert "application/vnd.jupyter.widget-view+json" in controls["data"] and "image/png" not in controls["data"]
    assert still["data"]["text/latex"] == "box 35 20"
    turn = next(w for w in ipywidgets.widgets.widget._instances.values() if getattr(w, "description", "") == "turn")
    turn.value = 90
    choice.value = "ball"
    assert [one["data"]["text/latex"] for one in told.outputs[3:]] == ["box 90 20", "facts", "ball 90 20", "facts"]
    assert all(one["update"] for one in told.outputs[3:])
    assert told.outputs[-2]["transient"] == still["transient"] != facts["transient"] == told.outputs[-1]["transient"]
