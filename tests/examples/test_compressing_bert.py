"""The study "Compressing BERT": which models it trains, and what its tables say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cell_arguments import parse_filters
from compressing_bert import STUDY
from compressing_cells import FIELDS, TABLES, Cell, Settings, cells_of, fine_tuned_minilm, fine_tuned_small
from compressing_tables import StudyResults, markdown_report
from compressing_texts import readable_lines
from study_cells import Request

REQUEST = Request("dev", None, Settings(), "")


def test_every_model_of_the_issue_is_a_cell() -> None:
    cells = list(cells_of(REQUEST, 1, {}))
    assert len(cells) == sum(len(levels) for kinds in TABLES.values() for levels in kinds.values()) == 9 + 16
    assert len({(cell.name, cell.run.folder) for cell in cells}) == len(cells)
    chosen = list(cells_of(REQUEST, 2, parse_filters(["table=pre-training", "sparsity=0.9"], FIELDS)))
    assert [(cell.kind, cell.seed) for cell in chosen] == [
        (kind, seed) for kind in ("pruned", "deleted", "random") for seed in (0, 1)
    ]


def test_deleted_models_are_the_pruned_ones_with_free_zeros() -> None:
    pruned, deleted, random = (fine_tuned_small(Settings(), kind, 0.9, 0) for kind in ("pruned", "deleted", "random"))
    assert pruned.options["strategy"] == random.options["strategy"] == "hold"
    assert "strategy" not in deleted.options
    assert pruned.parent is not None
    assert random.parent is not None
    assert pruned.parent == deleted.parent
    assert (pruned.parent.options["strategy"], random.parent.options["strategy"]) == ("magnitude", "random")
    assert pruned.parent.parent == random.parent.parent


def test_models_pruned_afterwards_come_from_the_dense_one_and_are_pruned_at_one_go() -> None:
    after = fine_tuned_minilm(Settings(), "after", 0.4, 3)
    assert after.parent == fine_tuned_minilm(Settings(), "during", 0.0, 3)
    assert (after.options["begin"], after.options["end"]) == (0, 0)
    assert "strategy" not in fine_tuned_minilm(Settings(), "after", 0.0, 3).options
    assert "end" not in fine_tuned_minilm(Settings(), "random", 0.4, 3).options


def test_settings_change_the_folder_and_nothing_else_does() -> None:
    one = fine_tuned_small(Settings(), "pruned", 0.5, 0)
    assert one.folder == fine_tuned_small(Settings(minilm_steps=1), "pruned", 0.5, 0).folder
    assert one.folder != fine_tuned_small(Settings(pretraining_steps=1), "pruned", 0.5, 0).folder


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--only", "level=0.5", "no field 'level'"),
        ("--only", "sparsity=0.55", "sparsity is one of"),
        ("--set", "steps=3", "no setting 'steps'"),
        ("--set", "rows=many", "many"),
        ("--only", "kind=deleted sparsity=0.3", "no such cells"),
    ],
)
def test_unknown_filters_and_settings_are_refused(
    option: str, value: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        STUDY.parse(["--models", str(tmp_path), "--data", str(tmp_path), option, *value.split()])
    assert message in capsys.readouterr().err


def test_texts_are_made_readable() -> None:
    lines = [" = Title = ", "", " A well @-@ known <unk> of 1 @,@ 000 , 2 @.@ 5 . "]
    assert list(readable_lines(lines)) == ["A well-known [UNK] of 1,000 , 2.5 ."]


def measured(right: int, loss: float | None, fit: float = 0.9, rows: int = 200) -> dict[str, Any]:
    return {"right": "1" * right + "0" * (rows - right), "mlm_loss": loss, "fit": fit, "zeros": 0.5}


def study() -> StudyResults:
    values = {
        ("pruned", 0.0): measured(160, 4.0),
        ("pruned", 0.3): measured(160, 4.001),
        ("pruned", 0.5): measured(120, 4.5),
        ("pruned", 0.9): measured(100, 6.0, fit=0.6),
        ("deleted", 0.5): measured(120, 4.5),
        ("deleted", 0.9): measured(130, 6.0),
        ("random", 0.5): measured(130, 6.0),
    }
    return StudyResults([(Cell("pre-training", *key, 0, REQUEST), found) for key, found in values.items()])


def test_claims_are_judged_by_the_numbers() -> None:
    report = markdown_report(study(), "dev")
    verdicts = {}
    for line in report.split("claims")[1].splitlines():
        if line.startswith("| ") and "claim" not in line:
            claim, _, holds = (part.strip() for part in line.strip("|").split("|"))
            verdicts[claim] = holds
    assert verdicts == {
        "pre-training, pruned: 30% cost at most 0.5 point beyond noise": "yes",
        "pre-training, pruned: better than random at 50%": "no",
        "30% leave the MLM loss as it is": "yes",
        "50% raise the MLM loss": "yes",
        "50%: what is deleted does not come back": "yes",
        "50%: zeros that are held cost more than the deletion": "no",
        "90% raise the MLM loss": "yes",
        "90%: what is deleted does not come back": "yes",
        "90%: zeros that are held cost more than the deletion": "yes",
    }


def test_the_table_holds_every_measured_model_and_its_difference() -> None:
    report = markdown_report(study(), "held_out")
    assert "Accuracy on 200 held-out train rows" in report
    [row] = [line for line in report.splitlines() if line.startswith("| pruned") and "50%" in line.split("|")[2]]
    cells = [part.strip() for part in row.strip("|").split("|")]
    assert cells[3:5] == ["4.500", "60.00"]
    assert cells[5].startswith("-20.00 ± ")
    assert "MiniLM" not in report


def test_seeds_are_averaged() -> None:
    pairs = [(Cell("fine-tuning", "during", 0.4, seed, REQUEST), measured(100 + 50 * seed, None)) for seed in (0, 1)]
    entry = StudyResults(pairs).get("fine-tuning", "during", 0.4)
    assert entry is not None
    assert (entry.accuracy, entry.seeds, entry.mlm_loss) == (62.5, 2, None)


def test_models_pruned_afterwards_are_compared_with_the_one_that_was_trained_on() -> None:
    values = {("during", 0.0): 100, ("after", 0.0): 150, ("after", 0.4): 140, ("random after", 0.4): 50}
    results = StudyResults(
        [(Cell("fine-tuning", *key, 0, REQUEST), measured(right, None)) for key, right in values.items()]
    )
    for kind, points in (("after", -5.0), ("random after", -50.0)):
        entry = results.get("fine-tuning", kind, 0.4)
        assert entry is not None
        difference = results.against_dense(entry)
        assert difference is not None
        assert difference.points == pytest.approx(points)
