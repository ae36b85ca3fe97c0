"""One item as it is done and noted; several whose questions are answered together, with real deaths among them."""

import json
import math
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lib import attempt, dataset, pool

ROOT = Path(__file__).parent.parent
DEADLINE = 60  # seconds, generous: nothing here is about speed


def explain(function):
    try:
        function()
    except Exception as error:
        return attempt.explain(error)


def test_a_fault_in_a_library_is_placed_in_our_code():
    def ours():
        np.linalg.inv(np.zeros((2, 2)))

    assert explain(ours).startswith("LinAlgError: Singular matrix, in test_attempt.py:")
    assert explain(ours).endswith(" ours")


def test_a_message_written_for_the_user_is_left_as_it_is():
    ours = compile("raise ValueError('chair.obj: no faces;\\n   wanted triangles')", attempt.__file__, "exec")
    assert explain(lambda: exec(ours)) == "chair.obj: no faces; wanted triangles"


def test_a_reason_is_short_and_can_be_printed():
    def ours():
        raise RuntimeError("\udcff\ud800" + "x" * 10**6)

    assert "\\udcff\\ud800xxx" in explain(ours) and len(explain(ours).encode()) < 1200


def test_facts_are_plain_json():
    assert attempt.plain(np.float32(0.5)) == 0.5
    assert attempt.plain(np.arange(3)) == [0, 1, 2]
    with pytest.raises(TypeError, match="not object"):
        attempt.plain(object())


def test_resolve_and_versions():
    assert attempt.resolve("math:sqrt") is math.sqrt
    assert attempt.versions()["numpy"] == np.__version__
    assert "python" in attempt.versions()
    code = "from lib import attempt; print(attempt.versions())"  # of a process that has loaded none of them
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert said.strip() == str(attempt.versions())  # whatever was done before


# -- together ---------------------------------------------------------------------------------------------------------


def ask_twice(item, sign=1, most=99, slow=0.0):
    """Asks for the square of the number in its file, then for that of the square; does what the file says else."""
    what = Path(item.source).read_text()
    note(item, f"read {item.name}")
    if what == "broken":
        raise ValueError("no number")
    number = int(re.sub(r"\D", "", what) or 0)
    for _ in range(2):
        number = yield sign * number, what, item.dataset
    if what == "cannot be written":
        raise OSError("no such colour")
    with item.writing("_power.txt") as path:
        path.write_text(str(number))
    return {"number": number}


def squares(questions, sign=1, most=99, slow=0.0):
    """The answers; may die, hang or fail over one of the questions, or over too many at once."""
    time.sleep(slow)
    wishes = {what for _, what, _ in questions}
    note(questions[0][2], f"asked {len(questions)}")
    if "die" in wishes:
        os.kill(os.getpid(), signal.SIGKILL)
    if "hang" in wishes:
        time.sleep(DEADLINE)
    if "spoil" in wishes:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    if "forget" in wishes:
        return [0] * (len(questions) - 1)
    if "fail" in wishes:
        raise ZeroDivisionError("the mesh has no inside")
    if len(questions) > most:
        raise MemoryError("CUDA out of memory")
    return [number**2 for number, _, _ in questions]


def note(where, text):
    with open(Path(getattr(where, "dataset", where)).parent / "diary.txt", "a") as diary:
        diary.write(text + "\n")


def asked(folder) -> list[int]:
    return [int(n) for n in re.findall(r"asked (\d+)", (folder / "diary.txt").read_text())]


@pytest.fixture
def work(tmp_path):
    """work("2", "die") makes mesh files that say so and returns their items, in this order."""

    def make(*texts: str) -> list[dataset.Item]:
        (tmp_path / "meshes").mkdir(exist_ok=True)
        for n, text in enumerate(texts):
            (tmp_path / "meshes" / f"m{n:02}.obj").write_text(text)
        return dataset.collect(tmp_path / "meshes", tmp_path / "tree", 64)

    return make


def run(items, folder="run", batch=8, jobs=1, function=ask_twice, together=squares, **options):
    folder = Path(items[0].dataset).parent / folder
    options = {"together": together, "batch": batch, "jobs": jobs} | options
    return pool.map(function, items, "01_power", folder, options.pop("parameters", {}), **options)


