"""`RetrievalAutoAttack`: a fixed ensemble of attacks, and the worst that any of them does.

For classifiers AutoAttack (Croce & Hein, 2020) is such an ensemble. Retrieval has no classes: here
an attack succeeds by what the ranking of the gallery shows.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reidguard.attacks import FNA, SMA, Attack, Guides, InstanceAttack, SquareAttack
from reidguard.data import ReIDDataset, iterate_images
from reidguard.errors import CheckpointError, InputError
from reidguard.evaluation.audit import POINTS, Finding, audit
from reidguard.evaluation.autoattack_result import AutoAttackResult, MemberResult, WorstCase
from reidguard.evaluation.evaluate import EvaluationResult, evaluate
from reidguard.evaluation.features import (
    FeatureStore,
    attack_device,
    module_device,
    to_device,
    to_float,
    told,
)
from reidguard.evaluation.protocol import Protocol
from reidguard.evaluation.save import attack_fingerprint, claim_folder, write_png
from reidguard.metrics import RankingResult, rank
from reidguard.metrics.quality import achieved_linf
from reidguard.models import ReIDModel
from reidguard.nn import inference_view
from reidguard.storage import load_tensors, save_tensors, weights_fingerprint, write_json
from reidguard.training import Progress, ProgressCallback
from reidguard.types import Budget, ReIDSample

__all__ = ["RetrievalAutoAttack"]

CARD, AUDIT = "autoattack.json", "audit.json"
MEASURE = 2  # forward passes that look at what an attack has made: float and 8-bit
WHITE_BOX = ("clean", "self-metric", "furthest-negative")
CURE = (
    "Attacks that ask for no gradient of the model break queries that those by its gradients leave "
    "whole: its gradients are masked, or the white-box members too weak. Believe the figures of "
    "this suite no further than the audit of the model; attack it through a smooth stand-in."
)


@dataclass(frozen=True)
class _Member:
    name: str
    attacks: tuple[Attack | None, ...]  # one for each restart; None leaves the image as it is
    forward: int = 0
    backward: int = 0
    note: str = ""


class RetrievalAutoAttack:
    """The worst case of a fixed ensemble of attacks, told whom each query shows.

    Its members, in this order:

    ``self-metric``
        :class:`~reidguard.SMA` with steps that adapt themselves (Auto-PGD).
    ``furthest-negative``
        :class:`~reidguard.FNA` with the same steps; its guides are the clean gallery.
    ``universal``
        The learnt attack that is given, if one is.
    ``transfer``
        ``self-metric`` made on the surrogate, if one is given.
    ``square``
        :class:`~reidguard.SquareAttack` on the margin of rank-1, without any gradient.

    There is nothing to tune. What can be given makes the suite stronger or cheaper, and is part
    of the result. A query is *broken* if one image of the ball shows no match among the first
    ``broken_rank`` and an average precision below ``broken_ap``. Ten is a page of results. A
    tenth is what the precision of a query with a single match falls below when that match leaves
    the first ten; a query with many matches must lose those behind the first, too.

    Args:
        budget: The L∞ ball; 8/255 by default.
        universal: A learnt attack within the budget, on the model's device.
        surrogate: Another model, on the same device.
        restarts: Independent random starts of each gradient attack.
        steps: Iterations of each.
        squares: Squares that ``square`` tries.
        broken_rank: No match up to this rank, for a query to be broken.
        broken_ap: Average precision below this, for a query to be broken.
        seed: Fixes every random draw.

    Raises:
        InputError: If an option has a wrong value, or the universal attack may leave the budget.

    Example:
        >>> import tempfile
        >>> from reidguard.virtual import read_virtual
        >>> from reidguard.models import wrap_model
        >>> from reidguard.types import InputSpec
        >>> grid = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d((8, 4)), torch.nn.Flatten())
        >>> model = wrap_model(grid, input_spec=InputSpec(size=None))
        >>> suite = RetrievalAutoAttack(Budget(2 / 255), restarts=1, steps=5, squares=5)
        >>> few = {"train_identities": 3, "test_identities": 3, "cameras": 2, "height": 64}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     people = read_virtual(root=f"{folder}/set", images_per_camera=2, **few)
        ...     small = Protocol(image_size=(64, 32))
        ...     result = suite.run(model, people, small, audit_queries=0)
        >>> result.worst.mAP <= result.clean.mAP
        True
        >>> [member.name for member in result.members]
        ['clean', 'self-metric', 'furthest-negative', 'square']
    """

    def __init__(
        self,
        budget: Budget | None = None,
        *,
        universal: Attack | None = None,
        surrogate: ReIDModel | None = None,
        restarts: int = 2,
        steps: int = 100,
        squares: int = 1000,
        broken_rank: int = 10,
        broken_ap: float = 0.1,
        seed: int = 0,
    ) -> None:
        self.budget = budget if budget is not None else Budget()
        if self.budget.eps == 0:
            raise InputError("retrieval-autoattack needs a budget above 0, such as 8/255")
        if min(restarts, steps, squares, broken_rank) < 1:
            raise InputError("restarts, steps, squares and broken_rank must be at least 1")
        if not 0 < broken_ap <= 1:
            raise InputError(f"broken_ap is an average precision in (0, 1], not {broken_ap}")
        if isinstance(universal, InstanceAttack):
            raise InputError(
                f"{type(universal).__name__} works each image out, and is no universal attack; the "
                "suite has such members of its own"
            )
        if universal is not None and universal.budget.eps > self.budget.eps + 1e-9:
            raise InputError(
                f"the universal attack may change pixels by {universal.budget}, more than the "
                f"suite's {self.budget}; learn one within that, or give the suite the larger budget"
            )
        self.universal, self.surrogate = universal, surrogate
        self.restarts, self.steps, self.squares = restarts, steps, squares
        self.broken_rank, self.broken_ap, self.seed = broken_rank, broken_ap, seed

    def config(self) -> dict[str, Any]:
        """Return all options as JSON values, ``universal`` and ``surrogate`` by fingerprint."""
        return {
            "eps": self.budget.eps,
            "universal": None if self.universal is None else attack_fingerprint(self.universal),
            "surrogate": None if self.surrogate is None else weights_fingerprint(self.surrogate),
            "restarts": self.restarts,
            "steps": self.steps,
            "squares": self.squares,
            "broken_rank": self.broken_rank,
            "broken_ap": self.broken_ap,
            "seed": self.seed,
        }

    def run(
        self,
        model: ReIDModel,
        dataset: ReIDDataset,
        protocol: Protocol | None = None,
        *,
        early_stop: bool = False,
        audit_queries: int = 100,
        state: Path | str | None = None,
        images: Path | str | None = None,
        store: FeatureStore | None = None,
        batch_size: int = 64,
        query_every: int = 1,
        progress: ProgressCallback | None = None,
    ) -> AutoAttackResult:
        """Attack every query by every member, and keep the worst of each.

        With ``early_stop`` a query that is broken, as float and as 8-bit image, is attacked no
        further. That changes neither which queries are broken nor robust rank-k up to
        ``broken_rank``; but the lowest average precision is not looked for, so robust mAP is not
        measured. (Where members see smaller batches, a network may round differently.)

        Args:
            model: The victim. It comes back untouched.
            dataset: Its queries are attacked, its gallery is ranked.
            protocol: How to read and score; None is ``Protocol()``.
            early_stop: Do no further work on a query that is broken.
            audit_queries: About how many queries the audit of the model looks at; 0 leaves the
                audit out.
            state: Folder from which an interrupted run resumes, bit for bit. At most the work of
                one member (one restart of it) on one batch is lost.
            images: Folder for the worst 8-bit image of each query, as PNG under the query's name.
            store: Keeps clean features for further calls.
            batch_size: Queries attacked at a time.
            query_every: Use every n-th query, for a quick look.
            progress: Called with a :class:`~reidguard.training.Progress`: of clean features, of
                the audit, of attacks on single queries.

        Raises:
            InputError: If something is on another device than the model, an option has a wrong
                value, no query has a match, or a folder holds another run.
            DataError: If an image cannot be read.
            CheckpointError: If a file cannot be written.
        """
        protocol = Protocol() if protocol is None else protocol
        store = FeatureStore() if store is None else store
        if audit_queries < 0:
            raise InputError(f"audit_queries must not be negative, not {audit_queries}")
        self._check_devices(module_device(model))

        def tell(phase: str) -> Callable[[int, int], None]:
            def told_of(done: int, total: int) -> None:
                if progress is not None:
                    progress(Progress(phase, done, total))

            return told_of

        shared: dict[str, Any] = {"store": store, "batch_size": batch_size}
        clean = evaluate(
            model,
            dataset,
            None,
            protocol,
            query_every=query_every,
            progress=tell("clean features"),
            **shared,
        )
        facts = {
            "suite": self.config(),
            "early_stop": early_stop,
            "dataset": clean.dataset,
            "counts": clean.counts,
            "protocol": clean.protocol,
            "model": {
                "weights": clean.weights,
                "input_spec": model.input_spec.to_dict(),
                "metric": model.metric,
            },
        }
        size, dtype = protocol.image_size, protocol.dtype
        order = store.key(model, dataset, "query", image_size=size, dtype=dtype, every=query_every)
        kept = _State(
            None if state is None else Path(state).expanduser(),
            {
                **facts,
                "order": order["order"],
                "batch_size": batch_size,
                "audit_queries": audit_queries,
            },
        )
        targets = [] if images is None else self._targets(Path(images), dataset, kept.digest)
        targets = targets[::query_every]

        audited = kept.audit()
        if audited is None and audit_queries > 0:
            audited = audit(
                model,
                dataset,
                surrogate=self.surrogate,
                eps=self.budget.eps,
                learning_steps=0,  # the universal member is what would be learnt
                queries=audit_queries,
                protocol=protocol,
                seed=self.seed,
                progress=tell("auditing"),
                **shared,
            ).to_dict()
            kept.keep_audit(audited)

        gallery = store.features(
            model, dataset, "gallery", image_size=size, dtype=dtype, batch_size=batch_size
        )
        work = _Work(self, model, dataset, protocol, clean, gallery, early_stop)
        queries = dataset.query[::query_every]
        count = len(work.attacks)
        tick = tell("attacking")
        batches = []
        for number, start in enumerate(range(0, len(queries), batch_size)):
            place = slice(start, min(start + batch_size, len(queries)))
            samples = queries[place]
            batch = kept.load(number, count, len(samples))
            if batch is None or batch.done < count:
                _, pixels = next(iterate_images(samples, size, batch_size))
                batch = work.begin(place, pixels) if batch is None else batch
            while batch.done < count:
                work.step(batch, samples, pixels)
                kept.save(number, batch)
                done = start * (count - 1) + (batch.done - 1) * len(samples)
                tick(done, len(queries) * (count - 1))
            for target, image in zip(targets[place], batch.images, strict=False):
                if not target.exists():
                    write_png(target, image)
            # Images take far more room than figures.
            batches.append(replace(batch, images=batch.images[:0]))
        return work.result(batches, audited, facts)

    def _targets(self, folder: Path, dataset: ReIDDataset, run: str) -> list[Path]:
        """Return the file of each query's worst image; the folder is ours from now on."""
        folder = folder.expanduser()
        targets = [folder / f"{name}.png" for name in dataset.query_names]
        kind = "worst images of retrieval-autoattack"
        claim_folder(folder, {"kind": kind, "dataset": dataset.name, "run": run}, {*targets})
        return targets

    def _check_devices(self, device: torch.device) -> None:
        for what, its in (
            ("surrogate", self.surrogate and module_device(self.surrogate, device)),
            ("universal attack", self.universal and attack_device(self.universal, device)),
        ):
            if its is not None and its != device:
                raise InputError(
                    f"the model is on {device}, the {what} on {its}; move one of them first, as "
                    f"with .to({str(device)!r})"
                )


