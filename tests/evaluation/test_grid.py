"""The grid: its cells against explicit calls, its names, its means, and what a kill leaves."""

from __future__ import annotations

import csv
import io
import json
import re

import pytest
import torch
from torch import nn

from reidguard.attacks import FNA, SMA, DeltaAttack, Guides, PatternAttack, fixed_patterns
from reidguard.errors import CheckpointError, InputError
from reidguard.evaluation import (
    FeatureStore,
    GridCell,
    GridResult,
    Protocol,
    evaluate,
    evaluate_grid,
    save_adversarial,
)
from reidguard.evaluation.evaluate import evaluate_with
from reidguard.models import wrap_model
from reidguard.report import read_run, report_page
from reidguard.types import Budget, InputSpec
from reidguard.virtual import read_virtual

SMALL = Protocol(image_size=(64, 32))
SIZES = {"train_identities": 2, "test_identities": 3, "cameras": 2, "images_per_camera": 2}


@pytest.fixture(scope="module")
def crowds(tmp_path_factory):
    root = tmp_path_factory.mktemp("crowds")
    return {
        name: read_virtual(domain, root=root / name, height=64, **SIZES)
        for name, domain in (("here", "plaza"), ("there", "campus"))
    }


def network(seed):
    torch.manual_seed(seed)
    layers = nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d((4, 2)), nn.Flatten()
    )
    return wrap_model(layers, input_spec=InputSpec(size=(32, 16)))


@pytest.fixture(scope="module")
def networks():
    return {
        "A": {"here": network(0), "there": network(1)},
        "B": {"here": network(2), "there": network(3)},
    }


@pytest.fixture(scope="module")
def attack(crowds, networks):
    """Learnt on A and the people here."""
    return learnt(networks["A"]["here"], crowds["here"])


def learnt(model, people):
    return DeltaAttack(size=(64, 32)).fit(
        model, people, steps=3, identities=2, images_per_identity=2, image_size=(64, 32)
    )


def figures(evaluation):
    return {k: v for k, v in evaluation.items() if k not in ("seconds", "versions")}


def test_cells_are_those_of_explicit_calls(attack, networks, crowds):
    fresh = DeltaAttack(size=(64, 32))
    grid = evaluate_grid(
        {"delta": attack, "none": fresh},
        networks,
        crowds,
        SMALL,
        sources={"none": ("elsewhere", "here")},
        patterns=False,
    )
    assert [(c.attack, c.model, c.dataset, c.setting) for c in grid.cells] == [
        ("delta", "A", "here", "source"),
        ("delta", "A", "there", "cross-dataset"),
        ("delta", "B", "here", "cross-model"),
        ("delta", "B", "there", "cross-model & dataset"),
        ("none", "A", "here", "cross-model"),
        ("none", "A", "there", "cross-model & dataset"),
        ("none", "B", "here", "cross-model"),
        ("none", "B", "there", "cross-model & dataset"),
    ]
    for cell in grid.cells:
        one = {"delta": attack, "none": fresh}[cell.attack]
        alone = evaluate(networks[cell.model][cell.dataset], crowds[cell.dataset], one, SMALL)
        assert figures(cell.evaluation) == figures(alone.to_dict())
        assert not cell.meta_test


def test_a_network_without_a_model_for_a_dataset_leaves_that_cell_out(attack, networks, crowds):
    foreign = network(3)
    foreign.provenance = {"train": {"fingerprint": "of none of the datasets here"}}
    models = {**networks, "B": {"there": foreign}}
    grid = evaluate_grid({"delta": attack}, models, crowds, SMALL, patterns=False)
    assert [(c.model, c.dataset) for c in grid.cells] == [
        ("A", "here"),
        ("A", "there"),
        ("B", "there"),
    ]


def test_one_model_serves_all_datasets(attack, networks, crowds):
    models = {"A": networks["A"]["here"]}
    grid = evaluate_grid({"delta": attack}, models, crowds, SMALL, patterns=False)
    assert [(c.dataset, c.setting) for c in grid.cells] == [
        ("here", "source"),
        ("there", "cross-dataset"),
    ]


