"""A bit of any file, flipped: found, named with what to do, and made again alone by the next run."""

import json
from pathlib import Path

import pytest
from test_archive import flip, put, tree

from lib import attempt, dataset, verify
from lib.seals import sealed


def shout(item) -> dict:
    with item.writing("_shout.txt") as path:
        path.write_text(Path(item.source).read_text().upper())
    return {"length": 3, "exact": 0.1}


def echo(item) -> dict:
    for k in range(2):
        with item.writing(f"_echo_{k}.txt") as path:
            path.write_text(item.path("_shout.txt").read_text() * 2)
    return {}


@pytest.fixture
def run(tmp_path):
    """Both stages over four meshes, as the pool's workers do them; gives the status of every item in both."""
    (tmp_path / "meshes").mkdir()
    for name in "abcd":
        (tmp_path / "meshes" / f"{name}.obj").write_text(name * 100)

    def go() -> dict[tuple, str]:
        items = dataset.collect(tmp_path / "meshes", tmp_path / "tree", 64)
        found = {}
        with dataset.Claims(tmp_path / "tree") as claims:
            for stage, name, inputs in (("01_shout", "shout", ["source"]), ("02_echo", "echo", ["_shout.txt"])):
                job = {"stage": stage, "function": f"test_verify:{name}", "inputs": inputs, "together": ""}
                job |= {"version": 1, "parameters": {}, "means": {}, "dataset": str(tmp_path)}
                for item in items:
                    found[stage, item.name[0]] = attempt.attempt(job, [item], claims)[0]["status"]
        return found

    return go


def test_a_flipped_bit_is_named_and_made_again_alone(run, tmp_path):
    assert set(run().values()) == {"done"}
    assert verify.verify(tmp_path / "tree", 64, jobs=1) == []
    item = dataset.items(tmp_path / "tree", 64)[2]
    before = item.path("_echo_1.txt").read_bytes()
    flip(item.path("_echo_1.txt"), 5)
    assert set(run().values()) == {"kept"}, "sizes are all that a run looks at"
    faults = verify.verify(tmp_path / "tree", 64, jobs=1)
    assert len(faults) == 1 and faults[0]["mesh"] == item.name and "02_echo" in faults[0]["do"]
    assert faults[0]["file"] == str(item.path("_echo_1.txt"))
    again = run()
    assert [key for key, status in again.items() if status != "kept"] == [("02_echo", "c")]
    assert item.path("_echo_1.txt").read_bytes() == before
    assert verify.verify(tmp_path / "tree", 64, jobs=1) == []


def test_what_an_earlier_stage_lost_costs_that_stage_alone_if_it_comes_back_the_same(run, tmp_path):
    run()
    item = dataset.items(tmp_path / "tree", 64)[1]
    flip(item.path("_shout.txt"), 50)
    assert [fault["file"] for fault in verify.verify(tmp_path / "tree", 64, jobs=1)] == [str(item.path("_shout.txt"))]
    assert [key for key, status in run().items() if status != "kept"] == [("01_shout", "b")]


def test_every_bit_of_the_facts_counts(run, tmp_path):
    run()
    item = dataset.items(tmp_path / "tree", 64)[0]
    path = item.path("_facts.json")
    text = path.read_text()
    place, time = text.index('"exact": 0.1'), text.index('"seconds": ')
    for at, stages in ((place + 9, {"01_shout"}), (time + 11, {"01_shout"}), (0, {"01_shout", "02_echo"})):
        path.write_text(text)
        flip(path, at)
        assert len(verify.verify(tmp_path / "tree", 64, jobs=1)) == 1
        assert {stage for (stage, name), status in run().items() if status == "done"} == stages
        assert verify.verify(tmp_path / "tree", 64, jobs=1) == []


