"""A run's checkpoints: whole or not there, the last few kept, and gone on from only by a run of the same making."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from lib.claims import Claims
from lib.dataset import sweep, writing
from lib.place import Place
from lib.words import say

MADE = ("resume", "events", "pictures", "curve.csv", "validation.csv", "train.log", "model.safetensors", "config.json")


def save(folder: Path, step: int, state: dict, keep: int, place: Place) -> None:
    """A checkpoint that is whole or not there, on the disk before the older ones go."""
    if place.first:
        target = folder / "resume" / f"step_{step:09d}.pt"
        try:
            with writing(target) as beside, beside.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:  # torch has its own words for a full disk
            raise OSError(
                f"the checkpoint {target} cannot be written ({error}). The one before it is whole: make room, and the "
                "same command goes on from there."
            ) from error
        for old in checkpoints(folder)[keep:]:
            old.unlink()
    place.wait()


def checkpoints(folder: Path) -> list[Path]:
    """The newest first."""
    return sorted((folder / "resume").glob("step_*.pt"), reverse=True)


def settle(folder: Path, wanted: dict, fresh: bool, place: Place, in_memory: bool = False) -> dict | None:
    """The state to go on from, None to begin; an error if what is there was made otherwise."""
    state = latest(folder, place, in_memory)
    if state is None and not (folder / "model.safetensors").exists():
        return None
    different = differences(state["made_with"], wanted) if state else ["there is no checkpoint to go on from"]
    ahead_of_us = state and state["step"] > wanted["steps"]
    if ahead_of_us:
        different.append(f"it is at step {state['step']} already, steps = {wanted['steps']}")
    if not different:
        return state
    if not fresh:
        raise ValueError(
            f"{folder} holds a run that was made otherwise: {'; '.join(different)}. Give the same parameters to go on "
            "(steps may be more), another run folder to keep both, or fresh = true to replace it."
        )
    place.wait()  # all have read what is there
    if place.first:
        for name in MADE:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    place.wait()
    return None


def latest(folder: Path, place: Place, in_memory: bool = False) -> dict | None:
    """The newest checkpoint that can be read; in memory, of which a machine's processes share one copy, if asked."""
    where = {"map_location": "cpu", "mmap": True} if in_memory else {"map_location": place.device}
    for path in checkpoints(folder):
        try:
            return torch.load(path, **where, weights_only=True)
        except Exception as error:  # a disk that lost its power may hold anything
            say(f"{path} cannot be read ({type(error).__name__}); the one before it is tried")
    return None


def differences(before: dict, wanted: dict) -> list[str]:
    """Parameters that differ; more steps do not count."""
    names = [name for name in sorted(before | wanted) if before.get(name) != wanted.get(name) and name != "steps"]
    return [f"{name} was {before.get(name)!r} and is {wanted.get(name)!r}" for name in names]


@contextlib.contextmanager
def claim(folder: Path) -> Iterator[None]:
    """The folder is ours: what a killed run left half-written goes, and another run that is at it is respected."""
    folder.mkdir(parents=True, exist_ok=True)
    with Claims(folder) as claims:
        if not claims.take("training"):
            raise ValueError(f"another run trains in {folder} at this moment. Wait for it, or give another run folder.")
        sweep(folder)
        sweep(folder / "resume")
        yield
