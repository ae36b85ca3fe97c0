"""What reading weights must refuse, and with which words; nothing in a checkpoint is ever executed."""

import collections
import os
import shutil
import sys
import types

import pytest
import torch

from lib import weights

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones(4)}


@pytest.fixture
def foreign():
    """A class of a package that who reads the file does not have."""
    module = types.ModuleType("somebodys_trainer")
    module.Config = type("Config", (), {"__module__": "somebodys_trainer"})
    sys.modules["somebodys_trainer"] = module
    yield module.Config
    sys.modules.pop("somebodys_trainer", None)


class Canary:
    """Calls a function when its pickle is executed."""

    def __init__(self, function, *arguments):
        self.call = function, tuple(map(str, arguments))

    def __reduce__(self):
        return self.call


def same(found):
    assert found.keys() == STATE.keys() and all(torch.equal(found[name], STATE[name]) for name in STATE)


def test_a_folder_that_was_written_comes_back(tmp_path):
    weights.write(tmp_path / "new", STATE, {"width": 3})
    found, config = weights.read(tmp_path / "new")
    same(found)
    assert config == {"width": 3} and sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    modes = {path.stat().st_mode for path in (tmp_path / "new").iterdir()}
    assert len(modes) == 1, "who may read the one may read the other"


@pytest.mark.parametrize("form", [dict, collections.OrderedDict, lambda state: {"state_dict": state, "step": 3}])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_checkpoint_gives_its_tensors(form, legacy, tmp_path):
    torch.save(form(STATE), tmp_path / "model.ckpt", _use_new_zipfile_serialization=not legacy)
    found, config = weights.read(tmp_path)
    same(found)
    assert config is None


def test_foreign_classes_are_listed_and_stood_in_for_on_request(foreign, tmp_path):
    config = foreign()
    config.rate = 3
    torch.save({"state_dict": STATE, "hyper_parameters": {"config": config}}, tmp_path / "model.ckpt")
    del sys.modules["somebodys_trainer"]
    with pytest.raises(ValueError, match=r"model\.ckpt names classes .* somebodys_trainer\.Config.*strangers=True"):
        weights.read(tmp_path / "model.ckpt")
    same(weights.read(tmp_path / "model.ckpt", strangers=True)[0])


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("function", [shutil.copy, os.rename])
def test_code_in_a_checkpoint_is_not_executed(function, legacy, tmp_path):
    path, here, there = tmp_path / "model.ckpt", tmp_path / "here", tmp_path / "there"
    here.write_text("canary")
    gift = Canary(function, here, there)
    torch.save({"state_dict": STATE, "gift": gift}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match=rf"model\.ckpt .*{function.__name__}"):
        weights.read(path)
    if function is shutil.copy and not legacy:  # an empty class takes its name
        same(weights.read(path, strangers=True)[0])
    else:  # the operating system's have no stand-in
        with pytest.raises(ValueError, match=rf"model\.ckpt .*{function.__name__}"):
            weights.read(path, strangers=True)
    assert here.exists() and not there.exists()


def truncated(path):
    torch.save({"state_dict": {"a": torch.zeros(1000)}}, path)
    path.write_bytes(path.read_bytes()[:2000])


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("half.ckpt", truncated, "half.ckpt is damaged"),
        ("empty.ckpt", lambda path: path.write_bytes(b""), "empty.ckpt is damaged"),
        ("text.pt", lambda path: path.write_text("hello"), "text.pt is damaged"),
        ("list.pt", lambda path: torch.save([torch.ones(3)], path), "holds no tensor"),
        ("nothing.pt", lambda path: torch.save({}, path), "holds no tensor"),
        ("half.safetensors", lambda path: path.write_bytes(b"\x10" + bytes(20)), "half.safetensors is damaged"),
        ("weights.npz", lambda path: path.write_bytes(b"x"), "weights are read from .safetensors .ckpt"),
    ],
)
def test_what_is_no_checkpoint_is_named(name, make, words, tmp_path):
    make(tmp_path / name)
    with pytest.raises(ValueError) as error:
        weights.read(tmp_path / name)
    assert words in str(error.value) and str(tmp_path) in str(error.value)
    assert "weights_only" not in str(error.value), "torch's advice to trust the file is not passed on"


def test_a_folder_of_several_or_none_asks_which(tmp_path):
    with pytest.raises(ValueError, match="no file of weights"):
        weights.read(tmp_path)
    for name in ("one.ckpt", "two.pt"):
        torch.save(STATE, tmp_path / name)
    with pytest.raises(ValueError, match=r"one\.ckpt, two\.pt\. Wanted model\.safetensors"):
        weights.read(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "3"])
def test_a_damaged_config_is_named(text, tmp_path):
    weights.write(tmp_path, STATE, {})
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json"):
        weights.read(tmp_path)


def test_a_path_with_a_slip_is_not_looked_for_on_the_hub(tmp_path):
    with pytest.raises(ValueError, match=r"is not there\. Wanted a folder, a checkpoint"):
        weights.read(tmp_path / "nowhere.ckpt")


def test_without_the_hub_it_says_how_to_get_them(monkeypatch):
    import huggingface_hub

    def offline(*_):
        raise OSError("no route to host\nmore")

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", offline)
    with pytest.raises(ValueError) as error:
        weights.read("somebody/model")
    for words in ("somebody/model is no path here", "no route to host", "hf download somebody/model"):
        assert words in str(error.value)


@pytest.mark.parametrize(
    ("files", "asked", "wanted"),
    [
        (["README.md", "config.json", "model.safetensors"], "a/b", ["config.json", "model.safetensors"]),
        (["README.md", "dora.ckpt"], "a/b", ["dora.ckpt"]),
        (["x.ckpt", "sub/y.ckpt"], "a/b/sub/y.ckpt", ["sub/y.ckpt"]),
    ],
)
def test_from_the_hub_comes_what_is_needed(files, asked, wanted, monkeypatch, tmp_path):
    import huggingface_hub

    fetched = []

    def fetch(model, file):
        fetched.append((model, file))
        return tmp_path / file

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda self, model: files)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    assert weights.download(asked) == tmp_path / wanted[-1]
    assert fetched == [("a/b", file) for file in wanted]
