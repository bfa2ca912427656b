"""Peak memory of pruning a checkpoint that stays on disk, beside what a few of its parts take.

A random Llama in bf16 of the shape of a 1.1B model (hidden size 2,048, 5,632 filters, 32 heads in 4 KV groups, a
vocabulary of 32,000), and one with twice the layers, are written layer by layer, opened with `device_map={"": "disk"}`,
pruned to half the FLOPs with default settings on batches of 4 × 128 tokens, and written again. Each is measured in a
process of its own, above what the libraries take: a small model has gone the same way before. Target: at most the
embeddings (the output projection among them), three layers, three Gram matrices of the largest block (float64: the
dense filters, of which scores are made), and one chunk of activations (4,096 tokens of that block's inputs and outputs,
float32), and about the same for twice the layers. The checkpoint that was written must load and generate. Disk space
for 7 GB is needed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from arguments import benchmark_parser, prepare_run, write_results
from markdown_tables import markdown_table, verdict
from peak_memory import measured_apart, peak_memory
from safetensors.torch import save_file
from tqdm import tqdm
from transformers import AutoModelForCausalLM, LlamaConfig

from hf_prune import FisherPruningConfig, prune_model
from hf_prune.recovery.normal_equations import TOKENS_AT_ONCE

VOCABULARY, HEAD_DIM, GROUP = 32000, 64, 8
SMALL = {"width": 128, "vocabulary": 128}
FLOPS = 0.5
EXAMPLES, LENGTH = 4, 128
DENSE, PRUNED = "dense", "pruned"
BF16, FLOAT32, FLOAT64 = 2, 4, 8


def llama(layers: int, width: int, vocabulary: int = VOCABULARY) -> LlamaConfig:
    """A config without biases and without tied embeddings, in the proportions of the 1.1B model."""
    return LlamaConfig(
        num_hidden_layers=layers,
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_attention_heads=width // HEAD_DIM,
        num_key_value_heads=max(1, width // HEAD_DIM // GROUP),
        vocab_size=vocabulary,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )


def layer_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """The weights of one layer."""
    hidden, filters, head_dim = config.hidden_size, config.intermediate_size, config.head_dim
    keys = config.num_key_value_heads * head_dim
    return {
        "self_attn.q_proj": (config.num_attention_heads * head_dim, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, config.num_attention_heads * head_dim),
        "mlp.gate_proj": (filters, hidden),
        "mlp.up_proj": (filters, hidden),
        "mlp.down_proj": (hidden, filters),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }


def write_checkpoint(folder: Path, config: LlamaConfig) -> None:
    """Random weights in shards of a layer each; one matrix is in memory at a time until its layer is written."""
    generator = torch.Generator().manual_seed(0)
    table = (config.vocab_size, config.hidden_size)
    parts = {"embeddings": {"model.embed_tokens": table}, "head": {"model.norm": table[1:], "lm_head": table}}
    for index in range(config.num_hidden_layers):
        shapes = layer_shapes(config).items()
        parts[f"layer-{index}"] = {f"model.layers.{index}.{name}": shape for name, shape in shapes}
    files = {}
    folder.mkdir(parents=True)
    for part, shapes in tqdm(parts.items(), desc=f"Write {config.num_hidden_layers} layers", leave=False):
        file = f"model-{part}.safetensors"
        tensors = {f"{name}.weight": random_weight(shape, generator) for name, shape in shapes.items()}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        files |= dict.fromkeys(tensors, file)
    index_file = folder / "model.safetensors.index.json"
    index_file.write_text(json.dumps({"metadata": {}, "weight_map": files}), encoding="utf8")
    config.save_pretrained(folder)


def random_weight(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Large enough for every head and filter to matter."""
    noise = torch.randn(shape, generator=generator)
    scaled = 1 + 0.1 * noise if len(shape) == 1 else noise / shape[-1] ** 0.5
    return scaled.to(torch.bfloat16)


def prune_on_disk(folder: Path, batches: int) -> None:
    """From one folder into another, with nothing but what is in use in memory."""
    places = {"device_map": {"": "disk"}, "offload_folder": folder / "offload"}
    model = AutoModelForCausalLM.from_pretrained(folder / DENSE, **places, dtype="auto")
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.config.vocab_size, (batches, EXAMPLES, LENGTH), generator=generator)
    data = [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids} for ids in tokens]
    prune_model(model, FisherPruningConfig(flops=FLOPS), data).save_pretrained(folder / PRUNED)


