"""``reidguard attack``."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

from reidguard.cli.options import MACHINE, Flag, Options, command
from reidguard.cli.sections import EPS, Machine, MetaTest, Reading, Surrogate
from reidguard.options import AttackOptions, EvaluateOptions
from reidguard.schema import options_of

if TYPE_CHECKING:
    from reidguard.attacks import Attack
    from reidguard.cli.run_dir import RunFolder
    from reidguard.cli.session import Session

EXAMPLES = """\
  learn an additive attack in 100 steps, look at every 8th query, keep the images:
    reidguard attack --data market1501:/data/market1501 --model osnet_x0_25:osnet.pth \\
        --attack delta --eps 8/255 --steps 100 --query-every 8 --out runs/delta \\
        --save-images runs/delta/images

  colours and delta together, each with a budget of its own (so twice the budget in all):
    reidguard attack --data market1501:/data/market1501 --model runs/ide/model.safetensors \\
        --attack combinatorial --set stacked=true --set resolution=17

  the paper's attack, with virtual people for the other domain:
    reidguard attack --data market1501:/data/market1501 --meta-data virtual:plaza \\
        --model osnet_x0_25:osnet.pth --attack meta --steps 100

  the same learning for another attack, first order only, two inner steps:
    reidguard attack --data market1501:/data/market1501 --meta-data virtual:plaza \\
        --model osnet_x0_25:osnet.pth --attack delta --learner first_order \\
        --learner-set inner_steps=2

  an additive attack that is to harm other networks, too (input diversity):
    reidguard attack --data market1501:/data/market1501 --model osnet_x0_25:osnet.pth \\
        --attack delta --diversity 0.7

  UAP-Retrieval with its label-wise loss, which uses the model's classifier:
    reidguard attack --data market1501:/data/market1501 --model runs/ide/model.safetensors \\
        --attack uap --objective labelwise

  apply a saved attack to another model:
    reidguard attack --data market1501:/data/market1501 --model osnet_x1_0:other.pth \\
        --load runs/delta/attack.safetensors

  an instance attack, which optimises each query on the model and learns nothing:
    reidguard attack --data market1501:/data/market1501 --model osnet_x0_25:osnet.pth \\
        --attack sma --set steps=15 --set restarts=5 --query-every 8

  the same, made on one model and evaluated on another:
    reidguard attack --data market1501:/data/market1501 --model runs/robust/model.safetensors \\
        --attack fna --surrogate osnet_x0_25:osnet.pth

Attacks learn from training images only, and only queries are attacked. Metrics are given twice: for
the float images, and for the 8-bit images that --save-images writes.

The run folder gets manifest.json, metrics.jsonl (a line a step), checkpoint.safetensors,
attack.safetensors, result.json and result.md; where nothing is learnt, no metrics and no
checkpoint. The same command resumes an interrupted run, and gives the same attack as an
uninterrupted one.
"""


class Which(TypedDict, total=False):
    """Which attack."""

    attack: Annotated[str, Flag("reidguard list attacks", "delta")]
    set: Annotated[dict[str, Any], Flag("option of its constructor, such as resolution=17")]
    eps: Annotated[float, EPS]
    load: Annotated[Path, Flag("apply this saved attack; nothing is learnt")]


class Names(MetaTest, total=False):
    """Options of learning whose names the library also takes as objects."""

    objective: Annotated[str, Flag("reidguard list objectives", shown="misranking, uap pairwise")]
    learner: Annotated[str, Flag("reidguard list learners", shown="plain, meta maml")]
    learner_set: Annotated[dict[str, Any], Flag("option of its constructor: inner_steps=2")]


class Products(TypedDict, total=False):
    """What else is measured and written."""

    lpips: Annotated[
        str,
        Flag(
            "also measure LPIPS: FILE with weights of torchvision's AlexNet or VGG-16, or "
            "FILE:FILE with weights of channels that are not those of the lpips package"
        ),
    ]
    save_images: Annotated[Path, Flag("folder for all adversarial queries, as PNG of equal name")]
    cube: Annotated[Path, Flag("file for the colour table, for image editors (.cube)")]


# Options of learning: refused where nothing is learnt.
LEARNING = (*options_of(Names), *options_of(AttackOptions))


def run(options: Options) -> None:
    """Learn or load an attack, or build one that learns nothing; evaluate it and save it."""
    from reidguard.attacks import InstanceAttack, LearnedAttack, load_attack
    from reidguard.cli.attack_plan import AttackPlan
    from reidguard.cli.run_dir import open_run
    from reidguard.cli.session import Session

    plan = AttackPlan.of(options, LEARNING)  # finds mistakes before anything slow
    session = Session.open(options)
    settings = session.settings("train", "query", "gallery", **plan.settings)
    name = options.attack if options.load is None else options.load.stem
    products = [] if options.load else ["attack.safetensors"]
    label = f"attack-{name}-{session.dataset.name}"
    with open_run(options, settings, (*products, "result.json", "result.md"), label) as folder:
        attack, seconds = plan.attack.to(session.device), None
        source = session.surrogate or session.model
        if isinstance(attack, LearnedAttack) and plan.fit is not None:
            fit = partial(attack.fit, source, session.dataset, session.meta_test, **plan.fit)
            attack, seconds = folder.learn(
                products[0], load_attack, fit, tensorboard=options.tensorboard
            )
            if not folder.writes:
                return
        elif products and not (folder / products[0]).exists():
            attack.save(folder / products[0])
        attack = attack.to(session.device)
        if isinstance(attack, InstanceAttack):
            attack = session.bind(attack, source, folder.display)
        if not folder.finished:
            lpips = None if plan.lpips is None else plan.lpips.to(session.device)
            folder.finish(
                *session.measure(
                    folder.display,
                    session.model,
                    attack,
                    attack.provenance,
                    seconds,
                    lpips,
                )
            )
        folder.print()
        _write_more(session, folder, attack)
        print(f"attack: {folder / products[0]}" if products else f"run: {folder.path}")


def _write_more(session: "Session", folder: "RunFolder", attack: "Attack") -> None:
    """Write the images and the colour table that the options ask for."""
    from reidguard.cli.attack_plan import color_table
    from reidguard.evaluation import save_adversarial

    options = session.options
    if options.save_images is not None:
        save_adversarial(
            attack,
            session.dataset,
            options.save_images,
            image_size=options.image_size,
            with_labels=options.with_labels,
            progress=folder.display.phase("saving images"),
        )
        print(f"images: {options.save_images}")
    if options.cube is not None:
        color_table(attack).save_cube(options.cube)
        print(f"colour table: {options.cube}")


app = command(
    "attack",
    run,
    {
        "data and model": (Surrogate,),
        "attack": (Which,),
        "learning": (Names, AttackOptions),
        "evaluation": (Reading, EvaluateOptions, Products),
        MACHINE: (Machine,),
    },
    examples=EXAMPLES,
    epochs="10, misrank 40",
    lr="eps/10, misrank 2e-4",
    identities="8",
    images_per_identity="8, misrank 4",
    momentum="0.5, uap 1",
    clip="yes",
)
