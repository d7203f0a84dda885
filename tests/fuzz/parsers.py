"""Every parser of the library, each as a function of a folder with its files."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from fuzz.seeds import SETTINGS, SIZE, STORE_KEY
from reidguard.attacks import load_attack
from reidguard.cli.app import parse
from reidguard.cli.options import Options
from reidguard.cli.pictures import pictures
from reidguard.cli.run_dir import open_run
from reidguard.cli.session import use_device
from reidguard.data import decode_image, load_dataset
from reidguard.evaluation import FeatureStore, Protocol, evaluate_grid
from reidguard.evaluation.audit_report import AuditReport
from reidguard.evaluation.grid import CachedCell
from reidguard.evaluation.grid_result import GridCell, GridResult
from reidguard.hub import from_pretrained
from reidguard.learners import PlainLearner
from reidguard.models import load_model, load_onnx, load_openvino, load_weights
from reidguard.records import find_record
from reidguard.report import board_page, board_rows, board_table, read_cards, read_run, report_page
from reidguard.storage import ResumableStore
from reidguard.training import MetricsFile, Progress
from reidguard.training.loop import learn
from reidguard.types import ReIDBatch

Read = Callable[[Path], Any]


@dataclass(frozen=True)
class Parser:
    """A parser under test.

    Args:
        name: In the table of results.
        seeds: Folder of its seeds, and the names in it of the files that are damaged.
        read: Reads the folder; ``file`` is the damaged one.
        whole: Whether it needs the other files of the folder, too.
        cost: Relative number of inputs; slow parsers get fewer.
    """

    name: str
    seeds: tuple[str, str]
    read: Read
    whole: bool = False
    cost: int = 1


def read_attack(file: Path) -> None:
    """Load an attack and, where it is learnt, apply it."""
    attack = load_attack(file)
    if not hasattr(attack, "bind"):
        attack(torch.full((1, 3, 16, 8), 0.5))


def read_model(file: Path) -> None:
    """Load a model and extract features."""
    load_model(file).features(torch.full((1, 3, 64, 32), 0.5))


def read_foreign(file: Path) -> None:
    """Load the weights of another program."""
    from helpers.models import tiny_model

    load_weights(tiny_model("ide"), file)


def read_folder(file: Path) -> None:
    """Load from a folder of the hub."""
    (file.parent / "model.safetensors").write_bytes(file.read_bytes())
    from_pretrained(file.parent)


class NoBatches:
    """Batches of which none is taken."""

    def __len__(self) -> int:
        return 3

    def epoch(self, number: int, start: int = 0) -> Any:
        """Yield one batch for ever."""
        while True:
            yield ReIDBatch(*(torch.zeros(2, 4), *(torch.zeros(2, dtype=torch.int64),) * 3))


def train(file: Path) -> None:
    """Learn three steps in all, from a checkpoint if it is there."""
    module = torch.nn.Linear(4, 2)
    with torch.no_grad():
        module.weight.fill_(0.1)
    learn(
        module,
        learner=PlainLearner(),
        objective=lambda net, batch: net(batch.images).square().mean(),
        optimizer=torch.optim.Adam(module.parameters()),
        meta_train=NoBatches(),
        settings=SETTINGS,
        steps=3,
        checkpoint=file,
    )


def read_store(file: Path) -> None:
    """Open a store and read its entries."""
    with ResumableStore(file.parent, SETTINGS) as store:
        store.get("part", dict[str, Any])
        store.get_tensors("batch")


def read_features(file: Path) -> None:
    """Look features up."""
    FeatureStore(file.parent).get(STORE_KEY, torch.device("cpu"))


def read_metrics(file: Path) -> None:
    """Resume a log."""
    with MetricsFile(file) as metrics:
        metrics(Progress("learning", 4, 9))
        metrics(Progress("learning", 5, 9, {"loss": 0.5}))


def read_cell(file: Path) -> None:
    """Read a cached cell of a grid and write it in every format."""
    if (cell := find_record(file, CachedCell)) is not None:
        grid = GridResult((GridCell("a", "m", "d", "source", False, cell.evaluation),))
        for write in (grid.to_json, grid.to_csv, grid.to_markdown, grid.to_latex):
            write()


def resume_grid(file: Path) -> None:
    """Resume a grid from its folder."""
    from reidguard.attacks import create_attack
    from reidguard.models import wrap_model
    from reidguard.types import InputSpec

    pooled = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d((8, 4)), torch.nn.Flatten())
    model = wrap_model(pooled, input_spec=InputSpec(size=None))
    dataset = load_dataset("virtual", file.parents[3] / "seeds" / "virtual")
    attacks = {"SMA": create_attack("sma", steps=2)}
    folder = file.parent.parent
    evaluate_grid(
        attacks, {"A": model}, {"plaza": dataset}, Protocol(image_size=SIZE), folder=folder
    )


def read_audit(file: Path) -> None:
    """Read a stored audit and print it."""
    if (report := find_record(file, AuditReport)) is not None:
        report.to_dict()


def report(file: Path) -> None:
    """Write a report on a run folder."""
    run = read_run(file.parent)
    report_page([run])


def draw(file: Path) -> None:
    """Write the pictures of a run folder."""
    with redirect_stderr(StringIO()):
        pictures(read_run(file.parent), torch.device("cpu"), FeatureStore(), real="show")


def resume_run(file: Path) -> None:
    """Resume the run of a folder."""
    options = Options(
        command="attack", argv=["attack"], explicit=frozenset(), run=print, out=file.parent
    )
    settings = {"command": "attack", "seed": 0}
    with redirect_stderr(StringIO()), redirect_stdout(StringIO()):
        with open_run(options, settings, ("result.json",)) as run:
            pass
        run.finish({}, "text")
        run.print()


def read_virtual(file: Path) -> None:
    """Load the folder of a virtual set."""
    load_dataset("virtual", file.parent)


def read_csv(file: Path) -> None:
    """List a dataset from a CSV file."""
    dataset = load_dataset("csv", file)
    dataset.summary()
    [dataset.fingerprint(split) for split in ("train", "query", "gallery")]


def read_lists(file: Path) -> None:
    """List a dataset from list files."""
    load_dataset("msmt17", file.parent).summary()


def read_image(file: Path) -> None:
    """Decode an image."""
    decode_image(file, SIZE)


def read_config(file: Path) -> None:
    """Parse a command line with a configuration file, and set the device."""
    options = parse(["train", "--config", str(file)])
    if options is not None:
        use_device(options.device)


def read_onnx(file: Path) -> None:
    """Load an ONNX network and extract features."""
    load_onnx(file, threads=1).features(torch.full((1, 3, 16, 8), 0.5))


def read_openvino(file: Path) -> None:
    """Load an OpenVINO network and extract features."""
    load_openvino(file.with_suffix(".xml"), threads=1).features(torch.full((1, 3, 16, 8), 0.5))


def board(file: Path) -> None:
    """Read a result card, and write the board's page and tables."""
    rows = board_rows(read_cards([file.parent]))
    board_page(rows)
    board_table(rows, commands=True).to_csv()


