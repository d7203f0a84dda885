"""Cells and means of `evaluate_grid`, and the formats in which they are written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from reidguard.evaluation.results import Result, ranking_metric
from reidguard.nn.gradients import zero_gradient_text
from reidguard.storage import library_versions
from reidguard.tables import Cell, Table, latex, percent

__all__ = ["SETTINGS", "GridCell", "GridResult"]

SETTINGS = ("source", "cross-model", "cross-dataset", "cross-model & dataset", "knows nothing")
KINDS = {"clean": "clean", "attacked": "attacked, float", "attacked_8bit": "attacked, 8-bit"}


@dataclass(frozen=True, eq=False)
class GridCell:
    """One attack on one model's queries of one dataset.

    Attributes:
        attack: Name of the attack.
        model: Name of the network.
        dataset: Name of the dataset.
        setting: One of :data:`SETTINGS`; "knows nothing" is the strongest of
            :func:`~reidguard.fixed_patterns`, the baseline of the other settings.
        meta_test: Whether the attack's meta-test set was this dataset's training images. It is
            not unseen then, whatever the setting says.
        evaluation: What :meth:`EvaluationResult.to_dict` returns; for a fixed pattern, its
            ``attack`` also has the name of the ``pattern``.

    Example:
        >>> cell = GridCell("delta", "osnet", "market1501", "source", False, {})
        >>> cell.setting in SETTINGS
        True
    """

    attack: str
    model: str
    dataset: str
    setting: str
    meta_test: bool
    evaluation: dict[str, Any]

    @property
    def eps(self) -> float:
        """The attack's budget in [0, 1] units."""
        return float(self.evaluation["attack"]["eps"])

    @property
    def zero_gradients(self) -> float:
        """The fraction of the attack's gradients that are zero or not finite; 0 up to 1 %."""
        return float(self.evaluation["attack"].get("zero_gradients", 0.0))

    def metric(self, kind: str, name: str) -> float:
        """Return a metric in [0, 1].

        Args:
            kind: "clean", "attacked" (float images) or "attacked_8bit".
            name: "mAP", "mINP" or "rank1".
        """
        return ranking_metric(self.evaluation[kind], name)

    def drop(self, kind: str = "attacked") -> float | None:
        """Return the drop rate of mAP, (clean − attacked) / clean.

        It is negative where the attack helps, and None where the clean mAP is zero.
        """
        clean = self.metric("clean", "mAP")
        return None if clean == 0 else (clean - self.metric(kind, "mAP")) / clean


