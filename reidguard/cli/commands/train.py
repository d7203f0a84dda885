"""``reidguard train``."""

from functools import partial

import reidguard as rg
from reidguard.cli.options import MACHINE, Options, command
from reidguard.cli.sections import Learning, Machine, Reading, Target
from reidguard.options import TRAIN_DEFAULTS, MeasureOptions, TrainOptions

EXAMPLES = """\
  the paper's recipe, on a ResNet-50 with weights of your own:
    reidguard train --data market1501:/data/market1501 --model ide:resnet50.pth --out runs/ide

  a small network, from nothing, on virtual people:
    reidguard train --data virtual:plaza --model ide --model-set backbone=resnet10t \\
        --model-set size=64x32 --image-size 64x32 --steps 40 --lr 1e-3 --out runs/tiny

  AGW by its own recipe:
    reidguard train --data market1501:/data/market1501 --model agw:resnet50.pth --recipe agw

  with noise on the images, for a model whose ranking is to be certified:
    reidguard train --data market1501:/data/market1501 --model osnet_x0_25:osnet.pth --noise 0.1

The run folder gets manifest.json, metrics.jsonl (a line a step), checkpoint.safetensors,
model.safetensors, result.json and result.md. The same command resumes an interrupted run, and
gives the same weights as an uninterrupted one.
"""


def run(options: Options) -> None:
    """Train, evaluate, save."""
    from reidguard.cli.session import Session

    session = Session.open(options, classifier=True)
    name = options.model.partition(":")[0].rpartition("/")[2].removesuffix(".safetensors")
    fit = partial(rg.train_model, session.model, session.dataset)
    session.learn_model(f"train-{name}", TrainOptions, fit)


app = command(
    "train",
    run,
    {
        "data and model": (Target,),
        "learning": (TrainOptions, Learning),
        "evaluation": (Reading, MeasureOptions),
        MACHINE: (Machine,),
    },
    examples=EXAMPLES,
    shown=TRAIN_DEFAULTS,
)
