"""`evaluate_grid`: attacks × models × datasets, each cell named by where the attack was learnt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from typing_extensions import Unpack

from reidguard.attacks import Attack, InstanceAttack, LearnedAttack, fixed_patterns
from reidguard.attacks.fingerprint import attack_fingerprint
from reidguard.contexts import fixed_context
from reidguard.data import ReIDDataset
from reidguard.distributed import from_first, is_first
from reidguard.errors import InputError
from reidguard.evaluation.evaluate import evaluate_with
from reidguard.evaluation.features import CountCallback, FeatureStore
from reidguard.evaluation.grid_result import SETTINGS, GridCell, GridResult
from reidguard.evaluation.protocol import Protocol
from reidguard.evaluation.results import EvaluationRecord
from reidguard.evaluation.retrieval import Retrieval
from reidguard.files import remove_leftovers
from reidguard.fingerprint import fingerprint
from reidguard.models import ReIDModel
from reidguard.models.fingerprint import model_key
from reidguard.nn.gradients import count_gradients, warn_of_zero_gradients
from reidguard.options import GridOptions
from reidguard.records import Count, convert, find_record, to_path
from reidguard.schema import check_instance, documented, resolve
from reidguard.storage import write_json

__all__ = ["evaluate_grid"]

SCHEMA = 3  # of a cached cell's key


@dataclass(frozen=True)
class CountsRecord:
    """The numbers of images of an evaluation."""

    query: Count


@dataclass(frozen=True)
class CellRecord(EvaluationRecord):
    """What is read again of the evaluation of a cell."""

    counts: CountsRecord


@dataclass(frozen=True)
class CachedCell:
    """An evaluation in a file, and what it depends on."""

    key: dict[str, Any]
    evaluation: dict[str, Any]

    def __post_init__(self) -> None:
        convert(self.evaluation, CellRecord, "the evaluation")


@dataclass(frozen=True)
class TrainedOn:
    """A dataset in the provenance of a model or an attack."""

    name: str | None = None
    train: str | None = None
    fingerprint: str | None = None


@dataclass(frozen=True)
class Provenance:
    """What a model or an attack was learnt on."""

    model: str | None = None
    train: TrainedOn | None = None
    meta_train: TrainedOn | None = None
    meta_test: TrainedOn | None = None

    @classmethod
    def of(cls, learnt: Attack | ReIDModel, name: str) -> Provenance:
        """Read the provenance of a model or an attack."""
        return convert(learnt.provenance or {}, cls, f"the provenance of {name}", error=InputError)


@documented(GridOptions)
@fixed_context()
def evaluate_grid(
    attacks: Mapping[str, Attack],
    models: Mapping[str, ReIDModel | Mapping[str, ReIDModel]],
    datasets: Mapping[str, ReIDDataset],
    protocol: Protocol | None = None,
    *,
    sources: Mapping[str, tuple[str, str]] | None = None,
    folder: Path | str | None = None,
    store: FeatureStore | None = None,
    progress: CountCallback | None = None,
    **options: Unpack[GridOptions],
) -> GridResult:
    """Measure each attack on each model and dataset, and name the setting of each cell.

    The paper's four settings (Sec. 5.1) depend on whether the network and the dataset are those
    that the attack was learnt on. Cross-dataset means the same network *trained on the other
    dataset*; so a network may be given as several models, one for each dataset::

        evaluate_grid(
            {"meta": attack},
            {"IDE": {"market": ide_m, "duke": ide_d}, "PCB": {"market": pcb_m, "duke": pcb_d}},
            {"market": market, "duke": duke},
        )

    What an attack was learnt on is read from its ``provenance``: the network of the model with
    those weights and that InputSpec, the dataset with those training images. An instance attack's
    source is the model that it is bound to; one that is not bound is bound to the model of each
    cell, with the gallery as guides where it needs them, and all its cells are "source". Those of
    an attack that neither learns nor uses a model are "knows nothing". Otherwise pass ``sources``.

    Gallery and clean queries are extracted once for each model and dataset. Several processes that
    ``torch.distributed`` connects share each cell's work; the first writes the files.

    Where a learnt attack is measured beyond its source, each model and dataset also gets the cell
    "fixed pattern" with the setting "knows nothing": of :func:`~reidguard.fixed_patterns`, the one
    that leaves the lowest mAP on 8-bit images. It uses neither model nor data, so an attack that
    transfers is one that does more.

    Args:
        attacks: By name, on the device of the models.
        models: Networks by name: a model, which is measured on every dataset, or one for each
            dataset by the dataset's name, where datasets without one are left out.
        datasets: By name.
        protocol: How to read and score; None is ``Protocol()``.
        sources: (network, dataset) that an attack was learnt on, by the attack's name. They need
            not be among those given: any other name counts as another network or dataset.
        folder: Where each cell is written as a JSON file as soon as it is measured. A later call
            reads it there, unless weights, attack, images or protocol have changed. At the end it
            gets ``grid.json``, which ``reidguard report`` reads.
        store: Caches clean features for further calls; None caches those of one model and dataset
            at a time.
        progress: Called with (evaluations done, evaluations in all).
        **options: Any of :class:`~reidguard.options.GridOptions`.

    Raises:
        InputError: If a name is unknown, the source of an attack is unknown, or a model was trained
            on another of the datasets than the one it is passed for.
        CheckpointError: If the folder cannot be written.

    Example:
        >>> import tempfile
        >>> from reidguard.attacks import SMA
        >>> from reidguard.data import load_dataset
        >>> from reidguard.models import wrap_model
        >>> from reidguard.types import InputSpec
        >>> grey = wrap_model(torch.nn.Flatten(), input_spec=InputSpec(size=(16, 8)))
        >>> few = "virtual:plaza?identities=2&cameras=2&images_per_camera=2&height=64"
        >>> with tempfile.TemporaryDirectory() as root:
        ...     people = load_dataset(few, folder=f"{root}/set")
        ...     small = Protocol(image_size=(64, 32))
        ...     grid = evaluate_grid({"SMA": SMA()}, {"grey": grey}, {"plaza": people}, small)
        >>> [(cell.attack, cell.model, cell.dataset, cell.setting) for cell in grid.cells]
        [('SMA', 'grey', 'plaza', 'source')]
    """
    values = resolve(GridOptions, options)
    sources = {} if sources is None else dict(sources)
    _check(attacks, models, datasets, sources)
    networks = {name: _by_dataset(name, model, datasets) for name, model in models.items()}
    size = (protocol or Protocol()).image_size

    @cache  # for this call only: a model may change between two
    def key_of(model: torch.nn.Module) -> dict[str, Any]:
        return model_key(model, size)

    origins = {
        name: sources[name]
        if name in sources
        else _source(name, attack, networks, datasets, key_of)
        for name, attack in attacks.items()
    }
    order = [(a, m, d) for a in attacks for m in networks for d in datasets if d in networks[m]]
    settings = {(a, m, d): _setting(attacks[a], origins[a], m, d) for a, m, d in order}
    moved = dict.fromkeys(a for a, m, d in order if settings[a, m, d] in SETTINGS[1:-1])
    learnt = [attacks[a] for a in moved if not isinstance(attacks[a], InstanceAttack)]
    families = _pattern_families(learnt) if values["patterns"] else {}
    measured = {**attacks, **{n: a for family in families.values() for n, a in family.items()}}
    places = [(network, place) for network in networks for place in networks[network]]
    folder = None if folder is None else to_path(folder)
    keys = {}
    if folder is not None:
        remove_leftovers(folder / "cells")
        keys = {name: attack_fingerprint(a, size) for name, a in measured.items()}
    results: dict[tuple[str, str, str], dict[str, Any]] = {}
    for network, place in places:
        model, dataset = networks[network][place], datasets[place]
        retrieval = Retrieval(model, dataset, protocol, store, values["batch_size"])
        for name, attack in measured.items():
            results[name, network, place] = _evaluation(
                attack, retrieval, values["query_every"], folder, keys.get(name)
            )
            if progress is not None:
                progress(len(results), len(measured) * len(places))
    result = GridResult(tuple(_cells(attacks, datasets, settings, families, results)))
    if folder is not None and is_first():
        result.save(folder / "grid.json")
    return _with_warnings(result)


def _with_warnings(result: GridResult) -> GridResult:
    for cell in result.cells:
        warn_of_zero_gradients(f"{cell.attack} on {cell.model}", cell.zero_gradients)
    return result


def _cells(
    attacks: Mapping[str, Attack],
    datasets: Mapping[str, ReIDDataset],
    settings: Mapping[tuple[str, str, str], str],
    families: Mapping[str, Mapping[str, Attack]],
    results: Mapping[tuple[str, str, str], dict[str, Any]],
) -> Iterator[GridCell]:
    """Yield the cells of the attacks, then those of the strongest pattern of each family."""
    for (a, m, d), setting in settings.items():
        meta_test = _was_meta_test(attacks[a], datasets[d])
        yield GridCell(a, m, d, setting, meta_test, results[a, m, d])
    places = dict.fromkeys((m, d) for _, m, d in results)
    for label, family in families.items():
        for m, d in places:
            best = _strongest({name: results[name, m, d] for name in family})
            yield GridCell(label, m, d, SETTINGS[-1], False, best)


def _pattern_families(attacks: Iterable[Attack]) -> dict[str, dict[str, Attack]]:
    """Return the fixed patterns of each budget of the attacks, by the name of their cells."""
    budgets = list(dict.fromkeys(attack.budget for attack in attacks))
    families: dict[str, dict[str, Attack]] = {}
    for budget in budgets:
        label = "fixed pattern" if len(budgets) == 1 else f"fixed pattern, ε {budget}"
        families[label] = {
            f"{label}: {name}": pattern for name, pattern in fixed_patterns(budget).items()
        }
    return families


def _strongest(evaluations: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the evaluation with the lowest mAP on 8-bit images, with the pattern's name."""
    name = min(evaluations, key=lambda n: evaluations[n]["attacked_8bit"]["mAP"])
    evaluation = evaluations[name]
    attack = {**evaluation["attack"], "pattern": name.partition(": ")[2]}
    return {**evaluation, "attack": attack}


