"""Write the docs' pages of results from results/*.json: python benchmarks/page.py."""

import csv
import io
import itertools
import json
import re
import statistics
import textwrap
from pathlib import Path

from common import RESULTS

from benchmarks.paper import paper_figures, paper_tables
from reidguard.report import board_rows, board_table, read_cards

WHERE_DRAWN = (
    "The picture is the top of the page that ``python -m benchmarks.paper`` draws "
    "(``docs/images/draw_paper_figures.py``)."
)
DOCS = Path(__file__).parents[1] / "docs"
BEGIN, END = ".. The next table is written by page.py.\n", ".. End of what page.py writes.\n"

# The paper's claims: a description, the tables that show them, and the conditions compared.
PLAIN = {"meta": False, "extra": "none"}
META = {"meta": True, "extra": "PersonX"}
HARD = {"defense": "M(color+delta)"}
CLAIMS = (
    ("meta-learning an attack, on its source", (1,), META, PLAIN),
    ("on another network", (2,), META, PLAIN),
    ("on another dataset", (3,), META, PLAIN),
    ("on another network and dataset", (4,), META, PLAIN),
    (
        "color + delta in place of delta",
        (1, 2, 3, 4),
        {"attack": "color+delta"},
        {"attack": "delta"},
    ),
    (
        "M(color+delta) in place of the undefended network, clean",
        (13,),
        HARD | {"attack": "none"},
        {"defense": "none"},
    ),
    ("under a color, delta or color+delta attack", (13,), HARD | META, {"defense": "none"}),
    ("under MisRank, SMA or UAP", (13,), HARD | PLAIN, {"defense": "none"}),
    ("M(color+delta) in place of adversarial training", (17,), HARD, {"defense": "adversarial"}),
    ("in place of mixed training", (17,), HARD, {"defense": "mixed"}),
    (
        "both losses in place of the triplet loss",
        (18,),
        HARD,
        {"defense": "M(color+delta), triplet only"},
    ),
    ("in place of the identity loss", (18,), HARD, {"defense": "M(color+delta), identity only"}),
)


def load(name):
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else None


def listing(head, rows) -> str:
    lines = io.StringIO()
    csv.writer(lines, lineterminator="\n").writerows([head, *rows])
    return ".. csv-table::\n   :header-rows: 1\n\n" + textwrap.indent(lines.getvalue(), "   ")


def title(text, line="-") -> str:
    return f"{text}\n{line * len(text)}\n"


def prose(text) -> str:
    return textwrap.fill(" ".join(text.split()), 100, break_long_words=False) + "\n"


def spread(pair) -> str:
    return f"{pair[0]:.1f} ± {pair[1]:.1f}"


def attacks(data) -> list[str]:
    clean, rows = data["clean"], data["summary"]
    joint = [r for r in data["rows"] if r["attack"] == "combinatorial, joint"]
    sizes = {
        part: ", ".join(f"{r['mean_levels'][part]:.1f}" for r in joint)
        for part in ("color", "delta")
    }
    return [
        title("Attacks on real data"),
        prose(f"""OSNet x0.25 with its published weights, Market-1501 (3,368 queries, gallery
15,913): mAP
{clean["mAP"]:.1f}, rank-1 {clean["rank1"]:.1f} clean. Each attack learns from training images
only, in 100
steps of 8 identities × 4 images (``fit(steps=100, images_per_identity=4)``, defaults otherwise),
with three seeds; mean ± sample standard deviation. L∞ in grey levels, maximum over all
queries
and seeds.
"""),
        listing(
            [
                "attack",
                "mAP",
                "rank-1",
                "mAP, 8-bit",
                "rank-1, 8-bit",
                "L∞ float / 8-bit",
                "s/step",
            ],
            [
                [
                    s["attack"],
                    *(spread(s[k]) for k in ("mAP_float", "rank1_float", "mAP_8bit", "rank1_8bit")),
                    f"{s['linf_float']:.2f} / {s['linf_8bit']:.0f}",
                    f"{s['seconds_per_step']:.2f}",
                ]
                for s in rows
            ],
        ),
        prose(f"""Seconds were measured on a busy two-core machine. In the joint attack both stages
are active: mean
``|f(x) − x|`` {sizes["color"]} and mean ``|δ|`` {sizes["delta"]} grey levels (one value per
seed). The stacked
attack reaches 16/255: compare it with δ at 16/255, not with the others.
"""),
    ]


def parametrisations(data) -> list[str]:
    rows = []
    for name in dict.fromkeys(r["attack"] for r in data["rows"]):
        mine = [r for r in data["rows"] if r["attack"] == name]
        levels = mine[0].get("mean_levels")
        rows.append(
            [
                name,
                ", ".join(f"{r['float']['mAP']:.1f}" for r in mine),
                ", ".join(f"{r['float']['rank1']:.1f}" for r in mine),
                f"{levels['color']:.1f} / {levels['delta']:.1f}" if levels else "–",
            ]
        )
    return [
        title("Colour and delta under one ε"),
        prose(f"""Ways to combine both stages at ε = 8/255, same steps, on every
{data["query_every"]}th query (clean mAP
{data["clean"]["mAP"]:.2f}), one value per seed. The choice of this library, both stages up to ε
and the true gradient of the
clip, is the joint attack of the table above. Stage sizes are mean grey levels.
"""),
        listing(["parametrisation", "mAP", "rank-1", "colour / δ"], rows),
    ]


