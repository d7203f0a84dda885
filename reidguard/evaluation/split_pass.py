"""One pass over the query or the gallery: clean features, and measures of changed images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from reidguard.attacks import Attack
from reidguard.distributed import rows_here
from reidguard.evaluation.features import key_of_rows, shards_of, whole
from reidguard.evaluation.results import AttackedResult
from reidguard.evaluation.retrieval import Retrieval
from reidguard.metrics import RankingResult
from reidguard.metrics.quality import achieved_linf, psnr, ssim_and_ms_ssim
from reidguard.nn import inference_view
from reidguard.nn.cameras import cameras_of, with_cameras
from reidguard.types import ReIDSample

__all__ = ["Measure", "SplitPass"]

Measure = Callable[[Tensor, Tensor], Tensor]


class BatchAccumulator:
    """Features and quality of one kind of adversarial images, collected on the device.

    Args:
        lpips: Further measure of image quality.
        eight_bit: Whether the images are as a file stores them, so that changes are whole grey
            levels.
    """

    def __init__(self, lpips: Measure | None, *, eight_bit: bool = False) -> None:
        self.lpips, self.eight_bit = lpips, eight_bit
        self.features: list[Tensor] = []
        self.quality: list[Tensor] = []

    def add(self, features: Tensor, x_adv: Tensor, x: Tensor) -> None:
        """Add one batch of features (N, D) and of images (N, 3, H, W)."""
        self.features.append(features)
        values = [achieved_linf(x_adv, x), psnr(x_adv, x), *ssim_and_ms_ssim(x_adv, x)]
        values += [] if self.lpips is None else [self.lpips(x_adv, x)]
        self.quality.append(torch.stack([v.double() for v in values]))

    def result(
        self,
        ranking: Callable[[Sequence[Tensor]], RankingResult],
        whole: Callable[[Sequence[Tensor]], Tensor],
    ) -> AttackedResult:
        """Return the ranking of all features, and means of the quality.

        Args:
            ranking: Ranks with the features of this process.
            whole: Returns what all processes have for their images.
        """
        features = [torch.cat(self.features)] if self.features else []
        quality = [torch.cat(self.quality, dim=1).T.cpu()] if self.quality else []
        linf, *others = whole(quality).T.contiguous()
        mean_psnr, mean_ssim, mean_ms_ssim, *rest = (float(v.mean()) for v in others)
        return AttackedResult(
            ranking=ranking(features),
            psnr=mean_psnr,
            ssim=mean_ssim,
            # Whole grey levels, of which float32 images show a difference up to rounding.
            linf=round(255 * float(linf.max())) / 255 if self.eight_bit else float(linf.max()),
            ms_ssim=mean_ms_ssim,
            lpips=rest[0] if rest else None,
        )


class SplitPass:
    """One pass over the images of a split: extract clean features, measure changed images, or both.

    Changed images come from an attack, or from :attr:`replacements`, samples whose images are read
    in place of the split's own.

    Args:
        retrieval: Model and dataset.
        split: "query" or "gallery".
        every: Every n-th sample of the split is used.
        attack: Perturbs the images; None leaves them.
        with_labels: Whether an instance attack is given the true identities.
        lpips: Further measure of image quality.
    """

    def __init__(
        self,
        retrieval: Retrieval,
        split: str,
        every: int,
        attack: Attack | None,
        with_labels: bool,
        lpips: Measure | None,
    ) -> None:
        self.retrieval, self.samples = retrieval, retrieval.dataset.split(split)[::every]
        self.rows = rows_here(len(self.samples), retrieval.batch_size)
        self.places = shards_of(self.rows, retrieval.batch_size)
        key = retrieval.key(split, every)
        self.keys = [key_of_rows(key, place, len(self.samples)) for place in self.places]
        self.attack, self.with_labels = attack, with_labels
        self.features = [retrieval.store.get(key, retrieval.device) for key in self.keys]
        self.replacements: Sequence[ReIDSample] = ()
        self.accumulators = (BatchAccumulator(lpips), BatchAccumulator(lpips, eight_bit=True))

    @property
    def num_images(self) -> int:
        """Number of images that this process reads."""
        return sum(place.stop - place.start for place in self.places if self._is_needed(place))

    def _is_needed(self, place: slice) -> bool:
        measured = self.attack is not None or len(self.replacements) > 0
        return measured or self.features[self.places.index(place)] is None

    def shards(self) -> list[Tensor]:
        """Return the clean features of the rows of this process."""
        return [shard for shard in self.features if shard is not None]

    def whole(self, shards: Sequence[Tensor]) -> Tensor:
        """Return as one tensor what all processes have for their rows; collective."""
        return whole(shards, self.rows, len(self.samples))

    def run(self, progress: Callable[[int], None]) -> None:
        """Read the images in batches; ``progress`` gets the number of images done."""
        done = 0
        for number, place in enumerate(self.places):
            if self._is_needed(place):
                self._run_shard(number, place, done, progress)
                done += place.stop - place.start

    def _run_shard(
        self,
        number: int,
        rows: slice,
        done: int,
        progress: Callable[[int], None],
    ) -> None:
        samples = self.samples[rows]
        clean: list[Tensor] = []
        extract = self.features[number] is None
        model = inference_view(self.retrieval.model)
        replacements = self.retrieval.read(self.replacements[rows])
        with torch.no_grad():
            for place, pixels in self.retrieval.read(samples):
                x = self.retrieval.to_input(pixels)
                seen = with_cameras(model, cameras_of(samples[place]))
                if extract:
                    clean.append(seen.features(x))
                if self.attack is not None:
                    *kinds, _ = self.retrieval.perturb(
                        self.attack, x, samples[place], self.with_labels
                    )
                    for accumulator, images in zip(self.accumulators, kinds, strict=True):
                        accumulator.add(seen.features(images), images, x)
                elif self.replacements:
                    images = self.retrieval.to_input(next(replacements)[1])
                    self.accumulators[1].add(seen.features(images), images, x)
                progress(done + place.stop)
        if extract:
            store = self.retrieval.store
            self.features[number] = store.put(self.keys[number], torch.cat(clean))

    def results(
        self, ranking: Callable[[Sequence[Tensor]], RankingResult]
    ) -> tuple[AttackedResult | None, AttackedResult | None]:
        """Return the results of the float and of the 8-bit images; None where there are none."""
        measured = (self.attack is not None, self.attack is not None or bool(self.replacements))
        float_images, byte_images = (
            accumulator.result(ranking, self.whole) if exists else None
            for accumulator, exists in zip(self.accumulators, measured, strict=True)
        )
        return float_images, byte_images
