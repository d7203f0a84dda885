"""evaluate, features, verify and save_adversarial on virtual people."""

import json
import math
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import leave_temporary
from reidguard.attacks import SMA, Attack, DeltaAttack, create_attack
from reidguard.data import ReIDDataset, decode_image
from reidguard.data import images as data_images
from reidguard.data.readers.folder import read_folder
from reidguard.errors import CheckpointError, DataError, InputError
from reidguard.evaluation import (
    FeatureStore,
    Protocol,
    achieved_linf,
    evaluate,
    extract_features,
    ms_ssim,
    psnr,
    save_adversarial,
    ssim,
    verify,
)
from reidguard.evaluation.features import module_device, to_float
from reidguard.metrics import rank
from reidguard.models import create_model, wrap_model
from reidguard.types import Budget, InputSpec, ReIDSample

SIZE = (64, 32)
PROTOCOL = Protocol(image_size=SIZE)


def noise_attack(eps=8 / 255, seed=0):
    attack = DeltaAttack(Budget(eps), size=SIZE)
    g = torch.Generator().manual_seed(seed)
    patches = torch.randn(1, 3, 4, 2, generator=g).sign().repeat_interleave(SIZE[0] // 4, 2)
    attack.delta.data.copy_(eps * patches.repeat_interleave(SIZE[1] // 2, 3))
    attack.delta.data[..., ::3, :] *= 0.37  # values between grey levels
    return attack


def state_of(module):
    flags = [m.training for m in module.modules()]
    wants = [p.requires_grad for p in module.parameters()]
    return flags, wants, {name: t.clone() for name, t in module.state_dict().items()}


def assert_same_state(before, after):
    assert before[:2] == after[:2]
    assert all(torch.equal(before[2][name], after[2][name]) for name in before[2])


def figures(ranking):
    return ranking.mAP, ranking.mINP, ranking.cmc.tolist(), ranking.first_match.tolist()


def labels(dataset):
    return {
        "query_pids": [s.pid for s in dataset.query],
        "query_camids": [s.camid for s in dataset.query],
        "gallery_pids": [s.pid for s in dataset.gallery],
        "gallery_camids": [s.camid for s in dataset.gallery],
    }


def step_by_step(model, dataset, attack):
    """The evaluation written out plainly, one image at a time."""
    model = model.eval()

    def features(images):
        with torch.no_grad():
            return torch.cat([model.features(x[None]) for x in images])

    def pixels(samples):
        return torch.stack([decode_image(s.path, SIZE) for s in samples])

    gallery = features(pixels(dataset.gallery).float() / 255)
    original = pixels(dataset.query)
    x = original.float() / 255
    x_adv = (x + attack.delta.detach()).clamp(x - attack.budget.eps, x + attack.budget.eps)
    x_adv = x_adv.clamp(0, 1)
    levels = math.floor(255 * attack.budget.eps + 1e-6)
    wanted = (255 * x_adv.double()).round()
    low, high = original.double() - levels, original.double() + levels
    saved = wanted.clamp(low, high).clamp(0, 255)
    x_8bit = (saved / 255).float()
    return (
        x,
        x_adv,
        x_8bit,
        [
            rank(features(images), gallery, **labels(dataset), metric=model.metric)
            for images in (x, x_adv, x_8bit)
        ],
    )


@pytest.mark.parametrize("eps", [8 / 255, 7.5 / 255])
@pytest.mark.parametrize("batch_size", [64, 5])
def test_figures_equal_the_evaluation_written_out(model, people, eps, batch_size):
    attack = noise_attack(eps)
    result = evaluate(model, people, attack, PROTOCOL, batch_size=batch_size)
    x, x_adv, x_8bit, rankings = step_by_step(model, people, attack)
    measured = (result.clean, result.attacked.ranking, result.attacked_8bit.ranking)
    for got, expected in zip(measured, rankings, strict=True):
        assert got.mAP == pytest.approx(expected.mAP, abs=1e-3)
        assert got.mINP == pytest.approx(expected.mINP, abs=1e-3)
        assert got.first_match.tolist() == expected.first_match.tolist()
    for got, images in ((result.attacked, x_adv), (result.attacked_8bit, x_8bit)):
        assert got.psnr == pytest.approx(float(psnr(images, x).mean()), abs=1e-3)
        assert got.ssim == pytest.approx(float(ssim(images, x).mean()), abs=1e-5)
        assert got.ms_ssim == pytest.approx(float(ms_ssim(images, x).mean()), abs=1e-5)
        assert got.lpips is None
        assert got.linf == pytest.approx(float(achieved_linf(images, x).max()), abs=1e-7)
    assert result.attacked.linf * 255 == pytest.approx(255 * eps, abs=1e-4)
    assert result.attacked_8bit.linf * 255 == pytest.approx(math.floor(255 * eps), abs=1e-4)
    scores = {tuple(m.ap.tolist()) for m in measured}
    # At 8/255 hardly a value is rounded; at 7.5/255 the 8-bit attack is weaker by half a level.
    assert len(scores) == (2 if eps == 8 / 255 else 3)


def test_a_perceptual_measure_is_given_the_images(model, people):
    attack = noise_attack()
    x, x_adv, x_8bit, _ = step_by_step(model, people, attack)

    def measure(changed, clean):
        return (changed - clean).abs().mean((1, 2, 3))

    result = evaluate(model, people, attack, PROTOCOL, lpips=measure)
    for got, images in ((result.attacked, x_adv), (result.attacked_8bit, x_8bit)):
        assert got.lpips == pytest.approx(float(measure(images, x).mean()), rel=1e-4)
    assert result.to_dict()["attacked"]["lpips"] == result.attacked.lpips
    rows = [line for line in result.to_markdown().splitlines() if line.startswith("|")]
    assert rows[0].endswith("| MS-SSIM | LPIPS |")
    assert rows[3].endswith(f"| {result.attacked.lpips:.3f} |")
    assert len({row.count("|") for row in rows}) == 1


def test_saved_images_evaluate_to_exactly_the_8bit_figures(model, people, tmp_path):
    attack = noise_attack(7.5 / 255)
    result = evaluate(model, people, attack, PROTOCOL)
    folder = save_adversarial(attack, people, tmp_path / "adversarial", image_size=SIZE)
    again = evaluate(model, people.with_query(folder), protocol=PROTOCOL)
    assert again.attacked_8bit.to_dict() == result.attacked_8bit.to_dict()
    assert figures(again.clean) == figures(result.clean)
    assert figures(again.clean) != figures(again.attacked_8bit.ranking)
    assert again.attacked is None
    assert again.dataset["query_folder"] == str(folder)
    rows = [line for line in again.to_markdown().splitlines() if line.startswith("|")]
    assert [row.split("|")[1].strip() for row in rows[2:]] == ["clean", f"images of {folder}"]


def test_images_of_every_nth_query(model, people, tmp_path):
    attack = noise_attack(7.5 / 255)
    folder = save_adversarial(attack, people, tmp_path, image_size=SIZE, query_every=3)
    expected = {f"{name}.png" for name in people.query_names[::3]}
    assert {path.name for path in folder.glob("*.png")} == expected
    changed = people.with_query(folder, query_every=3)
    again = evaluate(model, changed, protocol=PROTOCOL)
    result = evaluate(model, people, attack, PROTOCOL, query_every=3)
    assert again.attacked_8bit.to_dict() == result.attacked_8bit.to_dict()
    assert figures(again.clean) == figures(result.clean)
    assert again.to_markdown().splitlines()[0].endswith("one query in 3)")
    with pytest.raises(DataError, match="are missing"):
        people.with_query(folder)
    for wrong in (0, -1):
        with pytest.raises(InputError, match="query_every must be a whole number, at least 1"):
            people.with_query(folder, query_every=wrong)
        with pytest.raises(InputError, match="query_every must be a whole number, at least 1"):
            save_adversarial(attack, people, tmp_path / "n", image_size=SIZE, query_every=wrong)


def test_an_attack_on_images_of_another_folder(model, people, tmp_path):
    folder = save_adversarial(noise_attack(), people, tmp_path, image_size=SIZE)
    changed = people.with_query(folder)
    result = evaluate(model, changed, noise_attack(2 / 255, seed=1), PROTOCOL)
    unattacked = evaluate(model, changed, protocol=PROTOCOL)
    assert figures(result.clean) == figures(unattacked.attacked_8bit.ranking)
    assert result.attacked_8bit.linf <= 2 / 255 + 1e-6
    assert f"| images of {folder}" in result.to_markdown()
    again = changed.with_query(folder)  # the originals stay the dataset's own
    assert again.original.query == people.query


def test_images_are_decoded_once_and_the_gallery_is_extracted_once(
    model, passes, people, monkeypatch
):
    decoded = []
    decode = data_images._decode_into

    def counting(path, out):
        decoded.append(path)
        decode(path, out)

    monkeypatch.setattr(data_images, "_decode_into", counting)
    store = FeatureStore()
    queries, gallery = len(people.query), len(people.gallery)
    evaluate(model, people, noise_attack(), PROTOCOL, store=store)
    assert sorted(decoded) == sorted(s.path for s in (*people.query, *people.gallery))
    assert sum(passes) == 2 + gallery + 3 * queries  # the model's key, clean, float, 8-bit
    passes.clear()
    decoded.clear()
    evaluate(model, people, noise_attack(seed=1), PROTOCOL, store=store)
    assert sum(passes) == 2 + 2 * queries
    assert sorted(decoded) == sorted(s.path for s in people.query)
    passes.clear()
    decoded.clear()
    evaluate(model, people, protocol=PROTOCOL, store=store)
    assert passes == [2]
    assert decoded == []


def test_model_and_attack_come_back_untouched(model, people):
    attack = noise_attack()
    model.train()
    model.network[0].weight.requires_grad_(False)
    before = state_of(model), state_of(attack)
    evaluate(model, people, attack, PROTOCOL)
    verify(attack, people, image_size=SIZE)
    assert_same_state(before[0], state_of(model))
    assert_same_state(before[1], state_of(attack))


def test_threads_that_share_a_model_get_the_results_of_one(model, people):
    model.train()
    model.network[0].weight.data = model.network[0].weight.data.contiguous(
        memory_format=torch.channels_last
    )
    attacks = [noise_attack(), SMA(steps=2).bind(model), None]

    def results(attack):
        result = evaluate(model, people, attack, PROTOCOL)
        return [r.ranking.mAP for r in (result.attacked, result.attacked_8bit) if r] + [
            result.clean.mAP
        ]

    before = state_of(model)
    expected = [results(attack) for attack in attacks]
    with ThreadPoolExecutor(3) as pool:
        for found in pool.map(results, 3 * attacks):
            assert found in expected
        futures = [pool.submit(results, attack) for attack in attacks]
        assert [future.result() for future in futures] == expected
    assert_same_state(before, state_of(model))
    assert model.network[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_counts_and_skipped_queries_are_reported(model, people, tmp_path):
    alone = tmp_path / "0999_c1s1_000001_00.png"
    Image.open(people.query[0].path).save(alone)
    dataset = ReIDDataset(
        "odd", [], [*people.query, ReIDSample(alone, 999, 1)], people.gallery, junk=4
    )
    result = evaluate(model, dataset, protocol=PROTOCOL)
    assert result.skipped == (str(alone),)
    assert result.counts == {
        "query": len(people.query) + 1,
        "gallery": len(people.gallery),
        "distractors": 12,
        "junk": 4,
        "skipped": 1,
    }
    assert (
        figures(result.clean)[:3] == figures(evaluate(model, people, protocol=PROTOCOL).clean)[:3]
    )


def test_query_every_uses_a_part_and_its_features_are_kept_apart(model, people):
    store = FeatureStore()
    whole = evaluate(model, people, noise_attack(), PROTOCOL, store=store)
    part = evaluate(model, people, noise_attack(), PROTOCOL, store=store, query_every=3)
    assert part.counts["query"] == len(people.query[::3])
    every = whole.clean.ap[::3]
    assert part.clean.ap.tolist() == pytest.approx(every.tolist(), abs=1e-3)
    assert part.dataset["query_every"] == 3


def test_results_are_written_for_machines_and_people(model, people, tmp_path):
    result = evaluate(model, people, noise_attack(), PROTOCOL)
    result.save(tmp_path / "result.json")
    read = json.loads((tmp_path / "result.json").read_text())
    assert read == json.loads(result.to_json())
    assert read["attacked_8bit"]["mAP"] == result.attacked_8bit.ranking.mAP
    assert read["attacked_8bit"]["linf"] == result.attacked_8bit.linf
    assert read["attacked_8bit"]["linf_255"] == pytest.approx(8, abs=1e-4)
    assert read["protocol"]["metric"] == "euclidean"
    assert read["attack"] == {"name": "DeltaAttack", "eps": 8 / 255}
    assert read["dataset"]["fingerprints"]["query"] == people.fingerprint("query")
    assert set(read["seconds"]) == {"gallery", "queries", "ranking"}
    result.save(tmp_path / "result.md")
    rows = [line for line in (tmp_path / "result.md").read_text().splitlines() if "|" in line]
    assert len(rows) == 5
    assert f"{100 * result.attacked.ranking.mAP:.1f}" in rows[3]
    assert len({row.count("|") for row in rows}) == 1
    nothing = evaluate(model, people, DeltaAttack(size=SIZE), PROTOCOL)
    assert json.loads(nothing.to_json())["attacked"]["psnr"] is None
    assert nothing.attacked.linf == 0
    assert figures(nothing.attacked.ranking) == figures(nothing.clean)


def test_progress_rises_to_the_total(model, people):
    store = FeatureStore()
    for total in (len(people.gallery) + len(people.query), len(people.query)):
        calls = []
        evaluate(
            model,
            people,
            noise_attack(),
            PROTOCOL,
            store=store,
            batch_size=16,
            progress=lambda done, all_, calls=calls: calls.append((done, all_)),
        )
        assert calls == sorted(calls)
        assert calls[-1] == (total, total)
        assert {all_ for _, all_ in calls} == {total}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(model, people, dtype):
    model = model.double() if dtype == torch.float64 else model
    size = model.input_spec.size  # torch resizes no half-precision images on a CPU
    protocol = Protocol(image_size=size, dtype=dtype, metric="cosine", same_camera="keep")
    result = evaluate(model, people, noise_attack().to(dtype), protocol)
    assert result.attacked.linf <= 8 / 255 + 1e-6
    assert result.attacked_8bit.ranking.mAP > 0
    assert result.protocol["metric"] == "cosine"


def test_evaluate_mistakes(model, people):
    with pytest.raises(InputError, match=r"attack on meta; move it with \.to\('cpu'\)"):
        evaluate(model, people, noise_attack().to("meta"), PROTOCOL)
    with pytest.raises(InputError, match="query_every"):
        evaluate(model, people, protocol=PROTOCOL, query_every=0)
    with pytest.raises(InputError, match="batch_size"):
        evaluate(model, people, protocol=PROTOCOL, batch_size=0)
    with pytest.raises(InputError, match="no query or no gallery"):
        evaluate(model, ReIDDataset("empty", [], [], people.gallery), protocol=PROTOCOL)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": (0, 5)}, "image_size"),
        ({"image_size": 256}, "image_size"),
        ({"metric": "l1"}, "euclidean, cosine"),
        ({"same_camera": "drop"}, "exclude, keep"),
        ({"max_rank": 0}, "max_rank"),
        ({"dtype": torch.int64}, "dtype"),
    ],
)
def test_protocol_mistakes(options, message):
    with pytest.raises(InputError, match=message):
        Protocol(**options)


# --- features -----------------------------------------------------------------------------------


def test_features_are_those_of_single_images_at_any_batch_size(model, people):
    samples = people.query
    model.eval()
    with torch.no_grad():
        expected = torch.cat(
            [model.features(decode_image(s.path, SIZE)[None] / 255) for s in samples]
        )
    model.train()
    for batch_size in (1, 7, 64):
        got = extract_features(model, samples, image_size=SIZE, batch_size=batch_size)
        assert torch.allclose(got, expected, atol=1e-5)
        assert not got.requires_grad
    with pytest.raises(InputError, match="no samples"):
        extract_features(model, [], image_size=SIZE)


def test_store_on_disk_is_reused_and_damage_is_repaired(model, passes, people, tmp_path):
    def get():
        return FeatureStore(tmp_path).features(model, people, "query", image_size=SIZE)

    first = get()
    assert sum(passes) == 2 + len(people.query)  # two for the key
    assert torch.equal(get(), first)
    assert sum(passes) == 4 + len(people.query)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", whole.replace(b'"card"', b'"crad"')):
        file.write_bytes(damaged)
        passes.clear()
        assert torch.equal(get(), first)
        assert sum(passes) == 2 + len(people.query)
        assert file.read_bytes() == whole
    assert len(list(tmp_path.iterdir())) == 1


def test_store_tells_apart_whatever_changes_features(model, people):
    store = FeatureStore()
    keys = [store.key(model, people, "query")]
    keys.append(store.key(model, people, "gallery"))
    keys.append(store.key(model, people, "query", image_size=SIZE))
    keys.append(store.key(model, people, "query", dtype=torch.float16))
    keys.append(store.key(model, people, "query", every=2))
    turned = ReIDDataset("turned", [], people.query[::-1], people.gallery, root=people.root)
    keys.append(store.key(model, turned, "query"))
    with torch.no_grad():
        model.network[1].running_mean += 1e-3
    keys.append(store.key(model, people, "query"))
    object.__setattr__(model.input_spec, "size", (96, 48))
    keys.append(store.key(model, people, "query"))
    assert len({json.dumps(key, sort_keys=True) for key in keys}) == len(keys)


def test_store_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="choose another"):
        FeatureStore(tmp_path / "file" / "store")


def test_a_store_has_one_entry_for_each_key(model, people, tmp_path):
    store = FeatureStore(tmp_path / "new" / "folder")
    assert len(store) == 0
    calls = []
    first = store.features(
        model, people, "query", image_size=SIZE, batch_size=10, progress=lambda *c: calls.append(c)
    )
    total = len(people.query)
    assert calls == [(min(n, total), total) for n in range(10, total + 10, 10)]
    assert len(store) == 1
    key = store.key(model, people, "query", image_size=SIZE)
    assert torch.equal(store.get(key, torch.device("cpu")), first)
    assert not first.requires_grad
    assert store.get({**key, "every": 2}, torch.device("cpu")) is None
    elsewhere = FeatureStore(str(tmp_path / "new" / "folder"))
    assert torch.equal(elsewhere.get(key, torch.device("cpu")), first)
    assert elsewhere.get(key, torch.device("meta")).device.type == "meta"
    assert FeatureStore().get(key, torch.device("cpu")) is None
    defaults = store.key(model, people, "query")
    assert (defaults["image_size"], defaults["dtype"], defaults["every"]) == (
        [256, 128],
        "float32",
        1,
    )
    double = store.features(model.double(), people, "gallery", image_size=SIZE, dtype=torch.float64)
    assert double.dtype == torch.float64
    assert len(double) == len(people.gallery)


def test_a_module_without_or_with_several_devices(model):
    assert module_device(torch.nn.ReLU()) == torch.device("cpu")
    assert module_device(torch.nn.ReLU(), torch.device("meta")) == torch.device("meta")
    assert module_device(model, torch.device("meta")) == torch.device("cpu")
    assert module_device(torch.nn.BatchNorm1d(2, affine=False).to("meta")).type == "meta"
    torn = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1).to("meta"))
    with pytest.raises(InputError, match="Sequential is spread over cpu, meta"):
        module_device(torn)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_eight_bits_are_divided_and_rounded_once(dtype):
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    exact = torch.arange(256, dtype=torch.float64).view(1, 1, 16, 16) / 255
    # Half precision rounds the float32 quotient; of no grey level does that round twice.
    found = to_float(pixels, dtype)
    assert found.dtype == dtype
    assert torch.equal(found, exact.to(dtype))
    assert to_float(pixels).dtype == torch.float32
    assert found.is_contiguous()


