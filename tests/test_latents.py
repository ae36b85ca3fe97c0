"""05: what is written is what the encoder says; statistics of train alone; depths, memory and errors as they are."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from lib import anchors, dataset, latents, mesh, pool, vae
from lib.seals import unsealed

RESOLUTION = 16
LENGTHS = [8, 16]


def sphere_points(count, rng, radius=0.8):
    normals = rng.standard_normal((count, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return np.concatenate([radius * normals, normals], 1)


def samples(path, seed, count=96):
    """A ball's points under Dora's keys."""
    rng = np.random.default_rng(seed)
    radius = 0.5 + 0.05 * seed
    arrays = {key: sphere_points(count, rng, radius)[:, None] for key in ("fps_coarse_surface", "fps_sharp_surface")}
    X = rng.uniform(-1.05, 1.05, (3 * count, 3))
    labelled = np.concatenate([X, radius - np.linalg.norm(X, axis=1, keepdims=True)], 1)
    np.savez(path, **arrays, sharp_near_surface=labelled, rand_points=labelled)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Seven items as 02 leaves them, one with its samples cut short; and a small VAE with fresh weights."""
    folder = tmp_path_factory.mktemp("latents")
    (folder / "meshes").mkdir()
    for n in range(7):
        (folder / "meshes" / f"ball_{n}.obj").write_text(f"# ball {n}")
    items = dataset.collect(folder / "meshes", folder / "tree", RESOLUTION)
    record = {"version": 1, "parameters": {}, "inputs": {}, "facts": {}}
    for n, item in enumerate(items):
        with item.writing(latents.SAMPLES) as path, path.open("wb") as file:
            samples(file, n)
        with item.writing("_normalized.obj") as path:
            mesh.write(path, *tetrahedron(0.5))
        dataset.write_facts(item, {"02_sharp_sample": record | {"outputs": dict(item.written)}})
    whole = items[6].path(latents.SAMPLES).read_bytes()
    items[6].path(latents.SAMPLES).write_bytes(whole[:-4000] + bytes(4000))
    names = [item.name for item in items]
    split = {"train": names[:3], "val": names[3:5], "test": names[5:]}
    (folder / "tree" / "split.json").write_text(json.dumps(split))
    torch.manual_seed(0)
    vae.save(vae.build("tiny", anchors="matched"), folder / "vae")
    return folder, items


def tetrahedron(size):
    V = size * np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], float)
    return V, np.array([[0, 1, 2], [0, 3, 1], [0, 2, 3], [1, 3, 2]])


def run(tree, name="vae", batch=3, anchors=""):
    folder, items = tree
    about = latents.describe(str(folder / name), "cpu", anchors)
    parameters = {"sha256": about["sha256"], "tokens": LENGTHS, "points": 64, "anchors": about["anchors"], "seed": 0}
    means = {"together": latents.encode, "means": {"vae": str(folder / name), "device": "cpu"}}
    inputs = (latents.SAMPLES,)
    table = pool.map(
        latents.latents, items, "05_latents", folder / "run", parameters, inputs=inputs, jobs=1, batch=batch, **means
    )
    return table, about


@pytest.fixture(scope="module")
def done(tree):
    return *run(tree), *tree


def test_latents_are_what_the_encoder_says(done):
    _, about, folder, items = done
    model = vae.load(folder / "vae")
    for item in items[:6]:
        coarse, sharp = (torch.from_numpy(a)[None] for a in latents.seen(item.path(latents.SAMPLES), 64, 0))
        assert coarse.shape == sharp.shape == (1, 64, 6)
        for length, tail in ((16, ""), (8, "_8")):
            mean, logvar = model.encode(coarse, sharp, length)
            for name, wanted in (("sample", mean), ("logvar", logvar)):
                got = np.load(item.path(f"_latent_{name}{tail}.npy"), allow_pickle=False)
                assert got.dtype == np.float16 and got.shape == (length, about["channels"])
                assert np.abs(got - wanted[0].numpy()).max() < 2e-3 * max(1, float(wanted.abs().max()))


def test_the_ledger_tells_of_each_and_why_one_was_put_aside(done):
    ledger, about, _, items = done
    assert list(ledger.status) == ["done"] * 6 + ["quarantined"]
    assert "holds no sample points" in ledger.reason[6] and "02_sharp_sample again" in ledger.reason[6]
    assert set(ledger.tokens[:6]) == {16} and set(ledger.channels[:6]) == {about["channels"]}
    assert not list(Path(items[6].folder).glob("*_latent_*"))
    record = dataset.read_facts(items[0])["05_latents"]
    assert record["parameters"]["sha256"] == about["sha256"]
    assert set(record["outputs"]) == {f"_latent_{n}{t}.npy" for n in ("sample", "logvar") for t in ("", "_8")}
    assert list(record["inputs"]) == [latents.SAMPLES]


