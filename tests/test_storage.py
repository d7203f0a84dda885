import errno
import os
import subprocess
import sys

import pytest
import torch

from reidguard import storage
from reidguard.errors import CheckpointError
from reidguard.storage import atomic_write, load_tensors, read_card, save_tensors


def test_tensors_and_card_come_back_and_the_bytes_repeat(tmp_path):
    tensors = {"a": torch.randn(3, 2), "b": torch.tensor(7), "shared": torch.ones(4)[::2]}
    save_tensors(tmp_path / "one", tensors, {"kind": "test", "eps": 8 / 255})
    save_tensors(
        tmp_path / "two", dict(reversed(tensors.items())), {"eps": 8 / 255, "kind": "test"}
    )
    loaded, card = load_tensors(tmp_path / "one")
    assert card["eps"] == 8 / 255
    assert read_card(tmp_path / "one") == card
    assert all(torch.equal(loaded[k], tensors[k]) for k in tensors)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


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
    assert os.listdir(tmp_path) == ["file"]


def test_a_full_disk_is_one_clear_error(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    save_tensors(tmp_path / "weights", {"a": torch.ones(2)}, {})
    monkeypatch.setattr(storage.safetensors.torch, "save_file", full)
    with pytest.raises(CheckpointError, match="No space left"):
        save_tensors(tmp_path / "weights", {"a": torch.zeros(2)}, {})
    assert load_tensors(tmp_path / "weights")[0]["a"].eq(1).all()
    assert os.listdir(tmp_path) == ["weights"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_folder_that_cannot_be_written_is_one_clear_error():
    with pytest.raises(CheckpointError, match="cannot write"):
        save_tensors("/dev/null/inside/weights", {"a": torch.ones(2)}, {})


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x80\x02}q\x00.", b"\xff" * 64])
def test_foreign_bytes_are_refused(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged or not"):
        load_tensors(tmp_path / "file")


def test_a_truncated_file_is_refused(tmp_path):
    save_tensors(tmp_path / "file", {"a": torch.ones(1000)}, {})
    whole = (tmp_path / "file").read_bytes()
    (tmp_path / "file").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        load_tensors(tmp_path / "file")


def test_missing_foreign_and_newer_files_are_told_apart(tmp_path):
    import safetensors.torch

    with pytest.raises(CheckpointError, match="no file"):
        load_tensors(tmp_path / "absent")
    safetensors.torch.save_file({"a": torch.ones(1)}, tmp_path / "foreign")
    with pytest.raises(CheckpointError, match="card is missing"):
        load_tensors(tmp_path / "foreign")
    save_tensors(tmp_path / "newer", {"a": torch.ones(1)}, {"schema": 999})
    with pytest.raises(CheckpointError, match="upgrade"):
        load_tensors(tmp_path / "newer")


def test_a_writer_killed_in_mid_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "file"
    target.write_text("old")
    code = (
        "import os, signal, sys; from reidguard.storage import atomic_write\n"
        "with atomic_write(sys.argv[1]) as t:\n"
        "    t.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(target)], check=False)
    assert done.returncode == -9
    assert target.read_text() == "old"
    storage.remove_temporaries(target)
    assert os.listdir(tmp_path) == ["file"]