def instance(data) -> list[str]:
    rows = []
    for r in sorted(data["rows"], key=lambda r: r["query_every"]):
        a, b = r["float"], r["8bit"]
        rows.append(
            [
                r["attack"],
                f"{r['queries']}",
                f"{a['mAP']:.1f} / {a['rank1']:.1f}",
                f"{b['mAP']:.1f} / {b['rank1']:.1f}",
                f"{a['linf_levels']:.2f} / {b['linf_levels']:.0f}",
                "–" if a["ssim"] is None else f"{a['ssim']:.2f}",
                f"{r['forward']:.0f} / {r['backward']:.0f}",
                f"{r['seconds_per_query']:.1f}",
            ]
        )
    head = ["attack", "queries", "mAP / rank-1", "8-bit", "L∞ ·255 / 8-bit", "SSIM"]
    clean = "; ".join(
        f"one in {every} ({c['queries']}; clean {c['mAP']:.1f} / {c['rank1']:.1f})"
        for every, c in sorted(data["clean"].items(), key=lambda item: int(item[0]))
    )
    parts = [
        title("Instance attacks"),
        prose(f"""{data["setting"]}. Of the queries {clean}. Guides are the gallery; *with labels*:
the
attack is given the ground-truth identity of each query. Passes are forward / backward per query,
without the two of the evaluation; seconds are wall time per query, on one CPU thread of a busy
machine.
"""),
        listing([*head, "passes", "s"], rows),
    ]
    for suite in (r for r in data["rows"] if "members" in r):
        broken = [100 * suite["broken"][kind] for kind in ("robust", "robust_8bit")]
        members = [
            [
                m["name"],
                m["broken"],
                m["first"],
                "–" if m["mAP"] is None else f"{100 * m['mAP']:.1f}",
            ]
            for m in suite["members"]
        ]
        parts += [
            prose(f"""Under retrieval-autoattack {broken[0]:.1f} % of the queries are broken
({broken[1]:.1f} % as 8-bit images; :doc:`autoattack` defines it). Its members:
"""),
            listing(["member", "broken alone", "broken first", "mAP alone"], members),
        ]
    return parts


def meta(data) -> list[str]:
    lines = data["summary"]
    models = [k.removesuffix(" mAP") for k in lines[0] if k.endswith(" mAP")]
    clean = [
        [n, c["data"], c["query_every"], f"{c['mAP']:.1f}", f"{c['rank1']:.1f}"]
        for n, c in data["clean"].items()
    ]
    rows = []
    for s in lines:
        cells = [s["attack"], s["learner"], len(s["seeds"])]
        cells.append(f"{s.get('processor_seconds_per_step', float('nan')):.2f}")
        for name in models:
            cells += [spread(s[f"{name} mAP"]) if f"{name} mAP" in s else "–"]
            cells += [spread(s[f"{name} rank1"]) if f"{name} rank1" in s else "–"]
        rows.append(cells)
    head = ["attack", "learner", "seeds", "s/step"]
    for name in models:
        head += [f"{name}: mAP", "rank-1"]
    angles = data["cosines"]
    names = list(angles[0]["to_maml"]) if angles else []
    return [
        title("Meta-learning on real data"),
        prose(f"""{data["setting"]}; strict ε = 8/255. Learnt on OSNet x0.25 (*source*). All
learners make the same number of outer steps. Mean ± sample standard deviation over seeds (± 0.0
with one seed); seconds are processor time, one thread, per step. The attacked models, on clean
queries:
"""),
        listing(["model", "dataset", "every n-th query", "mAP", "rank-1"], clean),
        prose("""The other models are IDEs with a ResNet-18, trained from scratch, at 128×64:
``reidguard train --model ide --model-set backbone=resnet18 --model-set size=128x64 --image-size
128x64`` with ``--data market1501:… --epochs 15`` or ``--data virtual:campus --identities 8
--images-per-identity 4 --steps 450 --lr 1e-3``.
"""),
        "Under attack:\n",
        listing(head, rows),
        prose("""Mean cosine of each learner's gradient to that of ``maml``, at the same
parameters and batches (after
20 plain steps, 5 pairs of batches), and the fraction of its second-order term in ``maml``'s
gradient:
"""),
        listing(
            ["attack", *names, "second-order fraction"],
            [
                [
                    a["attack"],
                    *(f"{a['to_maml'][n]:.3f}" for n in names),
                    a["second_order_share_of_maml"],
                ]
                for a in angles
            ],
        ),
    ]


def settings(data) -> list[str]:
    clean = [
        [c["model"], c["dataset"], c["query_every"], f"{c['mAP']:.1f}", f"{c['rank1']:.1f}"]
        for c in data["clean"].values()
    ]
    columns = ("plain", "joint", "maml")
    rows = []
    for line in data["summary"]:
        cells = [line["source"], line["attack"], line["setting"]]
        cells += [spread(line[c]) if line[c] else "–" for c in columns]
        for base in ("plain", "joint"):
            pair = line[f"maml - {base}"]
            cells.append(f"{pair[0]:+.1f} ± {pair[1]:.1f}" if pair else "–")
        rows.append(cells)
    seeds = len({r["seed"] for r in data["rows"]})
    head = ["learnt on", "attack", "setting", *columns, "maml − plain", "maml − joint"]
    return [
        title("Meta-learning in the four settings"),
        prose(f"""{data["setting"]}; strict ε = 8/255. Each network has two versions: trained on
Market-1501, and from there trained further on virtual:campus. Attacks are learnt on the version of
Market-1501 and transferred to all others. Clean queries:
"""),
        listing(["model", "dataset", "every n-th query", "mAP", "rank-1"], clean),
        prose(f"""mAP under attack: mean ± sample standard deviation over {seeds} seeds, where
cross-model settings are means over the two other networks. ``joint`` uses the same images as
``maml`` without meta-learning. Differences are per seed; where they are negative, meta-learning
made
the attack stronger.
"""),
        listing(head, rows),
        prose("""OSNet x0.25 has its published weights for Market-1501 at 256×128. The others were
trained from scratch, at 128×64: OSNet x0.5 by ``reidguard train --model osnet_x0_5 --model-set
size=128x64 --image-size 128x64 --recipe agw --steps 3000 --lr 2e-3``, the RegNet by ``--model ide
--model-set backbone=regnetx_002 --epochs 10 --lr 1e-3``. On virtual:campus they were trained
further with
``--identities 8 --images-per-identity 4`` and ``--steps 300 --lr 5e-4`` (OSNet x0.25), ``--recipe
agw --steps 400 --lr 5e-4`` (x0.5) and ``--recipe agw --steps 600 --lr 2e-4`` (RegNet).
"""),
    ]


