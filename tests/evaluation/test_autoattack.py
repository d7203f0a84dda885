"""The suite against its members one by one, on models that only one member can break."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from helpers import Killed, leave_temporary
from reidguard.attacks import (
    FNA,
    SMA,
    DeltaAttack,
    Guides,
    PatternAttack,
    SquareAttack,
    fixed_patterns,
)
from reidguard.data import ReIDDataset
from reidguard.errors import CheckpointError, InputError
from reidguard.evaluation import (
    Protocol,
    RetrievalAutoAttack,
    audit,
    evaluate,
    extract_features,
)
from reidguard.models import wrap_model
from reidguard.types import Budget, InputSpec, ReIDSample

EIGHT = Budget(8 / 255)
RAW = InputSpec(size=None, mean=(0, 0, 0), std=(1, 1, 1))
TINY = Protocol(image_size=(16, 12), dtype=torch.float64)
SMALL = Protocol(image_size=(64, 32), dtype=torch.float64)
QUICK = {"restarts": 2, "steps": 4, "squares": 6}

# --- models that one member alone can break ----------------------------------------------------
#
# Images of 16 × 12 pixels are grey but for the red channel's even and odd rows, which are c levels
# above and below. Vertical stripes and squares of 12 × 12 pixels leave c as it is.

SIGNS = torch.tensor([1.0, -1.0], dtype=torch.float64)
ROWS = SIGNS.repeat(8)[:, None].expand(16, 12) / (16 * 12)
CHECKS = ROWS * SIGNS.repeat(6)  # columns alternate, too


def coordinate(x, pattern, channel=0):
    """In grey levels."""
    return 255 * (x[:, channel] * pattern).sum((1, 2))[:, None]


class Planted(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.features = features

    def forward(self, x):
        return self.features(x)


def planted(features):
    return wrap_model(Planted(features), input_spec=RAW, metric="euclidean")


def shallow(x):
    """Without a gradient, in steps of 20 levels, which no attack can cross."""
    return 20 * (coordinate(x, ROWS) / 20).round()


def hidden(x):
    """Flat up to nine tenths of the ball's rim, and steep beyond."""
    return shallow(x) + 1000 * (coordinate(x, CHECKS).abs() - 0.9 * 8).clamp(min=0)


def mean_red(x):
    return 255 * (x[:, 0].mean((1, 2)) - 128 / 255)[:, None]


BLUE = planted(lambda x: x[:, 2].flatten(1))  # a surrogate that teaches nothing

CASES = {
    # Towards the other identity's mean, -12, there is nobody within reach.
    "self-metric": {"features": lambda x: coordinate(x, ROWS), "others": (6, -30)},
    # The self-metric rises most where all of the gallery is equally far.
    "furthest-negative": {
        "features": lambda x: torch.cat([coordinate(x, ROWS), 100 * coordinate(x, CHECKS)], 1),
        "others": (6,),
    },
    "pattern": {
        "features": hidden,
        "others": (20,),
        "pattern": {"kind": "checkerboard", "period": 2, "size": (16, 12)},
    },
    "universal": {"features": hidden, "others": (20,), "universal": 8 / 255 * CHECKS.sign()},
    "transfer": {
        "features": hidden,
        "others": (20,),
        "surrogate": planted(lambda x: coordinate(x, CHECKS)),
    },
    # Whole levels have no gradient, but differences.
    "square": {
        "features": lambda x: mean_red(x).round(),
        "others": (6,),
        "mean": True,
        "squares": 400,
    },
}


def write(folder, name, level, mean):
    pixels = np.full((16, 12, 3), 128, np.uint8)
    rows = np.ones(16) if mean else np.array([1, -1] * 8)
    pixels[:, :, 0] = (128 + level * rows)[:, None]
    Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder / f"{name}.png"


