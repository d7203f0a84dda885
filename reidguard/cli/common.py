"""What several commands share: their options, and the objects that these name."""

from __future__ import annotations

import hashlib
import os
import shlex
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch

from reidguard.attacks import Attack, Guides, InstanceAttack, LearnedAttack
from reidguard.cli.options import (
    Options,
    Parser,
    epsilon,
    image_size,
    not_negative,
    pathname,
    positive,
    rate,
)
from reidguard.cli.progress import Display, note
from reidguard.cli.run_dir import RunFolder, open_run
from reidguard.data import ReIDDataset, load_dataset
from reidguard.errors import CheckpointError, DataError, InputError
from reidguard.evaluation import LPIPS, EvaluationResult, FeatureStore, Protocol, evaluate
from reidguard.models import MODELS, ReIDModel, create_model, load_model
from reidguard.storage import atomic_write, weights_fingerprint, write_json
from reidguard.training import MetricsFile, ProgressCallback, TensorBoard

__all__ = [
    "add_device",
    "add_eps",
    "add_evaluation",
    "add_learning",
    "add_machine",
    "add_reading",
    "add_seed",
    "add_surrogate",
    "add_victim",
    "bind",
    "data_settings",
    "device_name",
    "feature_store",
    "file_digest",
    "learn_once",
    "load_searchable",
    "make",
    "make_model",
    "make_surrogate",
    "measure",
    "model_settings",
    "print_result",
    "running",
    "save_result",
    "searchable",
    "set_up_machine",
]


def add_victim(parser: Parser) -> None:
    """Add the options that say which dataset and which model."""
    parser.section("data and model")
    parser.option(
        "--data",
        "dataset: its name and place, such as market1501:/data/market1501 "
        "(reidguard list datasets)",
        metavar="NAME[:PATH]",
        required=True,
    )
    parser.option(
        "--model",
        "model: a file that reidguard saved, or a name (reidguard list models) with a file of "
        "weights, torchreid's .pth files included",
        metavar="FILE|NAME[:WEIGHTS]",
        required=True,
    )
    parser.pairs("--model-set", "option of the model's constructor, such as backbone=resnet18")


def add_learning(parser: Parser, *, lr: str, epochs: int, checkpoint_every: int) -> None:
    """Add the options of learning, with these defaults."""
    parser.option(
        "--epochs", f"passes over the training images (default: {epochs})", positive, metavar="N"
    )
    parser.option("--steps", "steps in all, in place of --epochs", positive, metavar="N")
    parser.exclusive("epochs", "steps")
    parser.option("--lr", f"size of a step (default: {lr})", rate, metavar="X")
    parser.option("--identities", "people in a batch", positive, metavar="P", default=8)
    parser.option("--images-per-identity", "images of each", positive, metavar="K", default=8)
    add_seed(parser)
    parser.option(
        "--checkpoint-every",
        "steps between two checkpoints",
        positive,
        metavar="N",
        default=checkpoint_every,
    )
    parser.flag(
        "--tensorboard",
        "write what metrics.jsonl gets to RUN_DIR/tensorboard, too: for TensorBoard, which must be "
        "installed",
    )


def add_evaluation(parser: Parser) -> None:
    """Add the options of evaluation."""
    parser.section("evaluation")
    add_reading(parser)
    parser.option(
        "--query-every", "use every n-th query, for a quick look", positive, metavar="N", default=1
    )


def add_reading(parser: Parser) -> None:
    """Add the options of reading images and keeping their clean features."""
    parser.option(
        "--image-size",
        "size at which images are read, attacked and saved; models resize further by themselves",
        image_size,
        metavar="HxW",
        default=(256, 128),
        shown="256x128",
    )
    parser.option(
        "--cache",
        "folder for clean features, which later calls reuse; it can be deleted at any time",
        pathname,
        metavar="DIR",
        shown="$XDG_CACHE_HOME/reidguard/features or ~/.cache/reidguard/features",
    )


def add_machine(parser: Parser, *, out: str) -> None:
    """Add the options that change no result, or only its last bits."""
    parser.section("output and machine")
    parser.option("--out", out, pathname, metavar="RUN_DIR")
    parser.option(
        "--config",
        "TOML file of options: keys are their names without dashes; the command line wins",
        pathname,
        metavar="FILE",
    )
    add_device(parser)


def add_device(parser: Parser) -> None:
    """Add the options that say what computes."""
    parser.option("--device", "cpu, cuda, cuda:1, ...", metavar="NAME", shown="cuda if there is")
    parser.option("--threads", "CPU threads", positive, metavar="N", shown="torch's choice")


