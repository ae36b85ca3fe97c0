import base64
import json
import re

import numpy as np
import pytest
import trimesh
from PIL import Image
from test_page import HOSTILE, Page, record

from lib import cards, gallery, mesh, page

NAME = HOSTILE[:-1].replace("/", "")  # what a file may be called


def write(path, shape):
    path.parent.mkdir(parents=True, exist_ok=True)
    mesh.write(path, shape.vertices, shape.faces)


def sections(run):
    return {
        "07_generate": {"parameters": {"dataset": str(run.parent / "tree"), "resolution": 32}, "status": "completed"}
    }


def truth(run, name):
    return run.parent / "tree" / name / f"32_{name}" / f"32_{name}_normalized.obj"


@pytest.fixture
def run(tmp_path):
    """A run that made two meshes, of a view and of a picture that an enemy has named."""
    run = tmp_path / "demo"
    ball, box = trimesh.creation.icosphere(subdivisions=2), trimesh.creation.box()
    for name, shape in (("box_0badcafe_view_002", ball), (NAME, box)):
        write(run / "07_generate" / f"{name}.glb", shape)
        Image.new("RGBA", (600, 300), "red").save(run / "07_generate" / f"{name}.png")
    write(truth(run, "box_0badcafe"), box)
    return run


def found(run):
    return json.loads((run / "gallery" / "gallery.json").read_text())["groups"]


def page_of(run):
    return Page(cards.section(run))


# -- what is in it ----------------------------------------------------------------------------------------------------


def test_what_was_made_stands_beside_its_picture_and_the_truth(run):
    gallery.build(run, sections(run))
    ((enemy, known),) = [group["cards"] for group in found(run)]
    assert [shape["kind"] for shape in known["meshes"]] == ["made", "truth"] and known["picture"]
    assert [shape["kind"] for shape in enemy["meshes"]] == ["made"] and enemy["name"] == NAME
    assert max(Image.open(run / "gallery" / known["picture"]).size) == gallery.SIDE
    assert known["radius"] == pytest.approx(1), "a card's meshes share a frame: the ball is larger than the box"


def test_what_the_last_run_made_comes_worst_first_with_its_score(run):
    folder, name = run / "07_generate", "box_0badcafe_view_002"
    write(folder / "left_over_view_000.glb", trimesh.creation.box())
    (folder / "made.csv").write_text(f"picture,name,reason\n{NAME},{NAME},\n{name},{name},\ngone,gone,no surface\n")
    (folder / "scores.csv").write_text(f"picture,made\n{name},0.125\n")
    [group] = gallery.wanted(run, sections(run))
    assert [(card["name"], card["told"]) for card in group["cards"]] == [(name, "F(0.05) 0.12"), (NAME, "")]


def test_reconstructions_come_worst_first_with_their_scores(run):
    folder = run / "11_train_vae"
    for name in "abc":
        write(folder / "reconstructions" / f"{name}.obj", trimesh.creation.box())
    write(folder / "reconstructions" / "a_step_000000001.obj", trimesh.creation.box())
    (folder / "scores.csv").write_text("item,iou,f_02\nc,0.1,0.2\na,0.3,\ngone,1,1\n")
    _, group = gallery.wanted(run, sections(run))
    assert [(card["name"], card["told"]) for card in group["cards"]] == [
        ("c", "iou 0.10, f_02 0.20"),
        ("a", "iou 0.30"),
        ("b", ""),
    ]


def test_where_nothing_was_learned_it_shows_what_01_closed(tmp_path):
    run = tmp_path / "demo"
    write(truth(run, "box"), trimesh.creation.box())
    (run / "01").mkdir(parents=True)
    (run / "01_watertight.csv").write_text("item,status\nbox,kept\nbad,quarantined\ngone,done\n")
    asked = {"01_watertight": sections(run)["07_generate"]}
    (group,) = gallery.wanted(run, asked)
    assert [card["name"] for card in group["cards"]] == ["box"]
    assert gallery.wanted(run, {}) == []


def test_many_are_picked_evenly_the_first_and_the_last_among_them():
    assert gallery.spread(list(range(100)), 4) == [0, 33, 66, 99]
    assert gallery.spread([1, 2], 4) == [1, 2] and gallery.spread([], 4) == []