# --- verify -------------------------------------------------------------------------------------


class Cheating(Budget):
    def project(self, x_adv, x):
        return x_adv


class Shift(Attack):
    def __init__(self, budget=None, shift=0.0):
        super().__init__(budget)
        self.shift = shift

    def perturb(self, x):
        y = x.clone()
        y[:, 1, :, ::2] += self.shift  # one channel of every second column
        return y


def test_verify_measures_an_honest_attack():
    pixels = torch.randint(30, 220, (5, 3, 8, 6), dtype=torch.uint8)
    report = verify(Shift(Budget(7.5 / 255), shift=1.0), pixels, batch_size=2)
    assert report.passed
    assert report.images == 5
    assert report.linf == pytest.approx(7.5 / 255, abs=1e-6)
    assert report.levels == 7
    assert report.moved == 0.5
    assert "7/255 as 8-bit" in str(report)
    assert json.loads(json.dumps(report.to_dict()))["levels"] == 7
    same = verify(Shift(Budget(7.5 / 255), shift=1.0), pixels.float() / 255)
    assert same == report


@pytest.mark.parametrize("shift", [8.01 / 255, 1.0, math.nan])
def test_verify_finds_what_leaves_the_budget(shift):
    pixels = torch.randint(30, 220, (5, 3, 8, 6), dtype=torch.uint8)
    assert not verify(Shift(Cheating(8 / 255), shift), pixels).passed
    assert verify(Shift(Cheating(8 / 255), 8 / 255), pixels).passed