def test_the_strongest_fixed_pattern_is_the_baseline(attack, networks, crowds, tmp_path):
    seen = []
    options = {"folder": tmp_path, "progress": lambda *counts: seen.append(counts)}
    given = {"delta": attack, "mine": PatternAttack(Budget(4 / 255), "tint")}
    grid = evaluate_grid(given, {"A": networks["A"]}, crowds, SMALL, **options)
    assert [(c.attack, c.dataset, c.setting) for c in grid.cells] == [
        ("delta", "here", "source"),
        ("delta", "there", "cross-dataset"),
        ("mine", "here", "knows nothing"),
        ("mine", "there", "knows nothing"),
        ("fixed pattern", "here", "knows nothing"),
        ("fixed pattern", "there", "knows nothing"),
    ]
    assert seen[-1] == (2 * (2 + 9), 2 * (2 + 9))
    for cell in grid.cells[4:]:
        model, people = networks["A"][cell.dataset], crowds[cell.dataset]
        alone = {
            name: evaluate(model, people, pattern, SMALL).to_dict()
            for name, pattern in fixed_patterns(attack.budget).items()
        }
        best = min(alone, key=lambda name: alone[name]["attacked_8bit"]["mAP"])
        alone[best]["attack"]["pattern"] = best
        assert figures(cell.evaluation) == figures(alone[best])
        assert f"| knows nothing: {best}" in grid.to_markdown()
    assert [(m["attack"], m["cells"]) for m in grid.means() if m["setting"] == "knows nothing"] == [
        ("mine", 2),
        ("fixed pattern", 2),
    ]
    page = report_page([read_run(tmp_path)])
    assert "fixed pattern" in page
    assert "knows nothing" in page


def test_each_budget_has_its_own_fixed_pattern(attack, networks, crowds):
    small = DeltaAttack(Budget(2 / 255), size=(64, 32))
    models, people = {"A": networks["A"]["here"]}, {"here": crowds["here"]}
    sources = {"delta": ("B", "here"), "small": ("B", "here")}
    given = {"delta": attack, "small": small}
    grid = evaluate_grid(given, models, people, SMALL, sources=sources)
    found = {c.attack: c.eps * 255 for c in grid.cells if c.setting == "knows nothing"}
    assert found == pytest.approx({"fixed pattern, ε 8/255": 8, "fixed pattern, ε 2/255": 2})
    # A baseline is for attacks that are measured beyond their source.
    grid = evaluate_grid(given, models, people, SMALL, sources={"small": ("A", "here")})
    assert [cell.setting for cell in grid.cells] == ["source", "source"]


def test_gallery_and_clean_queries_are_extracted_once(networks, crowds):
    model, people = network(0), crowds["here"]
    seen = []
    model.network.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    attacks = {f"delta {i}": DeltaAttack(size=(64, 32)) for i in range(3)}
    evaluate_grid(
        attacks,
        {"A": model},
        {"here": people},
        SMALL,
        sources=dict.fromkeys(attacks, ("A", "here")),
    )
    # Clean images once; each attack's float and 8-bit queries; two images each time for a key.
    keys = 2 * len(attacks)
    assert sum(seen) == keys + len(people.gallery) + (1 + 2 * 3) * len(people.query)


def test_instance_attacks(networks, crowds):
    """Bound, they transfer; not bound, each cell's own model is attacked, with its gallery."""
    bound = SMA(steps=2).bind(networks["A"]["there"])
    grid = evaluate_grid(
        {"white box": SMA(steps=2), "guided": FNA(steps=2), "transfer": bound},
        networks,
        crowds,
        SMALL,
    )
    cells = {(c.attack, c.model, c.dataset): c for c in grid.cells}
    assert cells["transfer", "A", "there"].setting == "source"
    assert cells["transfer", "A", "here"].setting == "cross-dataset"
    assert cells["transfer", "B", "there"].setting == "cross-model"
    for model, place in (("A", "here"), ("B", "there")):
        assert cells["white box", model, place].setting == "source"
        target, people = networks[model][place], crowds[place]
        alone = evaluate(target, people, SMA(steps=2).bind(target), SMALL).to_dict()
        assert figures(cells["white box", model, place].evaluation) == figures(alone)
        features = FeatureStore().features(target, people, "gallery", image_size=(64, 32))
        guides = Guides(features, [sample.pid for sample in people.gallery])
        alone = evaluate(target, people, FNA(steps=2).bind(target, guides), SMALL).to_dict()
        assert figures(cells["guided", model, place].evaluation) == figures(alone)


def test_the_meta_test_set_is_not_unseen(attack, networks, crowds):
    facts = dict(attack.provenance)
    facts["meta_test"] = {"name": "there", "train": crowds["there"].fingerprint("train")}
    learnt = DeltaAttack(size=(64, 32))
    learnt.provenance = facts
    grid = evaluate_grid({"delta": learnt}, {"A": networks["A"]}, crowds, SMALL, patterns=False)
    assert [cell.meta_test for cell in grid.cells] == [False, True]
    assert "| cross-dataset* " in grid.to_markdown()
    assert "not unseen" in grid.to_markdown()


