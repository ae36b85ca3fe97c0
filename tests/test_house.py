"""The README's tree, the names that belong together, and the directions of imports, read from the files themselves."""

import ast
import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import trimesh
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lib import dataset, mesh, params, pool, score

ROOT = Path(__file__).parent.parent
LISTED = ("notebooks", "lib", "params", "outputs", "tests")  # folders whose files the README's tree names one by one
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MODULES = sorted(path.stem for path in (ROOT / "lib").glob("*.py") if path.stem != "__init__")
STAGES = [path.stem.partition("_")[2] for path in NOTEBOOKS]
BATCH = ("batch", "params", "engine", "kernel", "log")  # what runs an experiment
PAGES = (
    "page",
    "markup",
    "curves",
    "cards",
    "gallery",
    "export",
    "runs",
    "parcel",
    "tables",
)  # and what it leaves to be read
POOL = ("pool", "cluster", "guards", "worker", "attempt")
NOUNS = [name for name in MODULES if name not in [*STAGES, *POOL, "report", *BATCH, *PAGES]]
DRAWS = ("render", "picture")  # the only modules that may import pyvista


def tracked(*folders: str) -> list[str]:
    """Files that git has or would take: a new one counts before it is committed."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *folders]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [name for name in names if (ROOT / name).exists()]


def imports(tree: ast.Module, top: bool = False) -> set[str]:
    """Modules that code imports; `from lib import x` counts as lib.x. With top, only outside functions."""
    nodes = tree.body if top else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"lib.{alias.name}" for alias in node.names} if node.module == "lib" else {node.module}
    return found


def parsed(module: str) -> ast.Module:
    return ast.parse((ROOT / "lib" / f"{module}.py").read_text(encoding="utf-8"))


def ours(module: str) -> set[str]:
    return {name.split(".")[1] for name in imports(parsed(module)) if name.startswith("lib.")}


def source_cells(notebook: Path) -> list[dict]:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [cell | {"source": "".join(cell["source"])} for cell in cells]


# -- the tree ---------------------------------------------------------------------------------------------------------


def readme_tree() -> dict[str, str]:
    """path -> clause, from the block that starts with "notebooks/"; indented names are below the last folder."""
    block = re.search(r"```\n(notebooks/.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)[1]
    tree, folder = {}, ""
    for line in block.splitlines():
        name, _, clause = line.strip().partition("  ")
        if not line.startswith(" ") and name.endswith("/"):
            folder = name
            tree[name] = clause.strip()
        else:
            tree[(folder if line.startswith(" ") else "") + name] = clause.strip()
    return tree


def test_the_readme_names_every_file_and_no_other():
    tree = readme_tree()
    listed = {name for name in tree if not name.endswith("/")}
    wanted = {name for name in tracked() if name.split("/")[0] in LISTED or "/" not in name or name.startswith(".ci/")}
    wanted = {name for name in wanted if not name.startswith("outputs/") and not Path(name).name.startswith("__init__")}
    assert listed == wanted
    assert {name.rstrip("/") for name in tree if name.endswith("/")} <= {*LISTED, ".ci"}


def test_every_file_has_its_clause():
    for name, clause in readme_tree().items():
        assert len(clause) > 10, f"{name}: say in one clause what it is for"


# -- one word ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_its_test_and_opens_with_a_sentence(module):
    assert (ROOT / "tests" / f"test_{module}.py").exists()
    doc = ast.get_docstring(parsed(module))
    assert doc and doc.splitlines()[0].endswith((".", "?"))


def test_every_test_has_its_module():
    twins = {path.stem.partition("_")[2] for path in (ROOT / "tests").glob("*_*.py")}
    assert twins - {"house", "smoke", "browser", "lab"} <= set(MODULES)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_has_its_module_and_its_section(notebook):
    assert re.fullmatch(r"\d\d_[a-z_]+", notebook.stem)
    assert notebook.stem.partition("_")[2] in MODULES
    for experiment in ("smoke", "demo"):
        assert notebook.stem in yaml.safe_load((ROOT / "params" / f"{experiment}.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", sorted((ROOT / "params").glob("*.yaml")), ids=lambda path: path.stem)
def test_an_experiment_opens_with_its_question_cost_and_score(path):
    comment = "\n".join(re.findall(r"^#.*", path.read_text(encoding="utf-8").split("\n\n")[0], re.M))
    assert path.read_text(encoding="utf-8").startswith("#") and "?" in comment
    for word in ("Cost:", "Score:"):
        assert word in comment, f"{path}: its opening comment needs a line '# {word} ...'"


# -- directions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module):
    found = ours(module)
    if module in STAGES or module in NOUNS:
        assert found <= set(NOUNS), "stages and nouns import nouns only"
    elif module in POOL:
        nouns = {"claims", "clock", "dataset", "memory", "stop", "words"}
        assert found <= nouns | set(POOL) - {"pool"}, "the pool knows no stage"
    elif module in BATCH:
        assert found <= {"claims", "dataset", "report", "words", *BATCH, *PAGES}, "batch knows no stage"
    elif module in PAGES:
        nouns = {"claims", "dataset", "journal", "log", "mesh", "picture", "simplify"}
        assert found <= {*nouns, *PAGES}, "pages know no stage"
    else:
        assert found <= {*NOUNS, "pool"}


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_calls_its_own_stage(notebook):
    stage = notebook.stem.partition("_")[2]
    code = ast.parse("\n".join(cell["source"] for cell in source_cells(notebook) if cell["cell_type"] == "code"))
    found = {name.removeprefix("lib.") for name in imports(code) if name.startswith("lib")}
    assert found <= {stage, "dataset", "picture", "pool", "report"}
    texts = {node.value for node in ast.walk(code) if isinstance(node, ast.Constant)}
    assert notebook.stem in texts, "its ledger has its name"
    assert callable(getattr(importlib.import_module(f"lib.{stage}"), stage)), "the stage's function has its name too"


def test_no_room_is_called_after_nothing_and_nothing_registers_itself():
    assert not set(MODULES) & {"utils", "common", "helpers", "core", "base", "manager", "misc"}
    for module in MODULES:
        for node in ast.walk(parsed(module)):
            for decorator in getattr(node, "decorator_list", []):
                assert "regist" not in ast.unparse(decorator), f"{module}: {ast.unparse(decorator)}"


@pytest.mark.parametrize("module", MODULES)
def test_only_what_draws_imports_pyvista_and_only_when_it_draws(module):
    drawing = {"pyvista", "vtk", "vtkmodules"}
    assert not {name.split(".")[0] for name in imports(parsed(module), top=True)} & drawing
    if module not in DRAWS:
        assert not {name.split(".")[0] for name in imports(parsed(module))} & drawing


def test_what_runs_on_a_gpu_needs_no_numba():
    """numba follows numpy late: a machine that has PyTorch may have a numpy that is too new for it."""
    stages = ["features", "latents", "train_vae", "train_dit", "generate", "evaluate"]
    code = f"import sys; from lib import {', '.join(stages)}; print({{'numba', 'vtkmodules'}} & {{*sys.modules}})"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "set()\n"


def test_nothing_is_loaded_by_pickle():
    for name in tracked("lib", "tests"):
        text = (ROOT / name).read_text(encoding="utf-8") if name.endswith(".py") and "test_house" not in name else ""
        assert "allow_pickle=True" not in text and "weights_only=False" not in text, name
        assert not re.search(r"^\s*(import pickle|from pickle)|joblib\.load\(|read_pickle\(", text, re.M), name
        assert all("weights_only=True" in call for call in re.findall(r"torch\.load\(.*", text)), name


# -- notebooks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_a_short_bare_page(notebook):
    cells = source_cells(notebook)
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert cells[0]["source"].startswith("# ")
    assert 8 <= len(code) <= 14
    for cell in code:
        assert not cell["outputs"] and cell["execution_count"] is None
        lines = [line for line in cell["source"].splitlines() if line.strip()]
        parameters = "parameters" in cell["metadata"].get("tags", [])
        assert parameters or 1 <= len(lines) <= 5, cell["source"]
        loops = (ast.FunctionDef, ast.ClassDef, ast.For, ast.While, ast.Lambda)
        assert not any(isinstance(node, loops) for node in ast.walk(ast.parse(cell["source"]))), cell["source"]
    assert any("assert " in cell["source"] for cell in code[-1:]), "the last cell asserts the verdict"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_parameters_are_literals_with_a_comment_each(notebook):
    tagged = [cell for cell in source_cells(notebook) if "parameters" in cell["metadata"].get("tags", [])]
    assert len(tagged) == 1
    for node, line in zip(ast.parse(tagged[0]["source"]).body, tagged[0]["source"].splitlines(), strict=True):
        assert isinstance(node, ast.Assign) and len(node.targets) == 1
        ast.literal_eval(node.value)
        assert re.search(r"  # .{10,}", line), line


# -- set-up -----------------------------------------------------------------------------------------------------------


def requirements() -> dict[str, Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    every = project["dependencies"] + project["optional-dependencies"]["dev"]
    return {requirement.name: requirement for requirement in map(Requirement, every)}


def test_conda_and_pip_ask_for_the_same():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    assert environment[-1] == {"pip": ["-e .[dev]"]}
    conda = {requirement.name: requirement for requirement in map(Requirement, environment[:-1])}
    names = {"pytorch": "torch", "matplotlib-base": "matplotlib"}
    wanted = requirements()
    for name, requirement in conda.items():
        if name == "python":
            project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
            assert str(requirement.specifier) == ",".join(sorted(project["requires-python"].split(",")))
        elif name != "pip":
            assert requirement.specifier == wanted[names.get(name, name)].specifier, name
    by_pip = set(wanted) - {names.get(name, name) for name in conda}
    assert by_pip == {"embreex", "libigl"}


def test_constraints_pin_every_dependency_plainly():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines)
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9a-z.]*", line) for line in lines)
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    for name, requirement in requirements().items():
        assert requirement.specifier.contains(pins[canonicalize_name(name)]), name
    assert not {name for name in pins if name.startswith(("nvidia", "triton", "torchvision"))}


def test_make_help_tells_every_target():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = set(re.search(r"^\.PHONY: (.+)", text, re.M)[1].split())
    shown = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert {line.split()[1] for line in shown.splitlines()} == phony


def test_nothing_large_is_committed():
    for name in tracked():
        assert (ROOT / name).stat().st_size < 10 * 2**20, name


def test_paths_mean_the_same_in_jupyterlab_as_in_batch():
    code = "import os, lib; print(os.getcwd())"
    for folder in (ROOT, ROOT / "notebooks"):
        result = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
        assert result.stdout.strip() == str(ROOT)


@pytest.mark.parametrize(("user", "allowed"), [(0, True), (1000, False)])
def test_make_lab_opens_jupyterlab_for_root_too(tmp_path, user, allowed):
    (tmp_path / "id").write_text(f"#!/bin/sh\necho {user}\n")
    (tmp_path / "id").chmod(0o755)
    outer = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}  # make test's
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    asked = {"cwd": ROOT, "env": outer | path, "capture_output": True, "text": True, "check": True}
    told = subprocess.run(["make", "-n", "lab"], **asked).stdout.splitlines()[-1]
    assert "jupyter lab notebooks" in told and ("--allow-root" in told) == allowed


def test_the_readmes_links_lead_to_files():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert link in tracked(), f"README.md links to {link}, which git does not have"


# -- how to add to it -------------------------------------------------------------------------------------------------


def example(kind: str) -> str:
    """A block of CONTRIBUTING.md."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return re.search(rf"^```\w+ {kind}\n(.*?)^```", text, re.S | re.M)[1]