@dataclass(frozen=True, eq=False)
class GridResult(Result):
    """Metrics of all cells of a grid.

    Attributes:
        cells: By attack, then model, then dataset, in the order of the arguments.

    Example:
        >>> cell = GridCell("delta", "osnet", "market1501", "source", False, {})
        >>> GridResult((cell,)).cells[0].model
        'osnet'
    """

    FORMATS: ClassVar[dict[str, str]] = {
        ".json": "to_json",
        ".csv": "to_csv",
        ".md": "to_markdown",
        ".tex": "to_latex",
    }

    cells: tuple[GridCell, ...]

    def means(self) -> list[dict[str, Any]]:
        """Return the unweighted means over the cells of each attack and setting.

        Returns:
            For each: ``attack``, ``setting``, the number of ``cells``, ``mAP`` and ``rank1`` of
            ``clean``, ``attacked`` and ``attacked_8bit``, and the mean drop rates ``mDR`` and
            ``mDR_8bit``: means of the cells' own rates (see :meth:`GridCell.drop`), not the rate
            of the means; None where no cell has one.
        """
        out = []
        for attack in dict.fromkeys(cell.attack for cell in self.cells):
            for setting in SETTINGS:
                mine = [c for c in self.cells if (c.attack, c.setting) == (attack, setting)]
                if mine:
                    out.append({"attack": attack, "setting": setting, **_means(mine)})
        return out

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; metrics lie in [0, 1]."""
        return {
            "cells": [
                {**vars(cell), "drop": cell.drop(), "drop_8bit": cell.drop("attacked_8bit")}
                for cell in self.cells
            ],
            "means": self.means(),
            "versions": library_versions(),
        }

    def to_csv(self) -> str:
        """Return one line per cell, unrounded: metrics in [0, 1], ε and L∞ in grey levels."""
        lines = [self._csv_line(cell) for cell in self.cells]
        return Table(list(lines[0]), [list(line.values()) for line in lines]).to_csv()

    @staticmethod
    def _csv_line(cell: GridCell) -> dict[str, Cell]:
        line: dict[str, Cell] = {
            "attack": cell.attack,
            "eps_255": f"{255 * cell.eps:g}",
            "setting": cell.setting,
            "model": cell.model,
            "dataset": cell.dataset,
            "meta_test": str(cell.meta_test).lower(),
            "queries": cell.evaluation["counts"]["query"],
        }
        for kind in KINDS:
            for name in ("mAP", "rank1", "mINP"):
                line[f"{kind}_{name}"] = cell.metric(kind, name)
            if kind != "clean":
                for name in ("linf_255", "psnr", "ssim", "ms_ssim"):
                    line[f"{kind}_{name}"] = cell.evaluation[kind][name]
                line[f"{kind}_drop"] = cell.drop(kind)
        return line

    def to_latex(self) -> str:
        """Return :meth:`parts` as LaTeX, which needs no package."""
        parts = [latex(part) if isinstance(part, str) else part.to_latex() for part in self.parts()]
        return "\n\n".join(parts) + "\n"

    def parts(self) -> list[str | Table]:
        """Return tables in percent: the means, and the cells of each attack; and maybe a note.

        The means are left out where each is that of a single cell.
        """
        means = self.means()
        parts: list[str | Table] = []
        if any(mean["cells"] > 1 for mean in means):
            parts.append(self._mean_table(means))
        for attack in dict.fromkeys(cell.attack for cell in self.cells):
            cells = [cell for cell in self.cells if cell.attack == attack]
            header = ["setting", "model", "dataset", "queries", "mAP", "rank-1", "mINP", "L∞ ·255"]
            rows = [row for cell in cells for row in _cell_rows(cell)]
            parts.append(f"{attack}, ε = {255 * cells[0].eps:g}/255")
            parts.append(Table([*header, "SSIM", "drop %"], rows, text_columns=4))
        if any(cell.meta_test for cell in self.cells):
            parts.append("* the attack's meta-test set was this dataset, so it is not unseen")
        parts += [
            f"WARNING: {zero_gradient_text(f'{cell.attack} on {cell.model}', cell.zero_gradients)}"
            for cell in self.cells
            if cell.zero_gradients
        ]
        return parts

    @staticmethod
    def _mean_table(means: list[dict[str, Any]]) -> Table:
        metrics = ["clean mAP", "rank-1", "attacked mAP", "rank-1", "8-bit mAP", "rank-1"]
        rows = [
            [
                mean["attack"],
                mean["setting"],
                mean["cells"],
                *(percent(mean[kind][name]) for kind in KINDS for name in ("mAP", "rank1")),
                percent(mean["mDR"]),
            ]
            for mean in means
        ]
        return Table(["attack", "setting", "cells", *metrics, "mDR %"], rows, text_columns=2)


def _cell_rows(cell: GridCell) -> list[list[Cell]]:
    rows: list[list[Cell]] = []
    for kind, queries in KINDS.items():
        metrics = [percent(cell.metric(kind, name)) for name in ("mAP", "rank1", "mINP")]
        quality = ["0", "1.000", None]
        if kind != "clean":
            values = cell.evaluation[kind]
            drop = percent(cell.drop(kind))
            quality = [f"{values['linf_255']:.2f}", f"{values['ssim']:.3f}", drop]
        pattern = cell.evaluation["attack"].get("pattern")
        setting = cell.setting + ("*" if cell.meta_test else "")
        setting += f": {pattern}" if pattern else ""
        rows.append([setting, cell.model, cell.dataset, queries, *metrics, *quality])
    return rows


def _means(cells: list[GridCell]) -> dict[str, Any]:
    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    out: dict[str, Any] = {"cells": len(cells)}
    for kind in KINDS:
        out[kind] = {name: mean([c.metric(kind, name) for c in cells]) for name in ("mAP", "rank1")}
    for kind, name in (("attacked", "mDR"), ("attacked_8bit", "mDR_8bit")):
        rates = [rate for cell in cells if (rate := cell.drop(kind)) is not None]
        out[name] = mean(rates) if rates else None
    return out
