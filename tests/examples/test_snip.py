"""The study of SNIP: which trainings it makes, on which rows, what it measures of them, and what its tables say."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import snip
import torch
from snip_cells import DENSE, FFNS, HEADS, JOINT, KINDS, NORMALISED, Cell, Settings, cells_of
from snip_levels import load
from snip_results import MeasuredCurve, Predictions, StudyResults
from snip_rows import PairRows, train_rows, write_train_rows
from snip_tables import markdown_report
from study_cells import Request
from study_runs import EXAMPLES, Runner
from tasks import read_rows
from transformers import AutoTokenizer

from hf_prune.report import CurveLevel, TradeOffCurve
from tests.cli.rows import sentence
from tests.examples.conftest import RunScript

REQUEST = Request("dev", None, Settings(), "")
PAIRS = 45


def run_options(kind: str, task: str = "sst2") -> dict[str, Any]:
    return dict(Cell(task, kind, 0, REQUEST).run.options)


def test_every_training_of_the_issue_is_a_cell() -> None:
    cells = list(cells_of(REQUEST, 1, {}))
    assert {(cell.task, cell.kind) for cell in cells} == {
        *(("sst2", kind) for kind in (DENSE, NORMALISED, JOINT, HEADS, FFNS)),
        *(("mrpc", kind) for kind in (DENSE, NORMALISED)),
    }
    assert len({cell.run.folder for cell in cells_of(REQUEST, 2, {})}) == 2 * len(cells)


def test_curves_differ_in_nothing_but_what_they_are_about() -> None:
    normalised, without = run_options(NORMALISED), run_options(JOINT)
    assert {name for name in normalised if normalised[name] != without[name]} == {"spectral_norm"}
    assert (without["spectral_norm"], without["params"], without["k"], without["k_feed_forward"]) == (None, 0.25, 3, 1)
    heads, ffns = run_options(HEADS), run_options(FFNS)
    assert (heads["units"], heads["k"], ffns["units"], ffns["k"]) == ("heads", 3, "feed_forward", 1)
    assert "k_feed_forward" not in heads.keys() | ffns.keys()
    # Half of 72 heads go in as many iterations as there are.
    assert heads["k"] * Settings().iterations == 36
    assert heads["k"] <= heads["most"] * 216 < heads["k"] + 1
    assert (without["most"], ffns["most"]) == (0.13, 0.13)
    assert "strategy" not in run_options(DENSE)
    # Lengths that change in the course of an iteration would decide which gates close.
    assert {cell.run.options["train_sampling_strategy"] for cell in cells_of(REQUEST, 1, {})} == {"random"}


def test_curves_start_from_the_fine_tuned_model() -> None:
    settings = Settings()
    lengths = {"sst2": (settings.sst2_dense, settings.sst2_steps), "mrpc": (settings.mrpc_dense, settings.mrpc_steps)}
    for task, (whole, stretch) in lengths.items():
        dense, joint = Cell(task, DENSE, 0, REQUEST).run, Cell(task, NORMALISED, 0, REQUEST).run
        assert (dense.parent, joint.parent) == (None, dense)
        assert dense.options["max_steps"] == whole
        assert joint.options["max_steps"] == (settings.iterations + 1) * stretch
        assert joint.options["warmup_steps"] < stretch == joint.options["save_steps"]
    assert run_options(FFNS)["max_steps"] == (settings.ffn_iterations + 1) * settings.sst2_steps


def test_curves_of_one_kind_of_unit_end_at_half_of_it() -> None:
    layers, heads, hidden, width = 6, 12, 384, 1536
    size = hidden // heads
    head, filter_ = 4 * hidden * size + 3 * size, 2 * hidden + 1
    dense = layers * (heads * head + width * filter_)
    for kind, unit, count in ((HEADS, head, layers * heads), (FFNS, width * filter_, layers)):
        left = [1 - removed * unit / dense for removed in range(count + 1)]
        assert left[count // 2] <= KINDS[kind].params < left[count // 2 - 1]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Data with MRPC's columns; the last train row is a copy of the first, and quotation marks are not closed."""
    folder = tmp_path / "data" / "mrpc"
    folder.mkdir(parents=True, exist_ok=True)
    rows = [(i % 2, i, 100 + i, f'" {sentence(i)} {i}', f"{sentence(i)} {i}") for i in range(PAIRS - 1)]
    lines = ["\t".join(map(str, row)) for row in [*rows, rows[0]]]
    header = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"
    for name in ("train.tsv", "dev.tsv"):
        (folder / name).write_text("\n".join([header, *lines]) + "\n", encoding="utf8")
    return tmp_path / "data"


