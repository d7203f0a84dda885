"""Experiment trackers, with stand-ins of their packages that record what they are told."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
from training.test_metrics import lines, small_sets, tell  # noqa: F401  a fixture

from reidguard.cli import main
from reidguard.errors import InputError
from reidguard.training import MLflow, Progress, WandB

STEPS = [{"loss": float(step), "lr": 0.5} for step in range(1, 6)]


class Run:
    """A run of Weights & Biases: its step is that of the last log, and it takes no earlier one."""

    def __init__(self, arguments, step=0):
        self.arguments, self.step = arguments, step
        self.logged, self.exit_code = [], None

    def log(self, metrics, step):
        assert step >= self.step
        assert self.exit_code is None
        self.step = step
        self.logged.append((step, metrics))

    def finish(self, exit_code):
        self.exit_code = exit_code


@pytest.fixture
def wandb(monkeypatch):
    module = SimpleNamespace(run=None, runs=[], step=0, Settings=lambda **options: options)

    def init(**arguments):
        module.runs.append(Run(arguments, module.step))
        return module.runs[-1]

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


class Client:
    """MLflow's client, of which all instances share the runs."""

    def __init__(self, store, uri):
        self.store, self.uri = store, uri

    def get_experiment_by_name(self, name):
        return self.store.experiments.get(name)

    def create_experiment(self, name):
        self.store.experiments[name] = SimpleNamespace(experiment_id=f"e-{name}")
        return f"e-{name}"

    def create_run(self, experiment_id, run_name):
        run = SimpleNamespace(
            info=SimpleNamespace(run_id=f"r{len(self.store.runs)}"),
            experiment=experiment_id, name=run_name, logged=[], status="RUNNING",
        )  # fmt: skip
        self.store.runs[run.info.run_id] = run
        return run

    def get_run(self, run_id):
        last = {m.key: m.value for m in self.store.runs[run_id].logged}
        return SimpleNamespace(data=SimpleNamespace(metrics=last))

    def get_metric_history(self, run_id, name):
        return [m for m in self.store.runs[run_id].logged if m.key == name]

    def log_batch(self, run_id, metrics):
        assert metrics
        assert self.store.runs[run_id].status == "RUNNING"
        self.store.runs[run_id].logged += metrics

    def set_terminated(self, run_id, status):
        self.store.runs[run_id].status = status


@pytest.fixture
def mlflow(monkeypatch):
    store = SimpleNamespace(runs={}, experiments={})
    store.module = SimpleNamespace(
        MlflowClient=lambda uri: Client(store, uri),
        active_run=lambda: None,
        entities=SimpleNamespace(
            Metric=lambda key, value, timestamp, step: SimpleNamespace(
                key=key, value=value, timestamp=timestamp, step=step
            )
        ),
    )
    monkeypatch.setitem(sys.modules, "mlflow", store.module)
    return store


def of(run, name):
    return [(m.step, m.value) for m in run.logged if m.key == name]


def test_a_run_of_weights_and_biases(wandb):
    passed = []
    with WandB("search", passed.append, name="delta", config={"eps": 8}) as board:
        assert wandb.runs == []  # none is started before there is a step
        tell(board, 0, 5)
    (run,) = wandb.runs
    assert run.arguments.pop("settings") == {"silent": True}
    assert run.arguments == {"project": "search", "name": "delta", "config": {"eps": 8}}
    assert run.logged == list(enumerate(STEPS, 1))
    assert run.exit_code == 0
    assert [progress.phase for progress in passed] == ["clean features"] + 6 * ["learning"]


def test_a_resumed_run_of_weights_and_biases_has_each_step_once(wandb):
    wandb.step = 6  # it has the steps up to 5
    with WandB(id="abc", resume="allow", settings=None) as board:
        tell(board, 3, 7)
    (run,) = wandb.runs
    assert run.arguments == {
        "project": "reidguard", "id": "abc", "resume": "allow", "settings": None
    }  # fmt: skip
    assert [step for step, _ in run.logged] == [6, 7]


def test_an_open_run_of_weights_and_biases_stays_open(wandb):
    wandb.run = Run({})
    with WandB() as board:
        tell(board, 0, 5)
    assert wandb.runs == []
    assert wandb.run.logged == list(enumerate(STEPS, 1))
    assert wandb.run.exit_code is None


def interrupted(sink):
    with sink:
        sink(Progress("learning", 1, 2, {"loss": 1.0}))
        raise KeyboardInterrupt


def test_a_failed_training_is_a_failed_run(wandb, mlflow):
    for sink in (WandB(), MLflow()):
        with pytest.raises(KeyboardInterrupt):
            interrupted(sink)
    assert wandb.runs[0].exit_code == 1
    assert mlflow.runs["r0"].status == "FAILED"


def test_runs_of_mlflow(mlflow):
    with MLflow("search", run_name="delta") as board:
        tell(board, 0, 5)
    run = mlflow.runs[board.run_id]
    assert (run.experiment, run.name, run.status) == ("e-search", "delta", "FINISHED")
    assert of(run, "loss") == [(n, float(n)) for n in range(1, 6)]
    assert of(run, "lr") == [(n, 0.5) for n in range(1, 6)]
    with MLflow("search") as board:  # the experiment is there
        tell(board, 0, 1)
    assert mlflow.runs[board.run_id].experiment == "e-search"
    assert len(mlflow.runs) == 2


def test_a_resumed_run_of_mlflow_has_each_step_once(mlflow):
    with MLflow() as board:
        tell(board, 0, 5)
    run = mlflow.runs[board.run_id]
    run.status = "RUNNING"
    with MLflow(run_id=board.run_id) as board:
        tell(board, 3, 7)
    assert of(run, "loss") == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, 36), (7, 37)]
    assert len(mlflow.runs) == 1


def test_an_open_run_of_mlflow_stays_open(mlflow):
    run = Client(mlflow, None).create_run("e", "mine")
    mlflow.module.active_run = lambda: run
    with MLflow() as board:
        tell(board, 0, 2)
    assert of(run, "loss") == [(1, 1), (2, 2)]
    assert run.status == "RUNNING"


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_without_the_package(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=rf"pip install .reidguard\[{name}\]"):
        {"wandb": WandB, "mlflow": MLflow}[name]()


def test_a_command_logs_to_both(tmp_path, monkeypatch, small_sets, wandb, mlflow):  # noqa: F811
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = tmp_path / "run"
    call = ["train", "--data", small_sets, "--model", "ide", "--model-set", "backbone=test_resnet",
            "--model-set", "size=32x16", "--image-size", "32x16", "--images-per-identity", "2",
            "--identities", "2", "--steps", "3", "--wandb", "people", "--mlflow", "people",
            "--out", str(out)]  # fmt: skip
    assert main(call) == 0
    written = [(line["step"], line["loss"]) for line in lines(out / "metrics.jsonl")]
    assert [(step, metrics["loss"]) for step, metrics in wandb.runs[0].logged] == written
    assert of(mlflow.runs["r0"], "loss") == written
    arguments = wandb.runs[0].arguments
    assert (arguments["project"], arguments["name"]) == ("people", "run")
    assert arguments["config"]["command"] == "train"
    assert (mlflow.runs["r0"].experiment, mlflow.runs["r0"].name) == ("e-people", "run")
