"""A fixed state of torch for public functions, whatever the caller has set around the call."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, TypeVar

import torch

__all__ = ["fixed_context", "fixed_defaults", "on_meta", "seeded", "wrap_methods"]

Function = TypeVar("Function", bound=Callable[..., Any])


class _DefaultDtype:
    """torch's default dtype as float32 while anyone needs it; it is the process's, not a thread's.

    The first call sets it and the last one restores it, so that calls in several threads do not
    restore it under each other.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.before = torch.float32

    def __enter__(self) -> None:
        with self.lock:
            if self.users == 0:
                self.before = torch.get_default_dtype()
                if self.before != torch.float32:
                    torch.set_default_dtype(torch.float32)
            self.users += 1

    def __exit__(self, *exception: object) -> None:
        with self.lock:
            self.users -= 1
            if self.users == 0 and self.before != torch.float32:
                torch.set_default_dtype(self.before)


_FLOAT32 = _DefaultDtype()
_META: ContextVar[bool] = ContextVar("on_meta", default=False)
_GENERATORS = threading.RLock()  # torch's global ones, which all threads share


@contextmanager
def fixed_defaults() -> Iterator[None]:
    """Create tensors in float32 and on the CPU inside, where nothing else is said.

    Example:
        >>> torch.set_default_dtype(torch.float64)
        >>> with fixed_defaults():
        ...     torch.ones(1).dtype
        torch.float32
        >>> torch.get_default_dtype()
        torch.float64
        >>> torch.set_default_dtype(torch.float32)
    """
    keep = _META.get() or torch.get_default_device().type == "cpu"
    with _FLOAT32, nullcontext() if keep else torch.device("cpu"):
        yield


@contextmanager
def on_meta() -> Iterator[None]:
    """Create tensors without memory inside, on the meta device, in functions of this library too.

    Example:
        >>> with on_meta():
        ...     torch.ones(1).device.type
        'meta'
    """
    token = _META.set(True)
    try:
        with torch.device("meta"):
            yield
    finally:
        _META.reset(token)


@contextmanager
def fixed_context() -> Iterator[None]:
    """As :func:`fixed_defaults`, and with gradients and normal tensors inside.

    ``no_grad`` and ``inference_mode`` around a call would keep attacks and training from gradients.
    Also a decorator of functions.
    """
    with fixed_defaults(), torch.inference_mode(False), torch.enable_grad():
        yield


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seed torch's global generators inside, and restore them afterwards; one thread at a time.

    Args:
        seed: Of the draws inside.
        device: A GPU whose generator counts besides the CPU's.

    Example:
        >>> with seeded(0):
        ...     first = torch.rand(1)
        >>> with seeded(0):
        ...     torch.equal(torch.rand(1), first)
        True
    """
    devices = [device] if device is not None and device.type == "cuda" else []
    with _GENERATORS, torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


def wrap_methods(cls: type, *names: str) -> None:
    """Let those of these methods that a class itself defines run in :func:`fixed_context`."""
    for name in names:
        method = vars(cls).get(name)
        if callable(method) and not getattr(method, "__isabstractmethod__", False):
            setattr(cls, name, _in_fixed_context(method))


def _in_fixed_context(function: Function) -> Function:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with fixed_context():
            return function(*args, **kwargs)

    return call  # type: ignore[return-value]
