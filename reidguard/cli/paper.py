"""``reidguard paper``."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from reidguard.attacks import (
    ATTACKS,
    Attack,
    InstanceAttack,
    MetaAttack,
    UniversalAttack,
    create_attack,
    load_attack,
)
from reidguard.cli import common
from reidguard.cli.options import Options, Parser, not_negative, pathname, positive
from reidguard.cli.runs import RunFolder, default_folder, open_run
from reidguard.cli.show import Display, note, table
from reidguard.data import Augment, ReIDDataset, load_dataset, read_virtual
from reidguard.defenses import AdversarialTraining, MetaDefense, MixedTraining
from reidguard.errors import InputError
from reidguard.evaluation import FeatureStore, GridCell, GridResult, Protocol, evaluate
from reidguard.evaluation.grid import evaluate_grid
from reidguard.evaluation.paper import PaperTable, contradictions, paper_tables
from reidguard.models import MODELS, ReIDModel, create_model, load_model
from reidguard.storage import atomic_write, remove_temporaries, write_json
from reidguard.training import Progress, ProgressCallback, train_model
from reidguard.types import Budget

EXAMPLES = """\
  reidguard paper list
  the paper's figures of a table, what is odd about them, and what measuring them takes:
    reidguard paper table1
  measured on your data, beside the paper's figures (datasets that are not given are left out):
    reidguard paper table1 --data market1501:/data/market1501 --data personx-456:/data/personx
  what it looks like, without data: virtual people and small networks stand in
    reidguard paper table1 --stand-in

Networks are trained as the paper says where OUT/models/ does not hold them yet: a file of your own,
such as OUT/models/Market-IDE.safetensors, is used as it is. The same command goes on after an
interruption. Figures of stand-ins say nothing about the paper's.
"""

# The paper's names, and ours.
READERS = {
    "market1501": "Market",
    "dukemtmc-reid": "Duke",
    "msmt17": "MSMT",
    "personx-456": "PersonX",
    "personx": "PersonX",
    "randperson": "RandPerson",
    "unrealperson": "UnrealPerson",
    "deepchange": "DeepChange",
}
FAMILIES = {
    "color": ("color", None),
    "delta": ("delta", None),
    "color+delta": ("combinatorial", None),
    "misrank": ("misrank", None),
    "misrank+personx": ("misrank", None),  # learnt jointly
    "uap": ("uap", None),
    "uap+sma": ("uap", "self_metric"),  # with this objective
    "sma": ("sma", None),
}
COSINE = "sma"  # Table 13 scores this attack with cosine similarity


@dataclass(frozen=True)
class Network:
    """What stands for one of the paper's networks, and how long it learns."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    steps: int | None = None  # None: 85 epochs
    lr: float = 3e-4


@dataclass(frozen=True)
class Plan:
    """All that the figures depend on, but for data and seed."""

    networks: dict[str, Network]
    domains: dict[str, str] = field(default_factory=dict)  # virtual ones, in place of datasets
    people: dict[str, Any] = field(default_factory=dict)  # arguments of read_virtual
    augment: Augment = field(default_factory=Augment)
    size: tuple[int, int] = (256, 128)
    identities: int = 8
    images_per_identity: int = 8
    attack_steps: int | None = None  # None: 10 epochs
    defense_steps: int | None = None  # None: 85 epochs
    query_every: int = 1


PAPER = Plan({name: Network(name.lower()) for name in ("IDE", "PCB", "AGW")})
STAND_IN = Plan(
    networks={
        "IDE": Network("ide", {"backbone": "test_efficientnet_gn"}, 520, 1e-3),
        "PCB": Network("ide", {"backbone": "test_resnet"}, 440, 1e-3),
    },
    domains={"Market": "plaza", "Duke": "campus", "MSMT": "mall", "PersonX": "station"},
    people={
        "train_identities": 100,
        "test_identities": 25,
        "cameras": 3,
        "images_per_camera": 4,
        "height": 128,
    },
    augment=Augment(crop="pad", padding=4, erase=0.0),
    size=(128, 64),
    images_per_identity=4,
    attack_steps=100,
    defense_steps=100,
)


