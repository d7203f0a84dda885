"""The loop that attacks and models share: steps, schedule, checkpoints, resume, progress.

All state is the step number, the module and the optimiser. Batches, learning rate and random
draws are functions of the seed and the step, so a run that was killed and resumed ends with the
same bits as one that was not (on the CPU, same machine).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from reidguard.distributed import agree, world
from reidguard.errors import CheckpointError, InputError, TrainingError
from reidguard.learners import MetaLearner, Objective, StepResult
from reidguard.storage import load_tensors, remove_temporaries, save_tensors, weights_fingerprint
from reidguard.types import Progress, ProgressCallback, ReIDBatch

__all__ = ["Batches", "learn"]


class Batches(Protocol):
    """A source of batches that depends on nothing but its seed and the epoch's number."""

    def __len__(self) -> int:
        """Batches in an epoch."""

    def epoch(self, number: int, start: int = 0) -> Iterator[ReIDBatch]:
        """Yield the epoch's batches, from position ``start`` on."""


def learn(
    module: nn.Module,
    *,
    learner: MetaLearner,
    objective: Objective,
    optimizer: Optimizer,
    meta_train: Batches,
    meta_test: Batches | None = None,
    steps: int,
    schedule: Callable[[int], float] = lambda epoch: 1.0,
    before_epoch: Callable[[], None] = lambda: None,
    after_step: Callable[[], None] = lambda: None,
    seed: int = 0,
    checkpoint: Path | str | None = None,
    checkpoint_every: int = 50,
    settings: Mapping[str, Any] | None = None,
    progress: ProgressCallback | None = None,
) -> None:
    """Take ``steps`` steps, in place.

    An epoch ends when both sets are enumerated; the shorter one cycles.

    Several processes (:func:`reidguard.distributed.join`) take each step together if their batches
    are shares of joint ones. All begin from the checkpoint; process 0 alone writes it and tells of
    progress.

    Args:
        module: What learns.
        learner: Leaves a gradient in ``.grad``.
        objective: ``objective(module, batch) -> scalar``. If it is a module, its state belongs to
            the checkpoint.
        optimizer: Steps on that gradient.
        meta_train: Batches of the source domain.
        meta_test: Batches of the other domain, for learners that need one.
        steps: Steps in all, those of an earlier, interrupted call included.
        schedule: Factor on the optimiser's learning rate, by epoch.
        before_epoch: Called before the first step of every epoch.
        after_step: Called after every optimiser step, to bring parameters back into bounds.
        seed: Seeds the random layers of each step.
        checkpoint: File to resume from where it exists, and to write.
        checkpoint_every: Steps between two writes; it is also written at the end.
        settings: What the run depends on, as JSON values; a checkpoint of others is refused.
        progress: Called after every step.

    Raises:
        TrainingError: When the loss is not finite; the checkpoint holds the last good state, and
            the message names it. Also when several processes begin with different things.
        CheckpointError: When the checkpoint is damaged or belongs to other settings.
    """
    if learner.needs_meta_test and meta_test is None:
        raise InputError(
            f"learner {type(learner).__name__} needs a meta-test set: pass meta_test=, or take "
            "the learner 'plain'"
        )
    epoch_length = max(len(meta_train), len(meta_test) if meta_test is not None else 0)
    rates = [group["lr"] for group in optimizer.param_groups]
    settings = json.loads(json.dumps(dict(settings or {})))  # as a checkpoint gives them back
    parts = {"module": module}
    if isinstance(objective, nn.Module):
        parts["objective"] = objective
    step, kept = 0, ""
    together = world()
    writes = together is None or together.rank == 0
    if not writes:
        progress = None
    if checkpoint is not None:
        checkpoint = Path(checkpoint)
        if writes:
            remove_temporaries(checkpoint)
        if checkpoint.exists():
            step = _restore(checkpoint, parts, optimizer, settings)
            kept = _kept(checkpoint, step)
    if together is not None:
        agree({**settings, "first step": step, "weights": weights_fingerprint(module)})
    device = next(module.parameters()).device
    train_stream = _stream(meta_train, step)
    test_stream = _stream(meta_test, step) if learner.needs_meta_test and meta_test else None
    if progress is not None:
        progress(Progress("learning", step, steps))
    pending: tuple[int, StepResult] | None = None
    while step < steps:
        if step % epoch_length == 0:
            before_epoch()
        factor = schedule(step // epoch_length)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        batch = next(train_stream).to(device)
        other = next(test_stream).to(device) if test_stream is not None else None
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(_mix(seed, step))
            result = learner.step(module, objective, batch, other, optimizer=optimizer)
        # The loss of the step before is read only now, so that a GPU never waits for the host.
        _report(pending, steps, progress, kept)
        optimizer.step()
        after_step()
        step += 1
        pending = (step, result)
        last = step == steps
        if last or (checkpoint is not None and step % checkpoint_every == 0):
            _report(pending, steps, progress, kept)
            pending = None
            if checkpoint is not None:
                if writes:
                    _save(checkpoint, parts, optimizer, settings, step, kept)
                kept = _kept(checkpoint, step)


def _stream(batches: Batches, step: int) -> Iterator[ReIDBatch]:
    epoch, start = divmod(step, len(batches))
    while True:
        yield from batches.epoch(epoch, start)
        epoch, start = epoch + 1, 0


def _mix(seed: int, step: int) -> int:
    digest = hashlib.sha256(f"{seed}/{step}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


def _kept(checkpoint: Path, step: int) -> str:
    return f"; {checkpoint} holds the last good state, that of step {step}"


def _report(
    pending: tuple[int, StepResult] | None,
    steps: int,
    progress: ProgressCallback | None,
    kept: str,
) -> None:
    if pending is None:
        return
    done, result = pending
    metrics = {"loss": float(result.train_loss)}
    if result.test_loss is not None:
        metrics["test_loss"] = float(result.test_loss)
    for name, value in metrics.items():
        if not abs(value) < float("inf"):
            raise TrainingError(
                f"the {name.replace('_', ' ')} of step {done} is {value}: lower the learning rate, "
                f"or look for NaN in the model's weights{kept}"
            )
    if progress is not None:
        progress(Progress("learning", done, steps, metrics))


def _save(
    path: Path,
    parts: Mapping[str, nn.Module],
    optimizer: Optimizer,
    settings: Mapping[str, Any],
    step: int,
    kept: str,
) -> None:
    tensors = {
        f"{part}.{name}": value
        for part, module in parts.items()
        for name, value in module.state_dict().items()
    }
    bad = [name for name, value in tensors.items() if not bool(torch.isfinite(value).all())]
    if bad:
        raise TrainingError(
            f"step {step} left values that are not finite in {', '.join(bad[:3])}: lower the "
            f"learning rate{kept}"
        )
    scalars: dict[str, Any] = {}
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            name = f"optimizer.{index}.{key}"
            if isinstance(value, Tensor):
                tensors[name] = value
            else:
                scalars[name] = value
    card = {"kind": "training", "step": step, "settings": settings, "optimizer": scalars}
    save_tensors(path, tensors, card)


def _restore(
    path: Path, parts: Mapping[str, nn.Module], optimizer: Optimizer, settings: Mapping[str, Any]
) -> int:
    tensors, card = load_tensors(path)
    if card.get("kind") != "training":
        raise CheckpointError(f"{path} is not the checkpoint of a run; give another path")
    before = card["settings"]
    changed = sorted(k for k in {*before, *settings} if before.get(k) != settings.get(k))
    if changed:
        details = "; ".join(
            f"{k}: {before.get(k)!r} then, {settings.get(k)!r} now" for k in changed
        )
        raise CheckpointError(
            f"{path} belongs to a run with other settings ({details}); "
            "use the same settings to resume it, or another folder to start anew"
        )
    try:
        for part, module in parts.items():
            mine = {k: v for k, v in tensors.items() if k.startswith(f"{part}.")}
            module.load_state_dict({k.removeprefix(f"{part}."): v for k, v in mine.items()})
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit: {error}") from error
    states: dict[int, dict[str, Any]] = {}
    for name, value in {**tensors, **card["optimizer"]}.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            states.setdefault(int(index), {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": states, "param_groups": groups})
    return int(card["step"])