def test_no_held_out_pair_is_trained_on(pairs: Path, base_model: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base_model)
    source = PairRows(pairs, tokenizer)
    held_out = {(row["sentence1"], row["sentence2"]) for row in source._held_out}
    assert len(source._held_out) == PAIRS // 9
    path = write_train_rows(tmp_path / "rows", "mrpc", 30, pairs, base_model)
    rows = read_rows(path)
    assert [list(row) for row in rows] == [["sentence1", "sentence2", "label"]] * 30
    assert all(row["sentence1"] == f'" {row["sentence2"]}' for row in rows)
    assert all(int(row["sentence2"].split()[-1]) % 2 == int(row["label"]) for row in rows)
    assert held_out.isdisjoint((row["sentence1"], row["sentence2"]) for row in rows)
    assert source.drawn(5) == rows[:5]
    tokenised = train_rows("mrpc", pairs, tokenizer, 3)
    assert tokenised["labels"] == [int(row["label"]) for row in rows[:3]]
    assert tokenised[0]["input_ids"] == tokenizer(rows[0]["sentence1"], rows[0]["sentence2"])["input_ids"]
    assert len(source.evaluation("dev")) == PAIRS
    assert len(source.evaluation("held_out", 2)) == 2
    with pytest.raises(ValueError, match=r"100 examples asked for, but MRPC has (39|40) to draw from"):
        source.drawn(100)


def test_copies_of_held_out_pairs_are_not_trained_on(pairs: Path, base_model: Path) -> None:
    path = pairs / "mrpc" / "train.tsv"
    header, first, *_ = path.read_text(encoding="utf8").splitlines()
    path.write_text("\n".join([header, *[first] * 18]) + "\n", encoding="utf8")
    with pytest.raises(ValueError, match="MRPC has 0 to draw from"):
        PairRows(pairs, AutoTokenizer.from_pretrained(base_model)).drawn(1)


def test_metrics_are_those_of_another_library() -> None:
    from sklearn.metrics import accuracy_score, f1_score

    generator = np.random.default_rng(0)
    for _ in range(5):
        labels, predicted = generator.integers(0, 2, (2, 30))
        metrics = Predictions(predicted, labels).metrics
        assert metrics["accuracy"] == pytest.approx(100 * accuracy_score(labels, predicted))
        assert metrics["F1"] == pytest.approx(100 * f1_score(labels, predicted))
    none = np.zeros(4, dtype=int)
    assert Predictions(none, none).metrics == {"accuracy": 100, "F1": 0}


LABELS = "10" * 50


def with_errors(count: int) -> str:
    """Predictions that are wrong in the first rows."""
    return "".join(str(1 - int(label)) for label in LABELS[:count]) + LABELS[count:]


def measured_curve(errors: Sequence[int], params: Sequence[float], maxima: Sequence[Any] = ()) -> dict[str, Any]:
    """Levels of one layer that loses a head each."""
    kinds = {"layer.0.attention": "attention", "layer.0.ffn": "feed_forward"}
    levels = tuple(
        CurveLevel(
            index,
            share,
            share / 2,
            {},
            {"layer.0.attention": tuple(range(9 - index)), "layer.0.ffn": (0, 1)},
            None,
            {"iterations": index},
        )
        for index, share in enumerate(params)
    )
    return {
        "labels": LABELS,
        "predicted": [with_errors(count) for count in errors],
        "curve": TradeOffCurve({}, kinds, levels).to_dict(),
        "maxima": list(maxima),
        "seconds": 1.0,
    }


