"""`hf-prune inspect`: what was cut from a checkpoint, read from its config without building the model's weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedModel

from ..anatomy import Block, ModelAnatomy, describe_model
from ..budget import Lengths, flops_per_unit, generation_flops_per_unit, lengths_of, total_flops, total_unit_parameters
from ..errors import UnsupportedModelError
from ..report.build import count_parameters
from ..report.number_text import count_text
from ..report.report import BlockReport, PruningReport, Size
from ..report.tables import UNIT_NAMES
from ..surgery import pruning_of
from ..surgery.metadata import pruned_configs, saved_name
from .models import load_config, model_without_weights
from .weight_inspection import WeightInspection, inspect_weights
from .written_report import written_report

DEFAULT_LENGTH = 128

# By the path of the model whose config it is in.
Metadata = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Inspection:
    """What a checkpoint is made of.

    Attributes:
        name: local folder or Hub name.
        anatomy: its blocks as they are now; None where only single weights of the model can be pruned.
        model: its modules, without weights.
        parameters: all parameters it has now.
        report: what pruning did to its blocks; None where they are whole.
        only_counted: keys of the report's blocks of which it is known how many units stayed, but not which: a config
            names heads and counts filters. Their `kept` stands for the number only.
        weights: its single weights that were set to zero; None where there are none.
    """

    name: str
    anatomy: ModelAnatomy | None
    model: PreTrainedModel
    parameters: int
    report: PruningReport | None = None
    only_counted: frozenset[str] = frozenset()
    weights: WeightInspection | None = None

    @property
    def mapped(self) -> PruningReport | None:
        """The report with those blocks only whose kept units are known one by one; None if there are none."""
        if self.report is None:
            return None
        known = tuple(block for block in self.report.blocks if block.key not in self.only_counted)
        return replace(self.report, blocks=known) if known else None

    def to_dict(self, sequence_length: int) -> dict[str, Any]:
        """A JSON-serialisable form; `kept` is null where it is not known."""
        pruning = self.report.to_dict() if self.report else None
        for block in pruning["blocks"] if pruning else ():
            if block["key"] in self.only_counted:
                block["kept"] = None
        return {
            "model": self.name,
            "model_type": self.model.config.model_type,
            "sequence_length": sequence_length,
            "parameters": self.parameters,
            **_block_costs(self.model, self.anatomy, sequence_length),
            "pruning": pruning,
            "weights": self.weights.to_dict() if self.weights else None,
        }


def _block_costs(model: PreTrainedModel, anatomy: ModelAnatomy | None, sequence_length: int) -> dict[str, Any]:
    """What a model's blocks cost now, all together and a unit of each."""
    if anatomy is None:
        return {"flops": None, "unit_parameters": None, "blocks": []}
    lengths = lengths_of(model, anatomy, sequence_length)
    blocks = [
        {
            "key": block.key,
            "kind": block.kind,
            "units": block.units,
            "flops_per_unit": flops_per_unit(block, lengths),
            "parameters_per_unit": block.parameters_per_unit,
        }
        for block in anatomy.blocks
    ]
    return {
        "flops": total_flops(anatomy, lengths),
        "unit_parameters": total_unit_parameters(anatomy),
        "blocks": blocks,
    }


def anatomy_table(inspection: Inspection, anatomy: ModelAnatomy, sequence_length: int) -> Table:
    """The blocks of a model as they are: units, and what one of them costs."""
    lengths = lengths_of(inspection.model, anatomy, sequence_length)
    flops = count_text(total_flops(anatomy, lengths))
    title = (
        f"{inspection.name}: {anatomy.model_type}, {len(anatomy.layers)} layers, not pruned\n"
        f"{count_text(inspection.parameters)} parameters, {count_text(total_unit_parameters(anatomy))} of them in heads"
        f" and filters; {flops} FLOPs of attention and FFN for {lengths.tokens} tokens"
    )
    table = Table(title=Text(title), box=box.SIMPLE_HEAD)
    for index, header in enumerate(("block", "units", "parameters of one", "FLOPs of one")):
        table.add_column(header, justify="right" if index else "left")
    for block in anatomy.blocks:
        units = f"{block.units:,} {UNIT_NAMES[block.kind]}" + (f" of {block.head_dim}" if block.head_dim else "")
        cost = count_text(flops_per_unit(block, lengths))
        table.add_row(Text(block.key), units, count_text(block.parameters_per_unit), cost)
    return table


