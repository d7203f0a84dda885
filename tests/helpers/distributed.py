"""A second process that is only imagined."""

from __future__ import annotations

import pytest
import torch.distributed as dist


def imagine_silent_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let collectives behave as in two processes of which the other one holds only zeros.

    A sum over the processes is then what this one has, a mean half of it, and the rows of a joint
    batch that this one lacks are zero.
    """
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: None)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