def study(kinds: Mapping[str, Mapping[str, Any]], task: str = "sst2") -> StudyResults:
    return StudyResults([(Cell(task, kind, 0, REQUEST), values) for kind, values in kinds.items()])


def dense(errors: int) -> dict[str, Any]:
    return {"labels": LABELS, "predicted": [with_errors(errors)], "curve": None, "maxima": [], "seconds": 1.0}


def rows_of(report: str, title: str) -> list[list[str]]:
    """The rows of the table below a heading."""
    part = report.split(f" {title}\n")[1].split("\n#")[0]
    lines = [line for line in part.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines][1:]


def test_a_curve_has_a_row_per_level() -> None:
    results = study({DENSE: dense(10), NORMALISED: measured_curve([12, 9], [1.0, 0.6])})
    report = markdown_report(results, "dev")
    assert "100 dev rows (accuracy ± 5.88" in report
    assert "accuracy 90.00" in report
    rows = rows_of(report, KINDS[NORMALISED].title)
    assert [row[:-1] for row in rows] == [
        ["0", "100.0%", "50.0%", "9", "1", "88.00"],
        ["1", "60.0%", "30.0%", "8", "1", "91.00"],
    ]
    assert [row[-1].split(" ± ")[0] for row in rows] == ["-2.00", "+1.00"]


def test_f1_is_shown_where_the_paper_reports_it() -> None:
    report = markdown_report(study({NORMALISED: measured_curve([2], [1.0])}, "mrpc"), "held_out")
    assert "held-out train rows" in report
    # Of 50 positive rows 49 are found, and one other.
    assert rows_of(report, KINDS[NORMALISED].title) == [["0", "100.0%", "50.0%", "9", "1", "98.00", "98.00", ""]]


def test_the_simplest_model_is_within_a_point() -> None:
    curve = measured_curve([10, 11, 13, 11, 20], [1.0, 0.8, 0.6, 0.5, 0.3])
    rows = rows_of(
        markdown_report(study({DENSE: dense(12), JOINT: curve}), "dev"), "The simplest models that lose at most 1 point"
    )
    assert [(row[2], row[3], row[4], row[6]) for row in rows] == [
        ("full fine-tuning", "3", "50.0%", "accuracy 89.00"),
        ("its own first level", "3", "50.0%", "accuracy 89.00"),
    ]
    worse = study({DENSE: dense(8), JOINT: curve})
    first, own = rows_of(markdown_report(worse, "dev"), "The simplest models that lose at most 1 point")
    assert (first[3], own[3]) == ("none", "3")


def test_a_size_is_reached_where_no_more_is_left() -> None:
    curve = MeasuredCurve.of(Cell("sst2", JOINT, 0, REQUEST), measured_curve([0] * 3, [1.0, 0.5 + 1e-9, 0.4]))
    assert [curve.reaching(share) for share in (1.0, 0.5, 0.45, 0.3)] == [0, 1, 2, None]


def test_claims_are_judged_by_the_numbers() -> None:
    results = study(
        {
            DENSE: dense(10),
            NORMALISED: measured_curve([10, 11, 20], [1.0, 0.5, 0.25]),
            JOINT: measured_curve([10, 11, 15], [1.0, 0.7, 0.5]),
            HEADS: measured_curve([10, 11], [1.0, 0.83]),
            FFNS: measured_curve([10, 11], [1.0, 0.67]),
        }
    )
    claims = {row[0]: row[1:] for row in rows_of(markdown_report(results, "dev"), "The paper's claims")}
    assert claims == {
        "SST-2: 50% of the parameters cost at most 0.9 points of accuracy": ["1.00 (50.0% removed)", "no"],
        "SST-2: 75% of the parameters cost at most 4.3 points of accuracy": ["10.00 (75.0% removed)", "no"],
        "SST-2: spectral normalisation lets more go within 1 point": ["50.0% with, 30.0% without", "yes"],
        "SST-2: removing heads costs less than removing FFNs, at the end of both": [
            "+0.00 ± 0.00 (83.0% of the parameters left, and 67.0%)",
            "no",
        ],
    }