def test_verify_counts_pixels_that_move_by_one_level():
    """And reports how far it has come, in batches of any size."""
    pixels = torch.randint(30, 220, (5, 3, 8, 6), dtype=torch.uint8)
    calls = []

    def progress(done, total):
        calls.append((done, total))

    report = verify(Shift(Budget(8 / 255), 1 / 255), pixels, batch_size=2, progress=progress)
    assert calls == [(2, 5), (4, 5), (5, 5)]
    assert (report.images, report.levels, report.moved) == (5, 1, 0.5)
    assert (report.eps, report.in_range, report.passed) == (8 / 255, True, True)
    assert verify(Shift(Budget(8 / 255), 1 / 255), pixels, batch_size=1) == report
    with pytest.raises(InputError, match=r"batch_size must be .* at least 1 .*, not 0"):
        verify(Shift(), pixels, batch_size=0)


def test_verify_reads_the_chosen_split_of_a_dataset(people):
    calls = []
    report = verify(
        Shift(Budget(2 / 255), 1.0),
        people,
        split="gallery",
        image_size=(16, 8),
        batch_size=50,
        progress=lambda *call: calls.append(call),
    )
    total = len(people.gallery)
    assert report.images == total != len(people.query)
    assert calls == [(min(n, total), total) for n in range(50, total + 50, 50)]
    assert report.levels == 2
    assert verify(Shift(), people, image_size=(16, 8)).images == len(people.query)