def _check(
    attacks: Mapping[str, Attack],
    models: Mapping[str, Any],
    datasets: Mapping[str, ReIDDataset],
    sources: Mapping[str, Any],
) -> None:
    if not (attacks and models and datasets):
        raise InputError("a grid needs at least one attack, one model and one dataset")
    for kind, named in ((Attack, attacks), (ReIDDataset, datasets)):
        for name, value in named.items():
            check_instance(kind, name, value)
    if unknown := [name for name in sources if name not in attacks]:
        raise InputError(f"sources names {unknown[0]!r}, which is none of the attacks")


def _by_dataset(
    name: str, models: ReIDModel | Mapping[str, ReIDModel], datasets: Mapping[str, ReIDDataset]
) -> dict[str, ReIDModel]:
    """Return the model of a network for each dataset, in the order of the datasets."""
    if not isinstance(models, Mapping):
        return dict.fromkeys(datasets, models)
    if unknown := [place for place in models if place not in datasets]:
        raise InputError(
            f"network {name!r} has a model for {unknown[0]!r}, which is none of the datasets "
            f"({', '.join(datasets)})"
        )
    for place, model in models.items():
        train = Provenance.of(model, f"the model of {name!r} for {place!r}").train
        trained = None if train is None else train.fingerprint
        if trained is None or trained == datasets[place].fingerprint("train"):
            continue
        for other, dataset in datasets.items():
            if other != place and dataset.train and dataset.fingerprint("train") == trained:
                raise InputError(
                    f"the model of {name!r} for {place!r} was trained on {other!r} according to "
                    "its provenance: pass it for that one, or as a network of its own, which is "
                    "measured on all datasets"
                )
    return {place: models[place] for place in datasets if place in models}


