"""Several processes measure what one measures, to the bit. See shared_evaluation_driver.py."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from reidguard.distributed import rows_here
from reidguard.errors import InputError
from reidguard.metrics import GalleryPart, rank

needs_gloo = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="needs torch with gloo"
)
DRIVER = Path(__file__).with_name("shared_evaluation_driver.py")


def command(processes: int, *arguments: object) -> list[str]:
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [*start, *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def measure(processes: int, data: Path, out: Path) -> list[dict[str, object]]:
    """Return what each process found."""
    out.mkdir()
    ended = subprocess.run(
        command(processes, DRIVER, data, out),
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    files = [out / f"found-{number}.json" for number in range(processes)]
    return [json.loads(file.read_text("utf-8")) for file in files]


@needs_gloo
def test_two_processes_measure_what_one_measures(studio_root, tmp_path):
    (alone,) = measure(1, studio_root, tmp_path / "one")
    for result in measure(2, studio_root, tmp_path / "two"):
        assert result == alone
    assert alone["counts"] == [16, 32]  # tracklets of two frames, in batches of three
    names = {p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*.png")}
    assert names
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@needs_gloo
@pytest.mark.slow
def test_four_processes_measure_what_one_measures(studio_root, tmp_path):
    (alone,) = measure(1, studio_root, tmp_path / "one")
    for result in measure(4, studio_root, tmp_path / "four"):
        assert result == alone


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("parts", [[700], [1, 699], [300, 1, 250, 149]])
def test_shards_rank_as_one_tensor(metric, parts):
    g = torch.Generator().manual_seed(0)
    query, gallery = (torch.randn(n, 9, generator=g).round() for n in (30, 700))
    labels = {
        "query_pids": torch.randint(1, 6, (30,), generator=g),
        "query_camids": torch.randint(0, 3, (30,), generator=g),
        "gallery_pids": torch.randint(-1, 7, (700,), generator=g),
        "gallery_camids": torch.randint(0, 3, (700,), generator=g),
    }
    joint = rank(query, gallery, metric=metric, **labels)
    sharded = rank(query, gallery.split(parts), metric=metric, **labels)
    assert torch.equal(joint.ap, sharded.ap)
    assert torch.equal(joint.first_match, sharded.first_match)
    assert torch.equal(joint.cmc, sharded.cmc)
    assert torch.equal(joint.inp, sharded.inp)
    with pytest.raises(InputError, match="rows"):
        rank(query, GalleryPart([gallery], start=1), metric=metric, **labels)


@pytest.mark.parametrize(("total", "batch"), [(1, 8), (17, 4), (64, 8), (100, 7), (3, 1)])
@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_every_row_belongs_to_one_process(total, batch, processes, monkeypatch):
    from reidguard import distributed

    rows = []
    for number in range(processes):
        monkeypatch.setattr(distributed, "world", lambda n=number: distributed.World(n, processes))
        mine = rows_here(total, batch)
        assert mine.start % batch == 0 or mine.start == total
        rows += range(total)[mine]
    assert rows == list(range(total))


@needs_gloo
@pytest.mark.slow
def test_a_process_that_dies_ends_the_run_and_the_rest_resumes(studio_root, tmp_path):
    arguments = ["autoattack", "--data", f"virtual:{studio_root}", "--model", "osnet_x0_25"]
    arguments += ["--image-size", "64x32", "--steps", "5", "--squares", "20", "--batch-size", "4"]
    arguments += ["--query-every", "2", "--restarts", "1", "--cache", str(tmp_path / "cache")]
    arguments += ["--audit-queries", "0"]

    def run(processes: int, out: Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command(processes, "-m", "reidguard", *arguments, "--out", out),
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    started = run(2, tmp_path / "two")
    state = tmp_path / "two" / "state"
    while started.poll() is None and len(list(state.glob("batch-*"))) < 2:
        time.sleep(0.02)
    children = subprocess.run(
        ["pgrep", "-P", str(started.pid)], capture_output=True, text=True, check=True
    )
    os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
    _, errors = started.communicate(timeout=120)
    assert started.returncode != 0, errors
    again = run(2, tmp_path / "two")
    output, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    alone = run(1, tmp_path / "one")
    expected, _ = alone.communicate(timeout=300)
    assert output.count("run:") == 1
    results = [json.loads((tmp_path / n / "result.json").read_text()) for n in ("one", "two")]
    assert results[0] == results[1]
    assert output.replace("two", "one") == expected
