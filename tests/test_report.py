"""report.py: numbers that are right, and each mesh beside what became of it."""

import io
import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import trimesh
from PIL import Image as Pixels

from lib import chart, picture, report

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


def test_a_banner_says_it_and_no_text_is_no_banner():
    shown = report.banner("<b> stands in")
    assert "&lt;b&gt; stands in" in shown.data and shown.metadata == {"banner": "<b> stands in"}
    assert not report.banner("").data and not report.banner("").metadata


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
            "items a second": 2 / (70 / 13),
            "days for 14,752 meshes on this machine": 14752 * (70 / 13) / 2 / 86400,
        }
    )
    sizes = report.totals(ledger.assign(bytes=3e6), jobs=2)
    assert sizes["MB an item"] == 3 and sizes["TB for 14,752 meshes"] == pytest.approx(14752 * 3e6 / 1e12)
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


def test_the_worst_by_each_fact_comes_with_its_facts(ledger):
    rows = report.worst_by_each(ledger, ["distance", "seconds", "faces_in", "not there", "status"])
    assert list(rows["item"]) == ["mesh_5", "mesh_9"]  # neither what was put aside nor what has no value
    assert list(rows["worst_by"]) == ["distance 9", "seconds 10, faces_in 1,000,000,000"]
    same = ledger.assign(caps=0)
    assert report.worst_by_each(same, ["caps"]).empty and "worst_by" in report.worst_by_each(same, ["caps"])
    assert report.worst_by_each(put_aside(), ["seconds"]).empty


def test_typical_is_spread_over_the_ledger(ledger):
    assert list(report.typical(ledger, 4)["item"]) == ["mesh_0", "mesh_3", "mesh_6", "mesh_9"]
    assert list(report.typical(ledger, 99)["item"]) == [f"mesh_{k}" for k in range(10)]


def test_a_ledger_of_nothing_but_quarantine_still_makes_a_report(monkeypatch):
    monkeypatch.setenv("LIB_BATCH", "1")
    ledger = put_aside()
    assert "quarantined" in report.summary(ledger).data
    report.timing(ledger)
    worst = report.worst(ledger, by="distance")
    assert worst.empty and report.table(worst, ["item", "distance"]).data == "<p>None.</p>"
    for image in (
        report.before_after(worst, "dataset", 8),
        report.before_after(report.typical(ledger), "dataset", 8),
        report.explorer(ledger, "dataset", 8),
    ):
        assert pixels(image).shape[1] == 1200


# -- curves -----------------------------------------------------------------------------------------------------------


def pixels(image) -> np.ndarray:
    return np.asarray(Pixels.open(io.BytesIO(image.data)).convert("RGB")).astype(int)  # (height, width, 3)


def inked(cell: np.ndarray) -> np.ndarray:
    return np.abs(cell - PAPER).max(-1) > 12


def test_timing_is_one_small_picture(ledger):
    image = report.timing(ledger.assign(seconds_read=0.1, seconds_close=0.4))
    seen = pixels(image)
    assert seen.shape == (690, 1200, 3) and 5_000 < len(image.data) < 100_000 and "10 items" in image.alt
    assert inked(seen[:345, :600]).any() and inked(seen[345:, :600]).any() and inked(seen[345:, 600:]).any()
    assert not inked(pixels(report.timing(ledger.drop(columns="faces_in")))[345:]).any()  # neither size nor steps


# -- meshes -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def closed(tmp_path):
    """A dataset of one item: a green texture on a small ellipsoid far from the origin, and its normalised twin."""
    ball = trimesh.creation.icosphere(3)
    V, F = np.array(ball.vertices) * [1, 0.5, 1], np.array(ball.faces)
    source = tmp_path / "far.glb"
    green = Pixels.new("RGB", (8, 8), (30, 200, 60))
    visual = trimesh.visual.TextureVisuals(uv=V[:, :2] / 2 + 0.5, image=green)
    trimesh.Trimesh(0.2 * V + [7, 8, 9], F, visual=visual, process=False).export(source)
    target = tmp_path / "dataset" / "far" / "8_far" / "8_far_normalized.obj"
    target.parent.mkdir(parents=True)
    trimesh.Trimesh(V, F, process=False).export(target)
    row = {"item": "far", "status": "done", "reason": "", "seconds": 1.0, "peak_gib": 0.1, "source": str(source)}
    rows = pd.DataFrame([row | {"command": "repeat", "scale": 0.2, "center": [7.0, 8.0, 9.0]}])
    return SimpleNamespace(rows=rows, dataset=tmp_path / "dataset", source=source, target=target, V=V, F=F)


