"""``reidguard attack`` with instance attacks, and with a surrogate."""

import json

import pytest
import torch

from reidguard.attacks import (
    ATTACKS,
    FNA,
    SMA,
    Attack,
    DeltaAttack,
    Guides,
    load_attack,
    register_attack,
)
from reidguard.cli import main
from reidguard.evaluation import Protocol, evaluate, extract_features
from reidguard.models import create_model, load_model
from reidguard.types import Budget

SIZE = (64, 32)
PROTOCOL = Protocol(image_size=SIZE)
SHORT = ["--set", "steps=2", "--query-every", "8"]


def result_of(folder):
    return json.loads((folder / "result.json").read_text())["evaluation"]


def same(saved, expected):
    return all(saved[part] == expected[part] for part in ("clean", "attacked", "attacked_8bit"))


@pytest.fixture
def model(trained):
    return load_model(trained / "model.safetensors")


@pytest.fixture(scope="module")
def surrogate(tmp_path_factory):
    """Another network, with other weights, in a file."""
    from reidguard.models import create_model

    torch.manual_seed(3)
    model = create_model("ide", backbone="test_resnet", size=(32, 16))
    path = tmp_path_factory.mktemp("surrogate") / "model.safetensors"
    model.save(path)
    return path


def guides(model, dataset):
    features = extract_features(model, dataset.gallery, image_size=SIZE)
    return Guides(features, [s.pid for s in dataset.gallery])


def test_sma_is_bound_evaluated_and_saved(target, model, studio, tmp_path, capsys):
    call = ["attack", *target, "--attack", "sma", *SHORT, "--set", "restarts=2"]
    call += ["--eps", "4/255", "--out", str(tmp_path / "run")]
    assert main(call) == 0
    assert "under SMA, ε = 4/255" in capsys.readouterr().out
    saved_attack = load_attack(tmp_path / "run" / "attack.safetensors")
    assert isinstance(saved_attack, SMA)
    assert (saved_attack.steps, saved_attack.restarts, saved_attack.budget.levels) == (2, 2, 4)
    own = SMA(Budget(4 / 255), steps=2, restarts=2).bind(model)
    expected = evaluate(model, studio, own, PROTOCOL, query_every=8).to_dict()
    assert same(result_of(tmp_path / "run"), expected)
    assert result_of(tmp_path / "run")["attack"] == {"name": "SMA", "eps": 4 / 255}
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    assert set(before) >= {"manifest.json", "attack.safetensors", "result.json", "result.md"}
    assert not {"metrics.jsonl", "checkpoint.safetensors"} & set(before)
    assert main(call) == 0
    assert "already finished" in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()} == before


def test_a_loaded_attack_gives_the_same_results(target, tmp_path):
    call = ["attack", *target, "--attack", "metric_fgsm", "--query-every", "8"]
    assert main([*call, "--out", str(tmp_path / "created")]) == 0
    load = ["--load", str(tmp_path / "created" / "attack.safetensors"), "--query-every", "8"]
    assert main(["attack", *target, *load, "--out", str(tmp_path / "loaded")]) == 0
    assert same(result_of(tmp_path / "loaded"), result_of(tmp_path / "created"))
    assert not (tmp_path / "loaded" / "attack.safetensors").exists()


def test_guides_are_the_gallery_and_labels_can_be_used(target, model, studio, tmp_path):
    call = ["attack", *target, "--attack", "fna", *SHORT]
    assert main([*call, "--out", str(tmp_path / "guessed")]) == 0
    images = tmp_path / "images"
    labels = ["--with-labels", "--out", str(tmp_path / "labelled"), "--save-images", str(images)]
    assert main([*call, *labels]) == 0
    attack = FNA(steps=2).bind(model, guides(model, studio))
    for name, with_labels in (("guessed", False), ("labelled", True)):
        expected = evaluate(
            model, studio, attack, PROTOCOL, query_every=8, with_labels=with_labels
        ).to_dict()
        assert same(result_of(tmp_path / name), expected)
    assert result_of(tmp_path / "labelled")["attack"]["with_labels"] is True
    assert len(list(images.glob("*.png"))) == len(studio.query[::8])
    assert json.loads((images / "adversarial.json").read_text())["with_labels"] is True
    assert main([*call, "--with-labels", "--out", str(tmp_path / "guessed")]) == 2


