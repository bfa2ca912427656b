"""The model card of a pruned model."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import PreTrainedModel

from ..config import PruningConfig, StructuredPruningConfig
from ..surgery.metadata import pruned_configs
from ..weight_config import ScheduledPruningConfig, WeightPruningConfig
from .base import Report
from .citations import UNIT_CITATIONS, WEIGHT_CITATIONS
from .number_text import share_text
from .report import PruningReport
from .tables import UNIT_NAMES, block_markdown, kept_text, markdown_table, stage_markdown, summary_markdown
from .tasks import Task, task_of
from .weight_card import SPEED, weight_card_text
from .weight_report import WeightReport

TAGS = ("hf_prune", "pruned")
PLACEHOLDER = "path/to/this/model"
UNIT_TEMPLATE, WEIGHT_TEMPLATE, END_TEMPLATE = "card_template.md", "weight_card_template.md", "card_end_template.md"


def pruned_model_card(
    report: PruningReport | WeightReport,
    model: PreTrainedModel | None = None,
    *,
    model_id: str | None = None,
    base_model: str | None = None,
    license: str | None = None,
    language: str | list[str] | None = None,
    tags: Sequence[str] = (),
    dataset: str | None = None,
    picture: str | None = None,
    packed: bool = False,
) -> ModelCard:
    """Writes the card that goes next to a pruned checkpoint.

    Args:
        report: what was done.
        model: the pruned model; it tells the task and the class to load it with. Without it the snippet uses
            `AutoModel`, and the metadata has neither task nor results.
        model_id: where the pruned model will be found, for the snippet.
        base_model: the dense model's Hub id; by default the report's `model_name`, if it has the form `owner/name`. A
            local path is left out of the metadata.
        license: the model's licence, if known: the dense model's, as a rule.
        language: language code or codes.
        tags: further tags, after `hf_prune` and `pruned`.
        dataset: Hub id of the data that the metrics were measured on.
        picture: path of the heat map relative to the card, if there is one.
        packed: whether the weights are stored in the bitmask format, so that reading them takes hf_prune.

    Returns:
        The card; `.save("README.md")` writes it and `.push_to_hub(repo_id)` uploads it.
    """
    task = task_of(model) if model is not None else Task("AutoModel", None)
    base = _base_model(base_model, report.model_name)
    results = _eval_results(report, task, dataset)
    data = ModelCardData(
        base_model=base,
        library_name="transformers",
        license=license,
        language=language,
        pipeline_tag=task.pipeline_tag,
        tags=[*TAGS, *tags],
        datasets=[dataset] if dataset else None,
        model_name=_model_name(report, model_id) if results else None,
        eval_results=results or None,
    )
    if isinstance(report, WeightReport):
        template, own = WEIGHT_TEMPLATE, weight_card_text(report, model, packed)
    else:
        template, own = UNIT_TEMPLATE, _unit_card_text(report, model)
    text = _common_text(report, base, model_id) | own
    text |= {"auto_class": task.auto_class, "picture": picture, "preprocessor": _preprocessor(model)}
    card = ModelCard.from_template(data, template_str=f"{_read(template)}\n{_read(END_TEMPLATE)}", **text)
    card.text += "\n"
    return card


def _read(template: str) -> str:
    return resources.files(__package__).joinpath(template).read_text(encoding="utf-8")


def _common_text(report: PruningReport | WeightReport, base: str | None, model_id: str | None) -> dict[str, Any]:
    citations = WEIGHT_CITATIONS if isinstance(report, WeightReport) else UNIT_CITATIONS
    return {
        "title": f"{report.short_name}, pruned",
        "origin": f"[{base}](https://huggingface.co/{base})" if base else f"`{report.short_name}`",
        "model_id": model_id or PLACEHOLDER,
        "strategy": report.strategy_name,
        "settings": _settings_table(report),
        "stages": stage_markdown(report),
        "notes": "\n".join(f"- {note}" for note in (*report.notes, *_limits(report))),
        "citation": citations.get(report.strategy_name),
    }


def _unit_card_text(report: PruningReport, model: PreTrainedModel | None) -> dict[str, Any]:
    known = [data for _, data in pruned_configs(model)] if model is not None else []
    layers = {name: entry for data in known for name, entry in data.get("layers", {}).items()}
    blocks = [block for data in known for block in data["blocks"].values()]
    kept = [f"{len(entry['kept'])} of {entry['of']} layers" for entry in layers.values()]
    kept += [text for text in (kept_text(report, kind) for kind in UNIT_NAMES) if text]
    *others, last = kept or ["no units"]
    return {
        "kept": f"{', '.join(others)} and {last}" if others else last,
        "cut": not blocks or any(block["kept"] < block["of"] for block in blocks),
        "flops": share_text(report.pruned.flops, report.dense.flops),
        "summary": summary_markdown(report),
        "blocks": block_markdown(report) if report.blocks else "",
    }


def _limits(report: PruningReport | WeightReport) -> list[str]:
    if isinstance(report, WeightReport):
        limits = [SPEED]
    else:
        limits = [
            "FLOPs and parameters of attention and FFN are those of heads and filters; embeddings and the task head are"
            " as large as before.",
        ]
        if report.latency_setting is not None:
            limits.append("The latencies hold for the machine they were measured on, at this batch size and length.")
    limits.append("Whatever the dense model does wrong, this one may do wrong too, and not always on the same inputs.")
    return limits


def _settings_table(report: PruningReport | WeightReport) -> str:
    """The settings that have a value; those left open, or about what was not pruned, are not news to a reader."""
    foreign = _settings_of(StructuredPruningConfig, PruningConfig) - {"batch_size"}  # data comes in batches for both
    if isinstance(report, PruningReport):
        foreign = _settings_of(WeightPruningConfig, ScheduledPruningConfig)
    rows = [
        (f"`{name}`", f"`{json.dumps(value)}`")
        for name, value in report.strategy.items()
        if value is not None and name not in foreign and name != "strategy"
    ]
    return markdown_table(("setting", "value"), rows) if rows else ""


def _settings_of(kind: type[PruningConfig], parent: type[PruningConfig]) -> set[str]:
    """The settings that a kind of configuration has and its parent has not."""
    return {item.name for item in fields(kind)} - {item.name for item in fields(parent)}


def _preprocessor(model: PreTrainedModel | None) -> str:
    text = model is None or model.main_input_name == "input_ids"
    return f"The {'tokenizer' if text else 'preprocessor'} is the dense model's."


def _eval_results(report: Report, task: Task, dataset: str | None) -> list[EvalResult]:
    """The pruned model's metrics for the model index, which needs to know the task and has no word for NaN."""
    if task.pipeline_tag is None:
        return []
    return [
        EvalResult(
            task_type=task.pipeline_tag,
            dataset_type=dataset or "unknown",
            dataset_name=dataset or "unknown",
            metric_type=name.removeprefix("eval_"),
            metric_value=round(value, 6),
        )
        for name, value in report.metrics.get("pruned", {}).items()
        if math.isfinite(value)
    ]


def _model_name(report: Report, model_id: str | None) -> str:
    return model_id.rstrip("/").rsplit("/", 1)[-1] if model_id else f"{report.short_name}-pruned"


def _base_model(given: str | None, model_name: str) -> str | None:
    """The dense model's Hub id, or None where there is none.

    The report's name counts only with an owner: `my-model` alone is more likely a folder that is elsewhere now, or a
    class that was built from a config.
    """
    name = given or (model_name if "/" in model_name else "")
    if not name or Path(name).exists():
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name
