"""Trade-off curves: their levels, which is the simplest, the file, and the pictures."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_prune.errors import PruningError
from hf_prune.report import CurveLevel, TradeOffCurve, plot_curves, plot_pruning_map
from hf_prune.report.curve import CURVE_FILE, chosen_metric
from tests.report.test_plots import mesh
from tests.report.test_study_plots import lines

KINDS = {
    "encoder.layer.0.attention": "attention",
    "encoder.layer.0.output": "feed_forward",
    "encoder.layer.1.attention": "attention",
    "encoder.layer.1.output": "feed_forward",
}


def level(step: int, params: float, heads: tuple[Any, Any], filters: tuple[int, int], **metrics: float) -> CurveLevel:
    """Heads by their numbers, filters by how many there are."""
    units = (tuple(heads[0]), tuple(range(filters[0])), tuple(heads[1]), tuple(range(filters[1])))
    kept = dict(zip(KINDS, units, strict=True))
    return CurveLevel(step, params, params / 2, metrics, kept, f"pruning_levels/level-{step:02d}", {"iterations": step})


def curve(*accuracies: float) -> TradeOffCurve:
    """Dense, without a head, and without an FFN and another head."""
    levels = (
        level(0, 1.0, (range(4), range(4)), (6, 6), eval_accuracy=accuracies[0], eval_loss=1.0, eval_runtime=9.0),
        level(1, 0.9, ((0, 2, 3), range(4)), (6, 6), eval_accuracy=accuracies[1], eval_loss=2.0, eval_runtime=8.0),
        level(2, 0.4, ((0, 2, 3), (3,)), (0, 6), eval_accuracy=accuracies[2], eval_loss=3.0, eval_runtime=7.0),
    )
    return TradeOffCurve({"strategy": "snip", "params": 0.4}, KINDS, levels)


class TestTheSimplest:
    @pytest.mark.parametrize(("drop", "expected"), [(0.0, 0), (0.009, 0), (0.01, 1), (0.049, 1), (0.05, 2), (1.0, 2)])
    def test_within_a_limit(self, drop: float, expected: int) -> None:
        assert curve(0.9, 0.89, 0.85).simplest("accuracy", drop) == expected

    def test_is_not_one_after_which_it_got_better(self) -> None:
        """The smallest counts, though a larger one on the way was worse."""
        assert curve(0.9, 0.7, 0.895).simplest("eval_accuracy", 0.01) == 2

    def test_where_less_is_better(self) -> None:
        assert curve(0.9, 0.8, 0.95).simplest("accuracy", 0.01, greater_is_better=False) == 1
        assert curve(0.9, 0.9, 0.9).simplest("loss", 1.0, greater_is_better=False) == 1

    def test_what_is_not_a_number_is_not_good_enough(self) -> None:
        assert curve(0.9, 0.9, math.nan).simplest("accuracy", 1.0) == 1
        with pytest.raises(PruningError, match="first level's accuracy is NaN"):
            curve(math.nan, 0.9, 0.9).simplest("accuracy", 1.0)

    def test_of_nothing(self) -> None:
        with pytest.raises(PruningError, match="The curve is empty"):
            TradeOffCurve({}, KINDS).simplest("accuracy", 0.1)


class TestMetrics:
    def test_by_default_the_only_one_beside_loss_and_times(self) -> None:
        assert curve(0.9, 0.9, 0.9).metric() == ("eval_accuracy", True)
        assert curve(0.9, 0.9, 0.9).metric("eval_loss") == ("eval_loss", False)

    def test_without_any_it_is_the_loss(self) -> None:
        only = TradeOffCurve({}, KINDS, (level(0, 1.0, ((), ()), (0, 0), eval_loss=1.0),))
        name, greater = only.metric()
        assert (only.values(name), greater) == ([1.0], False)

    def test_of_several_one_must_be_named(self) -> None:
        several = TradeOffCurve({}, KINDS, (level(0, 1.0, ((), ()), (0, 0), eval_f1=1.0, eval_accuracy=1.0),))
        with pytest.raises(PruningError, match=r"metrics eval_f1, eval_accuracy: say which one with metric=\."):
            several.metric()

    def test_one_that_a_level_lacks(self) -> None:
        with pytest.raises(PruningError, match="Level 0 of the curve has no metric 'f1'; it has eval_accuracy, eval_l"):
            curve(0.9, 0.9, 0.9).values("f1")


@pytest.mark.parametrize(
    "name",
    [
        "loss",
        "eval_loss",
        "valloss",
        "wer",
        "eval_cer",
        "RMSE",
        "error_rate",
        "perplexity",
        "MSELoss",
        "mean-squared-error",
    ],
)
def test_less_of_an_error_is_better(name: str) -> None:
    assert chosen_metric({name: 0.5}, name) == (name, False)


@pytest.mark.parametrize(
    "name", ["accuracy", "answer_f1", "power", "loss_free", "neg_mean_squared_error", "eval_neg_mse", "error_f1"]
)
def test_more_of_anything_else_is_better(name: str) -> None:
    assert chosen_metric({name: 0.5}) == (name, True)


def test_a_level_of_the_same_units_takes_the_place_of_the_last() -> None:
    before = curve(0.9, 0.89, 0.85)
    again = replace(before[2], step=7)
    assert before.ends_with(again.kept)
    assert not before.ends_with(before[1].kept)
    assert before.with_level(again).levels == (*before.levels[:2], again)
    back = replace(before[1], step=8)
    assert before.with_level(back).levels == (*before.levels, back)


class TestTheFile:
    def test_is_written_and_read(self, tmp_path: Path) -> None:
        path = curve(0.9, 0.89, 0.85).save(tmp_path / "new")
        assert TradeOffCurve.load(tmp_path / "new") == curve(0.9, 0.89, 0.85)
        assert [file.name for file in path.parent.iterdir()] == [CURVE_FILE]
        stored = json.loads(path.read_text())["levels"][2]
        assert list(stored["kept"].values()) == ["0,2-3", "", "3", "0-5"]

    @given(st.sets(st.integers(0, 12)))
    def test_holds_any_units(self, units: set[int]) -> None:
        kept = {"a": tuple(sorted(units))}
        whole = TradeOffCurve({}, {"a": "attention"}, (CurveLevel(0, 1.0, 1.0, {}, kept),))
        assert TradeOffCurve.from_json(whole.to_json()) == whole

    def test_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(PruningError, match=f"holds no {CURVE_FILE}"):
            TradeOffCurve.load(tmp_path)

    @pytest.mark.parametrize(
        "text",
        ["{", "[]", "{}", '{"strategy": {}, "kinds": {}, "levels": [{"kept": {"a": "x"}}]}', b"\xff\xfe\xfa"],
    )
    def test_of_another_form(self, text: str | bytes, tmp_path: Path) -> None:
        (tmp_path / CURVE_FILE).write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(PruningError, match="not a trade-off curve as written to"):
            TradeOffCurve.load(tmp_path)

    @pytest.mark.parametrize(
        "kept", ["x", "0-2000000000", "5-3", "3,1", "0-4,2", "1-2-3", "-1", "1,", "0-", "٣", "0-1048576", "1e3"]
    )
    def test_ranges_that_are_none(self, kept: str) -> None:
        whole = TradeOffCurve({}, {"a": "attention"}, (CurveLevel(0, 1.0, 1.0, {}, {"a": (0, 1)}),))
        text = whole.to_json().replace('"0-1"', json.dumps(kept))
        assert json.dumps(kept) in text
        with pytest.raises(PruningError, match="is no range of ascending numbers"):
            TradeOffCurve.from_json(text)


class TestPictures:
    def test_one_line_per_training(self) -> None:
        first, second = curve(0.9, 0.89, 0.85), curve(0.91, 0.88, 0.7)
        (axes,) = plot_curves({"with": first, "without": second}).axes
        assert lines(axes) == {
            "with": [pytest.approx(point) for point in ((0, 0.9), (10, 0.89), (60, 0.85))],
            "without": [pytest.approx(point) for point in ((0, 0.91), (10, 0.88), (60, 0.7))],
        }
        assert axes.get_xlabel() == "attention and FFN parameters removed, in %"
        assert axes.get_ylabel() == "accuracy"

    def test_of_another_metric(self, tmp_path: Path) -> None:
        (axes,) = curve(0.9, 0.89, 0.85).plot("loss", tmp_path / "curve.png").axes
        assert [y for _, y in lines(axes)["snip"]] == [1, 2, 3]
        assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")

    def test_the_map_has_levels_as_rows_and_layers_as_columns(self, tmp_path: Path) -> None:
        heads, filters = plot_pruning_map(curve(0.9, 0.89, 0.85), tmp_path / "map.svg").axes
        np.testing.assert_array_equal(mesh(heads), [[1, 1], [0.75, 1], [0.75, 0.25]])
        np.testing.assert_array_equal(mesh(filters), [[1, 1], [1, 1], [0, 1]])
        assert [label.get_text() for label in heads.get_yticklabels()] == ["0.0 %", "10.0 %", "60.0 %"]
        assert [label.get_text() for label in heads.get_xticklabels()] == ["0", "1"]
        assert (heads.get_title(), filters.get_title()) == ("encoder.layer.*.attention", "encoder.layer.*.output")
        assert filters.get_xlabel() == "layer (filters left, in %)"
        assert (tmp_path / "map.svg").read_text().startswith("<?xml")

    def test_a_block_that_had_nothing_is_an_empty_cell(self) -> None:
        bare = TradeOffCurve({}, KINDS, (level(0, 1.0, ((), range(4)), (0, 6)), level(1, 0.9, ((), (1,)), (0, 6))))
        heads, filters = plot_pruning_map(bare).axes
        np.testing.assert_array_equal(mesh(heads), [[np.nan, 1], [np.nan, 0.25]])
        np.testing.assert_array_equal(mesh(filters), [[np.nan, 1], [np.nan, 1]])

    def test_nothing_to_draw(self) -> None:
        for curves in ({}, {"a": TradeOffCurve({}, KINDS)}):
            with pytest.raises(PruningError, match="no levels to draw"):
                plot_curves(curves)
        with pytest.raises(PruningError, match="no pruning map to draw"):
            plot_pruning_map(TradeOffCurve({}, KINDS))
