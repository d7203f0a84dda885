"""``reidguard evaluate``."""

from __future__ import annotations

from reidguard.cli import common
from reidguard.cli.options import Options, Parser, pathname
from reidguard.cli.progress import Display
from reidguard.data import load_dataset

EXAMPLES = """\
  a published model:
    reidguard evaluate --data market1501:/data/market1501 --model osnet_x0_25:osnet.pth

  the adversarial images that an attack has saved: their figures are its 8-bit ones
    reidguard evaluate --data market1501:/data/market1501 --model osnet_x0_25:osnet.pth \\
        --query runs/delta/images
"""


def parser(summary: str) -> Parser:
    """Return the command's parser."""
    made = Parser("evaluate", summary, EXAMPLES)
    common.add_victim(made)
    common.add_evaluation(made)
    made.option(
        "--query",
        "take the query images from this folder: one for each query, under its name",
        pathname,
        metavar="DIR",
    )
    common.add_machine(made, out="folder for result.json, result.md and manifest.json")
    return made


def run(options: Options) -> int:
    """Evaluate and print; with ``--out`` also write."""
    device = common.set_up_machine(options)
    dataset = load_dataset(options.data)
    if options.query is not None:
        dataset = dataset.with_query(options.query)
    common.searchable(dataset)
    model = common.make_model(options)
    if options.out is None:
        with Display() as display:
            result = common.measure(options, model.to(device), dataset, None, display)
        print(result.to_markdown() if result is not None else "")
        return 0
    settings = {
        "command": "evaluate",
        "data": common.data_settings(dataset, "query", "gallery"),
        "model": common.model_settings(model),
        "image_size": options.image_size,
        "query_every": options.query_every,
        "device": device.type,
    }
    products = ("result.json", "result.md")
    with common.running(options.out, options, settings, products) as (folder, display):
        if not folder.finished:
            result = common.measure(options, model.to(device), dataset, None, display)
            common.save_result(folder, result)
            folder.finish()
        common.print_result(folder)
        print(f"run: {options.out}")
    return 0