# -- the files --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ball", "soup"])
def test_a_million_faces_become_a_small_glb_that_looks_the_same(tmp_path, kind):
    if kind == "ball":
        shape = trimesh.creation.icosphere(subdivisions=8)
    else:  # no two faces share a corner: the most bytes a face
        rng = np.random.default_rng(0)
        P = rng.random((330_000, 1, 3)) * 2 - 1 + rng.random((330_000, 3, 3)) * 0.02
        shape = trimesh.Trimesh(P.reshape(-1, 3), np.arange(990_000).reshape(-1, 3), process=False)
    shown = gallery.write(
        np.array(shape.vertices), np.array(shape.faces), tmp_path / "01_made", "made", np.zeros(3), 1.8
    )
    assert 0 < shown <= gallery.FACES
    assert (tmp_path / "01_made.glb").stat().st_size < 400_000
    if kind == "ball":
        V, F = mesh.read(tmp_path / "01_made.glb")
        assert len(F) == shown and np.abs(np.linalg.norm(V, axis=1) - 1).max() < 2e-3
    still = np.asarray(Image.open(tmp_path / "01_made.png").convert("RGBA"))
    assert still.shape == (gallery.SIDE, gallery.SIDE, 4)
    assert still[0, 0, 3] == 0 and still[gallery.SIDE // 2, gallery.SIDE // 2, 3] == 255


def test_a_script_holds_the_very_bytes_of_the_glb(run):
    gallery.build(run, sections(run))
    for path in (run / "gallery").glob("*.glb"):
        name, words = re.fullmatch(r'mesh\("(\w+)", "([^"]+)"\);\n', path.with_suffix(".js").read_text()).groups()
        assert name == path.stem and base64.b64decode(words) == path.read_bytes()
        assert gallery.unscripted(path.with_suffix(".js").read_text()) == path.read_bytes()


def test_it_is_built_again_only_if_a_mesh_has_changed_and_leaves_nothing_old(run, capsys):
    (run / "run.json").write_text(json.dumps({"sections": sections(run)}))
    gallery.refresh(run, sections(run))
    before = (run / "gallery" / "gallery.json").stat().st_mtime_ns
    gallery.refresh(run, sections(run))
    assert (run / "gallery" / "gallery.json").stat().st_mtime_ns == before
    (run / "07_generate" / f"{NAME}.glb").unlink()
    (run / "gallery" / "mine.txt").write_text("a stranger's")
    gallery.refresh(run, sections(run))
    names = {path.name for path in (run / "gallery").iterdir()}
    assert len(found(run)[0]["cards"]) == 1 and not any(name.startswith("02_") for name in names)
    assert "mine.txt" in names and capsys.readouterr().err == ""


# -- faults -----------------------------------------------------------------------------------------------------------


def test_a_mesh_that_cannot_be_read_is_told_on_its_card(run):
    (run / "07_generate" / "box_0badcafe_view_002.glb").write_bytes(b"glTF no more")
    (run / "07_generate" / "box_0badcafe_view_002.png").write_bytes(b"no picture")
    gallery.build(run, sections(run))
    known = found(run)[0]["cards"][1]
    assert [shape["kind"] for shape in known["meshes"]] == ["truth"] and known["picture"] == ""
    assert known["why"][0].startswith("made: box_0badcafe_view_002.glb is not read") and str(run) not in known["why"][0]
    assert "is not read" in page_of(run).text


def test_what_goes_wrong_is_told_and_costs_no_run(run, capsys, monkeypatch):
    gallery.refresh(run, sections(run))  # there is no run.json
    told = capsys.readouterr().err
    assert "no gallery of" in told and f"To try again: python -m lib.gallery {run}" in told
    monkeypatch.setattr(gallery, "PATIENCE", 0.01)
    gallery.refresh(run, sections(run))
    assert "it took over 0.01 s" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "{", "[]", '{"groups": 3}', '{"groups": [{"cards": [{}]}]}'])
def test_a_damaged_list_is_no_gallery(run, content):
    (run / "gallery").mkdir()
    (run / "gallery" / "gallery.json").write_text(content)
    assert cards.section(run) == ""
    page.write(run, record())
    assert Page((run / "index.html").read_text(encoding="utf-8")).open == []


def test_a_page_is_whole_when_07_failed(run):
    for path in (run / "07_generate").iterdir():
        path.unlink()
    gallery.refresh(run, sections(run))
    page.write(run, record(sections={"07_generate": record()["sections"]["02_two"]}))
    assert "Gallery" not in Page((run / "index.html").read_text(encoding="utf-8")).text
