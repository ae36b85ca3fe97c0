import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lib.place import Place


def test_alone_without_torchrun(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert Place.here("auto").on_gpu == torch.cuda.is_available()
    place = Place.here("cpu")
    assert place.first and place.world == 1 and not place.on_gpu and place.peak_gib() == 0
    assert place.any(True, False) == [True, False]
    assert place.mean({"loss": 6.0, "half": 3.0, "n": 4}) == {"loss": 1.5, "half": 0.75}
    place.wait()


LIFE = """
import atexit
from lib.place import process

class Last:
    def __del__(self):
        print("an interpreter ended")

last = Last()
atexit.register(print, "what was left to do is done")
with process():
    print("work")
    {end}
print("after it")
"""


@pytest.mark.parametrize(("end", "code"), [("pass", 0), ("int('three')", 1), ("raise KeyboardInterrupt", 1)])
def test_one_of_several_ends_without_the_interpreters_end_in_which_threads_of_gloo_abort(end, code):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", LIFE.format(end=end)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == code, result.stderr
    assert result.stdout == "work\nwhat was left to do is done\n"
    assert ("Traceback" in result.stderr) == (code != 0)
