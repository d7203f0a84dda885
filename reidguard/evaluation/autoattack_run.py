"""The members of Retrieval-AutoAttack and their run on one model and dataset."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from reidguard.attacks import FNA, SMA, Attack, SquareAttack, fixed_patterns
from reidguard.distributed import from_all, rows_here
from reidguard.errors import InputError
from reidguard.evaluation.audit import POINTS
from reidguard.evaluation.audit_report import Finding, make_finding
from reidguard.evaluation.autoattack_result import AutoAttackResult, MemberResult, WorstCase
from reidguard.evaluation.features import CountCallback
from reidguard.evaluation.retrieval import Retrieval
from reidguard.evaluation.save import write_png
from reidguard.metrics import RankingResult
from reidguard.metrics.quality import achieved_linf
from reidguard.models import ReIDModel
from reidguard.nn import inference_view
from reidguard.nn.cameras import cameras_of, probe_cameras, with_cameras
from reidguard.nn.gradients import ZERO_LIMIT, check_graph, count_gradients, graph_needed
from reidguard.storage import ResumableStore
from reidguard.types import ReIDSample

if TYPE_CHECKING:
    from reidguard.evaluation.autoattack import RetrievalAutoAttack

__all__ = ["Member", "QueryBatch", "SuiteRun"]

MEASURE = 2  # forward passes that measure the images of an attack: float and 8-bit
WHITE_BOX = ("clean", "self-metric", "furthest-negative")


@dataclass(frozen=True)
class Member:
    """A member of the suite.

    Args:
        name: As in the result.
        attacks: One for each restart or pattern; None is the unchanged image.
        forward: Forward passes per query, measuring included.
        backward: Backward passes per query.
        note: Why it has no attacks.
    """

    name: str
    attacks: tuple[Attack | None, ...]
    forward: int = 0
    backward: int = 0
    note: str = ""


def build_members(suite: RetrievalAutoAttack, retrieval: Retrieval) -> tuple[Member, ...]:
    """Return the members of a suite, bound to the model (``transfer`` to the surrogate)."""
    guides = retrieval.guides()
    options: dict[str, Any] = {"steps": suite.steps, "step_size": None}
    passes = (suite.restarts * (suite.steps + 2 + MEASURE), suite.restarts * suite.steps)

    def gradient_member(name: str, source: ReIDModel, kind: type[SMA] | type[FNA]) -> Member:
        if not _is_differentiable(source, retrieval):
            return Member(name, (), note="features are cut off from the image: no gradient")
        attacks = [
            kind(suite.budget, seed=suite.seed + restart, **options).bind(
                source, guides if kind.needs_guides else None
            )
            for restart in range(suite.restarts)
        ]
        return Member(name, tuple(attacks), *passes)

    model = retrieval.model
    members = [
        Member("clean", (None,)),
        gradient_member("self-metric", model, SMA),
        gradient_member("furthest-negative", model, FNA),
    ]
    patterns = tuple(fixed_patterns(suite.budget).values())
    members.append(Member("pattern", patterns, MEASURE * len(patterns)))
    if suite.universal is not None:
        members.append(Member("universal", (suite.universal,), MEASURE))
    if suite.surrogate is not None:
        members.append(gradient_member("transfer", suite.surrogate, SMA))
    square = SquareAttack(suite.budget, steps=suite.squares, seed=suite.seed).bind(model, guides)
    members.append(Member("square", (square,), suite.squares + 2 + MEASURE))
    return tuple(members)


def _is_differentiable(model: ReIDModel, retrieval: Retrieval) -> bool:
    protocol = retrieval.protocol
    shape = (1, 3, *protocol.image_size)
    x = torch.full(shape, 0.5, device=retrieval.device, dtype=protocol.dtype, requires_grad=True)
    with torch.enable_grad():
        try:
            with graph_needed(model):
                view = with_cameras(inference_view(model), probe_cameras(model, 1))
                check_graph(view.features(x), model)
        except InputError:
            return False
    return True


@dataclass(eq=False)
class QueryBatch:
    """State of one batch of queries, which a resumed run continues from.

    Metrics are (2, attacks, queries), for float and 8-bit images. The first attack is none at all.

    Args:
        done: Attacks that were run.
        ap: Average precision; NaN where the attack was not run.
        first: Rank of the first match; 0 where the attack was not run.
        linf: Largest change of any pixel, in [0, 1] units.
        images: (queries, 3, H, W) uint8, the worst image of each query.
        gradients: (2, attacks) int64, needed and usable gradients by images.
    """

    done: int
    ap: Tensor
    first: Tensor
    linf: Tensor
    images: Tensor
    gradients: Tensor

    @classmethod
    def load(cls, store: ResumableStore, name: str, shape: tuple[int, ...]) -> QueryBatch | None:
        """Read a batch of (2, attacks, queries) metrics; None if it is missing or damaged."""
        entry = store.get_tensors(name)
        if entry is None or entry[0]["ap"].shape != shape:
            return None
        return cls(done=int(entry[1]["done"]), **entry[0])

    def save(self, store: ResumableStore, name: str) -> None:
        """Write the batch."""
        tensors = {key: value for key, value in vars(self).items() if key != "done"}
        store.put_tensors(name, tensors, {"done": self.done})


class SuiteRun:
    """The run of a suite on one model and dataset.

    Args:
        suite: Its options.
        retrieval: Model, dataset and protocol.
        clean: Ranking of the clean queries.
        early_stop: Whether broken queries are attacked no further.
    """

    def __init__(
        self,
        suite: RetrievalAutoAttack,
        retrieval: Retrieval,
        clean: RankingResult,
        early_stop: bool,
    ) -> None:
        self.suite, self.retrieval = suite, retrieval
        self.clean, self.early_stop = clean, early_stop
        self.members = build_members(suite, retrieval)
        self.attacks = [attack for member in self.members for attack in member.attacks]

    def all_batches(
        self,
        queries: Sequence[ReIDSample],
        entries: ResumableStore,
        files: Sequence[Path],
        progress: CountCallback,
    ) -> list[QueryBatch]:
        """Run every attack on every query, resuming from the batches in ``entries``.

        Each of several processes runs its part of the batches.

        Args:
            queries: Samples.
            entries: Has and gets the batches.
            files: Where to write the worst image of each query; empty to write none.
            progress: Called with (attacks on single queries done, in all), of this process.

        Returns:
            The batches of all processes, without their images, which take far more room than the
            metrics.
        """
        count, size = len(self.attacks), self.retrieval.batch_size
        batches = []
        rows = rows_here(len(queries), size)
        for start in range(rows.start, rows.stop, size):
            place = slice(start, min(start + size, rows.stop))
            samples, name = queries[place], f"batch-{start // size:05d}"
            batch = QueryBatch.load(entries, name, (2, count, len(samples)))
            if batch is None or batch.done < count:
                _, pixels = next(self.retrieval.read(samples))
                batch = self.begin(place, pixels) if batch is None else batch
            while batch.done < count:
                self.step(batch, samples, pixels)
                batch.save(entries, name)
                done = (start - rows.start) * (count - 1) + (batch.done - 1) * len(samples)
                progress(done, (rows.stop - rows.start) * (count - 1))
            for file, image in zip(files[place], batch.images, strict=False):
                if not file.exists():
                    write_png(file, image)
            batches.append(replace(batch, images=batch.images[:0]))
        return from_all(batches)

    def begin(self, place: slice, pixels: Tensor) -> QueryBatch:
        """Return the batch of the clean (N, 3, H, W) uint8 images at ``place``."""
        shape = (2, len(self.attacks), len(pixels))
        batch = QueryBatch(
            done=1,
            ap=torch.full(shape, math.nan, dtype=torch.float64),
            first=torch.zeros(shape, dtype=torch.int64),
            linf=torch.zeros(shape, dtype=torch.float64),
            images=pixels.clone(),
            gradients=torch.zeros(2, len(self.attacks), dtype=torch.int64),
        )
        batch.ap[:, 0] = self.clean.ap[place]
        batch.first[:, 0] = self.clean.first_match[place]
        return batch

    def is_broken(self, ap: Tensor, first: Tensor) -> Tensor:
        """Return where an attack breaks a query, in the shape of the arguments."""
        return (first > self.suite.broken_rank) & (ap < self.suite.broken_ap)

    def step(self, batch: QueryBatch, samples: Sequence[ReIDSample], pixels: Tensor) -> None:
        """Run the next attack on the queries of a batch that have a match and need it."""
        attack = self.attacks[batch.done]
        assert attack is not None
        active = batch.first[0, 0] > 0
        if self.early_stop:
            active &= ~self.is_broken(batch.ap, batch.first).any(1).all(0)
        rows = active.nonzero().flatten()
        if len(rows) > 0:
            self._attack(attack, batch, rows, [samples[i] for i in rows.tolist()], pixels[rows])
        batch.done += 1

    def _attack(
        self,
        attack: Attack,
        batch: QueryBatch,
        rows: Tensor,
        samples: list[ReIDSample],
        pixels: Tensor,
    ) -> None:
        model = with_cameras(inference_view(self.retrieval.model), cameras_of(samples))
        with torch.no_grad(), count_gradients() as count:
            x = self.retrieval.to_input(pixels)
            *kinds, saved = self.retrieval.perturb(attack, x, samples, with_labels=True)
            features = torch.cat([model.features(images) for images in kinds])
            ranking = self.retrieval.rank(features, [*samples, *samples])
            linf = torch.stack([achieved_linf(images, x).double() for images in kinds])
        batch.gradients[:, batch.done] = torch.tensor(count.read())
        lowest = batch.ap[1, :, rows].nan_to_num(2).amin(0)
        batch.ap[:, batch.done, rows] = ranking.ap.view(2, -1)
        batch.first[:, batch.done, rows] = ranking.first_match.view(2, -1)
        batch.linf[:, batch.done, rows] = linf.cpu()
        worse = batch.ap[1, batch.done, rows] < lowest
        batch.images[rows[worse]] = saved.cpu()[worse]

    def result(
        self, batches: Sequence[QueryBatch], audit: dict[str, Any] | None, facts: dict[str, Any]
    ) -> AutoAttackResult:
        """Return the result of all batches, with an audit and what was run."""
        members, broken_by = self.member_results(batches)
        worst, worst_8bit = self.worst_cases(batches)
        zero = zero_gradient_finding(self.zero_fractions(batches))
        findings = (*zero, *black_box_finding(members))
        return AutoAttackResult(
            self.clean, worst, worst_8bit, members, broken_by, audit, findings, facts
        )

    def worst_cases(self, batches: Sequence[QueryBatch]) -> tuple[WorstCase, WorstCase]:
        """Return the worst case of each query, of float and of 8-bit images."""
        ap, first, linf = _joined(batches)
        broken = self.is_broken(ap, first)
        float_images, byte_images = (
            WorstCase(
                # A query without a match is NaN in every attack, and in the result.
                ap=ap[kind].nan_to_num(math.inf).amin(0).masked_fill(first[kind, 0] == 0, math.nan),
                first_match=first[kind].amax(0),
                broken=broken[kind].any(0),
                linf=float(linf[kind].max()),
            )
            for kind in range(2)
        )
        return float_images, byte_images

    def zero_fractions(self, batches: Sequence[QueryBatch]) -> dict[str, float]:
        """Return the fraction of unusable gradients of each member that has some."""
        needed, usable = torch.stack([batch.gradients for batch in batches]).sum(0).tolist()
        fractions, start = {}, 0
        for member in self.members:
            place = slice(start, start + len(member.attacks))
            start = place.stop
            if total := sum(needed[place]):
                fractions[member.name] = 1 - sum(usable[place]) / total
        return {name: zero for name, zero in fractions.items() if zero > ZERO_LIMIT}

    def member_results(
        self, batches: Sequence[QueryBatch]
    ) -> tuple[tuple[MemberResult, ...], tuple[str | None, ...]]:
        """Return each member's results on float images, and the first that breaks each query."""
        ap, first, linf = (metric[0] for metric in _joined(batches))
        broken = self.is_broken(ap, first)
        results: list[MemberResult] = []
        broken_by: list[str | None] = [None] * ap.shape[1]
        unbroken = torch.ones(ap.shape[1], dtype=torch.bool)
        start = 0
        for member in self.members:
            place = slice(start, start + len(member.attacks))
            start = place.stop
            run = (first[place] > 0).any(0)
            breaks = broken[place].any(0)
            new = breaks & unbroken
            unbroken &= ~breaks
            broken_by = [member.name if new[i] else name for i, name in enumerate(broken_by)]
            everywhere = len(member.attacks) > 0 and bool((run == (first[0] > 0)).all())
            results.append(
                MemberResult(
                    name=member.name,
                    restarts=len(member.attacks),
                    queries=int(run.sum()),
                    broken=int(breaks.sum()),
                    first=int(new.sum()),
                    mAP=float(ap[place][:, run].amin(0).mean()) if everywhere else None,
                    linf=float(linf[place].max()) if member.attacks else 0.0,
                    forward=member.forward,
                    backward=member.backward,
                    note=member.note,
                )
            )
        return tuple(results), tuple(broken_by)


