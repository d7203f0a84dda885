"""Atomic file writes, temporary folders and folder locks.

What is being written lies in a temporary folder beside its target until it is complete. The name
of that folder says which process made it, so that a later one can remove what a killed process
left behind, and nothing else.
"""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import re
import secrets
import shutil
import signal
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from types import FrameType

from reidguard.errors import CheckpointError
from reidguard.records import to_path

__all__ = [
    "FULL",
    "LOCK",
    "atomic_write",
    "deferred_interrupts",
    "folder_lock",
    "is_temporary",
    "remove_leftovers",
    "temporary_folder",
]

LOCK = ".lock"
TEMPORARY = re.compile(r"\.reidguard-(?P<machine>\w{8})-(?P<pid>\d+)-(?P<process>\w{8})-\w+\.tmp")
PROCESS = secrets.token_hex(4)  # of equal ids, as in restarted containers, one may be dead
DAY = 24 * 60 * 60.0  # seconds
NO_LINKS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # nor waiting for a FIFO
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the codes of a full disk


@contextmanager
def atomic_write(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path that takes the place of ``path`` when the block succeeds.

    The bytes reach the disk before the name changes, so kill -9 or a power cut leaves either the
    old file or the new one. An existing file keeps its permissions, a new one gets those of the
    umask. A symbolic link is replaced, and the file that it points to is not touched.

    Raises:
        CheckpointError: If the file cannot be written: the folder is missing or not writable, the
            disk is full, or the path is a folder or a device.
    """
    path = to_path(path)
    try:
        if path.exists() and not path.is_file():
            what = "it is a folder" if path.is_dir() else "it is not a regular file"
            raise CheckpointError(f"cannot write {path}: {what}; choose another path")
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(path.parent) as folder:
            temporary = folder / path.name
            temporary.touch()
            mode = _mode(path if path.is_file() and not path.is_symlink() else temporary)
            yield temporary
            with temporary.open("rb+") as stream:
                os.fsync(stream.fileno())
            temporary.chmod(mode)  # safetensors makes a file of its own, and a private one
            os.replace(temporary, path)
    except OSError as error:
        cure = "free some space or choose another folder"
        raise CheckpointError(
            f"cannot write {path}: {error.strerror or error}; "
            f"{cure if error.errno in FULL else 'choose another path'} (what was there before is "
            "untouched)"
        ) from error


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """Make a private folder in ``parent`` and remove it when the block ends.

    Raises:
        OSError: If ``parent`` cannot be written.
    """
    _remove_leftovers_once(parent.absolute())
    prefix = f".reidguard-{_machine()}-{os.getpid()}-{PROCESS}-"
    folder = None
    try:
        with deferred_interrupts():
            folder = Path(tempfile.mkdtemp(prefix=prefix, suffix=".tmp", dir=parent))
        yield folder
    finally:
        if folder is not None:
            with deferred_interrupts():
                shutil.rmtree(folder, ignore_errors=True)


def is_temporary(path: Path) -> bool:
    """Return whether a relative path is a temporary folder of this library or in one."""
    return any(TEMPORARY.fullmatch(part) for part in path.parts)


def remove_leftovers(folder: Path, *, locked: bool = False) -> None:
    """Remove the temporary folders that killed processes left in ``folder``.

    Args:
        folder: Is not changed otherwise; it may be missing.
        locked: Whether no other process writes into it or the folders below: then all temporary
            folders there are leftovers. Otherwise only those directly in it, of processes that are
            dead, or older than a day where another machine made them.
    """
    for parent, names, _ in os.walk(folder):
        for name in [name for name in names if TEMPORARY.fullmatch(name)]:
            names.remove(name)
            if locked or _is_dead(Path(parent, name)):
                shutil.rmtree(Path(parent, name), ignore_errors=True)
        if not locked:
            break


@lru_cache(maxsize=256)
def _remove_leftovers_once(folder: Path) -> None:
    remove_leftovers(folder)  # not for each of thousands of files in one folder


@lru_cache(maxsize=1)
def _machine() -> str:
    """Return a hash that processes have in common if they see each other's ids."""
    namespace = ""
    with suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")  # Linux: containers have ids of their own
    return hashlib.sha256(f"{platform.node()} {namespace}".encode()).hexdigest()[:8]


def _is_dead(temporary: Path) -> bool:
    match = TEMPORARY.fullmatch(temporary.name)
    assert match is not None
    if match["machine"] != _machine() or os.name == "nt":  # Windows' os.kill ends the process
        with suppress(OSError):
            return temporary.stat().st_mtime < time.time() - DAY
        return False
    if int(match["pid"]) == os.getpid():
        return match["process"] != PROCESS
    try:
        os.kill(int(match["pid"]), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:  # of another user
        return False
    return False


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder; it ends with the process at the latest.

    The hidden lock file stays in the folder: deleting it would let two processes lock two files of
    the same name. What a file of that name contains is not changed.

    Raises:
        CheckpointError: If the folder cannot be written, another process holds the lock, or the
            lock file is a symbolic link.
    """
    path = folder / LOCK
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | NO_LINKS, 0o666)
            stack.callback(os.close, descriptor)
            _lock(descriptor)
        except BlockingIOError:
            raise CheckpointError(
                f"another process is working in {folder}; wait for it, or choose another folder"
            ) from None
        except OSError as error:  # some network disks have no locks
            if path.is_symlink():
                raise CheckpointError(f"{path} is a symbolic link; delete it first") from error
            if folder.exists() and not folder.is_dir():
                raise CheckpointError(f"{folder} is a file; name a folder") from error
            if not (folder.is_dir() and os.access(folder, os.W_OK)):
                raise CheckpointError(
                    f"cannot write into {folder}: {error.strerror}; choose another folder"
                ) from error
        yield


def _lock(descriptor: int) -> None:
    """Lock an open file, or raise a BlockingIOError if another process has locked it."""
    if sys.platform == "win32":
        import msvcrt

        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError from error
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def deferred_interrupts() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt after the block instead of within it.

    For C code that calls Python and would replace a KeyboardInterrupt by an error of its own, so
    that Ctrl-C would look like a damaged file.
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield  # no handler runs here
        return
    signals: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda *arguments: signals.append(arguments))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if signals:
            handler(*signals[0])