def parser(summary: str) -> Parser:
    """Return the command's parser."""
    made = Parser("paper", summary, EXAMPLES)
    made.usage = "reidguard paper list\n       reidguard paper tableN [options]"
    made.add_argument("what", metavar="list|tableN", help="which table, from table1 to table19")
    made.add_argument(
        "--data",
        action="append",
        metavar="NAME:PATH",
        help=f"a dataset at hand, once for each: {', '.join(READERS)}",
    )
    made.defaults["data"] = []
    made.flag("--stand-in", "virtual people and small networks in place of the paper's")
    made.option("--steps", "of each attack (default: the paper's 10 epochs)", positive, metavar="N")
    made.option(
        "--model-steps", "of each network and defense (default: 85 epochs)", positive, metavar="N"
    )
    made.option("--query-every", "use every n-th query", positive, metavar="N", default=1)
    made.option("--seed", "fixes every random draw", not_negative, metavar="N", default=0)
    made.option("--out", "run folder (default: one below runs/)", pathname, metavar="RUN_DIR")
    made.option("--device", "cpu, cuda, cuda:1, ...", metavar="NAME", shown="cuda if there is")
    made.option("--threads", "CPU threads", positive, metavar="N", shown="torch's choice")
    return made


def run(options: Options) -> int:
    """List the tables, show one, or measure it."""
    tables = paper_tables()
    if options.what == "list":
        _list()
        return 0
    match = re.fullmatch(r"table([1-9]\d*)", options.what)
    if match is None or int(match[1]) not in tables:
        raise InputError(f"{options.what!r} is no table: use list, or table1 to table{len(tables)}")
    wanted = tables[int(match[1])]
    if options.stand_in and options.data:
        raise InputError("--data and --stand-in exclude each other: give one of them")
    if not (options.stand_in or options.data):
        _show(wanted)
        return 0
    device = common.set_up_machine(options)
    plan = STAND_IN if options.stand_in else PAPER
    if options.model_steps:
        longer = {k: replace(n, steps=options.model_steps) for k, n in plan.networks.items()}
        plan = replace(plan, networks=longer, defense_steps=options.model_steps)
    plan = replace(
        plan,
        attack_steps=options.steps or plan.attack_steps,
        query_every=options.query_every,
    )
    given = {} if options.stand_in else _datasets(options.data)
    lacking = _lacking(wanted, plan, set(plan.domains) | set(given))
    if not any(not reasons for reasons in lacking.values()):
        raise InputError(
            f"nothing of {options.what} can be measured: "
            f"{'; '.join(_reasons(lacking))} (reidguard paper {options.what} shows its figures)"
        )
    for reason in _reasons(lacking):
        note(f"left out: {reason}")
    settings = {
        "command": "paper",
        "table": wanted.number,
        "stand_in": options.stand_in,
        "plan": asdict(plan),
        "data": {n: common.data_settings(d, "train", "query", "gallery") for n, d in given.items()},
        "seed": options.seed,
        "device": device.type,
    }
    out = options.out or default_folder("paper", options.what, settings)
    with (
        open_run(
            out,
            options,
            settings=settings,
            products=("result.json", "result.md"),
        ) as folder,
        Display() as display,
    ):
        if folder.finished:
            note(f"{out} is finished already; nothing is measured again")
        else:
            _Experiment(wanted, plan, given, lacking, options.seed, device, folder, display).run()
            folder.finish()
        print((folder / "result.md").read_text("utf-8"))
        print(f"run: {out}")
    return 0


def _datasets(specs: Sequence[str]) -> dict[str, ReIDDataset]:
    found: dict[str, ReIDDataset] = {}
    for spec in specs:
        reader = spec.partition(":")[0]
        if reader not in READERS:
            raise InputError(
                f"{reader!r} is none of the paper's datasets ({', '.join(READERS)}); --stand-in "
                "takes virtual people in their place"
            )
        if READERS[reader] in found:
            raise InputError(f"{READERS[reader]} is given twice: {spec}")
        found[READERS[reader]] = load_dataset(spec)
    return found


def _list() -> None:
    rows = [["table", "shows", "figures", "this library has", "with --stand-in"]]
    everything = {*READERS.values()}
    for one in paper_tables().values():
        counts = []
        for plan, datasets in ((PAPER, everything), (STAND_IN, {*STAND_IN.domains})):
            lacking = _lacking(one, plan, datasets)
            able = sum(not lacking[f.row, f.column] for f in one.figures)
            counts.append("all" if able == len(one.figures) else str(able))
        rows.append([f"table{one.number}", one.caption, str(len(one.figures)), *counts])
    print(table(rows))