@pytest.fixture
def case(tmp_path, monkeypatch):
    """The suite, the model and the dataset of a case, with one fixed pattern.

    Unless the case says otherwise, it changes only blue, which no model of the cases looks at.
    """

    def build(name):
        pattern = CASES[name].get("pattern", {"kind": "tint", "color": (0, 0, 1)})
        monkeypatch.setattr(
            "reidguard.evaluation.autoattack_run.fixed_patterns",
            lambda budget: {"the only one": PatternAttack(budget, **pattern)},
        )
        return planted_case(name, tmp_path)

    return build


def planted_case(name, tmp_path):
    """The suite, the model and the dataset: three queries of one person, who is seen again."""
    plan = CASES[name]
    folder = tmp_path / name
    folder.mkdir()
    mean = plan.get("mean", False)
    query = [ReIDSample(write(folder, f"q{i}", 0, mean), 1, i) for i in range(3)]
    gallery = [ReIDSample(write(folder, "match", 0, mean), 1, 9)]
    gallery += [ReIDSample(write(folder, f"o{c}", c, mean), 2, 9) for c in plan["others"]]
    universal = DeltaAttack(EIGHT, size=(16, 12))
    if "universal" in plan:
        with torch.no_grad():
            universal.delta[0, 0] = plan["universal"]
    suite = RetrievalAutoAttack(
        EIGHT,
        universal=universal,
        surrogate=plan.get("surrogate", BLUE),
        restarts=6,
        steps=12,
        squares=plan.get("squares", 1),
        broken_rank=1,
        broken_ap=1.0,
    )
    return suite, planted(plan["features"]), ReIDDataset(name, [], query, gallery)