def backbones(data) -> list[str]:
    def cell(found) -> str:
        if not found["works"]:
            return "no"
        return f"{found['cosine_to_exact']:.3f}" if "cosine_to_exact" in found else "yes"

    sides, learners = ("attack", "defense"), ("first_order", "hessian_free", "exact")
    rows = [
        [row["model"], *(cell(row[side][name]) for side in sides for name in learners)]
        for row in data["rows"]
    ]
    missing = {
        row["model"]: row["attack"]["exact"]["why"].rpartition("(")[2].partition(" ")[0]
        for row in data["rows"]
        if not row["attack"]["exact"]["works"]
    }
    reasons = "; ".join(f"{name}: ``{reason}``" for name, reason in missing.items())
    return [
        title("Learners on backbones"),
        prose(f"""One step of an attack and one of a defense with each learner, on networks with
random weights ({data["setting"]}). "exact" is ``maml``, attention included. Where the
learner works, a number is the cosine of its gradient to the exact one; it holds only for these tiny
random batches, in which batch norms make a defense's second-order term large. "no" is an
error that names the other two learners. Operations without a second derivative: {reasons}.
"""),
        listing(["network", *(f"{s}: {n}" for s in sides for n in learners)], rows),
    ]


def adapters(data) -> list[str]:
    rows = [
        [
            r["way"],
            f"{r['mAP']:.4f}",
            f"{r['rank1']:.4f}",
            "same bits" if r["same_bits"] else f"{r['largest_difference']:.0e}",
        ]
        for r in data["rows"]
    ]
    return [
        title("One network through every adapter"),
        prose(f"""OSNet x0.25 with its published weights, read in each way that the library
supports,
Market-1501 clean, every {data["query_every"]}th query ({data["queries"]}), the whole gallery. The
last column compares the features of these queries with those of the first row: the largest
difference of a component, at length 1.
"""),
        listing(["way", "mAP", "rank-1", "features"], rows),
    ]


def variations(data) -> list[str]:
    models = list(data["clean"])
    rows = []
    for variant in dict.fromkeys(r["variant"] for r in data["rows"]):
        mine = [r for r in data["rows"] if r["variant"] == variant]
        cells = [variant, len(mine)]
        for name in models:
            found = [r["measured"][name]["float"] for r in mine if name in r["measured"]]
            for figure in ("mAP", "rank1"):
                mean = sum(m[figure] for m in found) / len(found) if found else None
                cells.append("–" if mean is None else f"{mean:.1f}")
        rows.append(cells)
    head = ["variant", "seeds"]
    for name in models:
        head += [f"{name}: mAP", "rank-1"]
    clean = [
        [n, c["data"], c["query_every"], f"{c['mAP']:.1f}", f"{c['rank1']:.1f}"]
        for n, c in data["clean"].items()
    ]
    return [
        title("What the paper leaves open"),
        prose(f"""Variations of {data["setting"]}, learner "plain", "first_order" (*meta*) or
"joint": a longer inner step, more of them, a meta-test set of three virtual domains (plaza,
station, mall) in place of one, and variations of the mining of Eq. 5. The models, clean:
"""),
        listing(["model", "dataset", "every n-th query", "mAP", "rank-1"], clean),
        prose(f"""{TARGETS} campus_resnet18 (2) is a second run of the same training. A dash: not
measured on that model.
"""),
        listing(head, rows),
    ]


TARGETS = """The models other than the source were trained from scratch at 128×64 by ``reidguard
train
--model ide --image-size 128x64 --model-set size=128x64``: market_resnet18 with ``--model-set
backbone=resnet18 --epochs 15``, market_regnetx with ``--model-set backbone=regnetx_002 --lr 1e-3
--epochs 10``, and campus_resnet18 on ``virtual:campus`` with ``--model-set backbone=resnet18
--identities 8 --images-per-identity 4 --steps 450 --lr 1e-3``."""


def transfer(data) -> list[str]:
    models = list(data["clean"])
    clean = [
        [n, c["data"], c["query_every"], f"{c['mAP']:.1f}", f"{c['rank1']:.1f}"]
        for n, c in data["clean"].items()
    ]
    rows = []
    for name in dict.fromkeys(r["variant"] for r in data["rows"]):
        mine = [r for r in data["rows"] if r["variant"] == name]
        cost = sum(r["processor_seconds_per_step"] for r in mine) / len(mine)
        cells = [name, len(mine), f"{cost:.1f}"]
        for model in models:
            found = [r["measured"][model]["float"] for r in mine]
            means = (sum(m[key] for m in found) / len(found) for key in ("mAP", "rank1"))
            cell = " / ".join(f"{mean:.1f}" for mean in means)
            seen = name.startswith("two surrogates") and model.startswith("campus")
            cells.append(f"({cell})" if seen else cell)
        rows.append(cells)
    return [
        title("What helps a perturbation transfer"),
        prose(f"""Variants of {data["setting"]}, each attack learnt on the source alone or, with
two surrogates, on the source and campus_resnet18; campus_resnet18 is then not an unseen model, so
its
column is in brackets there. The models, clean:
"""),
        listing(["model", "dataset", "every n-th query", "mAP", "rank-1"], clean),
        prose(
            f"{TARGETS} Under attack, mAP / rank-1, mean over seeds; seconds are processor time:"
        ),
        listing(["variant", "seeds", "s/step", *models], rows),
    ]


