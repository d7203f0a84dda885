"""Operations after which the host waits for a GPU: in the hot loops there must be none.

On a GPU :class:`CudaWatch` finds them by torch's own check. :class:`HostWatch` finds them without
one: tensors are on the device "meta", where they have shapes and no values, so that the code for
GPUs runs, and torch's operators are looked at one by one.
"""

from __future__ import annotations

import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from reidguard.training import loop

PACKAGE = Path(loop.__file__).parents[1]
SYNCHRONIZING = "called a synchronizing CUDA operation"

READ_ON_HOST = {"aten::_local_scalar_dense", "aten::equal", "aten::is_nonzero"}
SIZED_BY_VALUES = {
    "aten::nonzero",
    "aten::masked_select",
    "aten::bincount",
    "aten::unique_dim",
    "aten::_unique",
    "aten::_unique2",
    "aten::unique_consecutive",
    "aten::repeat_interleave",
}
# Built from numbers of the host, and copied to the device of an argument.
FROM_NUMBERS = {torch.tensor, torch.as_tensor, Tensor.new_tensor}


def place(frames: traceback.StackSummary) -> str:
    """Return file, line and text of the innermost call in the library."""
    for frame in reversed(frames):
        path = Path(frame.filename)
        if PACKAGE in path.parents and frame.name != "__torch_function__":
            return f"{path.relative_to(PACKAGE.parent).as_posix()}:{frame.lineno} {frame.line}"
    return "outside of the library"


def sync_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """Return why an operator waits for the device of its tensors; None if it does not."""
    name = func.name().split(".")[0]
    if name in READ_ON_HOST:
        return f"{name} reads a value"
    if name in SIZED_BY_VALUES and kwargs.get("output_size") is None:
        return f"{name}: the result's size depends on values"
    if name in ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"):
        return _indexing(name, args)
    if name == "aten::_to_copy":
        device = kwargs.get("device")
        target = args[0].device.type if device is None else torch.device(device).type
        source, waits = args[0].device.type, not kwargs.get("non_blocking", False)
    elif name == "aten::copy_":
        source, target = args[1].device.type, args[0].device.type
        waits = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
    else:
        return None
    return (
        f"{name}: a blocking copy from {source} to {target}" if source != target and waits else None
    )


def _indexing(name: str, args: tuple[Any, ...]) -> str | None:
    indices = [index for index in args[1] if isinstance(index, Tensor)]
    # setting a mask to one value is a masked_fill
    by_mask = name == "aten::index" or args[2].numel() != 1
    if by_mask and any(index.dtype in (torch.bool, torch.uint8) for index in indices):
        return f"{name}: indexing by a mask"
    if args[0].device.type != "cpu" and any(index.device.type == "cpu" for index in indices):
        return f"{name}: indices on the host"
    return None


class Watch:
    """Counts waits from :meth:`start` to :meth:`stop`, by place and reason."""

    device = "cpu"

    def __init__(self) -> None:
        self.found: Counter[str] = Counter()
        self.active = False

    def start(self) -> None:
        self.active = True

    def stop(self) -> None:
        self.active = False

    def note(self, reason: str, frames: traceback.StackSummary) -> None:
        self.found[f"{place(frames)} ({reason})"] += 1