def files(tree: Path) -> dict:
    """All of a tree but what may differ between two honest runs."""
    found = {path.relative_to(tree).as_posix(): path.read_bytes() for path in tree.rglob("64_*") if path.is_file()}
    times = rb'"(seconds|peak_gib)": [0-9.e-]+|"seal": "\w+"'  # a seal is of the times, too
    return {name: re.sub(times, b"", text) for name, text in found.items()}


def test_what_is_done_together_is_what_is_done_alone(work, tmp_path):
    items = work(*map(str, range(10)))
    ledger = run(items, batch=4)
    assert ledger.attrs["wall"] > ledger.seconds.sum() > 0
    assert list(ledger.status) == ["done"] * 10 and list(ledger.number) == [n**4 for n in range(10)]
    assert sorted(asked(tmp_path)) == [2, 2, 4, 4, 4, 4]  # two questions each, 4 + 4 + 2 items
    facts = dataset.read_facts(items[3])["01_power"]
    assert facts["outputs"]["_power.txt"]["size"] == 2 and facts["inputs"] == {"source": items[3].sha256}
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "meshes").symlink_to(tmp_path / "meshes")
    run(dataset.collect(tmp_path / "alone" / "meshes", tmp_path / "alone" / "tree", 64), batch=1)
    assert set(asked(tmp_path / "alone")) == {1}
    assert files(tmp_path / "tree") == files(tmp_path / "alone" / "tree")


def test_what_was_written_with_an_item_before_is_not_the_stages(work):
    items = work("broken", "3")
    for item in items:
        with item.writing("_input.txt") as path:
            path.write_text("made by another stage")
    assert list(run(items, batch=1).status) == ["quarantined", "done"]
    assert all(item.path("_input.txt").exists() for item in items)
    assert list(dataset.read_facts(items[1])["01_power"]["outputs"]) == ["_power.txt"]


def test_a_few_items_are_enough_for_all_jobs(work, tmp_path):
    run(work("1", "2", "3", "4"), jobs=2, batch=64)
    assert asked(tmp_path) == [2] * 4


def test_what_is_done_is_kept_and_means_do_not_make_it_stale(work):
    items = work("1", "2", "3")
    run(items)
    again = run(items, means={"most": 1, "slow": 0.0})
    assert list(again.status) == ["kept"] * 3
    items[1].path("_power.txt").unlink()
    assert list(run(items).status) == ["kept", "done", "kept"]
    assert set(run(items, parameters={"sign": -1}).status) == {"done"}


FAULTS = {
    "broken": ("no number", "ValueError: no number, in test_attempt.py:"),
    "cannot be written": ("no such colour", "OSError: no such colour, in test_attempt.py:"),
    "fail": ("no inside", "ZeroDivisionError: the mesh has no inside, in test_attempt.py:"),
    "forget": ("answers", "TypeError: test_attempt:squares gave 0 answers to 1 questions"),
    "die": ("SIGKILL, twice", "died of SIGKILL"),
    "spoil": ("exit code 1", "ended with exit code 1"),
    "hang": ("timeout", "timeout: more than 2 s, in test_attempt.py:"),
}


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory):
    """One batch with every fault in it, among innocents."""
    folder = tmp_path_factory.mktemp("poisoned")
    (folder / "meshes").mkdir()
    for n, text in enumerate(["1", *FAULTS, *"23456"]):
        (folder / "meshes" / f"{text.replace(' ', '_')}.obj").write_text(text if text in FAULTS else f"{n}")
    items = dataset.collect(folder / "meshes", folder / "tree", 64)
    ledger = run(items, batch=len(items), timeout=2)
    return ledger.assign(text=[Path(item.source).stem.replace("_", " ") for item in items]).set_index("text"), items


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_a_batch_ends_its_item_alone_and_says_why(poisoned, fault):
    ledger, _ = poisoned
    assert ledger.status[fault] == "quarantined"
    assert all(words in ledger.reason[fault] for words in FAULTS[fault])


