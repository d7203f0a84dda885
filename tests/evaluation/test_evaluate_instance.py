"""Instance attacks in evaluate, verify and save_adversarial: bound, with labels, on a device."""

import pytest
import torch

from reidguard.attacks import FNA, SMA, DeltaAttack, Guides, InstanceAttack
from reidguard.data import ReIDDataset
from reidguard.errors import CheckpointError, InputError
from reidguard.evaluation import Protocol, evaluate, extract_features, save_adversarial, verify
from reidguard.evaluation.features import attack_device
from reidguard.models import wrap_model
from reidguard.types import InputSpec

SIZE = (64, 32)
PROTOCOL = Protocol(image_size=SIZE)


def guides(model, people):
    features = extract_features(model, people.gallery, image_size=SIZE)
    return Guides(features, [s.pid for s in people.gallery])


class Brightness(InstanceAttack):
    """Brightens by as many grey levels as the given identity, 1 without one."""

    def search(self, x, clean, target):
        levels = torch.ones(len(x)) if target.pids is None else target.pids % 7
        return x + levels[:, None, None, None] / 255


def test_the_true_identities_are_knownon_demand(model, people):
    """With batches that do not end where the identities do, and only every second query."""
    attack = Brightness().bind(model)
    guessed = evaluate(model, people, attack, PROTOCOL, query_every=2)
    assert guessed.attacked.linf == pytest.approx(1 / 255, abs=1e-6)
    assert guessed.attack == {"name": "Brightness", "eps": 8 / 255}
    known = evaluate(model, people, attack, PROTOCOL, query_every=2, batch_size=5, with_labels=True)
    by_hand = ReIDDataset("all", [], people.query[::2], people.gallery)
    pids = [s.pid for s in by_hand.query]
    whole = evaluate(model, by_hand, attack.with_labels(pids), PROTOCOL)  # one batch
    assert known.attacked.ranking.ap.tolist() == pytest.approx(whole.attacked.ranking.ap.tolist())
    assert known.attacked.linf == pytest.approx(max(p % 7 for p in pids) / 255, abs=1e-6)
    assert known.attack == {"name": "Brightness", "eps": 8 / 255, "with_labels": True}
    assert "given the true identities" in known.to_markdown()
    assert "given" not in guessed.to_markdown()


def test_fna_knownthe_truth_differs_where_fna_guesses_wrong(model, people):
    """It guesses whom the nearest guide shows, which is the truth where rank-1 is."""
    queries = [s for s in people.query if s.camid == 1]
    gallery = [s for s in people.gallery if s.camid != 1]
    data = ReIDDataset("two cameras", [], queries, gallery)
    attack = FNA(steps=5).bind(model, guides(model, data))
    guessed = evaluate(model, data, attack, PROTOCOL)
    known = evaluate(model, data, attack, PROTOCOL, with_labels=True)
    right = guessed.clean.first_match == 1
    assert 0 < int(right.sum()) < len(queries)
    before, now = guessed.attacked.ranking.ap, known.attacked.ranking.ap
    assert now[right].tolist() == pytest.approx(before[right].tolist(), abs=1e-3)
    assert not torch.allclose(now[~right], before[~right], atol=1e-3)


def test_what_is_not_bound_is_refused_before_any_work(model, passes, people, tmp_path):
    for call in (
        lambda: evaluate(model, people, SMA(), PROTOCOL),
        lambda: verify(SMA(), people, image_size=SIZE),
        lambda: save_adversarial(SMA(), people, tmp_path / "images", image_size=SIZE),
    ):
        with pytest.raises(InputError, match=r"bind\(model\)"):
            call()
    assert passes == []
    assert not (tmp_path / "images").exists()


def test_labels_are_for_instance_attacks(model, passes, people, tmp_path):
    delta = DeltaAttack(size=SIZE)
    with pytest.raises(InputError, match="instance attacks"):
        evaluate(model, people, delta, PROTOCOL, with_labels=True)
    with pytest.raises(InputError, match="instance attacks"):
        evaluate(model, people, None, PROTOCOL, with_labels=True)
    with pytest.raises(InputError, match="instance attacks"):
        save_adversarial(delta, people, tmp_path, image_size=SIZE, with_labels=True)
    assert passes == []


