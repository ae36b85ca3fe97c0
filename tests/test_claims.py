"""Claims among processes that die, and among machines that see neither each other's locks nor each other's clocks.

POSIX locks do not hold within one process: two Claims of one test are two machines whose disk shows no foreign lock.
"""

import contextlib
import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lib import attempt, claims, dataset, pool
from lib.claims import Claims

sys.path.append(str(Path(__file__).parent))
from test_pool import ROOT, calls, noted, read_ledger, until


class Clock:
    """A machine's own clock: where it stands is of no consequence, only how far it goes."""

    def __init__(self, now: float):
        self.now = now

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """machine("name") is its Claims in tmp_path; what they do happens by the test's clock, and nobody asks the date."""
    with contextlib.ExitStack() as stack:
        monkeypatch.setattr(time, "time", lambda: pytest.fail("another machine's date is not ours"))
        monkeypatch.setattr(claims, "BEAT", 1e9)  # the test beats

        def make(name: str) -> Claims:
            monkeypatch.setattr(claims, "HOST", name)
            return stack.enter_context(Claims(tmp_path))

        make.clock = Clock(1e6)
        monkeypatch.setattr(claims, "time", make.clock)
        yield make


# -- among processes --------------------------------------------------------------------------------------------------

HOLDER = """
import sys
from lib.claims import Claims
with Claims(sys.argv[1]) as claims:
    print(claims.take("chair"), claims.take("table"), flush=True)
    sys.stdin.read()
"""


