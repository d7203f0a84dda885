"""Tables of the tensors in published networks: names and shapes, without a number of any weight.

Each file of ``tests/models/published`` is one network as its authors' code names it: where that
code is, how this library's counterpart is created, and the name and shape of each tensor.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FOLDER = Path(__file__).parents[1] / "models" / "published"


INTEGERS = ("num_batches_tracked", "relative_position_index")


@dataclass(frozen=True)
class PublishedNetwork:
    """A network of other code: its source, such as "owner/name@commit", and our counterpart."""

    source: str
    model: str
    arguments: dict[str, Any]
    tensors: dict[str, list[int]]

    def state(self) -> dict[str, Tensor]:
        """Return its tensors without memory."""
        return {
            name: torch.empty(
                shape,
                dtype=torch.long if name.endswith(INTEGERS) else torch.float32,
                device="meta",
            )
            for name, shape in self.tensors.items()
        }


def read_table(path: Path) -> PublishedNetwork:
    """Read one file."""
    return PublishedNetwork(**json.loads(path.read_text()))


def write_table(
    path: Path, state: Mapping[str, Tensor], *, source: str, model: str, arguments: dict[str, Any]
) -> None:
    """Write the file of a network, one tensor a line, from its ``state_dict()``."""
    head = {"source": source, "model": model, "arguments": arguments}
    lines = [f'  "{key}": {json.dumps(value)},' for key, value in head.items()]
    rows = [f"    {json.dumps(name)}: {list(tensor.shape)}" for name, tensor in state.items()]
    body = ",\n".join(rows)
    path.write_text("{\n" + "\n".join(lines) + '\n  "tensors": {\n' + body + "\n  }\n}\n")