@pytest.fixture
def sheets(monkeypatch):
    """What was asked to be drawn: meshes, titles and view of each contact sheet. No two are the same picture."""
    asked = []

    def contact_sheet(meshes, titles, columns, **view):
        asked.append(SimpleNamespace(meshes=meshes, titles=titles, columns=columns, **view))
        return picture.placard(f"picture {len(asked)}")

    monkeypatch.setattr(picture, "contact_sheet", contact_sheet)
    return asked


def test_before_and_after_lie_in_one_frame(closed, sheets):
    stored = pd.read_csv(io.StringIO(closed.rows.to_csv(index=False)))  # the centre is text now
    for rows in (closed.rows, stored):
        report.before_after(rows, closed.dataset, 8, tilt=5)
        ((V, F, (_, image)),), ((W, G),) = sheets[-1].meshes
        assert np.allclose(V[F], W[G], atol=1e-5) and np.allclose(W, closed.V, atol=1e-5) and (G == closed.F).all()
        assert (image == (30, 200, 60)).all()  # came green
        assert sheets[-1].together == 2 and sheets[-1].tilt == 5 and sheets[-1].alt == "Before and after: far"


def test_pairs_stand_under_the_facts_that_chose_them(closed, sheets):
    report.before_after(closed.rows.assign(worst_by="seconds 1"), closed.dataset, 8, titles="worst_by")
    assert sheets[-1].titles[0].startswith("seconds 1\n")


def test_what_is_too_large_to_draw_is_told_and_not_read(closed, sheets, monkeypatch):
    monkeypatch.setattr(picture, "original", None)
    report.before_after(closed.rows.assign(faces_in=3, faces_out=report.DRAWN + 1), closed.dataset, 8)
    assert sheets[-1].meshes == ["too large to draw here: 4,000,001 faces"] * 2


def test_before_and_after_are_drawn(closed):
    try:
        picture.opengl()
    except RuntimeError as error:
        pytest.skip(str(error))
    sheet = pixels(report.before_after(closed.rows, closed.dataset, 8))[46:]
    before, after = sheet[:, :300], sheet[:, 300:600]
    assert (inked(before) != inked(after)).sum() < 0.02 * inked(after).sum()
    assert (before[130:150, 130:150].argmax(-1) == 1).all()  # green
    assert (after[130:150, 130:150].argmax(-1) == 2).all()  # bluish clay


def test_a_file_that_has_gone_leaves_a_note_not_an_error(closed, sheets):
    closed.target.unlink()
    report.before_after(closed.rows, closed.dataset, 8)
    before, after = sheets[-1].meshes
    assert len(before) == 1 and after.startswith("cannot be read: ")
    closed.source.unlink()
    report.before_after(closed.rows, closed.dataset, 8)
    assert sheets[-1].meshes[0].startswith("cannot be read: ")


# -- explorer ---------------------------------------------------------------------------------------------------------


def test_explorer_leaves_a_still_picture_in_batch(closed, sheets, monkeypatch):
    monkeypatch.setenv("LIB_BATCH", "1")
    monkeypatch.setitem(sys.modules, "ipywidgets", None)  # importing it would raise
    image = report.explorer(closed.rows, closed.dataset, 8)
    assert image.alt == "picture 1" and len(sheets[0].meshes) == sheets[0].columns == 2


def test_explorer_turns_the_mesh_and_tells_of_the_one_that_is_chosen(closed, sheets, monkeypatch):
    given = []
    monkeypatch.delenv("LIB_BATCH", raising=False)
    monkeypatch.setattr(picture, "live", lambda controls, see: given.extend([*controls, see]))
    other = closed.rows.assign(item="other", seconds=0.5, scale=0.4)
    report.explorer(pd.concat([other, closed.rows]), closed.dataset, 8)
    choice, see = given
    still, facts = see(turn=35, tilt=85)
    assert still.alt == "picture 1" and ">scale<" in facts.data
    assert (sheets[-1].turn, sheets[-1].tilt) == (35, 85) and sheets[-1].titles[0].startswith("far\n")  # the slowest
    choice.value = "other"
    _, after = see(turn=35, tilt=20)
    assert after.data != facts.data and sheets[-1].titles[0].startswith("other\n")
    assert np.ptp(sheets[-1].meshes[0][0][0]) == pytest.approx(np.ptp(sheets[0].meshes[0][0][0]) / 2)


