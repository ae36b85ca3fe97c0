import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lib import checkpoint, loop
from lib.journal import read_curve
from lib.place import process

HERE = Path(__file__).parent
torch.set_num_threads(1)  # the sums are tiny, and the children's threads are one too
STEPS = 24
ITEMS = 10  # that samples are dealt from, where it matters which
ARGUMENTS = {"steps": STEPS, "batch_size": 4, "lr": 0.02, "warmup": 4, "save_every": 6, "log_every": 2}


LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))
        self.drop = nn.Dropout(0.2)
        self.out = nn.Linear(8, 1)

    def forward(self, x):
        return self.out(self.drop(self.mlp(x)))


def toy(seed=0, dropout=0.2):
    torch.manual_seed(seed)
    model = Block()
    model.drop.p = dropout
    return model


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(8, 5), nn.GELU(), nn.Linear(5, 8))  # no share of five rows is like another

    def forward(self, x):
        return x + self.mlp(x)


class Tower(nn.Module):
    """What is divided block by block, with a weight outside, a buffer, and a weight too small to be divided."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Layer() for _ in range(3))
        self.out, self.gain = nn.Linear(8, 1), nn.Parameter(torch.ones(1))
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.out(x) * self.gain * self.scale


def tower():
    torch.manual_seed(0)
    return Tower()


def batch(step, samples):
    """Points of a smooth function, drawn by the number of the sample."""
    drawn = [np.random.default_rng([7, n]).normal(size=8).astype(np.float32) for n in samples]
    x = np.stack(drawn)
    return {"x": torch.from_numpy(x), "y": torch.from_numpy(np.sin(x).sum(1, keepdims=True)), "step": step}


def loss(model, batch):
    error = (model(batch["x"]) - batch["y"]).pow(2).mean()
    return {"loss": error, "half": error / 2}


def mortal(step, samples):
    """A source that ends its own process while it makes the batch of a step. Notes who was dealt what."""
    if diary := os.environ.get("DIARY"):
        with open(diary, "a") as file:
            file.write(f"{step} {' '.join(map(str, loop.deal(samples, ITEMS, seed=0)))}\n")
    if str(step) == os.environ.get("KILL_AT"):
        os.kill(os.getpid(), getattr(signal, os.environ.get("KILL_BY", "SIGKILL")))
    return batch(step, samples)


def validate(model, step):
    assert not model.training and not torch.is_grad_enabled()
    return {"weight": float(sum(w.double().sum() for w in model.parameters()))}


def run(folder, source=batch, model=None, **changes):
    given = ARGUMENTS | {"validate": validate, "validate_every": 8} | changes
    return loop.train(model or toy(), loss, source, folder, {"what": "toy"}, **given)


def weights(model):
    return torch.cat([value.double().flatten() for value in model.state_dict().values()])


def in_a_process(folder, *options, **environment):
    """This file as a script: what a person's run is."""
    command = [sys.executable, *options, __file__, str(folder)]
    environment = os.environ | {"PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(command, env=environment, capture_output=True, text=True)


# -- it goes on as if nothing had happened ----------------------------------------------------------------------------


def test_killed_at_any_step_it_comes_to_the_same_bits(tmp_path):
    """Killed before the first checkpoint, and between two."""
    whole = run(tmp_path / "whole")
    for at in (3, 15):
        assert in_a_process(tmp_path / "killed", KILL_AT=str(at)).returncode == -signal.SIGKILL
    resumed = run(tmp_path / "killed")
    assert torch.equal(weights(whole.model), weights(resumed.model))
    for name in ("curve", "validation"):
        rows = read_curve(tmp_path / "whole", name)
        assert rows and rows == read_curve(tmp_path / "killed", name)
    assert [row["step"] for row in rows] == [8, 16, 24]
    states = [checkpoint.latest(tmp_path / name, loop.Place.here("cpu")) for name in ("whole", "killed")]
    a, b = (state["optimisers"][0]["state"] for state in states)
    assert a and all(torch.equal(a[k]["momentum"], b[k]["momentum"]) for k in a)
    assert torch.equal(*(torch.cat([v.flatten() for v in state["model"].values()]) for state in states))


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT"])
def test_asked_to_stop_it_saves_and_the_same_call_goes_on(tmp_path, how):
    result = in_a_process(tmp_path / "run", KILL_AT="9", KILL_BY=how)
    assert result.returncode and "The same command goes on from here" in result.stderr
    stopped = checkpoint.latest(tmp_path / "run", loop.Place.here("cpu"))["step"]
    assert stopped % ARGUMENTS["save_every"] and stopped < STEPS, "not at a checkpoint that was due anyway"
    assert torch.equal(weights(run(tmp_path / "run").model), weights(run(tmp_path / "whole").model))


def test_a_finished_run_is_not_trained_again_and_more_steps_go_on(tmp_path):
    first = run(tmp_path)
    again = run(tmp_path, source=None)  # no batch is asked for
    assert torch.equal(weights(first.model), weights(again.model)) and again.seconds == first.seconds
    assert [row["step"] for row in read_curve(tmp_path, "validation")] == [8, 16, 24]
    more = run(tmp_path, steps=STEPS + 8)
    assert more.step == STEPS + 8 and not torch.equal(weights(first.model), weights(more.model))
    assert [row["step"] for row in read_curve(tmp_path)] == list(range(2, STEPS + 9, 2))


def test_other_parameters_are_refused_with_what_differs_or_begin_anew(tmp_path):
    run(tmp_path, steps=6)
    with pytest.raises(ValueError, match=r"lr was 0.02 and is 0.01.*fresh = true"):
        run(tmp_path, steps=6, lr=0.01)
    with pytest.raises(ValueError, match="at step 6 already, steps = 4"):
        run(tmp_path, steps=4)
    anew = run(tmp_path, steps=6, lr=0.01, fresh=True)
    assert torch.equal(weights(anew.model), weights(run(tmp_path.with_name("other"), steps=6, lr=0.01).model))
    same = run(tmp_path, steps=6, lr=0.01, fresh=True, source=None)  # made as asked: kept
    assert torch.equal(weights(anew.model), weights(same.model))


def test_slow_steps_are_saved_by_the_clock(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "OVERDUE", -1.0)
    run(tmp_path, steps=4, validate=None, keep=9)
    assert [int(path.stem[-1]) for path in checkpoint.checkpoints(tmp_path)] == [4, 3, 2, 1]


def test_two_at_once_are_told_apart(tmp_path):
    with checkpoint.claim(tmp_path):
        result = in_a_process(tmp_path)
    assert "another run trains in" in result.stderr


# -- steps ------------------------------------------------------------------------------------------------------------


def test_what_is_not_finite_is_left_out_and_ends_the_run_when_it_lasts(tmp_path, capsys):
    def spoiled(step, samples):
        found = batch(step, samples)
        return found | {"y": found["y"] * float("nan")} if step in (4, 5) else found

    result = run(tmp_path / "some", source=spoiled)
    assert weights(result.model).isfinite().all() and "left out, 2 in a row" in capsys.readouterr().out
    curve = read_curve(tmp_path / "some")
    assert [row["step"] for row in curve[:3]] == [2, 4, 8] and np.isfinite([row["loss"] for row in curve]).all()
    with pytest.raises(FloatingPointError, match=r"no finite gradient in 10 steps.*lower lr"):
        run(tmp_path / "all", source=lambda step, n: batch(step, n) | {"y": torch.full((len(n), 1), float("inf"))})


def test_pieces_add_up_to_the_batch(tmp_path):
    one, four = (run(tmp_path / str(k), model=toy(dropout=0), accumulate=k) for k in (1, 4))
    assert (weights(one.model) - weights(four.model)).abs().max() < 1e-5
    curves = [[row["half"] for row in read_curve(tmp_path / str(k))] for k in (1, 4)]
    np.testing.assert_allclose(*curves, rtol=1e-4)
    with pytest.raises(ValueError, match="accumulate = 3"):
        run(tmp_path / "3", accumulate=3)


def test_two_processes_are_one_with_the_same_batch(tmp_path):
    result = in_a_process(tmp_path / "two", *LAUNCHER, NO_DROPOUT="1")
    assert result.returncode == 0, result.stderr
    one = run(tmp_path / "one", model=toy(dropout=0))
    two = checkpoint.latest(tmp_path / "two", loop.Place.here("cpu"))
    assert (weights(one.model) - torch.cat([v.double().flatten() for v in two["ema"].values()])).abs().max() < 1e-5
    a, b = ([row["loss"] for row in read_curve(tmp_path / name)] for name in ("one", "two"))
    np.testing.assert_allclose(a, b, rtol=1e-4)
    assert len(read_curve(tmp_path / "two", "validation")) == 3, "one of them writes"


@pytest.mark.slow
@pytest.mark.parametrize("optimiser", ["muon", "adamw"])
def test_shares_of_a_network_train_as_the_whole_one_does(tmp_path, optimiser):
    """FSDP2 in two processes, two pieces a batch: network, average and optimisers' states are those of one process."""
    result = in_a_process(tmp_path / "two", *LAUNCHER, TOWER="1", SHARDED="1", ACCUMULATE="2", OPTIMISER=optimiser)
    assert result.returncode == 0, result.stderr
    run(tmp_path / "one", model=tower(), optimiser=optimiser)
    one, two = (checkpoint.latest(tmp_path / name, loop.Place.here("cpu")) for name in ("one", "two"))
    assert all(one[name].keys() == two[name].keys() for name in ("model", "ema"))
    a, b = ([value for value in leaves(state) if torch.is_tensor(value)] for state in (one, two))
    assert len(a) == len(b) > 40 and all(type(value) is torch.Tensor for value in b)
    assert max((value.double() - w.double()).abs().max() for value, w in zip(a, b, strict=True)) < 1e-4
    curves = [[row["loss"] for row in read_curve(tmp_path / name)] for name in ("one", "two")]
    np.testing.assert_allclose(*curves, rtol=1e-3)
    checks = [[row["weight"] for row in read_curve(tmp_path / name, "validation")] for name in ("one", "two")]
    assert len(checks[1]) == 3
    np.testing.assert_allclose(*checks, rtol=1e-3)


@pytest.mark.slow
def test_it_goes_on_in_more_processes_or_fewer_and_deals_nothing_twice(tmp_path):
    """Two that share, stopped; one; two with a copy each, killed; two that share. The same samples as in one go."""
    sessions = [
        (LAUNCHER, {"SHARDED": "1", "KILL_AT": "5", "KILL_BY": "SIGTERM"}),
        ((), {"KILL_AT": "11", "KILL_BY": "SIGTERM"}),
        (LAUNCHER, {"KILL_AT": "16"}),
        (LAUNCHER, {"SHARDED": "1"}),
    ]
    dealt, begun = {}, 0
    for number, (launcher, environment) in enumerate(sessions):
        diary = tmp_path / f"diary_{number}"
        result = in_a_process(tmp_path / "run", *launcher, TOWER="1", DIARY=str(diary), **environment)
        assert (result.returncode == 0) == (number == 3), result.stderr
        state = checkpoint.latest(tmp_path / "run", loop.Place.here("cpu"))
        for line in diary.read_text().splitlines():
            step, *items = map(int, line.split())
            if begun <= step < state["step"]:  # what was made ahead or lost was not learned from
                dealt.setdefault(step, []).extend(items)
        begun = state["step"]
    assert begun == STEPS and sorted(dealt) == list(range(STEPS))
    for step, items in dealt.items():
        assert sorted(items) == sorted(loop.deal(range(4 * step, 4 * step + 4), ITEMS, seed=0))
    whole = run(tmp_path / "whole", model=tower())
    ema = torch.cat([value.double().flatten() for value in state["ema"].values()])
    assert (weights(whole.model) - ema).abs().max() < 1e-4
    curves = [[row["loss"] for row in read_curve(tmp_path / name)] for name in ("whole", "run")]
    np.testing.assert_allclose(*curves, rtol=1e-3)


def leaves(value) -> list:
    if isinstance(value, dict | list | tuple):
        return [leaf for part in (value.values() if isinstance(value, dict) else value) for leaf in leaves(part)]
    return [value]


def test_it_learns_and_the_average_follows(tmp_path):
    result = run(tmp_path, model=toy(dropout=0), steps=200, batch_size=32, ema=0.9, adam_lr=0.02, validate=None)
    curve = [row["loss"] for row in read_curve(tmp_path)]
    assert np.mean(curve[-20:]) < 0.2 * curve[0]
    state = checkpoint.latest(tmp_path, loop.Place.here("cpu"))
    model, ema = (torch.cat([v.flatten() for v in state[name].values()]) for name in ("model", "ema"))
    assert not torch.equal(model, ema) and torch.cosine_similarity(model, ema, 0) > 0.99
    assert not result.model.training and not any(w.requires_grad for w in result.model.parameters())


def test_each_weight_has_one_optimiser_and_only_matrices_decay():
    muon, adam = loop.optimisers(toy(), "muon", 1, 1, (0.9, 0.99), 1e-8, 0.3)
    assert [tuple(w.shape) for group in muon.param_groups for w in group["params"]] == [(8, 8), (8, 8)]
    assert [(tuple(w.shape), g["weight_decay"]) for g in adam.param_groups for w in g["params"]] == [
        ((1, 8), 0.3), ((8,), 0), ((8,), 0), ((1,), 0)
    ]  # fmt: skip
    (alone,) = loop.optimisers(toy(), "adamw", 1, 1, (0.9, 0.99), 1e-8, 0.3)
    assert sum(len(group["params"]) for group in alone.param_groups) == 6
    with pytest.raises(ValueError, match="'sgd'"):
        loop.optimisers(toy(), "sgd", 1, 1, (0.9, 0.99), 1e-8, 0.3)


def test_the_rate_rises_in_a_line_and_falls_as_a_cosine():
    rates = [loop.schedule(step, 110, 10, 0.1) for step in range(111)]
    assert rates[:10] == pytest.approx(np.arange(1, 11) / 10)
    assert rates[60] == pytest.approx(0.55) and rates[110] == pytest.approx(0.1)
    assert {loop.schedule(step, 110, 0, 1.0) for step in range(110)} == {1.0}


# -- batches ----------------------------------------------------------------------------------------------------------


def test_every_item_is_dealt_once_an_epoch_however_many_deal():
    dealt = loop.deal(range(30), 10, seed=3)
    assert all(sorted(dealt[k : k + 10]) == list(range(10)) for k in (0, 10, 20))
    assert dealt[:10] != dealt[10:20] != dealt[20:]
    assert dealt == [n for k in range(0, 30, 5) for n in loop.deal(range(k, k + 5), 10, seed=3)]
    assert dealt != loop.deal(range(30), 10, seed=4)


def test_the_first_batch_is_made_before_threads_race_for_the_second():
    told = []

    def make(step):
        told.append(step)
        np.sort(np.random.default_rng(step).random(1_000_000))  # others may run meanwhile
        told.append(step)

    assert len(list(loop.ahead(make, range(4), workers=3))) == 4 and told[:2] == [0, 0]


def test_batches_come_in_order_and_an_error_comes_to_light():
    assert list(loop.ahead(lambda step: step * step, range(50), workers=4)) == [step * step for step in range(50)]
    source = loop.ahead(lambda step: 1 // (3 - step), range(50), workers=2)
    with pytest.raises(ZeroDivisionError):
        list(source)


def test_the_curve_loses_what_will_be_repeated(tmp_path):
    run(tmp_path)
    rows = read_curve(tmp_path), read_curve(tmp_path, "validation")
    checkpoint.checkpoints(tmp_path)[0].unlink()  # killed after step 18
    with (tmp_path / "curve.csv").open("a") as file:
        file.write("26,0.1,0.1,0.1,0.1\r\n28,0.2")  # the last line cut short
    run(tmp_path)
    assert (read_curve(tmp_path), read_curve(tmp_path, "validation")) == rows


if __name__ == "__main__":
    asked = os.environ
    given = {"sharded": "SHARDED" in asked, "accumulate": int(asked.get("ACCUMULATE", 1))}
    given["optimiser"] = asked.get("OPTIMISER", "muon")
    model = tower() if "TOWER" in asked else toy(dropout=0 if "NO_DROPOUT" in asked else 0.2)
    with process():
        run(sys.argv[1], mortal, model, **given)
