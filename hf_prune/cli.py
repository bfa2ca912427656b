"""The command line `hf-prune`: options and output; what the commands do is in `hf_prune.commands`."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .commands.arguments import DataArguments, RunArguments, SweepArguments
from .commands.console import note, quiet_output, show, show_json, terminal_width
from .commands.options import make_config, take, with_options
from .errors import PruningError

if TYPE_CHECKING:
    from .report import PruningReport, WeightReport

app = typer.Typer(
    name="hf-prune",
    help="Makes fine-tuned Transformers models smaller and faster, and writes them as ordinary checkpoints.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
Debug = Annotated[bool, typer.Option("--debug", help="On an error, show where it came from.")]
DType = Annotated[str, typer.Option("--dtype", help="float32, float16, bfloat16, float64, or auto: as stored.")]
Device = Annotated[str | None, typer.Option("--device", help="As PyTorch calls it. Default: the GPU if there is one.")]


def main() -> None:
    """The console script's entry point; progress bars are for those who watch."""
    if not sys.stderr.isatty():
        import datasets
        from transformers.utils import logging

        logging.disable_progress_bar()
        datasets.disable_progress_bars()
    app()


def _reports_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Turns a `PruningError` into one line and exit code 2, unless `--debug` asks for the traceback."""

    @functools.wraps(command)
    def run(*args: Any, debug: bool, **options: Any) -> None:
        try:
            with quiet_output():
                command(*args, debug=debug, **options)
        except PruningError as error:
            if debug:
                raise
            note(f"Error: {error}", style="red")
            raise typer.Exit(2) from error

    return run


@app.command()
@with_options(RunArguments, DataArguments, strategies=True)
@_reports_errors
def run(
    model: Annotated[str, typer.Argument(help="Folder or Hub name of a fine-tuned model.")],
    as_json: Json = False,
    debug: Debug = False,
    **options: Any,
) -> None:
    """Prune a fine-tuned model to a budget and write it as an ordinary checkpoint."""
    from .commands.inputs import Request
    from .commands.run import run as prune

    arguments, data = take(RunArguments, options), take(DataArguments, options)
    config = make_config(arguments.strategy, options, seed=arguments.seed)
    result = prune(Request(model, config, data, arguments))
    if as_json:
        show_json({"output_dir": str(arguments.output_dir), "report": result.report.to_dict()})
        return
    _show_report(result.report)
    note(f"The pruned model is in {arguments.output_dir}.")


@app.command()
@with_options(SweepArguments, DataArguments, strategies=True, budgets=False)
@_reports_errors
def sweep(
    model: Annotated[str, typer.Argument(help="Folder or Hub name of a fine-tuned model.")],
    as_json: Json = False,
    debug: Debug = False,
    **options: Any,
) -> None:
    """Prune a fine-tuned model to several budgets, measure each, and write those that you want."""
    from .commands.inputs import Request
    from .commands.sweep import run_sweep

    arguments, data = take(SweepArguments, options), take(DataArguments, options)
    settings = {**options, arguments.budget: arguments.values[0]}
    config = make_config(arguments.strategy, settings, seed=arguments.seed)
    outcome = run_sweep(Request(model, config, data, arguments))
    if as_json:
        show_json({"output_dir": str(arguments.output_dir), **outcome.to_dict()})
        return
    show(outcome.table())
    note(f"The curve is in {arguments.output_dir}.")
    for budget, folder in outcome.folders.items():
        note(f"The model with {arguments.budget}={budget:g} is in {folder}.")


@app.command()
@_reports_errors
def inspect(
    model: Annotated[str, typer.Argument(help="Folder or Hub name of a model, pruned or dense.")],
    sequence_length: Annotated[
        int, typer.Option("--sequence_length", min=1, help="Tokens that a dense model's FLOPs are counted for.")
    ] = 128,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what was pruned from a checkpoint, or what a dense model is made of. The model itself is not loaded."""
    from .commands.inspection import anatomy_table, inspect_checkpoint

    inspection = inspect_checkpoint(model)
    if as_json:
        show_json(inspection.to_dict(sequence_length))
        return
    if inspection.report is not None:
        _show_report(inspection.report, inspection.mapped, blocks=True)
        if inspection.only_counted:
            note("Which filters stayed is in pruning_report.json, which is not with this checkpoint.")
    if inspection.weights is not None:
        show(inspection.weights.text)
        if inspection.weights.report is not None:
            _show_report(inspection.weights.report)
    elif inspection.report is None and inspection.anatomy is not None:
        show(anatomy_table(inspection, inspection.anatomy, sequence_length))


@app.command()
@_reports_errors
def bench(
    models: Annotated[list[str], typer.Argument(help="Folders or Hub names; all are compared with the first.")],
    batch_sizes: Annotated[str, typer.Option("--batch_sizes", help="With commas between.")] = "1,8,32",
    sequence_lengths: Annotated[str, typer.Option("--sequence_lengths", help="With commas between.")] = "32,128",
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Timed passes, of which the median counts.")] = 10,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Threads on the CPU. Default: as PyTorch chooses.")
    ] = None,
    dtype: DType = "float32",
    device: Device = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Time models side by side, and compare the speed-up with what their FLOPs promise."""
    from .commands.bench import bench_models, bench_table, numbers

    batches, lengths = numbers(batch_sizes, "batch_sizes"), numbers(sequence_lengths, "sequence_lengths")
    result = bench_models(models, batches, lengths, repeats=repeats, threads=threads, dtype=dtype, device=device)
    if as_json:
        show_json(result.to_dict())
    else:
        show(bench_table(result))


@app.command()
@_reports_errors
def families(as_json: Json = False, debug: Debug = False) -> None:
    """List the model types that can be pruned."""
    from .commands.families import families_table, family_rows

    rows = family_rows()
    if as_json:
        show_json(rows)
    else:
        show(families_table(rows))


@app.command()
@_reports_errors
def demo(
    output_dir: Annotated[
        Path, typer.Option("--output_dir", help="Folder for the pruned model; an earlier demo there is replaced.")
    ] = Path("hf-prune-demo"),
    flops: Annotated[float, typer.Option("--flops", help="Fraction of the attention+FFN FLOPs to keep.")] = 0.5,
    seed: Annotated[int, typer.Option("--seed", help="Of the data's split and of the training.")] = 0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """The whole story on this machine, in two minutes and without a download."""
    from .commands.demo import run_demo

    outcome = run_demo(output_dir, note, flops=flops, seed=seed)
    if as_json:
        show_json(outcome.to_dict())
        return
    _show_report(outcome.result.report)
    note(f"Checkpoint: {outcome.folder.resolve()}")
    note(f"Picture:    {outcome.picture.resolve() if outcome.picture else 'none (pip install hf-prune[report])'}")


def _show_report(
    report: PruningReport | WeightReport, mapped: PruningReport | None = None, blocks: bool = False
) -> None:
    """A report's tables and remarks.

    Args:
        report: on blocks or on single weights.
        mapped: of a report on blocks, those whose kept units are known.
        blocks: show every block, too, and of the heat map only what is known.
    """
    from .report import WeightReport
    from .report.terminal import block_table, heat_map, summary_table, weight_tables

    if isinstance(report, WeightReport):
        for table in weight_tables(report):
            show(table)
    else:
        show(summary_table(report))
        if blocks:
            show(block_table(report))
        if mapped is not None or not blocks:
            show(heat_map(mapped or report, terminal_width()))
    for remark in report.notes:
        note(remark)
