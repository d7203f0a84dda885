"""MisRank: a generator of one perturbation per image (Wang et al., CVPR 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Self, Unpack

from reidguard.attacks.base import register_attack
from reidguard.attacks.learned import FitDefaults, LearnedAttack
from reidguard.attacks.misrank.networks import Discriminator, Generator, MaskHead, top_k_mask
from reidguard.contexts import seeded
from reidguard.data import ReIDDataset
from reidguard.distributed import world
from reidguard.errors import InputError
from reidguard.metrics.quality import ms_ssim
from reidguard.models import ReIDModel
from reidguard.nn.cameras import with_cameras
from reidguard.nn.gradients import check_graph, graph_needed, watch
from reidguard.nn.modes import inference_view, shared_copy
from reidguard.objectives.misranking import row_distance
from reidguard.objectives.reid import identity_loss
from reidguard.objectives.retrieval import class_scores
from reidguard.options import LearnedAttackOptions, LoopOptions
from reidguard.schema import MAX_SEED, MAX_SIDE, checked, documented, select, settings
from reidguard.training import learn
from reidguard.types import Budget, ReIDBatch

__all__ = ["MisRank", "MisRankObjective", "nearest_positive_triplet"]

LEARNERS_TAKEN = ("plain", "joint")
RE_ID, PERCEPTION = 10.0, 0.1  # weights of the terms
MARGIN, SMOOTHING = 0.3, 0.1
MAX_WIDTH = 256
FLOOR = 1e-6  # the triplet can be zero, and is inside a logarithm


@register_attack("misrank")
class MisRank(LearnedAttack):
    """MisRank (Wang et al., CVPR 2020): a generator writes a perturbation for each image.

    ``x̃ = x + ε · m(x) · G(x)``, G ending in tanh, so that nothing is clipped but pixels below
    black and above white. With ``pixels`` = k a mask m of exactly k pixels is attacked, chosen by a
    head on the discriminator's features; in learning the k are drawn with Gumbel noise. Images of
    another size than ``size`` are resized for the networks, and G's output back to theirs (the mask
    to the nearest pixel).

    :meth:`fit` trains generator and discriminator together, on an objective of its own, with Adam.
    The surrogate needs a classifier. Only the learners "plain" and "joint" are taken; "joint" with
    virtual people is the row "MisRank+PersonX". See ``docs/universal_attacks.rst`` for the losses.

    Args:
        budget: The ball; 8/255 by default.
        size: Height and width that the networks work at, multiples of 4 and at least 16.
        pixels: How many pixels of an image are attacked; −1 for all.
        width: Filters of the generator's first layer; the discriminator's first has twice as many.
        seed: Of the initial weights.

    Example:
        >>> attack = MisRank(Budget(8 / 255), size=(32, 16), pixels=20, width=2)
        >>> x = torch.full((1, 3, 32, 16), 0.5)
        >>> int((attack(x) != x).any(1).sum())
        20
    """

    fit_defaults = FitDefaults(epochs=40, objective=None)

    def __init__(
        self,
        budget: Budget | None = None,
        size: tuple[int, int] = (256, 128),
        pixels: int = -1,
        width: int = 32,
        seed: int = 0,
    ) -> None:
        super().__init__(budget)
        self.size = checked(tuple[int, int], "size", size, low=16, high=MAX_SIDE)
        if any(side % 4 for side in self.size):
            raise InputError(f"size must be (height, width), multiples of 4, not {size!r}")
        most = self.size[0] * self.size[1]
        self.pixels = checked(int, "pixels", pixels, low=-1, high=most)
        if pixels == 0:
            raise InputError(f"pixels must be -1 for all, or lie in 1..{most}, not 0")
        self.width = checked(int, "width", width, low=1, high=MAX_WIDTH)
        self.seed = checked(int, "seed", seed, low=0, high=MAX_SEED)
        with seeded(self.seed):
            self.generator = Generator(width)
            self.discriminator = Discriminator(2 * width)
            self.mask_head = None if pixels == -1 else MaskHead(2 * width)
        # Batch and spectral norms move in train mode; only learning may do that.
        self.eval()

    def perturb(self, x: Tensor) -> Tensor:
        """Return ``x + ε · m(x) · G(x)``, computed in the dtype of the weights."""
        small = x.to(next(self.generator.parameters()).dtype)
        shape = (x.shape[2], x.shape[3])
        if shape != self.size:
            small = F.interpolate(
                small, self.size, mode="bilinear", align_corners=False, antialias=True
            )
        change: Tensor = self.budget.eps * self.generator(2 * small - 1)
        mask = None if self.mask_head is None else self.mask(small, small + change)
        if shape != self.size:
            change = F.interpolate(change, shape, mode="bilinear", align_corners=False)
            mask = None if mask is None else F.interpolate(mask, shape, mode="nearest")
        if mask is not None:
            change = change * mask
        wide = torch.promote_types(x.dtype, torch.float32)
        return x.to(wide) + change.to(wide)

    def mask(self, images: Tensor, adversarial: Tensor) -> Tensor:
        """Return which pixels are attacked, (N, 1, H, W) of exactly 0 and 1.

        Args:
            images: (N, 3, H, W) in [0, 1], of ``size``.
            adversarial: The same with every pixel attacked.
        """
        if self.mask_head is None:
            return torch.ones_like(images[:, :1])
        # No gradient goes back to what the discriminator sees, nor into it: it learns from its own
        # loss, and the head from the generator's.
        with torch.no_grad():
            features = self.discriminator.features(_pair(images, adversarial))
        logits: Tensor = self.mask_head(features)
        return top_k_mask(logits.flatten(1), self.pixels, noise=self.training).view_as(logits)

    @documented(
        LearnedAttackOptions,
        **{"learner": "plain", "epochs": 40, "lr": 2e-4, "identities": 8},
        **{"images_per_identity": 4, "momentum": 0.5},
    )
    def fit(
        self,
        model: ReIDModel,
        meta_train: ReIDDataset,
        meta_test: ReIDDataset | None = None,
        **options: Unpack[LearnedAttackOptions],
    ) -> Self:
        """Train generator and discriminator together, with Adam at a constant rate.

        Args:
            model: The surrogate, with a classifier, on the same device as the attack.
            meta_train: Its ``train`` split is the source domain.
            meta_test: The second domain of the learner "joint".
            **options: Any of :class:`~reidguard.options.LearnedAttackOptions`. The learner is
                "plain" or "joint"; Adam's second beta is 0.999.

        Returns:
            The attack itself.

        Raises:
            InputError: For another learner, a model without classifier, an option that is unknown
                or out of range, or in a run of several processes.
        """
        if world() is not None:
            raise InputError("MisRank learns in one process: start it without torchrun")
        values, learner, loaders, facts = self._prepare(
            LearnedAttackOptions,
            options,
            model,
            (meta_train, meta_test),
            lr=2e-4,
            images_per_identity=4,
        )
        if facts["learner"] not in LEARNERS_TAKEN:
            raise InputError(
                f"MisRank takes the learners {' and '.join(LEARNERS_TAKEN)}, not "
                f"{facts['learner']!r}: choose one of them"
            )
        if values["momentum"] == 1:
            raise InputError("momentum is beta 1 of Adam here: it must be below 1, such as 0.5")
        facts = {**facts, "objective": "misrank", **settings(LearnedAttackOptions, values)}
        zero_gradients = learn(
            self,
            learner=learner,
            objective=MisRankObjective(inference_view(model)),
            optimizer=torch.optim.Adam(
                self.parameters(), lr=values["lr"], betas=(values["momentum"], 0.999)
            ),
            meta_train=loaders[0],
            meta_test=loaders[1] if len(loaders) > 1 else None,
            settings={**facts, "attack": self.config()},
            **select(LoopOptions, values),
        )
        self._record(facts, zero_gradients)
        return self


@dataclass(eq=False)
class MisRankObjective:
    """The objective of both networks of a :class:`MisRank`, as one scalar.

    It is the generator's loss plus the discriminator's. In the first the discriminator is constant,
    in the second the generator: so the gradient of the sum gives each network that of its own loss.

    Args:
        model: The surrogate, which needs a classifier.
    """

    model: Any

    def __call__(self, attack: MisRank, batch: ReIDBatch) -> Tensor:
        """Return the sum of both losses.

        Raises:
            InputError: If the surrogate has no classifier, or the batch does not suit the losses.
        """
        attack.train()
        try:
            adversarial = attack(batch.images)
            return self.generator_loss(attack, batch, adversarial) + self.discriminator_loss(
                attack, batch, adversarial
            )
        finally:
            attack.eval()

    def generator_loss(self, attack: MisRank, batch: ReIDBatch, adversarial: Tensor) -> Tensor:
        """Return L_G: the adversarial, the misranking and the perception loss."""
        constant = shared_copy(attack.discriminator)  # its parameters get no gradient here
        judged = constant(_pair(batch.images, adversarial))
        # A tensor of its own, whose gradient is that of the re-ID losses alone.
        seen = adversarial.view_as(adversarial)
        with graph_needed(self.model):
            features, logits = class_scores(with_cameras(self.model, batch.camids), seen)
        if seen.requires_grad:
            check_graph(logits[0], self.model)
            watch(seen, logits[0], None)
        identity = [
            identity_loss(part, part.argmin(1), SMOOTHING).add(FLOOR).log() for part in logits
        ]
        triplet = nearest_positive_triplet(features, batch.pids, batch.indices)
        mislead = torch.stack(identity).mean() + (triplet + FLOOR).log()
        alike = ms_ssim(batch.images, adversarial).mean()
        return _least_squares(judged, 1.0) + RE_ID * mislead + PERCEPTION * (1 - alike)

    def discriminator_loss(self, attack: MisRank, batch: ReIDBatch, adversarial: Tensor) -> Tensor:
        """Return L_D: distinguish an original with its adversarial image from two real images."""
        x, half = batch.images, len(batch) // 2
        if half == 0:
            raise InputError("MisRank needs batches of at least two images")
        fake = attack.discriminator(_pair(x, adversarial.detach()))
        real = attack.discriminator(_pair(x[:half], x[half : 2 * half]))
        return (_least_squares(fake, 0.0) + _least_squares(real, 1.0)) / 2


def nearest_positive_triplet(
    features: Tensor, pids: Tensor, indices: Tensor, margin: float = MARGIN
) -> Tensor:
    """Return MisRank's triplet among adversarial features: furthest negative in, positive out.

    ``mean(max(0, ‖f_n − f‖₂ − ‖f_p − f‖₂ + margin))``, with f_n the furthest feature of another
    identity and f_p the nearest of another *image* of the same. An anchor without either is left
    out.

    Args:
        features: (N, D).
        pids: (N,) identities.
        indices: (N,) which image each is: sampled twice, it is not its own positive.
        margin: Of the triplet.

    Raises:
        InputError: If no image has both (checked on the CPU only; elsewhere the mean is NaN).

    Example:
        >>> features = torch.tensor([[0.0], [1.0], [3.0]])
        >>> pids, indices = torch.tensor([0, 0, 1]), torch.arange(3)
        >>> float(nearest_positive_triplet(features, pids, indices, 0.0))  # (3 − 1 + 2 − 1) / 2
        1.5
    """
    with torch.no_grad():
        distances = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
        same = pids[:, None] == pids[None, :]
        positive = same & (indices[:, None] != indices[None, :])
        nearest = distances.masked_fill(~positive, torch.inf).argmin(1)
        furthest = distances.masked_fill(same, -torch.inf).argmax(1)
        valid = positive.any(1) & ~same.all(1)
        if valid.device.type == "cpu" and not bool(valid.any()):
            raise InputError(
                "no image of this batch has both another image of its identity and one of another; "
                "take identities and images_per_identity of at least 2"
            )
    pull = row_distance(features, features[furthest])
    push = row_distance(features, features[nearest])
    return torch.where(valid, F.relu(pull - push + margin), 0).sum() / valid.sum()


def _pair(images: Tensor, others: Tensor) -> Tensor:
    return 2 * torch.cat((images, others), 1) - 1


def _least_squares(scores: list[Tensor], target: float) -> Tensor:
    """The least-squares GAN loss, summed over the scales."""
    return torch.stack([(score - target).square().mean() for score in scores]).sum()