def _show(wanted: PaperTable) -> None:
    """Print the paper's figures, and what measuring them takes."""
    head = [*wanted.fields]
    for column in range(len(wanted.columns)):
        head += [" ".join(filter(None, [wanted.column_label(column), m])) for m in wanted.metrics]
    rows = [
        [*map(_plain, values), *(_shown(f.value, f.metric) for f in wanted.figures if f.row == row)]
        for row, values in enumerate(wanted.heads)
    ]
    print(f"Table {wanted.number} of the paper: {wanted.caption}\n")
    print(table([head, *rows]) + "\n")
    for said in _remarks(wanted):
        print(said)
    needed = sorted({_data_option(n) for f in wanted.figures for n in _needs(f.conditions)[0]})
    if needed:
        print(f"measuring it takes: {', '.join(f'--data {n}' for n in needed)}")
    missing = _reasons(_lacking(wanted, PAPER, {*READERS.values()}))
    for reason in missing:
        print(f"not measurable: {reason}")
    if any(not r for r in _lacking(wanted, STAND_IN, {*STAND_IN.domains}).values()):
        print(f"without data: reidguard paper table{wanted.number} --stand-in")


def _remarks(wanted: PaperTable) -> Iterator[str]:
    """What is odd about a table's figures."""
    yield from (f"note: {text}" for text in wanted.notes)
    for one in contradictions():
        if wanted.number in one.values:
            where_said: dict[float, list[str]] = {}
            for number, value in one.values.items():
                where_said.setdefault(value, []).append(str(number))
            told = "; ".join(
                f"{_shown(value, one.metric)} in {'Tables' if numbers[1:] else 'Table'} "
                f"{', '.join(numbers)}"
                for value, numbers in where_said.items()
            )
            c = one.conditions
            what = f"{c['attack']}{' meta' if c['meta'] else ''} ε={c['eps']:g}"
            where = f"{c['source_model']}→{c['model']} {c['data']}, defense {c['defense']}"
            yield f"the paper contradicts itself: {one.metric} of {what}, {where}: {told}"


def _shown(value: float, metric: str, sign: str = "") -> str:
    return f"{value:{sign}.{4 if metric == 'SSIM' else 1}f}"


def _plain(value: Any) -> str:
    return {True: "meta", False: "-"}[value] if isinstance(value, bool) else str(value)


def _data_option(name: str) -> str:
    return next(f"{reader}:PATH" for reader, known in READERS.items() if known == name)


def _parse_defense(text: str) -> tuple[str, str, str, tuple[str, ...]] | None:
    """Kind, attack, meta-test set and losses of "M(delta), meta-test MSMT"; None where unknown."""
    both = ("triplet", "identity")
    if text == "adversarial":
        return "adversarial", "color+delta", "none", both
    if text == "mixed":
        return "mixed", "color+delta", "PersonX", both
    match = re.fullmatch(r"M\((color|delta|color\+delta)\)(?:, (.*))?", text)
    if match is None:
        return None
    rest = match[2] or ""
    extra = rest.removeprefix("meta-test ") if rest.startswith("meta-test ") else "PersonX"
    losses = (rest.removesuffix(" only"),) if rest.endswith(" only") else both
    return "meta", match[1], extra, losses


def _needs(conditions: Mapping[str, Any]) -> tuple[set[str], set[str]]:
    """The paper's names of all datasets and networks that a figure takes."""
    if "data" not in conditions:
        return set(), set()
    datasets, networks = {conditions["data"]}, {conditions["model"]}
    if conditions["attack"] != "none":
        datasets |= {conditions["source_data"], conditions["attack_data"]}
        networks.add(conditions["source_model"])
        if conditions["extra"] != "none":
            datasets.add(conditions["extra"])
    if (made := _parse_defense(conditions["defense"])) is not None:
        datasets |= {"PersonX"} | ({made[2]} - {"none"})  # the attack's meta-test set, too
    return datasets, networks