def _source(
    name: str,
    attack: Attack,
    networks: Mapping[str, Mapping[str, ReIDModel]],
    datasets: Mapping[str, ReIDDataset],
    key_of: Callable[[torch.nn.Module], dict[str, Any]],
) -> tuple[str, str | None] | None:
    """Return the network and dataset that an attack was learnt on.

    None for an unbound instance attack, whose source is the model of each cell, and for an attack
    that uses no model.
    """
    cure = f"pass sources={{{name!r}: (NETWORK, DATASET)}}; they may be outside the grid"
    if isinstance(attack, InstanceAttack):
        if attack._target is None:
            return None
        target = attack._target.model
        key = key_of(target) if isinstance(target, torch.nn.Module) else None
        for network, by_dataset in networks.items():
            for place, model in by_dataset.items():
                if target is model or key == key_of(model):
                    is_shared = len({id(m) for m in by_dataset.values()}) == 1
                    return network, None if is_shared else place
        raise InputError(f"attack {name!r} is bound to a model that is none of the grid's; {cure}")
    if not isinstance(attack, LearnedAttack) and attack.provenance is None:
        return None
    provenance = Provenance.of(attack, f"attack {name!r}")
    learnt_on, trained = provenance.model, provenance.meta_train
    if learnt_on is None or trained is None or trained.train is None:
        raise InputError(
            f"the provenance of attack {name!r} does not say what it was learnt on; {cure}"
        )
    places = [p for p, d in datasets.items() if d.train and d.fingerprint("train") == trained.train]
    sources = [
        network
        for network, by_dataset in networks.items()
        if any(fingerprint(key_of(model)) == learnt_on for model in {*by_dataset.values()})
    ]
    if not (sources and places):
        what = f"training images ({trained.name})" if sources else "a model"
        raise InputError(
            f"attack {name!r} was learnt on {what}, which the grid does not have; {cure}"
        )
    return sources[0], places[0]