def test_an_instance_attack_works_where_its_victim_is(model, people, tmp_path, monkeypatch):
    """The meta device stands for a GPU: an attack has no parameters that would tell."""
    far = wrap_model(torch.nn.Conv2d(3, 4, 3), input_spec=InputSpec(size=SIZE)).to("meta")
    attack = SMA().bind(far)
    assert attack_device(attack) == torch.device("meta")
    assert attack_device(SMA().bind(model), torch.device("meta")) == torch.device("cpu")
    with pytest.raises(InputError, match=r"model is on cpu, the attack on meta; bind it"):
        evaluate(model, people, attack, PROTOCOL)

    monkeypatch.setattr("reidguard.evaluation.save.attack_fingerprint", lambda *arguments: "none")
    seen = []

    class Recording(InstanceAttack):
        def search(self, x, clean, target):
            seen.append(x.device.type)
            raise InputError("seen enough")

    for call in (
        lambda: verify(Recording().bind(far), people, image_size=SIZE),
        lambda: save_adversarial(Recording().bind(far), people, tmp_path / "a", image_size=SIZE),
    ):
        with pytest.raises(InputError, match="seen enough"):
            call()
    assert seen == ["meta", "meta"]


def test_saved_images_are_those_of_the_8bit_figures_and_belong_to_a_victim(model, people, tmp_path):
    few = ReIDDataset("few", [], people.query[:6], people.gallery, root=people.root)
    attack = Brightness().bind(model)
    result = evaluate(model, few, attack, PROTOCOL, with_labels=True)
    folder = tmp_path / "images"
    options = {"image_size": SIZE, "batch_size": 4}
    save_adversarial(attack, few, folder, **options, with_labels=True)
    again = evaluate(model, few.with_query(folder), protocol=PROTOCOL)
    assert again.attacked_8bit.ranking.ap.tolist() == result.attacked_8bit.ranking.ap.tolist()
    save_adversarial(attack, few, folder, **options, with_labels=True)  # the same call goes on
    with pytest.raises(CheckpointError, match="with_labels: true stored"):
        save_adversarial(attack, few, folder, **options)
    other = wrap_model(torch.nn.Flatten(), input_spec=InputSpec(size=SIZE))
    for stranger in (Brightness().bind(other), attack.bind(model, guides(model, people))):
        with pytest.raises(CheckpointError, match="attack_fingerprint: "):
            save_adversarial(stranger, few, folder, **options, with_labels=True)


class Rows:
    """A target that is no module, and works at one image size only."""

    metric = "cosine"

    def __init__(self, factor=1):
        self.factor = factor

    def features(self, x):
        assert tuple(x.shape[2:]) == SIZE
        return self.factor * x.mean(3).flatten(1)


def test_targets_that_are_no_module_are_saved_and_resumed(people, tmp_path):
    few = ReIDDataset("few", [], people.query[:4], people.gallery, root=people.root)
    folder = save_adversarial(SMA(steps=2).bind(Rows()), few, tmp_path / "a", image_size=SIZE)
    files = sorted(folder.glob("*.png"))
    assert len(files) == 4
    before = [file.read_bytes() for file in files]
    files[0].unlink()
    times = [file.stat().st_mtime_ns for file in files[1:]]
    save_adversarial(SMA(steps=2).bind(Rows()), few, folder, image_size=SIZE)
    assert [file.read_bytes() for file in files] == before
    assert [file.stat().st_mtime_ns for file in files[1:]] == times
    with pytest.raises(CheckpointError, match="attack_fingerprint: "):
        save_adversarial(SMA(steps=2).bind(Rows(2)), few, folder, image_size=SIZE)
    assert len(few.with_query(folder).query) == 4  # what else lies in the folder is no query


def test_the_victim_comes_back_untouched_and_stays_inside_the_budget(model, people):
    few = ReIDDataset("few", [], people.query[:3], people.gallery)
    model.train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    assert verify(SMA(steps=2).bind(model), few, image_size=SIZE).passed
    evaluate(model, few, SMA(steps=2).bind(model), PROTOCOL)
    assert all(m.training for m in model.modules())
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