@pytest.mark.parametrize("early_stop", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_what_one_member_breaks_is_broken_in_the_suite(name, early_stop, case):
    suite, model, data = case(name)
    result = suite.run(model, data, TINY, early_stop=early_stop, audit_queries=0)
    alone = {member.name: member.broken for member in result.members}
    first = {member.name: member.first for member in result.members}
    assert {n for n, count in alone.items() if count} == {name}  # so the plant is what it says
    assert alone[name] == first[name] == 3
    assert result.broken_by == (name,) * 3
    for worst in (result.worst, result.worst_8bit):
        assert worst.broken.all()
        assert worst.rank_k(1) == 0.0
        assert worst.broken_fraction == 1.0
    if not early_stop:
        assert result.worst.mAP == min(m.mAP for m in result.members) < 1
        assert [m.queries for m in result.members] == [3] * 7
    blind = name in ("pattern", "universal", "transfer", "square")
    assert [f.name for f in result.findings] == ["zero_gradients", "black_box"] * blind
    assert ("break" in result.to_markdown()) == blind


def test_the_audit_s_warnings_are_carried(case):
    suite, model, data = case("square")
    result = suite.run(model, data, TINY, audit_queries=2)
    own = audit(
        model,
        data,
        surrogate=suite.surrogate,
        eps=8 / 255,
        learning_steps=0,
        queries=2,
        protocol=TINY,
    )
    assert result.audit == own.to_dict()
    assert "zero_gradients" in result.warnings
    assert result.warnings == (*(f.name for f in own.warnings), "black_box")
    assert "ERROR: gradients are not zero? " in result.to_markdown()
    assert result.to_dict()["warnings"] == list(result.warnings)


def test_a_model_cut_off_from_the_image_is_attacked_without_gradients(case):
    _, _, data = case("square")
    model = planted(lambda x: mean_red(x).detach())
    suite = RetrievalAutoAttack(EIGHT, squares=400, broken_rank=1, broken_ap=1.0)
    result = suite.run(model, data, TINY, audit_queries=2)
    notes = {m.name: m.note for m in result.members}
    assert "cut off" in notes["self-metric"]
    assert "cut off" in notes["furthest-negative"]
    assert notes["square"] == ""
    assert result.broken_by == ("square",) * 3
    assert result.warnings[0] == "zero_gradients"


def test_a_short_cmc_shortens_the_table(case):
    _, model, data = case("self-metric")
    protocol = Protocol(image_size=(16, 12), dtype=torch.float64, max_rank=3)
    suite = RetrievalAutoAttack(EIGHT, restarts=1, steps=2, squares=2)
    result = suite.run(model, data, protocol, audit_queries=0)
    assert len(result.to_dict()["robust"]["cmc"]) == len(result.to_dict()["clean"]["cmc"]) == 3
    assert "rank-1 |" in result.to_markdown()
    assert "rank-5 |" not in result.to_markdown()


# --- against `evaluate`, member by member ------------------------------------------------------


@pytest.fixture
def wide(model):
    return model.double()


@pytest.fixture(scope="module")
def data(people, tmp_path_factory):
    """Seven queries, so that the last batch of three is short. Nobody answers the last."""
    stranger = tmp_path_factory.mktemp("stranger") / "stranger.png"
    Image.open(people.query[0].path).convert("RGB").save(stranger)
    query = [*people.query[:6], ReIDSample(stranger, 99, 1)]
    return ReIDDataset("few", [], query, people.gallery)


@pytest.fixture
def universal():
    made = DeltaAttack(EIGHT, size=(64, 32)).double()
    with torch.no_grad():
        noise = torch.randn(made.delta.shape, generator=torch.Generator().manual_seed(0))
        made.delta.copy_(noise.double().sign() * 8 / 255)
    return made


def test_the_worst_case_is_that_of_evaluating_each_member(wide, data, universal, tmp_path):
    suite = RetrievalAutoAttack(EIGHT, universal=universal, **QUICK)
    result = suite.run(wide, data, SMALL, audit_queries=0, batch_size=64)
    features = extract_features(wide, data.gallery, image_size=(64, 32), dtype=torch.float64)
    guides = Guides(features, [s.pid for s in data.gallery])
    options = {"steps": 4, "step_size": None}
    single = {
        "self-metric": [SMA(EIGHT, seed=seed, **options).bind(wide) for seed in (0, 1)],
        "furthest-negative": [FNA(EIGHT, seed=s, **options).bind(wide, guides) for s in (0, 1)],
        "pattern": list(fixed_patterns(EIGHT).values()),
        "universal": [universal],
        "square": [SquareAttack(EIGHT, steps=6).bind(wide, guides)],
    }
    for kind, worst in (("attacked", result.worst), ("attacked_8bit", result.worst_8bit)):
        ap, first = [result.clean.ap], [result.clean.first_match]
        broken = {"clean": ((first[0] > 10) & (ap[0] < 0.1)).tolist()}
        for name, attacks in single.items():
            broken[name] = [False] * 7
            lowest = []
            for attack in attacks:
                labelled = not isinstance(attack, (DeltaAttack, PatternAttack))
                figures = evaluate(wide, data, attack, SMALL, with_labels=labelled)
                ranking = getattr(figures, kind).ranking
                ap.append(ranking.ap)
                first.append(ranking.first_match)
                lowest.append(ranking.ap)
                breaks = (ranking.first_match > 10) & (ranking.ap < 0.1)
                broken[name] = [a or b for a, b in zip(broken[name], breaks.tolist(), strict=True)]
            if kind == "attacked":
                member = next(m for m in result.members if m.name == name)
                assert member.mAP == pytest.approx(float(torch.stack(lowest)[:, :6].amin(0).mean()))
                assert member.broken == sum(broken[name])
        torch.testing.assert_close(worst.ap[:6], torch.stack(ap)[:, :6].amin(0))
        assert worst.first_match[:6].tolist() == torch.stack(first)[:, :6].amax(0).tolist()
        assert worst.broken.tolist() == [any(one) for one in zip(*broken.values(), strict=True)]
        assert worst.mAP == pytest.approx(float(worst.ap[:6].mean()))
        assert worst.rank_k(1) == float((worst.first_match[:6] <= 1).double().mean())
    # nobody answers the last query: it counts nowhere
    assert result.worst.ap[6].isnan()
    assert result.worst.first_match[6] == 0
    assert result.broken_by[6] is None
    assert [m.queries for m in result.members] == [6] * 6
    assert 0 < int(result.worst.broken.sum()) < 6  # so both happen
    assert sum(m.first for m in result.members) == int(result.worst.broken.sum())


def test_early_stop_changes_no_rank_and_saves_work(wide, passes, people, universal):
    suite = RetrievalAutoAttack(EIGHT, universal=universal, broken_rank=5, broken_ap=0.2, **QUICK)
    results, images = [], []
    for early_stop in (False, True):
        passes.clear()
        results.append(suite.run(wide, people, SMALL, early_stop=early_stop, audit_queries=0))
        images.append(sum(passes))
    full, quick = results
    for a, b in ((full.worst, quick.worst), (full.worst_8bit, quick.worst_8bit)):
        assert a.broken.tolist() == b.broken.tolist()
        assert [a.rank_k(k) for k in (1, 5)] == [b.rank_k(k) for k in (1, 5)]
        assert a.mAP < b.mAP
    assert full.broken_by == quick.broken_by
    assert [m.first for m in full.members] == [m.first for m in quick.members]
    assert quick.to_dict()["robust"]["mAP"] is None
    assert quick.to_dict()["robust"]["cmc"] == full.to_dict()["robust"]["cmc"]
    assert "robust mAP is not measured" in quick.to_markdown()
    # what the members say they cost is what the network has seen, with two looks for a gradient,
    # and two images twice for keys
    clean = len(people.gallery) + len(people.query) + 4
    costs = [sum(m.queries * m.forward for m in result.members) for result in results]
    assert images[0] == costs[0] + clean + 2
    assert images[1] <= costs[1] + clean + 2  # later restarts see fewer queries
    assert images[1] < 0.8 * images[0]
    later = [m.queries for m in quick.members]
    assert later == sorted(later, reverse=True)
    assert later[-1] < later[0]


@pytest.mark.parametrize("eps", [8 / 255, 7.5 / 255])
def test_the_worst_images_are_inside_the_ball_and_give_the_8bit_figures(wide, data, eps, tmp_path):
    suite = RetrievalAutoAttack(Budget(eps), **QUICK)
    folder = tmp_path / "images"
    result = suite.run(wide, data, SMALL, audit_queries=0, images=folder, batch_size=3)
    assert 0.9 * eps < result.worst.linf <= eps + 1e-6
    assert result.worst_8bit.linf <= int(255 * eps + 1e-6) / 255 + 1e-9
    moved = []
    for name, sample in zip(data.query_names, data.query, strict=True):
        before = Image.open(sample.path).convert("RGB").resize((32, 64), Image.Resampling.BILINEAR)
        after = np.asarray(Image.open(folder / f"{name}.png"), int)
        moved.append(int(np.abs(after - np.asarray(before, int)).max()))
    assert max(moved) == int(255 * eps)
    # what no attack makes worse stays as it is, and so does the query that nobody answers
    assert [m > 0 for m in moved] == (result.worst_8bit.ap < result.clean.ap).tolist()
    assert sum(m > 0 for m in moved) > 3
    again = evaluate(wide, data.with_query(folder), protocol=SMALL).attacked_8bit.ranking
    torch.testing.assert_close(again.ap, result.worst_8bit.ap, equal_nan=True)
    assert again.mAP == pytest.approx(result.worst_8bit.mAP)
    with pytest.raises(CheckpointError, match="run: "):
        RetrievalAutoAttack(Budget(eps), **QUICK, seed=1).run(
            wide, data, SMALL, audit_queries=0, images=folder, batch_size=3
        )


# --- resuming ----------------------------------------------------------------------------------


def content(folder):
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != ".lock"]
    return {p.relative_to(folder): p.read_bytes() for p in files}