def _why_not(conditions: Mapping[str, Any], plan: Plan, datasets: set[str]) -> list[str]:
    """Why a figure cannot be measured."""
    if "data" not in conditions:
        return ["seconds depend on the machine; the results page has ours"]
    reasons = []
    attack = conditions["attack"]
    if attack != "none":
        name, _ = FAMILIES.get(attack, (None, None))
        if name is None or name not in ATTACKS:
            reasons.append(f"attack {attack} is not in this library")
    defense = conditions["defense"]
    if defense != "none" and _parse_defense(defense) is None:
        reasons.append(f"the paper does not say how {defense} was trained")
    data, networks = _needs(conditions)
    for network in sorted(networks):
        if network not in plan.networks or plan.networks[network].name not in MODELS:
            reasons.append(f"network {network} is not there")
    for name in sorted(data - datasets):
        instead = (
            "has no stand-in" if plan.domains else f"is not given (--data {_data_option(name)})"
        )
        reasons.append(f"{name} {instead}")
    return reasons


def _lacking(
    wanted: PaperTable, plan: Plan, datasets: set[str]
) -> dict[tuple[int, int], list[str]]:
    """Reasons against measuring, by row and column."""
    return {(f.row, f.column): _why_not(f.conditions, plan, datasets) for f in wanted.figures}


def _reasons(lacking: Mapping[tuple[int, int], list[str]]) -> list[str]:
    """All reasons once, each with the number of cells that it concerns."""
    every = [reason for reasons in lacking.values() for reason in reasons]
    return [f"{r} ({every.count(r)} of {len(lacking)} cells)" for r in dict.fromkeys(every)]


