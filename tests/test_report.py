"""report.py: numbers that are right, pictures that show what is there, and no crash where there is no OpenGL."""

import base64
import io
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import trimesh
from PIL import Image as Pixels

from lib import report

PAPER = np.array([0xFA, 0xF9, 0xF6])


@pytest.fixture
def ledger():
    """Ten items that took 1 to 10 seconds and 0.1 to 1 GiB, then three that were put aside after 5 seconds each."""
    usable = pd.DataFrame(
        {
            "item": [f"mesh_{k}" for k in range(10)],
            "status": ["done", "kept"] * 5,
            "reason": "",
            "seconds": np.arange(1.0, 11),
            "peak_gib": np.arange(1, 11) / 10,
            "source": [f"meshes/mesh_{k}.obj" for k in range(10)],
            "command": "repeat",
            "faces_in": 10 ** np.arange(10),
            "distance": [3, 1, 4, 1, 5, 9, 2, 6, np.nan, 5],
        }
    )
    return pd.concat([usable, put_aside()], ignore_index=True)


def put_aside() -> pd.DataFrame:
    reasons = [
        "same as a_00000aaa in 5.1 s",
        "meshes/bad_1.obj: <script>alert('$x$')</script>",
        "same as b_0bbbbbbb in 9 s",
    ]
    rows = {"item": ["bad_0", "bad_1", "bad_2"], "status": "quarantined", "reason": reasons, "seconds": 5.0}
    rows |= {
        "peak_gib": 2.0,
        "source": [f"meshes/bad_{k}.obj" for k in range(3)],
        "command": "python -m lib.pool x.json",
    }
    return pd.DataFrame(rows)


# -- where it ran -----------------------------------------------------------------------------------------------------


def test_provenance_is_plain_and_true():
    facts = report.provenance()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["packages"]["numpy"] == np.__version__ and "torch" in facts["packages"]
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert facts["cores"] >= 1 and facts["memory_gib"] > 0 and facts["cpu"] and facts["date"].endswith("+00:00")
    assert facts["python"] in report.machine().data


def test_provenance_knows_the_commit_and_whether_the_tree_differs(tmp_path, monkeypatch):
    module = tmp_path / "repo" / "lib" / "report.py"
    module.parent.mkdir(parents=True)
    module.write_text("")
    monkeypatch.setattr(report, "__file__", str(module))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert report.provenance()["commit"] is None
    for command in ("init -q", "add .", "-c user.name=a -c user.email=a@b commit -qm first"):
        subprocess.run(["git", *command.split()], cwd=tmp_path / "repo", check=True)
    facts = report.provenance()
    assert len(facts["commit"]) == 40 and facts["dirty"] is False
    module.write_text("changed")
    assert report.provenance()["dirty"] is True
    monkeypatch.setattr(report, "__file__", str(tmp_path / "repo" / ".venv" / "lib" / "report.py"))
    assert report.provenance()["commit"] is None  # somebody else's repository


# -- tables -----------------------------------------------------------------------------------------------------------


def test_totals_are_exact(ledger):
    assert report.totals(ledger, jobs=2) == pytest.approx(
        {
            "items": 13,
            "done": 5,
            "kept": 5,
            "quarantined": 3,
            "seconds an item, median": 5.5,
            "seconds an item, 90% below": 9.1,
            "seconds an item, most": 10,
            "peak memory, GiB": 1.0,
            "items an hour": 2 * 3600 / (70 / 13),
            "hours for 14,752 meshes on this machine": 14752 * (70 / 13) / 2 / 3600,
        }
    )
    sizes = report.totals(ledger.assign(bytes=3 * 2**20), jobs=2)
    assert sizes["MiB an item"] == 3 and sizes["GiB for 14,752 meshes"] == pytest.approx(14752 * 3 / 1024)
    assert "<td" in report.summary(ledger).data and ">5.5<" in report.summary(ledger).data


def test_reasons_that_differ_in_a_number_or_a_name_are_one():
    found = report.reasons(put_aside())
    assert list(found["items"]) == [2, 1]
    assert list(found["reason"]) == ["same as … in 5.1 s", "…: <script>alert('$x$')</script>"]


