"""A command at work: the objects that its options name, evaluation, settings, results."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from reidguard.attacks import Attack, InstanceAttack
from reidguard.cli.gate import judge
from reidguard.cli.model_option import model_from, surrogate_from
from reidguard.cli.options import Options
from reidguard.cli.progress import Display, note
from reidguard.cli.run_dir import open_run
from reidguard.cli.sections import Learning, Scoring
from reidguard.data import ReIDDataset, load_dataset
from reidguard.distributed import is_first
from reidguard.errors import CheckpointError, InputError
from reidguard.evaluation import LPIPS, FeatureStore, Protocol, evaluate
from reidguard.evaluation.retrieval import Retrieval
from reidguard.models import (
    ReIDModel,
    load_model,
)
from reidguard.models.fingerprint import model_key
from reidguard.options import EvaluateOptions, MeasureOptions
from reidguard.records import cache_folder, environment_number
from reidguard.schema import options_of, resolve, settings

__all__ = ["Session", "feature_store", "use_device"]


def use_device(name: str | None, threads: int | None = None) -> torch.device:
    """Set the number of CPU threads and return the device.

    Args:
        name: By default a GPU if there is one; "cuda" is the process's own of several.
        threads: None leaves torch's choice.

    Raises:
        InputError: If there is no such device.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{environment_number('LOCAL_RANK', 0)}"
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()  # "meta" has no values
    except Exception as error:  # each backend that torch was built without has its own
        reason = (str(error).splitlines() or [type(error).__name__])[0][:80]
        raise InputError(f"device {name!r} cannot be used here ({reason}); try cpu") from error
    return device


def feature_store(folder: Path | None) -> FeatureStore:
    """Return the store of clean features in the folder of ``--cache``, or in the user's."""
    if folder is not None:
        return FeatureStore(folder)
    try:
        return FeatureStore(cache_folder() / "features")
    except CheckpointError as error:
        warnings.warn(f"{error} with --cache; features are not cached this time", stacklevel=2)
        return FeatureStore()


