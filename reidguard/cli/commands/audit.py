"""``reidguard audit``."""

from __future__ import annotations

from reidguard.cli import common
from reidguard.cli.options import (
    Options,
    Parser,
    not_negative,
    positive,
)
from reidguard.cli.progress import Display
from reidguard.evaluation import Protocol, audit
from reidguard.storage import atomic_write, write_json

EXAMPLES = """\
  a hardened model, with the model that it started from to compare transfer with:
    reidguard audit --data market1501:/data/market1501 --model runs/robust/model.safetensors \\
        --surrogate runs/ide/model.safetensors --out runs/audit

  a quick look, without transfer:
    reidguard audit --data market1501:/data/market1501 --model osnet_x0_25:osnet.pth --queries 30

It warns of gradients that are zero, not finite, random, or that do not predict the loss; of a
larger budget that hurts less; and of a perturbation made on another model that hurts more than one
made on this model with equal steps. Silence proves nothing. Warnings are results: the exit code
is 0.

The run folder gets manifest.json, audit.json and audit.md.
"""


def parser(summary: str) -> Parser:
    """Return the command's parser."""
    made = Parser("audit", summary, EXAMPLES)
    common.add_victim(made)
    common.add_surrogate(
        made, "another model, on which transfer is made; without it, none is measured"
    )
    made.section("audit")
    common.add_eps(made, "ball of the gradient checks and of transfer")
    made.option("--attack-steps", "iterations of SMA", positive, metavar="N", default=15)
    made.option(
        "--learning-steps",
        "steps that a universal delta learns, for transfer; 0 leaves it out",
        not_negative,
        metavar="N",
        default=50,
    )
    made.option("--queries", "attack about so many", positive, metavar="N", default=100)
    made.option("--probes", "look at so many gradients", positive, metavar="N", default=8)
    common.add_seed(made)
    common.add_reading(made)
    common.add_machine(made, out="folder for audit.json, audit.md and manifest.json")
    return made


def run(options: Options) -> int:
    """Audit and print; with ``--out`` also write."""
    device = common.set_up_machine(options)
    dataset = common.load_searchable(options)
    model, surrogate = common.make_model(options), common.make_surrogate(options)
    numbers = {
        name: getattr(options, name)
        for name in ("eps", "attack_steps", "learning_steps", "queries", "probes", "seed")
    }
    settings = {
        "command": "audit",
        "data": common.data_settings(dataset, "train", "query", "gallery"),
        "model": common.model_settings(model),
        "surrogate": None if surrogate is None else common.model_settings(surrogate),
        **numbers,
        "image_size": options.image_size,
        "device": device.type,
    }

    def report(display: Display) -> tuple[dict[str, object], str]:
        found = audit(
            model.to(device),
            dataset,
            surrogate=None if surrogate is None else surrogate.to(device),
            **numbers,
            protocol=Protocol(image_size=options.image_size),
            store=common.feature_store(options.cache),
            progress=display.phase("auditing"),
        )
        return found.to_dict(), found.to_markdown()

    if options.out is None:
        with Display() as display:
            _, text = report(display)
        print(text)
        return 0
    products = ("audit.json", "audit.md")
    with common.running(options.out, options, settings, products) as (folder, display):
        if not folder.finished:
            content, text = report(display)
            write_json(folder / "audit.json", content)
            with atomic_write(folder / "audit.md") as temporary:
                temporary.write_text(text, "utf-8")
            folder.finish()
        print((folder / "audit.md").read_text("utf-8"))
        print(f"run: {options.out}")
    return 0
