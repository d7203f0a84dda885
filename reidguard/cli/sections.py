"""Options that several commands share, by the sections of their help."""

from pathlib import Path
from typing import Annotated, Any, TypedDict

from reidguard.cli.options import Flag
from reidguard.schema import Option

__all__ = ["Device", "Learning", "Machine", "Reading", "Scoring", "Surrogate", "Target", "Threads"]

EPS = Option("L∞ budget in [0, 1] pixel units", 8 / 255)
DATA = "dataset: its path, or NAME:PATH as in market1501:/data/m (reidguard list datasets)"
MODEL = (
    "a file that reidguard saved, NAME[:WEIGHTS] (reidguard list models), a file of weights that "
    "reidguard identify recognises, or a network in ONNX (.onnx), OpenVINO's IR (.xml), "
    "TorchScript (.pt) or of torch.export (.pt2)"
)
INPUT = (
    "preprocessing, as in bgr,255,96x48: rgb or bgr, 1 or 255, HxW, bilinear, bicubic or nearest, "
    "mean=R/G/B, std=R/G/B in units of the range; with 255 and neither, values are not normalised"
)
CACHE = Flag(
    "folder for clean features, which later calls reuse; it can be deleted at any time",
    shown="$XDG_CACHE_HOME/reidguard/features or ~/.cache/reidguard/features",
)


class Target(TypedDict, total=False):
    """The dataset and the model."""

    data: Annotated[str, Flag(DATA, required=True)]
    model: Annotated[str, Flag(MODEL, required=True)]
    model_set: Annotated[
        dict[str, Any],
        Flag("option of its constructor: backbone=resnet18; of a file: differentiable=true"),
    ]
    input: Annotated[str, Flag(INPUT, shown="the model's own")]


class Surrogate(Target, total=False):
    """The dataset, the model and a second model."""

    surrogate: Annotated[
        tuple[str, ...],
        Flag("a second model: attacks made on it transfer to --model; may be given several times"),
    ]
    surrogate_set: Annotated[dict[str, Any], Flag("option of its constructor, where it is one")]
    surrogate_input: Annotated[str, Flag("its preprocessing, as for --input, where it is one")]


class Learning(TypedDict, total=False):
    """Options of all learning that the library has elsewhere."""

    tensorboard: Annotated[bool, Flag("also write metrics to RUN_DIR/tensorboard", False)]
    wandb: Annotated[str, Flag("also log metrics to this project of Weights & Biases")]
    mlflow: Annotated[str, Flag("also log metrics to this experiment of MLflow")]


class MetaTest(Learning, total=False):
    """Options of learning with learners that use a second dataset."""

    meta_data: Annotated[str, Flag("the second dataset: its training images are learnt from")]


class Reading(TypedDict, total=False):
    """How images are read, and where clean features are cached."""

    image_size: Annotated[
        tuple[int, int],
        Option("size of images when read, attacked and saved; models resize further", (256, 128)),
    ]
    cache: Annotated[Path, CACHE]


class Scoring(TypedDict, total=False):
    """How features are compared."""

    flip: Annotated[bool, Option("average features of each image and its mirror image", False)]
    multi_query: Annotated[
        bool, Option("average features of all images of a query's identity by its camera", False)
    ]
    amp: Annotated[
        bool, Option("compute features under autocast in bfloat16: faster, less exact", False)
    ]
    compile: Annotated[bool, Option("compile the network by torch.compile", False)]
    rerank: Annotated[
        bool, Option("re-rank by k-reciprocal encodings (k1 20, k2 6, weight 0.3)", False)
    ]


class Threads(TypedDict, total=False):
    """The CPU."""

    threads: Annotated[int, Flag("CPU threads", low=1, high=1024, shown="torch's choice")]


class Device(Threads, total=False):
    """What computes."""

    device: Annotated[str, Flag("cpu, cuda, cuda:1, ...", shown="cuda if there is")]


class Machine(Device, total=False):
    """What computes, and where the results go."""

    out: Annotated[Path, Flag("run folder", shown="in runs/, named after the settings")]
    by: Annotated[str, Flag("who measures, for reidguard board; goes into the manifest")]
    config: Annotated[
        Path,
        Flag("TOML or YAML file: keys are options without dashes; the command line wins"),
    ]