def test_a_flipped_bit_anywhere_in_the_list_of_items_costs_that_line(run, tmp_path):
    run()
    path, items = tmp_path / "tree" / "items.csv", dataset.items(tmp_path / "tree", 64)
    text = path.read_bytes()
    for at in range(len(text)):
        path.write_bytes(text)
        flip(path, at)
        _, faults = verify.listed(tmp_path / "tree", mend=False)
        assert faults and all("01_watertight" in f["do"] and f["file"] == str(path) for f in faults), at
    path.write_bytes(text)
    flip(path, text.index(items[2].sha256.encode()))
    with pytest.raises(ValueError, match=r"items\.csv: line 4 is damaged"):
        dataset.items(tmp_path / "tree", 64)
    assert [fault["fault"] for fault in verify.verify(tmp_path / "tree", 64, jobs=1)] == ["changed in line 4"]
    assert [item.name for item in dataset.items(tmp_path / "tree", 64)] == [items[k].name for k in (0, 1, 3)]
    assert set(run().values()) == {"kept"} and path.read_bytes() == text


def test_a_list_of_an_older_release_has_no_seals_and_gets_them_with_the_next_new_mesh(run, tmp_path):
    run()
    path = tmp_path / "tree" / "items.csv"
    text = path.read_text()
    path.write_text("\n".join(line.rpartition(",")[0] for line in text.splitlines()) + "\n")
    assert verify.verify(tmp_path / "tree", 64, jobs=1) == []
    assert set(run().values()) == {"kept"}
    (tmp_path / "meshes" / "e.obj").write_text("e")
    run()
    assert path.read_text().splitlines()[:5] == text.splitlines()


def test_statistics_with_a_flipped_bit_are_set_aside_and_nobody_learns_from_them(run, tmp_path):
    run()
    path = tmp_path / "tree" / "64_latent_stats.json"
    text = sealed({"mean": [0.1, 0.2], "std": [1.0, 2.0], "tokens": 8})
    for at in range(len(text)):
        path.write_text(text)
        flip(path, at)
        faults = verify.verify(tmp_path / "tree", 64, jobs=1)
        assert [(f["file"], "05_latents" in f["do"]) for f in faults] == [(str(path), True)] and not path.exists()
    path.write_text(text)
    assert verify.verify(tmp_path / "tree", 64, jobs=1) == []


def test_only_telling_changes_nothing(run, tmp_path):
    run()
    item = dataset.items(tmp_path / "tree", 64)[0]
    flip(item.path("_shout.txt"), 5)
    before = {path: path.read_bytes() for path in (tmp_path / "tree").rglob("*") if path.is_file()}
    assert len(verify.verify(tmp_path / "tree", 64, mend=False, jobs=1)) == 1
    assert before == {path: path.read_bytes() for path in (tmp_path / "tree").rglob("*") if path.is_file()}


def test_what_is_missing_or_changed_at_its_source_is_told(run, tmp_path):
    run()
    items = dataset.items(tmp_path / "tree", 64)
    items[0].path("_echo_0.txt").unlink()
    Path(items[3].source).write_text("new")
    faults = verify.verify(tmp_path / "tree", 64, jobs=1)
    assert [(fault["mesh"], fault["fault"].split()[1]) for fault in faults] == [
        (items[0].name, "missing"),
        (items[3].name, "not"),
    ]


def test_what_is_in_an_archive_is_not_missing(tmp_path):
    items = tree(tmp_path / "tree", 2)
    put(tmp_path / "tree", tmp_path / "there", remove=True)
    assert verify.verify(tmp_path / "tree", 64, jobs=1) == []
    flip(items[0].path("_archived.json"), 30)
    faults = verify.verify(tmp_path / "tree", 64, mend=False, jobs=1)
    assert len(faults) == 6 and faults[0]["file"].endswith("_archived.json") and "restore" in faults[0]["do"]
    (items[0].path("_archived.json")).unlink()
    assert len(verify.verify(tmp_path / "tree", 64, jobs=1)) == 5


def test_every_file_that_a_stage_made_is_looked_at(tmp_path):
    items = tree(tmp_path / "tree", 1)
    for record in dataset.read_facts(items[0]).values():
        for suffix in record["outputs"]:
            flip(items[0].path(suffix), 20)
            assert [fault["file"] for fault in verify.verify(tmp_path / "tree", 64, mend=False, jobs=1)] == [
                str(items[0].path(suffix))
            ]
            flip(items[0].path(suffix), 20)
    assert json.loads(items[0].path("_facts.json").read_text())["01_watertight"]["seal"]
