import errno
import json
import os

import pytest
import torch

from helpers import leave_temporary
from reidguard import storage
from reidguard.errors import CheckpointError
from reidguard.fingerprint import fingerprint, tensor_fingerprint
from reidguard.storage import (
    ResumableStore,
    changed_settings,
    load_tensors,
    read_card,
    save_tensors,
)


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


def test_a_full_disk_is_one_clear_error(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    save_tensors(tmp_path / "weights", {"a": torch.ones(2)}, {})
    monkeypatch.setattr(storage.safetensors.torch, "save_file", full)
    with pytest.raises(CheckpointError, match="No space left"):
        save_tensors(tmp_path / "weights", {"a": torch.zeros(2)}, {})
    assert load_tensors(tmp_path / "weights")[0]["a"].eq(1).all()
    assert os.listdir(tmp_path) == ["weights"]


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


# --- resumable stores ---------------------------------------------------------------------------

SETTINGS = {"seed": 0, "model": {"name": "ide", "size": (64, 32)}}


def test_entries_come_back_in_a_later_store(tmp_path):
    with ResumableStore(tmp_path / "run", SETTINGS, card="card.json") as store:
        assert store.get("cell", dict) is store.get_tensors("batch") is None
        store.put("cell", {"mAP": 0.5})
        store.put_tensors("batch", {"a": torch.arange(3)}, {"done": 2})
    assert json.loads((tmp_path / "run" / "card.json").read_text()) == {
        "seed": 0,
        "model": {"name": "ide", "size": [64, 32]},
    }
    with ResumableStore(tmp_path / "run", SETTINGS, card="card.json") as store:
        assert store.get("cell", dict[str, float]) == {"mAP": 0.5}
        tensors, values = store.get_tensors("batch")
        assert tensors["a"].tolist() == [0, 1, 2]
        assert values["done"] == 2


def test_damaged_entries_are_absent(tmp_path):
    with ResumableStore(tmp_path, SETTINGS) as store:
        store.put("cell", {"mAP": 0.5})
        store.put_tensors("batch", {"a": torch.arange(3)}, {})
        for file in (tmp_path / "cell.json", tmp_path / "batch.safetensors"):
            file.write_bytes(file.read_bytes()[:-4])
        assert store.get("cell", dict) is store.get_tensors("batch") is None


def test_tensors_of_another_store_are_absent(tmp_path):
    """As when somebody copies files from the folder of another run."""
    with ResumableStore(tmp_path / "a", {"seed": 1}) as store:
        store.put_tensors("batch", {"a": torch.ones(1)}, {})
    with ResumableStore(tmp_path / "b", {"seed": 2}) as store:
        os.rename(tmp_path / "a" / "batch.safetensors", tmp_path / "b" / "batch.safetensors")
        assert store.get_tensors("batch") is None


def test_other_settings_are_refused_and_listed(tmp_path):
    with ResumableStore(tmp_path, SETTINGS) as store:
        store.put("cell", 1)
    other = {"seed": 1, "model": {"name": "ide", "size": (32, 16)}}
    with pytest.raises(CheckpointError) as error, ResumableStore(tmp_path, other):
        pass
    assert "seed: 0 stored, 1 now; model size: [64, 32] stored, [32, 16] now" in str(error.value)
    assert "name" not in str(error.value)
    with ResumableStore(tmp_path, SETTINGS) as store:
        assert store.get("cell", int) == 1


def test_changed_settings_names_what_was_added_and_removed():
    assert changed_settings(SETTINGS, SETTINGS) == ""
    assert changed_settings({"a": 1}, {"b": []}) == "a: 1 stored, null now; b: null stored, [] now"
    assert "..." in changed_settings({"a": "x" * 30}, {})


def test_folders_of_others_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"other files, such as notes\.txt"):
        ResumableStore(tmp_path, {}).__enter__()
    with pytest.raises(CheckpointError, match="is a file"):
        ResumableStore(tmp_path / "notes.txt", {}).__enter__()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_only_listed_files_are_accepted_beside_the_card(tmp_path):
    def enter():
        with ResumableStore(tmp_path, SETTINGS, files=["a.png", "sub/b.png"]):
            pass

    enter()
    (tmp_path / "sub").mkdir()
    for name in ("a.png", "sub/b.png"):
        (tmp_path / name).write_text("")
    enter()
    (tmp_path / "sub" / "c.png").write_text("")
    with pytest.raises(CheckpointError, match=r"sub/c\.png"):
        enter()


def test_what_killed_writers_left_is_removed(tmp_path):
    """Also where the first one died before there was a card."""
    leave_temporary(tmp_path)
    (tmp_path / ".notes.tmp").write_text("mine")
    with pytest.raises(CheckpointError, match=r"\.notes\.tmp"):
        ResumableStore(tmp_path, {}).__enter__()
    (tmp_path / ".notes.tmp").unlink()
    with ResumableStore(tmp_path, SETTINGS):
        assert sorted(os.listdir(tmp_path)) == [".lock", "settings.json"]


@pytest.mark.parametrize("name", ["../a.png", "/tmp/a.png", "b/../../a.png", "link/a.png"])
def test_files_outside_the_folder_are_refused_before_anything_is_written(tmp_path, name):
    folder = tmp_path / "store"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    with (
        pytest.raises(CheckpointError, match="is not inside"),
        ResumableStore(folder, {"seed": 0}, files=["a.png", name]),
    ):
        pass
    assert [p.name for p in folder.iterdir()] == ["link"]
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


def test_a_folder_that_is_a_link_is_no_stranger(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "folder").symlink_to(tmp_path / "real")
    with ResumableStore(tmp_path / "folder", {"seed": 0}, files=["a/b.png"]):
        assert (tmp_path / "real" / "settings.json").is_file()


def test_a_store_in_use_is_refused(tmp_path):
    with (
        ResumableStore(tmp_path, {}),
        pytest.raises(CheckpointError, match="another process"),
        ResumableStore(tmp_path, {}),
    ):
        pass


def test_a_store_without_a_folder_stores_nothing():
    with ResumableStore(None, SETTINGS) as store:
        store.put("cell", 1)
        store.put_tensors("batch", {"a": torch.ones(1)}, {})
        assert store.get("cell", dict) is store.get_tensors("batch") is None


def test_fingerprints():
    assert fingerprint({"a": (1,), "b": 2}) == fingerprint({"b": 2, "a": [1]})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    zeros = torch.zeros(4)
    others = (zeros.view(2, 2), zeros.double(), zeros + 1, torch.zeros(8))
    assert tensor_fingerprint(zeros) == tensor_fingerprint(torch.zeros(8)[::2])
    assert len({tensor_fingerprint(t) for t in (zeros, *others)}) == 5
