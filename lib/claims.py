"""Who works on what in a folder that several processes, and several machines, write to at once.

On one machine a claim is a lock of the operating system, which dies with its process. Other machines may not see it:
disks differ in that. For them a claim is also a small file, the lease, which lives as long as the claim and names its
holder's beat: a file that the holder counts up in. Whose count stands still for long, by the clock of who looks on,
is dead, and its claim may be taken. No clock is ever held against another machine's, and no file's time is read.
"""

import contextlib
import errno
import hashlib
import os
import platform
import secrets
import threading
import time
import uuid
from pathlib import Path

BEAT = 5.0  # seconds between two beats
STALE = 90.0  # seconds without one after which its owner counts as dead; network disks may show files a minute late
LEASES = ".leases"  # the folder of both; empty when nobody works
PASSING = (errno.ESTALE, errno.EIO, errno.EINTR, errno.EAGAIN)  # what a network disk may say once, and then not again
TAKEN = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)


class TakenOver(OSError):
    """We were held for dead, and another one has our item: nothing that we made may appear."""


def machine() -> str:
    """This machine since its start, or this container: where locks can be relied on."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{platform.node()}/{boot.read_text().strip() if boot.exists() else uuid.getnode()}"


HOST = machine()


class Beat:
    """A count in a file that goes up while its owner lives. It stands for all that the owner's processes claim."""

    def __init__(self, folder: str | Path):
        self.folder, self.token, self.count = Path(folder, LEASES), secrets.token_hex(8), 0
        self.path, self.host = self.folder / f"{self.token}.beat", HOST
        self.ended, self.beginning = threading.Event(), threading.Lock()
        self.lock: Lock | None = None

    def begin(self) -> None:
        """Nothing is written before there is something to claim."""
        with self.beginning:
            if self.lock:
                return
            lock = Lock(self.folder.parent)
            lock.take(self.path.name)
            self.sweep(lock)
            self.tick()
            threading.Thread(target=self.go_on, daemon=True).start()
            self.lock = lock

    def end(self) -> None:
        with self.beginning:
            if not self.lock:
                return
            self.ended.set()
            self.path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # not empty: others are at work
                self.folder.rmdir()
            self.lock.close()

    def go_on(self) -> None:
        while not self.ended.wait(BEAT):
            with self.beginning, contextlib.suppress(OSError):  # a full disk passes
                if not self.ended.is_set():
                    self.tick()

    def tick(self) -> None:
        self.count += 1
        write(self.path, f"{self.count}\n{self.host}", os.O_CREAT)

    def sweep(self, lock: "Lock") -> None:
        """Remove the beats of this machine's dead, the leases that they held, and those they were about to bury.

        Nobody else may ever ask for what one held that died between the last word on an item and giving it back.
        """
        for path in self.folder.glob("*.beat"):
            if (read(path) or "").endswith(f"\n{self.host}") and lock.take(path.name) is True:
                for held in self.folder.glob("*.lease"):
                    holder = read(held) or ""
                    if holder.startswith(f"{path.stem}\n"):
                        bury(held, holder, self.token)
                for left in (*self.folder.glob(f"*.{path.stem}"), path):
                    left.unlink(missing_ok=True)
                lock.drop(path.name)


class Claims:
    """What this process has claimed in a folder: one byte of <folder>/.claims a key, locked, and a lease a key."""

    def __init__(self, folder: str | Path, beat: str = "", shared: bool = True):
        self.folder, self.lock = Path(folder), Lock(folder)
        self.shared, self.host = shared, HOST  # with other machines
        self.beat = Beat(folder) if shared and not beat else None
        self.token = self.beat.token if self.beat else beat  # of who beats for us: whoever looks after us, or we do
        self.held: set[str] = set()
        self.owner = os.getpid()  # a child that an item forks has no say
        self.seen: dict[Path, tuple] = {}  # another's lease and its count, and when we first saw them so

    def __enter__(self) -> "Claims":
        return self

    def __exit__(self, *_) -> None:
        if os.getpid() != self.owner:
            return
        release(self.folder, list(self.held), self.token)
        if self.beat:
            self.beat.end()
        self.lock.close()

    def take(self, key: str, wait: bool = False) -> bool:
        """Claim a key; False if another one has it, or wait until it is free."""
        while not self._take(key):
            if not wait:
                return False
            time.sleep(0.1)
        return True

    def _take(self, key: str) -> bool:
        locked = self.lock.take(key)
        if locked is False:
            return False
        if not self.shared:
            return True
        if self._lease(key, locked):
            self.held.add(key)
            return True
        self.lock.drop(key)
        return False

    def drop(self, key: str) -> None:
        if os.getpid() != self.owner:
            return
        self.held.discard(key)
        if self.shared:
            release(self.folder, [key], self.token)
        self.lock.drop(key)

    def holds(self, key: str) -> bool:
        """Is it still ours? Not if we slept for so long that another one held us for dead."""
        return not self.shared or read(lease(self.folder, key)) == self._mine()

    def _mine(self) -> str:
        return f"{self.token}\n{self.host}"

    def _lease(self, key: str, locked: bool | None) -> bool:
        """Write the key's lease unless another one's is there and alive. `locked`: no other process here has it."""
        if self.beat:
            self.beat.begin()
        path = lease(self.folder, key)
        for _ in range(3):
            with contextlib.suppress(FileExistsError):
                write(path, self._mine(), os.O_CREAT | os.O_EXCL)
                self.seen.pop(path, None)
                return True
            holder = read(path)
            here = locked and (holder or "").endswith(f"\n{self.host}")  # then it was killed, as it would have the lock
            if holder is not None and not here and not self._dead(path, holder):
                return False
            if holder is not None and not bury(path, holder, self.token):
                return False
        return False

    def _dead(self, path: Path, holder: str) -> bool:
        beat = read(self.folder / LEASES / f"{holder.partition(chr(10))[0]}.beat")
        now = time.monotonic()
        before, since = self.seen.get(path, (None, now))
        if before != (holder, beat):
            since = now
        self.seen[path] = ((holder, beat), since)
        return now - since > STALE


