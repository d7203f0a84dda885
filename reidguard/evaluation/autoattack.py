"""`RetrievalAutoAttack`: a fixed ensemble of attacks, and the worst case over all of them.

For classifiers AutoAttack (Croce & Hein, 2020) is such an ensemble. Retrieval has no classes: here
the ranking of the gallery defines when an attack succeeds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from typing_extensions import Unpack

from reidguard.attacks import Attack, InstanceAttack
from reidguard.attacks.base import budget_or_default
from reidguard.attacks.fingerprint import attack_fingerprint
from reidguard.contexts import fixed_context
from reidguard.data import ReIDDataset
from reidguard.distributed import entered_by_first, from_first, is_first
from reidguard.errors import InputError
from reidguard.evaluation.audit import audit
from reidguard.evaluation.audit_report import AuditReport
from reidguard.evaluation.autoattack_result import AutoAttackResult
from reidguard.evaluation.autoattack_run import SuiteRun
from reidguard.evaluation.evaluate import evaluate_with, shared_facts
from reidguard.evaluation.features import FeatureStore
from reidguard.evaluation.progress import phase
from reidguard.evaluation.protocol import Protocol
from reidguard.evaluation.retrieval import Retrieval
from reidguard.fingerprint import fingerprint
from reidguard.models import ReIDModel
from reidguard.models.fingerprint import model_key
from reidguard.nn.gradients import warn_of_zero_gradients
from reidguard.options import AutoAttackOptions
from reidguard.schema import MAX_SEED, MAX_STEPS, checked, documented, resolve
from reidguard.storage import ResumableStore
from reidguard.training import ProgressCallback
from reidguard.types import Budget

__all__ = ["RetrievalAutoAttack"]


class RetrievalAutoAttack:
    """The worst case of a fixed ensemble of attacks, given the identity of each query.

    Its members, in this order:

    ``self-metric``
        :class:`~reidguard.SMA` with adaptive steps (Auto-PGD).
    ``furthest-negative``
        :class:`~reidguard.FNA` with the same steps; its guides are the clean gallery.
    ``pattern``
        Each of :func:`~reidguard.fixed_patterns`, which use neither model nor data.
    ``universal``
        The learnt attack ``universal``, if there is one.
    ``transfer``
        ``self-metric`` on the surrogate, if there is one.
    ``square``
        :class:`~reidguard.SquareAttack` on the margin of rank-1, without any gradient.

    There is nothing to tune. The options make the suite stronger or cheaper, and are part of the
    result. A query is *broken* if one image of the ball has no match among the first
    ``broken_rank`` and an average precision below ``broken_ap``. Ten is a page of results. The
    average precision of a query with a single match falls below a tenth when that match leaves the
    first ten; a query with many matches must lose those behind the first, too.

    Args:
        budget: The L∞ ball; 8/255 by default.
        universal: A learnt attack within the budget, on the model's device.
        surrogate: Another model, on the same device.
        restarts: Independent random starts of each gradient attack.
        steps: Iterations of each.
        squares: Squares that ``square`` tries, for each query.
        broken_rank: No match up to this rank, for a query to be broken.
        broken_ap: Average precision below this, for a query to be broken.
        seed: Fixes every random draw.

    Raises:
        InputError: If an option has a wrong value, or the universal attack may leave the budget.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from reidguard.data import load_dataset
        >>> from reidguard.models import wrap_model
        >>> from reidguard.types import InputSpec
        >>> grid = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d((8, 4)), torch.nn.Flatten())
        >>> model = wrap_model(grid, input_spec=InputSpec(size=None))
        >>> suite = RetrievalAutoAttack(Budget(2 / 255), restarts=1, steps=5, squares=5)
        >>> few = "virtual:plaza?identities=3&cameras=2&images_per_camera=2&height=64"
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     people = load_dataset(few, folder=f"{folder}/set")
        ...     small = Protocol(image_size=(64, 32))
        ...     result = suite.run(model, people, small, audit_queries=0)
        >>> result.worst.mAP <= result.clean.mAP
        True
        >>> [member.name for member in result.members]
        ['clean', 'self-metric', 'furthest-negative', 'pattern', 'square']
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
        self.budget = budget_or_default(budget)
        if self.budget.eps == 0:
            raise InputError("retrieval-autoattack needs a budget above 0, such as 8/255")
        self.restarts = checked(int, "restarts", restarts, low=1, high=MAX_STEPS)
        self.steps = checked(int, "steps", steps, low=1, high=MAX_STEPS)
        self.squares = checked(int, "squares", squares, low=1, high=MAX_STEPS)
        self.broken_rank = checked(int, "broken_rank", broken_rank, low=1, high=10**9)
        self.broken_ap = checked(float, "broken_ap", broken_ap, above=0, high=1)
        self.seed = checked(int, "seed", seed, low=0, high=MAX_SEED - self.restarts)
        if isinstance(universal, InstanceAttack):
            raise InputError(
                f"{type(universal).__name__} is an instance attack and no universal attack; the "
                "suite has such members of its own"
            )
        if universal is not None and universal.budget.eps > self.budget.eps + 1e-9:
            raise InputError(
                f"the universal attack may change pixels by {universal.budget}, more than the "
                f"suite's {self.budget}; learn one within that, or raise the suite's budget"
            )
        self.universal, self.surrogate = universal, surrogate

    def config(self, image_size: tuple[int, int] = (256, 128)) -> dict[str, Any]:
        """Return all options as JSON values, ``universal`` and ``surrogate`` by fingerprint.

        Args:
            image_size: (height, width) of the images that these two get.
        """
        universal, surrogate = self.universal, self.surrogate
        return {
            "eps": self.budget.eps,
            "universal": None if universal is None else attack_fingerprint(universal, image_size),
            "surrogate": (
                None if surrogate is None else fingerprint(model_key(surrogate, image_size))
            ),
            "restarts": self.restarts,
            "steps": self.steps,
            "squares": self.squares,
            "broken_rank": self.broken_rank,
            "broken_ap": self.broken_ap,
            "seed": self.seed,
        }

    @documented(AutoAttackOptions)
    @fixed_context()
    def run(
        self,
        model: ReIDModel,
        dataset: ReIDDataset,
        protocol: Protocol | None = None,
        *,
        state: Path | str | None = None,
        images: Path | str | None = None,
        store: FeatureStore | None = None,
        progress: ProgressCallback | None = None,
        **options: Unpack[AutoAttackOptions],
    ) -> AutoAttackResult:
        """Attack every query by every member, and return the worst case of each.

        With ``early_stop`` a query that is broken, as float and as 8-bit image, is attacked no
        further. That changes neither which queries are broken nor robust rank-k up to
        ``broken_rank``; but the lowest average precision is not searched for, so robust mAP is not
        measured. (Where members see smaller batches, a network may round differently.)

        Args:
            model: The target model. It is not changed.
            dataset: Its queries are attacked, its gallery is ranked.
            protocol: How to read and score; None is ``Protocol()``.
            state: Folder from which an interrupted run resumes, bit for bit. At most one attack
                (one restart of a member) on one batch is repeated.
            images: Folder for the worst 8-bit image of each query, as PNG under the query's name.
            store: Caches clean features for further calls.
            progress: Called with a :class:`~reidguard.training.Progress`: of clean features, of
                the audit, of attacks on single queries.
            **options: Any of :class:`~reidguard.options.AutoAttackOptions`.

        Raises:
            InputError: If something is on another device than the model, an option has a wrong
                value, the protocol has ``rerank`` or ``multi_query``, or no query has a match.
            DataError: If an image cannot be read.
            CheckpointError: If a file cannot be written, or a folder holds another run.
        """
        values = resolve(AutoAttackOptions, options)
        batch_size, query_every = values["batch_size"], values["query_every"]
        retrieval = Retrieval(model, dataset, protocol, store, batch_size)
        retrieval.need_single_images("the suite attacks each query image by itself")
        retrieval.check_device("surrogate", self.surrogate)
        retrieval.check_device("universal attack", self.universal)
        clean = evaluate_with(retrieval, None, query_every, phase(progress, "clean features"))
        facts = {
            "suite": self.config(retrieval.protocol.image_size),
            "early_stop": values["early_stop"],
            **shared_facts(clean, retrieval),
        }
        settings = {
            **facts,
            "order": retrieval.key("query", query_every)["order"],
            "batch_size": batch_size,
            "audit_queries": values["audit_queries"],
        }
        entries = ResumableStore(state, settings, card="autoattack.json")
        folder, files = _image_folder(images, dataset, entries.fingerprint)
        with entered_by_first(entries), entered_by_first(folder):
            report = from_first(entries.get("audit", AuditReport))
            if report is None and values["audit_queries"] > 0:
                report = self._audit(retrieval, values["audit_queries"], progress)
                if is_first():
                    entries.put("audit", report.to_dict())
            run = SuiteRun(self, retrieval, clean.clean, values["early_stop"])
            batches = run.all_batches(
                dataset.query[::query_every],
                entries,
                files[::query_every],
                phase(progress, "attacking"),
            )
        for member, zero in run.zero_fractions(batches).items():
            warn_of_zero_gradients(f"the suite's {member}", zero)
        return run.result(batches, None if report is None else report.to_dict(), facts)

    def _audit(
        self, retrieval: Retrieval, queries: int, progress: ProgressCallback | None
    ) -> AuditReport:
        return audit(
            retrieval.model,
            retrieval.dataset,
            surrogate=self.surrogate,
            protocol=retrieval.protocol,
            store=retrieval.store,
            progress=phase(progress, "auditing"),
            batch_size=retrieval.batch_size,
            eps=self.budget.eps,
            learning_steps=0,  # the universal member is what would be learnt
            queries=queries,
            seed=self.seed,
        )


def _image_folder(
    folder: Path | str | None, dataset: ReIDDataset, run: str
) -> tuple[ResumableStore, list[Path]]:
    """Return the folder of the worst images, and the file of each query (none without folder)."""
    names = [f"{name}.png" for name in dataset.query_names]
    kind = "worst images of retrieval-autoattack"
    settings = {"kind": kind, "dataset": dataset.name, "run": run}
    store = ResumableStore(folder, settings, card="adversarial.json", files=names)
    return store, [] if store.folder is None else [store.folder / name for name in names]