def add_seed(parser: Parser) -> None:
    """Add the option of the seed."""
    parser.option("--seed", "fixes every random draw", not_negative, metavar="N", default=0)


def add_eps(parser: Parser, help: str = "L∞ budget in [0, 1] pixel units") -> None:
    """Add the option of the budget."""
    parser.option("--eps", help, epsilon, metavar="X", default=8 / 255, shown="8/255")


def add_surrogate(parser: Parser, help: str) -> None:
    """Add the options that name a second model."""
    parser.option("--surrogate", help, metavar="FILE|NAME[:WEIGHTS]")
    parser.pairs("--surrogate-set", "option of the surrogate's constructor")


def set_up_machine(options: Options) -> torch.device:
    """Set the number of threads and return the device.

    Raises:
        InputError: If there is no such device.
    """
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    name = device_name(options)
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"device {name!r} cannot be used here ({str(error).splitlines()[0][:80]}); try cpu"
        ) from error
    return device


def device_name(options: Options) -> str:
    """Return the device that is asked for, or a GPU if there is one: each process has its own."""
    name = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    alone = "LOCAL_RANK" not in os.environ
    return name if name != "cuda" or alone else f"cuda:{os.environ['LOCAL_RANK']}"


@contextmanager
def running(
    path: Path,
    options: Options,
    settings: Mapping[str, Any],
    products: tuple[str, ...],
    brought: tuple[str, ...] = (),
) -> Iterator[tuple[RunFolder, Display]]:
    """Open a run folder and show progress; say so if the run is finished already.

    Args:
        path: The folder.
        options: Of the command.
        settings: What the result depends on, as JSON values.
        products: Files without which a run is not finished.
        brought: Names in the folder that may be there before the run is.
    """
    with (
        open_run(path, options, settings=settings, products=products, brought=brought) as folder,
        Display() as display,
    ):
        if folder.finished:
            note(f"{path} is finished already; nothing is done again")
        yield folder, display


def load_searchable(options: Options) -> ReIDDataset:
    """Load the dataset that ``--data`` names.

    Raises:
        DataError: If nobody can be searched for in it.
    """
    return searchable(load_dataset(options.data))


def searchable(dataset: ReIDDataset) -> ReIDDataset:
    """Return a dataset that has queries and a gallery.

    Raises:
        DataError: If it lacks one.
    """
    if not dataset.query or not dataset.gallery:
        raise DataError(
            f"{dataset.name} has no query or no gallery images, so nothing can be evaluated"
        )
    return dataset


def make(what: str, build: Any, *arguments: Any, **kwargs: Any) -> Any:
    """Call a constructor with options from the command line; its complaints become ours."""
    try:
        return build(*arguments, **kwargs)
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError | CheckpointError):
            raise
        raise InputError(f"{what}: {error}") from error


def make_model(options: Options, *, num_classes: int | None = None) -> ReIDModel:
    """Build the model that ``--model`` and ``--model-set`` name.

    Args:
        options: Of the command.
        num_classes: Training identities, where a fresh model shall be trained.
    """
    spec: str = options.model
    name, colon, weights = spec.partition(":")
    if not colon and spec not in MODELS and (spec.endswith(".safetensors") or Path(spec).is_file()):
        if options.model_set:
            raise InputError(f"{spec} knows how its model was built; leave --model-set out")
        if not spec.endswith(".safetensors"):
            raise InputError(f"say which network {spec} belongs to: --model NAME:{spec}")
        return load_model(Path(spec).expanduser())
    if colon and not weights:
        raise InputError(f"the path after {name!r}: is empty; write {name}:/path/to/weights")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(getattr(options, "seed", 0))
        model: ReIDModel = make(
            "--model-set",
            create_model,
            name,
            num_classes=num_classes,
            weights=Path(weights).expanduser() if weights else None,
            **options.model_set,
        )
    if not weights and num_classes is None:
        note(
            f"warning: no weights are given for {name}, so it is as its constructor makes it "
            f"(usually at random); give {name}:/path/to/weights"
        )
    return model


def model_settings(model: ReIDModel) -> dict[str, Any]:
    """Return what identifies a model in a manifest."""
    return {
        "class": type(model).__name__,
        "weights": weights_fingerprint(model),
        "input_spec": model.input_spec.to_dict(),
        "metric": model.metric,
    }


def make_surrogate(options: Options) -> ReIDModel | None:
    """Build the model that ``--surrogate`` names, if it is given."""
    if options.surrogate is None:
        if options.surrogate_set:
            raise InputError("--surrogate-set belongs to a second model: give --surrogate, too")
        return None
    named = {"model": options.surrogate, "model_set": options.surrogate_set}
    return make_model(Options(**{**vars(options), **named}))