def test_statistics_are_over_the_train_split_alone(done):
    _, about, folder, items = done
    stats, missing = latents.statistics(items, about, LENGTHS)
    assert missing == "" and latents.deviations(stats).startswith("deviation of the")
    assert stats == unsealed((folder / "tree" / "16_latent_stats.json").read_text(), strict=True)
    for length, tail in ((16, ""), (8, "_8")):
        every = np.concatenate([np.load(item.path(f"_latent_sample{tail}.npy")) for item in items[:3]]).astype(float)
        assert np.allclose(stats["lengths"][str(length)]["mean"], every.mean(0), atol=1e-9)
        assert np.allclose(stats["lengths"][str(length)]["std"], every.std(0), atol=1e-7)
    assert stats["mean"] == stats["lengths"]["16"]["mean"] and stats["tokens"] == 16 and stats["count"] == 3
    assert stats["sha256"] == about["sha256"] and stats["vae"] == about["weights"] and stats["ordered"] is True


def test_without_a_mesh_to_learn_from_it_says_what_is_missing_and_what_to_do(done):
    _, about, folder, items = done
    target = folder / "tree" / "16_latent_stats.json"
    target.unlink(missing_ok=True)
    stats, missing = latents.statistics(items[3:], about, LENGTHS)
    assert stats == {} and not target.exists()
    for words in ("of 3 that have them, 2 in val and 1 in test", "16_latent_stats.json", "06_train_dit", "limit = 0"):
        assert words in missing
    assert f"{folder / 'tree' / 'split.json'} from whom" in missing
    example = json.loads(missing[missing.index("{") : missing.index("}") + 1].replace(", ...", ""))
    assert dataset.splits(list(example["train"]), folder) and latents.deviations(stats).startswith("No deviation")
    assert "of 1 that have them, 1 in test." in latents.statistics(items[5:6], about, LENGTHS)[1]


def test_where_nothing_came_through_the_notebook_gets_to_its_verdict(done):
    ledger, _, folder, _ = done
    none = ledger.iloc[[6]].head(0)
    found, meshes = latents.costs(none, str(folder / "tree"), RESOLUTION, [5], LENGTHS, str(folder / "vae"), "cpu")
    assert found.empty and latents.by_depth(found).empty and b"PNG" in latents.curves(found).data[:8]
    assert b"PNG" in latents.pictures(none, meshes, str(folder / "tree"), RESOLUTION, [5]).data[:8]


def test_latents_of_another_vae_are_made_again_and_not_counted_before(done):
    _, _, folder, items = done
    assert set(run((folder, items))[0].status) == {"kept", "quarantined"}
    torch.manual_seed(1)
    vae.save(vae.build("tiny"), folder / "other")
    other = latents.describe(str(folder / "other"), "cpu")
    stats, missing = latents.statistics(items, other, LENGTHS)
    assert stats == {} and missing.startswith("None of 7 meshes has latents of this VAE: 16_latent_stats.json was not")
    before = items[0].path("_latent_sample.npy").read_bytes()
    assert set(run((folder, items), "other")[0].status) == {"done", "quarantined"}
    assert items[0].path("_latent_sample.npy").read_bytes() != before
    assert set(run((folder, items), batch=1)[0].status) == {"done", "quarantined"}  # back, and one by one
    again = np.frombuffer(items[0].path("_latent_sample.npy").read_bytes(), np.float16, offset=128)
    assert np.abs(again - np.frombuffer(before, np.float16, offset=128)).max() < 4e-3


def test_tokens_may_look_from_elsewhere_than_they_learned(done):
    _, _, folder, items = done
    table, about = run((folder, items), anchors="nearest")
    assert set(table.status) == {"done", "quarantined"} and about["ordered"]
    found = np.load(items[0].path("_latent_sample.npy"), allow_pickle=False)[:, -3:].astype(np.float32)
    seen = [cloud[:, :3] for cloud in latents.seen(items[0].path(latents.SAMPLES), 64, 0)]
    for cloud, half, some in zip(
        seen, anchors.places(16).numpy().reshape(2, 8, 3), found.reshape(2, 8, 3), strict=True
    ):
        wanted = cloud[np.linalg.norm(half[:, None] - cloud, axis=-1).argmin(1)]
        assert np.abs(some - wanted).max() < 1e-3
    assert latents.statistics(items, latents.describe(str(folder / "vae"), "cpu"), LENGTHS)[0] == {}
    with pytest.raises(ValueError, match="anchors = 'fixed'; a VAE that learned 'matched' ones takes 'farthest' or"):
        latents.describe(str(folder / "vae"), "cpu", "fixed")
    run((folder, items))  # as the others find it