def test_quarantine_shows_counts_rows_and_commands_but_runs_nothing(ledger):
    page = report.quarantine(ledger, n=2).data
    assert "2 of 3" in page and "python -m lib.pool x.json" in page
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "mathjax_ignore" in page  # $x$ stays text
    assert "bad_2" not in page
    assert "No item" in report.quarantine(ledger[ledger["status"] != "quarantined"]).data


def test_table_escapes_names_and_formats_numbers():
    frame = pd.DataFrame({"<b>": ["<i>&", None], "n": [1234567.0, np.nan], "x": [0.123456, -2500.4]})
    frame["y"], frame["z"] = [True, [1, 0.5]], [np.inf, pd.Timestamp("2020-02-02")]
    page = report.table(frame).data
    assert "&lt;b&gt;" in page and "&lt;i&gt;&amp;" in page and "<i>" not in page
    for cell in ("1,234,567", "0.123", "-2,500", "True", "1, 0.5", "inf", "2020-02-02 00:00:00", ""):
        assert f">{cell}</td>" in page
    assert "nan" not in page.lower() and "None" not in page
    assert report.table(frame, ["x", "not there"]).data.count("<th") == 2  # thead and one th


def test_worst_comes_first(ledger):
    assert list(report.worst(ledger, "distance", 4)["item"]) == ["mesh_5", "mesh_7", "mesh_4", "mesh_9"]
    assert list(report.worst(ledger, "distance", 2, lowest=True)["item"]) == ["mesh_1", "mesh_3"]
    assert len(report.worst(ledger, "distance", 99)) == 9  # neither what was put aside nor what has no value
    with pytest.raises(ValueError, match=r"no column 'distanze'.*distance"):
        report.worst(ledger, "distanze")


def test_typical_is_spread_over_the_ledger(ledger):
    assert list(report.typical(ledger, 4)["item"]) == ["mesh_0", "mesh_3", "mesh_6", "mesh_9"]
    assert list(report.typical(ledger, 99)["item"]) == [f"mesh_{k}" for k in range(10)]


def test_a_ledger_of_nothing_but_quarantine_still_makes_a_report(monkeypatch):
    monkeypatch.setenv("LIB_BATCH", "1")
    ledger = put_aside()
    assert "quarantined" in report.summary(ledger).data
    report.timing(ledger)
    worst = report.worst(ledger, by="distance")
    assert worst.empty and "<table" in report.table(worst, ["item", "distance"]).data
    for image in (
        report.before_after(worst, "dataset", 8),
        report.before_after(report.typical(ledger), "dataset", 8),
        report.explorer(ledger, "dataset", 8),
    ):
        assert pixels(image).shape[1] == 1200


# -- pictures ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def opengl():
    try:
        return report.opengl()
    except RuntimeError as error:
        pytest.skip(str(error))


def pixels(image) -> np.ndarray:
    return np.asarray(Pixels.open(io.BytesIO(image.data)).convert("RGB")).astype(int)  # (height, width, 3)


def inked(cell: np.ndarray) -> np.ndarray:
    return np.abs(cell - PAPER).max(-1) > 12


def cells(image, columns: int, row: int = 0) -> list[np.ndarray]:
    """The pictures of one row, without their titles."""
    side = 1200 // columns
    top = row * (side + 46) + 46
    return np.split(pixels(image)[top : top + side, : side * columns], columns, axis=1)


def sphere(radius=1.0):
    mesh = trimesh.creation.icosphere(3, radius)
    return np.array(mesh.vertices), np.array(mesh.faces)


def loud(cell: np.ndarray) -> int:
    """Pixels in the hue of the faces seen from behind."""
    red, green, blue = np.moveaxis(cell, -1, 0)
    return int(((red > 100) & (green < 0.3 * red) & (blue > 0.55 * red) & (blue < 0.85 * red)).sum())


def test_timing_is_one_small_picture(ledger):
    image = report.timing(ledger.assign(seconds_read=0.1, seconds_close=0.4))
    seen = pixels(image)
    assert seen.shape[1] == 1200 and 5_000 < len(image.data) < 100_000 and "10 items" in image.alt
    assert seen.shape[0] == 690
    assert inked(seen[:345, :600]).any() and inked(seen[345:, :600]).any() and inked(seen[345:, 600:]).any()
    assert not inked(pixels(report.timing(ledger.drop(columns="faces_in")))[345:]).any()  # neither size nor steps


