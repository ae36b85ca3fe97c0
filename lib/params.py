"""What each notebook of an experiment gets: its params file and overrides, checked against the notebook's defaults."""

import ast
import contextlib
import difflib
import io
import math
import re
import tokenize
from pathlib import Path
from typing import NamedTuple

import nbformat
import yaml

from lib.words import first_line

KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a mapping",
    type(None): "any YAML",
}


class Parameter(NamedTuple):
    default: object
    help: str


class Quoted(str):
    """A text that stands in quotes, and so is no number."""


class Texts(yaml.BaseLoader):
    """YAML with every value as its text: YAML alone makes 83 of 00123, true of yes and text of 1e-3."""

    def construct_scalar(self, node):
        return Quoted(node.value) if node.style in ("'", '"') else node.value

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        if twice := {key for key in keys if keys.count(key) > 1}:
            raise yaml.constructor.ConstructorError(problem=f"{twice} twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


def resolve(params: Path, overrides: list[str]) -> tuple[Path, dict[str, dict]]:
    """The run's folder, and what each notebook gets: {section: {notebook, parameters, given, differs}}."""
    shared, own = read_params(params)
    notebooks = {name: find_notebook(name, params) for name in own}
    known = {name: read_parameters(notebook) for name, notebook in notebooks.items()}
    given = {name: {} for name in own}

    def give(key: str, text, where: str, names: list[str]) -> None:
        holders = [name for name in names if key in known[name]]
        if key == "run" and len(names) < len(own):
            raise ValueError(f"{where}: run is the folder of the whole run. Put it before the sections.")
        if not holders:
            nearest = suggest(key, {key for name in names for key in known[name]})
            raise ValueError("\n".join([f"{where}: no parameter is called {key!r}. {nearest}", *map(explain, names)]))
        for name in holders:
            try:
                given[name][key] = read_value(text, known[name][key].default)
            except ValueError as error:
                raise ValueError(f"{where}: {key} {error}\n{explain(name)}") from None

    def explain(name: str) -> str:
        lines = [f"    {key} = {default!r}  # {help}" for key, (default, help) in known[name].items()]
        return "\n".join([f"{notebooks[name]} takes:", *(lines or ["    nothing"])])

    for key, text in shared.items():
        give(key, text, str(params), list(own))
    for name, values in own.items():
        for key, text in values.items():
            give(key, text, f"{params}, {name}", [name])
    for override in sorted(overrides, key=lambda text: "." in text.partition("=")[0]):  # what names a section wins
        target, equals, text = override.partition("=")
        *section, key = target.rsplit(".", 1)
        if not equals:
            raise ValueError(f"-p {override}: wanted name=value or section.name=value")
        give(key, text, f"-p {override}", choose(section, own))

    folders = {values["run"] for values in given.values() if "run" in values}
    run = Path(folders.pop() if folders else Path("outputs", params.stem))
    sections = {}
    for name, parameters in known.items():
        if "run" in parameters:
            given[name]["run"] = str(run)
        defaults = {key: parameter.default for key, parameter in parameters.items()}
        differs = {key: value for key, value in given[name].items() if value != defaults[key] and key != "run"}
        sections[name] = {
            "notebook": str(notebooks[name]),
            "parameters": defaults | given[name],
            "given": given[name],
            "differs": {key: {"value": differs[key], **parameters[key]._asdict()} for key in differs},
        }
    return run, sections


def read_params(path: Path) -> tuple[dict, dict[str, dict]]:
    """A params file as its shared keys and its sections, every value still a text."""
    if not path.is_file():
        raise ValueError(f"{path} is not there. {suggest(path.name, {p.name for p in path.parent.glob('*.yaml')})}")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Texts) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: wanted `name: value` lines and sections, but a {type(content).__name__} came")
    shared, sections = {}, {}
    for key, value in content.items():
        if isinstance(value, dict) or re.match(r"\d\d_", key):
            sections[key] = value or {}
        elif sections:
            raise ValueError(f"{path}: {key} follows a section. Indent it, or move it before the first section.")
        else:
            shared[key] = value
    if not sections:
        raise ValueError(f"{path} has no section, such as `01_watertight:`, so there is no notebook to run")
    if wrong := [name for name, values in sections.items() if not isinstance(values, dict)]:
        raise ValueError(f"{path}: section {wrong[0]} wants indented `name: value` lines")
    return shared, sections


