"""What is written down of each step, and that a resumed run says nothing twice."""

from __future__ import annotations

import json
import sys

import pytest

from reidguard.cli import main
from reidguard.errors import InputError
from reidguard.training import MetricsFile, Progress, TensorBoard


def tell(sink, start: int, stop: int) -> None:
    """What the loop tells, from a checkpoint at ``start`` to the step ``stop``."""
    sink(Progress("clean features", 1, 1))
    sink(Progress("learning", start, 9))
    for step in range(start + 1, stop + 1):
        sink(Progress("learning", step, 9, {"loss": 10.0 * start + step, "lr": 0.5}))


def points(folder, name):
    """A scalar's (step, value), as TensorBoard shows it."""
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reading.EventAccumulator(str(folder)).Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def lines(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_lines_of_a_resumed_run(tmp_path):
    reports = []
    for start, stop in ((0, 5), (3, 7)):
        with MetricsFile(tmp_path / "m.jsonl", reports.append) as metrics:
            tell(metrics, start, stop)
            assert metrics.seconds_per_step > 0
    found = lines(tmp_path / "m.jsonl")
    assert [line["step"] for line in found] == list(range(1, 8))
    assert [line["loss"] for line in found] == [1, 2, 3, 34, 35, 36, 37]
    assert [line["lr"] for line in found] == [0.5] * 7
    assert reports[0].phase == "clean features"  # it is passed on, and not written down


def test_points_of_a_resumed_run(tmp_path):
    pytest.importorskip("tensorboard")
    for start, stop in ((0, 5), (3, 7)):
        with TensorBoard(tmp_path) as board:
            tell(board, start, stop)
    wanted = [(1, 1), (2, 2), (3, 3), (4, 34), (5, 35), (6, 36), (7, 37)]
    assert points(tmp_path, "loss") == wanted
    assert len(points(tmp_path, "lr")) == 7


def test_without_tensorboard(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match=r"pip install .reidguard\[tensorboard\]"):
        TensorBoard(tmp_path)


def test_a_command_writes_both(tmp_path, monkeypatch, small_sets):
    pytest.importorskip("tensorboard")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = tmp_path / "run"
    call = ["train", "--data", small_sets, "--model", "ide", "--model-set", "backbone=test_resnet",
            "--model-set", "size=32x16", "--image-size", "32x16", "--images-per-identity", "2",
            "--identities", "2", "--steps", "3", "--tensorboard", "--out", str(out)]  # fmt: skip
    assert main(call) == 0
    written = [(line["step"], pytest.approx(line["loss"])) for line in lines(out / "metrics.jsonl")]
    assert points(out / "tensorboard", "loss") == written
    assert [step for step, _ in written] == [1, 2, 3]


@pytest.fixture
def small_sets(tmp_path):
    """A folder of two people, as a dataset's name and place."""
    from PIL import Image

    rows = ["path,pid,camid,split"]
    for split, camid in (("train", 1), ("train", 2), ("query", 1), ("gallery", 2)):
        for pid in (1, 2):
            name = f"{split}-{pid}-{camid}.png"
            Image.new("RGB", (16, 32), (100 * pid, 20 * camid, 90)).save(tmp_path / name)
            rows.append(f"{name},{pid},{camid},{split}")
    (tmp_path / "people.csv").write_text("\n".join(rows) + "\n", "utf-8")
    return f"csv:{tmp_path / 'people.csv'}"
