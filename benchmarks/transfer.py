"""What makes a universal perturbation hurt a network unlike its source?

Run: python benchmarks/transfer.py --surrogate FILE --target NAME=FILE[@DATA] ... [--seeds 0]
Needs REIDGUARD_DATA and REIDGUARD_WEIGHTS. Delta attacks on OSNet x0.25 and Market-1501, all with
100 steps of 8 people × 4 images and ε = 8/255, differ in one thing each; they are measured on the
source and on models of other families, trained by `reidguard train`, that no attack saw (--target,
as in meta.py). The fixed patterns, which know nothing, are rows of their own: what is learnt should
do more than the best of them. --surrogate is one more model, which only the ensemble learns on.
Rows that results/transfer.json has already are not run again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from attacks import BATCH, EIGHT, STEPS
from common import market, osnet
from meta import compare_variants, variant_parser
from torch import Tensor

from reidguard.attacks import Attack, DeltaAttack, fixed_patterns
from reidguard.data import join_datasets, load_dataset
from reidguard.models import EnsembleModel, ReIDModel, load_model
from reidguard.objectives import (
    AttackLoss,
    MisrankingTriplet,
    SelfMetricLoss,
)
from reidguard.types import InputSpec

ONE, MIX = ("plaza",), ("plaza", "station", "mall")
SHRUNK = 0.7  # share of images that the network sees smaller and elsewhere


class Layers(ReIDModel):
    """Features from inside a network: the means of the maps of some layers, each of length 1."""

    def __init__(self, model: ReIDModel, names: Sequence[str]) -> None:
        nothing = InputSpec(size=None, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        super().__init__(input_spec=nothing, metric="cosine")
        self.model = model
        self.maps: list[Tensor] = []
        for name in names:
            model.get_submodule(name).register_forward_hook(self._keep)

    def _keep(self, module, inputs, output: Tensor) -> None:
        self.maps.append(output)

    def prepare(self, x: Tensor) -> Tensor:
        return x

    def embed(self, inputs: Tensor) -> Tensor:
        self.maps.clear()
        self.model.features(inputs)
        return torch.cat([F.normalize(m.mean((2, 3))) for m in self.maps], 1)


@dataclass
class Variant:
    """What differs from a plain delta attack."""

    model: Callable[[ReIDModel, ReIDModel], ReIDModel] = lambda source, second: source
    loss: Callable[[], AttackLoss] = MisrankingTriplet
    diversity: float = 0.0
    learner: str = "plain"
    domains: tuple[str, ...] = ()


def both(source, second) -> EnsembleModel:
    return EnsembleModel([source, second])


VARIANTS = {
    "plain": Variant(),
    "self-supervised loss": Variant(loss=SelfMetricLoss),
    "input diversity": Variant(diversity=SHRUNK),
    "intermediate features": Variant(model=lambda *_: Layers(osnet(), ("conv3", "conv4"))),
    "two surrogates": Variant(model=both),
    "two surrogates, input diversity": Variant(model=both, diversity=SHRUNK),
    "one virtual domain": Variant(learner="joint", domains=ONE),
    "three virtual domains": Variant(learner="joint", domains=MIX),
    "three virtual domains, meta": Variant(learner="first_order", domains=MIX),
}


def main() -> None:
    parser = variant_parser(__doc__, [*fixed_patterns(), *VARIANTS])
    parser.add_argument("--surrogate", required=True, help="a second model, for the ensemble")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, source, second = osnet(), market(), load_model(options.surrogate)
    sets = {name: load_dataset(f"virtual:{name}") for name in MIX}

    patterns = fixed_patterns(EIGHT)

    def learn(name: str, seed: int) -> Attack:
        if name in patterns:
            return patterns[name]
        how = VARIANTS[name]
        other = {domain: sets[domain] for domain in how.domains}
        return DeltaAttack(EIGHT).fit(
            how.model(model, second),
            source,
            join_datasets(other, splits=("train",)) if other else None,
            learner=how.learner,
            objective=how.loss(),
            diversity=how.diversity,
            steps=STEPS,
            seed=seed,
            **BATCH,
        )

    compare_variants("transfer", options, model, source, learn)


if __name__ == "__main__":
    main()
