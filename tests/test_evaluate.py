"""Scores of pairs with known answers, through the pool as the notebook does it; tables, LaTeX and pictures of them."""

import numpy as np
import pandas as pd
import pytest
import torch
import trimesh

from lib import dataset, evaluate, mesh, pool, surface, vae, versus

FEW = {"points": 20_000, "views": 4, "size": 64}


def write(path, solid):
    path.parent.mkdir(parents=True, exist_ok=True)
    mesh.write(path, np.asarray(solid.vertices), np.asarray(solid.faces))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Three predictions beside their truths: the same, moved by 0.1, and another shape; one that cannot be read."""
    folder = tmp_path_factory.mktemp("evaluate")
    ball, box = trimesh.creation.icosphere(4), trimesh.creation.box((2, 1, 1))
    for name, made, true in (
        ("ball_000", ball, ball),
        ("ball_001", ball.copy().apply_translation([0.1, 0, 0]), ball),
        ("box_000", ball, box),
        ("box_001", box, box),
    ):
        write(folder / f"made/{name}.obj", made)
        write(folder / f"true/{name}.ply", true)
    (folder / "made/box_001.obj").write_text("v 0 0 0\n")
    given = {"predictions": str(folder / "made"), "truth": str(folder / "true")}
    items, _ = versus.collect("", str(folder / "run"), 64, **given)
    ledger = pool.map(evaluate.evaluate, items, "08_evaluate", folder / "run", FEW, jobs=2)
    return folder, items, ledger.set_index("item", drop=False).sort_index()


def rows(ledger):
    return {name[:8].rstrip("_"): row for name, row in ledger.iterrows()}


def test_each_pair_has_its_scores(done):
    found = rows(done[2])
    same, moved, other = found["ball_000"], found["ball_001"], found["box_000"]
    assert same["iou"] > 0.98 and same["f_0.05"] > 0.999 and same["normal_consistency"] > 0.99
    assert same["sharp_normal_error"] < 1e-9 and same["chamfer_l1"] == pytest.approx(same["best_chamfer_l1"], rel=0.1)
    assert moved["chamfer_l1"] == pytest.approx(0.1, rel=0.15)  # d / 2 each way, and the spacing of the points
    apart = 1 - 1.5 * 0.05 + 0.5 * 0.05**3  # of two unit balls 0.1 apart the lens in common, of a ball's volume
    assert moved["iou"] == pytest.approx(apart / (2 - apart), abs=0.02)
    volume = 4 / 3 * np.pi
    inside = other["iou"] * (volume + 2) / (1 + other["iou"])
    assert 1.5 < inside < 2  # most of the box is in the ball
    assert other["f_0.05"] < 0.5 and other["sharp_normal_error"] > 0.5
    assert (
        pd.isna(same["f_sharp"]) and other["f_sharp"] == 0
    )  # a ball has no sharp edges, a box beside a ball loses all
    assert (same["level"], other["level"], other["sharp_edges"]) == ("L0", "L1", 12)


def test_what_cannot_be_read_is_put_aside_with_its_path(done):
    row = rows(done[2])["box_001"]
    assert row["status"] == "quarantined" and "made/box_001.obj" in row["reason"]


def test_a_score_of_no_points_is_refused(done):
    with pytest.raises(ValueError, match="points = 0; wanted at least 1"):
        evaluate.evaluate(done[1][0], points=0)


def test_a_truth_in_another_unit_is_refused_unless_it_is_aligned(tmp_path):
    ball = trimesh.creation.icosphere(3, 50)
    for side in ("made", "true"):
        write(tmp_path / side / "ball.obj", ball)
    given = {"predictions": str(tmp_path / "made"), "truth": str(tmp_path / "true")}
    [item], _ = versus.collect("", str(tmp_path / "run"), 64, **given)
    with pytest.raises(ValueError, match=r'true/ball\.obj reaches 50 from 0, .*; set align = "truth"'):
        evaluate.evaluate(item, **FEW)
    assert evaluate.evaluate(item, **FEW, align="truth")["iou"] > 0.98


def test_the_ledger_has_the_promised_columns(done):
    folder, _, _ = done
    with open(folder / "run/08_evaluate.csv") as file:
        columns = file.readline().strip().split(",")
    assert set(evaluate.SCORES) <= set(columns)
    wanted = "chamfer_l1, chamfer_l2, f_0.005, f_0.01, f_0.02, f_0.05, normal_consistency, iou, sharp_normal_error"
    assert list(evaluate.SCORES) == [*wanted.split(", "), "f_sharp"]


def test_the_same_again_is_kept_and_a_changed_mesh_is_scored_again(done, tmp_path):
    _, items, ledger = done
    again = pool.map(evaluate.evaluate, items, "08_evaluate", tmp_path, FEW, jobs=1)
    assert list(again["status"]).count("kept") == 3
    a = ledger.loc[items[0].name, "chamfer_l1"]
    assert again.set_index("item").loc[items[0].name, "chamfer_l1"] == a


def test_scores_do_not_depend_on_company(done):
    _, items, ledger = done
    facts = evaluate.evaluate(items[0], **FEW)
    row = ledger.loc[items[0].name]
    assert all(facts[name] == row[name] for name in evaluate.SCORES if not pd.isna(row[name]))


def test_tables_have_means_intervals_classes_and_levels(done):
    ledger = done[2]
    table = evaluate.summary(ledger).set_index("score")
    three = ledger[ledger["status"] == "done"]["f_0.05"].astype(float)
    assert table.loc["pairs", "comparison"] == 3 and table.loc["no surface", "comparison"] == 0
    assert table.loc["f_0.05", "comparison"] == pytest.approx(three.mean())
    low, high = map(float, table.loc["f_0.05", "comparison, 95%"].split(" to "))
    assert low <= three.mean() <= high and low < high
    assert set(table["what it is"]) and set(table["better"].dropna()) == {"more", "less"}
    kinds = evaluate.by(ledger, "kind").set_index("kind")
    assert kinds.loc["ball", "shapes"] == 2 and kinds.loc["box", "shapes"] == 1
    assert list(evaluate.by(ledger, "level")["level"]) == ["L0", "L1"]


def test_sets_are_compared_as_sets(done):
    _, items, ledger = done
    [row] = evaluate.sets(ledger, items).to_dict("records")
    assert row["shapes"] == 3 and 0 < row["coverage"] <= 1 and 0 <= row["1-NNA"] <= 1
    assert row["minimum matching distance"] > 0


def test_the_latex_compiles_in_principle(done, tmp_path):
    text = evaluate.latex(done[2], tmp_path / "scores.tex")
    assert (tmp_path / "scores.tex").read_text() == text + "\n"
    lines = text.splitlines()
    columns = lines[0].count("r") - lines[0].replace("{tabular}", "").count("begin")
    heads = next(line for line in lines if "chamfer" in line)
    assert heads.count("&") == next(line for line in lines if line.startswith("comparison (3)")).count("&") == 10
    assert columns >= 10 and "_l1" not in text.replace(r"\_l1", "") and text.count(r"\\") == 2


def test_the_worst_are_pictures_beside_the_truth(done, monkeypatch):
    _, items, ledger = done
    asked = {}
    monkeypatch.setattr(
        evaluate.picture, "contact_sheet", lambda meshes, titles, *a, **k: asked.update(m=meshes, t=titles)
    )
    evaluate.worst(ledger, items, n=2)
    assert asked["t"][0].startswith("box_000") and len(asked["m"]) == 4
    assert len(asked["m"][0][1]) == 5120 and len(asked["m"][1][1]) == 12


def test_a_ledger_of_nothing_gives_empty_tables(done, tmp_path):
    ledger = done[2]
    nothing = ledger[ledger["status"] == "quarantined"][list(pool.COLUMNS)]
    assert evaluate.summary(nothing)["score"][0] == "pairs" and evaluate.by(nothing, "kind").empty
    assert evaluate.sets(nothing, []).empty and "tabular" in evaluate.latex(nothing, tmp_path / "x.tex")


def test_frames_are_taken_as_they_are_or_made_one():
    (V, F), far = (lambda m: (np.asarray(m.vertices), np.asarray(m.faces)))(trimesh.creation.icosphere(2)), 7.0
    made, truth = (3 * V + far, F), (5 * V + far, F)
    assert evaluate.aligned(made, truth, "none") == (made, truth)
    (A, _), (B, _) = evaluate.aligned(made, truth, "truth")
    assert np.allclose(np.abs(B).max(), 1) and np.allclose(np.abs(A).max(), 0.6)
    (A, _), (B, _) = evaluate.aligned(made, truth, "each")
    assert np.allclose(A, B) and np.allclose(np.abs(A).max(), 1)


def test_latents_are_decoded_and_the_mesh_is_kept(tmp_path):
    torch.manual_seed(0)
    model = vae.build("tiny", tokens=4, channels=8)
    with torch.no_grad():
        model.decoder.output_proj.bias += 0.2
    vae.save(model, tmp_path / "vae")
    z = np.random.default_rng(0).normal(size=(4, model.channels)).astype(np.float16)
    np.save(tmp_path / "z.npy", z)
    write(tmp_path / "truth.obj", trimesh.creation.box())
    pair = versus.Pair("box", str(tmp_path / "z.npy"), str(tmp_path / "truth.obj"), "reconstruction", "box")
    [item] = versus.enter([pair], tmp_path / "tree", 64, tmp_path / "vae/model.safetensors")
    facts = evaluate.evaluate(item, **FEW, depth=4, vae=str(tmp_path / "vae"))
    V, F, _ = surface.surface(vae.load(tmp_path / "vae"), z, 4)
    assert facts["faces_made"] == len(F) > 0
    assert np.allclose(mesh.read(item.path("_made.obj"))[0], V, atol=1e-6)
    assert set(item.written) == {"_made.obj"}


def test_no_surface_is_the_worst_and_no_error(tmp_path, monkeypatch):
    write(tmp_path / "truth.obj", trimesh.creation.box())
    pair = versus.Pair("box", str(tmp_path / "z.npy"), str(tmp_path / "truth.obj"), "reconstruction", "box")
    (tmp_path / "z.npy").write_bytes(b"")
    [item] = versus.enter([pair], tmp_path / "tree", 64)
    monkeypatch.setattr(evaluate, "decoded", lambda *_: (np.zeros((0, 3)), np.zeros((0, 3), int)))
    facts = evaluate.evaluate(item, **FEW)
    assert facts["chamfer_l1"] is None and facts["chamfer_l2"] is None
    assert facts["f_0.05"] == facts["iou"] == facts["normal_consistency"] == facts["f_sharp"] == 0
    assert dataset.read_facts(item) == {}  # facts are the pool's to write
