"""``reidguard autoattack``."""

from __future__ import annotations

import shlex

from reidguard.attacks import Attack, load_attack
from reidguard.cli import common
from reidguard.cli.options import Options, Parser, not_negative, pathname, positive
from reidguard.cli.run_dir import default_folder
from reidguard.evaluation import Protocol, RetrievalAutoAttack
from reidguard.storage import atomic_write, write_json
from reidguard.types import Budget

EXAMPLES = """\
  what is left of a model in the worst case:
    reidguard autoattack --data market1501:/data/market1501 --model osnet_x0_25:osnet.pth \\
        --query-every 8 --out runs/autoattack

  of a hardened one, with all members: a universal attack, and transfer from the normal model
    reidguard autoattack --data market1501:/data/market1501 \\
        --model runs/robust/model.safetensors --universal runs/delta/attack.safetensors \\
        --surrogate runs/ide/model.safetensors

  only robust rank-1, -5, -10, which is far cheaper: broken queries are attacked no further
    reidguard autoattack --data market1501:/data/market1501 --model osnet_x0_25:osnet.pth \\
        --early-stop

Members: self-metric and furthest-negative attacks with adaptive steps, the universal attack and
the surrogate's if they are given, and a black-box search with squares. All are told whom a query
shows. A query is broken where no match is among the first 10 and the average precision is below
0.1. Robust mAP is the mean over queries of the lowest average precision that any member leaves;
robust rank-k the share of queries with a match among the first k whatever is done.

The run folder gets manifest.json, state/ (from which the same command goes on after an
interruption), result.json and result.md.
"""


def parser(summary: str) -> Parser:
    """Return the command's parser."""
    made = Parser("autoattack", summary, EXAMPLES)
    common.add_victim(made)
    made.section("suite")
    common.add_eps(made)
    made.option(
        "--universal",
        "a learnt attack within the budget, as a further member",
        pathname,
        metavar="ATTACK_FILE",
    )
    common.add_surrogate(made, "another model, whose own attack is a further member")
    made.flag(
        "--early-stop",
        "attack broken queries no further; robust mAP is not measured then",
    )
    made.option(
        "--restarts", "random starts of each gradient attack", positive, metavar="N", default=2
    )
    made.option("--steps", "iterations of each", positive, metavar="N", default=100)
    made.option(
        "--squares", "squares that the black-box member tries", positive, metavar="N", default=1000
    )
    made.option(
        "--audit-queries",
        "look for masked gradients on about so many queries; 0 leaves the audit out",
        not_negative,
        metavar="N",
        default=100,
    )
    common.add_seed(made)
    common.add_evaluation(made)
    made.option(
        "--batch-size",
        "queries attacked at a time; the work of one member on so many is lost when interrupted",
        positive,
        metavar="N",
        default=64,
    )
    made.option(
        "--save-images",
        "write the worst 8-bit image of each query there, as PNG under the query's name",
        pathname,
        metavar="DIR",
    )
    common.add_machine(made, out="run folder (default: one below runs/, named after the settings)")
    return made


def run(options: Options) -> int:
    """Attack, and write what is left."""
    device = common.set_up_machine(options)
    universal: Attack | None = None
    if options.universal is not None:
        universal = load_attack(options.universal).to(device)
    dataset = common.load_searchable(options)
    model, surrogate = common.make_model(options), common.make_surrogate(options)
    suite = RetrievalAutoAttack(
        Budget(options.eps),
        universal=universal,
        surrogate=None if surrogate is None else surrogate.to(device),
        restarts=options.restarts,
        steps=options.steps,
        squares=options.squares,
        seed=options.seed,
    )
    settings = {
        "command": "autoattack",
        "suite": suite.config(),
        "early_stop": options.early_stop,
        "audit_queries": options.audit_queries,
        "batch_size": options.batch_size,
        "data": common.data_settings(dataset, "query", "gallery"),
        "model": common.model_settings(model),
        "image_size": options.image_size,
        "query_every": options.query_every,
        "device": device.type,
    }
    out = options.out or default_folder("autoattack", dataset.name, settings)
    products = ("result.json", "result.md")
    with common.running(out, options, settings, products) as (folder, display):
        if not folder.finished or options.save_images is not None:
            result = suite.run(
                model.to(device),
                dataset,
                Protocol(image_size=options.image_size),
                early_stop=options.early_stop,
                audit_queries=options.audit_queries,
                state=folder / "state",
                images=options.save_images,
                store=common.feature_store(options.cache),
                batch_size=options.batch_size,
                query_every=options.query_every,
                progress=display,
            )
        if not folder.finished:
            command = f"`{shlex.join(folder.manifest['command'])}`\n"
            write_json(folder / "result.json", result.to_dict())
            with atomic_write(folder / "result.md") as temporary:
                temporary.write_text(f"{result.to_markdown()}\n{command}", "utf-8")
            folder.finish()
        common.print_result(folder)
        if options.save_images is not None:
            print(f"images: {options.save_images}")
        print(f"run: {out}")
    return 0