# -- points -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def cloud(closed):
    """The same dataset with points off the ellipsoid and, one in ten, anywhere in the box; rows have 02's facts."""
    rng = np.random.default_rng(0)
    P = rng.uniform(-1, 1, (3000, 3))
    size = np.linalg.norm(P / [1, 0.5, 1], axis=1)
    P[:2700] *= (rng.choice([0.95, 1.05], 2700) / size[:2700])[:, None]
    inside = 0.5 * (1 - np.linalg.norm(P / [1, 0.5, 1], axis=1))
    labelled = np.c_[P, inside]
    sharp = np.c_[closed.V, closed.V][:, None]
    closed.arrays = {"fps_sharp_surface": sharp, "rand_points": labelled, "sharp_near_surface": labelled[:2000]}
    np.savez(closed.target.with_name("8_far_sample_points.npz"), **closed.arrays)
    closed.rows = closed.rows.assign(on_sharp=0.25, sharp_length=1.5)
    return closed


def test_beads_are_closed_and_lie_where_they_should():
    P = np.random.default_rng(0).random((5, 3))
    beads = trimesh.Trimesh(*report.beads(P, 0.01), process=False)
    assert beads.is_watertight and np.isclose(beads.volume, 5 * 4 / 3 * 0.01**3)
    assert np.allclose(beads.vertices.reshape(5, 6, 3).mean(1), P)


@pytest.mark.parametrize(("shown", "drawn"), [(5000, 642), (642, 642), (641, 321), (100, 92)])
def test_sharp_points_are_drawn_on_their_mesh_some_of_them_if_they_are_many(cloud, sheets, shown, drawn):
    report.sharp_points(cloud.rows, cloud.dataset, 8, shown=shown)
    (((V, F), (beads, sides, paint)),) = sheets[-1].meshes
    assert np.allclose(V, cloud.V, atol=1e-5) and (F == cloud.F).all() and paint == picture.ACCENT
    assert len(beads) == 6 * drawn and len(sides) == 8 * drawn
    assert np.abs(np.linalg.norm(beads / [1, 0.5, 1], axis=1) - 1).max() < 0.02
    assert sheets[-1].titles == ["far\n25% on edges, 1.5 long"]


def test_a_slice_has_its_zero_line_and_each_stored_point_the_colour_of_its_label(cloud):
    from matplotlib.colors import to_rgb

    with chart.canvas(3) as (_, axes):
        report.draw_slice(axes[0, 0], cloud.V, cloud.F, cloud.arrays, 60)
    line, dots = axes[0, 0].collections[1:]
    P = dots.get_offsets()
    zero = np.concatenate([path.vertices for path in line.get_paths()])
    stretch = [1, 0.5] if np.abs(zero[:, 1]).max() < 0.75 else [1, 1]
    reach = np.linalg.norm(zero / stretch, axis=1)  # of an ellipse, or a circle
    assert np.ptp(reach) < 0.03 and 0.9 < reach.mean() < 1.01 and len(zero) > 50
    blue = (dots.get_facecolors()[:, :3] == to_rgb(chart.BLUE)).all(1)
    assert (np.linalg.norm(P / stretch, axis=1)[blue] < 1).all() and 0.2 < blue.mean() < 0.8


def test_a_slice_shows_only_points_of_its_plane_however_few_there_are(cloud):
    P = np.random.default_rng(0).uniform(-1, 1, (2000, 3))
    P[:, 0] = np.where(np.arange(2000) < 40, 0.005, P[:, 0].round(1) + 0.05)  # 40 near a plane, the others half-way
    arrays = {"rand_points": np.c_[P, np.full(2000, -1.0)], "sharp_near_surface": np.array([[0.0, 0, 0, 100]])}
    with chart.canvas(3) as (_, axes):
        report.draw_slice(axes[0, 0], cloud.V, cloud.F, arrays, 20)
    shown = {tuple(dot) for dot in np.asarray(axes[0, 0].collections[-1].get_offsets())}
    assert shown == {tuple(dot) for dot in [*P[:40, [2, 1]], [0, 0]]}


def test_slices_and_labels_are_small_pictures_also_of_nothing(cloud):
    slices, labels = report.slices(cloud.rows, cloud.dataset, 8), report.labels(cloud.rows, cloud.dataset, 8, 300)
    assert pixels(slices).shape == (330, 1200, 3) and slices.alt.endswith("inside: far")
    assert inked(pixels(slices)[60:300, 60:240]).mean() > 0.3 and not inked(pixels(slices)[40:, 330:]).any()
    assert pixels(labels).shape == (330, 1200, 3) and 3000 < len(labels.data) < 60_000
    nothing = cloud.rows.head(0)
    for image in (report.slices(nothing, "", 8), report.labels(nothing, "", 8, 1), report.sharp_points(nothing, "", 8)):
        assert image.alt == "Nothing to show."
