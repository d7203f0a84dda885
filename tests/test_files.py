"""Atomic writes, what killed writers leave, folder locks, deferred Ctrl-C."""

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from helpers import leave_temporary
from reidguard import files
from reidguard.errors import CheckpointError
from reidguard.files import (
    atomic_write,
    deferred_interrupts,
    folder_lock,
    remove_leftovers,
    temporary_folder,
)
from reidguard.storage import load_tensors, save_tensors
from reidguard.tensor_files import read_tensors

posix = pytest.mark.skipif(os.name == "nt", reason="needs POSIX")


def write(path, text):
    with atomic_write(path) as temporary:
        temporary.write_text(text)


def names(folder):
    return sorted(os.listdir(folder))


# --- atomic writes ------------------------------------------------------------------------------


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path):
    target = tmp_path / "file"
    target.write_text("old")

    def write_half():
        with atomic_write(target) as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_half()
    assert target.read_text() == "old"
    assert names(tmp_path) == ["file"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_is_one_clear_error(tmp_path):
    target = tmp_path / "file"
    target.write_text("old")
    with (
        pytest.raises(CheckpointError, match=r"cannot write .*: No space left on device; free"),
        atomic_write(target),
        open("/dev/full", "w") as stream,
    ):
        stream.write("new")
    assert target.read_text() == "old"
    assert names(tmp_path) == ["file"]


@posix
def test_what_cannot_be_a_file_is_one_clear_error(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "device").symlink_to(os.devnull)
    os.mkfifo(tmp_path / "fifo")
    before = names(tmp_path)
    for path, reason in {
        "/dev/null/inside/weights": "Not a directory",
        tmp_path / "folder": "it is a folder",
        tmp_path / "device": "it is not a regular file",
        tmp_path / "fifo": "it is not a regular file",
    }.items():
        with pytest.raises(CheckpointError, match=f"cannot write .*: {reason}; choose"):
            write(path, "new")
    assert names(tmp_path) == before
    write(tmp_path / ("x" * 255), "the longest name")


@posix
def test_a_link_is_replaced_and_not_followed(tmp_path):
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    for name in ("symbolic", "hard"):
        link = tmp_path / name
        link.symlink_to(mine) if name == "symbolic" else link.hardlink_to(mine)
        write(link, "new")
        assert (link.read_text(), link.is_symlink()) == ("new", False)
    assert mine.read_text() == "mine"


@posix
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_are_those_of_the_old_file_or_of_the_umask(tmp_path, monkeypatch, umask):
    private, before = tmp_path / "private", os.umask(umask)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "umask", None)  # another thread could make a file in between
            write(tmp_path / "new", "")
            save_tensors(tmp_path / "weights", {"a": torch.ones(1)}, {})
            private.touch(mode=0o600)
            write(private, "secret")
    finally:
        assert os.umask(before) == umask
    modes = [stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "new", tmp_path / "weights")]
    assert modes == [0o666 & ~umask] * 2
    assert stat.S_IMODE(private.stat().st_mode) == 0o600


# --- what killed writers leave ------------------------------------------------------------------