def _joined(batches: Sequence[QueryBatch]) -> tuple[Tensor, ...]:
    return tuple(
        torch.cat([getattr(batch, name) for batch in batches], dim=2)
        for name in ("ap", "first", "linf")
    )


def zero_gradient_finding(fractions: Mapping[str, float]) -> tuple[Finding, ...]:
    """Warn where members have gradients that are zero or not finite, by their fractions."""
    if not fractions:
        return ()
    shown = ", ".join(f"{100 * zero:.3g} % of {name}" for name, zero in fractions.items())
    measured, limit = f"gradients zero or not finite: {shown}", f"above {100 * ZERO_LIMIT:.0f} %"
    return (make_finding("zero_gradients", "error", measured, limit, dict(fractions)),)


def black_box_finding(members: Sequence[MemberResult]) -> tuple[Finding, ...]:
    """Warn where only members without the model's gradient break many queries."""
    queries = members[0].queries
    blind = sum(member.first for member in members if member.name not in WHITE_BOX)
    fraction = blind / queries
    if fraction <= POINTS:
        return ()
    measured = f"{blind} of {queries} queries are broken, but by no attack on the model's gradients"
    limit = f"above {100 * POINTS:.0f} %"
    return (make_finding("black_box", "warning", measured, limit, {"fraction": fraction}),)