def inspect_checkpoint(name: str) -> Inspection:
    """Reads a checkpoint's config, and its pruning report where there is one.

    Args:
        name: local folder or Hub name of a dense or pruned model.

    Raises:
        PruningError: there is no such model, its family is not supported, or its metadata does not fit.
    """
    model = model_without_weights(load_config(name))
    written = written_report(name) if pruned_configs(model) else None
    weights = inspect_weights(name, model, written)
    parameters = count_parameters(model)
    try:
        anatomy = describe_model(model)
    except UnsupportedModelError:
        if weights is None:
            raise
        return Inspection(name, None, model, parameters, weights=weights)
    saved = _metadata(model, anatomy)
    if not saved:
        return Inspection(name, anatomy, model, parameters, weights=weights)
    anatomy = anatomy.with_whole_experts([block.key for block in anatomy.experts if _entry(block, saved)])
    report = _report_from_config(name, anatomy, model, parameters, saved)
    # Where layers went, the blocks of the config are numbered anew, and only the report knows the dense model.
    shorter = any(data.get("layers") for data in saved.values())
    if isinstance(written, PruningReport) and (shorter or _sizes(written) == _sizes(report)):
        return Inspection(name, anatomy, model, parameters, written, weights=weights)
    cut = {block.key for block in report.blocks if block.kept_units not in (0, block.dense_units)}
    named = {block.key for block in anatomy.blocks if _entry(block, saved).get("heads")}
    return Inspection(name, anatomy, model, parameters, report, frozenset(cut - named), weights)


def _metadata(model: PreTrainedModel, anatomy: ModelAnatomy) -> Metadata:
    """What every config that has some says of cut blocks: a model of several towers may have more than one."""
    owners = dict.fromkeys(block.owner for block in anatomy.blocks)
    found = {owner: pruning_of(model.get_submodule(owner).config) for owner in owners}
    return {owner: data for owner, data in found.items() if data is not None and (data["blocks"] or data.get("layers"))}


def _entry(block: Block, saved: Metadata) -> Mapping[str, Any]:
    """What metadata says of a block; empty where it says nothing, since the block was not touched."""
    data = saved.get(block.owner)
    entry: Mapping[str, Any] = data["blocks"].get(saved_name(block, block.local_key), {}) if data else {}
    return entry


def _report_from_config(
    name: str, anatomy: ModelAnatomy, model: PreTrainedModel, parameters: int, saved: Metadata
) -> PruningReport:
    """The report as far as a config tells it: of filters it tells how many stayed, not which."""
    data = next(iter(saved.values()))
    cost = data.get("cost")
    length = cost.get("sequence_length") if isinstance(cost, Mapping) else None
    if not isinstance(length, int) or length < 1:
        length = DEFAULT_LENGTH
    lengths = lengths_of(model, anatomy, length)
    blocks = [_block_report(block, _entry(block, saved), lengths) for block in anatomy.blocks]
    removed = sum((block.dense_units - block.kept_units) * block.parameters_per_unit for block in blocks)
    sizes = {
        when: Size(
            flops=sum(block.flops(getattr(block, units)) for block in blocks),
            generation_flops=sum(block.generation_flops(getattr(block, units)) for block in blocks),
            unit_parameters=sum(getattr(block, units) * block.parameters_per_unit for block in blocks),
            parameters=parameters + extra,
        )
        for when, units, extra in (("dense", "dense_units", removed), ("pruned", "kept_units", 0))
    }
    return PruningReport.from_dict(
        {
            "model_name": name,
            "model_type": anatomy.model_type,
            "strategy": data.get("strategy"),
            "sequence_length": length,
            "dense": asdict(sizes["dense"]),
            "pruned": asdict(sizes["pruned"]),
            "blocks": [asdict(block) for block in blocks],
            "metrics": data.get("metrics") or {},
        }
    )


def _block_report(block: Block, entry: Mapping[str, Any], lengths: Lengths) -> BlockReport:
    """A block's report; without an entry of its own it was not touched."""
    return BlockReport(
        key=block.key,
        kind=block.kind,
        dense_units=entry.get("of", block.units),
        kept_units=block.units,
        kept=tuple(entry.get("heads") or range(block.units)),
        flops_per_unit=flops_per_unit(block, lengths),
        generation_flops_per_unit=generation_flops_per_unit(block, lengths),
        parameters_per_unit=block.parameters_per_unit,
        experts=block.unit == "experts",
    )


def _sizes(report: PruningReport) -> list[tuple[str, int, int]]:
    return [(block.key, block.dense_units, block.kept_units) for block in report.blocks]