def data_settings(dataset: ReIDDataset, *splits: str) -> dict[str, Any]:
    """Return what identifies a dataset in a manifest."""
    return {
        "name": dataset.name,
        **{split: dataset.fingerprint(split) for split in splits if dataset.split(split)},
    }


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error


def bind(
    options: Options,
    attack: InstanceAttack,
    model: ReIDModel,
    dataset: ReIDDataset,
    display: Display,
) -> InstanceAttack:
    """Bind to a model, and show the gallery to an attack that must know where identities lie."""
    if not attack.needs_guides:
        return attack.bind(model)
    features = feature_store(options.cache).features(
        model,
        dataset,
        "gallery",
        image_size=options.image_size,
        progress=display.phase("features of the gallery"),
    )
    return attack.bind(model, Guides(features, [sample.pid for sample in dataset.gallery]))


def measure(
    options: Options,
    model: ReIDModel,
    dataset: ReIDDataset,
    attack: Attack | None,
    display: Display,
    *,
    with_labels: bool = False,
    lpips: LPIPS | None = None,
) -> EvaluationResult | None:
    """Evaluate as the options say; None where the dataset has nothing to search for or in."""
    if not dataset.query or not dataset.gallery:
        note(f"{dataset.name} has no query or no gallery images, so there is no evaluation")
        return None
    return evaluate(
        model,
        dataset,
        attack,
        Protocol(image_size=options.image_size),
        store=feature_store(options.cache),
        query_every=options.query_every,
        with_labels=with_labels,
        lpips=lpips,
        progress=display.phase("evaluating"),
    )


Learnt = TypeVar("Learnt", ReIDModel, LearnedAttack)


def learn_once(
    options: Options,
    target: Path,
    folder: RunFolder,
    display: Display,
    load: Callable[[Path], Learnt],
    learn: Callable[..., Learnt],
) -> tuple[Learnt, float | None]:
    """Load what the run has learnt already, or learn and save it.

    Args:
        options: Of the command.
        target: Where it is, or will be.
        folder: The run.
        display: Shows progress.
        load: Reads the file.
        learn: Takes ``checkpoint``, ``checkpoint_every`` and ``progress``.

    Returns:
        It, and the seconds of a step if any was taken now.
    """
    if target.exists():
        return load(target), None
    with ExitStack() as stack:
        show: ProgressCallback = display
        if options.tensorboard and folder.writes:
            show = stack.enter_context(TensorBoard(folder / "tensorboard", display))
        metrics = stack.enter_context(MetricsFile(folder / "metrics.jsonl", show))
        learnt = learn(
            checkpoint=folder / "checkpoint.safetensors",
            checkpoint_every=options.checkpoint_every,
            progress=metrics,
        )
    if folder.writes:
        learnt.save(target)
    return learnt, metrics.seconds_per_step


def save_result(
    folder: RunFolder,
    result: EvaluationResult | None,
    training: Mapping[str, Any] | None = None,
    seconds: float | None = None,
) -> None:
    """Write result.json and result.md.

    Args:
        folder: Where.
        result: What was measured.
        training: How the model or attack was learnt.
        seconds: A step took, if any was taken now.
    """
    content = {
        "evaluation": None if result is None else result.to_dict(),
        "training": training,
        "seconds_per_step": None if seconds is None else round(seconds, 4),
    }
    write_json(folder / "result.json", content)
    lines = [] if result is None else [result.to_markdown()]
    if training is not None:
        each = "" if seconds is None else f", {seconds:.3g} s each"
        lines.append(f"learnt in {training['steps']} steps{each}\n")
    lines.append(f"`{shlex.join(folder.manifest['command'])}`\n")
    with atomic_write(folder / "result.md") as temporary:
        temporary.write_text("\n".join(lines), "utf-8")


def print_result(folder: RunFolder) -> None:
    """Print result.md but for its last paragraph, the command, which the reader has just given."""
    paragraphs = (folder / "result.md").read_text("utf-8").split("\n\n")
    print("\n\n".join(paragraphs[:-1]), end="\n\n")


def feature_store(chosen: Path | None) -> FeatureStore:
    """Return the store in a folder; that of ``--cache``, or the user's."""
    if chosen is not None:
        return FeatureStore(chosen)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    try:
        return FeatureStore(Path(cache) / "reidguard" / "features")
    except CheckpointError as error:
        warnings.warn(f"{error} with --cache; features are not kept this time", stacklevel=2)
        return FeatureStore()
