"""The loop that attacks and models share: steps, schedule, checkpoints, resume, progress.

All state is the step number, the module and the optimiser. Batches, learning rate and random
draws are functions of the seed and the step, so a run that was killed and resumed ends with the
same bits as one that was not (on the CPU, same machine).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim import Optimizer
from typing_extensions import Unpack

from reidguard.contexts import fixed_context, seeded
from reidguard.data import Augment, BatchLoader, ReIDDataset
from reidguard.distributed import agree, world
from reidguard.errors import InputError, TrainingError
from reidguard.fingerprint import weights_fingerprint
from reidguard.learners import MetaLearner, Objective, StepResult
from reidguard.nn.gradients import count_gradients
from reidguard.options import LoopOptions
from reidguard.records import to_path
from reidguard.schema import documented, resolve
from reidguard.training.checkpoints import TrainingCheckpoint
from reidguard.types import Progress, ProgressCallback, ReIDBatch

__all__ = ["Batches", "LoopHooks", "batch_loaders", "derived_seed", "learn"]


class Batches(Protocol):
    """Protocol of a source of batches that depends only on its seed and the epoch's number.

    Example:
        >>> class One:
        ...     def __init__(self, batch):
        ...         self.batch = batch
        ...     def __len__(self):
        ...         return 1
        ...     def epoch(self, number, start=0):
        ...         yield from [self.batch][start:]
        >>> len(list(One("a batch").epoch(0)))
        1
    """

    def __len__(self) -> int:
        """Batches in an epoch."""

    def epoch(self, number: int, start: int = 0) -> Iterator[ReIDBatch]:
        """Yield the epoch's batches, from position ``start`` on."""


@dataclass(frozen=True)
class LoopHooks:
    """Functions that :func:`learn` calls between steps.

    Args:
        schedule: Factor on the optimiser's learning rate, by epoch.
        before_epoch: Called before the first step of every epoch.
        after_step: Called after every optimiser step, to bring parameters back into bounds.
        state: Further modules whose state belongs to the checkpoint, such as an average of weights.

    Example:
        >>> hooks = LoopHooks(schedule=lambda epoch: 0.5**epoch)
        >>> hooks.schedule(2)
        0.25
    """

    schedule: Callable[[int], float] = lambda epoch: 1.0
    before_epoch: Callable[[], None] = lambda: None
    after_step: Callable[[], None] = lambda: None
    state: Mapping[str, nn.Module] = field(default_factory=dict)


def batch_loaders(
    datasets: Sequence[ReIDDataset],
    values: dict[str, Any],
    *,
    augment: Augment | None = None,
    device: torch.device | str = "cpu",
) -> list[BatchLoader]:
    """Return loaders of the training images of each dataset.

    Args:
        datasets: One, or two for a learner that uses a second domain.
        values: Resolved :class:`~reidguard.options.FitOptions`; ``epochs`` is replaced by the
            number of ``steps``.
        augment: Augmentation of each batch.
        device: Device of the batches.

    Example:
        >>> from reidguard.options import FitOptions
        >>> from reidguard.testing import small_dataset
        >>> with small_dataset() as data:
        ...     values = resolve(FitOptions, {"image_size": (32, 16)}, epochs=3, identities=2,
        ...                      images_per_identity=2)
        ...     (loader,) = batch_loaders([data], values)
        >>> len(loader), values["steps"]
        (4, 12)
    """
    names = ("image_size", "identities", "images_per_identity", "seed")
    batch = {name: values[name] for name in names}
    loaders = [
        BatchLoader(d, augment=augment, device=device, world=world(), **batch) for d in datasets
    ]
    epochs = values.pop("epochs")
    if values["steps"] is None:
        values["steps"] = epochs * max(len(loader) for loader in loaders)
    return loaders