@pytest.mark.parametrize("after", [0, 1, 9])
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(
    wide, passes, data, universal, tmp_path, after
):
    suite = RetrievalAutoAttack(EIGHT, universal=universal, **QUICK)  # six attacks, three batches
    options = {"audit_queries": 3, "batch_size": 3}
    whole, broken_off = tmp_path / "whole", tmp_path / "broken off"

    def run(folder, progress=None):
        passes.clear()
        state, images = folder / "state", folder / "images"
        result = suite.run(
            wide, data, SMALL, state=state, images=images, progress=progress, **options
        )
        return result, sum(passes)

    def kill(progress):
        nonlocal after
        if progress.phase == "attacking" or after == 0:
            after -= 1
            if after <= 0:
                raise Killed

    expected, cost = run(whole)
    with pytest.raises(Killed):
        run(broken_off, kill)
    if (broken_off / "state").exists():
        leave_temporary(broken_off / "state")
    result, rest = run(broken_off)
    assert result.to_json() == expected.to_json()
    assert content(broken_off) == content(whole)
    assert rest <= cost
    assert run(broken_off)[1] < cost / 10  # what is done is not done again
    assert content(broken_off) == content(whole)


def test_at_most_one_attack_on_one_batch_is_lost(wide, passes, data, tmp_path):
    suite = RetrievalAutoAttack(EIGHT, **{**QUICK, "squares": 50})
    options = {"audit_queries": 0, "batch_size": 3}
    suite.run(wide, data, SMALL, **options)
    cost = sum(passes)
    seen = []

    def interrupt(module, inputs, output):
        seen.append(len(inputs[0]))
        if sum(seen) > cost - 20:  # inside the last member of the last batch
            raise Killed

    handle = wide.network.register_forward_hook(interrupt)
    with pytest.raises(Killed):
        suite.run(wide, data, SMALL, state=tmp_path / "state", **options)
    handle.remove()
    passes.clear()
    result = suite.run(wide, data, SMALL, state=tmp_path / "state", **options)
    square = result.members[-1].forward
    assert sum(passes) <= 3 * square + len(data.gallery) + len(data.query) + 2 + 4
    assert not wide.network[1].training or wide.training  # a killed run leaves modes as they were