def left_out(data) -> list[str]:
    """Universal attacks on networks that took no part in learning them."""
    targets = list(data["clean"])

    def learnt_on(row) -> str:
        if not row["surrogates"]:
            return "nothing"
        if row["recipe"].startswith("ceiling"):
            return "the target itself"
        return {1: "one other", 2: "two others"}.get(len(row["surrogates"]), "all others")

    def cells(found) -> list[str]:
        result = []
        for target in targets:
            mine = [row["attacked"] for row in found if row["target"] == target]
            means = (sum(values) / len(mine) for values in zip(*mine, strict=True))
            result.append(" / ".join(f"{mean:.1f}" for mean in means))
        return result

    clean = [f"{mean:.1f} / {rank_1:.1f}" for mean, rank_1 in data["clean"].values()]
    rows = [["none", "", *clean]]
    usual = statistics.mode(row["steps"] for row in data["rows"] if "steps" in row)
    by_name = {}
    for row in data["rows"]:
        name = row["recipe"].removeprefix("ceiling: ")
        if row.get("steps", usual) != usual:
            name += f", {row['steps']} steps"
        by_name.setdefault((name, learnt_on(row)), []).append(row)
    order = ["nothing", "one other", "two others", "all others", "the target itself"]
    for (name, source), found in sorted(by_name.items(), key=lambda item: order.index(item[0][1])):
        rows.append([name, source, *cells(found)])
    every = data["setting"]["query_every"]
    return [
        title("Networks that an attack never saw"),
        prose(f"""mAP / rank-1 of 8-bit images at ε = 8/255, one query in {every} of Market-1501
against the whole gallery; attacks are learnt in {usual} steps of 32 images unless a row says
otherwise, each column on other networks than its own (``benchmarks/left_out.py``): osnet is OSNet
x0.25, 0031, 0248 and 0288 are of the Open Model Zoo, mobilenet is a MobileNetV2 with ImageNet
weights fine-tuned at 128×64, osnet_x0_5 was learnt on MSMT17. "One other" is OSNet x0.25 (0031
where osnet is the target), "all others" are three or four. 0288 and osnet_x0_5, where they have a
column, took part in no choice. What an attack reaches that is learnt on the target itself, in as
many steps, is a ceiling for the others. SMA is computed for each image on the mean distance of all
surrogates. One seed, so differences of a few points mean little.
"""),
        listing(["attack", "learnt on", *targets], rows),
    ]


def universal(data) -> list[str]:
    rows = []
    for r in data["rows"]:
        a, b = r["float"], r["8bit"]
        rows.append(
            [
                r["attack"],
                r["seed"],
                r["steps"],
                f"{a['mAP']:.1f} / {a['rank1']:.1f}",
                f"{b['mAP']:.1f} / {b['rank1']:.1f}",
                f"{a['linf_levels']:.2f} / {b['linf_levels']:.0f}",
                f"{a['ssim']:.2f}",
                f"{r['processor_seconds']:.0f}",
            ]
        )
    return [
        title("Universal attacks"),
        prose(f"""{data["setting"]}, every {data["query_every"]}th query (clean
{data["clean"]["mAP"]:.1f} / {data["clean"]["rank1"]:.1f}); learnt on the source itself, with
defaults or as named. MisRank's own schedule is 40 epochs at width 32. Applying an attack needs no
forward pass, except of MisRank's generator.
Seconds are the processor time of all training steps.
"""),
        listing(
            ["attack", "seed", "steps", "mAP / rank-1", "8-bit", "L∞ ·255 / 8-bit", "SSIM", "s"],
            rows,
        ),
    ]


def budgets(data) -> list[str]:
    sizes = sorted({r["eps"] for r in data["rows"]})
    rows = []
    for name in dict.fromkeys(r["attack"] for r in data["rows"]):
        found = {r["eps"]: r["float"] for r in data["rows"] if r["attack"] == name}
        rows.append([name, *(f"{found[e]['mAP']:.1f} / {found[e]['rank1']:.1f}" for e in sizes)])
    return [
        title("Budgets"),
        prose(f"""{data["setting"]}. Every {data["query_every"]}th query (clean
{data["clean"]["mAP"]:.1f} / {data["clean"]["rank1"]:.1f}), mAP / rank-1 at ε in grey levels, as in
the paper's Table 8:
"""),
        listing(["attack", *map(str, sizes)], rows),
    ]


def defenses(data) -> list[str]:
    lines = data["summary"]
    families = ("color", "delta", "combinatorial")
    keys = ["clean"]
    keys += [f"{f}, {way}" for way in ("transfer", "adaptive") for f in families] + ["SMA"]
    rows = []
    for line in lines:
        cells = [line["model"], len(line["seeds"])]
        for key in keys:
            known = f"{key} mAP" in line
            pair = (spread(line[f"{key} mAP"]), spread(line[f"{key} rank1"])) if known else ("–",)
            cells.append(" / ".join(pair))
        rows.append([*cells, f"{line['domain_cosine']:.2f}"])
    return [
        title("Defenses on real data"),
        prose(f"""{data["setting"]}. Every {data["query_every"]}th query, mAP / rank-1, mean ±
sample standard deviation over seeds (± 0.0 with one). *transfer*: learnt on the undefended model,
with
another seed than the attack in training. *adaptive*: learnt on the model itself, with the same
learner and steps; for the undefended model both are the same. SMA attacks the model itself.
The last column is the cosine of the gradients of the two domains' losses at the final weights,
without the classifiers.
"""),
        listing(["model", "seeds", *keys, "cosine"], rows),
    ]


def hardening(data) -> list[str]:
    out = [
        title("Ways to harden a model"),
        prose(f"""{data["setting"]}. Every {data["query_every"]}th query, 8-bit images, mAP /
rank-1, mean ± sample standard deviation over seeds (± 0.0 with one). *transfer*: learnt on the
undefended model. *universal*: the worst of delta, blocks, color and combinatorial attacks and
their restarts, learnt on the model itself. SMA and FNA attack the model itself, FNA with the true
identities.
"longer" has the same steps without an attack. CPU: processor seconds of a step.
"""),
        hardened(data),
    ]
    if smaller := load("hardening_4"):
        out += [prose(f"The same at half of it: {smaller['setting']}."), hardened(smaller)]
    return out


