"""TransReID: a vision transformer with camera embeddings (He et al., ICCV 2021)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from reidguard.errors import InputError
from reidguard.models.architectures.bn_neck import NeckFeature, checked_neck
from reidguard.models.backbones import build_backbone
from reidguard.models.base import ReIDOutput, image_size
from reidguard.models.cameras import CameraModel
from reidguard.models.checkpoint_formats import head_rule, rename
from reidguard.models.factory import register_model
from reidguard.schema import checked
from reidguard.types import InputSpec

__all__ = ["HALF", "OverlapPatchEmbed", "TransReID", "bn_neck"]


PARTS, SHIFT, GROUPS = 4, 4, 2  # of the jigsaw patch module
CAMERA_WEIGHT = 3.0
DROP_PATH = 0.1  # in training
HALF = (0.5, 0.5, 0.5)  # mean and standard deviation of the authors' inputs

# The authors' own small network: its logits of attention are divided by the square root of 768.
SMALL = "vit_small_transreid"
SMALL_OPTIONS = {"depth": 8, "num_heads": 8, "mlp_ratio": 3.0, "qkv_bias": False}


class OverlapPatchEmbed(PatchEmbed):
    """Patches that start every ``stride`` pixels, and so overlap if they are larger."""

    def __init__(self, *args: Any, stride: int, **kwargs: Any) -> None:
        self.patch_stride = stride
        super().__init__(*args, **kwargs)
        self.proj.stride = (stride, stride)

    def _init_img_size(self, img_size: Any) -> Any:
        pairs = zip(img_size, self.patch_size, strict=True)
        grid = tuple((side - patch) // self.patch_stride + 1 for side, patch in pairs)
        return tuple(img_size), grid, grid[0] * grid[1]


def build_vit(name: str, size: tuple[int, int], stride: int, **options: Any) -> VisionTransformer:
    """Build timm's vision transformer of that name with patches every ``stride`` pixels.

    Raises:
        InputError: If it is none with a class token, or has too few patches at this size.
    """
    stride = checked(int, "stride", stride, low=1, high=64)
    embed = partial(OverlapPatchEmbed, stride=stride)
    network = build_backbone(name, size, embed_layer=embed, dynamic_img_size=False, **options)
    if not isinstance(network, VisionTransformer) or network.num_prefix_tokens != 1:
        raise InputError(
            f"{name!r} is no vision transformer with one class token: choose one such as "
            "'vit_base_patch16_224'"
        )
    return network


def bn_neck(width: int) -> nn.BatchNorm1d:
    """Return a batch norm whose shift stays zero."""
    neck = nn.BatchNorm1d(width)
    neck.bias.requires_grad_(False)
    return neck


@register_model("transreid")
class TransReID(CameraModel):
    """TransReID on a ViT or DeiT, compared by cosine. Parameters have the authors' names.

    An embedding of the camera is added to all tokens of an image (SIE). With the jigsaw patch
    module (JPM), the patches are shuffled into four parts. Each goes through the last block
    together with the class token, and the feature is the global one beside a quarter of each
    part's. :class:`ReIDOutput` then has one embedding and one array of logits for each of the five.

    The authors' networks for people have ``stride=16`` or, where their name has a star,
    ``stride=12``, at 256×128 or 384×128, and 6 cameras on Market-1501, 8 on DukeMTMC-reID and 15 on
    MSMT17. (Their embedding for vehicles has a row for each camera and viewpoint, which samples
    here do not have.)

    Args:
        backbone: Name of a timm ViT, such as "vit_base_patch16_224", "deit_small_patch16_224", or
            "vit_small_transreid", which is the authors' own.
        num_classes: Training identities, one number or one per domain.
        stride: Distance of patches in pixels.
        cameras: Rows of the camera embedding; 0 for a network without it.
        first_camera: Number of the first camera in the dataset.
        parts: Whether there is the jigsaw patch module. Without it, the feature is the global one.
        neck: Whether the feature at test time is that before the batch norm, as in the authors'
            tests, or after it.
        size: Height and width that images are resized to.
        pretrained: Start from timm's weights, which it may download.

    Raises:
        InputError: If an argument has a wrong value.
        CheckpointError: If pretrained weights cannot be loaded.

    Example:
        >>> model = TransReID("vit_tiny_patch16_224", cameras=6, size=(64, 32)).eval()
        >>> model.features(torch.rand(2, 3, 128, 64), cameras=[1, 6]).shape
        torch.Size([2, 960])
    """

    head_prefixes: tuple[str, ...] = (
        "classifier.",
        *(f"classifier_{part}." for part in range(1, 1 + PARTS)),
        *("base.fc.", "base.head.", "base.head_dist."),
    )

    def __init__(
        self,
        backbone: str = "vit_base_patch16_224",
        *,
        num_classes: int | Mapping[str, int] | None = None,
        stride: int = 16,
        cameras: int = 0,
        first_camera: int = 1,
        parts: bool = True,
        neck: NeckFeature = "before",
        size: tuple[int, int] = (256, 128),
        pretrained: bool = False,
    ) -> None:
        spec = InputSpec(size=image_size(size), mean=HALF, std=HALF)
        super().__init__(
            input_spec=spec,
            metric="cosine",
            num_classes=num_classes,
            cameras=cameras,
            first_camera=first_camera,
        )
        self.neck = checked_neck(neck)
        self.base = _backbone(backbone, image_size(size), stride, pretrained)
        width = int(self.base.num_features)
        if self.cameras is not None:
            self.base.sie_embed = nn.Parameter(torch.zeros(len(self.cameras), 1, width))
            nn.init.trunc_normal_(self.base.sie_embed, std=0.02)
        count = 1
        if checked(bool, "parts", parts):
            count += PARTS
            if self.base.patch_embed.num_patches < PARTS:
                raise InputError(
                    f"images of {size[0]}×{size[1]} have fewer than {PARTS} patches: take a larger "
                    "size, a smaller stride or parts=False"
                )
            last = nn.Sequential(self.base.blocks[-1], self.base.norm)
            self.b1, self.b2 = copy.deepcopy(last), copy.deepcopy(last)
        self.parts = count > 1
        for number in range(count):
            setattr(self, f"bottleneck_{number}" if number else "bottleneck", bn_neck(width))
        self.build_part_classifiers([width] * count, bias=False)

    def embed(self, inputs: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return (N, D) features: the global one, and a quarter of each part's."""
        vectors = self._vectors(inputs, rows)
        return _joined(vectors if self.neck == "before" else self._necked(vectors))

    def forward(
        self,
        x: Tensor,
        domain: str | None = None,
        cameras: Tensor | Sequence[int] | None = None,
    ) -> ReIDOutput:
        """Return features, embeddings before the neck and logits, as lists if there are parts.

        See :meth:`CameraModel.forward`.
        """
        chosen = self.resolve_domain(domain)
        vectors = self._vectors(self.prepare(x), self.rows(cameras, x))
        necked = self._necked(vectors)
        features = _joined(vectors if self.neck == "before" else necked)
        logits = self.part_logits(necked, chosen)
        if not self.parts:
            return ReIDOutput(features, vectors[0], None if logits is None else logits[0])
        return ReIDOutput(features, vectors, logits)

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Take checkpoints of the backbone alone, and the classifiers of the authors' files."""
        if not any(name.startswith("base.") for name in state):
            return {f"base.{name}": tensor for name, tensor in state.items()}
        rules = head_rule(r"classifier\.(?=weight$)", self.num_classes, "0.")
        for part in range(1, 1 + PARTS if self.parts else 1):
            rules += head_rule(rf"classifier_{part}\.(?=weight$)", self.num_classes, f"{part}.")
        return rename(state, rules)

    def _vectors(self, inputs: Tensor, rows: Tensor | None) -> list[Tensor]:
        """Return the (N, C) features before the neck, the global one first."""
        base = cast(Any, self.base)
        tokens = torch.cat(
            (base.cls_token.expand(len(inputs), -1, -1), base.patch_embed(inputs)), 1
        )
        tokens = base.norm_pre(tokens + base.pos_embed)
        if rows is not None:
            tokens = tokens + CAMERA_WEIGHT * base.sie_embed[rows]
        blocks = list(base.blocks.children())
        for block in blocks[:-1] if self.parts else blocks:
            tokens = block(tokens)
        if not self.parts:
            return [base.norm(tokens)[:, 0]]
        token, patches = tokens[:, :1], _shuffled(tokens[:, 1:])
        length = (tokens.shape[1] - 1) // PARTS
        groups = [patches[:, part * length : (part + 1) * length] for part in range(PARTS)]
        local = [self.b2(torch.cat((token, group), 1))[:, 0] for group in groups]
        return [self.b1(tokens)[:, 0], *local]

    def _necked(self, vectors: list[Tensor]) -> list[Tensor]:
        necks = [
            self.bottleneck,
            *(getattr(self, f"bottleneck_{n}") for n in range(1, len(vectors))),
        ]
        return [neck(vector) for neck, vector in zip(necks, vectors, strict=True)]