@pytest.mark.parametrize(
    ("value", "passed"), [(-1e-6, True), (1 + 1e-6, True), (-2e-6, False), (1 + 2e-6, False)]
)
def test_verify_allows_for_rounding_at_the_ends_of_the_range(value, passed):
    pixels = torch.full((1, 3, 8, 6), 255 if value > 0 else 0, dtype=torch.uint8)
    attack = Shift(Cheating(8 / 255))
    attack.perturb = lambda x: torch.full_like(x, value)
    report = verify(attack, pixels.double() / 255)
    assert (report.in_range, report.passed) == (passed, passed)


def test_verify_finds_values_outside_the_range():
    pixels = torch.full((1, 3, 8, 6), 255, dtype=torch.uint8)
    report = verify(Shift(Cheating(8 / 255), 4 / 255), pixels)
    assert not report.in_range
    assert not report.passed


def test_verify_mistakes():
    with pytest.raises(InputError, match="no images"):
        verify(noise_attack(), torch.zeros(0, 3, *SIZE))
    with pytest.raises(InputError, match="8-bit pixels"):
        verify(noise_attack(), torch.full((1, 3, *SIZE), 0.1234))
    with pytest.raises(InputError, match="shape"):
        verify(noise_attack(), torch.zeros(3, *SIZE))


