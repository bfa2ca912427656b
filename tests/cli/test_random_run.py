from __future__ import annotations

import json
from pathlib import Path

from transformers import AutoModelForSequenceClassification

from hf_prune import AutoPruningConfig, RandomPruningConfig
from tests.cli.rows import Call


def test_pruning_at_random_from_the_command_line(
    models: dict[str, Path], sentences: Path, tmp_path: Path, call: Call
) -> None:
    folders = {seed: tmp_path / str(seed) for seed in (3, 4)}
    heads = {}
    for seed, folder in folders.items():
        result = call(
            "run", models["classification"], "--train_file", sentences, "--strategy", "random", "--seed", seed,
            "--params", "0.5", "--max_seq_length", "16", "--output_dir", folder, "--json",
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        sizes = json.loads(result.stdout)["report"]
        assert sizes["pruned"]["unit_parameters"] <= 0.5 * sizes["dense"]["unit_parameters"]
        assert AutoPruningConfig.from_pretrained(folder) == RandomPruningConfig(params=0.5, seed=seed)
        loaded = AutoModelForSequenceClassification.from_pretrained(folder)
        heads[seed] = [block.get("heads", block["kept"]) for block in loaded.config.pruning["blocks"].values()]
    assert heads[3] != heads[4]
