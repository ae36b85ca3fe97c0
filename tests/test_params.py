from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from lib import params

ROOT = Path(__file__).parent.parent

PARAMETERS = """
# where things are
meshes = "data/meshes"  # folder of meshes
resolution = 256  # grid cells across the box
rate = 1e-3  # step of the optimiser
fast = False  # skip the slow parts
sizes = [64, 128]  # of the two grids
blend = [0.5, 1]  # weights
words = [
    "a",  # not the help
]  # some texts
offset = -1  # may be negative
anything = None  # any YAML
table = {"a": 1}  # a mapping
run = "outputs/notebook"  # folder of the ledger
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A repo with two notebooks, as the working directory."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "params").mkdir()
    monkeypatch.chdir(tmp_path)
    write_notebook("01_watertight", PARAMETERS)
    write_notebook("02_sharp_sample", 'points = 32  # how many\nseed = 0  # of the points\nrun = "x"  # folder')
    return tmp_path


def write_notebook(name, source, tag="parameters"):
    cell = new_code_cell(source, metadata={"tags": [tag]})
    nbformat.write(new_notebook(cells=[cell, new_code_cell("1")]), f"notebooks/{name}.ipynb")


def resolve(text, *overrides):
    Path("params/demo.yaml").write_text(text, encoding="utf-8")
    return params.resolve(Path("params/demo.yaml"), list(overrides))


def first(text, *overrides):
    """What the first notebook is given."""
    return resolve(f"01_watertight:\n  {text}\n", *overrides)[1]["01_watertight"]["given"]


def test_defaults_and_help_come_from_the_tagged_cell(place):
    known = params.read_parameters(place / "notebooks/01_watertight.ipynb")
    assert list(known)[:3] == ["meshes", "resolution", "rate"]
    assert known["resolution"] == (256, "grid cells across the box")
    assert known["offset"].default == -1 and known["words"] == (["a"], "some texts")
    write_notebook("03_render", "a = 1", tag="other")
    assert params.read_parameters(place / "notebooks/03_render.ipynb") == {}


@pytest.mark.parametrize(
    "line", ["a = b", "a = open('x')", "import os", "a, b = 1, 2", "a = ", "a += 1", "for", "a = {1}", "a = b'x'"]
)
def test_a_parameters_cell_holds_only_literals(place, line):
    write_notebook("03_render", f"x = 1\n{line}")
    with pytest.raises(ValueError, match=r"03_render\.ipynb.*literal"):
        params.read_parameters(place / "notebooks/03_render.ipynb")


def test_a_damaged_notebook_is_named(place):
    (place / "notebooks/03_render.ipynb").write_text("<html>")
    with pytest.raises(ValueError, match=r"03_render\.ipynb is no notebook"):
        resolve("03_render:")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("meshes: 00123", "00123"),
        ("meshes: yes", "yes"),
        ("meshes: 1e3", "1e3"),
        ("meshes: 2024-01-01", "2024-01-01"),
        ("meshes: null", "null"),
        ("meshes: 'a: b'", "a: b"),
        ("resolution: 64", 64),
        ("resolution: 010", 10),
        ("resolution: -3", -3),
        ("rate: 1e-4", 1e-4),
        ("rate: 3", 3.0),
        ("fast: true", True),
        ("fast: off", False),
        ("sizes: [1, 2, 3]", [1, 2, 3]),
        ("sizes: []", []),
        ("blend: [1, 0.25]", [1.0, 0.25]),
        ("words: [007, no]", ["007", "no"]),
        ("anything: 3", 3),
        ("anything: '3'", "3"),
        ("anything: 2024-01-01", "2024-01-01"),
        ("anything: [1, a]", [1, "a"]),
        ("anything: null", None),
        ("anything: ", None),
        ("table: {b: 2}", {"b": 2}),
    ],
)
def test_the_default_decides_what_a_text_means(place, text, value):
    key, _, raw = text.partition(": ")
    found = first(text)[key]
    assert found == value and type(found) is type(value)
    if "'" not in text:  # on the command line the shell takes the quotes
        found = first("fast: no", f"{key}={raw}")[key]
        assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        "resolution: high",
        "resolution: 256.0",
        "resolution: true",
        "resolution: '256'",
        "resolution: [256]",
        "resolution: 0x10",
        "resolution: 1:30",
        "resolution:",
        "rate: fast",
        "rate: true",
        "rate: nan",
        "rate: inf",
        "meshes:",
        "meshes: ''",
        "fast: 1",
        "fast: 'true'",
        "meshes: [a]",
        "meshes: {a: b}",
        "sizes: 3",
        "sizes: [1, a]",
        "sizes: [1, 0.5]",
        "sizes: {a: 1}",
        "table: 3",
    ],
)
def test_a_wrong_type_says_what_came_and_what_was_wanted(place, text):
    key = text.partition(":")[0]
    with pytest.raises(ValueError) as error:
        first(text)
    message = str(error.value)
    assert f"params/demo.yaml, 01_watertight: {key} wants" in message and "came" in message
    assert "notebooks/01_watertight.ipynb takes:" in message
    assert "resolution = 256  # grid cells across the box" in message


def test_shared_keys_go_to_whoever_has_them_and_sections_win(place):
    run, sections = resolve("resolution: 64\nseed: 7\n02_sharp_sample:\n01_watertight:\n  resolution: 32\n")
    assert list(sections) == ["02_sharp_sample", "01_watertight"]  # in the order of the file
    assert str(run) == "outputs/demo"
    assert sections["02_sharp_sample"]["given"] == {"seed": 7, "run": "outputs/demo"}
    assert sections["02_sharp_sample"]["parameters"] == {"points": 32, "seed": 7, "run": "outputs/demo"}
    assert sections["01_watertight"]["given"] == {"resolution": 32, "run": "outputs/demo"}
    assert sections["01_watertight"]["differs"] == {
        "resolution": {"value": 32, "default": 256, "help": "grid cells across the box"}
    }


def test_overrides_win_and_the_one_that_names_a_section_most(place):
    text = "resolution: 64\n01_watertight:\n  resolution: 32\n  rate: 1\n"
    assert first("resolution: 32", "resolution=16")["resolution"] == 16
    _, sections = resolve(text, "01_watertight.resolution=8", "resolution=16", "meshes=a=b")
    assert sections["01_watertight"]["given"]["resolution"] == 8
    assert sections["01_watertight"]["given"]["meshes"] == "a=b"


def test_the_runs_folder_can_be_chosen_for_all_but_not_for_one(place):
    both = "01_watertight:\n02_sharp_sample:\n"
    run, sections = resolve(both, "run=/elsewhere/{a} b")
    assert str(run) == "/elsewhere/{a} b"
    assert {section["given"]["run"] for section in sections.values()} == {str(run)}
    assert str(resolve(f"run: there\n{both}")[0]) == "there"
    with pytest.raises(ValueError, match="whole run"):
        resolve("01_watertight:\n  run: here\n02_sharp_sample:\n")
    with pytest.raises(ValueError, match="whole run"):
        resolve(both, "01_watertight.run=here")


@pytest.mark.parametrize(
    ("text", "overrides", "words"),
    [
        ("01_watertite:\n", [], ["notebooks/01_watertite.ipynb", "Did you mean 01_watertight?"]),
        ("watertight: {resolution: 3}\n", [], ["Did you mean 01_watertight?"]),
        ("01_watertight:\n  resolutoin: 3\n", [], ["'resolutoin'", "Did you mean resolution?", "# grid cells"]),
        ("resolutoin: 3\n01_watertight:\n", [], ["'resolutoin'", "Did you mean resolution?", "# grid cells"]),
        ("01_watertight:\n", ["resolutoin=3"], ["-p resolutoin=3", "Did you mean resolution?", "# grid cells"]),
        ("01_watertight:\n", ["01_watertigth.rate=3"], ["'01_watertigth'", "Did you mean 01_watertight?"]),
        ("01_watertight:\n", ["02_sharp_sample.points=3"], ["no section is called '02_sharp_sample'"]),
        ("01_watertight:\n", ["resolution"], ["wanted name=value"]),
        ("01_watertight:\n", ["sizes=[1,"], ["sizes wants a list, like [64, 128], but '[1,' came"]),
        ("01_watertight:\n", ["fast=%"], ["fast wants true or false, like False, but '%' came"]),
        ("01_watertight:\n", ["anything=@"], ["anything wants any YAML"]),
        ("01_watertight:\nresolution: 3\n", [], ["resolution follows a section"]),
        ("01_watertight: 3\n", [], ["01_watertight wants indented"]),
        ("01_watertight:\n01_watertight:\n", [], ["01_watertight", "twice"]),
        ("01_watertight:\n  rate: 1\n  rate: 2\n", [], ["rate", "twice"]),
        ("resolution: 3\n", [], ["no section"]),
        ("- a\n", [], ["a list came"]),
        ("", [], ["no section"]),
        ("a: [\n", [], ["no YAML"]),
    ],
)
def test_mistakes_are_refused_with_the_nearest_names(place, text, overrides, words):
    with pytest.raises(ValueError) as error:
        resolve(text, *overrides)
    assert "params/demo.yaml" in str(error.value) or overrides
    for word in words:
        assert word in str(error.value)


def test_a_missing_params_file_is_named_with_its_neighbours(place):
    (place / "params/smoke.yaml").write_text("")
    with pytest.raises(ValueError, match=r"params/smok\.yaml is not there\. Did you mean smoke\.yaml\?"):
        params.resolve((place / "params/smok.yaml").relative_to(place), [])


def test_only_picks_sections_in_the_files_order():
    sections = {"01_a": {}, "02_b": {}, "03_c": {}}
    assert params.choose([], sections) == ["01_a", "02_b", "03_c"]
    assert params.choose(["03_c", "01_a"], sections) == ["01_a", "03_c"]
    with pytest.raises(ValueError, match="Did you mean"):
        params.choose(["02_bb"], sections)


@pytest.mark.parametrize("path", sorted((ROOT / "params").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_experiment_names_only_what_its_notebooks_have(path):
    run, sections = params.resolve(path, [])
    assert run.name == path.stem and "07_generate" in sections
