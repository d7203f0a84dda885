"""Two processes against one, in float64. Run by test_distributed.py through torchrun.

Every process works out both: what the joint batch gives without the others, and what it gives with
them when it holds its share. So the reference shares nothing with the processes' talk.
"""

import json
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from reidguard.attacks import ColorAttack, CombinatorialAttack, DeltaAttack
from reidguard.attacks.universal.left_out import LeftOutBatch, LeftOutObjective
from reidguard.data import load_dataset
from reidguard.distributed import agree, average, gather, join
from reidguard.errors import TrainingError
from reidguard.learners import LEARNERS
from reidguard.learners.displaced import DisplacedLearner
from reidguard.learners.perturbed import PerturbedLearner
from reidguard.models import EnsembleModel, TransferModel, wrap_model
from reidguard.models.base import ReIDOutput
from reidguard.objectives import (
    EnsembleLoss,
    FeatureImportanceLoss,
    FeatureObjective,
    InputCopies,
    MisrankingTriplet,
)
from reidguard.objectives.defense import DefenseBatch, DefenseObjective
from reidguard.objectives.reid import ReIDObjective
from reidguard.training import MISGD
from reidguard.training.recompute import recomputing
from reidguard.types import BatchShard, Budget, InputSpec

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers import SmoothEmbedder, random_batch, rng

LEARNER_NAMES = ("plain", "joint", "first_order", "hessian_free", "maml")
DOUBLE = torch.float64


class Block(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Softplus())


class Classifier(nn.Module):
    """With all that looks beyond one image: batch norm in two forms, dropout in two layouts."""

    metric = "cosine"

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Tanh(), Block(), Block(), nn.Dropout(0.2)
        )
        self.neck = nn.Sequential(
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.BatchNorm1d(24), nn.Dropout(0.3)
        )
        self.heads = nn.ModuleDict({"a": nn.Linear(24, 6), "b": nn.Linear(24, 6)})
        for p in self.parameters():
            nn.init.normal_(p, std=0.5, generator=rng(p.numel()))
        self.double()

    def forward(self, x, domain=None):
        embeddings = self.neck(self.trunk(x.contiguous(memory_format=torch.channels_last)))
        return ReIDOutput(embeddings, embeddings, self.heads[domain or "a"](embeddings))


def batch(seed, people=5, each=3):
    # no pixel is clipped by [0, 1]
    return random_batch(people, each, (12, 10), seed=seed, low=0.25, high=0.75, dtype=DOUBLE)


def own_rows(pids):
    return (pids % dist.get_world_size() == dist.get_rank()).nonzero().flatten()


def shared(joint):
    """This process's rows: 9 of 15 for one, 6 for the other."""
    rows = own_rows(joint.pids)
    parts = {k: v[rows] for k, v in vars(joint).items() if isinstance(v, torch.Tensor)}
    return replace(joint, **parts, shard=BatchShard(rows, len(joint)))


def defense_batch(seed, domain):
    """Clean images and, after them, adversarial ones of a half that is split unevenly."""
    clean = batch(seed)
    chosen = torch.tensor([0, 1, 2, 4, 6, 8, 13])
    rows = torch.cat((torch.arange(15), chosen))
    images = clean.images[rows].clone()
    images[15:] += 0.1 * torch.randn(7, 3, 12, 10, generator=rng(seed + 50), dtype=DOUBLE)
    pids = clean.pids[rows]
    return DefenseBatch(images, pids, pids, rows, domain=domain, adversarial=7), chosen


def shared_defense(joint, chosen):
    share = BatchShard(own_rows(joint.pids[:15]), 15)
    here, of_chosen = share.choose(chosen)
    whole = share.followed_by(of_chosen)
    made = DefenseBatch(
        joint.images[whole.rows],
        joint.pids[whole.rows],
        joint.camids[whole.rows],
        joint.indices[whole.rows],
        domain=joint.domain,
        adversarial=len(here),
        shard=whole,
    )
    assert torch.equal(made.indices[len(share.rows) :], share.rows[here])
    return made


def steps(learner, module, objective, pairs, optimizer=None):
    """Gradients and buffers of one step for each pair of batches, at the same draws."""
    before = {k: v.clone() for k, v in module.state_dict().items()}
    found = []
    for train, test in pairs:
        module.load_state_dict(before)
        torch.manual_seed(7)
        result = learner.step(module, objective, train, test, optimizer=optimizer)
        values = {f"grad {k}": p.grad for k, p in module.named_parameters() if p.grad is not None}
        values |= {k: v.clone().double() for k, v in module.named_buffers()}
        values["train_loss"] = result.train_loss
        if result.test_loss is not None:
            values["test_loss"] = result.test_loss
        found.append(values)
    module.load_state_dict(before)
    return found


def difference(one, two):
    """The largest relative difference of any tensor.

    The bias before a batch norm has a gradient of rounding errors only, so gradients are seen
    relative to a thousandth of the longest, at least.
    """
    assert one.keys() == two.keys(), one.keys() ^ two.keys()
    longest = max(value.norm().item() for name, value in one.items() if name.startswith("grad"))
    assert longest > 0
    worst = 0.0
    for name, value in one.items():
        size = max(value.norm().item(), 1e-3 * longest)
        worst = max(worst, ((value - two[name]).norm() / size).item())
    return worst


