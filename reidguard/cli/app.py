"""The entry point: parse the arguments, run the command, turn every outcome into an exit code."""

from __future__ import annotations

import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from typing import Any

from cyclopts import App, CycloptsError
from cyclopts.help import DefaultFormatter, PanelSpec
from rich.box import Box
from rich.console import Console

from reidguard.cli.options import Options, read_config
from reidguard.errors import InputError, ReIDGuardError, TrainingError, did_you_mean, printable
from reidguard.files import FULL
from reidguard.records import environment_number

__all__ = ["COMMANDS", "main", "parse"]

COMMANDS = {
    "train": "train a re-ID model, evaluate it and save it",
    "attack": "learn or apply an attack, evaluate it and save it",
    "defend": "harden a model against an attack, evaluate it and save it",
    "evaluate": "evaluate a model, on a dataset's own queries or on changed ones",
    "autoattack": "evaluate a model under the worst of a fixed set of attacks",
    "audit": "check a model for masked gradients, which only look like robustness",
    "certify": "certify the ranking against noise in an L2 ball, by randomised smoothing",
    "detect": "measure how well scores tell attacked queries from clean ones",
    "report": "write one page about runs: metrics, curves, pictures, rank lists",
    "board": "compare models on one page, a row for each; measure a row again and compare",
    "identify": "say what a file of weights or a network is, and how to load it",
    "list": "list the attacks, defenses, models, learners, objectives, datasets, scores",
    "data": "summarise a dataset, check its images, or export virtual people",
    "demo": "run everything in some minutes on virtual people, with a page to look at",
}
"""Each command and its line in ``reidguard --help``."""

# The commands that torchrun can start.
DISTRIBUTED = ("train", "attack", "defend", "evaluate", "autoattack", "audit", "certify")

BLANK = Box("    \n" * 8)  # around the sections of the help
EPILOGUE = """\
reidguard COMMAND --help explains one of them, with examples.

a first run, without any data:
  reidguard demo

on your own data:
  reidguard data market1501:/data/market1501
  reidguard train --data market1501:/data/market1501 --model ide --epochs 40 --out runs/ide
  reidguard attack --data market1501:/data/market1501 --model runs/ide/model.safetensors \\
      --attack delta --eps 8/255 --steps 100 --out runs/delta --save-images runs/delta/images
  reidguard evaluate --data market1501:/data/market1501 --model runs/ide/model.safetensors \\
      --query runs/delta/images

several processes, on one machine or more, that share each batch:
  torchrun --nproc-per-node 2 -m reidguard attack ...

exit codes: 0 done, 1 the run failed, 2 the call, its files or its data need a correction,
3 a metric is below its --fail-below or differs from its card (board verify),
130 interrupted (the same command resumes)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Returns:
        0 if done, 1 for a failed run, 2 for something that the user can correct, 3 if a metric is
        below its threshold (``--fail-below``) or differs from its card (``board verify``), 130 if
        interrupted, 141 if the reader of the output went away.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if sys.stderr is None:  # closed: print() would write to standard output instead
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (for the rest of the process)
    if sys.stdout is None:
        print("reidguard: error: standard output is closed; send it to a file", file=sys.stderr)
        return 2
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # "ε" and "∞" are not in every encoding
            stream.reconfigure(errors="replace")
    try:
        with _short_warnings():
            options = parse(arguments)
            code = 0 if options is None else _run(options)
            sys.stdout.flush()
            return code
    except BrokenPipeError:
        _drop_output()
        return 141
    except KeyboardInterrupt as interrupt:
        hint = f"; {interrupt}" if str(interrupt) else ""
        print(f"\nreidguard: interrupted{hint}", file=sys.stderr)
        return 130
    except Exception as error:
        if "--debug" in arguments:
            traceback.print_exc()
        if isinstance(error, OSError) and error.errno in FULL:  # others name their file
            _drop_output()
            error = InputError(f"cannot print the output: {error.strerror}; free some space")
        if _peer_ended(error):
            error = TrainingError("another process of this run ended; the same command resumes it")
        expected = isinstance(error, ReIDGuardError)
        message = str(error) if expected else f"{type(error).__name__}: {error}"
        if not expected and "--debug" not in arguments:
            message += f" (for the traceback: {shlex.join(['reidguard', *arguments, '--debug'])})"
        if not (isinstance(error, ReIDGuardError) and error.reported):
            print("reidguard: error:", printable(message, keep="\n"), file=sys.stderr)
        return 2 if expected and not isinstance(error, TrainingError) else 1


def _peer_ended(error: Exception) -> bool:
    """Return whether a collective failed, as it does when one of several processes is gone."""
    if isinstance(error, ReIDGuardError) or environment_number("WORLD_SIZE", 1) == 1:
        return False
    import torch.distributed as dist  # imported already where there are several processes

    text = str(error)
    return isinstance(error, dist.DistError) or "closed by peer" in text or "gloo" in text


def _drop_output() -> None:
    """Send the rest to nowhere: Python would complain when it flushes at exit."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _HelpConsole(Console):
    """A console for the help of commands, whose reader may go away."""

    def on_broken_pipe(self) -> None:
        """Leave it to :func:`main`."""
        raise BrokenPipeError


