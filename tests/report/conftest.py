from __future__ import annotations

import pytest

from hf_prune.report import BlockReport, LatencySetting, MatrixSparsity, PruningReport, Size, WeightReport


@pytest.fixture
def report() -> PruningReport:
    """Two layers of four heads and twelve filters; the second attention is gone, and the widths differ."""
    blocks = (
        BlockReport("encoder.layer.0.attention", "attention", 4, 3, (0, 1, 3), 4_000_000, 2_080),
        BlockReport("encoder.layer.0.intermediate", "feed_forward", 12, 6, (0, 1, 2, 3, 6, 11), 500_000, 65),
        BlockReport("encoder.layer.1.attention", "attention", 2, 0, (), 4_000_000, 2_080),
        BlockReport("encoder.layer.1.intermediate", "feed_forward", 8, 8, tuple(range(8)), 500_000, 65),
    )
    return PruningReport(
        model_name="someone/tiny-sst2",
        model_type="bert",
        strategy={"strategy": "fisher", "flops": 0.6, "params": None, "recovery": "weights", "round_to": 1},
        sequence_length=64,
        dense=Size(flops=34_000_000, unit_parameters=13_780, parameters=1_234_567, latency=0.0123),
        pruned=Size(flops=19_000_000, unit_parameters=7_150, parameters=1_227_937, latency=0.00615),
        blocks=blocks,
        stages={"scores": 90.0, "search": 0.01, "recovery": 30.0},
        latency_setting=LatencySetting(batch_size=32, sequence_length=64, device="cpu", dtype="float32", threads=2),
        metrics={
            "dense": {"loss": 0.25, "accuracy": 0.9125},
            "pruned": {"loss": 0.3125, "accuracy": 0.9, "f1": 0.5},
        },
        notes=("The search is within 0.3 % of the best there can be.",),
    )


@pytest.fixture
def weight_report() -> WeightReport:
    """Word embeddings and two layers, of which one matrix has kept everything."""
    counts = {
        "bert.embeddings.word_embeddings.weight": (1_000, 500),
        "bert.encoder.layer.0.attention.self.query.weight": (400, 100),
        "bert.encoder.layer.0.output.dense.weight": (400, 0),
        "bert.encoder.layer.1.attention.self.query.weight": (400, 300),
        "bert.encoder.layer.1.output.dense.weight": (400, 200),
    }
    return WeightReport(
        model_name="someone/tiny-sst2",
        model_type="bert",
        strategy={"strategy": "magnitude", "flops": None, "round_to": 8, "sparsity": 0.4, "scope": "global"},
        parameters=4_400,
        matrices=tuple(MatrixSparsity(name, *pair) for name, pair in counts.items()),
        metrics={"dense": {"accuracy": 0.9125}, "pruned": {"accuracy": 0.9}},
        stages={"pruning": 1.5},
        notes=("The schedule ended early.",),
    )