class HostWatch(Watch):
    """Finds waits of tensors on "meta" or, with ``real``, of tensors on the CPU.

    A value that would be read is 1, and a copy to the host is full of zeros.
    """

    def __init__(self, *, real: bool = False) -> None:
        super().__init__()
        self.device = "cpu" if real else "meta"

    def __enter__(self) -> HostWatch:
        self._open = ExitStack()
        self._open.enter_context(_treated_as_gpu())
        self._open.enter_context(_Functions(self))
        self._open.enter_context(_Operators(self))
        return self

    def __exit__(self, *exception: Any) -> None:
        self._open.close()

    def concerns(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        lists = [arg for arg in args if isinstance(arg, list | tuple)]
        values = [value for group in (args, *lists) for value in group]
        devices = {value.device.type for value in values if isinstance(value, Tensor)}
        if kwargs.get("device") is not None:
            devices.add(torch.device(kwargs["device"]).type)
        return self.device in devices


class _Functions(TorchFunctionMode):
    def __init__(self, watch: HostWatch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        watch = self.watch
        if watch.active and func in FROM_NUMBERS and watch.concerns(args, kwargs):
            source = args[1] if func is Tensor.new_tensor else args[0]
            if not isinstance(source, Tensor) and watch.device != "cpu":
                watch.note("numbers of the host", traceback.extract_stack())
        return func(*args, **kwargs)


class _Operators(TorchDispatchMode):
    def __init__(self, watch: HostWatch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        watch = self.watch
        concerned = watch.concerns(args, kwargs)
        if watch.active and concerned and (reason := sync_of(func, args, kwargs)):
            watch.note(reason, traceback.extract_stack())
        if watch.device == "meta" and concerned:
            name = func.name().split(".")[0]
            if name == "aten::_local_scalar_dense":
                return args[0].dtype == torch.bool or 1
            if name == "aten::equal":
                return True
            if (
                name == "aten::_to_copy"
                and torch.device(kwargs.get("device") or "meta").type == "cpu"
            ):
                return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        return func(*args, **kwargs)


class _Event:
    def record(self, stream: Any) -> None: ...

    def synchronize(self) -> None: ...


@contextmanager
def _treated_as_gpu() -> Iterator[None]:
    """Let "meta" have what a GPU has and torch does not give it: autocast, streams and events."""
    autocast, enabled = torch.autocast, torch.is_autocast_enabled

    def no_autocast(device_type: str, *args: Any, **kwargs: Any) -> Any:
        return nullcontext() if device_type == "meta" else autocast(device_type, *args, **kwargs)

    def is_enabled(*device_type: str) -> bool:
        return device_type != ("meta",) and enabled(*device_type)

    def event(device: torch.device) -> _Event | None:
        return _Event() if device.type == "meta" else None

    patches = (
        (torch, "autocast", no_autocast),
        (torch, "is_autocast_enabled", is_enabled),
        (torch.cuda, "current_stream", lambda device=None: None),
        (loop, "_event", event),
    )
    with ExitStack() as stack:
        for owner, name, value in patches:
            stack.enter_context(mock.patch.object(owner, name, value))
        yield


class CudaWatch(Watch):
    """Finds waits of a GPU by torch's own check.

    Args:
        mode: "error" raises at the first one, "warn" collects them all.
    """

    device = "cuda"

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode

    def start(self) -> None:
        super().start()
        torch.cuda.set_sync_debug_mode(self.mode)

    def stop(self) -> None:
        torch.cuda.set_sync_debug_mode("default")
        super().stop()

    def __enter__(self) -> CudaWatch:
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.simplefilter("always")
        warnings.showwarning = self._show  # type: ignore[assignment]
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self.stop()
        self._warnings.__exit__(kind, error, trace)

    def _show(self, message: Warning | str, *args: Any, **kwargs: Any) -> None:
        if SYNCHRONIZING in str(message):
            self.note("torch.cuda.set_sync_debug_mode", traceback.extract_stack())


def waits_of(run: Callable[[Watch], None], device: str) -> dict[str, int]:
    """Return where a loop waits for its device, and how often; empty if it never does.

    Args:
        run: Gets a watch, works on its device, and starts it when the loop is warm.
        device: "cuda" or "cpu"; for the latter the loop runs on "meta".
    """
    if device == "cpu":
        with HostWatch() as host:
            run(host)
        return dict(host.found)
    try:
        with CudaWatch("error") as strict:
            run(strict)
    except RuntimeError as error:
        if SYNCHRONIZING not in str(error):
            raise
        with CudaWatch("warn") as cuda:
            run(cuda)
        found = dict(cuda.found)
        return found or {place(traceback.extract_tb(error.__traceback__)): 1}
    return {}
