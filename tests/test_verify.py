"""A bit of any file, flipped: found, named with what to do, and made again alone by the next run."""

import json
from pathlib import Path

import pytest
from test_archive import flip, put, tree

from lib import attempt, dataset, verify


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
    place = text.index('"exact": 0.1')
    for at, stages in ((place + 9, {"01_shout"}), (0, {"01_shout", "02_echo"})):
        path.write_text(text)
        flip(path, at)
        assert len(verify.verify(tmp_path / "tree", 64, jobs=1)) == 1
        assert {stage for (stage, name), status in run().items() if status == "done"} == stages
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