def find_notebook(name: str, params: Path) -> Path:
    notebook = Path("notebooks", f"{name}.ipynb")
    if not notebook.is_file():
        there = {path.stem for path in Path("notebooks").glob("*.ipynb")}
        raise ValueError(f"{params}: there is no {notebook} in {Path.cwd()}. {suggest(name, there)}")
    return notebook


def read_parameters(notebook: Path) -> dict[str, Parameter]:
    """Defaults and help of a notebook, from its cell tagged `parameters`: literals only, one comment each."""
    try:
        cells = nbformat.read(notebook, 4).cells
    except Exception as error:
        raise ValueError(f"{notebook} is no notebook: {first_line(error)}") from None
    source = "\n".join(cell.source for cell in cells if "parameters" in cell.metadata.get("tags", []))
    comments, parameters = {}, {}
    try:
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        comments = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
        for line in ast.parse(source).body:
            (target,) = line.targets
            help = comments.get(line.lineno) or comments.get(line.end_lineno, "")
            parameters[target.id] = Parameter(ast.literal_eval(line.value), help)
            if type(parameters[target.id].default) not in (*KINDS, tuple):
                raise ValueError
    except (SyntaxError, tokenize.TokenError, AttributeError, ValueError):
        wanted = "the cell tagged `parameters` may only have lines like `name = literal  # comment`"
        raise ValueError(f"{notebook}: {wanted}, but this came:\n{source}") from None
    return parameters


def read_value(text, default):
    """What a text of the params file or of -p stands for, in the type of the notebook's default.

    Where the default is None there is no type: any YAML goes.
    """
    kind = list if isinstance(default, tuple) else type(default)
    with contextlib.suppress(ValueError, yaml.YAMLError):
        if kind in (list, dict, type(None)):
            value = yaml.load(text, Texts) if type(text) is str else text  # -p gives one text
            if kind is list and isinstance(value, list):
                like = max(default, key=lambda element: isinstance(element, float), default=None)  # [1, 0.5] are floats
                return [read_value(element, like) for element in value]
            if kind is type(None) or (kind is dict and isinstance(value, dict)):
                return untyped(value)
        elif kind is str and isinstance(text, str) and (text or not default):  # an empty folder is a slip of the hand
            return str(text)
        elif kind is bool and type(text) is str and isinstance(yaml.safe_load(text), bool):
            return yaml.safe_load(text)
        elif kind in (int, float) and type(text) is str and math.isfinite(float(text)):
            return kind(text)
    raise ValueError(f"wants {KINDS[kind]}, like {default!r}, but {text!r} came")


def untyped(text):
    """A value in the type that YAML gives it, if JSON knows the type."""
    if isinstance(text, dict):
        return {key: untyped(value) for key, value in text.items()}
    if isinstance(text, list):
        return [untyped(element) for element in text]
    value = str(text) if isinstance(text, Quoted) else yaml.safe_load(text or "")
    return value if isinstance(value, (str, int, float, type(None))) else str(text)  # a date stays text


def choose(names: list[str], sections) -> list[str]:
    """Those names, which must be sections, or all sections if there are none."""
    for name in names:
        if name not in sections:
            raise ValueError(f"no section is called {name!r}. {suggest(name, sections)}")
    return [name for name in sections if name in names or not names]


def suggest(name: str, names) -> str:
    nearest = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"Did you mean {' or '.join(nearest)}?" if nearest else f"There is {', '.join(sorted(names)) or 'none'}."