def _setting(
    attack: Attack, source: tuple[str, str | None] | None, network: str, place: str
) -> str:
    if source is None:
        return SETTINGS[0 if isinstance(attack, InstanceAttack) else -1]
    return SETTINGS[(source[0] != network) + 2 * (source[1] not in (None, place))]


def _was_meta_test(attack: Attack, dataset: ReIDDataset) -> bool:
    learnt = Provenance.of(attack, type(attack).__name__).meta_test
    if learnt is None or learnt.train is None or not dataset.train:
        return False
    return dataset.fingerprint("train") == learnt.train


def _key(retrieval: Retrieval, query_every: int) -> dict[str, Any]:
    """Return what a cell depends on, apart from the attack."""
    groups = retrieval.query_groups(query_every)
    several = {} if groups is None else {"multi_query": groups.dataset.fingerprint("query")}
    return {
        "schema": SCHEMA,
        **several,
        "queries": retrieval.key("query", query_every),
        "gallery": retrieval.dataset.fingerprint("gallery"),
        "metric": retrieval.metric,
        "protocol": retrieval.protocol.to_dict(),
    }


@count_gradients()  # the grid warns of all its cells
def _evaluation(
    attack: Attack,
    retrieval: Retrieval,
    query_every: int,
    folder: Path | None,
    attack_key: str | None,
) -> dict[str, Any]:
    """Return the evaluation that the folder holds under this key; else measure and write it."""
    key, file = {}, None
    if folder is not None:
        key = {"attack": attack_key, **_key(retrieval, query_every)}
        file = folder / "cells" / f"{fingerprint(key)[:32]}.json"
    cell = from_first(None if file is None else find_record(file, CachedCell))
    if cell is not None and cell.key == key:
        return dict(cell.evaluation)
    evaluation = evaluate_with(retrieval, retrieval.bind(attack), query_every).to_dict()
    if file is not None and is_first():
        write_json(file, {"key": key, "evaluation": evaluation})
    return evaluation