def parse(argv: Sequence[str]) -> Options | None:
    """Return the options of a command line; None where it asked for help or the version.

    Raises:
        InputError: For everything that is unknown, missing, given twice or malformed.
    """
    for argument in argv:
        # The files of a run are UTF-8, and they hold the command.
        if printable(argument, keep="\n\t") != argument:
            raise InputError(
                f"an argument contains control characters or bytes that are no UTF-8: {argument}; "
                "rename the file, or give it through a symbolic link"
            )
    app = App(
        "reidguard",
        help="Attack and harden person re-identification models.",
        help_epilogue=EPILOGUE,
        help_formatter=DefaultFormatter(panel_spec=PanelSpec(box=BLANK, padding=(0, 0))),
        help_format="plaintext",
        version=_versions,
        config=read_config,
        result_action="return_value",
        console=_HelpConsole(width=100, highlight=False),  # the examples are not to be wrapped
    )
    for rank, (name, summary) in enumerate(COMMANDS.items()):
        module = f"reidguard.cli.commands.{name}"
        app.command(f"{module}:app", name=name, help=summary, sort_key=rank)
    first = argv[0] if argv else "--help"
    known = [*COMMANDS, "--help", "-h", "--version"]
    if first not in known:  # cyclopts would import every command, and suggests no option here
        what = "option" if first.startswith("-") else "command"
        raise InputError(
            f"unknown {what} {first!r}: {did_you_mean(first, known)}"
            f"commands are {', '.join(COMMANDS)}"
        )
    try:
        options = app(argv, print_error=False, exit_on_error=False)
    except CycloptsError as error:
        error.verbose = False
        hint = f"reidguard {first} --help lists all options"
        raise InputError(f"{' '.join(str(error).split())} ({hint})") from error
    if not isinstance(options, Options):
        return None
    options.argv = list(argv)
    return options


def _run(options: Options) -> int:
    if environment_number("WORLD_SIZE", 1) == 1:
        return options.run(options) or 0
    if options.command not in DISTRIBUTED:
        raise InputError(f"{options.command} works in one process: call it without torchrun")
    from reidguard.cli.session import use_device
    from reidguard.distributed import join

    with join(use_device(options.device)):
        return options.run(options) or 0


def _versions() -> str:
    from reidguard.storage import library_versions  # here, since it imports torch

    return "\n".join(f"{name} {version}" for name, version in library_versions().items())


@contextmanager
def _short_warnings() -> Iterator[None]:
    """Print each warning once, without the line of code that raised it."""
    shown: set[str] = set()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        text = printable(str(message), keep="\n")
        if text not in shown:  # learning and evaluation may say the same
            shown.add(text)
            print("reidguard: warning:", text, file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        warnings.showwarning = show
        yield
