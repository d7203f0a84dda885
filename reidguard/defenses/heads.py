"""A copy of a model that has a classifier for each domain of a defense."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from reidguard.contexts import seeded
from reidguard.data import ReIDDataset
from reidguard.errors import CheckpointError, InputError
from reidguard.models import ReIDModel, create_model

__all__ = ["domains_of", "with_classifiers"]


def domains_of(model: ReIDModel, datasets: list[ReIDDataset]) -> list[str]:
    """Return the name of each dataset's classifier in the model, present or new.

    A classifier of the model serves a dataset if it has as many identities, the model's provenance
    does not contradict it, and it has the dataset's name, or was trained on the same images, or is
    the only one.
    """
    learnt = _learnt(model)
    single = list(model.num_classes) if len(model.num_classes) == 1 else []
    names: list[str] = []
    for dataset in datasets:
        name = dataset.name.replace(".", "_")
        same = [d for d, facts in learnt.items() if _from(facts, dataset)]
        own = [d for d in (name, *same, *single) if d not in names and _serves(model, d, dataset)]
        if own:
            name = own[0]
        while name in names:
            name += "_2"
        names.append(name)
    return names


def with_classifiers(
    model: ReIDModel, domains: Mapping[str, ReIDDataset], *, seed: int
) -> ReIDModel:
    """Return a copy of a model with one classifier per domain, reusing its own where they fit.

    Args:
        model: Only read.
        domains: Each domain's dataset; if there is none, the classifiers stay as they are.
        seed: Fixes the initial weights of new classifiers.

    Raises:
        InputError: If new classifiers are needed and the model cannot be built anew.
    """
    sizes = {domain: dataset.num_train_pids for domain, dataset in domains.items()}
    reused = {domain for domain, dataset in domains.items() if _serves(model, domain, dataset)}
    if not sizes or reused == set(sizes) == set(model.num_classes):
        return copy.deepcopy(model)  # deepcopy drops the gradients of parameters
    if model.build_spec is None:
        raise InputError(
            f"this {type(model).__name__} has no classifier for {', '.join(set(sizes) - reused)} "
            "and gets none, since it was not made by create_model: create it with "
            f"num_classes={sizes}, or take losses=('triplet',), which needs none"
        )
    name, kwargs = model.build_spec
    with seeded(seed):
        built = create_model(name, num_classes=sizes, **kwargs)
    new, old = built.state_dict(), model.state_dict()
    dropped = (set(sizes) | set(model.num_classes)) - reused
    for key in new:
        head = key.startswith(model.head_prefixes)
        if head and (key not in old or dropped & set(key.split("."))):
            continue
        if key not in old or old[key].shape != new[key].shape:
            raise CheckpointError(
                f"{name!r}, rebuilt, does not fit the original model ({key}): "
                "create the model with create_model and the options that it has now"
            )
        new[key] = old[key].detach().clone()
    floats = next((p for p in model.parameters() if p.is_floating_point()), None)
    if floats is not None:
        built.to(floats.device, floats.dtype)
    built.load_state_dict(new)
    built.input_spec, built.metric = model.input_spec, model.metric
    flags = {key: parameter.requires_grad for key, parameter in model.named_parameters()}
    for key, parameter in built.named_parameters():
        parameter.requires_grad_(flags.get(key, True))
    return built


def _serves(model: ReIDModel, domain: str, dataset: ReIDDataset) -> bool:
    if model.num_classes.get(domain) != dataset.num_train_pids:
        return False
    learnt = _learnt(model)
    return domain not in learnt or _from(learnt[domain], dataset)


def _learnt(model: ReIDModel) -> dict[str, dict[str, str]]:
    """Return what each classifier was trained on, as far as the model's provenance has it."""
    provenance = model.provenance or {}
    learnt = dict(provenance.get("domains", {}))
    if "domain" in provenance and "train" in provenance:  # as train_model writes them
        learnt[provenance["domain"]] = provenance["train"]
    return learnt


def _from(facts: dict[str, str], dataset: ReIDDataset) -> bool:
    return facts["fingerprint"] == dataset.fingerprint("train")