def hardened(data) -> str:
    keys = ["clean", "delta, transfer", "universal", "SMA", "FNA"]
    rows = []
    for line in data["summary"]:
        cells = [line["method"], len(line["seeds"]), line.get("processor_seconds_per_step", "–")]
        for key in keys:
            known = f"{key} mAP" in line
            pair = (spread(line[f"{key} mAP"]), spread(line[f"{key} rank1"])) if known else ("–",)
            cells.append(" / ".join(pair))
        rows.append(cells)
    return listing(["method", "seeds", "CPU", *keys], rows)


def inner_steps(data) -> list[str]:
    rows = [
        [
            family,
            r["inner"],
            f"{r['train']:.3f}",
            f"{r['test']:.3f}",
            r.get("second_order_share", "–"),
        ]
        for family, steps in data["steps"].items()
        for r in steps
        if family != "defense"
    ]
    defense_rows = [
        [
            r["inner"],
            f"{r['train']:.3f}",
            f"{r['test']:.3f}",
            r.get("second_order_share", "–"),
            r.get("cosine_to_mixed", "–"),
        ]
        for r in data["steps"].get("defense", [])
    ]
    return [
        title("Inner steps"),
        prose(f"""One inner step of each kind, after 10 plain steps of an attack
({data["setting"]}, Market-1501 and
virtual people): the losses after it, and the fraction of the second-order term in ``maml``'s
gradient.
"sgd" is literally Algorithm 1, "sign" the released code's; "scaled" is the default here.
"""),
        listing(["attack", "inner step", "meta-train loss", "meta-test loss", "fraction"], rows),
        prose("""The same for ``MetaDefense`` after 20 steps of mixed training with images of that
delta attack, and the cosine of ``maml``'s gradient to that of mixed training. "sgd" at the outer
learning rate is Algorithm 2, and the default:
"""),
        listing(
            ["inner step", "meta-train loss", "meta-test loss", "fraction", "cosine to mixed"],
            defense_rows,
        ),
    ]


def learners(data) -> list[str]:
    rows = [
        [m["model"], name, f"{r['seconds']:.2f}", f"{r['times_plain']:.2f}", r["mib"]]
        for m in data["step"]
        for name, r in m["learners"].items()
    ]
    return [
        prose("""One step of every learner compared with the plain one: of a combinatorial attack on
32 + 32 images of 256×128, and of the training of an IDE in a defense, on 32 clean and 16
adversarial images of each domain (the paper's Table 19: 2.9 and 8.7 times plain, per epoch).
Memory is the growth of the process's peak in its first step:
"""),
        listing(["model", "learner", "seconds", "times plain", "MiB"], rows),
    ]


def speed(data) -> list[str]:
    look_up = data["color_lookup"]
    parts = ("delta", "color", "joint")
    return [
        prose("""One plain step (32 images of 256×128, cached clean features, frozen weights) in
forward passes of the
same batch:
"""),
        listing(
            ["model", "delta", "colour", "joint"],
            [
                [r["model"], *(r["forward_passes_per_step"][k] for k in parts)]
                for r in data["plain_step"]
            ],
        ),
        prose(f"""Colour look-up of 64 images of 256×128, forward and backward:
{look_up["ratio"]:.2f} of the time of
code that gathers the eight corners ({look_up["ours_s"]:.2f} s and {look_up["gather_s"]:.2f} s).
"""),
    ]


def ranking(data) -> list[str]:
    memory = ", ".join(
        f"{v:.0f} MiB for a gallery of {int(k):,}" for k, v in data["memory_mib"].items()
    )
    return [
        prose("""Ranking 3,368 × 15,913 features of 2048 components, compared with their matrix
product
alone:
"""),
        listing(
            ["features", "metric", "ratio", "seconds"],
            [[r["features"], r["metric"], r["ratio"], r["rank_s"]] for r in data["speed"]],
        ),
        f"Extra memory: {memory}.\n",
    ]


def checkpoints(data) -> list[str]:
    head = ["file", "from", "format", "is", "mAP", "rank-1", "attack", "mAP", "rank-1"]
    rows = []
    for row in data["rows"]:
        found = row["identified"]
        name = found["architecture"]
        if not found["exact"]:
            name = f"near {name} ({100 * found['matched']:.0f} %)"
        trained = f", {found['identities']} identities" if found["identities"] else ""
        attacked = [f"{value:.1f}" for value in row["attacked"]]
        clean = [f"{value:.1f}" for value in row["clean"]]
        start = [row["file"], row["source"], found["format"], name + trained]
        rows.append([*start, *clean, row["attack"], *attacked])
    every = data["rows"][0]["query_every"]
    return [
        title("Checkpoints of other people"),
        prose(f"""Files of public repositories and model zoos: what ``reidguard identify`` says
they are, mAP and rank-1 on Market-1501 (full protocol), and the same at ε = 8/255 with 8-bit
images, of every {every}nd query in the whole gallery. SMA is computed on the network itself; where
an operation has no translation to torch, Square only queries features. "Near" names the registered
model with the most weights in common, and how many of its numbers the file has."""),
        listing(head, rows),
    ]


def board() -> str | None:
    """The table of the cards in results/board/; None without cards."""
    folder = RESULTS / "board"
    if not any(folder.glob("*.json")):
        return None
    table = board_table(board_rows(read_cards([folder])))
    return listing(table.header, [["–" if c is None else c for c in row] for row in table.rows])


