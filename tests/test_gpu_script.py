"""``benchmarks/gpu.py`` records what fails and goes on; `make gpu` runs all of it."""

import json
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_correctness
from benchmarks.gpu_setup import Setup

ROOT = Path(__file__).parents[1]
SETUP = Setup("cpu", small=True, seed=0)


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import gpu

    yield gpu
    del sys.modules["gpu"], sys.modules["common"]


def fail():
    raise ValueError("no such kernel")


def test_a_row_that_fails_is_recorded_and_the_next_one_runs(gpu):
    section = gpu.Section(lambda setup: iter([("bad", fail), ("good", lambda: {"ok": True})]), 60)
    result = gpu.run_section(section, SETUP)
    assert result["complete"]
    assert result["rows"]["bad"]["error"] == "ValueError: no such kernel"
    assert result["rows"]["good"]["ok"] is True
    assert gpu.failed(result)


@pytest.mark.skipif(not hasattr(__import__("signal"), "setitimer"), reason="needs SIGALRM")
def test_a_section_ends_when_its_time_is_over(gpu):
    rows = [("quick", lambda: {"ok": True}), ("endless", lambda: time.sleep(60))]
    result = gpu.run_section(gpu.Section(lambda setup: iter(rows), 0.2), Setup("cpu", False, 0))
    assert list(result["rows"]) == ["quick"]
    assert "after 0.2 s" in result["stopped"]
    assert gpu.failed(result)


def test_results_are_written_after_each_section(gpu, monkeypatch, tmp_path, capsys):
    path, seen = tmp_path / "gpu.json", []

    def second(setup):
        seen.append(json.loads(path.read_text("utf-8")))
        yield "bad", fail

    sections = {
        "first": gpu.Section(lambda setup: iter([("row", lambda: {"ok": True})]), 60),
        "second": gpu.Section(second, 60),
    }
    monkeypatch.setattr(gpu, "SECTIONS", sections)
    call = ["gpu.py", "--device", "cpu", "--small", "--out", str(path), "--only", *sections]
    monkeypatch.setattr(sys, "argv", call)
    assert gpu.main() == 1
    assert list(seen[0]["sections"]) == ["first"]
    assert not seen[0]["complete"]
    report = json.loads(path.read_text("utf-8"))
    assert report["complete"]
    assert report["sections"]["second"]["rows"]["bad"]["ok"] is False
    assert "failed: second" in capsys.readouterr().out


def test_without_a_gpu_it_says_how_to_run_it(gpu, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit):
        gpu.main()
    assert "--device cpu --small" in capsys.readouterr().err


@pytest.mark.parametrize("spoiled", [0.0, 2 / 255])
def test_an_attack_that_differs_from_the_cpu_is_noticed(monkeypatch, spoiled):
    applied = gpu_correctness.applied
    calls = []

    def differs(*args):
        calls.append(args)
        images, attack = applied(*args)
        return (images + spoiled * (len(calls) % 2 == 0)).to(images.dtype), attack

    monkeypatch.setattr(gpu_correctness, "applied", differs)
    row = gpu_correctness.attack_row(SETUP, "delta")
    assert row["ok"] is (spoiled == 0)
    assert (max(row["outside"].values()) > 1e-3) is (spoiled > 0)


def test_a_gradient_that_differs_from_the_cpu_is_noticed(monkeypatch):
    gradient_of = gpu_correctness.gradient_of
    row = gpu_correctness.gradient_row(SETUP, "plain", False)
    assert row["ok"]
    factors = iter([1.0, 1.01, 1.0, 1.01])
    monkeypatch.setattr(gpu_correctness, "gradient_of", lambda *a: gradient_of(*a) * next(factors))
    row = gpu_correctness.gradient_row(SETUP, "plain", False)
    assert not row["ok"]
    assert row["difference"]["float64"] == pytest.approx(0.01)


def test_an_algorithm_that_torch_lacks_is_no_failure():
    def undetermined():
        if torch.are_deterministic_algorithms_enabled():
            raise RuntimeError("splat does not have a deterministic implementation. See ...")
        return torch.ones(1)

    row = gpu_correctness.determinism_row(undetermined)
    assert "ok" not in row
    assert row["no deterministic algorithm"].startswith("splat")
    assert not torch.are_deterministic_algorithms_enabled()
    values = iter(range(4))
    row = gpu_correctness.determinism_row(lambda: torch.tensor(next(values)))
    assert row == {"ok": False, "as is": False}
