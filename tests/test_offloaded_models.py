"""Pruning of models that are read from disk layer by layer, against the same models in memory."""

from __future__ import annotations

import copy
import gc
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import LlamaForCausalLM, PreTrainedModel

from hf_prune import (
    FisherPruningConfig,
    HeadImportancePruningConfig,
    LayerDropPruningConfig,
    MagnitudePruningConfig,
    PruningError,
    PruningResult,
    RandomPruningConfig,
    UnsupportedModelError,
    describe_model,
    prune_model,
)
from hf_prune.anatomy.layer_trial import LayerTrial
from hf_prune.calibration import CalibrationData
from hf_prune.config import PruningConfig
from hf_prune.offloading import is_offloaded
from hf_prune.recovery import reconstruct, refit_weights
from hf_prune.scores import iterate_gradients
from hf_prune.surgery import apply_plan, outputs
from tests.conformance.plans import varied_plan
from tests.family_models import VARIANTS, Head, labels, main_head, sample
from tests.offloaded import ON_DISK, LoadedLayers, in_cpu_memory, on_disk
from tests.small_models import Batch

HALF = FisherPruningConfig(flops=0.5)
QUICK = FisherPruningConfig(flops=0.5, importance="magnitude")
# Weights side by side, in an encoder, in an encoder and a decoder that share embeddings and position biases.
MODELS = [main_head(name) for name in ("llama", "bert", "t5")]
# Fused and transposed weights, one layer that runs several times, experts, arguments with an axis of heads.
OTHERS = [main_head(name) for name in ("gpt2", "albert", "mixtral", "bloom")]


def batches(model: PreTrainedModel, number: int = 2) -> list[Batch]:
    samples = [sample(model, seed) for seed in range(number)]
    return [{**batch, **labels(model, batch)} for batch in samples]


def assert_same(one: PruningResult, other: PruningResult, data: list[Batch]) -> None:
    assert other.plan == one.plan
    for ours, theirs in zip(outputs(one.model, data[0]), outputs(other.model, data[0]), strict=True):
        torch.testing.assert_close(theirs, ours)


def all_on_meta(model: PreTrainedModel) -> bool:
    return all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize("case", MODELS, ids=str)
def test_same_as_in_memory(case: Head, tmp_path: Path) -> None:
    """Plan, repairs and outputs; and what plain `save_pretrained` writes is what is in use."""
    model = case.model()
    data = batches(model)
    offloaded = on_disk(model, tmp_path / "dense")
    files = {file.name: file.read_bytes() for file in (tmp_path / "dense").iterdir()}
    expected, result = prune_model(model, HALF, data), prune_model(offloaded, HALF, data)
    assert result.model is offloaded
    assert_same(expected, result, data)
    assert all_on_meta(offloaded)
    assert result.report.pruned.parameters == expected.report.pruned.parameters
    assert result.report.pruned.latency is None
    assert "The latency was not measured: it would be the time that loading takes." in result.report.notes
    assert offloaded.config.pruning["blocks"] == model.config.pruning["blocks"]
    offloaded.save_pretrained(tmp_path / "pruned")
    again = case.model_class.from_pretrained(tmp_path / "pruned")
    for ours, theirs in zip(outputs(offloaded, data[0]), outputs(again, data[0]), strict=True):
        torch.testing.assert_close(theirs, ours)
    assert {file.name: file.read_bytes() for file in (tmp_path / "dense").iterdir()} == files


def test_zeros_are_counted_where_weights_are_read(tmp_path: Path) -> None:
    """A model whose single weights were pruned before says after a cut how many of what is left are zero."""
    model = prune_model(main_head("bert").model(), MagnitudePruningConfig(sparsity=0.5)).model
    offloaded = on_disk(model, tmp_path)
    for one in (model, offloaded):
        prune_model(one, QUICK, batches(model, 1))
    assert 0 < model.config.pruning["weights"]["removed"] < model.config.pruning["weights"]["of"]
    assert offloaded.config.pruning["weights"] == model.config.pruning["weights"]