@pytest.mark.parametrize("name", ["sma", "fna"])
def test_transfer_from_a_surrogate(target, model, surrogate, studio, tmp_path, name):
    call = ["attack", *target, "--attack", name, *SHORT, "--surrogate", str(surrogate)]
    assert main([*call, "--out", str(tmp_path / "run")]) == 0
    source = load_model(surrogate)
    gallery = guides(source, studio)
    own = ATTACKS.get(name)(steps=2).bind(source, gallery)
    expected = evaluate(model, studio, own, PROTOCOL, query_every=8).to_dict()
    assert same(result_of(tmp_path / "run"), expected)
    settings = json.loads((tmp_path / "run" / "manifest.json").read_text())["settings"]
    assert settings["surrogate"]["weights"] != settings["model"]["weights"]


def test_a_universal_attack_learns_on_the_surrogate(target, model, surrogate, studio, tmp_path):
    call = ["attack", *target, "--steps", "2", "--surrogate", str(surrogate)]
    assert main([*call, "--query-every", "8", "--out", str(tmp_path / "run")]) == 0
    own = DeltaAttack(size=SIZE).fit(load_model(surrogate), studio, steps=2, image_size=SIZE)
    attack = load_attack(tmp_path / "run" / "attack.safetensors")
    assert torch.equal(attack.delta, own.delta)
    expected = evaluate(model, studio, own, PROTOCOL, query_every=8).to_dict()
    assert same(result_of(tmp_path / "run"), expected)


def test_a_surrogate_by_name_and_options(target, tmp_path, capsys):
    call = ["attack", *target, "--attack", "sma", *SHORT, "--surrogate", "ide"]
    call += ["--surrogate-set", "backbone=test_resnet", "--surrogate-set", "size=64x32"]
    assert main([*call, "--out", str(tmp_path / "run")]) == 0
    assert "no weights are given for ide" in capsys.readouterr().err


def test_options_that_do_not_fit_are_refused(target, surrogate, tmp_path, refused):
    sma = ["attack", *target, "--attack", "sma"]
    line = refused(*sma, "--steps", 15, "--lr", "1e-3", "--seed", 1)
    assert "sma is an instance attack and learns nothing" in line
    assert all(option in line for option in ("leave out", "--steps", "--lr", "--seed"))
    assert "--set steps=15" in line
    assert "leave out --objective, --learner" in refused(
        *sma, "--objective", "misranking", "--learner", "plain"
    )
    assert "it takes: budget, steps" in refused(*sma, "--set", "stepps=3")
    assert "steps must be a whole number, at least 1" in refused(*sma, "--set", "steps=0")
    assert "write --eps 8/255" in refused(*sma, "--set", "eps=8")
    assert "leave --with-labels out" in refused(*sma, "--with-labels")
    assert "leave --with-labels out" in refused("attack", *target, "--with-labels")
    assert "no colour table" in refused(*sma, "--cube", tmp_path / "x.cube")
    assert "give --surrogate, too" in refused(*sma, "--surrogate-set", "size=64x32")
    DeltaAttack(size=SIZE).save(tmp_path / "delta.safetensors")
    assert "leave it out" in refused(
        "attack", *target, "--load", tmp_path / "delta.safetensors", "--surrogate", surrogate
    )


def test_an_attack_of_neither_kind_is_evaluated_as_it_is(target, refused, monkeypatch, tmp_path):
    monkeypatch.setattr(ATTACKS, "_factories", dict(ATTACKS._factories))

    @register_attack("identity")
    class Identity(Attack):
        def perturb(self, x):
            return x

    call = ["attack", *target, "--attack", "identity", "--out", str(tmp_path / "run")]
    assert main([*call, "--query-every", "16"]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text("utf-8"))
    assert result["evaluation"]["attacked"]["linf_255"] == 0.0
    assert "learns nothing: leave out --lr" in refused(*call, "--lr", "0.1")


def test_a_model_without_gradients_is_one_warning(data, tmp_path, capsys):
    """Said by learning and by evaluation, printed once, and kept in the result."""
    model = create_model("ide", backbone="test_resnet", size=(64, 32))
    with torch.no_grad():
        next(p for p in model.parameters() if p.dim() == 4).zero_()
    model.save(tmp_path / "dead.safetensors")
    call = ["attack", *data, "--model", tmp_path / "dead.safetensors", "--image-size", "64x32"]
    call += ["--steps", "1", "--query-every", "8", "--out", tmp_path / "run"]
    assert main([str(argument) for argument in call]) == 0
    output = capsys.readouterr()
    text = "100 % of the gradients of DeltaAttack are zero or not finite"
    assert output.err.count(text) == output.out.count(text) == 1
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["evaluation"]["attack"]["zero_gradients"] == 1.0
    assert result["training"]["zero_gradients"] == 1.0
