from __future__ import annotations

import json
import sys

import pytest

from hf_prune import cli
from hf_prune.anatomy import supported_model_types
from tests.cli.rows import Call


@pytest.mark.parametrize("command", ["run", "inspect", "bench", "families", "demo"])
def test_every_command_explains_itself(command: str, call: Call) -> None:
    overview, own = call("--help"), call(command, "--help")
    assert command in overview.stdout
    assert own.exit_code == 0
    assert "--json" in own.stdout
    assert "--debug" in own.stdout


def test_families_lists_every_supported_model_type(call: Call) -> None:
    rows = json.loads(call("families", "--json").stdout)
    assert tuple(row["model_type"] for row in rows) == supported_model_types()
    bert = next(row for row in rows if row["model_type"] == "bert")
    assert bert["heads"] == ["attention", "crossattention"]
    assert bert["filters"] == ["intermediate"]
    assert {"text-classification", "fill-mask"} <= set(bert["tasks"])
    table = call("families").stdout
    assert all(model_type in table for model_type in supported_model_types())
    assert "Models of other types are tried" in " ".join(table.split())


def test_families_tells_decoders_and_names_each_sublayer_once(call: Call) -> None:
    rows = {row["model_type"]: row for row in json.loads(call("families", "--json").stdout)}
    assert rows["llama"]["generates"]
    assert rows["t5"]["generates"]
    assert not rows["distilbert"]["generates"]
    assert not rows["vit"]["generates"]
    assert rows["llama"]["heads"] == ["self_attn"]
    assert rows["llama"]["filters"] == ["mlp"]
    for row in rows.values():
        for name in ("heads", "filters"):
            assert len(set(row[name])) == len(row[name])


def test_an_unknown_option_is_a_usage_error(call: Call) -> None:
    result = call("run", "model", "--output_dir", "small", "--flop", "0.5")
    assert result.exit_code == 2
    assert "--flop" in result.stderr


def test_the_console_script_runs_the_commands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["hf-prune", "families", "--json"])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out)