def attacks():
    budget = Budget(0.2)
    makes = {
        "delta": lambda: DeltaAttack(budget, (12, 10)),
        "color": lambda: ColorAttack(budget, 4),
        "combinatorial": lambda: CombinatorialAttack(budget, 4, (12, 10)),
    }
    model = SmoothEmbedder()
    pairs = [(batch(1), batch(2))]
    pairs.append(tuple(shared(b) for b in pairs[0]))
    for name, make in makes.items():
        for learner in LEARNER_NAMES:
            attack = make().double()
            for p in attack.parameters():
                nn.init.uniform_(p, -0.01, 0.01, generator=rng(p.numel()))
            optimizer = MISGD(attack.parameters(), lr=0.02, momentum=0.5)
            objective = FeatureObjective(model, MisrankingTriplet())
            options = {"inner_steps": 2} if learner in ("hessian_free", "maml") else {}
            made = LEARNERS.create(learner, **options)
            yield f"{name} {learner}", difference(*steps(made, attack, objective, pairs, optimizer))
    attack = makes["delta"]().double()
    objective = FeatureObjective(model, MisrankingTriplet(), InputCopies(diversity=0.7))
    yield "delta, diverse", difference(*steps(LEARNERS.create("joint"), attack, objective, pairs))
    copies = InputCopies(diversity=0.7, shift=2, scales=2, admix=0.2)
    objective = FeatureObjective(model, MisrankingTriplet(), copies)
    for learner in ("joint", "maml"):
        attack = makes["combinatorial"]().double()
        optimizer = MISGD(attack.parameters(), lr=0.002, momentum=0.5)
        for p in attack.parameters():
            optimizer.state[p]["momentum_buffer"] = torch.randn(
                p.shape, generator=rng(p.numel()), dtype=DOUBLE
            )
        made = DisplacedLearner(LEARNERS.create(learner), 3, True, attack.clip_parameters)
        values = steps(made, attack, objective, pairs, optimizer)
        yield f"copies, look-ahead and small batches {learner}", difference(*values)
    yield from over_networks(pairs)


class Skip(nn.Module):
    """A residual block."""

    def __init__(self):
        super().__init__()
        self.inside = nn.Conv2d(3, 4, 3, stride=2)
        self.branch = nn.Conv2d(4, 4, 3, padding=1)
        for p in self.parameters():
            nn.init.normal_(p, std=0.5, generator=rng(p.numel()))

    def forward(self, x):
        x = self.inside(x)
        return (x + torch.tanh(self.branch(x))).flatten(1)


def over_networks(pairs):
    """Meta-learning over networks of random shortcuts, by a loss with random masks."""
    spec = InputSpec(size=(12, 10))
    nets = [
        wrap_model(Skip(), input_spec=replace(spec, size=(h, 10))).double() for h in (8, 10, 12)
    ]
    ensemble = EnsembleModel([TransferModel(net, ghost=0.3) for net in nets])
    losses = {"triplet": MisrankingTriplet(), "fia": FeatureImportanceLoss("network.inside", 3)}
    pairs = [
        (LeftOutBatch(**vars(a), members=(0, 2)), LeftOutBatch(**vars(b), members=(1,)))
        for a, b in pairs
    ]
    for name, loss in losses.items():
        attack = DeltaAttack(Budget(0.1), (12, 10)).double()
        objective = LeftOutObjective(FeatureObjective(ensemble, EnsembleLoss(loss)))
        optimizer = MISGD(attack.parameters(), lr=0.002, momentum=0.5)
        values = steps(LEARNERS.create("maml"), attack, objective, pairs, optimizer)
        yield f"over networks {name}", difference(*values)


def defenses():
    joint, chosen = defense_batch(3, "a")
    other, other_chosen = defense_batch(4, "b")
    pairs = [(joint, other)]
    pairs.append((shared_defense(joint, chosen), shared_defense(other, other_chosen)))
    for policy in ("shared", "separate"):
        for learner in LEARNER_NAMES:
            objective = DefenseObjective(reduction="sum", batch_norm=policy)
            options = {"inner": "sgd", "inner_lr": 1e-4} if learner not in LEARNER_NAMES[:2] else {}
            made = LEARNERS.create(learner, **options)
            values = steps(made, Classifier().train(), objective, pairs)
            yield f"defense {policy} {learner}", difference(*values)
    tied = [tuple(replace(b, sources=c) for b, c in zip(pair, (chosen, other_chosen), strict=True))
            for pair in pairs]  # fmt: skip
    for regularizer, policy in (("trades", "shared"), ("mart", "separate")):
        for learner in ("joint", "maml"):
            objective = DefenseObjective(batch_norm=policy, regularizer=regularizer)
            options = {"inner": "sgd", "inner_lr": 1e-4} if learner == "maml" else {}
            made = PerturbedLearner(LEARNERS.create(learner, **options), 0.01)
            values = steps(made, Classifier().train(), objective, tied)
            yield f"defense {regularizer} perturbed {learner}", difference(*values)
    still = [tuple(replace(b, statistics=False) for b in pair) for pair in pairs]
    values = steps(LEARNERS.create("plain"), Classifier().train(), DefenseObjective(), still)
    yield "defense in turns plain", difference(*values)
    for learner in ("plain", "maml"):  # frozen statistics
        options = {"inner": "sgd", "inner_lr": 1e-4} if learner == "maml" else {}
        made = LEARNERS.create(learner, **options)
        values = steps(made, Classifier().eval(), DefenseObjective(), pairs)
        yield f"defense frozen {learner}", difference(*values)
    for reduction in ("mean", "sum"):
        plain = [(batch(1), None), (shared(batch(1)), None)]
        values = steps(
            LEARNERS.create("plain"),
            Classifier().train(),
            ReIDObjective("a", reduction=reduction),
            plain,
        )
        yield f"reid {reduction}", difference(*values)
    module = Classifier().train()
    with recomputing(module, blocks=Block):
        values = steps(LEARNERS.create("first_order", **FIRST), module, DefenseObjective(), pairs)
    yield "defense recomputed first_order", difference(*values)