def measure_here(arguments: argparse.Namespace) -> int:
    """Bytes at the peak in this process, above those of a small model that has warmed it up."""
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        small = Path(temporary)
        write_checkpoint(small / DENSE, llama(2, **SMALL))
        prune_on_disk(small, 2)
    with peak_memory(torch.device("cpu")) as peak:
        prune_on_disk(arguments.measure, arguments.batches)
    return peak.bytes


def bound(config: LlamaConfig) -> dict[str, int]:
    """The bytes that the target consists of."""
    columns = config.intermediate_size
    layer = sum(torch.Size(shape).numel() for shape in layer_shapes(config).values())
    return {
        "embeddings": 2 * config.vocab_size * config.hidden_size * BF16,
        "3 layers": 3 * layer * BF16,
        f"3 Gram matrices ({columns:,} columns)": 3 * (columns + 1) ** 2 * FLOAT64,
        "a chunk of activations": TOKENS_AT_ONCE * (columns + 1 + config.hidden_size) * FLOAT32,
    }


def generates(folder: Path) -> bool:
    """Whether the checkpoint that was written loads and writes some tokens."""
    model = AutoModelForCausalLM.from_pretrained(folder / PRUNED, device_map={"": "disk"}, dtype="auto")
    prompt = torch.arange(5, 9)[None]
    written = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=4, min_new_tokens=4)
    return written.shape == (1, 8)


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = benchmark_parser(__doc__, needs_files=False)
    parser.add_argument("--layers", type=int, default=22, help="of the smaller model; default: %(default)s")
    parser.add_argument(
        "--width", type=int, default=2048, help="hidden size, of which others follow; default: %(default)s"
    )
    parser.add_argument("--batches", type=int, default=4, help="calibration batches; default: %(default)s")
    parser.add_argument("--folder", type=Path, help="where the checkpoints go meanwhile; default: temporary files")
    parser.add_argument("--measure", type=Path, help="measure only the checkpoint in this folder, and print the bytes")
    return parser.parse_args(argv)


def measured(layers: int, arguments: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    """Writes one checkpoint, prunes it in another process, and looks at what came of it."""
    config = llama(layers, arguments.width)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder = Path(temporary)
        write_checkpoint(folder / DENSE, config)
        peak = measured_apart(__file__, argv, temporary)
        stored = sum(file.stat().st_size for file in (folder / DENSE).glob("*.safetensors"))
        return {"model": stored, "bound": bound(config), "peak": peak, "generates": generates(folder)}


def show(found: dict[int, dict[str, Any]]) -> None:
    """The parts of the bound, and what was measured."""
    sizes = list(found)
    rows: list[list[Any]] = [["the model in bf16", *(megabytes(found[layers]["model"]) for layers in sizes)]]
    for part in zip(*(found[layers]["bound"].items() for layers in sizes), strict=True):
        rows.append([part[0][0].partition(" (")[0], *(megabytes(size) for _, size in part)])
    rows.append(["bound", *(megabytes(sum(found[layers]["bound"].values())) for layers in sizes)])
    rows.append(["peak", *(megabytes(found[layers]["peak"]) for layers in sizes)])
    print(markdown_table(["MB", *(f"{layers} layers" for layers in sizes)], rows))
    for layers in sizes:
        one = found[layers]
        print(
            f"\n{layers} layers: {next(name for name in one['bound'] if 'Gram' in name)}. Peak within the bound:"
            f" {verdict(one['peak'] <= sum(one['bound'].values()))}. Loads and generates: {verdict(one['generates'])}."
        )


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f}"


def main(argv: Sequence[str]) -> None:
    """Measures one size after the other and prints the table."""
    arguments = parse_arguments(argv)
    prepare_run(arguments)
    if arguments.measure:
        print(measure_here(arguments))
        return
    found = {layers: measured(layers, arguments, argv) for layers in (arguments.layers, 2 * arguments.layers)}
    show(found)
    tokens = [arguments.batches, EXAMPLES, LENGTH]
    results = {"flops": FLOPS, "width": arguments.width, "tokens": tokens, "models": found}
    write_results(arguments.output, results)


if __name__ == "__main__":
    main(sys.argv[1:])
