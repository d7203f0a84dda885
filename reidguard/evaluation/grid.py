"""`evaluate_grid`: attacks × models × datasets, each cell named by what the attack has seen."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from reidguard.attacks import Attack, Guides, InstanceAttack
from reidguard.data import ReIDDataset
from reidguard.errors import InputError
from reidguard.evaluation.evaluate import evaluate
from reidguard.evaluation.features import FeatureStore
from reidguard.evaluation.protocol import Protocol
from reidguard.models import ReIDModel
from reidguard.storage import atomic_write, library_versions, weights_fingerprint, write_json

__all__ = ["SETTINGS", "GridCell", "GridResult", "evaluate_grid"]

SETTINGS = ("source", "cross-model", "cross-dataset", "cross-model & dataset")
SCHEMA = 2  # of a kept cell's key
KINDS = ("clean", "attacked", "attacked_8bit")

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class GridCell:
    """One attack on one model's queries of one dataset.

    Attributes:
        attack: Name of the attack.
        model: Name of the network.
        dataset: Name of the dataset.
        setting: One of :data:`SETTINGS`.
        meta_test: Whether the attack's meta-test set was this dataset's training images. It is
            not unseen then, whatever the setting says.
        evaluation: What :meth:`EvaluationResult.to_dict` gives: shares in [0, 1].
    """

    attack: str
    model: str
    dataset: str
    setting: str
    meta_test: bool
    evaluation: dict[str, Any]

    @property
    def eps(self) -> float:
        """The attack's budget in [0, 1] units."""
        return float(self.evaluation["attack"]["eps"])

    def share(self, kind: str, figure: str) -> float:
        """Return a figure in [0, 1].

        Args:
            kind: "clean", "attacked" (float images) or "attacked_8bit".
            figure: "mAP", "mINP" or "rank1".
        """
        found = self.evaluation[kind]
        return float(found["cmc"][0] if figure == "rank1" else found[figure])

    def drop(self, kind: str = "attacked") -> float | None:
        """Return the share of the clean mAP that the attack takes, (clean − attacked) / clean.

        It is negative where the attack helps, and None where the clean mAP is zero.
        """
        clean = self.share("clean", "mAP")
        return None if clean == 0 else (clean - self.share(kind, "mAP")) / clean