def test_a_damaged_file_is_made_anew(wide, data, tmp_path):
    state = tmp_path / "state"
    suite = RetrievalAutoAttack(EIGHT, **QUICK)
    options = {"audit_queries": 0, "batch_size": 3, "state": state}
    expected = suite.run(wide, data, SMALL, **options).to_json()
    before = content(state)
    assert len(before) == 4
    (state / "batch-00001.safetensors").write_bytes(b"nonsense")
    assert suite.run(wide, data, SMALL, **options).to_json() == expected
    assert content(state) == before


def test_the_state_of_another_run_is_refused(wide, data, people, tmp_path):
    state = tmp_path / "state"
    quick = {**QUICK, "restarts": 1}
    options = {"audit_queries": 0, "state": state}
    suite = RetrievalAutoAttack(EIGHT, **quick)
    suite.run(wide, data, SMALL, query_every=3, **options)
    with pytest.raises(CheckpointError, match="suite seed: 0 stored, 3 now"):
        RetrievalAutoAttack(EIGHT, **quick, seed=3).run(wide, data, SMALL, query_every=3, **options)
    with pytest.raises(CheckpointError, match="early_stop: false stored, true now"):
        suite.run(wide, data, SMALL, query_every=3, early_stop=True, **options)
    with pytest.raises(CheckpointError, match=r"dataset name: .*counts query: .*order: "):
        suite.run(wide, people, SMALL, query_every=3, **options)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"holds other files, such as notes\.txt"):
        suite.run(wide, data, SMALL, audit_queries=0, state=foreign)
    with pytest.raises(CheckpointError, match="is a file"):
        suite.run(wide, data, SMALL, audit_queries=0, state=foreign / "notes.txt")


# --- what is reported --------------------------------------------------------------------------


