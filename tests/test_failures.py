"""Every bad input gives one clear error before any weight is touched; a run that fails leaves everything as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
)

from hf_prune import (
    FisherPruningConfig,
    InfeasibleBudgetError,
    PruningError,
    UnsupportedModelError,
    describe_model,
    prune_model,
    pruning_run,
)
from hf_prune.budget import latency, latency_selection
from hf_prune.gates import (
    add_epsilon_gates,
    add_filter_gates,
    add_head_gates,
    add_spectral_norm,
    remove_epsilon_gates,
    remove_filter_gates,
    remove_head_gates,
    remove_spectral_norm,
)
from hf_prune.scores import gradient_rows
from hf_prune.strategies.fisher import repair, strategy
from hf_prune.strategies.fisher.unit_scores import FisherStatistics
from hf_prune.surgery import PruningPlan, apply_plan, verify
from tests.conformance.plans import prune
from tests.failing import Failing
from tests.small_models import Batch, case
from tests.witness import Witness

BERT = case("bert", "classification")


@pytest.fixture
def batches() -> list[Batch]:
    return [BERT.batch(seed) for seed in range(4)]


def config(**settings: Any) -> FisherPruningConfig:
    return FisherPruningConfig(**{"flops": 0.5, "latency_batch_size": 2} | settings)


def labelled(**columns: Any) -> list[Batch]:
    """One batch with some columns replaced, or removed where they are None."""
    batch = BERT.batch() | columns
    return [{name: value for name, value in batch.items() if value is not None}]


BAD_REQUESTS: dict[str, tuple[Callable[[], Any], Any, type[Exception], str]] = {
    "no data": (config, None, PruningError, "Calibration data is needed"),
    "empty data": (config, [], PruningError, "calibration data is empty"),
    "labels missing": (lambda: config(labels="data"), labelled(labels=None), PruningError, "labels are missing"),
    "text": (config, Dataset.from_dict({"text": ["a"], "label": [1]}), PruningError, "Tokenise the data first"),
    "other columns": (config, Dataset.from_dict({"pixels": [[1]]}), PruningError, r"columns \(pixels\)"),
    "loss that is not a number": (
        config,
        labelled(labels=torch.full((4, 3), torch.nan)),
        PruningError,
        "The loss on calibration batch 0 is nan",
    ),
    "blocks that may not be pruned alone": (
        lambda: config(flops=0.3, target_modules="attention"),
        None,
        InfeasibleBudgetError,
        "blocks that are not to be pruned alone make up",
    ),
    "latency out of reach": (
        lambda: FisherPruningConfig(latency_ms=1e-6, latency_batch_size=2),
        None,
        InfeasibleBudgetError,
        "out of reach",
    ),
    "no such block": (
        lambda: config(target_modules="layer.9.attention"),
        None,
        PruningError,
        "'layer.9.attention' matches nothing",
    ),
    "longer than the model's positions": (
        lambda: config(sequence_length=500),
        None,
        PruningError,
        "sequence_length=500 exceeds the model's 48 positions",
    ),
    "config of another kind": (lambda: {"flops": 0.5}, None, PruningError, "config is a dict; pass a FisherPruning"),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_bad_requests_touch_nothing(name: str, batches: list[Batch], monkeypatch: pytest.MonkeyPatch) -> None:
    make, data, error, message = BAD_REQUESTS[name]
    needs_data = name in ("no data", "empty data") or data is not None
    model = BERT.model().train()
    if "not a number" in name:
        model.config.problem_type = "multi_label_classification"
    witness = Witness(model)
    with pytest.raises(error, match=message):
        prune_model(model, make(), data if needs_data else batches)
    witness.check()


def test_smallest_reachable_budget_is_reachable(batches: list[Batch]) -> None:
    item = case("bert", "causal")
    model, data = item.model(), [item.batch()]
    with pytest.raises(InfeasibleBudgetError) as caught:
        prune_model(model, config(flops=0.001), data)
    assert "smallest reachable value is 0." in str(caught.value)
    prune_model(model, config(flops=caught.value.smallest), data)


def test_what_is_out_of_reach_shows_before_anything_is_scored(
    batches: list[Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FisherStatistics, "collect", lambda *args: pytest.fail("gradients were taken"))
    with pytest.raises(InfeasibleBudgetError, match=r"flops=0\.01 is out of reach"):
        prune_model(BERT.model(), config(flops=0.01, target_modules=["attention"]), batches)


def mamba() -> PreTrainedModel:
    return MambaForCausalLM(MambaConfig(num_hidden_layers=1, hidden_size=8, vocab_size=70))


def rolled_filters() -> PreTrainedModel:
    """An unknown model type whose projections are called like Llama's, but do not do what Llama's do."""

    class RolledConfig(LlamaConfig):
        model_type = "rolled"

    class Rolled(LlamaForCausalLM):
        config_class = RolledConfig

    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 12, "num_hidden_layers": 2}
    model = Rolled(RolledConfig(**sizes, vocab_size=70))
    for layer in model.model.layers:
        layer.mlp.act_fn = RolledActivation()
    return model


class RolledActivation(nn.Module):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values.roll(1, dims=-1).relu()


def int8_weights() -> PreTrainedModel:
    model = BERT.model()
    dense = model.bert.encoder.layer[1].output.dense
    dense.weight = nn.Parameter(dense.weight.detach().to(torch.int8), requires_grad=False)
    return model


def lora() -> PreTrainedModel:
    return get_peft_model(BERT.model(), LoraConfig(target_modules=["query"])).get_base_model()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (mamba, r"'mamba'.*not in the family table.*families\.py"),
        (rolled_filters, r"'rolled'.*not in the family table.*families\.py"),
        (int8_weights, "before quantising"),
        (lora, "Merge adapters"),
    ],
)
def test_refused_model_is_left_untouched(
    build: Callable[[], PreTrainedModel], message: str, batches: list[Batch]
) -> None:
    model = build().train()
    witness, random_state = Witness(model), torch.get_rng_state()
    for attempt in (lambda: describe_model(model), lambda: prune_model(model, config(), batches)):
        with pytest.raises(UnsupportedModelError, match=message):
            attempt()
        witness.check()
        assert torch.equal(torch.get_rng_state(), random_state)


def test_nothing_left_to_prune(batches: list[Batch]) -> None:
    model = BERT.model()
    anatomy = describe_model(model)
    apply_plan(model, anatomy, PruningPlan({block.key: () for block in anatomy.blocks}))
    with pytest.raises(PruningError, match="no heads and no filters left"):
        prune_model(model, config(), batches)


@pytest.mark.parametrize(
    ("add", "remove", "words"),
    [
        (add_head_gates, remove_head_gates, "has gates on its heads or filters"),
        (add_filter_gates, remove_filter_gates, "has gates on its heads or filters"),
        (add_epsilon_gates, remove_epsilon_gates, "has epsilon gates.*remove_epsilon_gates"),
        (add_spectral_norm, remove_spectral_norm, "has spectral normalisation.*remove_spectral_norm"),
    ],
)
def test_gated_model(add: Callable[..., Any], remove: Callable[..., Any], words: str, batches: list[Batch]) -> None:
    model = BERT.model()
    add(model)
    witness = Witness(model)
    with pytest.raises(PruningError, match=f"BertForSequenceClassification {words}"):
        prune_model(model, config(), batches)
    witness.check()
    remove(model)
    prune_model(model, config(), batches)


MOMENTS = {
    "gradients": (gradient_rows, "iterate_gradients", 0),
    "search": (strategy, "select_units", 0),
    "middle of the repair": (repair, "refit_weights", 3),
    "cut": (verify, "shrink_model", 0),
    "middle of installing repairs": (verify, "put_repair", 5),
    "comparison": (verify, "_compare", 0),
    "timing": (pruning_run, "compare_with_undone", 0),
    "report": (pruning_run, "build_report", 0),
    "metadata": (pruning_run, "write_metadata", 0),
    "evaluation before": (pruning_run, "evaluate_model", 0),
    "evaluation after": (pruning_run, "evaluate_model", 1),
    "last step": (pruning_run, "write_metrics", 0),
}


@pytest.mark.parametrize("pruned_before", [False, True], ids=["dense", "pruned"])
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_interrupted_run_leaves_the_model(
    moment: str,
    error: type[BaseException],
    pruned_before: bool,
    batches: list[Batch],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module, name, times = MOMENTS[moment]
    model = BERT.model().train()
    if pruned_before:
        prune(model, batches[0])
    model.bert.embeddings.requires_grad_(False)
    rows = Dataset.from_dict({key: value.tolist() for key, value in batches[0].items()})
    witness = Witness(model)
    monkeypatch.setattr(module, name, Failing(getattr(module, name), times, error))
    with pytest.raises(error):
        prune_model(model, config(), batches, eval_dataset=rows)
    witness.check()


@pytest.mark.parametrize("works", [0, 1])
def test_failing_metrics_leave_the_model(works: int, batches: list[Batch]) -> None:
    model = BERT.model().train()
    rows = Dataset.from_dict({key: value.tolist() for key, value in batches[0].items()})
    witness = Witness(model)
    metrics = Failing(lambda prediction: {"accuracy": 1.0}, works, ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        prune_model(model, config(), batches, eval_dataset=rows, compute_metrics=metrics)
    witness.check()


@pytest.mark.parametrize("works", [0, 1, 2])
@pytest.mark.parametrize("budget", [{"flops": 0.5}, {"latency": 1.0}])
def test_interrupted_measurement_leaves_the_model(
    budget: dict[str, float], works: int, batches: list[Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is timed cut and whole in turn, so it may be either when it happens."""
    model = BERT.model().train()
    witness = Witness(model)
    tables = {block.key: torch.arange(block.units + 1).double() for block in describe_model(model).blocks}
    monkeypatch.setattr(latency_selection, "latency_tables", lambda *arguments: tables)
    right = latency.forward_pass
    monkeypatch.setattr(latency, "forward_pass", lambda *given: Failing(right(*given), works, KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        prune_model(model, FisherPruningConfig(**budget, latency_batch_size=2), batches)
    witness.check()