# --- options --------------------------------------------------------------------------------------


def test_the_usual_protocol_is_the_default():
    assert Protocol().to_dict() == {
        "image_size": [256, 128],
        "metric": None,
        "same_camera": "exclude",
        "max_rank": 50,
        "dtype": "float32",
    }
    given = Protocol([64, 32], "cosine", "keep", 1, torch.float16)
    assert given.image_size == (64, 32)
    assert given.to_dict() == {
        "image_size": [64, 32],
        "metric": "cosine",
        "same_camera": "keep",
        "max_rank": 1,
        "dtype": "float16",
    }
    assert Protocol((1, 1)).image_size == (1, 1)
    for wrong in ((64,), (64, 32, 3), (64, 0), (0, 64), (64, -1), (64.0, 32), "ab"):
        with pytest.raises(InputError, match="image_size must be"):
            Protocol(wrong)
    for wrong in (0, -1, 2.0, None):
        with pytest.raises(InputError, match="max_rank must be"):
            Protocol(max_rank=wrong)


def test_an_attack_on_the_gallery_by_hand(model, people):
    """The queries stay as they are, and every gallery image is perturbed."""
    attack = noise_attack(7.5 / 255)
    people = ReIDDataset("known", [], people.query, [s for s in people.gallery if s.pid > 0])
    result = evaluate(model, people, attack, PROTOCOL, side="gallery", query_every=2)
    turned = ReIDDataset("turned", [], people.gallery, people.query[::2])
    x, x_adv, x_8bit, _ = step_by_step(model, turned, attack)
    with torch.no_grad():
        query = torch.cat([model.features(decode_image(s.path, SIZE)[None] / 255)
                           for s in people.query[::2]])  # fmt: skip
        asked = ReIDDataset("asked", [], people.query[::2], people.gallery)
        rankings = [rank(query, model.features(images), **labels(asked), metric=model.metric)
                    for images in (x, x_adv, x_8bit)]  # fmt: skip
    measured = (result.clean, result.attacked.ranking, result.attacked_8bit.ranking)
    for got, expected in zip(measured, rankings, strict=True):
        assert got.mAP == pytest.approx(expected.mAP, abs=1e-3)
    assert len({m.mAP for m in measured}) == 3
    assert result.attacked.psnr == pytest.approx(float(psnr(x_adv, x).mean()), abs=1e-3)
    assert result.attack == {"name": "DeltaAttack", "eps": 7.5 / 255, "side": "gallery"}
    assert result.counts["query"] == len(asked.query)
    assert result.dataset == {
        "name": people.name,
        "query_every": 2,
        "fingerprints": {split: people.fingerprint(split) for split in ("query", "gallery")},
    }


