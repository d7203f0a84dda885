"""Sharing through a folder, and through a hub that is a folder here: nothing touches a network."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from torch import nn

from reidguard.attacks import Attack, DeltaAttack
from reidguard.errors import CheckpointError, InputError
from reidguard.hub import from_pretrained, push_to_hub, save_pretrained
from reidguard.models import ReIDModel, create_model, wrap_model
from reidguard.storage import save_tensors
from reidguard.types import Budget


@pytest.fixture
def model() -> ReIDModel:
    torch.manual_seed(0)
    model = create_model("ide", backbone="test_resnet", size=(64, 32), num_classes={"a": 3})
    model.provenance = {"recipe": "none", "seed": 7}
    return model.eval()


@pytest.fixture
def attack() -> DeltaAttack:
    attack = DeltaAttack(Budget(4 / 255), size=(8, 4))
    nn.init.uniform_(attack.delta, -0.01, 0.01)
    return attack


def test_a_model_through_a_folder(tmp_path, model):
    folder = save_pretrained(model, tmp_path / "new" / "model")
    again = from_pretrained(folder)
    x = torch.rand(2, 3, 64, 32)
    assert torch.equal(again.features(x), model.features(x))
    assert again.provenance == model.provenance
    card = (folder / "README.md").read_text("utf-8")
    data = huggingface_hub.ModelCard(card).data
    assert data.library_name == "reidguard"
    assert data.tags == ["person-re-identification", "reidguard-model"]
    assert data.pipeline_tag == "image-feature-extraction"
    for fact in ('"backbone": "test_resnet"', '"a": 3', '"seed": 7', '"euclidean"', "torch"):
        assert fact in card
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "README.md"}


def test_an_attack_through_a_folder(tmp_path, attack):
    again = from_pretrained(str(save_pretrained(attack, tmp_path)))
    assert torch.equal(again.delta, attack.delta)
    card = (tmp_path / "README.md").read_text("utf-8")
    assert "ε = 4/255" in card
    assert "adversarial = attack(images)" in card
    assert huggingface_hub.ModelCard(card).data.tags[1] == "reidguard-attack"
    assert "no record of a training" in card


def test_an_edited_model_card_stays(tmp_path, attack):
    (tmp_path / "README.md").write_text("mine")
    save_pretrained(attack, tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """huggingface_hub, as far as it is used, on a folder."""
    root = tmp_path / "hub"
    seen: list = []

    class Api:
        def __init__(self, token=None):
            seen.append(("token", token))

        def create_repo(self, name, *, private, exist_ok):
            seen.append(("create", name, private, exist_ok))
            (root / name).mkdir(parents=True, exist_ok=exist_ok)

        def file_exists(self, name, file):
            return (root / name / file).exists()

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            seen.append(("bars off", huggingface_hub.utils.are_progress_bars_disabled()))
            shutil.copytree(folder_path, root / repo_id, dirs_exist_ok=True)
            return SimpleNamespace(commit_url=f"hub:{repo_id}/{commit_message}")

    def download(name, file, *, revision, token):
        seen.append(("download", name, file, revision, token))
        if not (root / name / file).exists():
            raise ConnectionError("no such repository\nand more")
        return str(root / name / file)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return SimpleNamespace(root=root, seen=seen)


def test_up_and_down(hub, model):
    bars = huggingface_hub.utils.are_progress_bars_disabled()
    url = push_to_hub(model, "me/net", private=True, token="t")
    assert url == "hub:me/net/Upload from reidguard"
    assert hub.seen[:2] == [("token", "t"), ("create", "me/net", True, True)]
    assert 'from_pretrained("me/net")' in (hub.root / "me/net/README.md").read_text("utf-8")
    assert ("bars off", True) in hub.seen
    again = from_pretrained("me/net", revision="abc", token="t")
    assert hub.seen[-1] == ("download", "me/net", "model.safetensors", "abc", "t")
    x = torch.rand(2, 3, 64, 32)
    assert torch.equal(again.features(x), model.features(x))
    assert huggingface_hub.utils.are_progress_bars_disabled() == bars
    (hub.root / "me/net/README.md").write_text("mine")
    push_to_hub(model, "me/net")
    assert (hub.root / "me/net/README.md").read_text() == "mine"


def test_what_is_not_there(hub, tmp_path, monkeypatch, attack):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"no folder me/none.*ConnectionError: no such") as e:
        from_pretrained("me/none")
    assert "and more" not in str(e.value)
    for wrong in ("none", "/a/b/c", "me/none/else"):
        with pytest.raises(CheckpointError, match="'owner/name'"):
            from_pretrained(wrong)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="there is no file"):
        from_pretrained("empty")
    save_tensors(tmp_path / "empty/model.safetensors", {"a": torch.zeros(1)}, {"kind": "run"})
    with pytest.raises(CheckpointError, match="neither a model nor an attack"):
        from_pretrained("empty")
    with pytest.raises(InputError, match="owner/name"):
        push_to_hub(attack, "name alone")


def test_a_folder_comes_before_the_hub(hub, tmp_path, monkeypatch, attack):
    monkeypatch.chdir(tmp_path)
    save_pretrained(attack, "me/net")
    assert isinstance(from_pretrained("me/net"), DeltaAttack)
    assert hub.seen == []


def test_a_refused_upload(hub, monkeypatch, attack):
    def refuse(self, *args, **kwargs):
        raise PermissionError("401 Unauthorized")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    with pytest.raises(CheckpointError, match=r"401 Unauthorized.*log in"):
        push_to_hub(attack, "me/net")

    def fail(self, *args, **kwargs):
        raise ConnectionError

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", fail)
    with pytest.raises(CheckpointError, match="ConnectionError: unknown reason"):
        push_to_hub(attack, "me/net")


def test_what_cannot_be_shared(tmp_path):
    with pytest.raises(InputError, match="not a Linear"):
        save_pretrained(nn.Linear(1, 1), tmp_path / "x")
    with pytest.raises(InputError, match="cannot be rebuilt"):
        save_pretrained(wrap_model(nn.Conv2d(3, 4, 3)), tmp_path / "x")

    class Nameless(Attack):
        def perturb(self, x):
            return x

    with pytest.raises(Exception, match="not a registered attack"):
        save_pretrained(Nameless(), tmp_path / "x")
    assert not (tmp_path / "x").exists()