def test_innocents_of_a_batch_are_untouched(poisoned):
    ledger, items = poisoned
    assert list(ledger.status[list("123456")]) == ["done"] * 6
    left = {path.name for item in items for path in Path(item.folder).glob("*") if "facts" not in path.name}
    assert left == {f"{item.stem}_power.txt" for item in items if Path(item.source).stem in "123456"}


def test_a_culprit_is_found_by_halving(work, tmp_path):
    ledger = run(work(*"123", "fail", *"5678"))
    assert list(ledger.status) == ["done"] * 3 + ["quarantined"] + ["done"] * 4
    assert asked(tmp_path) == [8, 4, 2, 2, 1, 1, 4, 7]


def test_a_batch_too_large_for_the_memory_is_done_in_parts(work, tmp_path):
    assert set(run(work(*"12345678"), parameters={"most": 2}).status) == {"done"}
    assert asked(tmp_path) == [8, 4, 2, 2, 4, 2, 2] * 2


def test_the_command_in_the_ledger_repeats_an_item_of_a_batch(work):
    ledger = run(work("1", "3"))
    paths = [ROOT, ROOT / "tests", os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
    command = [sys.executable, *shlex.split(ledger.command[1])[1:]]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert json.loads(result.stdout)["facts"] == {"number": 81}


def plain_one(item):
    return {}


def test_questions_without_answers_are_refused_before_any_work(work):
    items = work("1")
    for options in ({"together": None}, {"function": plain_one}, {"batch": 0}, {"means": {"mots": 3}}):
        with pytest.raises(ValueError, match=r"together|batch|mots"):
            run(items, **options)
    assert not Path(items[0].folder).exists()


RUNNER = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
import test_attempt
from lib import dataset
items = dataset.collect("{folder}/meshes", "{folder}/tree", 64)
test_attempt.run(items, {name!r}, batch=4, jobs=2, parameters={{"slow": 0.1}})
"""


def start(folder, name="run") -> subprocess.Popen:
    code = RUNNER.format(root=str(ROOT), tests=str(ROOT / "tests"), folder=folder, name=name)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_two_runs_at_once_share_batches_and_do_nothing_twice(work, tmp_path):
    items = work(*map(str, range(24)))
    runs = [start(tmp_path, name) for name in ("one", "other")]
    for process in runs:
        assert process.wait(DEADLINE) == 0, process.stdout.read()
    assert sorted(re.findall("read (.+)", (tmp_path / "diary.txt").read_text())) == sorted(i.name for i in items)
    assert set(run(items, parameters={"slow": 0.1}).status) == {"kept"}


def test_a_run_of_batches_that_is_killed_ends_like_an_undisturbed_one(work, tmp_path):
    items, moment = work(*map(str, range(24))), random.Random(0)
    for _ in range(4):
        before, end = (tmp_path / "diary.txt").stat().st_size if (tmp_path / "diary.txt").exists() else 0, time.time()
        process = start(tmp_path)
        while not (tmp_path / "diary.txt").exists() or (tmp_path / "diary.txt").stat().st_size == before:
            assert time.time() < end + DEADLINE and process.poll() is None, process.communicate()[0]
            time.sleep(0.01)
        time.sleep(0.4 * moment.random())
        process.kill()
        process.communicate()
        for item in moment.sample(items, 12):  # else the last kills find nothing to do
            item.path("_power.txt").unlink(missing_ok=True)
    assert "quarantined" not in set(run(items, parameters={"slow": 0.1}).status)
    (tmp_path / "calm").mkdir()
    (tmp_path / "calm" / "meshes").symlink_to(tmp_path / "meshes")
    run(dataset.collect(tmp_path / "calm" / "meshes", tmp_path / "calm" / "tree", 64), parameters={"slow": 0.1})
    assert files(tmp_path / "tree") == files(tmp_path / "calm" / "tree")


def test_one_thread_does_an_item_that_is_alone(work):
    """Where it hangs is told by the main thread's stack, and a library may want the main thread."""
    assert list(run(work("1", "2"), batch=1, function=where, together=threads).main) == [True, True]


def where(item):
    import threading

    before = threading.current_thread() is threading.main_thread()
    return {"main": before and (yield None)}


def threads(questions):
    import threading

    return [threading.current_thread() is threading.main_thread()] * len(questions)