def lease(folder: str | Path, key: str) -> Path:
    return Path(folder, LEASES, f"{key}.lease")


def bury(path: Path, holder: str, token: str) -> bool:
    """Take a dead one's lease away. Of several who do so at once one moves the file, and looks at what it moved."""
    aside = path.with_suffix(f".{token}")
    try:
        path.rename(aside)
    except OSError:  # another one was faster
        return False
    moved = read(aside)
    if moved is not None and moved != holder:  # meanwhile somebody lives there
        put_back(aside, path)
    aside.unlink(missing_ok=True)
    return moved == holder


def put_back(aside: Path, path: Path) -> None:
    """The file itself, not what it says so far: its owner may be about to write. Unless a third one took its place."""
    try:
        os.link(aside, path)
    except FileExistsError:
        pass
    except OSError:  # a disk without links
        with contextlib.suppress(OSError):
            write(path, read(aside) or "", os.O_CREAT | os.O_EXCL)


def release(folder: str | Path, keys: list[str], token: str) -> None:
    """Take away the leases of what was claimed under a beat, as its owner does for a process that it killed.

    With the care that a stranger's lease asks for: between the look and the deed it may have become one.
    """
    for key in keys:
        holder = read(lease(folder, key)) or ""
        if holder.startswith(f"{token}\n"):
            with contextlib.suppress(OSError):
                bury(lease(folder, key), holder, token)


def write(path: Path, text: str, flags: int) -> None:
    """A few bytes in one go, over what was there: a count never grows shorter, so nobody sees half of it."""
    for last in (False, True):
        try:
            file = os.open(path, os.O_WRONLY | flags, 0o666)
            break
        except FileNotFoundError:
            if last:
                raise
            path.parent.mkdir(exist_ok=True)  # the last one to leave took it away
    try:
        os.write(file, text.encode())
    except OSError:
        if flags & os.O_EXCL:  # a full disk: an empty lease would say nothing, for long
            path.unlink(missing_ok=True)
        raise
    finally:
        os.close(file)


def read(path: Path) -> str | None:
    """What a small file says, None if it is not there. A network disk gets a second and a third chance."""
    for pause in (0.1, 0.4, None):
        try:
            return path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return None
        except OSError as error:
            if pause is None or error.errno not in PASSING:
                raise
            time.sleep(pause)
    return None


# -- the operating system's locks -------------------------------------------------------------------------------------


class Lock:
    """One byte of <folder>/.claims a key: nothing stale after a kill -9, and no lock file an item."""

    def __init__(self, folder: str | Path):
        self.file = Path(folder, ".claims").open("ab", buffering=0)  # noqa: SIM115 (open as long as a claim is held)

    def close(self) -> None:
        self.file.close()

    def take(self, key: str) -> bool | None:
        """False if another process has it, None if this disk knows no locks."""
        try:
            _lock(self.file.fileno(), _offset(key))
        except OSError as error:
            return False if error.errno in TAKEN else None
        return True

    def drop(self, key: str) -> None:
        with contextlib.suppress(OSError):
            _unlock(self.file.fileno(), _offset(key))


def _offset(key: str) -> int:
    return int(hashlib.sha256(key.encode()).hexdigest()[:15], 16)  # 60 bits: files know offsets of 63


if os.name == "nt":
    import msvcrt

    def _lock(file: int, offset: int) -> None:
        os.lseek(file, offset, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)

    def _unlock(file: int, offset: int) -> None:
        os.lseek(file, offset, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _lock(file: int, offset: int) -> None:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, offset)

    def _unlock(file: int, offset: int) -> None:
        fcntl.lockf(file, fcntl.LOCK_UN, 1, offset)
