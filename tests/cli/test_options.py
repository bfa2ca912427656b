from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import pytest
import typer
from typer.testing import CliRunner

from hf_prune import FisherPruningConfig, register_strategy
from hf_prune import config as config_module
from hf_prune.commands.arguments import DataArguments, RunArguments
from hf_prune.commands.options import make_config, take, with_options
from hf_prune.config import PruningConfig
from hf_prune.errors import PruningError


@dataclass
class _Sparse(PruningConfig):
    strategy: ClassVar[str] = "sparse"
    sparsity: float = field(default=0.5, metadata={"help": "Share to remove."})
    seed: int = 7


def given(*arguments: str, **kinds: Any) -> dict[str, Any]:
    """The options that a command with every option receives."""
    received: dict[str, Any] = {}
    app = typer.Typer()

    @app.command()
    @with_options(RunArguments, DataArguments, strategies=True)
    def command(**options: Any) -> None:
        received.update(options)

    result = CliRunner().invoke(app, [*arguments])
    assert result.exit_code == 0, result.output
    return received


def test_a_command_receives_what_was_given_and_nothing_else() -> None:
    assert given("--output_dir", "small") == {"output_dir": Path("small")}
    options = given(
        "--output_dir", "small", "--flops", "0.5", "--uniform", "--target_modules", "a", "--target_modules", "b",
        "--num_samples", "10", "--recovery", "none",
    )  # fmt: skip
    assert take(RunArguments, options) == RunArguments(Path("small"))
    assert options.pop("num_samples") == 10
    assert options == {"flops": 0.5, "uniform": True, "target_modules": ["a", "b"], "recovery": "none"}


def test_every_setting_of_the_strategy_has_an_option() -> None:
    values = {"uniform": "--uniform", "iterative": "--iterative", "rearrange": "--no_rearrange"}
    arguments = [values.get(item.name) or f"--{item.name}=1" for item in fields(FisherPruningConfig)]
    options = given("--output_dir", "small", *arguments)
    assert {item.name for item in fields(FisherPruningConfig)} == set(options) - {"output_dir"}
    assert options["rearrange"] is False


def test_none_is_a_value_only_where_a_setting_takes_it() -> None:
    blended = ("--importance", "blended", "--refit_examples", "none", "--recovery", "none")
    options = given("--output_dir", "small", "--flops", "0.5", *blended)
    take(RunArguments, options)
    config = make_config("fisher", options)
    assert isinstance(config, FisherPruningConfig)
    assert config.refit_examples is None
    assert config.recovery == "none"


def test_a_new_strategy_brings_its_own_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_module, "_REGISTRY", dict(config_module._REGISTRY))
    register_strategy(_Sparse, "a strategy")
    options = given("--output_dir", "small", "--sparsity", "0.9", "--seed", "3")
    arguments = take(RunArguments, options)
    config = make_config("sparse", options, seed=arguments.seed, task="fill-mask")
    assert config == _Sparse(sparsity=0.9, seed=3)
    with pytest.raises(PruningError, match="'sparse' strategy has no setting 'flops'"):
        make_config("sparse", {"flops": 0.5})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dataset_name": "d", "train_file": Path("f.tsv")}, "exclude each other"),
        ({"train_file": Path("f.tsv"), "dataset_config_name": "sst2"}, "--dataset_config_name belongs to"),
        ({"train_file": Path("f.tsv"), "text_pair_column": "b"}, "name the first with --text_column"),
        ({"train_file": Path("f.tsv"), "max_eval_samples": 0}, "--max_eval_samples 0 must be at least 1"),
    ],
)
def test_contradictions_about_the_data(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PruningError, match=message):
        DataArguments(**settings)