@dataclass(eq=False)
class _Batch:
    """What is known of some queries: all that a resumed run needs of them.

    Figures are (2, attacks, queries), for float and 8-bit images. The first attack is none at all.
    """

    done: int  # attacks
    ap: Tensor  # NaN where the attack was not run
    first: Tensor  # 0 where it was not
    linf: Tensor
    images: Tensor  # uint8, the worst of each query


class _State:
    """The files of a run: its settings, the audit, and one for each batch of queries."""

    def __init__(self, directory: Path | None, settings: dict[str, Any]) -> None:
        settings = json.loads(json.dumps(settings))
        text = json.dumps(settings, sort_keys=True)
        self.digest = hashlib.sha256(text.encode()).hexdigest()
        self.directory = directory
        if directory is None:
            return
        if directory.exists() and not directory.is_dir():
            raise InputError(f"{directory} is a file; name a folder to keep the run's state in")
        card = directory / CARD
        try:
            found = json.loads(card.read_text("utf-8")) if card.exists() else None
        except (OSError, ValueError):
            found = {}
        if found is None:
            foreign = [p.name for p in directory.glob("*")] if directory.is_dir() else []
            if foreign:
                raise InputError(
                    f"{directory} holds other files, such as {min(foreign)}; choose a new or empty "
                    "folder for the run's state"
                )
            write_json(card, settings)
        elif found != settings:
            changed = [k for k in {**settings, **found} if found.get(k) != settings.get(k)]
            raise InputError(
                f"{directory} holds the state of another run (different {', '.join(changed)}); "
                "repeat its settings to go on with it, or choose a new or empty folder"
            )
        for leftover in directory.glob(".*.tmp"):  # of killed writers
            leftover.unlink(missing_ok=True)

    def audit(self) -> dict[str, Any] | None:
        if self.directory is None:
            return None
        try:
            return dict(json.loads((self.directory / AUDIT).read_text("utf-8")))
        except (OSError, ValueError):
            return None

    def keep_audit(self, audited: dict[str, Any]) -> None:
        if self.directory is not None:
            write_json(self.directory / AUDIT, audited)

    def load(self, number: int, attacks: int, queries: int) -> _Batch | None:
        """Return a batch as far as it was done; None where its file is missing or damaged."""
        if self.directory is None:
            return None
        try:
            tensors, card = load_tensors(self._path(number))
            batch = _Batch(done=int(card["done"]), **tensors)
        except (CheckpointError, KeyError, TypeError):
            return None
        fits = card.get("run") == self.digest and batch.ap.shape == (2, attacks, queries)
        return batch if fits else None

    def save(self, number: int, batch: _Batch) -> None:
        if self.directory is not None:
            tensors = {k: v for k, v in vars(batch).items() if k != "done"}
            card = {"kind": "autoattack batch", "run": self.digest, "done": batch.done}
            save_tensors(self._path(number), tensors, card)

    def _path(self, number: int) -> Path:
        assert self.directory is not None
        return self.directory / f"batch-{number:05d}.safetensors"


