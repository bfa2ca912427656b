"""Configurations: checked when made, written and read like PEFT's, and found by their strategy's name."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import pytest
from transformers import HfArgumentParser
from transformers.utils import hub

from hf_prune import AutoPruningConfig, FisherPruningConfig, PruningConfig, PruningError, register_strategy
from hf_prune import config as registry
from hf_prune.config import StructuredPruningConfig, config_class_of, strategy_for, strategy_names
from hf_prune.strategies.fisher import prune_by_fisher

KEYS = [f"encoder.layer.{layer}.{name}" for layer in range(12) for name in ("attention", "intermediate")]


@dataclass
class ToyConfig(StructuredPruningConfig):
    strategy: ClassVar[str] = "toy"

    warmth: float = field(default=0.5, metadata={"help": "How warm."})


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> type[ToyConfig]:
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    register_strategy(ToyConfig, "toy strategy")
    return ToyConfig


class TestBudgets:
    @pytest.mark.parametrize("name", ["flops", "params", "latency", "latency_ms"])
    @pytest.mark.parametrize("value", [0, -0.5, float("nan"), "0.5", True, [0.5]])
    def test_not_a_number_above_zero(self, name: str, value: Any) -> None:
        with pytest.raises(PruningError, match=rf"{name}=.* must be a number above 0"):
            FisherPruningConfig(**{name: value})

    @pytest.mark.parametrize("name", ["flops", "params", "latency"])
    @pytest.mark.parametrize("value", [1.0001, 50, float("inf")])
    def test_more_than_the_dense_model(self, name: str, value: float) -> None:
        with pytest.raises(PruningError, match=rf"{name}={value} must lie in \(0, 1\]"):
            FisherPruningConfig(**{name: value})

    def test_none_and_two_at_once(self) -> None:
        with pytest.raises(PruningError, match=r"exactly one budget out of flops, params, .* got none"):
            FisherPruningConfig()
        with pytest.raises(PruningError, match=r"got flops=0\.5, latency=0\.6"):
            FisherPruningConfig(flops=0.5, latency=0.6)

    def test_one_is_known_by_its_keyword(self) -> None:
        assert FisherPruningConfig(flops=1).budget == ("flops", 1)
        assert FisherPruningConfig(latency_ms=250).budget == ("latency_ms", 250)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("round_to", 0, "round_to=0 must be a whole number of at least 1"),
        ("round_to", 8.0, "round_to=8.0 must be a whole number"),
        ("batch_size", -1, "batch_size=-1 must be"),
        ("latency_batch_size", True, "latency_batch_size=True must be"),
        ("sequence_length", 0, "sequence_length=0 must be"),
        ("importance", "fischer", "importance='fischer' is unknown; use one of after_refit, fisher, blended,"),
        ("recovery", "weight", "recovery='weight' is unknown; use one of weights, mask_tuning, none"),
        ("solver", "cg", "solver='cg' is unknown"),
        ("damp", -1.0, "damp=-1.0 must be a number of at least 0"),
        ("damp", float("nan"), "damp=nan must be a number of at least 0"),
        ("damp", float("inf"), "damp=inf must be a number of at least 0"),
        ("damp", "1", "damp='1' must be a number of at least 0"),
        ("refit_examples", 0, "refit_examples=0 must be a whole number of at least 1"),
        ("refit_examples", "all", "refit_examples='all' must be a whole number"),
        ("uniform", "yes", "uniform='yes' must be True or False"),
        ("target_modules", 3, "target_modules=3 must be a list of strings"),
        ("exclude_modules", [3], r"exclude_modules=\[3\] must be a list of strings"),
    ],
)
def test_settings_out_of_range(setting: str, value: Any, message: str) -> None:
    with pytest.raises(PruningError, match=message):
        FisherPruningConfig(flops=0.5, **{setting: value})


@pytest.mark.parametrize("recovery", ["weights", "none"])
@pytest.mark.parametrize("setting", [{"solver": "lsmr"}, {"damp": 0.5}])
def test_settings_of_mask_tuning_say_nothing_elsewhere(recovery: str, setting: dict[str, Any]) -> None:
    with pytest.raises(PruningError, match=f"says nothing with recovery='{recovery}', it is of mask tuning"):
        FisherPruningConfig(flops=0.5, recovery=recovery, **setting)
    FisherPruningConfig(flops=0.5, recovery="mask_tuning", **setting)


class TestTargets:
    def test_everything_by_default(self) -> None:
        assert FisherPruningConfig(flops=0.5).targets(KEYS) == set(KEYS)

    @pytest.mark.parametrize(
        ("target", "exclude", "expected"),
        [
            ("attention", None, {key for key in KEYS if key.endswith("attention")}),
            (["layer.1.attention"], None, {"encoder.layer.1.attention"}),
            (["encoder.layer.0.attention", "1.intermediate"], None, {KEYS[0], "encoder.layer.1.intermediate"}),
            ([r".*\.layer\.1[01]\..*"], None, set(KEYS[20:])),
            (None, r".*layer\.\d\..*", set(KEYS[20:])),
            ("intermediate", ["layer.0.intermediate"], {key for key in KEYS[2:] if key.endswith("intermediate")}),
        ],
    )
    def test_ends_of_names_and_expressions(self, target: Any, exclude: Any, expected: set[str]) -> None:
        config = FisherPruningConfig(flops=0.5, target_modules=target, exclude_modules=exclude)
        assert config.targets(KEYS) == expected

    @pytest.mark.parametrize("name", ["target_modules", "exclude_modules"])
    @pytest.mark.parametrize(
        ("pattern", "hint"),
        [
            ("ttention", r"Did you mean 'attention' or '\d+.attention'"),
            ("layer.12.attention", "Did you mean 'layer.2.attention' or 'layer.1"),
            ("qkv", "There are encoder.layer.0.attention, encoder.layer.0.intermediate, .* and 12 more"),
        ],
    )
    def test_pattern_that_matches_nothing(self, name: str, pattern: str, hint: str) -> None:
        config = FisherPruningConfig(flops=0.5, **{name: [pattern]})
        with pytest.raises(PruningError, match=f"{name}: '{pattern}' matches nothing. {hint}"):
            config.targets(KEYS)

    def test_pattern_that_is_no_expression(self) -> None:
        with pytest.raises(PruningError, match=r"'\(' is neither the end of a block's name nor a regular expression"):
            FisherPruningConfig(flops=0.5, target_modules=["("]).targets(KEYS)


class TestRegistry:
    def test_strategies_are_known_by_name(self, toy: type[ToyConfig]) -> None:
        names = "fisher head_importance hold l0 layer_drop magnitude movement random single_shot snip static_mask toy"
        assert strategy_names() == tuple(names.split())
        assert config_class_of("fisher") is FisherPruningConfig
        assert strategy_for(FisherPruningConfig(flops=0.5)) is prune_by_fisher
        assert strategy_for(toy(flops=0.5)) == "toy strategy"
        assert AutoPruningConfig.for_strategy("toy", params=0.3, warmth=1.0) == toy(params=0.3, warmth=1.0)

    @pytest.mark.parametrize(
        ("name", "hint"), [("fischer", "; did you mean 'fisher'"), ("zzz", r"'zzz'\."), (None, "")]
    )
    def test_unknown_strategy(self, name: Any, hint: str) -> None:
        with pytest.raises(PruningError, match=rf"Unknown pruning strategy .*{hint}.* Known: fisher"):
            AutoPruningConfig.for_strategy(name, flops=0.5)

    def test_unknown_setting(self) -> None:
        message = r"'fisher' strategy has no setting 'recover'; did you mean 'recovery'\? It has target_modules"
        with pytest.raises(PruningError, match=message):
            AutoPruningConfig.for_strategy("fisher", flops=0.5, recover="none")

    def test_config_that_was_never_registered(self) -> None:
        with pytest.raises(PruningError, match="Unknown pruning strategy 'toy'"):
            strategy_for(ToyConfig(flops=0.5))

    def test_taken_or_empty_names(self, toy: type[ToyConfig]) -> None:
        @dataclass
        class Other(PruningConfig):
            strategy: ClassVar[str] = "toy"

        with pytest.raises(PruningError, match="'toy' of Other is empty or taken"):
            register_strategy(Other, None)
        with pytest.raises(PruningError, match="'' of PruningConfig is empty or taken"):
            register_strategy(PruningConfig, None)
        register_strategy(toy, "another")
        assert strategy_for(toy(flops=0.5)) == "another"


class TestFiles:
    SETTINGS: ClassVar[dict[str, Any]] = {"params": 0.3, "recovery": "mask_tuning", "target_modules": ["attention"]}

    def test_written_and_read_back(self, tmp_path: Path) -> None:
        config = FisherPruningConfig(**self.SETTINGS, refit_examples=None)
        config.save_pretrained(tmp_path / "new" / "folder")
        for reader in (AutoPruningConfig, FisherPruningConfig, PruningConfig):
            assert reader.from_pretrained(tmp_path / "new" / "folder") == config
        data = json.loads((tmp_path / "new" / "folder" / "pruning_config.json").read_text())
        assert data["strategy"] == "fisher"
        assert AutoPruningConfig.from_dict(data) == config

    def test_wrong_class(self, tmp_path: Path, toy: type[ToyConfig]) -> None:
        FisherPruningConfig(**self.SETTINGS).save_pretrained(tmp_path)
        with pytest.raises(PruningError, match="holds a 'fisher' configuration, not one for ToyConfig"):
            toy.from_pretrained(tmp_path)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("[1]", "must hold a JSON object, got list"),
            ('{"flops": 0.5}', "Unknown pruning strategy None"),
            ('{"strategy": "fisher", "flops": 2}', "flops=2 must lie in"),
            ('{"strategy": "fisher", "flops": 0.5, "__class__": "os"}', "no setting '__class__'"),
        ],
    )
    def test_bad_file(self, tmp_path: Path, text: str, message: str) -> None:
        (tmp_path / "pruning_config.json").write_text(text)
        with pytest.raises(PruningError, match=message):
            AutoPruningConfig.from_pretrained(tmp_path)

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(PruningError, match=r"holds no pruning_config\.json"):
            AutoPruningConfig.from_pretrained(tmp_path)

    def test_from_a_repository(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        config, asked = FisherPruningConfig(**self.SETTINGS), []
        config.save_pretrained(tmp_path)

        def download(repository: str, name: str, **options: Any) -> str:
            asked.append((repository, name, options))
            return str(tmp_path / name)

        monkeypatch.setattr(registry, "hf_hub_download", download)
        assert AutoPruningConfig.from_pretrained("someone/small", revision="v1") == config
        assert asked == [("someone/small", "pruning_config.json", {"revision": "v1"})]

    def test_from_a_subfolder(self, tmp_path: Path) -> None:
        config = FisherPruningConfig(**self.SETTINGS)
        config.save_pretrained(tmp_path / "inner")
        assert AutoPruningConfig.from_pretrained(tmp_path, subfolder="inner") == config

    @pytest.mark.parametrize("saved", [False, True], ids=["pushed", "saved"])
    def test_pushed_to_a_repository(self, saved: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        uploaded: dict[str, bytes] = {}

        class Api:
            def create_repo(self, repo_id: str, **options: Any) -> Any:
                assert options == {"private": True, "token": None, "exist_ok": True}
                return type("Repo", (), {"repo_id": f"me/{repo_id}"})

            def create_commit(self, repo_id: str, operations: list[Any], **options: Any) -> str:
                assert repo_id == "me/small"
                assert options["create_pr"] is True
                for operation in operations:
                    uploaded[operation.path_in_repo] = Path(operation.path_or_fileobj).read_bytes()
                return "the commit"

        class Card:
            def save(self, path: str) -> None:
                Path(path).write_text("A card.")

        monkeypatch.setattr(hub, "hf_api", Api)
        monkeypatch.setattr(hub, "create_and_tag_model_card", lambda *arguments, **options: Card())
        config = FisherPruningConfig(**self.SETTINGS)
        if saved:
            config.save_pretrained(tmp_path / "small", push_to_hub=True, private=True, create_pr=True)
        else:
            assert config.push_to_hub("small", private=True, create_pr=True) == "the commit"
        assert AutoPruningConfig.from_dict(json.loads(uploaded["pruning_config.json"])) == config


class TestScripts:
    """Scripts read the strategy's name first, and then its configuration through HfArgumentParser."""

    @pytest.mark.parametrize("name", strategy_names())
    def test_every_field_has_a_help_text(self, name: str) -> None:
        for item in fields(config_class_of(name)):
            assert item.metadata["help"].strip().endswith("."), item.name

    @pytest.mark.parametrize("name", strategy_names())
    def test_parser_gives_the_defaults(self, name: str) -> None:
        config_class = config_class_of(name)
        budgets = {"hold": {}, "movement": {"sparsity": 0.5}, "static_mask": {"sparsity": 0.5}}
        budgets |= {"head_importance": {"heads": 0.5}, "layer_drop": {"layers": 0.5}}
        budgets |= {"single_shot": {"pruner_name_or_path": "pruner", "input_type": "pair"}}
        budget = budgets.get(name, {"flops": 0.5})
        words = [word for setting, value in budget.items() for word in (f"--{setting}", str(value))]
        [parsed] = HfArgumentParser(config_class).parse_args_into_dataclasses(words)
        assert parsed == config_class(**budget)

    def test_parser_reads_every_field(self) -> None:
        words = (
            "--params 0.4 --target_modules attention ffn --exclude_modules layer.0 --sequence_length 64 --round_to 8"
        )
        words += " --latency_batch_size 4 --batch_size 2 --uniform --importance gradient --rearrange false"
        words += " --recovery mask_tuning --solver lsmr --damp 0.5 --refit_examples 99"
        [parsed] = HfArgumentParser(FisherPruningConfig).parse_args_into_dataclasses(words.split())
        assert parsed == FisherPruningConfig(
            params=0.4,
            target_modules=["attention", "ffn"],
            exclude_modules=["layer.0"],
            sequence_length=64,
            round_to=8,
            latency_batch_size=4,
            batch_size=2,
            uniform=True,
            importance="gradient",
            rearrange=False,
            recovery="mask_tuning",
            solver="lsmr",
            damp=0.5,
            refit_examples=99,
        )

    def test_parser_passes_bad_values_on(self) -> None:
        with pytest.raises(PruningError, match="exactly one budget"):
            HfArgumentParser(FisherPruningConfig).parse_args_into_dataclasses(["--flops", "0.5", "--params", "0.5"])