def test_the_result_as_json_and_tables(wide, data, tmp_path):
    suite = RetrievalAutoAttack(EIGHT, **QUICK)
    result = suite.run(wide, data, SMALL, audit_queries=3)
    content = json.loads(result.to_json())
    assert content == json.loads(json.dumps(result.to_dict()))
    assert content["robust"]["mAP"] == result.worst.mAP
    assert content["robust"]["cmc"] == [result.worst.rank_k(k) for k in range(1, 11)]
    assert content["suite"] == {
        "eps": 8 / 255,
        "universal": None,
        "surrogate": None,
        "seed": 0,
        "broken_rank": 10,
        "broken_ap": 0.1,
        **QUICK,
    }
    assert content["counts"]["skipped"] == 1
    table = result.to_markdown()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert ["robust, float", f"{100 * result.worst.mAP:.1f}"] in [row[:2] for row in rows]
    square = result.members[-1]
    numbers = ["1", "6", str(square.broken), str(square.first)]
    assert ["square", *numbers] in [row[:5] for row in rows]
    result.save(tmp_path / "result.md")
    result.save(tmp_path / "result.json")
    assert (tmp_path / "result.md").read_text("utf-8") == table
    assert json.loads((tmp_path / "result.json").read_text("utf-8")) == content
    # the model comes back as it was
    assert all(p.requires_grad for p in wide.parameters())


def test_the_least_and_the_most_of_each_option():
    suite = RetrievalAutoAttack(
        universal=DeltaAttack(EIGHT), restarts=1, steps=1, squares=1, broken_rank=1, broken_ap=1
    )
    assert suite.budget == EIGHT
    for name in ("restarts", "steps", "squares", "broken_rank"):
        with pytest.raises(InputError, match="must be a whole number, at least 1"):
            RetrievalAutoAttack(**{name: 0})
    for wrong in (0.0, -0.1, 1.01):
        with pytest.raises(InputError, match=r"broken_ap must be .* above 0"):
            RetrievalAutoAttack(broken_ap=wrong)
    defaults = RetrievalAutoAttack().config()
    assert defaults == {
        "eps": 8 / 255,
        "universal": None,
        "surrogate": None,
        "restarts": 2,
        "steps": 100,
        "squares": 1000,
        "broken_rank": 10,
        "broken_ap": 0.1,
        "seed": 0,
    }
    universal, other = DeltaAttack(EIGHT), DeltaAttack(EIGHT)
    with torch.no_grad():
        other.delta += 1 / 255
    named = [
        RetrievalAutoAttack(universal=universal, surrogate=BLUE).config(),
        RetrievalAutoAttack(universal=other, surrogate=planted(mean_red)).config(),
    ]
    assert named[0]["universal"] != named[1]["universal"]
    assert all(isinstance(config["surrogate"], str) for config in named)
    assert RetrievalAutoAttack(universal=universal, surrogate=BLUE).config() == named[0]


def test_mistakes_name_the_cure(wide, data):
    for options, word in (
        ({"restarts": 0}, "at least 1"),
        ({"broken_ap": 0.0}, "broken_ap"),
        ({"universal": SMA()}, "no universal attack"),
        ({"universal": DeltaAttack(Budget(9 / 255))}, "more than the suite's 8/255"),
    ):
        with pytest.raises(InputError, match=word):
            RetrievalAutoAttack(EIGHT, **options)
    with pytest.raises(InputError, match="above 0"):
        RetrievalAutoAttack(Budget(0))
    far = wrap_model(nn.Conv2d(3, 4, 3), input_spec=RAW).to("meta")
    with pytest.raises(InputError, match="surrogate on meta"):
        RetrievalAutoAttack(EIGHT, surrogate=far).run(wide, data, SMALL)
    delta = DeltaAttack(EIGHT, size=(16, 12)).to("meta")
    with pytest.raises(InputError, match="universal attack on meta"):
        RetrievalAutoAttack(EIGHT, universal=delta).run(wide, data, SMALL)
    with pytest.raises(InputError, match="audit_queries"):
        RetrievalAutoAttack(EIGHT).run(wide, data, SMALL, audit_queries=-1)
