"""Distances that every machine computes to the same bit.

A matrix product rounds differently with every tile shape and device, so the last bits of a
distance would depend on the chunk size, and with them the order of two nearly tied images. Here a
distance is *defined* by float64 operations on single elements, summed in a fixed order, and rounded
to float32. IEEE arithmetic makes that the same number everywhere; two images tie when no float32
tells their distances apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from reidguard.errors import InputError

__all__ = ["METRICS", "distances"]

METRICS = ("euclidean", "cosine")


def distances(query: Tensor, gallery: Tensor, metric: str = "euclidean") -> Tensor:
    """Return the exact distances that :func:`rank` compares. For small uses: it is not fast.

    ``"euclidean"`` is ``|q - g|``. ``"cosine"`` is 1 minus the cosine similarity, itself rounded to
    float32; a zero vector has similarity 0 to everything.

    Args:
        query: (Q, D), any float dtype.
        gallery: (G, D), any float dtype, on the same device.
        metric: ``"euclidean"`` or ``"cosine"``.

    Returns:
        (Q, G) float32, computed in float64 and rounded once.

    Raises:
        InputError: For wrong shapes, dtypes or an unknown metric, and for features that are NaN,
            infinite, or so large or small that float32 cannot hold their distances.

    Example:
        >>> distances(torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0], [0.0, 2.0]]))
        tensor([[5., 2.]])
    """
    check_features(query, [gallery], metric)
    with torch.no_grad():
        norms = check_norms(query, [gallery], metric)
        rows = torch.arange(len(query), device=query.device)
        cols = torch.arange(len(gallery), device=query.device)
        flat = pair_distances(
            query,
            gallery,
            rows.repeat_interleave(len(gallery)),
            cols.repeat(len(query)),
            metric,
            norms,
        )
        return flat.view(len(query), len(gallery))


def check_features(query: Tensor, shards: Sequence[Tensor], metric: str) -> None:
    """Refuse what cannot be compared, from shapes, dtypes and devices alone."""
    if metric not in METRICS:
        raise InputError(f"unknown metric {metric!r}; use one of {', '.join(METRICS)}")
    for name, features in (("query", query), *(("gallery", shard) for shard in shards)):
        if not isinstance(features, Tensor) or features.dim() != 2 or features.shape[1] == 0:
            got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise InputError(f"{name} features must be a tensor of shape (N, D), not {got}")
        if not features.is_floating_point():
            raise InputError(
                f"{name} features must be floating point, not {features.dtype}; call .float()"
            )
        if len(features) == 0:
            raise InputError(f"there are no {name} features: nothing can be ranked")
        if query.shape[1] != features.shape[1]:
            raise InputError(
                f"query features have {query.shape[1]} dimensions, gallery features "
                f"{features.shape[1]}; extract both with the same model"
            )
        if query.device != features.device:
            raise InputError(
                f"query features are on {query.device}, gallery features on {features.device}; "
                "move one of them"
            )


def check_norms(query: Tensor, shards: Sequence[Tensor], metric: str) -> tuple[Tensor, ...]:
    """Return the row norms of all in float64 after refusing NaN and out-of-range features.

    For the Euclidean distance, which they are no part of, they have the features' own precision
    where that suffices.
    """
    sides = (("query", query), *(("gallery", shard) for shard in shards))
    norms_of = rough_norms if metric == "euclidean" else row_norms
    norms = tuple(norms_of(features) for _, features in sides)
    # One wait for the device: (finite rows, largest norm) of every side.
    stats = torch.stack([s for n in norms for s in (n.isfinite().all().double(), n.max())]).tolist()
    for (name, features), finite in zip(sides, stats[::2], strict=True):
        if not finite:
            bad = [
                start + i
                for start, stop in blocks(len(features), features)
                for i in (~features[start:stop].isfinite().all(1)).nonzero().flatten().tolist()
            ]
            raise InputError(
                f"{len(bad)} of {len(features)} {name} features are NaN or infinite (first rows: "
                f"{bad[:5]}); check the model, or use float32 if half precision overflowed"
            )
    largest = max(stats[1::2])
    if largest > 1e37 or (metric == "euclidean" and 0 < largest < 1e-30):
        raise InputError(
            f"the largest feature norm is {largest:.3g}: distances would leave the range of "
            "float32; scale the features"
        )
    return norms


def blocks(count: int, features: Tensor) -> Iterator[tuple[int, int]]:
    """Yield ranges of rows like ``features`` whose float64 copies fit a CPU's cache."""
    elements = 1 << (18 if features.device.type == "cpu" else 23)
    step = max(1, elements // features.shape[1])
    for start in range(0, count, step):
        yield start, min(start + step, count)


def rough_norms(features: Tensor) -> Tensor:
    """Return the (N,) float64 norms, up to the rounding of the features' own float type."""
    if features.dtype in (torch.float32, torch.float64):
        norms: Tensor = torch.linalg.vector_norm(features, dim=1).double()
        if 1e-15 < float(norms.max()) < 1e15:  # squares neither vanished nor became infinite
            return norms
    return row_norms(features)


def row_norms(features: Tensor) -> Tensor:
    """Return the (N,) float64 norms, the same bits on every device."""
    norms = torch.empty(len(features), dtype=torch.float64, device=features.device)
    for start, stop in blocks(len(features), features):
        block = features[start:stop].to(torch.float64, copy=True)
        norms[start:stop] = _row_sums_(block.square_()).sqrt()
    return norms


def pair_distances(
    query: Tensor,
    gallery: Tensor,
    rows: Tensor,
    cols: Tensor,
    metric: str,
    norms: Sequence[Tensor],
) -> Tensor:
    """Return the exact distances (P,) float32 of the pairs ``(query[rows], gallery[cols])``."""
    out = torch.empty(len(rows), dtype=torch.float32, device=query.device)
    places = list(blocks(len(rows), query))
    size = (places[0][1], query.shape[1]) if places else (0, 0)
    # Memory that is used again: new memory costs more than the arithmetic.
    raw = [torch.empty(size, dtype=side.dtype, device=side.device) for side in (query, gallery)]
    wide = torch.empty((2, *size), dtype=torch.float64, device=query.device)
    for start, stop in places:
        r, c = rows[start:stop], cols[start:stop]
        block, other = wide[:, : stop - start]
        block.copy_(torch.index_select(query, 0, r, out=raw[0][: stop - start]))
        other.copy_(torch.index_select(gallery, 0, c, out=raw[1][: stop - start]))
        if metric == "euclidean":
            out[start:stop] = _row_sums_(block.sub_(other).square_()).sqrt()
        else:
            lengths = norms[0][r] * norms[1][c]
            similarity = _row_sums_(block.mul_(other)) / torch.where(lengths > 0, lengths, 1.0)
            out[start:stop] = 1 - similarity.float()
    return out


def _row_sums_(block: Tensor) -> Tensor:
    """Sum each row, overwriting it: the tail is folded onto the head until one column is left.

    ``Tensor.sum`` may add in any order; a chain of elementwise additions cannot.
    """
    width = block.shape[1]
    while width > 1:
        half = width // 2
        block[:, :half] += block[:, width - half : width]
        width -= half
    return block[:, 0]


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Make float32 matrix products float32: no TF32, no bfloat16, no autocast, whatever is set."""
    backends = [torch.backends.cuda.matmul]
    if hasattr(torch.backends.mkldnn, "matmul"):
        backends.append(torch.backends.mkldnn.matmul)
    with torch.autocast(device.type, enabled=False):
        if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):  # torch < 2.9
            before = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision("highest")
            try:
                yield
            finally:
                torch.set_float32_matmul_precision(before)
            return
        settings = [backend.fp32_precision for backend in backends]
        for backend in backends:
            backend.fp32_precision = "ieee"
        try:
            yield
        finally:
            for backend, setting in zip(backends, settings, strict=True):
                backend.fp32_precision = setting
