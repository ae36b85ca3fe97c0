"""The smoke experiment as a person runs it: once, again, with a bad mesh among the good, and killed twenty times."""

import contextlib
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import yaml
from test_pool import files, read_ledger

from lib import dataset, shapes

ROOT = Path(__file__).parent.parent
SECTIONS = [name for name in yaml.safe_load((ROOT / "params" / "smoke.yaml").read_text()) if name[0].isdigit()]


def command(folder: Path, *options: str, tree: str = "tree") -> list[str]:
    places = {"meshes": folder / "meshes", "dataset": folder / tree, "run": folder / f"run_{tree}"}
    given = [f"-p{name}={path}" for name, path in places.items()]
    return [sys.executable, "-m", "lib.batch", "params/smoke.yaml", *given, *options]


def test_it_runs_from_meshes_to_a_page_and_again_and_says_what_was_bad(tmp_path):
    shapes.make(tmp_path / "meshes", 3)
    first = subprocess.run(command(tmp_path), cwd=ROOT, capture_output=True, text=True)
    assert first.returncode == 0, first.stdout + first.stderr
    run = tmp_path / "run_tree"
    assert first.stdout.splitlines()[-1] == (run / "index.html").as_uri()
    for name in SECTIONS:
        log = nbformat.read(run / f"{name}.ipynb", 4)
        assert log.metadata.papermill["status"] == "completed"
        assert "widgets" not in log.metadata
        assert (run / f"{name}.ipynb").stat().st_size < 2_000_000
        assert any("image/png" in output.get("data", {}) for cell in log.cells for output in cell.get("outputs", []))
    assert set(read_ledger(run / "01_watertight.csv").status) == {"done"}

    (tmp_path / "meshes" / "broken.stl").write_text("solid no more")
    options = "--only", "01_watertight", "-p01_watertight.limit=0"
    second = subprocess.run(command(tmp_path, *options), cwd=ROOT, capture_output=True, text=True)
    assert second.returncode == 3, second.stdout + second.stderr
    ledger = read_ledger(run / "01_watertight.csv")
    assert sorted(ledger.status) == ["kept", "kept", "kept", "quarantined"]
    assert "broken_" in (run / "index.html").read_text()


@pytest.mark.slow
def test_a_finer_resolution_with_more_tokens_goes_on_from_a_coarser_one(tmp_path):
    shapes.make(tmp_path / "meshes", 4)

    def street(name: str, *options: str) -> subprocess.CompletedProcess:
        folder = f"-prun={tmp_path / name}"
        words = command(tmp_path, folder, *options)
        return subprocess.run(words, cwd=ROOT, capture_output=True, text=True)

    stages = [name for name in SECTIONS if name != "07_generate"]
    coarse = street("coarse", "--only", *stages)
    assert coarse.returncode == 0, coarse.stdout + coarse.stderr
    start = {name: f"-p{name}.start={tmp_path / 'coarse' / name}" for name in ("11_train_vae", "06_train_dit")}
    more = ["-presolution=64", "-p11_train_vae.tokens=[16, 32]", "-p05_latents.tokens=[16, 32]"]
    fine = street("fine", *more, *start.values(), "-p06_train_dit.tokens=32", "--only", *stages)
    assert fine.returncode == 0, fine.stdout + fine.stderr
    began = json.loads((tmp_path / "fine" / "11_train_vae" / "config.json").read_text())["ancestors"]
    assert began == [dataset.sha256(tmp_path / "coarse" / "11_train_vae" / "model.safetensors")]
    made = [path.name for path in (tmp_path / "tree").glob("*/*/*_latent_sample*.npy")]
    assert {name.split("_")[0] for name in made} == {"32", "64"} and len(made) == 4 * 3  # of 64 in two lengths

    other = street("other", *more, start["06_train_dit"], "--only", "11_train_vae", "05_latents", "06_train_dit")
    assert other.returncode == 1 and "was trained on latents of another network" in other.stdout


MADE = {  # of each stage that works on items, what a person might delete
    "01_watertight": "_normalized.obj",
    "02_sharp_sample": "_sample_points.npz",
    "03_render": "_views.json",
    "04_features": "_view_000_dinov2_features.npz",
}


def facts(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder / "tree").glob("*/*/[!.]*_facts.json")}


@pytest.mark.slow
def test_killed_twenty_times_its_tree_is_that_of_an_undisturbed_run(tmp_path):
    shapes.make(tmp_path / "meshes", 24)
    options = ("-plimit=0", "-presolution=64", "--only")
    subprocess.run(command(tmp_path, *options, *MADE, tree="undisturbed"), cwd=ROOT, check=True, capture_output=True)
    moment, kills = random.Random(0), 0
    for name, suffix in MADE.items():
        for _ in range(5):
            before = facts(tmp_path)
            process = subprocess.Popen(command(tmp_path, *options, name), cwd=ROOT, stdout=subprocess.DEVNULL)
            while process.poll() is None and facts(tmp_path) == before:  # until it has changed something
                time.sleep(0.05)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5 * moment.random())
            kills += process.poll() is None
            process.kill()
            process.wait()
            done = sorted((tmp_path / "tree").glob(f"*/*/*{suffix}"))
            for path in moment.sample(done, len(done) // 2):  # else the last kills find nothing to disturb
                path.unlink()
        subprocess.run(command(tmp_path, *options, name), cwd=ROOT, check=True, capture_output=True)
    assert kills >= 15
    assert files(tmp_path / "tree") == files(tmp_path / "undisturbed")