@dataclass(frozen=True)
class Session:
    """A command's options and the objects that they name.

    Attributes:
        options: Of the command.
        device: Where the models are.
        dataset: ``--data``.
        model: ``--model``.
        store: Clean features of this and earlier calls.
        surrogate: ``--surrogate``, if it is given; an ensemble if it is given several times.
        meta_test: ``--meta-data``, if it is given.
    """

    options: Options
    device: torch.device
    dataset: ReIDDataset
    model: ReIDModel
    store: FeatureStore
    surrogate: ReIDModel | None = None
    meta_test: ReIDDataset | None = None

    @classmethod
    def open(cls, options: Options, *, classifier: bool = False) -> Session:
        """Load what the options name.

        Args:
            options: Of the command.
            classifier: Whether a fresh model gets a classifier for the training identities.
        """
        device = use_device(options.device, options.threads)
        dataset = load_dataset(options.data)
        if (folder := options.get("query")) is not None:
            dataset = dataset.with_query(folder, query_every=options.query_every)
        meta_test = None if (spec := options.get("meta_data")) is None else load_dataset(spec)
        seed = options.get("seed", 0)
        classes = dataset.num_train_pids or None if classifier else None
        own: dict[str, Any] = {"num_classes": classes, "prepared": options.get("input")}
        model = model_from(options.model, options.model_set, seed=seed, **own)
        surrogate = surrogate_from(
            options.get("surrogate") or (),
            options.get("surrogate_set") or {},
            seed=seed,
            prepared=options.get("surrogate_input"),
        )
        surrogate = surrogate if surrogate is None else surrogate.to(device)
        store = feature_store(options.cache)
        return cls(options, device, dataset, model.to(device), store, surrogate, meta_test)

    def settings(self, *splits: str, **own: Any) -> dict[str, Any]:
        """Return what identifies the run: the command's own settings, data, models and device.

        Args:
            splits: Splits of the dataset that the result depends on.
            own: Settings of the command, as JSON values.
        """
        models = {"model": self.model, "surrogate": self.surrogate}
        meta_test = self.meta_test
        return {
            "command": self.options.command,
            **own,
            "data": _data_settings(self.dataset, *splits),
            **({} if meta_test is None else {"meta_data": _data_settings(meta_test, "train")}),
            **{
                name: model_key(model, self.options.image_size)
                for name, model in models.items()
                if model is not None
            },
            "image_size": self.options.image_size,
            **self._scoring(),
            "device": self.device.type,
        }

    @property
    def protocol(self) -> Protocol:
        """How images are read and scored."""
        return Protocol(image_size=self.options.image_size, **self._scoring())

    def _scoring(self) -> dict[str, Any]:
        """Return the options of the section Scoring that are on."""
        return {name: True for name in options_of(Scoring) if self.options.get(name)}

    def bind(self, attack: Attack, model: ReIDModel, display: Display) -> Attack:
        """Bind an instance attack to a model, with the gallery as guides where it needs them."""
        if not isinstance(attack, InstanceAttack):
            return attack
        progress = display.phase("features of the gallery")
        retrieval = Retrieval(model, self.dataset, self.protocol, self.store, progress=progress)
        return retrieval.bind(attack)

    def measure(
        self,
        display: Display,
        model: ReIDModel,
        attack: Attack | None = None,
        provenance: Mapping[str, Any] | None = None,
        seconds: float | None = None,
        lpips: LPIPS | None = None,
    ) -> tuple[dict[str, Any], str]:
        """Evaluate, and return the result as JSON values and as text.

        Args:
            display: Shows progress.
            model: Is evaluated; not where something was learnt from a dataset without queries or
                gallery.
            attack: Perturbs the queries; an unbound instance attack is bound to the model.
            provenance: How the model or attack was learnt, if it was.
            seconds: Time of a step, if any was taken now.
            lpips: Also measures LPIPS.
        """
        result, text = None, ""
        if provenance is not None and not (self.dataset.query and self.dataset.gallery):
            note(f"{self.dataset.name} has no query or no gallery images; skipping the evaluation")
        else:
            attack = None if attack is None else self.bind(attack, model, display)
            values = self.options.of(EvaluateOptions)
            if self.dataset.original is not None:  # has every n-th query alone already
                values["query_every"] = 1
            result = evaluate(
                model,
                self.dataset,
                attack,
                self.protocol,
                store=self.store,
                **values,
                lpips=lpips,
                progress=display.phase("evaluating"),
            )
            text = result.to_markdown()
        if provenance is not None and "steps" in provenance:
            each = "" if seconds is None else f", {seconds:.3g} s each"
            text += f"\nlearnt in {provenance['steps']} steps{each}\n"
        content = {
            "evaluation": None if result is None else result.to_dict(),
            "training": provenance,
            "seconds_per_step": None if seconds is None else round(seconds, 4),
        }
        return content, text

    def learn_model(
        self,
        label: str,
        group: type,
        fit: Callable[..., ReIDModel],
        attack: Attack | None = None,
        **own: Any,
    ) -> None:
        """Learn a model in a run folder, evaluate it, save both and print the result.

        Args:
            label: Beginning of the folder's name below runs/.
            group: Options of the learning.
            fit: Takes these, ``checkpoint`` and ``progress``, and returns the model.
            attack: Perturbs the queries of the evaluation.
            own: Further settings that the result depends on, as JSON values.
        """
        recipe = self.options.of(group, explicit=True)
        own["recipe"] = settings(group, resolve(group, recipe))
        own |= settings(MeasureOptions, self.options.of(MeasureOptions))
        run_settings = self.settings("train", "query", "gallery", **own)
        products = ("model.safetensors", "result.json", "result.md")
        with open_run(self.options, run_settings, products, label) as run:
            if not run.finished:
                fit, trackers = partial(fit, **recipe), self.options.of(Learning)
                model, seconds = run.learn(products[0], load_model, fit, trackers=trackers)
                model = model.to(self.device)
                run.finish(*self.measure(run.display, model, attack, model.provenance, seconds))
            run.print()
            run.say(f"model: {run / products[0]}")

    def report(
        self,
        settings: Mapping[str, Any],
        measure: Callable[[Display], tuple[Mapping[str, Any], str]],
        name: str = "result",
    ) -> int:
        """Print a result and the verdict on it; with ``--out`` write or read them.

        Args:
            settings: What the result depends on.
            measure: Takes a display of progress and returns the result as JSON values and text.
            name: Of the files in the run folder.

        Returns:
            The exit code.
        """
        if self.options.out is None:
            with Display() as display:
                content, text = measure(display)
            if not is_first():
                return 0
            print(text)
            return judge(self.options, content, None)
        with open_run(self.options, settings, (f"{name}.json", f"{name}.md")) as run:
            if not run.finished:
                run.finish(*measure(run.display), name)
            run.print(name)
            run.say(f"run: {run.path}")
        return judge(self.options, run.content(name), run.path) if run.writes else 0


def _data_settings(dataset: ReIDDataset, *splits: str) -> dict[str, Any]:
    own = {} if dataset.original is None else {"original": dataset.original.fingerprint("query")}
    return {
        "name": dataset.name,
        **{split: dataset.fingerprint(split) for split in splits if dataset.split(split)},
        **own,
    }