def test_progress_and_times_of_clean_and_cached_images(model, people):
    store, calls = FeatureStore(), []

    def progress(done, total):
        calls.append((done, total))

    queries, gallery = len(people.query), len(people.gallery)
    first = evaluate(model, people, None, PROTOCOL, store=store, batch_size=40, progress=progress)
    assert calls[0] == (40, queries + gallery)
    assert calls == sorted(set(calls))
    assert (gallery, queries + gallery) in calls
    assert calls[-1] == (queries + gallery, queries + gallery)
    calls.clear()
    again = evaluate(model, people, None, PROTOCOL, store=store, progress=progress)
    assert calls == [(queries, queries)]
    assert figures(again.clean) == figures(first.clean)
    assert again.attacked is again.attacked_8bit is again.attack is None
    for seconds in (first.seconds, again.seconds):
        assert all(0 <= value < 100 for value in seconds.values())
    assert first.seconds["gallery"] > again.seconds["gallery"]
    assert first.seconds["queries"] > again.seconds["queries"]
    assert first.weights == again.weights == store.key(model, people, "query")["weights"]
    with pytest.raises(InputError, match="side is what an attack perturbs"):
        evaluate(model, people, None, PROTOCOL, side="gallery")
    with pytest.raises(InputError, match="with_labels is for instance attacks"):
        evaluate(model, people, noise_attack(), PROTOCOL, with_labels=True)
    with pytest.raises(InputError, match="with_labels is for instance attacks"):
        evaluate(model, people, None, PROTOCOL, with_labels=True)