PARSERS = [
    Parser("attack", ("attacks", "*.safetensors"), read_attack),
    Parser("model", ("models", "*.safetensors"), read_model, cost=3),
    Parser("foreign weights", ("weights", "*"), read_foreign, cost=2),
    Parser("hub folder", ("attacks", "delta.safetensors"), read_folder, cost=2),
    Parser("training checkpoint", ("checkpoint", "*"), train),
    Parser("resumable store", ("store", "*.*s*"), read_store, whole=True),
    Parser("feature cache", ("features", "*"), read_features),
    Parser("metrics", ("metrics", "*"), read_metrics),
    Parser("grid cell", ("grid/cells", "*"), read_cell),
    Parser("grid folder", ("grid/cells", "*"), resume_grid, whole=True, cost=12),
    Parser("suite's audit", ("suite", "audit.json"), read_audit),
    Parser("report on attack", ("runs/attack", "*"), report, whole=True),
    Parser("report on evaluate", ("runs/evaluate", "*"), report, whole=True),
    Parser("report on audit", ("runs/audit", "*"), report, whole=True),
    Parser("report on autoattack", ("runs/autoattack", "*"), report, whole=True),
    Parser("board of an evaluation", ("runs/evaluate", "*.json"), board, whole=True),
    Parser("board of an audit", ("runs/audit", "*.json"), board, whole=True),
    Parser("board of a suite", ("runs/autoattack", "*.json"), board, whole=True),
    Parser("report on paper", ("runs/paper", "*"), report, whole=True, cost=2),
    Parser("report on grid", ("grid", "grid.json"), report, whole=True),
    Parser("pictures", ("runs/attack", "*.json"), draw, whole=True, cost=6),
    Parser("run to resume", ("runs/attack", "manifest.json"), resume_run, whole=True),
    Parser("virtual set", ("virtual", "virtual.json"), read_virtual, whole=True),
    Parser("CSV", ("people", "people.csv"), read_csv, whole=True),
    Parser("list files", ("lists", "list_*.txt"), read_lists, whole=True, cost=2),
    Parser("image", ("images", "*"), read_image),
    Parser("configuration", ("configs", "*"), read_config, cost=6),
    Parser("ONNX", ("networks", "*.onnx"), read_onnx),
    Parser("OpenVINO", ("networks", "net.[bx]*"), read_openvino, whole=True, cost=6),
]