def test_outputs_are_summarised_over_mappings_and_rows() -> None:
    heads = [{"key": f"layer.{layer}.attention", "kind": "heads", "values": [[layer, 2.0]] * 10} for layer in (0, 1)]
    curve = measured_curve([0], [1.0], heads)
    rows = rows_of(
        markdown_report(study({JOINT: curve}), "dev"), "The largest absolute outputs before anything is removed"
    )
    assert rows == [["SST-2", KINDS[JOINT].title, "heads", "0.00", "1.50", "2.00"]]


def test_curves_are_trained_measured_and_drawn(
    files: Path,
    pairs: Path,
    run_script: RunScript,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    commands: list[list[str]] = []

    def in_this_process(self: Runner, command: list[str], log: Path) -> None:
        commands.append(command)
        run_script(str(Path(command[1]).relative_to(EXAMPLES)), *command[2:])

    monkeypatch.setattr(Runner, "_execute", in_this_process)
    places = ["--models", files / "models", "--data", pairs, "--cache", files / "cache"]
    lengths = ["sst2_rows=16", "sst2_dense=6", "sst2_steps=4", "mrpc_rows=30", "mrpc_dense=6", "mrpc_steps=4"]
    lengths += ["batch=4", "iterations=2"]
    output = files / "out" / "snip.json"
    options = [*map(str, places), "--set", *lengths, "spectral_bound=0.5", "--output", str(output), "--only"]

    def reported(*more: str) -> str:
        snip.main([*options, *more])
        return capsys.readouterr().out

    def measured(task: str, kind: str, rows: int) -> dict[str, Any]:
        cells = {cell["cell"]: cell["measured"] for cell in json.loads(output.read_text())["cells"]}
        values = cells[f"{task}-{kind}-dev-seed0"]
        assert [len(digits) for digits in (values["labels"], *values["predicted"])] == [rows] * 4
        assert [np.shape(item["values"])[1] for item in values["maxima"]] == [4, 1, 4, 1]
        return values

    report = reported("task=mrpc", "kind=dense,joint-normalised")
    levels = measured("mrpc", NORMALISED, PAIRS)["curve"]["levels"]
    assert [level["details"]["iterations"] for level in levels] == [0, 1, 2]
    assert 1 == levels[0]["params"] > levels[1]["params"] > levels[2]["params"]
    [folder] = (files / "cache" / "runs").glob("mrpc-joint-normalised-*/")
    assert largest_value(folder / levels[0]["folder"]) < 0.55
    reported("task=sst2", "kind=joint")
    measured("sst2", JOINT, 24)
    assert len(commands) == 4  # full fine-tuning of both tasks, and a curve of each
    assert {path.name for path in output.parent.glob("*.png")} == {
        f"snip_{name}.png"
        for name in (
            *("mrpc_curves", "mrpc_maxima", "mrpc_joint-normalised_map"),
            *("sst2_curves", "sst2_maxima", "sst2_joint_map"),
        )
    }
    assert report.endswith(reported("task=mrpc", "kind=dense,joint-normalised", "--finished"))
    held_out = reported("task=mrpc", "kind=dense,joint-normalised", "--held-out")
    assert held_out.startswith(f"## MRPC\n\n{PAIRS // 9} held-out train rows")
    assert len(commands) == 4


def largest_value(folder: Path) -> float:
    """The largest singular value of the layers' matrices."""
    weights = dict(load(folder, torch.device("cpu")).named_parameters())
    matrices = [weight for name, weight in weights.items() if ".layer." in name and weight.ndim == 2]
    return max(float(torch.linalg.svdvals(weight.detach())[0]) for weight in matrices)
