"""Progress callbacks that log the metrics of each step to experiment trackers."""

from __future__ import annotations

import time
from typing import Any

from reidguard.errors import InputError
from reidguard.training.metrics import StepLog
from reidguard.types import Progress, ProgressCallback

__all__ = ["MLflow", "WandB"]


class WandB(StepLog):
    """A progress callback that logs the metrics of each step to Weights & Biases.

    Needs ``pip install "reidguard[wandb]"``. Where the program has started a run already, the
    metrics go there and it stays open; else a run is started at the first step, and finished at the
    end of the ``with`` statement. A resumed training repeats the steps since its last checkpoint;
    steps that the run has already are not logged again.

    Args:
        project: Of the run that is started.
        then: Called with every progress afterwards.
        **options: Further arguments of ``wandb.init``, such as ``name``, ``config``, ``dir`` and
            ``mode="offline"``; ``id`` and ``resume="allow"`` continue an earlier run.

    Raises:
        InputError: If Weights & Biases is not installed.

    Example:
        >>> _ = attack.fit(model, data, progress=WandB("attacks"))  # doctest: +SKIP
    """

    def __init__(
        self, project: str = "reidguard", then: ProgressCallback | None = None, **options: Any
    ) -> None:
        super().__init__(then)
        try:
            import wandb
        except ImportError as error:
            raise InputError(
                'Weights & Biases is not installed: pip install "reidguard[wandb]"'
            ) from error
        self._wandb: Any = wandb
        self._own = False
        self.options: dict[str, Any] = {"project": project, **options}

    def _open(self, last: int) -> Any:
        self._own = self._wandb.run is None
        if not self._own:
            return self._wandb.run
        quiet = {"settings": self._wandb.Settings(silent=True)}
        return self._wandb.init(**{**quiet, **self.options})

    def _log(self, progress: Progress) -> None:
        if progress.done >= self._output.step:
            self._output.log(dict(progress.metrics), step=progress.done)

    def _close(self, failed: bool) -> None:
        if self._own:
            self._output.finish(exit_code=int(failed))


class MLflow(StepLog):
    """A progress callback that logs the metrics of each step to MLflow.

    Needs ``pip install "reidguard[mlflow]"``. The metrics go to the run that is named, else to the
    one that the program has started, else to a new one, which ends with the ``with`` statement. A
    resumed training repeats the steps since its last checkpoint; steps that the run has already are
    not logged again.

    Args:
        experiment: Name of the experiment of a new run; it is made if there is none.
        then: Called with every progress afterwards.
        run_id: An earlier run, to continue it.
        run_name: Name of a new run.
        tracking_uri: Where MLflow keeps its runs; None is MLflow's own setting.

    Raises:
        InputError: If MLflow is not installed.

    Example:
        >>> _ = attack.fit(model, data, progress=MLflow("attacks"))  # doctest: +SKIP
    """

    def __init__(
        self,
        experiment: str = "reidguard",
        then: ProgressCallback | None = None,
        *,
        run_id: str | None = None,
        run_name: str | None = None,
        tracking_uri: str | None = None,
    ) -> None:
        super().__init__(then)
        try:
            import mlflow
        except ImportError as error:
            raise InputError('MLflow is not installed: pip install "reidguard[mlflow]"') from error
        self._mlflow: Any = mlflow
        self._own = False
        self._logged: dict[str, int] = {}
        self.experiment, self.run_id, self.run_name = experiment, run_id, run_name
        self.tracking_uri = tracking_uri

    def _open(self, last: int) -> Any:
        client = self._mlflow.MlflowClient(self.tracking_uri)
        active = None if self.run_id else self._mlflow.active_run()
        if self.run_id is not None or active is not None:
            self.run_id = active.info.run_id if active is not None else self.run_id
            names = client.get_run(self.run_id).data.metrics
            self._logged = {
                name: max(metric.step for metric in client.get_metric_history(self.run_id, name))
                for name in names
            }
            return client
        found = client.get_experiment_by_name(self.experiment)
        place = client.create_experiment(self.experiment) if found is None else found.experiment_id
        self.run_id = client.create_run(place, run_name=self.run_name).info.run_id
        self._own = True
        return client

    def _log(self, progress: Progress) -> None:
        now = int(1000 * time.time())
        metrics = [
            self._mlflow.entities.Metric(name, value, now, progress.done)
            for name, value in progress.metrics.items()
            if progress.done > self._logged.get(name, 0)
        ]
        if metrics:
            self._output.log_batch(self.run_id, metrics=metrics)

    def _close(self, failed: bool) -> None:
        if self._own:
            self._output.set_terminated(self.run_id, status="FAILED" if failed else "FINISHED")
