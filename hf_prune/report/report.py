"""What pruning did to a model, as data: written next to the checkpoint, printed, plotted and put on the card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import PruningError
from .base import NumberGroup, Report, check_report, damage_refused

KINDS = ("attention", "feed_forward")


@dataclass(frozen=True)
class BlockReport:
    """One block before and after.

    Attributes:
        key: the block's name.
        kind: "attention" or "feed_forward".
        dense_units, kept_units: heads (KV groups) or filters.
        kept: indices of the kept units, counted in the model that was pruned.
        flops_per_unit: floating-point operations of one unit for one sequence.
        parameters_per_unit: parameters that belong to one unit.
        generation_flops_per_unit: floating-point operations of one unit for the token that is generated after the
            sequence; 0 in a block that does not run then.
        experts: whether the units are whole experts. The tokens of those that go are computed by the others, so the
            block's FLOPs stay the same.

    Raises:
        PruningError: an unknown kind, or kept indices that are out of range, unordered or not as many as `kept_units`.
    """

    key: str
    kind: str
    dense_units: int
    kept_units: int
    kept: tuple[int, ...]
    flops_per_unit: int
    parameters_per_unit: int
    generation_flops_per_unit: int = 0
    experts: bool = False

    def flops(self, units: int) -> int:
        """FLOPs of the block for one sequence, with so many units left."""
        return self._working(units) * self.flops_per_unit

    def generation_flops(self, units: int) -> int:
        """FLOPs of the block for a generated token, with so many units left."""
        return self._working(units) * self.generation_flops_per_unit

    def _working(self, units: int) -> int:
        return self.dense_units if self.experts and units else units

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise PruningError(f"{self.key}: the kind must be one of {', '.join(KINDS)}, got {self.kind!r}.")
        ascending = all(before < after for before, after in zip(self.kept, self.kept[1:], strict=False))
        in_range = all(isinstance(unit, int) and 0 <= unit < self.dense_units for unit in self.kept)
        if not ascending or not in_range or len(self.kept) != self.kept_units:
            raise PruningError(
                f"{self.key}: the kept indices must be {self.kept_units} ascending numbers from 0 to"
                f" {self.dense_units - 1}, got {len(self.kept)}: {str(list(self.kept))[:80]}."
            )


@dataclass(frozen=True)
class Size:
    """What a model costs.

    Attributes:
        flops: of attention and FFN, for one sequence of the report's length.
        unit_parameters: parameters of attention and FFN that belong to prunable units.
        parameters: all parameters of the model.
        latency: median seconds of a forward pass in the report's latency setting, or None if not measured.
        generation_flops: of attention and FFN, for the token generated after such a sequence; 0 in a model that does
            not generate.
    """

    flops: int
    unit_parameters: int
    parameters: int
    latency: float | None = None
    generation_flops: int = 0


@dataclass(frozen=True)
class LatencySetting:
    """Under what conditions a latency was measured."""

    batch_size: int
    sequence_length: int
    device: str
    dtype: str
    threads: int


@dataclass(frozen=True)
class PruningReport(Report):
    """Before and after.

    Attributes:
        model_name: name or path of the dense model.
        model_type: its family.
        strategy: the strategy's name, under "strategy", and settings, as `PruningConfig.to_dict` gives them.
        sequence_length: tokens per sequence that FLOPs are counted for.
        dense, pruned: sizes before and after.
        blocks: every block, in the order in which they run.
        stages: seconds spent in each stage (the paper's Table 5).
        latency_setting: conditions of the latencies, or None if none was measured.
        metrics: `{"dense": {...}, "pruned": {...}}` on the evaluation data, empty without any.
        notes: what a reader should know (a stage that stopped early, a search gap).
    """

    model_name: str
    model_type: str
    strategy: Mapping[str, Any]
    sequence_length: int
    dense: Size
    pruned: Size
    blocks: tuple[BlockReport, ...]
    stages: Mapping[str, float] = field(default_factory=dict)
    latency_setting: LatencySetting | None = None
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def costs(self) -> dict[str, Any]:
        """What a checkpoint's config says about costs; times are left out, they belong to a machine."""
        sizes = {"dense": self.dense, "pruned": self.pruned}
        counted = {name: {"flops": size.flops, "parameters": size.parameters} for name, size in sizes.items()}
        return {"sequence_length": self.sequence_length, **counted}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PruningReport:
        """The inverse of `to_dict`.

        Raises:
            PruningError: fields are missing or unknown, or hold something else than they should.
        """
        with damage_refused(data):
            values = dict(data)
            setting = values.get("latency_setting")
            values |= {
                "dense": Size(**values["dense"]),
                "pruned": Size(**values["pruned"]),
                "blocks": tuple(BlockReport(**{**row, "kept": tuple(row["kept"])}) for row in values["blocks"]),
                "latency_setting": LatencySetting(**setting) if setting else None,
                "notes": tuple(values.get("notes", ())),
            }
            report = cls(**values)
            check_report(report, (block.key for block in report.blocks), _numbers(report))
        return report

    def to_markdown(self) -> str:
        """The summary and the per-block table as Markdown."""
        from .tables import report_markdown

        return report_markdown(self)

    def plot(self, path: str | Path | None = None) -> Any:
        """A heat map of what was kept, as a matplotlib figure; also written to `path` if one is given.

        Raises:
            PruningError: matplotlib is not installed.
        """
        from .plots import plot_kept_units

        return plot_kept_units(self, path)


def _numbers(report: PruningReport) -> list[NumberGroup]:
    """What must be numbers in a report on blocks."""
    counts = ("dense_units", "flops_per_unit", "parameters_per_unit", "generation_flops_per_unit")
    return [
        ("report", {"sequence_length": report.sequence_length}),
        ("dense", vars(report.dense)),
        ("pruned", vars(report.pruned)),
        *((block.key, {name: getattr(block, name) for name in counts}) for block in report.blocks),
    ]