def test_the_contributed_stage_runs(tmp_path, monkeypatch):
    (tmp_path / "volume.py").write_text(example("stage"), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    item = dataset.Item("box", "", "", str(tmp_path / "tree"), 64)
    box = trimesh.creation.box((2, 1, 0.5))
    with item.writing("_normalized.obj") as path:
        mesh.write(path, box.vertices, box.faces)
    record = {"version": 1, "parameters": {}, "inputs": {}, "facts": {}, "outputs": dict(item.written)}
    dataset.write_facts(item, {"01_watertight": record})
    names = {"pool": pool, "volume": importlib.import_module("volume").volume, "items": [item], "run": tmp_path / "run"}
    for status in ("done", "kept"):
        exec(example("call"), names)
        assert list(names["ledger"]["status"]) == [status] and names["ledger"]["volume"][0] == pytest.approx(0.5)
    assert json.loads(item.path("_volume.json").read_text()) == pytest.approx(0.5)


def test_the_contributed_experiment_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    path = tmp_path / "mine.yaml"
    path.write_text(example("experiment"), encoding="utf-8")
    run, sections = params.resolve(path, [])
    assert list(sections) == ["07_generate", "08_evaluate"] and Path(run).name == "mine"
    assert sections["07_generate"]["parameters"]["guidance"] == 4.0


def test_the_contributed_metric_measures():
    names = vars(score).copy()
    exec(example("metric") + example("test"), names)
    names["test_the_worst_point_counts"]()
