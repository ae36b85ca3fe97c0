"""What is divided among processes and whole again; training with it is tests/test_loop.py's."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from lib import fsdp
from lib.place import Place, process

WEIGHT = torch.arange(15.0).reshape(5, 3)  # five rows for two processes


def test_what_is_not_divided_stays_as_it_is():
    state = {"a": [WEIGHT, 3], "b": ("text", None)}
    found = fsdp.whole(state)
    assert torch.equal(found["a"][0], WEIGHT) and found["a"][1] == 3 and found["b"] == ("text", None)
    assert fsdp.local([WEIGHT])[0] is WEIGHT and fsdp.gathered([WEIGHT])[0] is WEIGHT
    assert fsdp.divided([WEIGHT], [WEIGHT])[0] is WEIGHT
    model = nn.Linear(3, 5)
    fsdp.load(model, {"weight": WEIGHT, "bias": torch.ones(5)})
    assert torch.equal(model.weight, WEIGHT)


def test_two_processes_hold_a_share_each_and_only_who_keeps_gets_the_whole():
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, __file__]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def in_one_of_two() -> None:
    place = Place.here("cpu")
    model = nn.Sequential(nn.Linear(3, 5))
    fsdp.share(model, place)
    fsdp.load(model, {"0.weight": WEIGHT, "0.bias": torch.arange(5.0)})
    rows = WEIGHT[:3] if place.first else WEIGHT[3:]
    assert torch.equal(fsdp.local([model[0].weight])[0], rows)
    assert torch.equal(fsdp.gathered([model[0].weight])[0], WEIGHT)
    assert torch.equal(fsdp.divided([2 * WEIGHT], [model[0].weight])[0], 2 * rows)
    state = fsdp.whole(model.state_dict(), keep=place.first)
    assert torch.equal(state["0.weight"], WEIGHT) if place.first else state["0.weight"] is None
    adam = torch.optim.AdamW(model.parameters(), 0.1)
    model(torch.ones(1, 3)).sum().backward()
    adam.step()
    saved = fsdp.whole(adam.state_dict())
    assert saved["state"][0]["exp_avg"].shape == WEIGHT.shape
    adam.load_state_dict(fsdp.spread(saved, adam))
    again = fsdp.whole(adam.state_dict())
    assert all(torch.equal(saved["state"][0][name], again["state"][0][name]) for name in saved["state"][0])


if __name__ == "__main__":
    with process():
        in_one_of_two()