# --- save_adversarial ---------------------------------------------------------------------------


def test_saved_images_have_their_names_and_stay_inside(people, tmp_path):
    attack = noise_attack(7.5 / 255)
    save_adversarial(attack, people, tmp_path, image_size=SIZE, batch_size=4)
    files = {path.stem: path for path in tmp_path.glob("*.png")}
    assert set(files) == {sample.path.stem for sample in people.query}
    for sample in people.query:
        with Image.open(sample.path) as image:
            original = image.convert("RGB").resize(SIZE[::-1], Image.Resampling.BILINEAR)
        change = np.asarray(Image.open(files[sample.path.stem])).astype(int) - np.asarray(original)
        assert np.abs(change).max() == 7


def test_the_folder_names_attack_and_dataset(people, tmp_path):
    calls, attack = [], noise_attack(7.5 / 255)
    folder = save_adversarial(
        attack,
        people,
        str(tmp_path / "new"),
        image_size=SIZE,
        batch_size=5,
        progress=lambda *call: calls.append(call),
    )
    assert folder == tmp_path / "new"
    total = len(people.query)
    assert calls == [(0, total), *((min(n, total), total) for n in range(5, total + 5, 5))]
    card = json.loads((folder / "adversarial.json").read_text())
    assert {
        "kind": "adversarial queries",
        "attack": "DeltaAttack",
        "eps": 7.5 / 255,
        "dataset": people.name,
        "query_fingerprint": people.fingerprint("query"),
        "image_size": list(SIZE),
    }.items() <= card.items()
    assert "with_labels" not in card
    with pytest.raises(InputError, match="with_labels is for instance attacks"):
        save_adversarial(attack, people, tmp_path / "other", with_labels=True)


def test_an_interrupted_save_goes_on_where_it_stopped(people, tmp_path):
    attack = noise_attack()
    save_adversarial(attack, people, tmp_path, image_size=SIZE)
    whole = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in tmp_path.iterdir()}
    for sample in people.query[3:7]:
        (tmp_path / f"{sample.path.stem}.png").unlink()
    leave_temporary(tmp_path)
    calls = []
    save_adversarial(
        attack, people, tmp_path, image_size=SIZE, progress=lambda *call: calls.append(call)
    )
    total = len(people.query)
    assert calls == [(total - 4, total), (total, total)]
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {
        name: content for name, (content, _) in whole.items()
    }
    kept = people.query[0].path.stem + ".png"
    assert os.stat(tmp_path / kept).st_mtime_ns == whole[kept][1]


def test_a_save_killed_in_its_first_write_can_be_repeated(people, tmp_path):
    leave_temporary(tmp_path)
    save_adversarial(noise_attack(), people, tmp_path, image_size=SIZE)
    names = {p.name for p in tmp_path.iterdir()} - {".lock"}
    assert names == {"adversarial.json", *(f"{name}.png" for name in people.query_names)}


