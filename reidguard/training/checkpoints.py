"""The checkpoint of a training run: module, optimiser and step, in one file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from reidguard.distributed import world
from reidguard.errors import CheckpointError, TrainingError, a_few
from reidguard.files import remove_leftovers
from reidguard.records import Count, convert
from reidguard.storage import changed_settings, load_tensors, save_tensors

__all__ = ["TrainingCard", "TrainingCheckpoint"]


@dataclass(frozen=True)
class TrainingCard:
    """The card of a checkpoint of a run.

    ``optimizer`` has what is no tensor of its state, ``tensors`` the names of all tensors of the
    file, ``gradients`` how many gradients by images the attack needed so far, and how many of them
    were usable.
    """

    step: Count
    settings: dict[str, Any]
    optimizer: dict[str, int | float | bool | None]
    tensors: list[str]
    gradients: tuple[Count, Count] = (0, 0)


@dataclass(eq=False)
class TrainingCheckpoint:
    """The checkpoint file of a run; without a path nothing is written.

    Args:
        path: The file, or None.
        parts: Modules whose state it holds.
        optimizer: The optimiser whose state it holds.
        settings: What the run depends on, as JSON values.
        gradients: Needed and usable gradients so far.
    """

    path: Path | None
    parts: Mapping[str, nn.Module]
    optimizer: Optimizer
    settings: dict[str, Any]

    gradients: tuple[int, int] = (0, 0)

    hint = ""
    """End of an error message that names the last good state."""

    def __post_init__(self) -> None:
        self.writes = (processes := world()) is None or processes.rank == 0

    def save(self, step: int) -> None:
        """Check that the state is finite, and write it."""
        tensors = {
            f"{part}.{name}": value
            for part, module in self.parts.items()
            for name, value in module.state_dict().items()
        }
        bad = [name for name, value in tensors.items() if not bool(torch.isfinite(value).all())]
        if bad:
            raise TrainingError(
                f"step {step} left values that are not finite in {a_few(bad, 3)}: lower the "
                f"learning rate{self.hint}"
            )
        if self.path is None:
            return
        scalars: dict[str, Any] = {}
        for index, state in self.optimizer.state_dict()["state"].items():
            for key, value in state.items():
                name = f"optimizer.{index}.{key}"
                if isinstance(value, Tensor):
                    tensors[name] = value
                else:
                    scalars[name] = value
        if self.writes:
            card = {"kind": "training", "step": step, "settings": self.settings}
            card |= {"optimizer": scalars, "tensors": sorted(tensors)}
            card |= {"gradients": list(self.gradients)}
            save_tensors(self.path, tensors, card)
        self._holds(step)

    def restore(self) -> int:
        """Load the state, if the file is there, and return its step; 0 otherwise."""
        if self.path is None:
            return 0
        if self.writes:
            remove_leftovers(self.path.parent)
        if not self.path.exists():
            return 0
        tensors, values = load_tensors(self.path, "training")
        card = convert(values, TrainingCard, f"the card of {self.path}")
        if changed := changed_settings(card.settings, self.settings):
            raise CheckpointError(
                f"{self.path} belongs to a run with other settings ({changed}); "
                "use the same settings to resume it, or another folder to start anew"
            )
        self._check(tensors, card)
        try:
            for part, module in self.parts.items():
                state = {k: v for k, v in tensors.items() if k.startswith(f"{part}.")}
                module.load_state_dict({k.removeprefix(f"{part}."): v for k, v in state.items()})
        except RuntimeError as error:
            raise CheckpointError(f"{self.path} does not fit: {error}") from error
        states: dict[int, dict[str, Any]] = {}
        for name, value in {**tensors, **card.optimizer}.items():
            if match := re.fullmatch(r"optimizer\.([0-9]{1,9})\.(\w+)", name):
                states.setdefault(int(match[1]), {})[match[2]] = value
        groups = self.optimizer.state_dict()["param_groups"]
        shapes = [p.shape for group in self.optimizer.param_groups for p in group["params"]]
        for index, state in states.items():
            other = [v for v in state.values() if isinstance(v, Tensor) and v.dim()]
            if index >= len(shapes) or any(v.shape != shapes[index] for v in other):
                raise CheckpointError(
                    f"{self.path} does not fit the optimiser: its state {index} is of other "
                    "parameters; delete the file to start anew"
                )
        self.optimizer.load_state_dict({"state": states, "param_groups": groups})
        self.gradients = card.gradients
        self._holds(card.step)
        return card.step

    def _check(self, tensors: Mapping[str, Tensor], card: TrainingCard) -> None:
        """Refuse a file that lacks tensors, of the optimiser for instance, or holds other values.

        Raises:
            CheckpointError: Naming the tensors.
        """
        cure = "delete it to start anew, or put a whole copy in its place"
        if lacking := set(card.tensors) ^ tensors.keys():
            raise CheckpointError(
                f"{self.path} lacks tensors, or has others than were written: "
                f"{a_few(sorted(lacking), 3)}; {cure}"
            )
        for name, value in tensors.items():
            # In float32, as which a number of float64 may be infinite.
            narrow = value.float() if value.dtype == torch.float64 else value
            if not bool(torch.isfinite(narrow).all()):
                raise CheckpointError(
                    f"{self.path} holds values that are not finite in {name}; {cure}"
                )

    def _holds(self, step: int) -> None:
        self.hint = f"; {self.path} holds the last good state, that of step {step}"