def protocols(data) -> list[str]:
    sizes = ", ".join(
        f"{size['mib']:,} MiB and {size['cpu_s']:.0f} s of processor time for {size['gallery']:,}"
        for size in data["memory"]
    )

    def yes(flag):
        return "yes" if flag else "–"

    return [
        title("Re-ranking, mirror images, several query images"),
        prose("""OSNet x0.25 with its published weights, Market-1501, all 3,368 queries, clean.
Several images of a query are those of its identity by its camera in ``gt_bbox``. Seconds are those
of the ranking.
"""),
        listing(
            ["mirror images", "several images", "re-ranked", "mAP", "rank-1", "mINP", "seconds"],
            [
                [*(yes(row[name]) for name in ("flip", "multi_query", "rerank")), row["mAP"],
                 row["rank1"], row["mINP"], row["ranking_s"]]
                for row in data["rows"]
            ],
        ),
        prose(f"""Re-ranking 3,368 queries among clusters of features of 512 components takes,
beyond the features: {sizes} gallery images.
"""),
    ]  # fmt: skip


def galleries(data) -> list[str]:
    names = {"osnet": "OSNet x0.25", "random": "random"}
    smaller = (load("galleries_small") or {"rows": []})["rows"]
    rows = [*data["rows"], *(r for r in smaller if r["features"] != "osnet")]
    page = [
        prose(f"""Ranking 3,368 queries in galleries of mapped files, 512 components, beside the
bare matrix products in turns, with {data["threads"]} thread(s); medians. Random features are the
worst case, as after a strong attack: all matches lie where the gallery is densest.
"""),
        listing(
            ["features", "gallery", "product, s", "ranking, s", "ratio", "least–largest", "MiB"],
            [
                [
                    names[r["features"]],
                    f"{r['gallery']:,}",
                    r["product_s"],
                    r["rank_s"],
                    r["ratio"],
                    "–".join(map(str, r["ratios"])),
                    r["extra_mib"],
                ]
                for r in rows
            ],
        ),
    ]
    others = ("faiss_l2_s", "faiss_ip_s", "torchreid_s", "fastreid_s")
    compared = [r for r in smaller if any(name in r for name in others)]
    if compared:
        page += [
            prose("""Seconds of other programs beside it, in one run: the 100 nearest images by
faiss, and the rankings of torchreid and fast-reid in Python."""),
            listing(
                ["gallery", "rank", "faiss L2", "faiss IP", "torchreid", "fast-reid"],
                [
                    [f"{r['gallery']:,}", r["rank_s"], *(r.get(name, "") for name in others)]
                    for r in compared
                ],
            ),
        ]
    return page


def lists(data) -> list[str]:
    rows = [
        [f"{r['gallery']:,}", f"{r['top_k']:.3f}", f"{r['fill']:.3f}", f"{r['search']:.3f}"]
        for r in data["rows"]
    ]
    equal = min(r["same_lists"] for r in data["rows"])
    return [
        prose(f"""The 100 nearest images of {data["queries"]} queries, as for the rank lists of a
report, by ``top_k`` and by a flat index of faiss, which is filled first; processor seconds,
{data["threads"]} thread(s). The lists of {equal} of the queries have the same images."""),
        listing(["gallery", "top_k", "faiss, fill", "faiss, search"], rows),
    ]


def imports(data) -> list[str]:
    return [
        "Seconds of a new process, medians of turns:\n",
        listing(
            ["call", "seconds", "least–largest", "CPU seconds"],
            [
                [r["call"], r["seconds"], "–".join(map(str, r["range"])), r["cpu_seconds"]]
                for r in data["rows"]
            ],
        ),
    ]


def certificates(data) -> list[str]:
    ranks = ("rank_1", "rank_5", "rank_10")
    rows = []
    for row in data["rows"]:
        sigma = row["certified"]["sigma"]
        for label, values in [
            ("without noise", row["clean"]),
            ("smoothed", row["smoothed"]),
            *((f"certified, r = {p['radius']:.3f}", p) for p in row["curve"][:-1:4]),
        ]:
            rows.append([f"{sigma:g}", label, *(f"{100 * values[rank]:.1f}" for rank in ranks)])
    return [
        title("Certificates"),
        prose(f"""Certified rank-k by randomised smoothing (:doc:`certify`) of OSNet x0.25 with its
published weights, which have never seen noise, on Market-1501: {data["queries"]} queries (one in
{data["query_every"]}), {data["draws"]} noise draws each, α = {data["alpha"]:g} for each query. r is
an L2 radius in [0, 1] pixel units of the 256×128 image. With {data["queries"]} queries a fraction
has a standard error of up to 7 points."""),
        listing(["σ", "ranking", "rank-1", "rank-5", "rank-10"], rows),
    ]


def detection(data) -> list[str]:
    attacks = list(data["auc"])
    scores = list(next(iter(data["auc"].values())))
    rows = [[score, *(f"{data['auc'][a][score]:.3f}" for a in attacks)] for score in scores]
    rankings = data["rankings"]
    rows += [
        [f"{label} in %", *(f"{100 * rankings[a][key]:.1f}" for a in attacks)]
        for label, key in (("mAP", "mAP"), ("rank-1", "rank_1"))
    ]
    return [
        title("Detection"),
        prose(f"""AUC of the scores of :doc:`detection` between clean and attacked queries: OSNet
x0.25, Market-1501, {data["queries"]} queries (one in {data["query_every"]}), ε = 8/255, 8-bit
images. SMA and the adaptive attack, which lowers all five scores together, take {data["steps"]}
steps. Clean mAP {100 * rankings["clean"]["mAP"]:.1f}, rank-1
{100 * rankings["clean"]["rank_1"]:.1f}; the last rows are those of the attacked queries. With so
few queries an AUC near 0.5 has a standard error of {auc_error(data["queries"]):.2f}."""),
        listing(["AUC of", *attacks], rows),
        prose(f"""The adaptive attack on a detector of one score alone, with weight
{data["alone"]["weight"]:g} and as many steps:"""),
        listing(
            ["score", "AUC", "mAP in %", "rank-1 in %"],
            [
                [name, f"{r['auc']:.3f}", f"{100 * r['mAP']:.1f}", f"{100 * r['rank_1']:.1f}"]
                for name, r in data["alone"]["scores"].items()
            ],
        ),
        prose("""Not measured: other models, other ε, more steps or restarts, the score
``agreement``, which needs a second model, and the rate of false alarms of a threshold."""),
    ]