@posix
def test_a_killed_writer_leaves_the_old_file_and_the_next_one_removes_the_rest(tmp_path):
    (tmp_path / "weights").write_text("old")
    (tmp_path / ".weights.abc.tmp").write_text("of somebody else")
    code = (
        "import os, signal, sys; from reidguard.files import atomic_write\n"
        "with atomic_write(sys.argv[1]) as t:\n"
        "    t.write_text('half'); (t.parent / '.tmpabcdef').touch()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    call = [sys.executable, "-c", code, str(tmp_path / "weights")]
    assert subprocess.run(call, check=False).returncode == -9
    assert (tmp_path / "weights").read_text() == "old"
    assert len(names(tmp_path)) == 3
    write(tmp_path / "other", "")
    assert names(tmp_path) == [".weights.abc.tmp", "other", "weights"]


@posix
def test_only_temporary_folders_of_dead_processes_are_removed(tmp_path):
    with temporary_folder(tmp_path) as own:
        machine, _, process = own.name.split("-")[1:4]
        parent, ended = os.getppid(), int(leave_temporary(tmp_path).name.split("-")[2])
        keep = [
            own.name,
            f".reidguard-{machine}-{parent}-{process}-x.tmp",  # of a living process
            f".reidguard-00000000-{ended}-{process}-x.tmp",  # of another machine
            f".reidguard-{machine}-{ended}-x.tmp",
            "x.tmp",
        ]
        remove = [
            f".reidguard-{machine}-{ended}-{process}-y.tmp",
            f".reidguard-{machine}-{os.getpid()}-00000000-x.tmp",  # an earlier one of our id
            f".reidguard-00000000-{ended}-{process}-old.tmp",
        ]
        for name in {*keep, *remove} - {own.name}:
            (tmp_path / name).mkdir()
            (tmp_path / name / "half").touch()
        os.utime(tmp_path / remove[-1], (0, time.time() - files.DAY - 60))
        below = leave_temporary(tmp_path / "below")
        remove_leftovers(tmp_path)
        assert names(tmp_path) == sorted([*keep, "below"])
        assert below.exists()
        remove_leftovers(tmp_path, locked=True)
        assert names(tmp_path) == [keep[3], "below", "x.tmp"]
        assert names(tmp_path / "below") == []
    remove_leftovers(tmp_path / "missing")


# --- locks --------------------------------------------------------------------------------------


def test_two_processes_do_not_work_in_one_folder(tmp_path):
    code = (
        "import sys; from pathlib import Path; from reidguard.files import folder_lock\n"
        "with folder_lock(Path(sys.argv[1])): print('in', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "in\n"
        with pytest.raises(CheckpointError, match="another process"):
            folder_lock(tmp_path).__enter__()
        other.kill()
    with folder_lock(tmp_path):  # its lock ended with it
        pass


def test_the_lock_outlives_its_holders(tmp_path):
    """Deleted, the file of the next holder would not be the one that others have open."""
    with folder_lock(tmp_path):
        first = (tmp_path / ".lock").stat().st_ino
    with folder_lock(tmp_path):
        assert (tmp_path / ".lock").stat().st_ino == first
    assert names(tmp_path) == [".lock"]


def test_a_disk_without_locks_can_be_used(tmp_path, monkeypatch):
    def refuse(_):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(files, "_lock", refuse)
    with folder_lock(tmp_path / "run"):
        assert names(tmp_path) == ["run"]


@posix
def test_a_folder_that_cannot_be_locked_is_one_clear_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="file is a file; name a folder"):
        folder_lock(tmp_path / "file").__enter__()
    with pytest.raises(CheckpointError, match=r"cannot write into .*: Not a directory; choose"):
        folder_lock(tmp_path / "file" / "folder").__enter__()


@posix
def test_locking_changes_no_file_of_the_locks_name(tmp_path):
    """Neither one with content, nor what a link points to."""
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    for name in ("symbolic", "hard", "copy", "fifo"):
        (tmp_path / name).mkdir()
    (tmp_path / "symbolic" / ".lock").symlink_to(mine)
    with pytest.raises(CheckpointError, match="symbolic link; delete it"):
        folder_lock(tmp_path / "symbolic").__enter__()
    (tmp_path / "hard" / ".lock").hardlink_to(mine)
    (tmp_path / "copy" / ".lock").write_text("mine")
    os.mkfifo(tmp_path / "fifo" / ".lock")
    for name in ("hard", "copy", "fifo"):
        with folder_lock(tmp_path / name):
            pass
    assert mine.read_text() == (tmp_path / "copy" / ".lock").read_text() == "mine"


# --- Ctrl-C -------------------------------------------------------------------------------------


@pytest.fixture
def ctrl_c():
    """Make SIGINT raise KeyboardInterrupt: background jobs of a shell start with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_comes_after_the_block(ctrl_c):
    done = []

    def work():
        with deferred_interrupts():
            signal.raise_signal(signal.SIGINT)
            done.append(1)
        done.append(2)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == [1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    thread = threading.Thread(target=lambda: deferred_interrupts().__enter__())
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("kind", ["safetensors", "any safetensors", "pt"])
def test_an_interrupt_at_any_call_while_tensors_are_read_stays_one(ctrl_c, tmp_path, kind):
    """The C code below turned some into "could not determine the shape of object type"."""
    path = tmp_path / "weights"
    tensors = {"a": torch.ones(2), "b": torch.zeros(3)}
    save_tensors(path, tensors, {"kind": "model"})
    if kind == "pt":
        torch.save(tensors, path)
    read = load_tensors if kind == "safetensors" else read_tensors
    read(Path(path))  # imports what it needs

    def interrupted_at(number):
        calls = 0

        def count(frame, event, argument):
            nonlocal calls
            calls += event == "call"
            if calls == number and event == "call":
                signal.raise_signal(signal.SIGINT)

        sys.setprofile(count)
        try:
            read(Path(path))
        finally:
            sys.setprofile(None)

    number, interrupted = 0, True
    while interrupted:
        number += 1
        try:
            interrupted_at(number)
            interrupted = False
        except KeyboardInterrupt:
            pass
    assert number > 20
