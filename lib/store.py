"""Where packed files lie: a folder, or a bucket by fsspec (s3://bucket/prefix); verified, or not there."""

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from lib.cache import Cache
from lib.dataset import PARTIAL, sha256, sha256_of, writing
from lib.seals import sealed, unsealed

TRIES = 5  # of each request, before its error is told
PAUSE = 0.5  # seconds before the second try, and twice as many before each one after it
TIMEOUT = 60  # seconds that a request may take: a slow one is asked again


class Store:
    """Files by name below a place. What is read can be held against its hash, and what is written always is."""

    def __init__(self, place: str | Path, cache: Cache | None = None, **options):
        self.place, self.fs, self.cache = str(place).rstrip("/"), None, cache
        if "://" in self.place:
            self.fs, self.root = connect(self.place, options)
        else:
            self.folder = Path(self.place).expanduser().absolute()

    def path(self, name: str) -> Path | None:
        """Where a file lies on this machine, if it does."""
        return None if self.fs else self.folder / name

    def names(self) -> dict[str, int]:
        """Every file below the place and its size."""
        if self.fs is None:
            found = [path for path in self.folder.rglob("*") if path.is_file() and not path.name.startswith(PARTIAL)]
            return {path.relative_to(self.folder).as_posix(): path.stat().st_size for path in sorted(found)}
        self.fs.invalidate_cache()
        try:
            found = self._asked("list", "", lambda: self.fs.find(self.root, detail=True))
        except FileNotFoundError:
            return {}
        return {path[len(self.root) + 1 :]: info["size"] for path, info in sorted(found.items())}

    def read(self, name: str, start: int = 0, size: int | None = None, hash: str = "") -> bytes:
        """A file, or so many bytes of it from some byte on; asked again while it is not what its hash says.

        What has a hash is fetched from afar once, and then kept here as far as there is room.
        """
        kept = self.cache if self.fs and hash else None
        if kept and (found := kept.get(hash)) is not None:
            return found

        def once() -> bytes:
            if self.fs is None:
                with (self.folder / name).open("rb") as file:
                    file.seek(start)
                    data = file.read() if size is None else file.read(size)
            else:
                piece = {} if size is None else {"start": start, "end": start + size}
                data = self.fs.cat_file(self._at(name), **piece)
            if size is not None and len(data) != size:
                raise Torn(f"{self.place}/{name}: {len(data)} bytes came, {size} were asked for at {start}")
            if hash and sha256_of(data) != hash:
                raise Torn(f"{self.place}/{name}: {len(data)} bytes at {start} are not what was written there")
            return data

        data = self._asked("read", name, once)
        if kept:
            kept.put(hash, data)
        return data

    def write(self, name: str, source: str | Path | bytes) -> None:
        """Put a file there and read it back: it counts when size and hash are the source's."""
        wanted = sha256_of(source) if isinstance(source, bytes) else sha256(source)
        if self.fs is None:
            with writing(self.folder / name) as beside:
                with beside.open("wb") as file:
                    _pour(source, file)
                    file.flush()
                    os.fsync(file.fileno())  # a copy that is only in memory is no copy
                if sha256(beside) != wanted:
                    raise OSError(f"{self.folder / name}: what was written reads back otherwise; is the disk sound?")
            return

        def once() -> None:
            if isinstance(source, bytes):
                self.fs.pipe_file(self._at(name), source)
            else:
                self.fs.put_file(str(source), self._at(name))
            if self.hash(name) != wanted:
                raise Torn(f"{self.place}/{name} arrived torn: its hash is not the source's")

        try:
            self._asked("write", name, once)
        except Torn:
            self.remove(name)
            raise

    def hash(self, name: str) -> str:
        """The sha256 of a file as it lies there now."""
        digest = hashlib.sha256()
        for piece in self._pieces(name):
            digest.update(piece)
        return digest.hexdigest()

    def fetch(self, name: str, file) -> None:
        """All of a file into an open one."""
        for piece in self._pieces(name):
            file.write(piece)

    def _pieces(self, name: str, most: int = 2**23) -> Iterator[bytes]:
        if self.fs is None:
            size = (self.folder / name).stat().st_size
        else:
            self.fs.invalidate_cache()
            size = self._asked("stat", name, lambda: self.fs.info(self._at(name))["size"])
        return (self.read(name, at, min(most, size - at)) for at in range(0, size, most))

    def write_json(self, name: str, value: dict) -> None:
        """An index; it carries a hash of itself."""
        self.write(name, sealed(value).encode())

    def read_json(self, name: str) -> dict:
        """An index as it was written, or an error: it is asked again while its bits are others."""

        def once() -> dict:
            try:
                return unsealed(self.read(name), strict=True)
            except ValueError as error:
                raise Torn(f"{self.place}/{name} is damaged: {error}") from None

        return self._asked("read", name, once)

    def remove(self, name: str) -> None:
        if self.fs is None:
            (self.folder / name).unlink(missing_ok=True)
        elif self._asked("look for", name, lambda: self.fs.exists(self._at(name))):
            self._asked("remove", name, lambda: self.fs.rm_file(self._at(name)))

    def _at(self, name: str) -> str:
        return f"{self.root}/{name}"

    def _asked(self, what: str, name: str, once: Callable):
        """Do it, again after any fault that may pass; its last error says what to do."""
        if self.fs is None:
            return once()
        for attempt in range(TRIES):
            try:
                return once()
            except (FileNotFoundError, PermissionError):
                raise
            except Exception as error:  # each kind of storage has its own
                if attempt == TRIES - 1:
                    kind, why = (Torn if isinstance(error, Torn) else OSError), str(error).partition("\n")[0][:300]
                    raise kind(
                        f"{what} {self.place}/{name} failed {TRIES} times, last by {type(error).__name__}: "
                        f"{why}. What was verified is kept: the same command goes on from there."
                    ) from error
                time.sleep(PAUSE * 2**attempt)