def _backbone(name: str, size: tuple[int, int], stride: int, pretrained: bool) -> VisionTransformer:
    options: dict[str, Any] = {"drop_path_rate": DROP_PATH}
    if name != SMALL:
        return build_vit(name, size, stride, pretrained=pretrained, **options)
    if pretrained:
        raise InputError(f"timm has no weights of {SMALL!r}: leave pretrained out")
    network = build_vit("vit_base_patch16_224", size, stride, **options, **SMALL_OPTIONS)
    for block in network.blocks.children():
        attention = cast(Any, block).attn
        attention.scale = network.num_features**-0.5
        attention.fused_attn = False  # which has a scale of its own
    return network


def _shuffled(patches: Tensor) -> Tensor:
    """Shift (N, P, C) patches and interleave their halves, so that a part sees all regions."""
    patches = patches.roll(-SHIFT, 1)
    if patches.shape[1] % GROUPS:
        patches = torch.cat((patches, patches[:, -2:-1]), 1)
    halves = patches.view(len(patches), GROUPS, -1, patches.shape[2])
    return halves.transpose(1, 2).flatten(1, 2)


def _joined(vectors: Sequence[Tensor]) -> Tensor:
    return torch.cat([vectors[0], *(vector / PARTS for vector in vectors[1:])], 1)