@dataclass(frozen=True, eq=False)
class GridResult:
    """Figures of all cells of a grid.

    Attributes:
        cells: By attack, then model, then dataset, in the order these were given.
    """

    cells: tuple[GridCell, ...]

    def means(self) -> list[dict[str, Any]]:
        """Return the means over the cells of each attack and setting, cells weighing the same.

        Returns:
            For each: ``attack``, ``setting``, the number of ``cells``, ``mAP`` and ``rank1`` of
            ``clean``, ``attacked`` and ``attacked_8bit``, and the mean drop rates ``mDR`` and
            ``mDR_8bit``: means of the cells' own rates (see :meth:`GridCell.drop`), not the rate
            of the means; None where no cell has one.
        """
        out = []
        for attack in dict.fromkeys(cell.attack for cell in self.cells):
            for setting in SETTINGS:
                mine = [c for c in self.cells if (c.attack, c.setting) == (attack, setting)]
                if mine:
                    out.append({"attack": attack, "setting": setting, **_means(mine)})
        return out

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; shares lie in [0, 1]."""
        return {
            "cells": [
                {
                    "attack": cell.attack,
                    "model": cell.model,
                    "dataset": cell.dataset,
                    "setting": cell.setting,
                    "meta_test": cell.meta_test,
                    "drop": cell.drop(),
                    "drop_8bit": cell.drop("attacked_8bit"),
                    "evaluation": cell.evaluation,
                }
                for cell in self.cells
            ],
            "means": self.means(),
            "versions": library_versions(),
        }

    def to_json(self) -> str:
        """Return :meth:`to_dict` as indented JSON."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)

    def to_csv(self) -> str:
        """Return a line for each cell, unrounded: shares in [0, 1], ε and L∞ in grey levels."""
        lines = []
        for cell in self.cells:
            line: dict[str, Any] = {
                "attack": cell.attack,
                "eps": f"{255 * cell.eps:g}",
                "setting": cell.setting,
                "model": cell.model,
                "dataset": cell.dataset,
                "meta_test": str(cell.meta_test).lower(),
                "queries": cell.evaluation["counts"]["query"],
            }
            for kind in KINDS:
                for figure in ("mAP", "rank1", "mINP"):
                    line[f"{kind}_{figure}"] = cell.share(kind, figure)
                if kind != "clean":
                    for figure in ("linf", "psnr", "ssim", "ms_ssim"):
                        line[f"{kind}_{figure}"] = cell.evaluation[kind][figure]
                    line[f"{kind}_drop"] = cell.drop(kind)
            lines.append(line)
        stream = io.StringIO()
        writer = csv.DictWriter(stream, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        return stream.getvalue()

    def to_markdown(self) -> str:
        """Return two tables for people, the means and the cells, in percent."""
        parts = []
        for head, rows in self._tables():
            left = sum(not _is_figure(name) for name in head)
            rule = ["---"] * left + ["---:"] * (len(head) - left)
            lines = [head, rule, *rows]
            parts.append("\n".join("| " + " | ".join(map(_pipe, line)) + " |" for line in lines))
        return "\n\n".join([*parts, *self._notes()]) + "\n"

    def to_latex(self) -> str:
        """Return the same two tables as LaTeX, which needs no package."""
        parts = []
        for head, rows in self._tables():
            left = sum(not _is_figure(name) for name in head)
            lines = [f"\\begin{{tabular}}{{{'l' * left}{'r' * (len(head) - left)}}}", "\\hline"]
            lines += [_latex(head), "\\hline", *map(_latex, rows), "\\hline", "\\end{tabular}"]
            parts.append("\n".join(lines))
        return "\n\n".join([*parts, *map(_escape, self._notes())]) + "\n"

    def save(self, path: Path | str) -> None:
        """Write the result atomically, as what ``path`` ends in: .json, .csv, .md or .tex.

        Raises:
            InputError: If it ends in something else.
        """
        forms = {
            ".json": lambda: self.to_json() + "\n",
            ".csv": self.to_csv,
            ".md": self.to_markdown,
            ".tex": self.to_latex,
        }
        suffix = Path(path).suffix
        if suffix not in forms:
            raise InputError(f"{path} must end in one of {', '.join(forms)}")
        with atomic_write(path) as temporary:
            temporary.write_text(forms[suffix](), "utf-8")

    def _tables(self) -> list[tuple[list[str], list[list[str]]]]:
        figures = [
            "clean mAP",
            "rank-1",
            "attacked mAP",
            "rank-1",
            "8-bit mAP",
            "rank-1",
            "drop %",
        ]
        means = [
            [
                mean["attack"],
                mean["setting"],
                str(mean["cells"]),
                *(_percent(mean[kind][name]) for kind in KINDS for name in ("mAP", "rank1")),
                _percent(mean["mDR"]),
            ]
            for mean in self.means()
        ]
        cells = [
            [
                cell.attack,
                cell.setting + ("*" if cell.meta_test else ""),
                cell.model,
                cell.dataset,
                f"{255 * cell.eps:g}",
                *(_percent(cell.share(kind, name)) for kind in KINDS for name in ("mAP", "rank1")),
                _percent(cell.drop()),
            ]
            for cell in self.cells
        ]
        return [
            (["attack", "setting", "cells", *figures[:-1], "mDR %"], means),
            (["attack", "setting", "model", "dataset", "ε ·255", *figures], cells),
        ]

    def _notes(self) -> list[str]:
        if not any(cell.meta_test for cell in self.cells):
            return []
        return ["* the attack's meta-test set was this dataset, so it is not unseen"]


def _is_figure(name: str) -> bool:
    return name == "cells" or name.startswith("ε") or any(w in name for w in ("mAP", "rank", "%"))


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _pipe(text: str) -> str:
    return text.replace("|", "\\|")


_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "ε": r"$\epsilon$",
    "·": r"$\cdot$",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def _escape(text: str) -> str:
    return "".join(_SPECIAL.get(character, character) for character in text)


def _latex(cells: list[str]) -> str:
    return " & ".join(map(_escape, cells)) + r" \\"


def _means(cells: list[GridCell]) -> dict[str, Any]:
    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    out: dict[str, Any] = {"cells": len(cells)}
    for kind in KINDS:
        figures = ("mAP", "rank1")
        out[kind] = {name: mean([c.share(kind, name) for c in cells]) for name in figures}
    for kind, name in (("attacked", "mDR"), ("attacked_8bit", "mDR_8bit")):
        rates = [rate for cell in cells if (rate := cell.drop(kind)) is not None]
        out[name] = mean(rates) if rates else None
    return out


def evaluate_grid(
    attacks: Mapping[str, Attack],
    models: Mapping[str, ReIDModel | Mapping[str, ReIDModel]],
    datasets: Mapping[str, ReIDDataset],
    protocol: Protocol | None = None,
    *,
    sources: Mapping[str, tuple[str, str]] | None = None,
    folder: Path | str | None = None,
    store: FeatureStore | None = None,
    batch_size: int = 64,
    query_every: int = 1,
    progress: Progress | None = None,
) -> GridResult:
    """Measure each attack on each model and dataset, and name the setting of each cell.

    The paper's four settings (Sec. 5.1) ask whether the network and the dataset are those that the
    attack was learnt on. Cross-dataset there means the same network *trained on the other
    dataset*; so a network may be given as several models, one for each dataset::

        evaluate_grid(
            {"meta": attack},
            {"IDE": {"market": ide_m, "duke": ide_d}, "PCB": {"market": pcb_m, "duke": pcb_d}},
            {"market": market, "duke": duke},
        )

    What an attack was learnt on is read from its ``provenance``: the network of the model with
    those weights, the dataset with those training images. An instance attack's source is the model
    it is bound to; one that is not bound is bound to the model of each cell, with the gallery for
    guides where it needs them, and all its cells are "source". Anything else, ``sources`` tells.

    Gallery and clean queries are extracted once for each model and dataset.

    Args:
        attacks: By name, on the device of the models.
        models: Networks by name: a model, which is measured on every dataset, or one for each
            dataset by the dataset's name, where datasets without one are left out.
        datasets: By name.
        protocol: How to read and score; None is ``Protocol()``.
        sources: (network, dataset) that an attack was learnt on, by the attack's name. They need
            not be among those given: any other name counts as another network or dataset.
        folder: Where each cell is kept as a JSON file as soon as it is measured. A later call
            takes it from there, unless weights, attack, images or protocol have changed. At the
            end it gets ``grid.json``, which ``reidguard report`` reads.
        store: Keeps clean features for further calls; None keeps those of one model and dataset at
            a time.
        batch_size: Images per forward pass.
        query_every: Use every n-th query, for a quick look.
        progress: Called with (cells done, cells in all).

    Raises:
        InputError: If a name is unknown, nothing says what an attack was learnt on, or a model
            was trained on another of the datasets than the one it is given for.
        CheckpointError: If the folder cannot be written.

    Example:
        >>> import tempfile
        >>> from reidguard.attacks import SMA
        >>> from reidguard.virtual import read_virtual
        >>> from reidguard.models import wrap_model
        >>> from reidguard.types import InputSpec
        >>> grey = wrap_model(torch.nn.Flatten(), input_spec=InputSpec(size=(16, 8)))
        >>> sizes = {"train_identities": 1, "test_identities": 2, "cameras": 2}
        >>> with tempfile.TemporaryDirectory() as root:
        ...     people = read_virtual(root=f"{root}/set", images_per_camera=2, **sizes)
        ...     small = Protocol(image_size=(64, 32))
        ...     grid = evaluate_grid({"SMA": SMA()}, {"grey": grey}, {"plaza": people}, small)
        >>> [(cell.attack, cell.model, cell.dataset, cell.setting) for cell in grid.cells]
        [('SMA', 'grey', 'plaza', 'source')]
    """
    protocol = Protocol() if protocol is None else protocol
    sources = {} if sources is None else dict(sources)
    if not (attacks and models and datasets):
        raise InputError("a grid needs at least one attack, one model and one dataset")
    if unknown := [name for name in sources if name not in attacks]:
        raise InputError(f"sources names {unknown[0]!r}, which is none of the attacks")
    networks = {name: _by_dataset(name, given, datasets) for name, given in models.items()}
    places = {
        name: sources[name] if name in sources else _source(name, attack, networks, datasets)
        for name, attack in attacks.items()
    }
    order = [(a, m, d) for a in attacks for m in networks for d in datasets if d in networks[m]]
    kept = None if folder is None else _Kept(Path(folder), attacks, protocol, query_every)
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for network, by_dataset in networks.items():
        for place, model in by_dataset.items():
            own = FeatureStore() if store is None else store
            for name, attack in attacks.items():
                dataset = datasets[place]
                measured = None if kept is None else kept.get(name, model, dataset)
                if measured is None:
                    measured = evaluate(
                        model,
                        dataset,
                        _bound(attack, model, dataset, own, protocol, batch_size),
                        protocol,
                        store=own,
                        batch_size=batch_size,
                        query_every=query_every,
                    ).to_dict()
                    if kept is not None:
                        kept.put(name, model, dataset, measured)
                found[name, network, place] = measured
                if progress is not None:
                    progress(len(found), len(order))
    result = GridResult(
        tuple(
            GridCell(
                attack,
                network,
                place,
                _setting(places[attack], network, place),
                _was_meta_test(attacks[attack], datasets[place]),
                found[attack, network, place],
            )
            for attack, network, place in order
        )
    )
    if folder is not None:
        result.save(Path(folder) / "grid.json")
    return result


def _by_dataset(
    name: str, given: ReIDModel | Mapping[str, ReIDModel], datasets: Mapping[str, ReIDDataset]
) -> dict[str, ReIDModel]:
    """The model of a network for each dataset, in the order of the datasets."""
    if not isinstance(given, Mapping):
        return dict.fromkeys(datasets, given)
    if unknown := [place for place in given if place not in datasets]:
        raise InputError(
            f"network {name!r} has a model for {unknown[0]!r}, which is none of the datasets "
            f"({', '.join(datasets)})"
        )
    for place, model in given.items():
        trained = ((model.provenance or {}).get("train") or {}).get("fingerprint")
        if trained is None or trained == datasets[place].fingerprint("train"):
            continue
        for other, dataset in datasets.items():
            if other != place and dataset.train and dataset.fingerprint("train") == trained:
                raise InputError(
                    f"the model of {name!r} for {place!r} was trained on {other!r}, as its "
                    "provenance say: give it for that one, or as a network of its own, which "
                    "is measured on all datasets"
                )
    return {place: given[place] for place in datasets if place in given}


def _source(
    name: str,
    attack: Attack,
    networks: Mapping[str, Mapping[str, ReIDModel]],
    datasets: Mapping[str, ReIDDataset],
) -> tuple[str, str | None] | None:
    """Network and dataset that an attack was learnt on; None for those made on each cell's own."""
    cure = f"sources={{{name!r}: (NETWORK, DATASET)}} tells it; they may be others than yours"
    if isinstance(attack, InstanceAttack):
        if attack._target is None:
            return None
        victim = attack._target.model
        for network, by_dataset in networks.items():
            for place, model in by_dataset.items():
                if victim is model or _same_weights(victim, model):
                    alone = len({id(one) for one in by_dataset.values()}) == 1
                    return network, None if alone else place
        raise InputError(f"attack {name!r} is bound to a model that is none of the grid's; {cure}")
    facts = attack.provenance or {}
    weights, trained = facts.get("model"), (facts.get("meta_train") or {})
    if weights is None or "train" not in trained:
        raise InputError(f"nothing says what attack {name!r} was learnt on; {cure}")
    places = [
        p for p, d in datasets.items() if d.train and d.fingerprint("train") == trained["train"]
    ]
    named = [
        network
        for network, by_dataset in networks.items()
        if any(weights_fingerprint(model) == weights for model in {*by_dataset.values()})
    ]
    if not (named and places):
        what = f"training images ({trained.get('name')})" if named else "a model"
        raise InputError(
            f"attack {name!r} was learnt on {what}, which the grid does not have; {cure}"
        )
    return named[0], places[0]


def _same_weights(one: object, other: ReIDModel) -> bool:
    return isinstance(one, torch.nn.Module) and weights_fingerprint(one) == weights_fingerprint(
        other
    )


def _setting(source: tuple[str, str | None] | None, network: str, place: str) -> str:
    if source is None:
        return SETTINGS[0]
    return SETTINGS[(source[0] != network) + 2 * (source[1] not in (None, place))]


def _was_meta_test(attack: Attack, dataset: ReIDDataset) -> bool:
    learnt = ((attack.provenance or {}).get("meta_test") or {}).get("train")
    return learnt is not None and bool(dataset.train) and dataset.fingerprint("train") == learnt


def _bound(
    attack: Attack,
    model: ReIDModel,
    dataset: ReIDDataset,
    store: FeatureStore,
    protocol: Protocol,
    batch_size: int,
) -> Attack:
    if not isinstance(attack, InstanceAttack) or attack._target is not None:
        return attack
    if not attack.needs_guides:
        return attack.bind(model)
    features = store.features(
        model,
        dataset,
        "gallery",
        image_size=protocol.image_size,
        dtype=protocol.dtype,
        batch_size=batch_size,
    )
    return attack.bind(model, Guides(features, [sample.pid for sample in dataset.gallery]))


class _Kept:
    """Measured cells in a folder, each under a name that all it depends on determines."""

    def __init__(
        self, folder: Path, attacks: Mapping[str, Attack], protocol: Protocol, query_every: int
    ) -> None:
        self.folder = folder
        self.attacks = {name: _attack_fingerprint(name, one) for name, one in attacks.items()}
        self.protocol = protocol
        self.query_every = query_every

    def get(self, attack: str, model: ReIDModel, dataset: ReIDDataset) -> dict[str, Any] | None:
        """Return what was measured, or None if it is not there or damaged."""
        key = self._key(attack, model, dataset)
        try:
            content = json.loads(self._path(key).read_text("utf-8"))
            return dict(content["evaluation"]) if content["key"] == key else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(
        self, attack: str, model: ReIDModel, dataset: ReIDDataset, measured: dict[str, Any]
    ) -> None:
        key = self._key(attack, model, dataset)
        write_json(self._path(key), {"key": key, "evaluation": measured})

    def _key(self, attack: str, model: ReIDModel, dataset: ReIDDataset) -> dict[str, Any]:
        queries = FeatureStore().key(
            model,
            dataset,
            "query",
            image_size=self.protocol.image_size,
            dtype=self.protocol.dtype,
            every=self.query_every,
        )
        return {
            "schema": SCHEMA,
            "attack": self.attacks[attack],
            "queries": queries,
            "gallery": dataset.fingerprint("gallery"),
            "metric": model.metric,
            "protocol": self.protocol.to_dict(),
        }

    def _path(self, key: dict[str, Any]) -> Path:
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return self.folder / "cells" / f"{digest[:32]}.json"


def _attack_fingerprint(name: str, attack: Attack) -> str:
    """A hash of all that an attack does depends on: class, options, parameters, victim."""
    parts: list[Any] = [
        f"{type(attack).__module__}.{type(attack).__qualname__}",
        attack.config(),
        weights_fingerprint(attack),
    ]
    if isinstance(attack, InstanceAttack) and (victim := attack._target) is not None:
        if not isinstance(victim.model, torch.nn.Module):
            raise InputError(
                f"attack {name!r} is bound to something that is no torch.nn.Module, so its cells "
                "cannot be told from those of another victim: leave folder out"
            )
        parts += [weights_fingerprint(victim.model), victim.model.metric]
        marks = victim.prototypes
        parts += [_digest(t) for t in (marks.features, marks.known, marks.index)] if marks else []
        parts.append(None if victim.pids is None else _digest(victim.pids))
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _digest(tensor: torch.Tensor) -> str:
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(flat.numpy().tobytes()).hexdigest()
