"""Every model type that transformers' AutoModel knows: which can be pruned, which are refused, and why.

A small random model of each type is described, cut to a random plan (attention and feed-forward blocks to half or to
nothing) and compared with the dense model whose output projections have zeros for the removed units; then saved, loaded
with AutoModel and compared bit for bit. Weights are drawn so that every unit matters. Targets: no type is wrong, and at
least 120 types lose heads and filters.

- supported: all of that holds.
- refused: the library says that it does not understand the model.
- wrong: outputs or sizes differ, or anything else fails.
- not judged: no example shows what a cut did, or it takes more than a minute.
- not built: transformers cannot build a small model of the type from one set of sizes, or lacks a package.

Finished types are kept in the cache; a run that was interrupted goes on where it stopped. Ends with status 1 if a
target is missed.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence

import transformers
from arguments import benchmark_parser, prepare_run, write_results
from cell_arguments import add_cache_arguments
from cells import CellCache
from family_checks import NOT_BUILT, NOT_JUDGED, REFUSED, SUPPORTED, WRONG, Outcome, check_type
from markdown_tables import markdown_table, verdict
from tqdm import tqdm
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

import hf_prune
from hf_prune.anatomy import supported_model_types

TARGET = 120
_OTHERS = (WRONG, REFUSED, NOT_JUDGED, NOT_BUILT)
_SHOWN = 140  # characters of a reason


def check_all(model_types: Sequence[str], cache: CellCache, tag: str) -> dict[str, Outcome]:
    """The outcome of each model type, from the cache where it is there."""
    found = {}
    versions = {"transformers": transformers.__version__, "hf_prune": hf_prune.__version__, "tag": tag}
    for model_type in tqdm(model_types, desc="Model types", unit="type"):
        settings = {"model_type": model_type, **versions}
        measured = cache.read(model_type, settings)
        if measured is None:
            measured = check_type(model_type).to_dict()
            cache.write(model_type, settings, measured)
        found[model_type] = Outcome(**measured)
    return found


def full_support(outcomes: Mapping[str, Outcome]) -> list[str]:
    """Types that lost heads and filters."""
    return [
        name
        for name, outcome in outcomes.items()
        if outcome.outcome == SUPPORTED and outcome.attentions and outcome.feed_forwards
    ]


def summary_table(outcomes: Mapping[str, Outcome]) -> str:
    """How many types there are of each outcome, in and outside of the family table."""
    known = set(supported_model_types())
    supported = [name for name, outcome in outcomes.items() if outcome.outcome == SUPPORTED]
    full = set(full_support(outcomes))
    filters = {name for name in supported if name not in full and outcomes[name].feed_forwards}
    groups = {
        "supported: heads and filters": full,
        "supported: filters only": filters,
        "supported: heads only": set(supported) - full - filters,
    }
    groups |= {word: {name for name in outcomes if outcomes[name].outcome == word} for word in _OTHERS}
    rows = [[word, len(names), len(names & known), len(names - known)] for word, names in groups.items()]
    return markdown_table(["outcome", "model types", "in the table", "proved on the spot"], rows)


def reason_list(outcomes: Mapping[str, Outcome], word: str) -> str:
    """The reasons of one outcome, the commonest first, each with its types."""
    types: dict[str, list[str]] = {}
    for name, outcome in outcomes.items():
        if outcome.outcome == word:
            types.setdefault(_general(outcome.reason), []).append(name)
    ordered = sorted(types.items(), key=lambda item: -len(item[1]))
    return "\n".join(f"- {reason} ({len(names)}): {', '.join(names)}" for reason, names in ordered)


def _general(reason: str) -> str:
    """A reason without what differs from type to type: names, numbers, errors in brackets and the advice at the end."""
    reason = re.sub(r"^Models of type .*? are not in the family table[.,]? ?", "", reason)
    reason = re.sub(r"Their layers look familiar, but |and no list of layers in it is laid out.*", "", reason)
    reason = re.sub(r" (Describe them|To add the type|In the table:).*", "", reason)
    reason = re.sub(
        r".*No example batch could be made.*", "no example batch could be made that the model takes", reason
    )
    reason = re.sub(r"ImportError: .*?requires the (\S+) library.*", r"needs the \1 package", reason)
    reason = re.sub(r"\b(cut off|units of|what|reaches) (in )?[\w.]*\.[\w.]*", r"\1 …", reason)
    reason = re.sub(r"does not run \(.*", "does not run", reason)
    reason = re.sub(r"(Class validation error for validator \S+:|Strict\w+Error:) ?", "", reason)
    reason = re.sub(r" from '/[^']*'", "", reason)  # where a package is installed
    reason = re.sub(r"\d[\d.,e+-]*", "…", reason)
    return reason[:_SHOWN] or "no layers that look familiar"


def main(argv: Sequence[str] | None = None) -> None:
    """Walks all types and prints the tables."""
    arguments = parse_arguments(argv)
    prepare_run(arguments)
    outcomes = check_all(arguments.types or sorted(MODEL_MAPPING_NAMES), CellCache(arguments.cache), arguments.tag)
    full, wrong = full_support(outcomes), [name for name in outcomes if outcomes[name].outcome == WRONG]
    print(summary_table(outcomes))
    print(f"\nHeads and filters: {', '.join(full)}.")
    for word in _OTHERS:
        if any(outcome.outcome == word for outcome in outcomes.values()):
            print(f"\n{word.capitalize()}:\n\n{reason_list(outcomes, word)}")
    reached = len(full) >= TARGET or bool(arguments.types)
    print(f"\nNo type is wrong: {verdict(not wrong)}. At least {TARGET} lose heads and filters: {verdict(reached)}.")
    write_results(arguments.output, {"types": {name: outcome.to_dict() for name, outcome in outcomes.items()}})
    sys.exit(0 if reached and not wrong else 1)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = benchmark_parser(__doc__, needs_files=False)
    parser.add_argument("--types", nargs="+", metavar="TYPE", help="model types to check; default: all")
    add_cache_arguments(parser, "families")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