def test_contact_sheet_draws_each_mesh_in_its_cell(opengl):
    V, F = sphere()
    blue = np.tile(np.uint8([20, 40, 220]), (len(F), 1))
    image = report.contact_sheet([(V, F, "red"), (V, F, blue), (V, F)], ["red", "blue", "clay"], alt="three")
    assert image.alt == "three" and len(image.data) < 250_000 and pixels(image).shape == (346, 1200, 3)
    red, blue, clay, empty = cells(image, 4)
    for cell, channel in ((red, 0), (blue, 2)):
        middle = cell[120:180, 120:180]
        assert (middle.argmax(-1) == channel).all() and np.ptp(middle[..., channel]) > 10  # its colour, and shaded
    assert np.ptp(clay[120:180, 120:180].mean((0, 1))) < 60
    assert not inked(empty).any()


def test_eight_pairs_stay_small(opengl):
    mesh = trimesh.creation.icosphere(5)
    image = report.contact_sheet([(mesh.vertices, mesh.faces)] * 8, [f"sphere {k}" for k in range(8)], edges=True)
    assert pixels(image).shape[1] == 1200 and len(image.data) < 150_000


def test_faces_seen_from_behind_are_loud(opengl):
    V, F = sphere()
    open_ = F[V[F].mean(1)[:, 1] < 0.5]  # its lid is off
    whole, bowl, flipped, coloured = cells(
        report.contact_sheet([(V, F), (V, open_), (V, F[:, ::-1]), (V, F[:, ::-1], "green")], "abcd", tilt=40), 4
    )
    assert loud(whole) == 0
    assert 0.1 < loud(bowl) / inked(bowl).sum() < 0.7
    assert loud(flipped) > 0.9 * inked(flipped).sum() and loud(coloured) > 0.9 * inked(coloured).sum()


@pytest.mark.parametrize(("turn", "tilt"), [(0, 0), (35, 20), (200, -60)])
def test_the_camera_has_all_in_view_and_comes_close(opengl, turn, tilt):
    box = trimesh.creation.box((2, 0.3, 1))
    box.apply_scale(1e-3)
    box.apply_translation((5, -3, 1))  # small and far away, as scans are
    seen = inked(cells(report.contact_sheet([(box.vertices, box.faces)], ["box"], 2, turn=turn, tilt=tilt), 2)[0])
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    assert min(rows[0], columns[0]) > 8 and max(rows[-1], columns[-1]) < 592  # the border is free
    assert max(np.ptp(rows), np.ptp(columns)) > 0.85 * 584


def test_a_few_loud_pixels_survive_among_many_colours():
    reds = np.random.default_rng(0).integers((120, 0, 0), (256, 120, 200), (300, 1200, 3)).astype(np.uint8)
    reds[100:104, 200:204] = 0xE4, 0x00, 0x9B
    image = report.picture(Pixels.fromarray(reds), "reds")
    assert np.abs(pixels(image)[100:104, 200:204] - (0xE4, 0x00, 0x9B)).max() < 12
    paper = np.tile(PAPER.astype(np.uint8), (100, 1200, 1))
    assert (pixels(report.picture(Pixels.fromarray(np.concatenate([reds, paper])), "reds"))[300:] == PAPER).all()


def test_neighbours_share_a_camera_only_if_they_are_together(opengl):
    meshes = [sphere(1.0), sphere(0.5)]
    large, small = cells(report.contact_sheet(meshes, "ab", together=2), 4)[:2]
    assert inked(small).sum() == pytest.approx(inked(large).sum() / 4, rel=0.1)
    large, small = cells(report.contact_sheet(meshes, "ab"), 4)[:2]
    assert inked(small).sum() == pytest.approx(inked(large).sum(), rel=0.02)


def test_faces_without_vertices_are_refused_before_vtk_crashes(opengl):
    with pytest.raises(ValueError, match="indices from 0 to 2"):
        report.contact_sheet([(np.eye(3), np.array([[0, 1, 7]]))], ["bad"])