@documented(LoopOptions)
@fixed_context()
def learn(
    module: nn.Module,
    *,
    learner: MetaLearner,
    objective: Objective,
    optimizer: Optimizer,
    meta_train: Batches,
    meta_test: Batches | None = None,
    hooks: LoopHooks = LoopHooks(),
    settings: Mapping[str, Any] | None = None,
    **options: Unpack[LoopOptions],
) -> float:
    """Optimise a module, in place.

    An epoch ends when both sets are enumerated; the shorter one cycles.

    Several processes (:func:`reidguard.distributed.join`) take each step together if their batches
    are shards of joint ones. All start from the checkpoint; only process 0 writes it and calls
    ``progress``.

    Args:
        module: Its parameters are optimised.
        learner: Computes a gradient into ``.grad``.
        objective: ``objective(module, batch) -> scalar``. If it is a module, its state belongs to
            the checkpoint.
        optimizer: Steps on that gradient.
        meta_train: Batches of the source domain.
        meta_test: Batches of the other domain, for learners that need one.
        hooks: Learning-rate schedule, and functions called between steps.
        settings: What the run depends on, as JSON values; a checkpoint of others is refused.
        **options: Any of :class:`~reidguard.options.LoopOptions`. ``steps`` is needed; it counts
            those of an earlier, interrupted call.

    Returns:
        The fraction of gradients by images that an attack could not use, those of an earlier call
        included: zero or not finite, though the loss was not at its optimum; 0 where no attack is
        learnt.

    Raises:
        InputError: If an option is out of range, or the learner lacks a meta-test set.
        TrainingError: When the loss or a final weight is not finite; the checkpoint holds the last
            good state, and the message names it. Also when several processes start with different
            settings.
        CheckpointError: When the checkpoint is damaged or belongs to other settings.

    Example:
        >>> from reidguard.learners import PlainLearner
        >>> module = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.ones_(module.weight)
        >>> class One:
        ...     def __len__(self):
        ...         return 1
        ...     def epoch(self, number, start=0):
        ...         index = torch.zeros(1, dtype=torch.long)
        ...         yield ReIDBatch(torch.ones(1, 3, 1, 1), index, index, index)
        >>> steps = {"learner": PlainLearner(), "meta_train": One(), "steps": 2}
        >>> sgd = torch.optim.SGD(module.parameters(), lr=0.25)
        >>> _ = learn(module, objective=lambda m, batch: m.weight.sum(), optimizer=sgd, **steps)
        >>> module.weight.item()
        0.5
    """
    values = resolve(LoopOptions, options)
    steps, checkpoint, progress = (values[k] for k in ("steps", "checkpoint", "progress"))
    if steps is None:
        raise InputError("learn needs the number of steps")
    if learner.needs_meta_test and meta_test is None:
        raise InputError(
            f"learner {type(learner).__name__} needs a meta-test set: pass meta_test=, or take "
            "the learner 'plain'"
        )
    epoch_length = max(len(meta_train), len(meta_test) if meta_test is not None else 0)
    rates = [group["lr"] for group in optimizer.param_groups]
    parts = {"module": module, **hooks.state}
    if isinstance(objective, nn.Module):
        parts["objective"] = objective
    path = None if checkpoint is None else to_path(checkpoint)
    saved = TrainingCheckpoint(path, parts, optimizer, dict(settings or {}))
    step = saved.restore()
    if (processes := world()) is not None:
        agree({**saved.settings, "first step": step, "weights": weights_fingerprint(module)})
        if processes.rank != 0:
            progress = None
    device = next(module.parameters()).device
    train_stream = _stream(meta_train, step)
    test_stream = _stream(meta_test, step) if learner.needs_meta_test and meta_test else None
    if progress is not None:
        progress(Progress("learning", step, steps))
    pending: _Losses | None = None
    with count_gradients() as count:
        count.needed, count.usable = saved.gradients
        while step < steps:
            if step % epoch_length == 0:
                hooks.before_epoch()
            _set_rates(optimizer, rates, hooks.schedule(step // epoch_length))
            batch = next(train_stream).to(device)
            other = next(test_stream).to(device) if test_stream is not None else None
            with seeded(derived_seed(values["seed"], step), device):
                result = learner.step(module, objective, batch, other, optimizer=optimizer)
            # The loss of the step before is read only now, so that a GPU always has work.
            _report(pending, steps, progress, saved.hint)
            optimizer.step()
            hooks.after_step()
            step += 1
            pending = _Losses(step, result)
            if step == steps or (checkpoint is not None and step % values["checkpoint_every"] == 0):
                _report(pending, steps, progress, saved.hint)
                pending = None
                saved.gradients = count.read()
                saved.save(step)
    return count.zero_fraction


def _set_rates(optimizer: Optimizer, rates: Sequence[float], factor: float) -> None:
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate * factor


def _stream(batches: Batches, step: int) -> Iterator[ReIDBatch]:
    epoch, start = divmod(step, len(batches))
    while True:
        yield from batches.epoch(epoch, start)
        epoch, start = epoch + 1, 0


def derived_seed(*key: object) -> int:
    """Return a seed that depends on every part of the key, such as a seed and a step."""
    text = "/".join(map(str, key))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


class _Losses:
    """The losses of a step, on their way to the host.

    To read a number of a GPU waits for all that it has been given to do, the next step included.
    So the copy starts with the step's own work, and reading waits for the copy alone.
    """

    def __init__(self, step: int, result: StepResult) -> None:
        self.step = step
        losses = {"loss": result.train_loss}
        if result.test_loss is not None:
            losses["test_loss"] = result.test_loss
        device = result.train_loss.device
        if copied := _event(device):
            # into pinned memory
            losses = {k: v.to("cpu", non_blocking=True) for k, v in losses.items()}
            copied.record(torch.cuda.current_stream(device))
        self.copied, self.losses = copied, losses

    def read(self) -> dict[str, float]:
        """Return the losses by name."""
        if self.copied is not None:
            self.copied.synchronize()
        return {name: float(loss) for name, loss in self.losses.items()}


def _event(device: torch.device) -> torch.cuda.Event | None:
    """Return an event of a GPU; None for another device, which is read directly."""
    if device.type != "cuda":
        return None
    return torch.cuda.Event()  # type: ignore[no-untyped-call]


def _report(
    pending: _Losses | None,
    steps: int,
    progress: ProgressCallback | None,
    hint: str,
) -> None:
    """Check the losses of a step and pass them to ``progress``."""
    if pending is None:
        return
    metrics = pending.read()
    for name, value in metrics.items():
        if not abs(value) < float("inf"):
            raise TrainingError(
                f"the {name.replace('_', ' ')} of step {pending.step} is {value}: lower the "
                f"learning rate, or look for NaN in the model's weights{hint}"
            )
    if progress is not None:
        progress(Progress("learning", pending.step, steps, metrics))