class Torn(OSError):
    """Other bytes than were written."""


def connect(place: str, options: dict) -> tuple:
    """The file system of an address and the path in it. S3 by obstore where it is installed, else by s3fs."""
    import fsspec

    scheme = place.partition("://")[0]
    if scheme == "s3":
        try:
            from obstore.fsspec import FsspecStore

            given = {
                "client_options": {"timeout": f"{TIMEOUT}s", "allow_http": True},
                "retry_config": {"max_retries": 0},
            }
            if endpoint := os.environ.get("AWS_ENDPOINT_URL"):
                given["config"] = {"endpoint": endpoint}
            fsspec.register_implementation("s3", FsspecStore, clobber=True)
            return FsspecStore("s3", **(given | options)), place.partition("://")[2]
        except ImportError:
            pass
    try:
        fs, root = fsspec.core.url_to_fs(place, **options)
    except (ImportError, ValueError) as error:
        raise ValueError(
            f"{place}: {scheme}:// cannot be opened ({error}). For S3: pip install -e '.[s3]'; for others see the "
            "table of fsspec's implementations."
        ) from None
    return fs, root.rstrip("/")


def copy(folder: str | Path, place: str, passed_over: tuple[str, ...] = ("resume",)) -> dict[str, int]:
    """A folder's files to a place, each verified; what is there already is not sent again. Names and sizes sent."""
    folder, store = Path(folder).expanduser(), Store(place)
    there, sent = store.names(), {}
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder. Give a run's folder, like outputs/demo.")
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not set(name.parts) & set(passed_over) and not path.name.startswith(PARTIAL):
            name, size = name.as_posix(), path.stat().st_size
            if there.get(name) != size or store.hash(name) != sha256(path):
                store.write(name, path)
                sent[name] = size
    return sent


def _pour(source: str | Path | bytes, file) -> None:
    if isinstance(source, bytes):
        file.write(source)
        return
    with Path(source).open("rb") as read:
        while piece := read.read(2**23):
            file.write(piece)
