"""Tables that stages wrote, read as texts for a page: whatever is in them must not cost the page."""

import csv
import math
from pathlib import Path

csv.field_size_limit(2**27)  # a reason may hold all that a native library had to say


def rows(path: Path) -> list[dict]:
    """A table's rows, all as text, so that item 00123 stays 00123; none if there is no table, or no sound one."""
    try:
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            return list(csv.DictReader(file))
    except (OSError, csv.Error):
        return []


def number(value: str | None) -> float | None:
    """A cell's number, None where there is no finite one."""
    try:
        return float(value) if math.isfinite(float(value)) else None
    except (TypeError, ValueError):
        return None


def mean(found: list[dict], column: str) -> float | None:
    """Of a column's numbers, None if it has none."""
    values = [value for row in found if (value := number(row.get(column))) is not None]
    return math.fsum(values) / len(values) if values else None
