"""Pieces of a bucket kept on this machine's disk, so that an epoch is not fetched again: by hash, and bounded.

Processes need not know of one another: a file appears whole, its name is the hash that it is held to, and room is
counted in its drawer alone. A full drawer takes no more: with samples in a new order each epoch, to throw out the
oldest would keep little until it is asked for again. What no run of the last days asked for makes room.
"""

import os
import threading
import time
from pathlib import Path

from lib.dataset import PARTIAL, replace, sha256_of

DRAWERS = 64  # each with its share of the room
DAYS = 2.0  # since a piece was asked for: then it may go


class Cache:
    """Small enough to be pickled into any number of workers."""

    def __init__(self, gib: float, folder: str | Path | None = None):
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        self.folder, self.room = Path(folder or Path(home, "mesh-dit", "shards")), gib * 2**30 / DRAWERS

    def get(self, hash: str) -> bytes | None:
        """The piece with this sha256, if it lies here as it was."""
        path = self._path(hash)
        try:
            data = path.read_bytes()
            if sha256_of(data) != hash:
                path.unlink(missing_ok=True)
                return None
            os.utime(path)
        except OSError:
            return None
        return data

    def put(self, hash: str, data: bytes) -> None:
        """Keep a piece, if there is room. A disk that is full or not to be written to costs speed and no more."""
        path = self._path(hash)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if self._make_room(path.parent, len(data)):
                beside = path.with_name(f"{PARTIAL}{os.getpid()}-{threading.get_ident()}")
                try:
                    beside.write_bytes(data)
                    replace(beside, path)
                finally:
                    beside.unlink(missing_ok=True)
        except OSError:
            pass

    def _path(self, hash: str) -> Path:
        return self.folder / f"{int(hash[:4], 16) % DRAWERS:02d}" / hash

    def _make_room(self, drawer: Path, size: int) -> bool:
        with os.scandir(drawer) as entries:
            found = sorted((entry.stat().st_mtime, entry.stat().st_size, entry.path) for entry in entries)
        taken, old = sum(size for _, size, _ in found), time.time() - DAYS * 86400
        for asked, gone, path in found:
            if taken + size <= self.room or asked > old:
                break
            Path(path).unlink(missing_ok=True)
            taken -= gone
        return taken + size <= self.room