def test_several_sizes_of_input_in_one_batch_keep_their_order(tree):
    folder, _ = tree
    rng = np.random.default_rng(3)
    clouds = [sphere_points(n, rng).astype(np.float32) for n in (64, 32, 64, 32)]
    options = {"tokens": [8], "points": 0, "anchors": "", "seed": 0, "vae": str(folder / "vae"), "device": "cpu"}
    sha = latents.fingerprint(str(folder / "vae"))
    together = latents.encode([(c, c) for c in clouds], sha, **options)
    for cloud, [(mean, logvar)] in zip(clouds, together, strict=True):
        [[(alone, spread)]] = latents.encode([(cloud, cloud)], sha, **options)
        assert np.allclose(mean, alone, atol=1e-5) and np.allclose(logvar, spread, atol=1e-5)
    with pytest.raises(RuntimeError, match="changed since this run began"):
        latents.encode([(clouds[0], clouds[0])], "another", **options)


def test_a_vae_that_gives_no_numbers_is_told_by_each_item(tree):
    item = tree[1][0]
    asked = latents.latents(item, "", [8], 0, "", 0, "", "cpu")
    next(asked)
    with pytest.raises(ValueError, match="gave nan as a latent"):
        asked.send([(np.full((8, 4), np.nan), np.zeros((8, 4)))])
    with pytest.raises(ValueError, match="is not there"):
        latents.describe("no such folder", "cpu")


# -- decoding ---------------------------------------------------------------------------------------------------------


def ball_vae(monkeypatch, radius=0.6):
    """A VAE whose every shape is a ball, to know the truth of what is decoded."""
    model = vae.build("tiny", anchors="matched").eval().requires_grad_(False)
    clip = model.config["clip"]
    monkeypatch.setattr(model, "query", lambda context, X: ((radius - X.norm(dim=-1)) / clip).clamp(-1, 1))
    monkeypatch.setattr(latents, "network", lambda where, device: model)
    return model


def test_each_depth_is_a_row_with_its_cost_and_error(done, monkeypatch):
    ledger, _, folder, items = done
    ball_vae(monkeypatch, radius=0.6)  # ball_2's own
    rows = ledger[ledger["item"] == items[2].name]
    found, meshes = latents.costs(rows, str(folder / "tree"), RESOLUTION, [5, 6], LENGTHS, "", "cpu")
    assert list(zip(found["tokens"], found["depth"], strict=True)) == [(16, 5), (16, 6), (8, 5)]
    assert set(found["result"]) == {"whole"} and (found["seconds"] > 0).all() and (found["peak_gib"] > 0.1).all()
    assert (np.array([len(meshes[items[2].name, 16, d][1]) for d in (5, 6)]) == found["faces"][:2]).all()
    assert 0.01 < found["error"][1] < 0.1  # of 96 samples the nearest is so far
    table = latents.by_depth(found)
    assert list(table["depth"]) == [5, 6] and list(table["whole"]) == ["1 of 1"] * 2 and set(table["else"]) == {""}
    assert list(table["faces"]) == list(found["faces"][:2])
    assert not any("author" in name for name in table)  # who has figures from depth 8 on
    deep = latents.by_depth(found.assign(depth=[7, 8, 7]))
    assert list(deep["author's seconds"].fillna(0)) == [0, 27] and list(deep["author's GB"].fillna(0)) == [0, 2.1]


def test_the_error_is_the_distance_to_the_input(done):
    _, _, _, items = done
    item = items[2]
    X = np.load(item.path(latents.SAMPLES), allow_pickle=False)["fps_coarse_surface"][:, 0, :3]
    tiny = 1e-6 * tetrahedron(1)[0]
    V = (X[:, None] + tiny).reshape(-1, 3)
    F = (np.arange(len(X))[:, None, None] * 4 + tetrahedron(1)[1]).reshape(-1, 3)
    exact = latents.errors(V, F, item)
    assert exact["error"] < 1e-5 and exact["f_02"] == 1
    moved = latents.errors(V * 1.05, F, item)  # each point by 0.03
    assert 0.02 < moved["error"] <= 0.0301 and moved["f_02"] < 0.2


def test_out_of_memory_is_a_row(done, monkeypatch):
    ledger, _, folder, _ = done
    ball_vae(monkeypatch)
    monkeypatch.setattr(latents.picture, "contact_sheet", lambda meshes, *_, **__: meshes)
    monkeypatch.setattr("lib.decode.memory.free", lambda device: 200 * 36_000)  # holds depth 5, not 7
    rows = ledger.head(1)
    found, meshes = latents.costs(rows, str(folder / "tree"), RESOLUTION, [5, 7], [16], "", "cpu")
    assert found["result"][0] == "whole" and found["result"][1].startswith("out of memory: depth 7")
    table = latents.by_depth(found)
    assert list(table["whole"]) == ["1 of 1", "0 of 1"] and "out of memory" in table["else"][1]
    assert math.isnan(table["seconds"][1])
    latents.curves(found)
    shown = latents.pictures(rows, meshes, str(folder / "tree"), RESOLUTION, [5, 7])
    assert (
        len(shown[0][1]) == 4
        and shown[1] == meshes[ledger["item"][0], 16, 5][:2]
        and shown[2].startswith("out of memory: depth 7")
    )


