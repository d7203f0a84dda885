"""The protocol's ways to score: re-ranking, mirror images and several images of a query."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch

from reidguard.attacks import SMA, DeltaAttack
from reidguard.data import decode_image
from reidguard.errors import InputError
from reidguard.evaluation import (
    FeatureStore,
    Protocol,
    RetrievalAutoAttack,
    audit,
    evaluate,
    evaluate_grid,
    extract_features,
    save_adversarial,
)
from reidguard.evaluation.multi_query import QueryGroups
from reidguard.metrics import Reranking, rank
from reidguard.models import FastModel, FlipModel
from reidguard.types import Budget

SIZE = (64, 32)
PLAIN = Protocol(image_size=SIZE)


def labels(dataset):
    return {
        f"{split}_{kind}s": [getattr(s, kind) for s in dataset.split(split)]
        for split in ("query", "gallery")
        for kind in ("pid", "camid")
    }


def adversarial_features(model, attack, dataset):
    """Features of the queries attacked one by one."""
    with torch.no_grad():
        return model.eval().features(attack(pixels(dataset.query)))


def noise(eps):
    attack = DeltaAttack(Budget(eps), size=SIZE)
    generator = torch.Generator().manual_seed(0)
    attack.delta.data.copy_(eps * torch.randn(attack.delta.shape, generator=generator).sign())
    return attack


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_clean_and_attacked_queries_are_reranked(model, people, metric):
    chosen = Reranking(k1=6, k2=3, weight=0.2)
    protocol = Protocol(image_size=SIZE, metric=metric, rerank=chosen)
    attack = SMA(Budget(4 / 255), steps=2, seed=1).bind(model)
    result = evaluate(model, people, attack, protocol)
    gallery = extract_features(model, people.gallery, image_size=SIZE)
    query = extract_features(model, people.query, image_size=SIZE)
    own = {**labels(people), "metric": Reranking(metric, k1=6, k2=3, weight=0.2)}
    expected = rank(query, gallery, **own)
    assert torch.equal(result.clean.ap, expected.ap)
    assert result.clean.mAP != evaluate(model, people, None, PLAIN).clean.mAP
    adversarial = adversarial_features(model, attack, people)
    assert result.attacked.ranking.mAP == rank(adversarial, gallery, **own).mAP
    assert result.protocol["rerank"] == {"k1": 6, "k2": 3, "weight": 0.2}
    assert result.protocol["metric"] == metric
    assert "re-ranked" in result.to_markdown()
    json.loads(result.to_json())


def test_features_are_extracted_once_for_both(model, people):
    store, calls = FeatureStore(), []
    plain = evaluate(model, people, None, PLAIN, store=store)
    reranked = evaluate(
        model,
        people,
        None,
        Protocol(image_size=SIZE, rerank=True),
        store=store,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(len(people.query), len(people.query))]  # nothing is read again
    assert plain.clean.mAP != reranked.clean.mAP
    assert "rerank" not in plain.protocol


def test_a_grid_keeps_cells_of_each_protocol_apart(model, people, tmp_path):
    def mean(protocol):
        grid = evaluate_grid(
            {"SMA": SMA(steps=1)}, {"net": model}, {"p": people}, protocol, folder=tmp_path
        )
        return grid.cells[0].metric("attacked", "mAP")

    plain, reranked = mean(PLAIN), mean(Protocol(image_size=SIZE, rerank=True))
    assert plain != reranked
    assert mean(PLAIN) == plain
    attack = SMA(steps=1).bind(model)
    expected = evaluate(model, people, attack, Protocol(image_size=SIZE, rerank=True))
    assert reranked == expected.attacked.ranking.mAP


def test_the_suite_refuses_reranking(model, people):
    suite = RetrievalAutoAttack(Budget(4 / 255), steps=1, restarts=1, squares=1)
    with pytest.raises(InputError, match="without rerank and multi_query"):
        suite.run(model, people, Protocol(image_size=SIZE, rerank=True))


def pixels(samples):
    return torch.stack([decode_image(s.path, SIZE) for s in samples]).float() / 255


def mirrored_mean(model, x):
    """The mean feature of image and mirror image, one image after the other."""
    with torch.no_grad():
        rows = [
            sum(model.eval().features(image[None])[0] for image in (x[i], x[i].flip(2))) / 2
            for i in range(len(x))
        ]
    return torch.stack(rows)


def test_features_of_images_and_mirror_images(model, people):
    protocol = Protocol(image_size=SIZE, flip=True)
    attack = noise(4 / 255)
    store = FeatureStore()
    result = evaluate(model, people, attack, protocol, store=store)
    gallery = mirrored_mean(model, pixels(people.gallery))
    x = pixels(people.query)
    for images, found in ((x, result.clean), (attack(x), result.attacked.ranking)):
        expected = rank(mirrored_mean(model, images), gallery, **labels(people))
        assert found.mAP == pytest.approx(expected.mAP, abs=1e-9)
        assert found.first_match.tolist() == expected.first_match.tolist()
    assert result.protocol["flip"] is True
    assert "mirrored images" in result.to_markdown()
    # features of single images are others, under keys of their own
    plain = evaluate(model, people, attack, PLAIN, store=store)
    again = evaluate(model, people, attack, protocol, store=store)
    assert plain.clean.mAP == evaluate(model, people, attack, PLAIN).clean.mAP
    assert torch.equal(again.clean.ap, result.clean.ap)
    assert not torch.equal(plain.clean.ap, result.clean.ap)
    assert plain.weights == result.weights


def in_bfloat16(model, x):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        return model.eval().features(x).float()


def test_features_under_autocast(model, people):
    """They are those of an explicit autocast, and are cached under a key of their own."""
    protocol = Protocol(image_size=SIZE, amp=True)
    store = FeatureStore()
    attack = noise(4 / 255)
    result = evaluate(model, people, attack, protocol, store=store)
    x, gallery = pixels(people.query), in_bfloat16(model, pixels(people.gallery))
    assert gallery.dtype == torch.float32
    assert not torch.equal(gallery, model.features(pixels(people.gallery)))
    for images, found in ((x, result.clean), (attack(x), result.attacked.ranking)):
        expected = rank(in_bfloat16(model, images), gallery, **labels(people))
        assert torch.equal(found.ap, expected.ap)
    assert result.protocol["amp"] is True
    assert "in bfloat16" in result.to_markdown()
    plain = evaluate(model, people, None, PLAIN, store=store)
    assert torch.equal(plain.clean.ap, evaluate(model, people, None, PLAIN).clean.ap)
    again = evaluate(model, people, None, protocol, store=store)
    assert torch.equal(again.clean.ap, result.clean.ap)


def test_gradients_pass_through_autocast(model, people):
    x = pixels(people.query)[:2].requires_grad_()
    FastModel(model.eval(), amp=True).features(x).sum().backward()
    assert torch.isfinite(x.grad).all()
    assert x.grad.abs().sum() > 0


@pytest.mark.slow  # compiling takes a minute
def test_features_of_a_compiled_network(model, people):
    protocol = Protocol(image_size=SIZE, compile=True)
    compiled = evaluate(model, people, noise(4 / 255), protocol)
    plain = evaluate(model, people, noise(4 / 255), PLAIN)
    assert compiled.clean.mAP == pytest.approx(plain.clean.mAP, abs=1e-4)
    assert compiled.attacked.ranking.mAP == pytest.approx(plain.attacked.ranking.mAP, abs=1e-4)
    x = pixels(people.query)
    torch.testing.assert_close(FastModel(model.eval(), compile=True).features(x), model.features(x))


def test_an_attack_that_is_bound_by_the_grid_sees_the_mirror_images(model, people):
    flip = Protocol(image_size=SIZE, flip=True)
    grid = evaluate_grid({"SMA": SMA(steps=3)}, {"net": model}, {"p": people}, flip)
    own = evaluate(model, people, SMA(steps=3).bind(FlipModel(model)), flip)
    half = evaluate(model, people, SMA(steps=3).bind(model), flip)
    assert grid.cells[0].metric("attacked", "mAP") == own.attacked.ranking.mAP
    assert own.attacked.ranking.mAP != half.attacked.ranking.mAP
    report = audit(
        model, people, protocol=flip, queries=5, probes=2, attack_steps=1, learning_steps=0
    )
    assert (
        report.curve[0]["mAP"]
        == evaluate(model, people, None, flip, query_every=-(-len(people.query) // 5)).clean.mAP
    )  # and is mirrored once


def several(people):
    """The dataset with gallery images as further images of some of the queries' identities."""
    result = copy.copy(people)
    shown = {(s.pid, s.camid) for s in people.query[::2]}
    result.multi_query = tuple(s for s in people.gallery if (s.pid, s.camid) in shown)
    assert result.multi_query
    return result