def test_a_claim_excludes_others_and_dies_with_its_holder(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "True True\n"
    with Claims(tmp_path) as mine:
        assert not mine.take("chair")
        assert mine.take("lamp")
        holder.kill()
        holder.wait()
        assert mine.take("chair", wait=True) and mine.take("table")
        mine.drop("table")  # and what is not dropped ends with the block
    with Claims(tmp_path) as mine:  # its beat is swept by the next one
        assert mine.take("lamp")
        mine.drop("lamp")
    assert os.listdir(tmp_path) == [".claims"] and (tmp_path / ".claims").stat().st_size == 0


def test_what_the_dead_held_goes_with_them_even_if_nobody_asks_for_it(tmp_path):
    """Killed between the last word on an item and giving it back; another machine's are left to their own."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "True True\n"
    holder.kill()
    holder.wait()
    foreign = claims.lease(tmp_path, "sofa")
    foreign.write_text("0123456789abcdef\nanother machine")
    with Claims(tmp_path) as mine:
        assert mine.take("lamp")
        assert sorted(path.name for path in foreign.parent.glob("*.lease")) == ["lamp.lease", "sofa.lease"]
        assert len(list(foreign.parent.iterdir())) == 3, "one beat, ours"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_that_an_item_forked_gives_nothing_back(tmp_path):
    with Claims(tmp_path) as mine:
        mine.take("chair")
        child = os.fork()
        if not child:
            mine.drop("chair")
            mine.__exit__()
            os._exit(0)
        os.waitpid(child, 0)
        assert mine.holds("chair")


def test_what_the_dead_were_about_to_bury_goes_with_them(tmp_path):
    """Killed between moving a lease aside and removing it."""
    script = f"import os; from lib.claims import Claims; c = Claims({str(tmp_path)!r}); c.take('chair'); "
    script += "p = c.folder / '.leases' / 'sofa.lease'; p.with_suffix('.' + c.token).touch(); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT)
    assert len(list((tmp_path / claims.LEASES).iterdir())) == 3
    with Claims(tmp_path) as mine:
        mine.take("chair")
        assert sorted(path.suffix for path in (tmp_path / claims.LEASES).iterdir()) == [".beat", ".lease"]


def test_where_there_are_no_locks_leases_do(tmp_path, monkeypatch):
    def refuse(file, offset):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(claims, "_lock", refuse)
    with Claims(tmp_path) as one, Claims(tmp_path) as other:
        assert one.take("chair") and not other.take("chair")
        one.drop("chair")
        assert other.take("chair") and not one.take("chair")


# -- among machines ---------------------------------------------------------------------------------------------------


def test_another_machine_is_respected_while_it_beats_and_no_longer(machine):
    one, other = machine("one"), machine("other")
    assert one.take("chair") and not other.take("chair")
    for _ in range(5):  # hours between two looks: it beats, so it lives
        machine.clock.now += 1e4
        one.beat.tick()
        assert not other.take("chair")
    machine.clock.now += claims.STALE
    assert not other.take("chair"), "it may be about to beat"
    machine.clock.now += 1
    assert other.take("chair") and other.holds("chair") and not one.holds("chair")
    assert not one.take("chair")
    other.drop("chair")
    assert one.take("chair") and one.holds("chair") and not other.holds("chair")


def test_how_long_it_was_dead_before_we_looked_does_not_count(machine):
    one, other = machine("one"), machine("other")
    one.take("chair")
    machine.clock.now += 1e9
    assert not other.take("chair"), "its clock may be years behind"
    machine.clock.now += claims.STALE + 1
    assert other.take("chair")


def test_a_lease_without_a_word_is_somebody_until_it_is_stale(machine, tmp_path):
    """Killed between creating it and writing it."""
    mine = machine("one")
    (tmp_path / claims.LEASES).mkdir()
    claims.lease(tmp_path, "chair").touch()
    assert not mine.take("chair")
    machine.clock.now += claims.STALE + 1
    assert mine.take("chair")


def test_of_many_who_take_over_one_wins(machine, tmp_path):
    for key in map(str, range(20)):
        dead = machine("dead")
        dead.take(key)
        others = [machine(f"machine {k}") for k in range(6)]
        assert not any(other.take(key) for other in others)
        machine.clock.now += claims.STALE + 1
        together, won = threading.Barrier(len(others)), []

        def race(other, key=key, together=together, won=won):
            together.wait()
            if other.take(key):
                won.append(other)

        racers = [threading.Thread(target=race, args=(other,)) for other in others]
        [racer.start() for racer in racers]
        [racer.join() for racer in racers]
        holders = [other for other in [*others, dead] if other.holds(key)]
        assert len(holders) == 1 and holders[0] in won


def test_who_buries_the_living_puts_it_back(machine, tmp_path):
    one, other = machine("one"), machine("other")
    one.take("chair")
    assert not claims.bury(claims.lease(tmp_path, "chair"), "the one who had it before", other.token)
    assert one.holds("chair") and not other.holds("chair")


def test_who_buries_the_living_before_its_first_word_loses_none(machine, tmp_path, monkeypatch):
    """The lease is created, then moved aside and put back by a slow one, and only then written."""
    one, other = machine("one"), machine("other")
    path, write = claims.lease(tmp_path, "chair"), os.write

    def late(file, text):
        if text.decode() == one._mine():
            monkeypatch.setattr(os, "write", write)
            assert not claims.bury(path, "the one who had it before", other.token)
        return write(file, text)

    one.beat.begin()
    monkeypatch.setattr(os, "write", late)
    assert one.take("chair")
    assert one.holds("chair") and not other.holds("chair")


def test_a_disk_without_links_gets_a_copy(machine, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    one, other = machine("one"), machine("other")
    one.take("chair")
    assert not claims.bury(claims.lease(tmp_path, "chair"), "the one who had it before", other.token)
    assert one.holds("chair") and not other.holds("chair")


def test_a_stale_handle_of_a_network_disk_is_no_answer(machine, monkeypatch):
    one, other = machine("one"), machine("other")
    one.take("chair")
    read, failures = Path.read_text, iter([OSError(errno.ESTALE, "Stale file handle")] * 2)

    def flaky(path, **options):
        for failure in failures:
            raise failure
        return read(path, **options)

    monkeypatch.setattr(Path, "read_text", flaky)
    assert one.holds("chair") and not other.take("chair")


def test_what_a_dead_process_held_its_guard_gives_back(machine, tmp_path):
    guard, other = machine("one"), machine("other")
    guard.take("chair")
    guard.take("table")
    claims.release(tmp_path, ["chair", "lamp"], guard.token)
    claims.release(tmp_path, ["table"], other.token)
    assert other.take("chair") and not other.take("table")


def test_who_falls_asleep_while_giving_back_leaves_the_next_holders_lease(machine, tmp_path, monkeypatch):
    one, other = machine("one"), machine("other")
    one.take("chair")
    assert not other.take("chair")
    look = claims.read

    def slept(path):
        said = look(path)
        if said == one._mine():
            monkeypatch.setattr(claims, "read", look)
            machine.clock.now += claims.STALE + 1
            assert other.take("chair")
        return said

    monkeypatch.setattr(claims, "read", slept)
    one.drop("chair")
    assert other.holds("chair") and not one.holds("chair")


def test_a_late_writer_changes_nothing(machine, tmp_path):
    """It was asleep for so long that another machine did its item; then it wakes up in the middle of its own."""
    (tmp_path / "chair.obj").write_text("chair")
    item = dataset.Item("chair", str(tmp_path / "chair.obj"), "0", str(tmp_path), 64)
    job = pool.Job("01_wake", "test_claims:wake", {}, ["source"], 1, str(tmp_path), 64, "", 0, 0)
    one, other = machine("one"), machine("other")

    def overtake(late):
        assert attempt.attempt(vars(job), [item], other) == [{"status": "busy"}]
        machine.clock.now += claims.STALE + 1
        [reply] = attempt.attempt(vars(job) | {"function": "test_claims:be_quick"}, [item], other)
        assert reply["status"] == "done"

    WAKING.append(overtake)
    assert attempt.attempt(vars(job), [item], one) == [{"status": "busy"}]
    assert item.path("_shout.txt").read_text() == "the other's" and not list(tmp_path.rglob(dataset.PARTIAL + "*"))
    assert dataset.read_facts(item)["01_wake"]["facts"] == {"by": "the other"}
    [reply] = attempt.attempt(vars(job) | {"function": "test_claims:be_quick"}, [item], one)
    assert reply["status"] == "kept"


WAKING = []


def wake(item):
    WAKING.pop()(item)
    with item.writing("_shout.txt") as path:
        path.write_text("mine, too late")
    return {"by": "me"}


def be_quick(item):
    with item.writing("_shout.txt") as path:
        path.write_text("the other's")
    return {"by": "the other"}


# -- two hosts, as far as one kernel can play them --------------------------------------------------------------------

RUNNER = """
import sys
from pathlib import Path
sys.path[:0] = [{root!r}, {tests!r}]
from lib import dataset, pool
import test_claims
folder = Path(sys.argv[1])
items = dataset.items(folder / "tree", 64)
pool.map(getattr(test_claims, sys.argv[2]), items, "01_shout", folder / sys.argv[3], jobs=2)
"""
HOST = """
hostname {name} && mount --bind {locks} {tree}/.claims && exec {python} -c "$0" "$@"
"""  # a name, and locks of its own: nobody else sees them


def host(name: str, hours: int, folder: Path, function: str) -> subprocess.Popen:
    """A run on a host of its own, whose clock stands elsewhere."""
    (folder / f"{name}.claims").touch()
    script = HOST.format(name=name, locks=folder / f"{name}.claims", tree=folder / "tree", python=sys.executable)
    code = RUNNER.format(root=str(ROOT), tests=str(ROOT / "tests"))
    command = ["unshare", "-u", "-m", "-T", "--monotonic", str(3600 * hours), "sh", "-c", script]
    command += [code, str(folder), function, name]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)


@pytest.fixture
def tree(tmp_path):
    probe = ["unshare", "-u", "-m", "-T", "--monotonic", "3600", "hostname", "elsewhere"]
    if not sys.platform.startswith("linux") or subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("playing two hosts needs root on Linux")
    (tmp_path / "meshes").mkdir()
    for k in range(12):
        (tmp_path / "meshes" / f"m{k:02}.obj").write_text(f"m{k}")
    return dataset.collect(tmp_path / "meshes", tmp_path / "tree", 64)


def meet(item):
    """Begins when two hosts are at work."""
    noted(item, f"begun by {os.uname().nodename}.")
    diary = Path(item.dataset).parent / "calls.txt"
    until(lambda: "by left." in diary.read_text() and "by right." in diary.read_text(), deadline=300)
    time.sleep(0.2)
    return {}


def stay(item):
    noted(item, f"begun by {os.uname().nodename}.")
    if os.uname().nodename == "left":
        time.sleep(1e6)
    return {}


@pytest.mark.slow
def test_two_hosts_on_one_tree_do_nothing_twice(tree, tmp_path):
    both = [host("left", 1000, tmp_path, "meet"), host("right", 0, tmp_path, "meet")]
    outputs = [process.communicate(timeout=600)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert calls(tmp_path / "tree") == sorted(item.name for item in tree)
    ledgers = [read_ledger(tmp_path / name / "01_shout.csv") for name in ("left", "right")]
    assert sum((ledger.status == "done").sum() for ledger in ledgers) == 12
    assert all((ledger.status == "done").any() and len(ledger) == 12 for ledger in ledgers)


@pytest.mark.slow
def test_a_host_that_is_lost_is_replaced(tree, tmp_path):
    left = host("left", 1000, tmp_path, "stay")
    until(lambda: len(calls(tmp_path / "tree")) == 2, left, deadline=300)
    left.kill()  # and its processes with it: it leaves two leases, which no lock of right's can tell from living ones
    left.wait()
    lost = calls(tmp_path / "tree")
    assert len(list((tmp_path / "tree" / claims.LEASES).glob("*.lease"))) == 2
    right = host("right", 0, tmp_path, "stay")
    output = right.communicate(timeout=600)[0]
    assert right.returncode == 0 and "2 items are being done by another run" in output, output
    begun = calls(tmp_path / "tree")
    assert sorted(set(begun)) == sorted(item.name for item in tree) and len(begun) == 14
    assert all(begun.count(name) == 2 for name in lost)
    assert list(read_ledger(tmp_path / "right" / "01_shout.csv").status) == ["done"] * 12


def test_hosts_are_told_apart_by_name_and_start():
    assert claims.machine() == claims.HOST and "/" in claims.HOST
    assert claims.STALE > 3 * claims.BEAT