def test_what_has_too_many_faces_is_thinned_for_its_picture_which_says_so(done, monkeypatch):
    ledger, _, folder, _ = done
    ball_vae(monkeypatch)
    monkeypatch.setattr(latents.picture, "contact_sheet", lambda meshes, titles, *_, **__: (meshes, titles))
    monkeypatch.setattr(latents, "DRAWN", 5000)
    rows, place = ledger.head(1), (str(folder / "tree"), RESOLUTION)
    found, meshes = latents.costs(rows, *place, [5, 6], [16], "", "cpu")
    shown, titles = latents.pictures(rows, meshes, *place, [5, 6])
    few, many = found["faces"]
    assert few <= 5000 < many and len(shown[1][1]) == few and 2500 < len(shown[2][1]) <= 5000
    assert titles[0] == f"{ledger['item'][0]}\nthe shape, 4 faces" and titles[1] == f"depth 5\n{few:,} faces"
    assert titles[2] == f"depth 6\n{many:,} faces, drawn as {len(shown[2][1]):,}"


def test_a_gpu_that_is_full_is_a_row(done, monkeypatch):
    model = ball_vae(monkeypatch)

    def full(context, X):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(model, "query", full)
    (_, F), facts = latents.decoded(model, np.zeros((16, model.channels), np.float16), 6, False)
    assert len(F) == 0 and facts["result"].startswith("out of memory: CUDA out of memory")


def test_an_empty_field_is_no_surface(done, monkeypatch):
    model = ball_vae(monkeypatch, radius=-1)
    (V, F), facts = latents.decoded(model, np.zeros((16, model.channels), np.float16), 5, True)
    assert V.shape == F.shape == (0, 3) and facts["result"] == "no surface"


def test_the_explorer_shows_a_picture_and_turns_with_its_sliders(done, monkeypatch):
    ledger, _, folder, items = done
    ball_vae(monkeypatch)
    rows = ledger.head(2)
    place = str(folder / "tree"), RESOLUTION
    _, meshes = latents.costs(rows, *place, [4, 5], [16], "", "cpu")
    given, drawn = [], []

    def sheet(meshes, titles, *_, turn=35, tilt=20, **__):  # a picture takes seconds where there is no GPU
        drawn.append((titles[0].split("\n")[0], int(titles[1].split("\n")[0][-1]), turn))
        return SimpleNamespace(data=repr([*titles, turn, tilt])[2:].encode())

    monkeypatch.setattr(latents.picture, "contact_sheet", sheet)
    monkeypatch.setattr(latents.picture, "live", lambda controls, see: given.extend([*controls, see]))
    monkeypatch.delenv("LIB_BATCH", raising=False)
    latents.explorer(rows, meshes, *place, [4, 5])
    choice, depth, see = given
    pictures = {see(turn=35, tilt=20)[0].data}
    for control, value in ((depth, 4), (choice, items[1].name)):
        control.value = value
        pictures.add(see(turn=90, tilt=20)[0].data)
    assert len(pictures) == 3 and (items[1].name, 4, 90) == drawn[-1]
    monkeypatch.setenv("LIB_BATCH", "1")
    assert latents.explorer(rows, meshes, *place, [4, 5]).data.startswith(items[0].name.encode())


def test_shares_and_words():
    assert latents.shares("cpu", -1, 0) == {"jobs": -1, "batch": 1}
    assert latents.shares("cuda:1", -1, 0) == {"jobs": 3, "batch": 16}
    assert latents.shares("cuda", 2, 4) == {"jobs": 2, "batch": 4}
    assert latents.shares("cuda", -1, 0, "tcp://host:8786")["jobs"] == -1  # as many as the cluster's workers take
    about = {"size": "tiny", "million parameters": 0.37, "weights": "run/11", "sha256": "ab" * 32}
    about |= {"channels": 16, "anchors": "matched", "device": "CPU", "clip": 0.05}
    assert "tiny (0.37 M parameters, run/11" in latents.title(about, [16, 32])
    assert "16 and 32 matched tokens of 16, on CPU" in latents.title(about, [16, 32])
    told = latents.promise([8, 9], about)
    assert isinstance(told, pd.DataFrame) and list(told["depth"]) == [8, 9]
    assert told.iloc[0, 1] == pytest.approx(told.iloc[0, 2] * 2.1 / 256)