def test_names_with_dots_are_saved_inside_the_folder(people, tmp_path):
    source = people.query[0].path.read_bytes()
    query = []
    for pid, place in enumerate(("x", "lists/../y"), 1):
        (tmp_path / "lists").mkdir(exist_ok=True)
        path = tmp_path / "lists" / ".." / place / "1.png"
        path.parent.resolve().mkdir()
        path.resolve().write_bytes(source)
        query.append(ReIDSample(path, pid, 0))
    dataset = ReIDDataset("mine", query=query)
    before = {p for p in tmp_path.rglob("*") if p.is_file()}
    folder = save_adversarial(noise_attack(), dataset, tmp_path / "out", image_size=SIZE)
    written = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.png")} - {
        p.relative_to(tmp_path).as_posix() for p in before
    }
    assert written == {"out/x/1.png", "out/y/1.png"}
    assert len(dataset.with_query(folder).query) == 2


def test_a_folder_that_is_no_utf8_reaches_the_result_as_text(people, tmp_path):
    root = Path(os.fsdecode(os.fsencode(tmp_path) + b"/set-\xff\x1b[31m"))
    for split in ("query", "gallery"):
        for sample in [s for s in people.split(split) if s.pid == people.query[0].pid]:
            (root / split / str(sample.pid)).mkdir(parents=True, exist_ok=True)
            name = f"\udcfe_c{sample.camid}_{sample.path.name}"
            shutil.copy(sample.path, root / split / str(sample.pid) / name)
    dataset = read_folder(root)
    folder = save_adversarial(noise_attack(), dataset, root / "saved", image_size=SIZE)
    model = wrap_model(torch.nn.Flatten(), input_spec=InputSpec(size=(8, 4)))
    result = evaluate(model, dataset.with_query(folder), protocol=Protocol(image_size=SIZE))
    text = result.to_json() + result.to_markdown()
    assert r"set-\udcff\x1b[31m" in result.to_markdown()
    assert all(c.isprintable() or c == "\n" for c in text)
    result.save(tmp_path / "result.json")


def test_folders_of_others_are_refused_and_left_alone(people, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"notes\.txt.*empty folder"):
        save_adversarial(noise_attack(), people, tmp_path, image_size=SIZE)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
    assert (tmp_path / "notes.txt").read_text() == "mine"
    with pytest.raises(CheckpointError, match="is a file"):
        save_adversarial(noise_attack(), people, tmp_path / "notes.txt", image_size=SIZE)
    folder = save_adversarial(noise_attack(), people, tmp_path / "new", image_size=SIZE)
    with pytest.raises(CheckpointError, match="attack_fingerprint"):
        save_adversarial(noise_attack(seed=1), people, folder, image_size=SIZE)
    with pytest.raises(CheckpointError, match="image_size"):
        save_adversarial(noise_attack(), people, folder, image_size=(32, 16))
    (folder / "stranger.png").write_bytes(b"")
    with pytest.raises(CheckpointError, match="stranger"):
        save_adversarial(noise_attack(), people, folder, image_size=SIZE)


def test_every_registered_attack_can_be_evaluated(model, people):
    for name in ("delta", "color", "combinatorial"):
        result = evaluate(model, people, create_attack(name), PROTOCOL, query_every=6)
        assert result.attacked.linf <= 8 / 255 + 1e-6


# --- real data ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_published_figures_of_osnet_on_market1501(market):
    """mAP 77.4, rank-1 91.5: about five minutes on two cores."""
    weights = os.environ.get("REIDGUARD_WEIGHTS")
    file = Path(weights or "") / "osnet_x0_25_market1501.pth"
    if not weights or not file.is_file():
        pytest.skip("REIDGUARD_WEIGHTS names no folder with osnet_x0_25_market1501.pth")
    network = create_model("osnet_x0_25", num_classes=751, weights=file)
    store = FeatureStore(os.environ.get("REIDGUARD_FEATURES"))
    result = evaluate(network, market, store=store)
    assert 100 * result.clean.mAP == pytest.approx(77.4, abs=0.1)
    for k, share in ((1, 91.5), (5, 96.9), (10, 98.0)):
        assert 100 * result.clean.rank_k(k) == pytest.approx(share, abs=0.1)
    assert result.counts["distractors"] == 2798
    assert result.counts["junk"] == 3819
    assert result.counts["skipped"] == 0