class _Work:
    """The suite on one model and dataset."""

    def __init__(
        self,
        suite: RetrievalAutoAttack,
        model: ReIDModel,
        dataset: ReIDDataset,
        protocol: Protocol,
        clean: EvaluationResult,
        gallery: Tensor,
        early_stop: bool,
    ) -> None:
        self.suite, self.model, self.protocol = suite, model, protocol
        self.clean, self.gallery, self.early_stop = clean.clean, gallery, early_stop
        self.people: dict[str, Any] = {
            "gallery_pids": [s.pid for s in dataset.gallery],
            "gallery_camids": [s.camid for s in dataset.gallery],
        }
        self.metric = clean.protocol["metric"]
        self.device = module_device(model)
        guides = Guides(gallery, self.people["gallery_pids"])
        self.members = self._members(guides)
        self.attacks = [attack for member in self.members for attack in member.attacks]

    def _members(self, guides: Guides) -> tuple[_Member, ...]:
        suite, model = self.suite, self.model
        seeds = [suite.seed + i for i in range(suite.restarts)]
        options: dict[str, Any] = {"steps": suite.steps, "step_size": None}
        passes = (suite.restarts * (suite.steps + 2 + MEASURE), suite.restarts * suite.steps)

        def climb(name: str, source: ReIDModel, kind: type[SMA] | type[FNA]) -> _Member:
            """A gradient attack, once for each seed."""
            if not self._differentiable(source):
                return _Member(name, (), note="features are cut off from the image: no gradient")
            shown = guides if kind.needs_guides else None
            attacks = [
                kind(suite.budget, seed=seed, **options).bind(source, shown) for seed in seeds
            ]
            return _Member(name, tuple(attacks), *passes)

        members = [
            _Member("clean", (None,)),
            climb("self-metric", model, SMA),
            climb("furthest-negative", model, FNA),
        ]
        if suite.universal is not None:
            members.append(_Member("universal", (suite.universal,), MEASURE))
        if suite.surrogate is not None:
            members.append(climb("transfer", suite.surrogate, SMA))
        square = SquareAttack(suite.budget, steps=suite.squares, seed=suite.seed)
        bound = square.bind(model, guides)
        members.append(_Member("square", (bound,), suite.squares + 2 + MEASURE))
        return tuple(members)

    def _differentiable(self, model: ReIDModel) -> bool:
        size, dtype = self.protocol.image_size, self.protocol.dtype
        x = torch.full((1, 3, *size), 0.5, device=self.device, dtype=dtype, requires_grad=True)
        with torch.enable_grad():
            return inference_view(model).features(x).requires_grad

    def begin(self, samples: slice, pixels: Tensor) -> _Batch:
        """Return a batch of which only the clean images are known."""
        shape = (2, len(self.attacks), len(pixels))
        batch = _Batch(
            done=1,
            ap=torch.full(shape, math.nan, dtype=torch.float64),
            first=torch.zeros(shape, dtype=torch.int64),
            linf=torch.zeros(shape, dtype=torch.float64),
            images=pixels.clone(),
        )
        batch.ap[:, 0] = self.clean.ap[samples]
        batch.first[:, 0] = self.clean.first_match[samples]
        return batch

    def broken(self, ap: Tensor, first: Tensor) -> Tensor:
        """Return where an attack broke a query: (..., attacks, queries) like its arguments."""
        return (first > self.suite.broken_rank) & (ap < self.suite.broken_ap)

    def step(self, batch: _Batch, samples: Sequence[ReIDSample], pixels: Tensor) -> None:
        """Run the next attack on all queries of a batch that it may run on."""
        attack = self.attacks[batch.done]
        assert attack is not None
        active = batch.first[0, 0] > 0
        if self.early_stop:
            active &= ~self.broken(batch.ap, batch.first).any(1).all(0)
        rows = active.nonzero().flatten()
        if len(rows) > 0:
            chosen = [samples[i] for i in rows.tolist()]
            x = to_float(to_device(pixels[rows], self.device), self.protocol.dtype)
            model = inference_view(self.model)
            with torch.no_grad():
                x_adv = told(inference_view(attack), chosen, True)(x)
                saved = self.suite.budget.quantize(x_adv, x)
                x_8bit = to_float(saved, self.protocol.dtype)
                ranking = self._rank([model.features(y) for y in (x_adv, x_8bit)], chosen)
                linf = torch.stack([achieved_linf(y, x).double() for y in (x_adv, x_8bit)])
            lowest = batch.ap[1, :, rows].nan_to_num(2).amin(0)
            batch.ap[:, batch.done, rows] = ranking.ap.view(2, -1)
            batch.first[:, batch.done, rows] = ranking.first_match.view(2, -1)
            batch.linf[:, batch.done, rows] = linf.cpu()
            worse = batch.ap[1, batch.done, rows] < lowest
            batch.images[rows[worse]] = saved.cpu()[worse]
        batch.done += 1

    def _rank(self, features: list[Tensor], samples: list[ReIDSample]) -> RankingResult:
        return rank(
            torch.cat(features),
            self.gallery,
            query_pids=[s.pid for s in samples] * len(features),
            query_camids=[s.camid for s in samples] * len(features),
            **self.people,
            metric=self.metric,
            same_camera=self.protocol.same_camera,
        )

    def result(
        self, batches: Sequence[_Batch], audited: dict[str, Any] | None, facts: dict[str, Any]
    ) -> AutoAttackResult:
        ap, first, linf = (
            torch.cat([getattr(batch, name) for batch in batches], dim=2)
            for name in ("ap", "first", "linf")
        )
        broken = self.broken(ap, first)
        worst = [
            WorstCase(
                # A query without a match is NaN throughout, and stays it.
                ap=ap[kind].nan_to_num(math.inf).amin(0).masked_fill(first[kind, 0] == 0, math.nan),
                first_match=first[kind].amax(0),
                broken=broken[kind].any(0),
                linf=float(linf[kind].max()),
            )
            for kind in range(2)
        ]
        members: list[MemberResult] = []
        names: list[str | None] = [None] * ap.shape[2]
        whole = torch.ones(ap.shape[2], dtype=torch.bool)
        start = 0
        for member in self.members:
            place = slice(start, start + len(member.attacks))
            start = place.stop
            run = (first[0, place] > 0).any(0)
            breaks = broken[0, place].any(0)
            new = breaks & whole
            whole &= ~breaks
            names = [member.name if new[i] else name for i, name in enumerate(names)]
            everywhere = len(member.attacks) > 0 and bool((run == (first[0, 0] > 0)).all())
            members.append(
                MemberResult(
                    name=member.name,
                    restarts=len(member.attacks),
                    queries=int(run.sum()),
                    broken=int(breaks.sum()),
                    first=int(new.sum()),
                    mAP=float(ap[0, place][:, run].amin(0).mean()) if everywhere else None,
                    linf=float(linf[0, place].max()) if member.attacks else 0.0,
                    forward=member.forward,
                    backward=member.backward,
                    note=member.note,
                )
            )
        return AutoAttackResult(
            clean=self.clean,
            worst=worst[0],
            worst_8bit=worst[1],
            members=tuple(members),
            broken_by=tuple(names),
            audit=audited,
            findings=_findings(members),
            facts=facts,
        )


def _findings(members: Sequence[MemberResult]) -> tuple[Finding, ...]:
    """Warn where members without the model's gradient break what those with it leave whole."""
    queries = members[0].queries
    blind = sum(member.first for member in members if member.name not in WHITE_BOX)
    share = blind / queries
    if share <= POINTS:
        return ()
    return (
        Finding(
            "black_box",
            "warning",
            f"{blind} of {queries} queries are broken, but by no attack on the model's gradients",
            f"above {100 * POINTS:.0f} %",
            {"share": share},
            CURE,
        ),
    )
