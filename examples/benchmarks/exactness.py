"""What must hold exactly, on small random text encoders with every task head (`families.py` has all other models).

1. The masked model equals the shrunk one: outputs differ by at most 1e-4, where masked and dense differ by at least
   1,000 times that. Four deliberate mistakes (another head, another filter, rows in the wrong order) must fail the same
   comparison.
2. A saved pruned model, loaded in another process, gives outputs that are identical in every bit.
3. Gate gradients per example, from one backward pass per batch, equal those of one example at a time to 1e-5 (relative
   to the largest, where that exceeds one), for every loss.
4. The budget search never exceeds its budget, and finds the optimum of a mixed-integer solver.

Ends with status 1 if anything does not hold.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict

from arguments import benchmark_parser, prepare_run, write_results
from exact_cuts import CutCheck, check_cut
from exact_reload import check_reloading, label
from exact_scores import ScoreCheck, check_scores
from exact_search import BudgetCheck, OptimumCheck, check_budgets, check_optima
from markdown_tables import markdown_table, verdict
from random_models import every_case
from tqdm import tqdm


def model_table(cuts: Sequence[CutCheck], reloaded: dict[str, float], scores: Sequence[ScoreCheck]) -> str:
    """One row per family and task head."""
    headers = ["family", "task head", "dense", "shrunk", "worst mistake", "reloaded", "gradients", "holds"]
    rows = []
    for cut, score in zip(cuts, scores, strict=True):
        distance = reloaded[label(cut.case)]
        rows.append(
            [
                cut.case.model_type,
                cut.case.name,
                f"{cut.dense:.2g}",
                f"{cut.shrunk:.1e}",
                f"{min(cut.wrong.values()):.2g}",
                "identical" if distance == 0 else f"{distance:.1e}",
                f"{score.difference:.1e}",
                verdict(cut.holds and score.holds and distance == 0),
            ]
        )
    return markdown_table(headers, rows)


def search_lines(budgets: BudgetCheck, equal: OptimumCheck, unequal: OptimumCheck) -> str:
    """What the searches did, in sentences."""
    return "\n".join(
        [
            f"- {budgets.searches:,} budgets from 1 % to 100 % on a model of BERT-base's size: the highest cost is"
            f" {budgets.highest:.9f} of its budget. Holds: {verdict(budgets.holds)}.",
            f"- One cost for all heads and one for all filters: {equal.optimal:,} of {equal.searches:,} small cases"
            f" optimal, {equal.above_budget} above the budget. Holds: {verdict(equal.exact)}.",
            f"- A cost per block: {unequal.optimal:,} of {unequal.searches:,} small cases optimal, the worst misses"
            f" {100 * unequal.worst_gap:.2f} % of the score; {unequal.above_budget} above the budget,"
            f" {unequal.wrong_bounds} beyond the reported bound. Holds: {verdict(unequal.honest)}.",
        ]
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Checks everything and prints the tables."""
    parser = benchmark_parser(__doc__, needs_files=False)
    parser.add_argument("--draws", type=int, default=5, help="draws of the scores for budgets; default: %(default)s")
    parser.add_argument("--instances", type=int, default=1000, help="small cases of each kind; default: %(default)s")
    arguments = parser.parse_args(argv)
    prepare_run(arguments)
    cases = list(every_case())
    cuts = [check_cut(case) for case in tqdm(cases, desc="Cuts", unit="model")]
    scores = [check_scores(case) for case in tqdm(cases, desc="Gradients", unit="model")]
    reloaded = check_reloading(cases)
    budgets = check_budgets(arguments.draws)
    equal, unequal = (check_optima(arguments.instances, equal_costs=equal) for equal in (True, False))
    print("Largest differences from the masked model's outputs, and of the gradients:\n")
    print(model_table(cuts, reloaded, scores))
    print(f"\nSearch:\n\n{search_lines(budgets, equal, unequal)}")
    results = {
        "cuts": [asdict(check) for check in cuts],
        "reloaded": reloaded,
        "gradients": [asdict(check) for check in scores],
        "search": {"budgets": asdict(budgets), "equal_costs": asdict(equal), "costs_per_block": asdict(unequal)},
    }
    write_results(arguments.output, results)
    models = all(cut.holds for cut in cuts) and all(score.holds for score in scores) and not any(reloaded.values())
    sys.exit(0 if models and budgets.holds and equal.exact and unequal.honest else 1)


if __name__ == "__main__":
    main()