def test_a_kill_between_cells_loses_nothing(attack, networks, crowds, tmp_path, monkeypatch):
    whole = evaluate_grid({"delta": attack}, networks, crowds, SMALL, patterns=False)
    options = {"patterns": False, "folder": tmp_path}

    def killed(done, total):
        assert total == 4
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_grid({"delta": attack}, networks, crowds, SMALL, **options, progress=killed)
    assert not (tmp_path / "grid.json").exists()
    cells = sorted((tmp_path / "cells").iterdir())
    assert len(cells) == 3
    cells[0].write_text(cells[0].read_text()[:50])  # a disk that lost a part of a file
    calls = []

    def counted(*arguments, **options):
        calls.append(arguments)
        return evaluate_with(*arguments, **options)

    monkeypatch.setattr("reidguard.evaluation.grid.evaluate_with", counted)
    again = evaluate_grid({"delta": attack}, networks, crowds, SMALL, **options)
    assert len(calls) == 2  # the one that was missing and the one that was damaged
    assert [figures(c.evaluation) for c in again.cells] == [
        figures(c.evaluation) for c in whole.cells
    ]
    assert json.loads((tmp_path / "grid.json").read_text()) == again.to_dict()

    # Whatever changes the figures is measured again; what does not change them is not.
    calls.clear()
    options["sources"] = {"renamed": ("A", "here")}
    evaluate_grid({"renamed": attack}, {"C": networks["A"]}, crowds, SMALL, **options)
    assert calls == []
    other = DeltaAttack(size=(64, 32))
    other.load_state_dict(attack.state_dict())
    with torch.no_grad():
        other.delta[0, 0, 0, 0] += 1 / 255
    for changed in (
        {"attacks": {"renamed": other}},
        {"models": {"A": network(7)}},
        {"protocol": Protocol(image_size=(64, 32), metric="cosine")},
        {"query_every": 2},
    ):
        calls.clear()
        asked = {
            "attacks": {"renamed": attack},
            "models": {"A": networks["A"]["here"]},
            "datasets": {"here": crowds["here"]},
            "protocol": SMALL,
        }
        evaluate_grid(**{**asked, **changed}, **options)
        assert len(calls) == 1, changed


def made(attack, setting, clean, attacked, levels=8):
    figure = {"mINP": 0.0, "linf_255": levels, "psnr": None, "ssim": 0.9, "ms_ssim": 0.95}
    return GridCell(
        attack,
        "net_1",
        "a|b",
        setting,
        False,
        {
            "clean": {"mAP": clean, "cmc": [clean], **figure},
            "attacked": {"mAP": attacked, "cmc": [attacked / 2], **figure},
            "attacked_8bit": {"mAP": attacked, "cmc": [attacked], **figure},
            "attack": {"name": "DeltaAttack", "eps": levels / 255},
            "counts": {"query": 5},
        },
    )


@pytest.fixture
def by_hand():
    return GridResult(
        (
            made("x", "source", 0.8, 0.2),
            made("x", "cross-model", 0.5, 0.25),
            made("x", "cross-model", 0.4, 0.1),
            made("x", "cross-dataset", 0.0, 0.0),
            made("y", "source", 0.5, 0.6),
        )
    )


def test_means_by_hand(by_hand):
    first, second, third, fourth = by_hand.means()
    assert (first["attack"], first["setting"], first["cells"]) == ("x", "source", 1)
    assert first["mDR"] == pytest.approx(0.75)
    assert (second["setting"], second["cells"]) == ("cross-model", 2)
    assert second["clean"]["mAP"] == pytest.approx(0.45)
    assert second["attacked"] == {"mAP": pytest.approx(0.175), "rank1": pytest.approx(0.0875)}
    # Rates are averaged: (0.5 + 0.75) / 2, and not (0.45 - 0.175) / 0.45 = 0.611.
    assert second["mDR"] == second["mDR_8bit"] == pytest.approx(0.625)
    assert third["mDR"] is None
    assert fourth["mDR"] == pytest.approx(-0.2)


def test_every_form_has_the_figures(by_hand, tmp_path):
    markdown = by_hand.to_markdown()
    cells = [re.sub(" +", " ", line) for line in markdown.splitlines()]
    assert "| x | cross-model | 2 | 45.0 | 45.0 | 17.5 | 8.8 | 17.5 | 17.5 | 62.5 |" in cells
    row = "| source | net_1 | a\\|b | attacked, float | 20.0 | 10.0 |"
    assert any(line.startswith(row) for line in cells)
    latex = by_hand.to_latex()
    assert r"source & net\_1 & a|b & clean & 80.0" in latex
    assert r"cross-model \& dataset" not in latex
    assert r"\begin{tabular}{llrrrrrrrr}" in latex
    assert r"\begin{tabular}{llllrrrrrr}" in latex
    lines = list(csv.DictReader(io.StringIO(by_hand.to_csv())))
    assert len(lines) == 5
    assert float(lines[1]["attacked_mAP"]) == 0.25
    assert float(lines[1]["attacked_rank1"]) == 0.125
    assert lines[3]["attacked_drop"] == ""
    assert lines[0]["dataset"] == "a|b"
    assert json.loads(by_hand.to_json())["cells"][0]["drop"] == pytest.approx(0.75)
    for suffix, text in (("md", markdown), ("tex", latex), ("csv", by_hand.to_csv())):
        by_hand.save(tmp_path / f"grid.{suffix}")
        assert (tmp_path / f"grid.{suffix}").read_text("utf-8") == text
    with pytest.raises(InputError, match=r"\.json, \.csv, \.md, \.tex"):
        by_hand.save(tmp_path / "grid.xlsx")