@pytest.fixture
def closed(tmp_path):
    """A dataset of one item: a green texture on a small sphere far from the origin, and its normalised twin."""
    V, F = sphere()
    green = Pixels.new("RGB", (8, 8), (30, 200, 60))
    source = tmp_path / "far.glb"
    visual = trimesh.visual.TextureVisuals(uv=V[:, :2] / 2 + 0.5, image=green)
    trimesh.Trimesh(V * [0.2, 0.1, 0.2] + [7, 8, 9], F, visual=visual, process=False).export(source)
    target = tmp_path / "dataset" / "far" / "8_far" / "8_far_normalized.obj"
    target.parent.mkdir(parents=True)
    trimesh.Trimesh(V * [1, 0.5, 1], F, process=False).export(target)
    row = {"item": "far", "status": "done", "reason": "", "seconds": 1.0, "peak_gib": 0.1, "source": str(source)}
    rows = pd.DataFrame([row | {"command": "repeat", "scale": 0.2, "center": [7.0, 8.0, 9.0]}])
    return SimpleNamespace(rows=rows, dataset=tmp_path / "dataset", source=source, target=target)


def test_before_and_after_lie_in_one_frame(opengl, closed):
    stored = pd.read_csv(io.StringIO(closed.rows.to_csv(index=False)))  # the centre is text now
    for rows in (closed.rows, stored):
        image = report.before_after(rows, closed.dataset, 8, columns=2)
        before, after = cells(image, 2)
        assert (inked(before) != inked(after)).sum() < 0.02 * inked(after).sum()
        assert (before[280:320, 280:320].argmax(-1) == 1).all()  # came green
        assert (after[280:320, 280:320].argmax(-1) == 2).all()  # left as bluish clay
        assert "far" in image.alt


def test_a_file_that_has_gone_leaves_a_note_not_an_error(opengl, closed):
    closed.target.unlink()
    before, after = cells(report.before_after(closed.rows, closed.dataset, 8, columns=2), 2)
    assert inked(before).sum() > 50_000 and 0 < inked(after).sum() < 20_000
    closed.source.unlink()
    assert inked(cells(report.before_after(closed.rows, closed.dataset, 8, columns=2), 2)[0]).sum() < 20_000


def test_without_opengl_there_is_a_message_that_names_the_package():
    code = """
from lib import report
import numpy as np
image = report.contact_sheet([(np.eye(3), np.array([[0, 1, 2]]))], ["triangle"])
assert "libegl1" in image.alt and len(image.data) > 1000
try:
    report.opengl()
except RuntimeError as error:
    print("told:", error)
"""
    nowhere = os.environ | {"VTK_DEFAULT_OPENGL_WINDOW": "nowhere"}  # VTK segfaults over this
    run = subprocess.run([sys.executable, "-c", code], env=nowhere, capture_output=True, text=True, timeout=100)
    assert run.returncode == 0, run.stderr
    assert "told: No OpenGL" in run.stdout and "libegl1" in run.stdout


# -- explorer ---------------------------------------------------------------------------------------------------------


def test_explorer_leaves_a_still_picture_in_batch(opengl, closed, monkeypatch):
    monkeypatch.setenv("LIB_BATCH", "1")
    monkeypatch.setattr(report, "display", None)
    monkeypatch.setitem(sys.modules, "ipywidgets", None)  # importing it would raise
    image = report.explorer(closed.rows, closed.dataset, 8)
    assert inked(cells(image, 2)[1]).sum() > 50_000


def test_explorer_turns_the_mesh_and_keeps_a_picture_for_viewers_without_widgets(opengl, closed, monkeypatch):
    import ipywidgets

    shown = []
    monkeypatch.delenv("LIB_BATCH", raising=False)
    monkeypatch.setattr(report, "display", lambda bundle, raw: shown.append(bundle))
    report.explorer(closed.rows, closed.dataset, 8)
    assert "application/vnd.jupyter.widget-view+json" in shown[0]
    before = pixels(SimpleNamespace(data=base64.b64decode(shown[0]["image/png"])))
    widgets = list(ipywidgets.widgets.widget._instances.values())
    still = next(w for w in widgets if isinstance(w, ipywidgets.Image))
    tilt = next(w for w in widgets if isinstance(w, ipywidgets.IntSlider) and w.description == "tilt")
    assert np.array_equal(before, pixels(SimpleNamespace(data=still.value)))
    tilt.value = 85  # from above the flat ball is round
    assert inked(pixels(SimpleNamespace(data=still.value))).sum() > 1.4 * inked(before).sum()
