"""Two processes find the same thresholds and remove the same, though each sees other examples."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import BertForSequenceClassification

from hf_prune.report import TradeOffCurve
from tests.distributed.launching import launch


def test_processes_agree(tmp_path: Path) -> None:
    finished = launch("snip_shards.py", 2, tmp_path)
    assert finished.returncode == 0, finished.stderr[-3000:]
    paths = [tmp_path / f"snip-2-{rank}.safetensors" for rank in (0, 1)]
    first, second = map(load_file, paths)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    about = []
    for path in paths:
        with safe_open(path, "pt") as file:
            about.append(file.metadata())
    assert about[0] == about[1]

    lines = json.loads(about[0]["lines"])
    assert len({line["epsilon_heads"] for line in lines if "epsilon_heads" in line}) == 2
    curve = TradeOffCurve.load(tmp_path / "out")
    assert curve == TradeOffCurve.from_json(about[0]["curve"])
    assert [level.params for level in curve.levels] == sorted({level.params for level in curve.levels}, reverse=True)
    assert len(curve) == 3
    last = BertForSequenceClassification.from_pretrained(tmp_path / "out" / str(curve[-1].folder), dtype=torch.float64)
    for name, value in last.state_dict().items():
        assert torch.equal(value, first[name]), name