def loop_means(features, images, queries):
    rows = []
    for query in queries:
        own = [
            f
            for f, s in zip(features, images, strict=True)
            if (s.pid, s.camid) == (query.pid, query.camid)
        ]
        rows.append(torch.stack(own).double().mean(0).float())
    return torch.stack(rows)


@pytest.mark.parametrize("query_every", [1, 3])
def test_the_mean_of_all_images_of_an_identity_by_a_camera(model, people, query_every):
    people = several(people)
    attack = noise(8 / 255)
    protocol = Protocol(image_size=SIZE, multi_query=True)
    result = evaluate(model, people, attack, protocol, query_every=query_every, batch_size=7)
    queries = people.query[::query_every]
    further = {(s.pid, s.camid) for s in people.multi_query}
    images = [s for s in people.query if (s.pid, s.camid) not in further]
    images += people.multi_query
    gallery = extract_features(model, people.gallery, image_size=SIZE)
    own = labels(people)
    own |= {f"query_{kind}s": [getattr(q, kind) for q in queries] for kind in ("pid", "camid")}
    x = pixels(images)
    with torch.no_grad():
        for shown, found in ((x, result.clean), (attack(x), result.attacked.ranking)):
            means = loop_means(model.eval().features(shown), images, queries)
            expected = rank(means, gallery, **own)
            assert found.mAP == pytest.approx(expected.mAP, abs=1e-9)
            assert found.first_match.tolist() == expected.first_match.tolist()
    used = {(q.pid, q.camid) for q in queries}
    assert result.counts["query"] == len(queries)
    assert result.counts["query images"] == sum((s.pid, s.camid) in used for s in images)
    assert "several images" in result.to_markdown()
    plain = evaluate(model, people, attack, PLAIN, query_every=query_every)
    assert plain.clean.mAP != result.clean.mAP
    assert plain.attacked.linf == pytest.approx(result.attacked.linf)