def auc_error(count) -> float:
    """Standard error of an AUC near 0.5, of as many independent clean as attacked queries."""
    return ((2 * count + 1) / (12 * count**2)) ** 0.5


def precision(data) -> list[str]:
    cost = data["cost"]
    maps = ", ".join(f"{100 * value:.2f} in {name}" for name, value in cost["mAP"].items())
    rows = [
        [model, kind, name, entry["ratio"], "–".join(map(str, entry["ratios"]))]
        for model, figures in data["speed"].items()
        for kind in ("features", "step")
        for name, entry in figures[kind].items()
        if name != "float32"
    ]
    return [
        prose(f"""CPU seconds with bfloat16 autocast and torch.compile beside float32, in turns,
after the first call. mAP of OSNet x0.25 on Market-1501, every {cost["query_every"]}th query and
every {cost["gallery_every"]}th gallery image: {maps}."""),
        listing(["model", "what", "variant", "ratio", "least–largest"], rows),
    ]


def extraction(data) -> list[str]:
    plain = {r["model"]: r["forward_cpu_s"] for r in data["rows"] if not r["huge_pages"]}
    threads = ", ".join(sorted({str(row["threads"]) for row in data["rows"]}))
    rows = [
        [
            row["model"],
            f"{row['images']} × {row['turns']}",
            "2 MiB" if row["huge_pages"] else "4 KiB",
            f"{1000 * row['forward_cpu_s'] / row['images']:.1f}",
            f"{100 * row['forward_system_s'] / row['forward_cpu_s']:.0f} %",
            f"{1 + row['decode_ratio']:.2f}",
            f"{row['ratio']:.2f}",
            "–".join(f"{value:.2f}" for value in row["ratios"]),
            f"{row['cpu_ratio']:.2f}",
            f"{row['extraction_cpu_s'] / plain[row['model']]:.2f}",
        ]
        for row in data["rows"]
    ]
    head = ["model", "images × turns", "pages", "forward, ms", "in the system", "bound"]
    head += ["time", "least–largest", "processor time"]
    return [
        prose(f"""Features of JPEG files of Market-1501 that are not in the kernel's cache, beside
forward passes of the same images from memory, in turns, {threads} thread(s) on two cores.
Milliseconds are processor time per image; ratios are to the passes, of time and of processor time.
Batches are decoded while the one before them is in the network, so on an idle core decoding costs
little time; where the network keeps all cores busy, the bound is passes and decoding one after the
other. Each pass takes new memory; the command line asks torch for huge pages, which the system
provides faster. The last column compares with passes on pages of 4 KiB, as in a Python program
that does not set ``THP_MEM_ALLOC_ENABLE=1``."""),
        listing([*head, "of 4 KiB passes"], rows),
    ]


def paper() -> list[str]:
    """The page of the paper's tables, as far as they were measured."""
    page = [
        title("The paper's tables, measured", "="),
        prose("""None of these is the paper's experiment: its datasets, except for Market-1501, and
its networks were not available. The stand-ins are named above each part, and differences from the
paper show the method on other datasets and networks, not an error of the paper or of this library.
``python -m benchmarks.paper all`` measures them, and ``benchmarks/results/paper_*.json`` have all
values; ``python -m benchmarks.paper tableN`` does the same for one table (:doc:`paper`).
"""),
        prose("""Each part begins with a comparison of its tables with the paper's: of all
pairs of cells whose mAP differs by 1 or more in the paper (SSIM: 0.01), including clean ones, the
number that have the same order here; by chance, it would be half of them. Then the effect of each
step of the paper's method, as a mean over all pairs of cells that differ in nothing else: an attack
is better the lower mAP is, a defense the higher. As in the paper, the attacks on defended networks
were learnt on the undefended ones; :doc:`results` has attacks learnt on the defended ones,
too."""),
    ]
    parts = (
        (
            "market",
            "Market-1501 and virtual people",
            "On photographs where Market-1501 suffices, with OSNet x0.25 and its published "
            "weights for the paper's IDE (``--model Market-IDE=FILE``).",
        ),
        ("stand_in", "Virtual people only", "Everything virtual."),
    )
    for kind, name, text in parts:
        if not (data := load(f"paper_{kind}")):
            continue
        page += [title(name), prose(f"{text} {stand_ins_of(data)}")]
        page += overview(data["tables"])
        page += claims(data["tables"])
        for what, content in sorted(data["tables"].items(), key=lambda item: order(item[0])):
            if what.startswith("table"):
                page += paper_table(content)
            else:
                page += paper_picture(what, content, real=kind == "market")
    return page


def overview(tables: dict) -> list[str]:
    """How much of each table was measured, and how many cells have the paper's order."""
    rows = []
    for content in sorted((t for t in tables.values() if "table" in t), key=lambda t: t["table"]):
        wanted = paper_tables()[content["table"]]
        every = [f for f in content["values"] if f["metric"] == wanted.metrics[0]]
        found = [f for f in every if f["measured"] is not None]
        apart = 1 if wanted.metrics[0] != "SSIM" else 0.01
        kept = [
            (a["paper"] - b["paper"]) * (a["measured"] - b["measured"]) > 0
            for a, b in itertools.combinations(found, 2)
            if abs(a["paper"] - b["paper"]) >= apart
        ]
        share = f"{sum(kept)} of {len(kept)}" if kept else "–"
        rows.append([wanted.number, wanted.caption, f"{len(found)} of {len(every)}", share])
    return [listing(["table", "", "cells measured", "pairs in the paper's order"], rows)]