FIRST = {"inner": "sgd", "inner_lr": 1e-3}


def operators():
    """gather and average are linear maps whose derivatives are their transposes."""
    rank, size = dist.get_rank(), dist.get_world_size()
    share = BatchShard(torch.arange(rank, 7, size), 7)
    x = torch.randn(len(share.rows), 2, generator=rng(rank), dtype=DOUBLE, requires_grad=True)
    for name, operate in (
        ("gather", lambda v: gather(v, share)),
        ("average", lambda v: average([v[:3]], share)[0]),
    ):
        y = operate(x)
        u = torch.randn(y.shape, generator=rng(10 + rank), dtype=DOUBLE, requires_grad=True)
        (back,) = torch.autograd.grad(y, x, u, create_graph=True)
        one, two = (y * u).sum().detach(), (x * back).sum().detach()
        dist.all_reduce(one)
        dist.all_reduce(two)
        yield f"{name} transpose", ((one - two).abs() / one.abs()).item()
        w = torch.randn(x.shape, generator=rng(20 + rank), dtype=DOUBLE)
        (again,) = torch.autograd.grad(back, u, w)
        yield f"{name} second", ((again - operate(w)).norm() / again.norm()).item()


def fits(root, work):
    """A fit by both, its checkpoint and its progress; and the same fit by each alone."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 5, stride=2), nn.Tanh(), nn.Flatten())
    model = wrap_model(network, input_spec=InputSpec(size=(32, 16)), metric="euclidean")
    data = load_dataset("virtual", root)
    reports = []

    def fit(checkpoint=None, dies_after=None):
        attack = DeltaAttack(size=(32, 16))
        clip, calls = attack.clip_parameters, []

        def clip_or_die():
            calls.append(None)
            if len(calls) == dies_after:
                raise KeyboardInterrupt
            clip()

        attack.clip_parameters = clip_or_die
        attack.fit(
            model,
            data,
            data,
            learner="maml",
            steps=6,
            identities=3,
            images_per_identity=3,
            image_size=(32, 16),
            checkpoint=checkpoint,
            checkpoint_every=2,
            progress=lambda p: reports.append(p),
        )
        return attack

    path = work / "checkpoint"
    straight = fit()
    writers = [None] * dist.get_world_size()
    dist.all_gather_object(writers, len(reports))
    dist.barrier()
    try:
        agree({"seed": 1, "model": dist.get_rank()})
    except TrainingError as error:
        refusal = str(error)
    with suppress(KeyboardInterrupt):
        fit(path, dies_after=4)
    reports.clear()
    dist.barrier()
    resumed = fit(path)
    return {
        "reports": writers,
        "resumed_tells": [p.done for p in reports if p.phase == "learning"],
        "refusal": refusal,
        "bits": gather_bits(straight.delta) and torch.equal(straight.delta, resumed.delta),
        "moved": straight.delta.abs().max().item(),
        "facts": straight.provenance,
        "files": sorted(p.name for p in work.iterdir()),
        "delta": straight.delta.flatten().tolist(),
    }


def gather_bits(tensor):
    """Whether all processes have the same bits."""
    high, low = tensor.detach().clone(), tensor.detach().clone()
    dist.all_reduce(high, dist.ReduceOp.MAX)
    dist.all_reduce(low, dist.ReduceOp.MIN)
    return torch.equal(high, low)


def main():
    torch.set_num_threads(1)
    out, root, work = (Path(argument) for argument in sys.argv[1:4])
    with join() as together:
        differences = {}
        for cases in (operators, attacks, defenses):
            differences |= dict(cases())
        worst = torch.tensor(list(differences.values()), dtype=DOUBLE)
        dist.all_reduce(worst, dist.ReduceOp.MAX)
        differences = dict(zip(differences, worst.tolist(), strict=True))
        found = {"differences": differences, "size": together.size}
        if together.rank == 0:
            out.write_text(json.dumps(found))
        found["fit"] = fits(root, work)
        if together.rank == 0:
            out.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
