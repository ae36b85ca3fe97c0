"""A network's weights from wherever they are: a folder of ours, a checkpoint, the hub. Reading them never runs code."""

import json
import re
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lib.dataset import write_text, writing
from lib.words import first_line

MODEL, CONFIG = "model.safetensors", "config.json"
PICKLES = (".ckpt", ".pt", ".pth", ".bin")


class Stranger:
    """Stands in for a class that a checkpoint names: holds nothing, does nothing."""

    def __init__(self, *_, **__):
        pass

    def __setstate__(self, _):
        pass


def write(folder: str | Path, state: dict[str, torch.Tensor], config: dict) -> None:
    """Both files of a network, each whole or not there; the config last, for who has it has all."""
    folder = Path(folder)
    with writing(folder / MODEL) as beside:
        beside.touch()
        mode = beside.stat().st_mode
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, beside)
        beside.chmod(mode)  # as any other file's: safetensors makes files that nobody else may read
    write_text(folder / CONFIG, json.dumps(config, indent=1))


def read(where: str | Path, strangers: bool = False) -> tuple[dict[str, torch.Tensor], dict | None]:
    """Tensors by name, and the config where there is one."""
    path = file_of(where)
    config = path.parent / CONFIG
    tensors = read_pickle_free(path) if path.suffix == ".safetensors" else read_checkpoint(path, strangers)
    if not tensors:
        raise ValueError(f"{path} holds no tensor. Wanted a checkpoint: {MODEL} or one of {' '.join(PICKLES)}")
    return tensors, read_config(config) if path.name == MODEL and config.exists() else None


def inside(folder: Path) -> Path:
    """The one file of a folder that holds weights."""
    if (folder / MODEL).exists():
        return folder / MODEL
    found = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", *PICKLES))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "no file of weights"
        raise ValueError(f"{folder} has {names}. Wanted {MODEL} (with {CONFIG}); or give the path of one file.")
    return found[0]


def file_of(where: str | Path) -> Path:
    """The file that holds the numbers."""
    path = Path(where).expanduser()
    path = path if path.exists() else download(str(where))
    return inside(path) if path.is_dir() else path


def read_config(path: Path) -> dict:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} is no config: wanted a mapping of names to values")
    return config


def read_pickle_free(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {error}") from None


def read_checkpoint(path: Path, strangers: bool) -> dict[str, torch.Tensor]:
    """The tensors of a file that torch.save wrote, by themselves or under "state_dict"; nothing else is looked at."""
    if path.suffix not in PICKLES:
        raise ValueError(f"{path}: weights are read from .safetensors {' '.join(PICKLES)}")
    foreign = strange_names(path)
    if foreign and not strangers:
        raise ValueError(
            f"{path} names classes besides its tensors: {', '.join(foreign)}. They could run code, so it is not read. "
            "If you trust where it comes from, load it with strangers=True: empty classes stand in for these names. "
            "Or save its state_dict as safetensors where those packages are installed."
        )
    stand_ins = [(type(name.rpartition(".")[2], (Stranger,), {}), name) for name in foreign]
    try:
        with torch.serialization.safe_globals(stand_ins):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of any kind, as is what may lie in the file
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        why = f"it asks for {refused[1]}, which is refused" if refused else reason(error)
        raise ValueError(f"{path} is damaged or no checkpoint: {why}") from None
    found = found.get("state_dict", found) if isinstance(found, dict) else {}
    return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}


def strange_names(path: Path) -> list[str]:
    """Classes and functions that a checkpoint asks for and that are no part of a tensor. Nothing is executed."""
    if not zipfile.is_zipfile(path):  # the format before torch 1.6, of which torch cannot tell; it refuses them all
        return []
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception as error:
        raise ValueError(f"{path} is damaged or no checkpoint: {first_line(error)}") from None


def compare(where, state: dict[str, torch.Tensor], wanted: dict[str, torch.Size]) -> None:
    """Every tensor that is wanted, in its shape, and no other; or an error that says which."""
    wrong = [f"missing {name}" for name in wanted if name not in state]
    wrong += [f"unexpected {name}" for name in state if name not in wanted]
    wrong += [
        f"{name} is {tuple(state[name].shape)}, wanted {tuple(shape)}"
        for name, shape in wanted.items()
        if name in state and state[name].shape != shape
    ]
    if wrong:
        more = f"\n  and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise ValueError(f"{where} does not fit the network:\n  " + "\n  ".join(wrong[:8]) + more)


def download(name: str) -> Path:
    """A file of weights from the Hugging Face hub, by "owner/model" or "owner/model/file"."""
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:/([\w./-]+))?", name)
    if not match:
        raise ValueError(f"{name} is not there. Wanted a folder, a checkpoint, or the id of a model on the hub.")
    from huggingface_hub import HfApi, hf_hub_download

    model, file = match.groups()
    try:
        files = [file] if file else choose(model, HfApi().list_repo_files(model))
        return Path([hf_hub_download(model, file) for file in files][-1])
    except Exception as error:  # no network, no such model, a login that is asked for
        raise ValueError(
            f"{name} is no path here, and the hub does not give it ({first_line(error)}). Download it where there is a "
            f"network, with `hf download {model}`, and give the path."
        ) from None


def choose(model: str, files: list[str]) -> list[str]:
    """Of a model's files, those to download, the weights last."""
    if MODEL in files:
        return [*([CONFIG] if CONFIG in files else []), MODEL]
    weights = [file for file in files if file.endswith((".safetensors", *PICKLES))]
    if len(weights) != 1:
        raise ValueError(f"{model} has {', '.join(weights) or 'no weights'}; give one as {model}/file")
    return weights


def reason(error: Exception) -> str:
    """What torch says of a checkpoint, without its advice to trust it."""
    told = re.search(r"UnpicklingError: |WeightsUnpickler error: ", str(error))
    return first_line(str(error)[told.end() :]) if told else first_line(error)