def test_multi_query_without_further_images_takes_the_query_images(model, people):
    doubled = copy.copy(people)
    doubled.query = people.query + tuple(
        s
        for s in people.gallery
        if (s.pid, s.camid) == (people.query[0].pid, people.query[0].camid)
    )
    assert len(doubled.query) > len(people.query)
    result = evaluate(model, doubled, None, Protocol(image_size=SIZE, multi_query=True))
    features = extract_features(model, doubled.query, image_size=SIZE)
    means = loop_means(features, doubled.query, doubled.query)
    gallery = extract_features(model, people.gallery, image_size=SIZE)
    expected = rank(means, gallery, **labels(doubled))
    assert result.clean.mAP == pytest.approx(expected.mAP, abs=1e-9)


def test_images_in_other_clothes_are_no_images_of_the_query(people):
    shown = [replace(s, clothes=1 + n % 2) for n, s in enumerate(several(people).multi_query)]
    dressed = copy.copy(people)
    dressed.query = tuple(replace(s, clothes=1) for s in people.query)
    dressed.multi_query = tuple(shown)
    groups = QueryGroups.of(dressed, dressed.query)
    for query, row in zip(dressed.query, groups.members.tolist(), strict=True):
        images = [groups.dataset.query[i] for i in row if i >= 0]
        own = (query.pid, query.camid, 1)
        assert {(s.pid, s.camid, s.clothes) for s in images} == {own}
        alike = [s for s in shown if (s.pid, s.camid, s.clothes) == own]
        assert sorted(s.path for s in images) == sorted(s.path for s in alike or [query])


def test_all_three_together_and_what_cannot_be(model, people, tmp_path):
    people = several(people)
    every = Protocol(image_size=SIZE, flip=True, multi_query=True, rerank=True)
    result = evaluate(model, people, noise(8 / 255), every)
    groups = QueryGroups.of(people, people.query)
    means = groups.mean(mirrored_mean(model, pixels(groups.dataset.query)))
    gallery = mirrored_mean(model, pixels(people.gallery))
    expected = rank(means, gallery, **labels(people), metric=Reranking())
    assert result.clean.mAP == pytest.approx(expected.mAP, abs=1e-9)
    assert (
        result.to_markdown()
        .splitlines()[0]
        .endswith("; mirrored images; several images; re-ranked)")
    )
    grid = evaluate_grid({"n": SMA(steps=1)}, {"m": model}, {"d": people}, every, folder=tmp_path)
    people.multi_query = people.multi_query[::2]  # another set of images is another cell
    again = evaluate_grid({"n": SMA(steps=1)}, {"m": model}, {"d": people}, every, folder=tmp_path)
    assert grid.cells[0].metric("clean", "mAP") != again.cells[0].metric("clean", "mAP")
    save_adversarial(noise(1 / 255), people, tmp_path / "saved", image_size=SIZE)
    with pytest.raises(InputError, match="query images of another folder"):
        evaluate(model, people.with_query(tmp_path / "saved"), None, every)
    suite = RetrievalAutoAttack(Budget(4 / 255), steps=1, restarts=1, squares=1)
    with pytest.raises(InputError, match="without rerank and multi_query"):
        suite.run(model, people, Protocol(image_size=SIZE, multi_query=True))


def test_settings_of_the_protocol():
    assert Protocol(rerank=False) == Protocol() == Protocol(rerank=None)
    assert Protocol(rerank=True) == Protocol(rerank=Reranking())
    for name in ("flip", "multi_query", "rerank"):
        with pytest.raises(InputError, match=f"{name} must be"):
            Protocol(**{name: 20})