class _Experiment:
    """Makes what a table needs, each thing once and kept in a file, and measures its cells."""

    def __init__(
        self,
        wanted: PaperTable,
        plan: Plan,
        given: Mapping[str, ReIDDataset],
        lacking: Mapping[tuple[int, int], list[str]],
        seed: int,
        device: torch.device,
        folder: RunFolder,
        display: Display,
    ) -> None:
        self.wanted = wanted
        self.plan = plan
        self.given = dict(given)
        self.lacking = lacking
        self.seed = seed
        self.device = device
        self.folder = folder
        self.display = display
        self.protocol = Protocol(image_size=plan.size)
        self.learning: dict[str, Any] = {
            "identities": plan.identities,
            "images_per_identity": plan.images_per_identity,
            "image_size": plan.size,
            "seed": seed,
        }

    def run(self) -> None:
        """Measure all cells and write result.json, result.md and grid.json."""
        cells: dict[tuple[int, int], dict[str, Any]] = {
            (f.row, f.column): dict(f.conditions)
            for f in self.wanted.figures
            if not self.lacking[f.row, f.column]
        }
        groups: dict[tuple[str, str, str], list[tuple[int, int]]] = {}
        for place, c in cells.items():
            groups.setdefault((c["model"], c["data"], c["defense"]), []).append(place)
        measured: dict[tuple[int, int], dict[str, Any]] = {}
        grid: list[GridCell] = []
        for (network, data, defense), places in groups.items():
            model = self.robust(network, data, defense)
            for place in places:
                evaluation, cell = self.measure(model, cells[place])
                measured[place] = evaluation
                grid += [] if cell is None else [cell]
        content = {
            "table": self.wanted.number,
            "stand_in": asdict(self.plan) if self.plan.domains else None,
            "figures": list(self.figures(measured)),
            "left_out": _reasons(self.lacking),
        }
        if grid:
            GridResult(tuple(grid)).save(self.folder / "grid.json")
        write_json(self.folder / "result.json", content)
        with atomic_write(self.folder / "result.md") as temporary:
            temporary.write_text(self.markdown(content), "utf-8")

    def measure(
        self, model: ReIDModel, c: Mapping[str, Any]
    ) -> tuple[dict[str, Any], GridCell | None]:
        """Return what was measured under some conditions."""
        people = self.people(c["data"])
        store = FeatureStore(self.folder / "features")
        every = self.plan.query_every
        if c["attack"] == "none":
            phase = self.display.phase(f"{c['model']} on {c['data']}")
            clean = evaluate(
                model, people, None, self.protocol, store=store, query_every=every, progress=phase
            )
            return clean.to_dict(), None
        attack = self.attack(c)
        network = c["model"] + ("" if c["defense"] == "none" else f", {c['defense']}")
        name = f"{c['attack']}{' meta' if c['meta'] else ''} {c['extra']} ε {c['eps']:g}"
        (cell,) = evaluate_grid(
            {name: attack},
            {network: model},
            {c["data"]: people},
            replace(self.protocol, metric="cosine") if c["attack"] == COSINE else self.protocol,
            sources={name: (c["source_model"], c["source_data"])},
            folder=self.folder.path,
            store=store,
            query_every=every,
            progress=self.display.phase(f"{name} on {network}, {c['data']}"),
        ).cells
        return cell.evaluation, cell

    def people(self, name: str) -> ReIDDataset:
        """Return a dataset, rendered first where it is a stand-in."""
        if name not in self.given:
            domain = self.plan.domains[name]
            self.given[name] = read_virtual(
                domain,
                **self.plan.people,
                seed=self.seed,
                root=self.folder / "people" / domain,
                progress=self.display.phase(f"rendering {domain}"),
            )
        return self.given[name]

    def normal(self, network: str, data: str) -> ReIDModel:
        """Return a network trained on a dataset."""
        target = self.folder / "models" / f"{data}-{network}.safetensors"
        remove_temporaries(target)
        if not target.exists():
            people, spec = self.people(data), self.plan.networks[network]
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                options = {"size": self.plan.size, **spec.options}
                model = create_model(spec.name, num_classes=people.num_train_pids, **options)
            train_model(
                model.to(self.device),
                people,
                epochs=85,
                steps=spec.steps,
                lr=spec.lr,
                augment=self.plan.augment,
                **self.learning,
                checkpoint=target.with_suffix(".checkpoint"),
                progress=self.progress(f"training {network} on {data}"),
            )
            model.save(target)
        target.with_suffix(".checkpoint").unlink(missing_ok=True)
        return load_model(target).to(self.device)

    def robust(self, network: str, data: str, defense: str) -> ReIDModel:
        """Return a network hardened by a defense of the paper, or the normal one."""
        made = _parse_defense(defense)
        if made is None:
            return self.normal(network, data)
        target = self.folder / "models" / f"{data}-{network}-{_file(defense)}.safetensors"
        remove_temporaries(target)
        if not target.exists():
            kind, family, extra, losses = made
            attack = self.attack(_own_meta_attack(network, data, family))
            build = {
                "adversarial": AdversarialTraining,
                "mixed": MixedTraining,
                "meta": MetaDefense,
            }[kind]
            robust = build(attack, losses=losses).fit(  # type: ignore[arg-type]
                self.normal(network, data),
                self.people(data),
                None if extra == "none" else self.people(extra),
                steps=self.plan.defense_steps,
                augment=self.plan.augment,
                **self.learning,
                checkpoint=target.with_suffix(".checkpoint"),
                progress=self.progress(f"{defense} on {data}"),
            )
            robust.save(target)
        target.with_suffix(".checkpoint").unlink(missing_ok=True)
        return load_model(target).to(self.device)

    def attack(self, c: Mapping[str, Any]) -> Attack:
        """Return the attack of some conditions, learnt or bound."""
        family, objective = FAMILIES[c["attack"]]
        budget = Budget(c["eps"] / 255)
        sized: dict[str, Any] = {} if family in ("color", "sma") else {"size": self.plan.size}
        factory = ATTACKS.get(family)
        if isinstance(factory, type) and issubclass(factory, InstanceAttack):
            # On the normal model, as all attacks on hardened ones are in the paper: transfer.
            made_on = self.normal(c["source_model"], c["source_data"])
            return factory(budget).bind(made_on)
        learnt = "meta" if c["meta"] else "plain" if c["extra"] == "none" else "joint"
        parts = (c["attack"], learnt, c["extra"], c["source_model"], c["source_data"])
        name = _file("-".join((*parts, c["attack_data"], f"eps{c['eps']}")))
        target = self.folder / "attacks" / f"{name}.safetensors"
        remove_temporaries(target)
        if not target.exists():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                made: Attack = (
                    MetaAttack(family, budget, **sized)
                    if c["meta"]
                    else create_attack(family, budget=budget, **sized)
                )
            assert isinstance(made, UniversalAttack)
            extra = None if c["extra"] == "none" else self.people(c["extra"])
            how: dict[str, Any] = {} if objective is None else {"objective": objective}
            if learnt == "joint":
                how["learner"] = "joint"
            learning = dict(self.learning)
            if family == "misrank":
                del learning["images_per_identity"]  # it has a batch of its own
            made.to(self.device).fit(
                self.normal(c["source_model"], c["source_data"]),
                self.people(c["attack_data"]),
                extra,
                steps=self.plan.attack_steps,
                **how,
                **learning,
                checkpoint=target.with_suffix(".checkpoint"),
                progress=self.progress(f"learning {name}"),
            )
            made.save(target)
        target.with_suffix(".checkpoint").unlink(missing_ok=True)
        return load_attack(target).to(self.device)

    def progress(self, name: str) -> ProgressCallback:
        """Return what shows how far learning is."""

        def show(told: Progress) -> None:
            phase = name if told.phase == "learning" else f"{name}: {told.phase}"
            self.display(replace(told, phase=phase))

        return show

    def figures(self, measured: Mapping[tuple[int, int], Any]) -> Iterator[dict[str, Any]]:
        """Each of the paper's figures, beside what was measured."""
        for f in self.wanted.figures:
            found = measured.get((f.row, f.column))
            ours = None if found is None else _figure(found, f.metric, "attacked")
            saved = None if found is None else _figure(found, f.metric, "attacked_8bit")
            yield {
                "row": f.row,
                "column": f.column,
                "conditions": dict(f.conditions),
                "metric": f.metric,
                "paper": f.value,
                "measured": ours,
                "measured_8bit": saved,
                "difference": None if ours is None else ours - f.value,
            }

    def markdown(self, content: Mapping[str, Any]) -> str:
        """The result for people."""
        wanted = self.wanted
        lines = [f"Table {wanted.number} of the paper: {wanted.caption}"]
        if self.plan.domains:
            used = {n for f in wanted.figures for n in (*_needs(f.conditions)[0],)}
            domains = [f"{n} = virtual:{d}" for n, d in self.plan.domains.items() if n in used]
            nets = [
                f"{n} = {s.name} {s.options.get('backbone', '')}, {s.steps} steps"
                for n, s in self.plan.networks.items()
            ]
            lines.append(
                f"**STAND-INS, not the paper's experiment:** {'; '.join([*domains, *nets])}. The "
                "differences say nothing about the paper's figures."
            )
        head = [*wanted.fields, "of"]
        for metric in wanted.metrics:
            head += [f"{metric} paper", "here", "8-bit", "difference"]
        rows = []
        by_place: dict[tuple[int, int], list[dict[str, Any]]] = {}
        for one in content["figures"]:
            by_place.setdefault((one["row"], one["column"]), []).append(one)
        for (row, column), figures in by_place.items():
            line = [*map(_plain, wanted.heads[row]), wanted.column_label(column) or "-"]
            for one in figures:
                line.append(_shown(one["paper"], one["metric"]))
                for key, sign in (("measured", ""), ("measured_8bit", ""), ("difference", "+")):
                    value = one[key]
                    line.append("-" if value is None else _shown(value, one["metric"], sign))
            rows.append(line)
        lines.append(table([head, *rows]))
        if content["left_out"]:
            lines.append("\n".join(["left out:", *(f"- {r}" for r in content["left_out"])]))
        if remarks := list(_remarks(wanted)):
            lines.append("\n".join(f"- {remark}" for remark in remarks))
        lines.append(f"`{shlex.join(self.folder.manifest['command'])}`")
        return "\n\n".join(lines) + "\n"


def _own_meta_attack(network: str, data: str, family: str) -> dict[str, Any]:
    """The attack that a defense hardens against: meta-learnt on the normal model at ε = 8."""
    return {
        "attack": family,
        "meta": True,
        "extra": "PersonX",
        "eps": 8,
        "source_model": network,
        "source_data": data,
        "attack_data": data,
    }


def _file(name: str) -> str:
    return re.sub(r"[^\w+.-]+", "_", name)


def _figure(evaluation: Mapping[str, Any], metric: str, kind: str) -> float:
    found = evaluation[kind] or evaluation["clean"]
    if metric == "SSIM":
        return float(found["ssim"])
    return 100 * float(found["cmc"][0] if metric == "rank-1" else found["mAP"])
