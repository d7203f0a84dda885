"""Which inner step is strong and has a derivative? Compared on real data.

Run: python benchmarks/inner_steps.py. Needs REIDGUARD_DATA and REIDGUARD_WEIGHTS. After 10 plain
steps of an attack on OSNet x0.25 and Market-1501, one inner step of each kind: the losses of the
same meta-train and meta-test batch after it, and the share of the second-order term in maml's
gradient. "sgd" is Algorithm 1 to the letter, "sign" the released code's; the steps that are not in
the library were tried and are weaker.

Then the same for a defense, after 20 steps of mixed training with images of that delta attack: the
inner step of MetaDefense, longer ones, and one that follows the outer Adam; and the cosine of
maml's gradient to that of mixed training, which has no inner step.
"""

import argparse

import torch
from attacks import BATCH, EIGHT
from common import market, osnet, save

from reidguard.attacks import ColorAttack, DeltaAttack
from reidguard.data import BatchLoader, load_dataset
from reidguard.defenses import MetaDefense
from reidguard.learners import LEARNERS, FirstOrderLearner, JointLearner, MAMLLearner, PlainLearner
from reidguard.learners.inner import INNER_STEPS, scaled
from reidguard.nn import inference_view
from reidguard.objectives import FeatureObjective, MisrankingTriplet
from reidguard.training import MISGD


def over_rms(gradient, buffer, rates):
    """As scaled, over the root mean square in place of the mean magnitude."""
    direction, buffer = scaled(gradient, buffer, rates)
    return direction / (direction.square().mean().sqrt() + 1e-12), buffer


def tanh(gradient, buffer, rates):
    """A soft sign of the scaled step."""
    direction, buffer = scaled(gradient, buffer, rates)
    return torch.tanh(direction), buffer


def steep_tanh(gradient, buffer, rates):
    """A harder sign of the scaled step."""
    direction, buffer = scaled(gradient, buffer, rates)
    return torch.tanh(3 * direction), buffer


CHOICES = ("scaled", "sgd", "sign")  # adam starts from an outer Adam, which an attack has not
TRIED = {"over root mean square": over_rms, "tanh": tanh, "tanh of 3 times": steep_tanh}


def compare(model, attack, pairs) -> list[dict]:
    objective = FeatureObjective(model, MisrankingTriplet())
    optimizer = MISGD(attack.parameters(), EIGHT.eps / 10, 0.5)
    for first, _ in pairs[:-1]:
        PlainLearner().step(attack, objective, first)
        optimizer.step()
        attack.clip_parameters()
    first, second = pairs[-1]
    start = {name: value.clone() for name, value in attack.state_dict().items()}

    def losses() -> dict:
        with torch.no_grad():
            found = {"train": objective(attack, first), "test": objective(attack, second)}
        return {name: round(float(loss), 4) for name, loss in found.items()}

    def gradient(learner):
        learner.step(attack, objective, first, second, optimizer=optimizer)
        return torch.cat([p.grad.flatten() for p in attack.parameters()])

    rows = [{"inner": "none", **losses()}]
    for name in (*CHOICES, *TRIED):
        one, exact = gradient(FirstOrderLearner(inner=name)), gradient(MAMLLearner(inner=name))
        gradient(FirstOrderLearner(inner=name, keep_temporary=True))
        share = float((exact - one).norm() / exact.norm())
        rows.append({"inner": name, **losses(), "second_order_share": round(share, 4)})
        attack.load_state_dict(start)
    return rows


# As MetaDefense takes them: the size is that of the outer Adam unless it is given.
INNER = {
    "sgd": {"inner": "sgd"},
    "sgd, 10 times as long": {"inner": "sgd", "inner_lr": 3e-3},
    "sgd, 100 times as long": {"inner": "sgd", "inner_lr": 3e-2},
    "adam": {"inner": "adam"},
}


@LEARNERS.register("probe")
class Probe(JointLearner):
    """Mixed training that looks at its last step with every inner step."""

    def __init__(self, steps: int) -> None:
        self.left, self.rows = steps, []

    def step(self, module, objective, meta_train_batch, meta_test_batch=None, *, optimizer=None):
        batches = (meta_train_batch, meta_test_batch)
        self.left -= 1
        start = {name: value.clone() for name, value in module.state_dict().items()}

        def gradient(learner):
            module.load_state_dict(start)
            learner.step(module, objective, *batches, optimizer=optimizer)
            # where a learner says nothing of a parameter, as of the other domain's classifier
            return torch.cat(
                [
                    (torch.zeros_like(p) if p.grad is None else p.grad).flatten()
                    for p in module.parameters()
                ]
            )

        def losses() -> dict:
            with torch.no_grad():
                found = {
                    name: objective(module, batch)
                    for name, batch in zip(("train", "test"), batches, strict=True)
                }
            return {name: round(float(loss), 4) for name, loss in found.items()}

        if self.left == 0:
            joint = gradient(JointLearner())
            module.load_state_dict(start)
            self.rows.append({"inner": "none", **losses()})
            for name, given in INNER.items():
                one, exact = (gradient(kind(**given)) for kind in (FirstOrderLearner, MAMLLearner))
                gradient(FirstOrderLearner(**given, keep_temporary=True))
                after = losses()
                cosine = torch.nn.functional.cosine_similarity(exact, joint, dim=0)
                self.rows.append(
                    {
                        "inner": name,
                        **after,
                        "second_order_share": round(float((exact - one).norm() / exact.norm()), 4),
                        "cosine_to_mixed": round(float(cosine), 4),
                    }
                )
            module.load_state_dict(start)
        return super().step(module, objective, *batches, optimizer=optimizer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    torch.set_num_threads(parser.parse_args().threads)
    model, sets = osnet(), (market(), load_dataset("virtual:plaza"))
    loaders = [BatchLoader(d, image_size=(256, 128), seed=0, **BATCH) for d in sets]
    pairs = [
        pair
        for pair, _ in zip(
            zip(*(x.epoch(0) for x in loaders), strict=False), range(11), strict=False
        )
    ]
    INNER_STEPS.update(TRIED)
    figures = {}
    for name, attack in (("delta", DeltaAttack(EIGHT)), ("color", ColorAttack(EIGHT))):
        figures[name] = compare(inference_view(model), attack, pairs)
        for row in figures[name]:
            print(name, row, flush=True)
        if name == "delta":
            known = attack
    probe = Probe(21)
    MetaDefense(known, learner=probe).fit(model, *sets, steps=21, **BATCH)
    figures["defense"] = probe.rows
    for row in probe.rows:
        print("defense", row, flush=True)
    save("inner_steps", {"setting": f"OSNet x0.25, batches of {BATCH}", "steps": figures}, sets[0])


if __name__ == "__main__":
    main()
