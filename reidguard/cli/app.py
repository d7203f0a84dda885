"""From arguments to an exit code: which command, and how each way of ending is told."""

from __future__ import annotations

import importlib
import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from typing import Any

from reidguard.cli.options import did_you_mean
from reidguard.errors import InputError, ReIDGuardError, TrainingError

__all__ = ["main"]

COMMANDS = {
    "train": "train a re-ID model, evaluate it and save it",
    "attack": "learn an attack, or work one out on each image; evaluate it and save it",
    "defend": "harden a model against an attack, evaluate it and save it",
    "evaluate": "measure a model, on a dataset's own queries or on changed ones",
    "autoattack": "measure what is left of a model under the worst of a fixed set of attacks",
    "audit": "look for masked gradients: signs that a model only seems robust",
    "report": "show runs on one page: figures, curves, pictures, who is found",
    "paper": "show a table of the paper, and measure it beside the paper's figures",
    "list": "list the attacks, defenses, models, learners, objectives and datasets there are",
    "data": "show what is in a dataset, and check its images",
    "demo": "all of it in some minutes, on virtual people, with a page to look at",
}

TOGETHER = ("train", "attack", "defend")  # the commands that several processes can share

USAGE = """\
usage: reidguard COMMAND [options]

Attack and harden person re-identification models.

commands:
{commands}

  reidguard COMMAND --help explains one of them, with examples.

a first run, without any data:
  reidguard demo

on your own:
  reidguard data market1501:/data/market1501
  reidguard train --data market1501:/data/market1501 --model ide --epochs 40 --out runs/ide
  reidguard attack --data market1501:/data/market1501 --model runs/ide/model.safetensors \\
      --attack delta --eps 8/255 --steps 100 --out runs/delta --save-images runs/delta/images
  reidguard evaluate --data market1501:/data/market1501 --model runs/ide/model.safetensors \\
      --query runs/delta/images

several processes, on one machine or more, learn together from one joint batch:
  torchrun --nproc-per-node 2 -m reidguard attack ...

exit codes: 0 done, 1 the run failed, 2 something to correct in the call, its files or its data,
130 interrupted (the same command goes on where it stopped)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Returns:
        0 if done, 1 for a failed run, 2 for something that the user can correct, 130 if
        interrupted, 141 if the reader of the output went away.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # "ε" and "∞" are not in every encoding
            stream.reconfigure(errors="replace")
    try:
        with _short_warnings():
            code = _dispatch(arguments)
            sys.stdout.flush()
            return code
    except SystemExit as end:  # argparse after --help
        return int(end.code or 0)
    except BrokenPipeError:
        # Python would complain once more when it flushes at exit.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt as interrupt:
        hint = f"; {interrupt}" if str(interrupt) else ""
        print(f"\nreidguard: interrupted{hint}", file=sys.stderr)
        return 130
    except Exception as error:
        if "--debug" in arguments:
            traceback.print_exc()
        ours = isinstance(error, ReIDGuardError)
        told = str(error) if ours else f"{type(error).__name__}: {error}"
        if not ours and "--debug" not in arguments:
            told += f" (for the traceback: {shlex.join(['reidguard', *arguments, '--debug'])})"
        print(f"reidguard: error: {told}", file=sys.stderr)
        return 2 if ours and not isinstance(error, TrainingError) else 1


def _dispatch(arguments: list[str]) -> int:
    command = arguments[0] if arguments else "--help"
    if command in ("-h", "--help", "help"):
        width = max(map(len, COMMANDS))
        table = "\n".join(f"  {name:{width}}  {text}" for name, text in COMMANDS.items())
        print(USAGE.format(commands=table), end="")
        return 0
    if command == "--version":
        from reidguard.storage import library_versions  # here, since it imports torch

        print("\n".join(f"{name} {version}" for name, version in library_versions().items()))
        return 0
    if command not in COMMANDS:
        what = "option" if command.startswith("-") else "command"
        known = [*COMMANDS, "--help", "--version"]
        raise InputError(
            f"unknown {what} {command!r}: {did_you_mean(command, known)}"
            f"commands are {', '.join(COMMANDS)}"
        )
    module: Any = importlib.import_module(f"reidguard.cli.commands.{command}")
    parser = module.parser(COMMANDS[command])
    options = parser.read(arguments[1:])
    code: int
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        code = module.run(options)
        return code
    if command not in TOGETHER:
        raise InputError(f"{command} works in one process: call it without torchrun")
    from reidguard.cli.common import device_name
    from reidguard.distributed import join

    with join(device_name(options)):
        code = module.run(options)
    return code


@contextmanager
def _short_warnings() -> Iterator[None]:
    """Tell warnings without the line of code that raised them."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        print(f"reidguard: warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        warnings.showwarning = show
        yield