def claims(tables: dict) -> list[str]:
    """The effect of each step of the paper's method, in the paper and here."""
    rows = []
    for name, numbers, with_it, without in CLAIMS:
        changes = []
        for number in numbers:
            figures = [f for f in paper_tables()[number].values if f.metric == "mAP"]
            found = tables.get(f"table{number}", {"values": []})["values"]
            ours = {(f["row"], f["column"]): f["measured"] for f in found if f["metric"] == "mAP"}
            by_conditions = {frozenset(f.conditions.items()): f for f in figures}
            for f in figures:
                twin = by_conditions.get(frozenset({**f.conditions, **without}.items()))
                if twin is None or not with_it.items() <= f.conditions.items():
                    continue
                here, there = ours.get((f.row, f.column)), ours.get((twin.row, twin.column))
                if here is not None and there is not None:
                    changes.append((f.value - twin.value, here - there))
        if changes:
            paper, here = (sum(values) / len(changes) for values in zip(*changes, strict=True))
            same = sum(a * b > 0 for a, b in changes)
            rows.append([name, f"{paper:+.1f}", f"{here:+.1f}", f"{same} of {len(changes)}"])
    return [listing(["mAP changes by", "paper", "here", "same sign in"], rows)]


def order(name: str) -> tuple[bool, int]:
    return name.startswith("figure"), int(re.sub(r"\D", "", name))


def stand_ins_of(data: dict) -> str:
    plan, tables = data["setup"], data["tables"].values()
    domains = "; ".join(f"{n} = ``virtual:{d}``" for n, d in plan["domains"].items())
    nets = "; ".join(
        f"{n} = {s['options'].get('backbone', s['name'])}, {s['steps']} steps"
        for n, s in plan["networks"].items()
    )
    trained = "" if any(t.get("own_networks") for t in tables) else f"Networks: {nets}. "
    size = "×".join(map(str, plan["size"]))
    every = plan["query_every"]
    return (
        f"{domains}. {trained}Images of {size}, attacks of "
        f"{plan['attack_steps']} steps, defenses of {plan['defense_steps']}"
        + (f", every {every}th query" if every > 1 else "")
        + "; MisRank's generator has width 8 in place of 32."
    )


def paper_table(content: dict) -> list[str]:
    wanted = paper_tables()[content["table"]]
    caption = f"Table {wanted.number}: {wanted.caption}"
    head = [*wanted.fields, "of"]
    for metric in wanted.metrics:
        head += [f"{metric}: paper", "here", "8-bit"]
    places = {}
    for figure in content["values"]:
        places.setdefault((figure["row"], figure["column"]), []).append(figure)
    rows = []
    for (row, column), figures in places.items():
        if figures[0]["measured"] is None:
            continue
        values = [("meta" if v else "–") if isinstance(v, bool) else v for v in wanted.heads[row]]
        line = [*values, wanted.column_label(column) or "–"]
        for f in figures:
            digits = 3 if f["metric"] == "SSIM" else 1
            line += [f"{f[key]:.{digits}f}" for key in ("paper", "measured", "measured_8bit")]
        rows.append(line)
    parts = [title(caption, "~"), listing(head, rows)]
    if own := content["own_networks"]:
        named = ", ".join(f"{name} ({kind})" for name, kind in own.items())
        parts.append(prose(f"Networks from files: {named}."))
    if content["left_out"]:
        parts.append(prose(f"Left out: {'; '.join(content['left_out'])}."))
    return parts


def paper_picture(what: str, content: dict, real: bool) -> list[str]:
    """A figure's counts, and its picture if there is one that shows no real people."""
    wanted = paper_figures()[content["figure"]]
    parts = [title(f"Figure {wanted.number}: {wanted.caption}", "~")]
    where = "Its page shows real people, so it is not included." if real else ""
    if not real and (DOCS / "images" / f"paper-{what}.png").exists():
        parts.append(f".. image:: images/paper-{what}.png\n   :alt: {wanted.caption}\n")
        where = WHERE_DRAWN
    counts = []
    for row in content["rows"]:
        c = row["conditions"]
        attack = "clean" if c["attack"] == "none" else f"{c['attack']} ε = {c['eps']}"
        target = "" if c["defense"] == "none" else f" on {c['defense']}"
        counts.append(f"{attack}{target}: {row['right']}")
    parts.append(
        prose(f"""Queries whose first image is right, of {content["examined"]} examined:
{"; ".join(counts)}. {where}""")
    )
    return parts


def main() -> None:
    page = [
        title("Results", "="),
        prose("""Measured with the scripts in ``benchmarks/``; ``benchmarks/results/*.json`` have
the
results with their commands, seeds, commits and
data fingerprints. ``python benchmarks/run_all.py`` measures all of them
again, ``python benchmarks/page.py`` writes this page from them.
"""),
    ]
    sections = (
        attacks,
        parametrisations,
        universal,
        budgets,
        transfer,
        left_out,
        instance,
        meta,
        settings,
        variations,
        inner_steps,
        defenses,
        hardening,
        certificates,
        detection,
        backbones,
        adapters,
        checkpoints,
        protocols,
    )
    for section in sections:
        if data := load(section.__name__):
            page += section(data)
    page.append(title("Cost"))
    for section in (speed, learners, ranking, galleries, lists, imports, precision, extraction):
        if data := load(section.__name__):
            page += section(data)
    (DOCS / "results.rst").write_text("\n".join(page), "utf-8")
    (DOCS / "paper_results.rst").write_text("\n".join(paper()), "utf-8")
    if (table := board()) is not None:
        before, begin, rest = (DOCS / "board.rst").read_text("utf-8").partition(BEGIN)
        _, end, after = rest.partition(END)
        text = f"{before}{begin}\n{table}\n{end}{after}"
        (DOCS / "board.rst").write_text(text, "utf-8")


if __name__ == "__main__":
    main()
