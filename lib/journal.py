"""What is written down while a model is trained: curves, validation, pictures, a text log and TensorBoard's events."""

import contextlib
import csv
import itertools
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lib.dataset import write_text, writing
from lib.words import in_words, say


class Journal:
    """The curve, the validation, the log and TensorBoard's events; a run that goes on strikes what it will repeat."""

    def __init__(self, folder: Path, step: int, first: bool):
        self.folder, self.step = folder, step
        self.first = first  # of the processes: the others write nothing

    def __enter__(self) -> "Journal":
        if self.first:
            from torch.utils.tensorboard import SummaryWriter

            for name in ("curve", "validation"):
                rows = [row for row in read_curve(self.folder, name) if row["step"] <= self.step]
                write_rows(self.folder / f"{name}.csv", rows)
            self.events = SummaryWriter(self.folder / "events", purge_step=self.step + 1 if self.step else None)
        return self

    def __exit__(self, *_) -> None:
        if self.first:
            self.events.close()

    def say(self, text: str) -> None:
        if self.first:
            say(f"{self.folder.name}: {text}")
            with (self.folder / "train.log").open("a", encoding="utf-8") as log:
                log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def progress(self, step: int, steps: int, speed: float, batch_size: int, waiting: float) -> None:
        row = (read_curve(self.folder) or [{}])[-1] if self.first else {}
        loss = f"  loss {row['loss']:.4g}" if "loss" in row else ""
        left = in_words((steps - step) / speed)
        rate = f"{speed:.3g} steps/s  {speed * batch_size:.3g} samples/s"
        self.say(f"step {step:,}/{steps:,}{loss}  {rate}  waiting {waiting:.1%}  {left} left")

    def has(self, step: int) -> bool:
        """Was this step validated?"""
        return any(row["step"] == step for row in read_curve(self.folder, "validation"))

    def curve(self, row: dict) -> None:
        self.enter("curve", row, "train")

    def validation(self, step: int, found: dict) -> None:
        """Numbers are a row, pictures go into files."""
        from PIL import Image

        numbers = {name: float(value) for name, value in found.items() if np.ndim(value) == 0}
        self.enter("validation", {"step": step} | numbers, "validation")
        self.say(f"step {step:,}, validation: " + "  ".join(f"{name} {value:.4g}" for name, value in numbers.items()))
        for name in found.keys() - numbers.keys():
            with writing(self.folder / "pictures" / f"{name}_{step:09d}.png") as beside:
                Image.fromarray(found[name]).save(beside, "png")
            self.events.add_image(name, found[name], step, dataformats="HWC")

    def enter(self, name: str, row: dict, group: str) -> None:
        if not self.first:
            return
        path = self.folder / f"{name}.csv"
        new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, list(row))
            if new:
                table.writeheader()
            table.writerow(row)
        for key, value in row.items():
            if key != "step":
                self.events.add_scalar(f"{group}/{key}", value, row["step"])


def read_curve(folder: str | Path, name: str = "curve") -> list[dict]:
    """The rows of curve.csv or validation.csv as numbers; a last line that a kill cut short is no row."""
    path = Path(folder, f"{name}.csv")
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        table = csv.DictReader(file)
        rows = [row for row in table if None not in row and None not in row.values()]
    return [{key: int(value) if key == "step" else float(value) for key, value in row.items() if value} for row in rows]


def write_rows(path: Path, rows: list[dict]) -> None:
    """All of a curve anew, or no file if there are no rows."""
    if not rows:
        return path.unlink(missing_ok=True)
    lines = [",".join(rows[0]), *(",".join(map(repr, row.values())) for row in rows)]
    write_text(path, "\n".join(lines) + "\n")


@dataclass
class Watch:
    """Where a session's time goes; what is not training does not count."""

    start: int  # step
    before: float  # seconds of training in earlier sessions
    waited: float = 0.0
    paused: float = 0.0
    told: float = 0.0
    asked: list = field(default_factory=list)  # when each batch was asked for

    def __post_init__(self):
        self.began = time.monotonic()

    @property
    def here(self) -> float:
        return time.monotonic() - self.began - self.paused

    @property
    def seconds(self) -> float:
        return self.before + self.here

    @property
    def share(self) -> float:
        """Of the time, in which the model waited for a batch."""
        return self.waited / max(self.here, 1e-9)

    def speed(self, step: int) -> float:
        return (step - self.start) / max(self.here, 1e-9)

    @property
    def pace(self) -> float:
        """Seconds a step takes under way: the median, in which what is compiled in the first ones does not count."""
        if len(self.asked) < 2:
            return self.seconds / max(self.start, 1)
        return statistics.median(after - before for before, after in itertools.pairwise(self.asked))

    def tells(self) -> bool:
        """Is it time for a line? Every 5 seconds at first, a hundred lines or so in a day."""
        due = self.here - self.told > max(5.0, self.here / 20)
        self.told = self.here if due else self.told
        return due

    def waiting(self, source: Iterator) -> Iterator:
        while True:
            self.asked.append(self.here)
            try:
                pieces = next(source)
            except StopIteration:
                return
            self.waited += self.here - self.asked[-1]
            yield pieces

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.paused += time.monotonic() - began
