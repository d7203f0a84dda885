"""A command at work: the objects that its options name, evaluation, settings, results."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import torch

from reidguard.attacks import Attack, InstanceAttack
from reidguard.cli.gate import judge
from reidguard.cli.options import Options, fraction, image_size
from reidguard.cli.progress import Display, note
from reidguard.cli.run_dir import open_run
from reidguard.cli.sections import Learning, Scoring
from reidguard.contexts import seeded
from reidguard.data import ReIDDataset, load_dataset
from reidguard.distributed import is_first
from reidguard.errors import CheckpointError, InputError
from reidguard.evaluation import LPIPS, FeatureStore, Protocol, evaluate
from reidguard.evaluation.retrieval import Retrieval
from reidguard.input_spec import PREPROCESSING, InputSpec
from reidguard.models import (
    MODELS,
    ReIDModel,
    create_model,
    identify_weights,
    load_model,
    load_module,
    load_onnx,
    load_openvino,
)
from reidguard.models.fingerprint import model_key
from reidguard.models.module_files import module_kind
from reidguard.options import EvaluateOptions, MeasureOptions
from reidguard.records import cache_folder, environment_number, to_path
from reidguard.schema import options_of, resolve, settings
from reidguard.storage import lacks_card

__all__ = ["Session", "errors_name", "feature_store", "model_from", "use_device"]


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


@contextmanager
def errors_name(flag: str) -> Iterator[None]:
    """Turn a constructor's TypeError or ValueError into an InputError that names the option."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError | CheckpointError):
            raise
        raise InputError(f"{flag}: {error}") from error


FILES = {".onnx": load_onnx, ".xml": load_openvino, ".pt2": load_module}  # whole networks


def preprocessing(text: str) -> dict[str, Any]:
    """Read ``--input``, such as "bgr,255,96x48", as arguments of an InputSpec.

    Raises:
        InputError: If a part is none of those that there are.
    """
    values: dict[str, Any] = {}
    for part in text.split(","):
        name, equals, numbers = part.partition("=")
        if name in ("mean", "std") and equals:
            values[name] = tuple(fraction(number) for number in numbers.split("/"))
        elif part in ("1", "255"):
            values["value_range"] = int(part)
        elif part in PREPROCESSING["channels"]:
            values["channels"] = part
        elif part in PREPROCESSING["interpolation"]:
            values["interpolation"] = part
        elif re.fullmatch(r"\d+x\d+", part):
            values["size"] = image_size(part)
        else:
            raise InputError(
                f"--input has no part {part!r}: write rgb or bgr, 1 or 255, HEIGHTxWIDTH, "
                "bilinear, bicubic or nearest, mean=R/G/B, std=R/G/B, with commas between them"
            )
    if values.get("value_range") == 255:
        values = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), **values}
    return values


def model_from(
    spec: str,
    arguments: Mapping[str, Any],
    *,
    seed: int = 0,
    num_classes: int | None = None,
    prepared: str | None = None,
) -> ReIDModel:
    """Build the model that an option names.

    Args:
        spec: A file that reidguard saved, NAME[:WEIGHTS], weights that are recognised, or a
            network's file in ONNX, OpenVINO's IR, TorchScript or of torch.export.
        arguments: Of the model's constructor, or of the function that loads the file.
        seed: Fixes the initial weights.
        num_classes: Training identities, where a fresh model is to be trained.
        prepared: Preprocessing as ``--input`` has it.
    """
    given = {} if prepared is None else preprocessing(prepared)
    load = FILES.get(PurePath(spec).suffix)
    if load is None and spec not in MODELS and module_kind(to_path(spec)) is not None:
        load = load_module
    if load is not None:
        input_spec = InputSpec(**{"size": None, **given}) if given else None
        with errors_name("--model-set"):
            return load(to_path(spec), input_spec=input_spec, **arguments)
    model = _torch_model(spec, arguments, seed, num_classes)
    if given:
        model.input_spec = replace(model.input_spec, **given)
    return model


def _torch_model(
    spec: str, arguments: Mapping[str, Any], seed: int, num_classes: int | None
) -> ReIDModel:
    name, colon, weights = spec.partition(":")
    is_file = not colon and spec not in MODELS and to_path(spec).is_file()
    if is_file or (not colon and spec.endswith(".safetensors")):
        if spec.endswith(".safetensors") and not lacks_card(to_path(spec)):
            if arguments:
                raise InputError(f"{spec} contains the options of its model; leave --model-set out")
            return load_model(spec)
        return _identified(spec, arguments, seed, num_classes)
    if colon and not weights:
        raise InputError(f"the path after {name!r}: is empty; write {name}:/path/to/weights")
    with seeded(seed):
        path = to_path(weights) if weights else None
        with errors_name("--model-set"):
            model = create_model(name, num_classes=num_classes, weights=path, **arguments)
    if not weights and num_classes is None:
        note(
            f"warning: no weights are given for {name}, so it keeps its initial ones (usually "
            f"random); give {name}:/path/to/weights"
        )
    return model


def _identified(
    spec: str, arguments: Mapping[str, Any], seed: int, num_classes: int | None
) -> ReIDModel:
    """Return the model whose weights a file has, and say which it is."""
    path = to_path(spec)
    result = identify_weights(path)
    if not result.exact or result.architecture is None:
        known = ", ".join([result.in_words()["architecture"], *result.notes])
        raise InputError(
            f"say which network {spec} belongs to: --model NAME:{spec}. It is not clear: {known}"
        )
    words = "; ".join(f"{name} {text}" for name, text in result.in_words().items())
    note(f"{path.name} was identified: {words}")
    options = {**result.options, **arguments}
    return _torch_model(f"{result.architecture}:{spec}", options, seed, num_classes)


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
        surrogate: ``--surrogate``, if it is given.
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
        surrogate = None
        if (spec := options.get("surrogate")) is not None:
            prepared = options.get("surrogate_input")
            surrogate = model_from(spec, options.surrogate_set, seed=seed, prepared=prepared)
            surrogate = surrogate.to(device)
        elif options.get("surrogate_set"):
            raise InputError("--surrogate-set belongs to a second model: give --surrogate, too")
        elif options.get("surrogate_input"):
            raise InputError("--surrogate-input belongs to a second model: give --surrogate, too")
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
        if provenance is not None:
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
