"""IDE: a classification network whose pooled feature is the identity embedding."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reidguard.errors import InputError
from reidguard.models.backbones import BackboneModel, Stem, blank_pass
from reidguard.models.checkpoint_formats import head_rule, rename
from reidguard.models.factory import register_model

__all__ = ["IDE"]

NECK = 2048


@register_model("ide")
class IDE(BackboneModel):
    """IDE on any timm backbone. The feature is the pooled one, compared by Euclidean distance.

    In training a branch of linear layer, batch norm, ReLU and dropout (0.1) leads to one
    classifier per domain; the triplet loss sees the feature itself.

    Args:
        backbone: A timm name, such as "resnet50". "vit_base_patch16_224" is the baseline of
            TransReID: the class token, of images of any ``size``.
        num_classes: Training identities, one number or one per domain.
        last_stride: 1 keeps the resolution in the last stage of a ResNet.
        stem: "no-relu" leaves the first ReLU of a ResNet out, as the networks of the paper's
            released defense do; "fast-reid" pools as that library does.
        size: Height and width that images are resized to.
        pretrained: Start from timm's weights, which it may download.

    Raises:
        InputError: If the backbone is unknown, or cannot work at this size or stride.
        CheckpointError: If pretrained weights cannot be loaded.

    Example:
        >>> import torch
        >>> model = IDE(backbone="resnet18", size=(64, 32))
        >>> model.features(torch.rand(2, 3, 128, 64)).shape
        torch.Size([2, 512])
    """

    head_prefixes: tuple[str, ...] = ("classifier.", "neck.")

    def __init__(
        self,
        backbone: str = "resnet50",
        *,
        num_classes: int | Mapping[str, int] | None = None,
        last_stride: int = 2,
        stem: Stem = "resnet",
        size: tuple[int, int] = (256, 128),
        pretrained: bool = False,
    ) -> None:
        super().__init__(
            backbone,
            size,
            metric="euclidean",
            num_classes=num_classes,
            last_stride=last_stride,
            stem=stem,
            pretrained=pretrained,
        )
        features = blank_pass(self.backbone, backbone, size, "forward")
        if features.dim() != 2:
            raise InputError(
                f"{backbone!r} gives features of shape {tuple(features.shape)}, not one vector per "
                "image; use wrap_model with a function that pools them"
            )
        width = int(features.shape[1])
        if self.num_classes:
            dense = nn.Linear(width, NECK)
            nn.init.kaiming_normal_(dense.weight, mode="fan_out")
            nn.init.zeros_(dense.bias)
            self.neck = nn.Sequential(dense, nn.BatchNorm1d(NECK))
        self.build_classifiers(NECK)

    def embed(self, inputs: Tensor) -> Tensor:
        """Return the backbone's (N, D) pooled feature."""
        features: Tensor = self.backbone(inputs)
        return features

    def logits(self, features: Tensor, domain: str) -> Tensor:
        """Return the (N, identities) scores of one domain, through the training branch."""
        hidden = F.dropout(F.relu(self.neck(features)), 0.1, self.training)
        return super().logits(hidden, domain)

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Take the paper's released models, and checkpoints of the backbone alone."""
        if any(name.startswith("feat_bn.") for name in state):
            rules = [
                (r"base\.", "backbone."),
                (r"feat\.", "neck.0."),
                (r"feat_bn\.", "neck.1."),
                *head_rule(r"classifier(_x2)?\.(?=weight|bias)", self.num_classes),
            ]
            state = rename(state, rules)
            if "neck.0.weight" in state and "neck.0.bias" not in state:  # some have none
                state["neck.0.bias"] = torch.zeros(len(state["neck.0.weight"]))
            return state
        return super().adapt_state(state)
