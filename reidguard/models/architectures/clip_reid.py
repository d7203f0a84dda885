"""CLIP-ReID: CLIP's image encoders, fine-tuned for re-ID (Li et al., AAAI 2023)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from timm.models.byobnet import ByoBlockCfg, model_cfgs
from torch import Tensor, nn

from reidguard.errors import InputError
from reidguard.models.architectures.bn_neck import NeckFeature, checked_neck
from reidguard.models.architectures.transreid import HALF, bn_neck, build_vit
from reidguard.models.backbones import build_backbone
from reidguard.models.base import ReIDOutput, image_size
from reidguard.models.cameras import CameraModel
from reidguard.models.checkpoint_formats import Rule, head_rule, rename
from reidguard.models.factory import register_model
from reidguard.types import InputSpec

__all__ = ["CLIPReID"]

RESNET = "resnet50_clip"
RESNET_PROJECTED, VIT_PROJECTED = 1024, 512  # width of the space that CLIP shares with texts

# OpenAI's names and timm's, of a ViT and of a ResNet.
VIT_RULES: list[Rule] = [
    (r"image_encoder\.conv1\.", "image_encoder.patch_embed.proj."),
    (r"image_encoder\.class_embedding$", "image_encoder.cls_token"),
    (r"image_encoder\.positional_embedding$", "image_encoder.pos_embed"),
    (r"image_encoder\.ln_pre\.", "image_encoder.norm_pre."),
    (r"image_encoder\.ln_post\.", "image_encoder.norm."),
    (r"image_encoder\.transformer\.resblocks\.(\d+)\.ln_", r"image_encoder.blocks.\1.norm"),
    (
        r"image_encoder\.transformer\.resblocks\.(\d+)\.attn\.in_proj_",
        r"image_encoder.blocks.\1.attn.qkv.",
    ),
    (
        r"image_encoder\.transformer\.resblocks\.(\d+)\.attn\.out_proj\.",
        r"image_encoder.blocks.\1.attn.proj.",
    ),
    (
        r"image_encoder\.transformer\.resblocks\.(\d+)\.mlp\.c_fc\.",
        r"image_encoder.blocks.\1.mlp.fc1.",
    ),
    (
        r"image_encoder\.transformer\.resblocks\.(\d+)\.mlp\.c_proj\.",
        r"image_encoder.blocks.\1.mlp.fc2.",
    ),
]


def _stage_layer(match: re.Match[str]) -> str:
    stage, block, kind, number = int(match[1]) - 1, match[2], match[3], match[4]
    layer = {"1": "conv1_1x1", "2": "conv2_kxk", "3": "conv3_1x1"}[number]
    return f"image_encoder.stages.{stage}.{block}.{layer}.{kind}."


def _shortcut(match: re.Match[str]) -> str:
    kind = "bn" if match[3] == "1" else "conv"
    return f"image_encoder.stages.{int(match[1]) - 1}.{match[2]}.shortcut.conv.{kind}."


RESNET_RULES: list[Rule] = [
    (r"image_encoder\.(conv|bn)([123])\.", r"image_encoder.stem.conv\2.\1."),
    (r"image_encoder\.layer(\d)\.(\d+)\.(conv|bn)([123])\.", _stage_layer),
    (r"image_encoder\.layer(\d)\.(\d+)\.downsample\.([01])\.", _shortcut),
    (r"image_encoder\.attnpool\.positional_embedding$", "image_encoder.head.pos_embed"),
    (r"image_encoder\.attnpool\.c_proj\.", "image_encoder.head.proj."),
    (r"image_encoder\.attnpool\.([qkv])_proj\.", r"image_encoder.head.\1."),
]


@register_model("clip_reid")
class CLIPReID(CameraModel):
    """The image encoder of CLIP-ReID, compared by cosine. Files of the authors' code load.

    The feature is that of the class token (of a ResNet: the mean of the last maps) beside its
    projection into the space that CLIP shares with texts. :class:`ReIDOutput` has three embeddings
    (before the last block, the feature and its projection) and logits of the last two. What the
    authors' first stage learns, prompts and the text encoder, is not used at test time and dropped
    from files.

    Args:
        backbone: "vit_base_patch16_clip_quickgelu_224" (ViT-B/16), or "resnet50_clip" (RN50), whose
            last stage does not shrink. Another timm ViT with a class token works, too.
        num_classes: Training identities, one number or one per domain.
        stride: Distance of a ViT's patches in pixels: 16, or 12 in the authors' larger networks.
        cameras: Rows of the camera embedding that a ViT adds to the class token; 0 for none.
        first_camera: Number of the first camera in the dataset.
        neck: Whether the feature at test time is that before the batch norm, as in the authors'
            tests, or after it.
        size: Height and width that images are resized to.

    Raises:
        InputError: If an argument has a wrong value, or a ResNet is to use cameras.

    Example:
        >>> model = CLIPReID("test_vit", size=(64, 32), cameras=6).eval()
        >>> model.features(torch.rand(2, 3, 128, 64), cameras=[1, 6]).shape
        torch.Size([2, 576])
    """

    head_prefixes: tuple[str, ...] = (
        *("classifier.", "classifier_proj."),
        *("prompt_learner.", "text_encoder."),
    )

    def __init__(
        self,
        backbone: str = "vit_base_patch16_clip_quickgelu_224",
        *,
        num_classes: int | Mapping[str, int] | None = None,
        stride: int = 16,
        cameras: int = 0,
        first_camera: int = 1,
        neck: NeckFeature = "before",
        size: tuple[int, int] = (256, 128),
    ) -> None:
        self._resnet = backbone == RESNET
        if self._resnet and (cameras or stride != 16):
            raise InputError(f"cameras and stride are for ViTs: leave them out with {RESNET!r}")
        size = image_size(size)
        spec = InputSpec(size=size) if self._resnet else InputSpec(size=size, mean=HALF, std=HALF)
        super().__init__(
            input_spec=spec,
            metric="cosine",
            num_classes=num_classes,
            cameras=cameras,
            first_camera=first_camera,
        )
        self.neck = checked_neck(neck)
        if self._resnet:
            self.image_encoder, projected = _resnet(size), RESNET_PROJECTED
        else:
            self.image_encoder, projected = build_vit(backbone, size, stride), VIT_PROJECTED
        width = int(self.image_encoder.num_features)
        if not self._resnet:
            start = torch.randn(width, projected) * width**-0.5
            self.image_encoder.proj = nn.Parameter(start)
        if self.cameras is not None:
            self.cv_embed = nn.Parameter(torch.zeros(len(self.cameras), width))
            nn.init.trunc_normal_(self.cv_embed, std=0.02)
        self.bottleneck, self.bottleneck_proj = bn_neck(width), bn_neck(projected)
        self.build_part_classifiers((width, projected), bias=False)

    def embed(self, inputs: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return (N, D) features: the feature and its projection."""
        _, *vectors = self._vectors(inputs, rows)
        return torch.cat(vectors if self.neck == "before" else self._necked(vectors), 1)

    def forward(
        self,
        x: Tensor,
        domain: str | None = None,
        cameras: Tensor | Sequence[int] | None = None,
    ) -> ReIDOutput:
        """Return features, three embeddings and two arrays of logits.

        See :meth:`CameraModel.forward`.
        """
        chosen = self.resolve_domain(domain)
        last, *vectors = self._vectors(self.prepare(x), self.rows(cameras, x))
        necked = self._necked(vectors)
        logits = self.part_logits(necked, chosen)
        features = torch.cat(vectors if self.neck == "before" else necked, 1)
        return ReIDOutput(features, [last, *vectors], logits)

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Give the tensors of the authors' files, which have OpenAI's names, those of timm."""
        heads = [
            *head_rule(r"classifier\.(?=weight$)", self.num_classes, "0."),
            *head_rule(r"classifier_proj\.(?=weight$)", self.num_classes, "1."),
        ]
        state = rename(state, [*heads, *(RESNET_RULES if self._resnet else VIT_RULES)])
        for name in ("cls_token", "pos_embed"):
            tensor = state.get(f"image_encoder.{name}")
            if tensor is not None and not self._resnet and tensor.dim() < 3:
                state[f"image_encoder.{name}"] = tensor.view(1, -1, tensor.shape[-1])
        return state

    def _vectors(self, inputs: Tensor, rows: Tensor | None) -> list[Tensor]:
        """Return the (N, C) vectors before the last block, after it, and projected."""
        encoder = cast(Any, self.image_encoder)
        if self._resnet:
            *stages, final = encoder.stages.children()
            maps = encoder.stem(inputs)
            for stage in stages:
                maps = stage(maps)
            last = maps.mean((2, 3))
            maps = final(maps)
            return [last, maps.mean((2, 3)), encoder.head(maps)]
        token = encoder.cls_token.expand(len(inputs), -1, -1)
        if rows is not None:
            token = token + self.cv_embed[rows][:, None]
        tokens = torch.cat((token, encoder.patch_embed(inputs)), 1)
        tokens = encoder.norm_pre(tokens + encoder.pos_embed)
        *blocks, final = encoder.blocks.children()
        for block in blocks:
            tokens = block(tokens)
        feature = encoder.norm(final(tokens)[:, 0])
        return [tokens[:, 0], feature, feature @ encoder.proj]

    def _necked(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        return [self.bottleneck(vectors[0]), self.bottleneck_proj(vectors[1])]


def _resnet(size: tuple[int, int]) -> Any:
    """Return CLIP's ResNet-50 whose last stage keeps the resolution."""
    *blocks, last = cast(tuple[ByoBlockCfg, ...], model_cfgs[RESNET].blocks)
    return build_backbone(
        RESNET,
        size,
        img_size=size,
        num_classes=RESNET_PROJECTED,
        blocks=(*blocks, replace(last, s=1)),
    )
