"""What the paper leaves open about meta-learning, varied: does it change how an attack transfers?

Run: python benchmarks/variations.py [--seeds 0] [--only NAME ...] --target NAME=FILE[@DATA] ...
Needs REIDGUARD_DATA and REIDGUARD_WEIGHTS. Delta attacks on OSNet x0.25 and Market-1501 as in
meta.py, with the learner first_order (whose gradient is maml's there, see meta.json), measured on
the source and on the models given with --target; meta.json has what they vary. Where the mining of
Eq. 5 looks is varied for the learner plain, too: furthest from the clean feature in the batch (the
paper), nearest to the adversarial feature in the batch, or furthest in the whole training set. Rows
that results/variations.json has already are not run again.
"""

import torch
from attacks import BATCH, EIGHT, STEPS
from common import market, osnet
from meta import compare_variants, variant_parser
from torch import Tensor

from reidguard.attacks import DeltaAttack
from reidguard.data import join_datasets, load_dataset
from reidguard.learners import LEARNERS
from reidguard.objectives import ATTACK_LOSSES, MisrankingTriplet
from reidguard.objectives.misranking import row_distance

ALPHA = EIGHT.eps / 10
ONE, MIX = ("plaza",), ("plaza", "station", "mall")


@ATTACK_LOSSES.register("mined_from_adversarial")
class FromAdversarial(MisrankingTriplet):
    """Pull to the nearest negative of the adversarial feature, push from its nearest positive."""

    def __call__(self, adversarial: Tensor, clean: Tensor, pids: Tensor) -> Tensor:
        same = pids[:, None] == pids[None, :]
        with torch.no_grad():
            distance = (adversarial[:, None] - clean[None]).square().sum(2)
        negative = distance.masked_fill(same, torch.inf).argmin(1)
        positive = distance.masked_fill(~same, torch.inf).argmin(1)
        pull = row_distance(adversarial, clean[negative])
        push = row_distance(adversarial, clean[positive])
        return (pull - push + self.margin).clamp(min=0).mean()


@ATTACK_LOSSES.register("mined_in_training_set")
class InTrainingSet(MisrankingTriplet):
    """Pull to the furthest image of the training set, which is never one of the same person."""

    needs_training_statistics = True
    training: Tensor

    def with_statistics(self, training: Tensor) -> MisrankingTriplet:
        made = InTrainingSet(self.margin)
        made.training = training
        return made

    def __call__(self, adversarial: Tensor, clean: Tensor, pids: Tensor) -> Tensor:
        same = pids[:, None] == pids[None, :]
        furthest = self.training[torch.cdist(clean, self.training).argmax(1)]
        apart = torch.cdist(clean, clean).masked_fill(~same, -torch.inf)
        pull = row_distance(adversarial, furthest)
        push = row_distance(adversarial, clean[apart.argmax(1)])
        return (pull - push + self.margin).clamp(min=0).mean()


# learner, its options, meta-test domains, loss
VARIANTS = {
    "plain": ("plain", {}, ONE),
    "meta": ("first_order", {}, ONE),
    "plain, mined from the adversarial feature": ("plain", {}, ONE, FromAdversarial),
    "meta, mined from the adversarial feature": ("first_order", {}, ONE, FromAdversarial),
    "plain, mined in the training set": ("plain", {}, ONE, InTrainingSet),
    "meta, mined in the training set": ("first_order", {}, ONE, InTrainingSet),
    "meta, inner step 4 times as long": ("first_order", {"inner_lr": 4 * ALPHA}, ONE),
    "meta, 3 inner steps": ("first_order", {"inner_steps": 3}, ONE),
    "joint, 3 domains": ("joint", {}, MIX),
    "meta, 3 domains": ("first_order", {}, MIX),
    "meta, 3 domains, inner step 4 times as long": ("first_order", {"inner_lr": 4 * ALPHA}, MIX),
}


def main() -> None:
    options = variant_parser(__doc__, VARIANTS).parse_args()
    torch.set_num_threads(options.threads)
    model, source = osnet(), market()
    others = {
        domains: join_datasets(
            {name: load_dataset(f"virtual:{name}") for name in domains}, splits=("train",)
        )
        for domains in (ONE, MIX)
    }

    def learn(name: str, seed: int) -> DeltaAttack:
        learner, given, domains, *loss = VARIANTS[name]
        made = LEARNERS.create(learner, **given)
        return DeltaAttack(EIGHT).fit(
            model,
            source,
            others[domains] if made.needs_meta_test else None,
            learner=made,
            objective=loss[0]() if loss else None,
            steps=STEPS,
            seed=seed,
            **BATCH,
        )

    compare_variants("variations", options, model, source, learn)


if __name__ == "__main__":
    main()