def test_mistakes_are_told_before_anything_is_measured(attack, networks, crowds):
    def call(attacks=None, models=None, **options):
        evaluate_grid(attacks or {"x": attack}, models or networks, crowds, SMALL, **options)

    with pytest.raises(
        InputError, match="attack 'x' does not say what it was learnt on; pass sources="
    ):
        call({"x": DeltaAttack(size=(64, 32))})
    with pytest.raises(InputError, match="learnt on a model, which the grid does not have"):
        call(models={"B": networks["B"]})
    with pytest.raises(InputError, match=r"training images \(virtual:plaza\)"):
        evaluate_grid({"x": attack}, {"A": networks["A"]["here"]}, {"t": crowds["there"]}, SMALL)
    with pytest.raises(InputError, match="bound to a model that is none"):
        call({"x": SMA().bind(network(9))})
    with pytest.raises(InputError, match="'nowhere', which is none of the datasets"):
        call(models={"A": {"nowhere": network(0)}})
    with pytest.raises(InputError, match="sources names 'y'"):
        call(sources={"y": ("A", "here")})
    with pytest.raises(InputError, match="at least one attack"):
        evaluate_grid({}, networks, crowds)
    swapped = network(5)
    swapped.provenance = {"train": {"fingerprint": crowds["there"].fingerprint("train")}}
    with pytest.raises(InputError, match="'here' was trained on 'there'"):
        call(models={**networks, "C": {"here": swapped}})


def test_another_input_spec_or_other_guides_are_measured_again(networks, crowds, tmp_path):
    """Equal weights are not equal attacks: the surrogate's size and the guides' names count."""
    people = crowds["here"]
    model = networks["A"]["here"]

    def surrogate(size):
        return wrap_model(model.network, input_spec=InputSpec(size=size))

    features = FeatureStore().features(model, people, "gallery", image_size=(64, 32))
    pids = [sample.pid for sample in people.gallery]
    attacks = [SMA(steps=2).bind(surrogate(size)) for size in ((32, 16), (16, 8))]
    attacks += [
        FNA(steps=2).bind(model, Guides(features, names))
        for names in (pids, pids[::-1], [pid + 1 for pid in pids])
    ]
    cells = []
    for number, attack in enumerate(attacks, 1):
        for _ in range(2):
            grid = evaluate_grid(
                {"x": attack},
                {"A": model},
                {"here": people},
                SMALL,
                sources={"x": ("A", "here")},
                folder=tmp_path / "grid",
            )
            assert len(list((tmp_path / "grid" / "cells").iterdir())) == number
        alone = evaluate(model, people, attack, SMALL).to_dict()
        assert figures(grid.cells[0].evaluation) == figures(alone)
        cells.append(alone["attacked"]["ssim"])
        save_adversarial(attack, people, tmp_path / str(number), image_size=(64, 32))
        if number > 1:
            with pytest.raises(CheckpointError, match="attack_fingerprint: "):
                save_adversarial(attack, people, tmp_path / "1", image_size=(64, 32))
    assert cells[0] != cells[1]


def test_equal_weights_behind_another_input_spec_are_no_source(networks, crowds):
    """Neither for the target of an instance attack nor for the surrogate of a learnt one."""
    people, model = crowds["here"], networks["A"]["here"]
    resized = wrap_model(model.network, input_spec=InputSpec(size=(16, 8)))
    options = {"steps": 1, "identities": 2, "images_per_identity": 2, "image_size": (64, 32)}
    for attack, message in (
        (SMA(steps=1).bind(resized), "bound to a model that is none"),
        (DeltaAttack(size=(64, 32)).fit(resized, people, **options), "learnt on a model, which"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate_grid({"x": attack}, {"A": model}, {"here": people}, SMALL)
        models = {"A": model, "B": resized}
        grid = evaluate_grid({"x": attack}, models, {"here": people}, SMALL, patterns=False)
        assert [cell.setting for cell in grid.cells] == ["cross-model", "source"]
