"""What the suite's run makes of its measurements, from measurements made by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from reidguard.attacks import FNA, SMA, DeltaAttack, Guides, SquareAttack, fixed_patterns
from reidguard.evaluation import Protocol, RetrievalAutoAttack
from reidguard.evaluation.autoattack_result import MemberResult
from reidguard.evaluation.autoattack_run import (
    Member,
    QueryBatch,
    SuiteRun,
    black_box_finding,
    build_members,
)
from reidguard.models import wrap_model
from reidguard.storage import ResumableStore
from reidguard.types import Budget, InputSpec

NAN = float("nan")
EIGHT = Budget(8 / 255)
RAW = InputSpec(size=None, mean=(0, 0, 0), std=(1, 1, 1))


def model(function=lambda x: x.flatten(1)):
    class Features(nn.Module):
        def forward(self, x):
            return function(x)

    return wrap_model(Features(), input_spec=RAW, metric="euclidean")


def retrieval(target=None):
    """All that members are built from."""
    return SimpleNamespace(
        model=model() if target is None else target,
        protocol=Protocol(image_size=(4, 2), dtype=torch.float64),
        device=torch.device("cpu"),
        guides=lambda: Guides(torch.rand(3, 24, dtype=torch.float64), [1, 2, 3]),
    )


# --- members ------------------------------------------------------------------------------------


def test_the_members_their_seeds_and_their_costs():
    universal, surrogate = DeltaAttack(EIGHT, size=(4, 2)), model()
    options = {"restarts": 3, "steps": 7, "squares": 11, "seed": 5}
    suite = RetrievalAutoAttack(EIGHT, universal=universal, surrogate=surrogate, **options)
    target = model()
    members = {member.name: member for member in build_members(suite, retrieval(target))}
    assert list(members) == [
        "clean",
        "self-metric",
        "furthest-negative",
        "pattern",
        "universal",
        "transfer",
        "square",
    ]
    assert all(member.note == "" for member in members.values())
    # Two more forward passes start each restart, and two measure its images.
    assert {n: (m.forward, m.backward) for n, m in members.items()} == {
        "clean": (0, 0),
        "self-metric": (3 * (7 + 2 + 2), 3 * 7),
        "furthest-negative": (3 * (7 + 2 + 2), 3 * 7),
        "pattern": (9 * 2, 0),
        "universal": (2, 0),
        "transfer": (3 * (7 + 2 + 2), 3 * 7),
        "square": (11 + 2 + 2, 0),
    }
    assert members["clean"].attacks == (None,)
    assert members["universal"].attacks == (universal,)
    patterns = [attack.config() for attack in members["pattern"].attacks]
    assert patterns == [attack.config() for attack in fixed_patterns(EIGHT).values()]
    kinds = {"self-metric": SMA, "furthest-negative": FNA, "transfer": SMA, "square": SquareAttack}
    for name, kind in kinds.items():
        attacks = members[name].attacks
        assert [type(a) for a in attacks] == [kind] * (1 if name == "square" else 3)
        assert [a.seed for a in attacks] == ([5] if name == "square" else [5, 6, 7])
        assert {a.steps for a in attacks} == {11 if name == "square" else 7}
        assert {a.budget for a in attacks} == {EIGHT}
        assert {a.target.model for a in attacks} == {surrogate if name == "transfer" else target}
    assert {a.step_size for a in members["self-metric"].attacks} == {None}
    few = build_members(RetrievalAutoAttack(EIGHT), retrieval())
    assert [m.name for m in few] == [
        "clean",
        "self-metric",
        "furthest-negative",
        "pattern",
        "square",
    ]
    assert [len(m.attacks) for m in few] == [1, 2, 2, 9, 1]


def test_without_a_gradient_there_are_no_gradient_attacks():
    cut_off, whole = model(lambda x: x.detach().flatten(1)), model()
    suite = RetrievalAutoAttack(EIGHT, surrogate=whole)
    members = {m.name: m for m in build_members(suite, retrieval(cut_off))}
    for name in ("self-metric", "furthest-negative"):
        member = members[name]
        assert (member.attacks, member.forward, member.backward) == ((), 0, 0)
        assert "no gradient" in member.note
    assert len(members["transfer"].attacks) == 2
    members = {
        m.name: m
        for m in build_members(RetrievalAutoAttack(EIGHT, surrogate=cut_off), retrieval(whole))
    }
    assert members["transfer"].attacks == ()
    assert len(members["self-metric"].attacks) == 2
    with torch.no_grad():  # the caller's mode does not matter
        assert len(build_members(RetrievalAutoAttack(EIGHT), retrieval())[1].attacks) == 2


# --- results ------------------------------------------------------------------------------------


def run(early_stop=False, **options):
    """Of clean images, an attack in two restarts, one that was left out, and a universal one."""
    members = (
        Member("clean", (None,)),
        Member("self-metric", ("a", "b"), 22, 14),
        Member("furthest-negative", (), note="cut off"),
        Member("universal", ("c",), 2),
    )
    stub = SimpleNamespace(
        suite=RetrievalAutoAttack(EIGHT, broken_rank=5, broken_ap=0.2, **options),
        members=members,
        attacks=[attack for member in members for attack in member.attacks],
        early_stop=early_stop,
    )
    stub.is_broken = lambda ap, first: SuiteRun.is_broken(stub, ap, first)
    return stub


def batches():
    """Two of two queries; the last query has no match. Numbers are (attacks, queries)."""
    ap = [
        [[1.0, 0.1, 0.9, NAN], [0.5, 0.05, 0.1, NAN], [0.1, NAN, 0.3, NAN], [0.3, NAN, 0.15, NAN]],
        [[1.0, 0.1, 0.9, NAN], [0.6, 0.06, 0.2, NAN], [0.19, NAN, 0.4, NAN], [0.4, NAN, 0.2, NAN]],
    ]
    first = [
        [[1, 6, 1, 0], [2, 20, 5, 0], [9, 0, 3, 0], [3, 0, 6, 0]],
        [[1, 6, 1, 0], [2, 18, 5, 0], [6, 0, 3, 0], [3, 0, 5, 0]],
    ]
    linf = [
        [[0.0] * 4, [0.03, 0.02, 0.01, 0.0], [0.031, 0.0, 0.01, 0.0], [0.02, 0.0, 0.02, 0.0]],
        [[0.0] * 4, [0.029, 0.02, 0.01, 0.0], [0.03, 0.0, 0.01, 0.0], [0.02, 0.0, 0.02, 0.0]],
    ]
    ap, linf = (torch.tensor(values, dtype=torch.float64) for values in (ap, linf))
    first = torch.tensor(first)
    images = torch.zeros(0, 3, 4, 2, dtype=torch.uint8)
    gradients = torch.zeros(2, 4, dtype=torch.int64)
    return [
        QueryBatch(4, ap[..., part], first[..., part], linf[..., part], images, gradients)
        for part in (slice(0, 2), slice(2, 4))
    ]


def test_the_worst_case_of_each_query():
    floats, saved = SuiteRun.worst_cases(run(), batches())
    assert floats.ap[:3].tolist() == [0.1, 0.05, 0.1]
    assert saved.ap[:3].tolist() == [0.19, 0.06, 0.2]
    for worst in (floats, saved):
        assert worst.ap[3].isnan()
        assert worst.ap.dtype == torch.float64
    assert floats.first_match.tolist() == [9, 20, 6, 0]
    assert saved.first_match.tolist() == [6, 18, 5, 0]
    # Broken by one attack alone: the rank of one and the average precision of another do not count.
    assert floats.broken.tolist() == [True, True, True, False]
    assert saved.broken.tolist() == [True, True, False, False]
    assert (floats.linf, saved.linf) == (0.031, 0.03)


def test_what_each_member_does():
    members, broken_by = SuiteRun.member_results(run(), batches())
    assert broken_by == ("self-metric", "clean", "universal", None)
    clean, self_metric, left_out, universal = members
    assert clean == MemberResult("clean", 1, 3, 1, 1, pytest.approx(2.0 / 3), 0.0, 0, 0)
    assert self_metric.queries == 3
    assert (self_metric.restarts, self_metric.broken, self_metric.first) == (2, 2, 1)
    assert (self_metric.linf, self_metric.forward, self_metric.backward) == (0.031, 22, 14)
    assert left_out == MemberResult("furthest-negative", 0, 0, 0, 0, None, 0.0, 0, 0, "cut off")
    # It was not run on the second query, so its mean over all is not known.
    assert universal == MemberResult("universal", 1, 2, 1, 1, None, 0.02, 2, 0)


@pytest.mark.parametrize(
    ("first", "ap", "broken"),
    [(6, 0.19, True), (5, 0.19, False), (6, 0.2, False), (6, NAN, False), (0, 0.1, False)],
)
def test_broken_is_neither_early_nor_precise(first, ap, broken):
    found = SuiteRun.is_broken(run(), torch.tensor([ap]), torch.tensor([first]))
    assert found.tolist() == [broken]


@pytest.mark.parametrize("early_stop", [False, True])
def test_which_queries_the_next_attack_sees(early_stop):
    """None without a match; with early stop, none that float and 8-bit images break."""
    joined = batches()
    batch = QueryBatch(
        done=2,
        **{
            name: torch.cat([getattr(b, name) for b in joined], 2)
            for name in ("ap", "first", "linf")
        },
        images=torch.zeros(4, 3, 4, 2, dtype=torch.uint8),
        gradients=torch.zeros(2, 4, dtype=torch.int64),
    )
    stub, seen = run(early_stop), []
    stub._attack = lambda attack, batch, rows, samples, pixels: seen.append(
        (attack, rows.tolist(), samples, pixels.tolist())
    )
    SuiteRun.step(stub, batch, ["p", "q", "r", "s"], torch.arange(4))
    rows = [2] if early_stop else [0, 1, 2]
    assert seen == [("b", rows, [["p", "q", "r", "s"][i] for i in rows], rows)]
    assert batch.done == 3
    batch.first[:, 0] = 0
    SuiteRun.step(stub, batch, ["p", "q", "r", "s"], torch.arange(4))
    assert len(seen) == 1  # nobody is left
    assert batch.done == 4


def test_a_batch_begins_with_the_clean_ranking():
    stub = run()
    stub.clean = SimpleNamespace(
        ap=torch.tensor([0.1, 0.2, NAN]), first_match=torch.tensor([4, 2, 0])
    )
    pixels = torch.randint(0, 256, (2, 3, 4, 2), dtype=torch.uint8)
    batch = SuiteRun.begin(stub, slice(1, 3), pixels)
    assert batch.done == 1
    assert batch.ap.shape == batch.first.shape == batch.linf.shape == (2, 4, 2)
    for kind in (0, 1):
        assert batch.ap[kind, 0, 0] == pytest.approx(0.2)
        assert batch.first[kind, 0].tolist() == [2, 0]
    assert batch.ap[:, 1:].isnan().all()
    assert batch.ap[:, 0, 1].isnan().all()
    assert not batch.first[:, 1:].any()
    assert not batch.linf.any()
    assert [t.dtype for t in (batch.ap, batch.first, batch.linf)] == [
        torch.float64,
        torch.int64,
        torch.float64,
    ]
    assert torch.equal(batch.images, pixels)
    batch.images.zero_()
    assert pixels.any()  # which are the caller's


def test_a_batch_on_disk(tmp_path):
    batch = batches()[0]
    with ResumableStore(tmp_path / "state", {"a": 1}, card="card.json") as store:
        assert QueryBatch.load(store, "batch", (2, 4, 2)) is None
        batch.save(store, "batch")
        again = QueryBatch.load(store, "batch", (2, 4, 2))
        assert again.done == 4
        for name in ("ap", "first", "linf", "images"):
            torch.testing.assert_close(
                getattr(again, name), getattr(batch, name), rtol=0, atol=0, equal_nan=True
            )
        assert QueryBatch.load(store, "batch", (2, 4, 3)) is None  # of another run


# --- the warning --------------------------------------------------------------------------------


def member(name, first, queries=100):
    return MemberResult(name, 1, queries, first, first, 0.5, 0.03, 1, 1)


def test_breaks_without_gradients_are_warned_of():
    """Beyond two in a hundred queries with a match; those of the model's gradients do not count."""
    own = (member("clean", 3), member("self-metric", 50), member("furthest-negative", 20))
    assert black_box_finding(own) == ()
    assert black_box_finding((*own, member("square", 2))) == ()
    assert black_box_finding((*own, member("universal", 1), member("square", 1))) == ()
    (finding,) = black_box_finding(
        (*own, member("universal", 1), member("transfer", 1, 20), member("square", 1, 10))
    )
    assert (finding.name, finding.level) == ("black_box", "warning")
    assert finding.measured.startswith("3 of 100 queries are broken")
    assert finding.limit == "above 2 %"
    assert finding.evidence == {"fraction": 0.03}
    assert "masked" in finding.cure