@pytest.mark.parametrize("case", OTHERS, ids=str)
def test_steps_of_other_families(case: Head, tmp_path: Path) -> None:
    """Gradients, repairs of blocks of every size, the cut, and taking it back."""
    model = case.model()
    offloaded = on_disk(model, tmp_path, offload_folder=tmp_path / "offload")
    anatomy = describe_model(model)
    assert describe_model(offloaded) == anatomy
    [batch] = batches(model, 1)
    for ours, theirs in zip(
        next(iterate_gradients(model, anatomy, [batch])),
        next(iterate_gradients(offloaded, anatomy, [batch])),
        strict=True,
    ):
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)
    plan = varied_plan(anatomy)
    units = {block.key: plan.units(block) for block in anatomy.blocks}
    before = outputs(offloaded, batch)
    for one in (model, offloaded):
        repairs = reconstruct(one, anatomy, units, CalibrationData([batch], one), [batch], refit_weights)
        log = apply_plan(one, anatomy, plan, repairs, batch)
    for ours, theirs in zip(outputs(model, batch), outputs(offloaded, batch), strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
    assert all_on_meta(offloaded)
    log.roll_back()
    for ours, theirs in zip(before, outputs(offloaded, batch), strict=True):
        torch.testing.assert_close(theirs, ours)


def test_shards_in_shards_out(tmp_path: Path) -> None:
    model = main_head("llama").model()
    offloaded = on_disk(model, tmp_path / "dense")
    assert len(list((tmp_path / "dense").glob("model-*.safetensors"))) > 2
    result = prune_model(offloaded, QUICK, batches(model))
    result.save_pretrained(tmp_path / "pruned", max_shard_size="10KB")
    shards = list((tmp_path / "pruned").glob("model-*.safetensors"))
    assert len(shards) > 2
    sizes = {}
    for shard in shards:
        with safe_open(shard, "pt") as tensors:
            sizes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    assert sizes == {name: tuple(value.shape) for name, value in offloaded.state_dict().items()}
    once_more = LlamaForCausalLM.from_pretrained(tmp_path / "pruned", device_map=ON_DISK)
    prompt = sample(model)["input_ids"][:1, :4]
    in_memory = LlamaForCausalLM.from_pretrained(tmp_path / "pruned")
    written = [one.generate(prompt, max_new_tokens=6, do_sample=False) for one in (once_more, in_memory)]
    assert torch.equal(*written)
    assert written[0].shape == (1, 10)


def test_pruned_twice(tmp_path: Path) -> None:
    """Changes of changed weights, and the dense model's count of heads."""
    model = main_head("llama").model()
    data = batches(model)
    offloaded = on_disk(model, tmp_path)
    for budget in (0.7, 0.6):
        config = FisherPruningConfig(flops=budget, importance="magnitude")
        assert_same(prune_model(model, config, data), prune_model(offloaded, config, data), data)
    assert offloaded.config.pruning["blocks"] == model.config.pruning["blocks"]


@pytest.mark.parametrize("place", ["cpu", "some"])
def test_other_places(place: str, tmp_path: Path) -> None:
    """Weights that wait in memory, and a model of which only some layers wait."""
    model = main_head("llama").model()
    data = batches(model)
    if place == "cpu":
        offloaded = in_cpu_memory(copy.deepcopy(model))
    else:
        some = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
        layers = {"model.layers.0": "cpu", "model.layers.1": "disk", "model.layers.2": "disk"}
        offloaded = on_disk(model, tmp_path / "dense", device_map=some | layers)
    assert is_offloaded(offloaded)
    waiting = sum(parameter.is_meta for parameter in offloaded.parameters())
    result = prune_model(offloaded, HALF, data)
    assert_same(prune_model(model, HALF, data), result, data)
    assert sum(parameter.is_meta for parameter in offloaded.parameters()) == waiting > 0
    result.save_pretrained(tmp_path / "pruned")
    again = LlamaForCausalLM.from_pretrained(tmp_path / "pruned")
    torch.testing.assert_close(outputs(again, data[0]), outputs(offloaded, data[0]))


@pytest.mark.parametrize(
    "config",
    [
        FisherPruningConfig(flops=0.6, recovery="mask_tuning"),
        FisherPruningConfig(flops=0.6, importance="after_refit"),
        FisherPruningConfig(params=0.6, importance="magnitude"),
        FisherPruningConfig(flops=0.6, importance="blended", blend=0.5, labels="model"),
        FisherPruningConfig(flops=0.6, iterative=True),
        HeadImportancePruningConfig(heads=0.5, iterations=2),
        LayerDropPruningConfig(layers=0.67, which="score"),
        RandomPruningConfig(params=0.5),
    ],
    ids=["mask tuning", "after refit", "magnitude", "blended", "iterative", "heads", "layers", "random"],
)
def test_other_strategies(config: PruningConfig, tmp_path: Path) -> None:
    model = main_head("bert").model()
    data = batches(model)
    offloaded = on_disk(model, tmp_path)
    assert_same(prune_model(model, config, data), prune_model(offloaded, config, data), data)


def test_one_layer_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Autograd would hold all of them, which the counter sees, too."""
    model = main_head("llama").model(num_hidden_layers=5)
    offloaded = on_disk(model, tmp_path / "dense")
    data = batches(model)
    loaded = LoadedLayers(monkeypatch)
    loss = offloaded(**data[0]).loss
    assert loaded.most == len(model.model.layers)
    del loss
    gc.collect()
    loaded.most = 0
    result = prune_model(offloaded, HALF, data)
    assert loaded.most == 1
    assert_same(prune_model(model, HALF, data), result, data)


def test_repair_reads_each_layer_once_for_all_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The walk through the layers reads as much for eight batches as for two, but for the passes that look around."""
    model = main_head("llama").model()
    offloaded = on_disk(model, tmp_path)
    reads = []
    for number in (2, 8):
        with monkeypatch.context() as patch:
            loaded = LoadedLayers(patch)
            data = batches(model, number)
            prune_model(copy.deepcopy(offloaded), QUICK, data)
            reads.append(loaded.reads)
    assert reads[0] == reads[1]


def test_evaluation(tmp_path: Path) -> None:
    model = main_head("bert").model()
    data = batches(model)
    rows = [{name: value[row].tolist() for name, value in batch.items()} for batch in data for row in range(3)]
    offloaded = on_disk(model, tmp_path)
    settings = {"eval_dataset": rows, "compute_metrics": lambda seen: {"mean": float(seen.predictions.mean())}}
    expected = prune_model(model, QUICK, data, **settings)
    found = prune_model(offloaded, QUICK, data, **settings).report.metrics
    for side in ("dense", "pruned"):
        assert found[side] == pytest.approx(expected.report.metrics[side], rel=1e-4)
    waiting = in_cpu_memory(main_head("bert").model())
    found = prune_model(waiting, QUICK, data, eval_dataset=rows).report.metrics
    assert found["dense"]["loss"] == pytest.approx(expected.report.metrics["dense"]["loss"], rel=1e-4)


def test_unknown_families_are_proved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not in the table is tried out, with weights that are read for it, and refused where it does not fit."""
    model = main_head("llama").model()
    offloaded = on_disk(model, tmp_path)
    monkeypatch.setattr("hf_prune.anatomy.describe.family_of", lambda model_type: None)
    tried = []
    own = LayerTrial.compare
    monkeypatch.setattr(LayerTrial, "compare", lambda trial, kept: tried.append(trial.key) or own(trial, kept))
    anatomy = describe_model(model)
    wanted = list(tried)
    assert describe_model(offloaded) == anatomy
    assert tried == 2 * wanted != []
    assert all_on_meta(offloaded)
    monkeypatch.setattr(LayerTrial, "AGREEMENT", -1.0)
    with pytest.raises(UnsupportedModelError, match="cutting differs from masking"):
        describe_model(offloaded)


def test_failure_leaves_everything_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = main_head("llama").model()
    data = batches(model)
    offloaded = on_disk(model, tmp_path / "dense")
    shapes = {name: value.shape for name, value in offloaded.state_dict().items()}
    before = outputs(offloaded, data[0])

    def broken(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("hf_prune.pruning_run.write_metadata", broken)
        with pytest.raises(KeyboardInterrupt):
            prune_model(offloaded, QUICK, data)
    assert {name: value.shape for name, value in offloaded.state_dict().items()} == shapes
    assert all(map(torch.equal, outputs(offloaded, data[0]), before))
    assert all(parameter.requires_grad for parameter in offloaded.parameters())
    result = prune_model(offloaded, QUICK, data)
    with monkeypatch.context() as patch:
        patch.setattr("hf_prune.report.result.pruned_model_card", broken)
        with pytest.raises(KeyboardInterrupt):
            result.save_pretrained(tmp_path / "pruned")
    assert [file.name for file in tmp_path.iterdir()] == ["dense"]


def test_refusals(tmp_path: Path) -> None:
    model = main_head("llama").model()
    data = batches(model)
    offloaded = on_disk(model, tmp_path / "dense")
    shapes = {name: value.shape for name, value in offloaded.state_dict().items()}
    with pytest.raises(PruningError, match=r"latency=0\.5 is measured, and .* offloaded"):
        prune_model(offloaded, FisherPruningConfig(latency=0.5), data)
    with pytest.raises(PruningError, match="sparsity= changes single weights, and those of this LlamaForCausalLM"):
        prune_model(offloaded, MagnitudePruningConfig(sparsity=0.5))
    with pytest.raises(PruningError, match="retrain= changes single weights"):
        prune_model(offloaded, HALF, data, retrain=lambda model: None)
    assert {name: value.shape for name, value in offloaded.state_dict().items()} == shapes
    with pytest.raises(PruningError, match="dense is where the weights of this model are read from"):
        prune_model(offloaded, QUICK, data).save_pretrained(tmp_path / "dense")
    with torch.device("meta"):
        empty = LlamaForCausalLM(model.config)
    with pytest.raises(PruningError, match=r"model\.embed_tokens\.weight has no values"):
        prune_model(empty, HALF, data)


def test_torn_weights_are_not_saved(tmp_path: Path) -> None:
    """In checkpoints of gated DINOv2 gate and values are one matrix, which shards that are too small tear."""
    case = next(item for item in VARIANTS if item.name == "dinov2, gated")
    offloaded = on_disk(case.model(), tmp_path / "dense", shard="1MB", offload_folder=tmp_path / "offload")
    result = prune_model(offloaded, RandomPruningConfig(params=0.5))
    with pytest.raises(PruningError, match=r"Parts of .*weights_in.* Pass another max_shard_size"):
        result.save_pretrained(tmp_path / "pruned", max_shard_size="20KB")
    assert not (tmp_path / "pruned").exists()
    result.save_pretrained(tmp_path / "pruned")
    batch = sample(offloaded)
    again = case.model_class.from_pretrained(tmp_path / "pruned")
    assert all(map(torch.equal, outputs(again, batch), outputs(offloaded, batch)))
