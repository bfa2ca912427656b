"""`prune_model` with metrics before and after, with retraining, and on models that were never trained."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)

from hf_prune import FisherPruningConfig, MagnitudePruningConfig, PruningError, UnsupportedModelError, prune_model
from tests.small_models import Batch, case, sizes
from tests.witness import Witness

BERT = case("bert", "classification")


def config(**settings: Any) -> FisherPruningConfig:
    return FisherPruningConfig(**{"flops": 0.5, "latency_batch_size": 2} | settings)


def accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(1) == prediction.label_ids).mean())}


class TestEvaluationAndRetraining:
    def trainer(self, model: PreTrainedModel, rows: Dataset, folder: Path, **settings: Any) -> Trainer:
        arguments = TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=4,
            max_steps=3,
            learning_rate=1e-3,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            **settings,
        )
        return Trainer(model, arguments, train_dataset=rows)

    def test_metrics_before_and_after(self, rows: Dataset) -> None:
        model = BERT.model()
        with torch.no_grad():
            batch = {name: torch.tensor(rows[name]) for name in rows.column_names}
            logits = model(**batch).logits
        expected = (logits.argmax(1) == batch["labels"]).float().mean().item()
        result = prune_model(model, config(), rows, eval_dataset=rows, compute_metrics=accuracy)
        assert result.report.metrics["dense"]["accuracy"] == pytest.approx(expected)
        assert set(result.report.metrics["pruned"]) == {"loss", "accuracy"}
        assert model.config.pruning["metrics"] == result.report.metrics
        with torch.no_grad():
            after = (model(**batch).logits.argmax(1) == batch["labels"]).float().mean().item()
        assert result.report.metrics["pruned"]["accuracy"] == pytest.approx(after)

    def test_loss_alone_where_no_metrics_are_asked_for(self, rows: Dataset) -> None:
        result = prune_model(BERT.model(), config(), rows, eval_dataset=rows)
        assert set(result.report.metrics["dense"]) == {"loss"}

    def test_evaluation_leaves_the_config_alone(self) -> None:
        item = case("bert", "causal")
        model, batch = item.model(), item.batch()
        assert model.config.use_cache
        rows = Dataset.from_dict({name: value.tolist() for name, value in batch.items()})
        prune_model(model, config(), [batch], eval_dataset=rows)
        assert model.config.use_cache

    def test_retraining_keeps_the_structure(self, rows: Dataset, tmp_path: Path) -> None:
        seen: dict[str, Any] = {}

        def retrain(model: PreTrainedModel) -> Trainer:
            seen["sizes"] = sizes(model)
            seen["weights"] = {name: value.clone() for name, value in model.state_dict().items()}
            return self.trainer(model, rows, tmp_path, save_steps=2)

        model = BERT.model()
        result = prune_model(model, config(), rows, retrain=retrain, eval_dataset=rows)
        assert sizes(model) == seen["sizes"] == [block.kept_units for block in result.report.blocks]
        changed = [name for name, value in model.state_dict().items() if not torch.equal(value, seen["weights"][name])]
        assert len(changed) > 0.8 * len([value for value in seen["weights"].values() if value.numel()])
        assert "retraining" in result.report.stages
        # A checkpoint from the middle of it can be loaded.
        middle = AutoModelForSequenceClassification.from_pretrained(tmp_path / "checkpoint-2")
        assert sizes(middle) == sizes(model)
        assert model.config.pruning["metrics"] == result.report.metrics

    @pytest.mark.parametrize("settings", [{"flops": 0.5}, {"sparsity": 0.5}])
    def test_what_makes_no_trainer(self, settings: dict[str, float], rows: Dataset) -> None:
        model = BERT.model()
        witness = Witness(model)
        with pytest.raises(PruningError, match="retrain= returned a NoneType: it is a function that makes a Trainer"):
            prune_model(model, MagnitudePruningConfig(**settings), rows, retrain=lambda pruned: None)  # type: ignore
        witness.check()

    def test_the_name_of_a_file(self, rows: Dataset) -> None:
        with pytest.raises(PruningError, match=r"eval_dataset='dev\.tsv' is a name: pass the tokenised rows"):
            prune_model(BERT.model(), config(), rows, eval_dataset="dev.tsv")

    def test_the_name_of_a_model(self, rows: Dataset) -> None:
        with pytest.raises(UnsupportedModelError, match=r"str is not a transformers PreTrainedModel"):
            prune_model("folder", config(), rows)  # type: ignore[arg-type]


class TestFreshHeads:
    def test_warning(self, batches: list[Batch], caplog: pytest.LogCaptureFixture) -> None:
        model = BertForSequenceClassification(BERT.config()).eval()
        with caplog.at_level(logging.WARNING, logger="hf_prune"):
            prune_model(model, config(), batches)
        assert "BertForSequenceClassification.classifier has a bias of zeros" in caplog.text
        assert "fine-tune the model before pruning it" in caplog.text

    @pytest.mark.parametrize("task", ["classification", "tokens", "answers", "masked", "choices", "bare"])
    def test_no_warning_for_trained_models(self, task: str, caplog: pytest.LogCaptureFixture) -> None:
        item = case("bert", task)
        settings = {"importance": "magnitude", "rearrange": False} if task == "bare" else {}
        with caplog.at_level(logging.WARNING, logger="hf_prune"):
            prune_model(item.model(), config(**settings), [item.batch()])
        assert "newly initialised" not in caplog.text
