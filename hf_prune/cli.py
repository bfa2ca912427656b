"""The command line `hf-prune`: options and output; what the commands do is in `hf_prune.commands`."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from .commands.console import note, output, quiet_output, show
from .commands.options import make_config, with_strategy_options
from .errors import PruningError

app = typer.Typer(
    name="hf-prune",
    help="Makes fine-tuned Transformers models smaller and faster, and writes them as ordinary checkpoints.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_DATA, _OUTPUT = "Data", "Output"

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
Debug = Annotated[bool, typer.Option("--debug", help="On an error, show where it came from.")]
DType = Annotated[str, typer.Option("--dtype", help="float32, float16, bfloat16, float64, or auto: as stored.")]
Device = Annotated[
    str | None, typer.Option("--device", help="As PyTorch calls it; by default the GPU if there is one.")
]
Seed = Annotated[int, typer.Option("--seed", help="Of whatever is drawn at random.")]


def main() -> None:
    """The console script's entry point."""
    app()


def _reports_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Turns a `PruningError` into one line and exit code 2, unless `--debug` asks for the traceback."""

    @functools.wraps(command)
    def run(*args: Any, debug: bool, **options: Any) -> None:
        try:
            command(*args, debug=debug, **options)
        except PruningError as error:
            if debug:
                raise
            note(f"Error: {error}", style="red")
            raise typer.Exit(2) from error

    return run


@app.command()
@with_strategy_options
@_reports_errors
def run(
    model: Annotated[str, typer.Argument(help="Folder or Hub name of a fine-tuned model.")],
    output_dir: Annotated[
        Path, typer.Option("--output_dir", help="Folder for the pruned model.", rich_help_panel=_OUTPUT)
    ],
    overwrite_output_dir: Annotated[
        bool,
        typer.Option("--overwrite_output_dir", help="Replace files in a folder that is not empty.", rich_help_panel=_OUTPUT),
    ] = False,
    push_to_hub: Annotated[
        str | None, typer.Option("--push_to_hub", help="Hub repository to upload to.", rich_help_panel=_OUTPUT)
    ] = None,
    train_file: Annotated[
        Path | None,
        typer.Option(
            "--train_file",
            help="Rows to calibrate on: .tsv (unquoted, as GLUE's), .csv, .json, .jsonl, .parquet or .txt.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    validation_file: Annotated[
        Path | None,
        typer.Option("--validation_file", help="Rows to measure on, before and after.", rich_help_panel=_DATA),
    ] = None,
    dataset_name: Annotated[
        str | None, typer.Option("--dataset_name", help="Data set on the Hub, or a folder.", rich_help_panel=_DATA)
    ] = None,
    dataset_config_name: Annotated[
        str | None, typer.Option("--dataset_config_name", help="Its configuration.", rich_help_panel=_DATA)
    ] = None,
    train_split: Annotated[
        str, typer.Option("--train_split", help="Its split to calibrate on.", rich_help_panel=_DATA)
    ] = "train",
    validation_split: Annotated[
        str | None,
        typer.Option("--validation_split", help="Its split to measure on. [default: validation]", rich_help_panel=_DATA),
    ] = None,
    text_column: Annotated[
        str | None,
        typer.Option("--text_column", help="Column of the text (or words). [default: GLUE's names]", rich_help_panel=_DATA),
    ] = None,
    text_pair_column: Annotated[
        str | None,
        typer.Option("--text_pair_column", help="Column of the second text of a pair.", rich_help_panel=_DATA),
    ] = None,
    label_column: Annotated[
        str | None, typer.Option("--label_column", help="Column of the label. [default: label]", rich_help_panel=_DATA)
    ] = None,
    task: Annotated[
        str | None,
        typer.Option("--task", help="As pipelines call it. [default: that of the model's head]", rich_help_panel=_DATA),
    ] = None,
    max_seq_length: Annotated[
        int | None,
        typer.Option("--max_seq_length", help="Longer examples are cut. [default: 128, or 384 for questions]", rich_help_panel=_DATA),
    ] = None,
    num_samples: Annotated[
        int, typer.Option("--num_samples", help="Rows to calibrate on, drawn at random.", rich_help_panel=_DATA)
    ] = 2048,
    max_eval_samples: Annotated[
        int | None,
        typer.Option("--max_eval_samples", help="Rows to measure on. [default: all]", rich_help_panel=_DATA),
    ] = None,
    strategy: Annotated[str, typer.Option("--strategy", help="The pruning method.")] = "fisher",
    dtype: DType = "float32",
    device: Device = None,
    seed: Seed = 0,
    as_json: Json = False,
    debug: Debug = False,
    **settings: Any,
) -> None:
    """Prune a fine-tuned model to a budget and write it as an ordinary checkpoint."""
    from .commands.columns import ColumnNames
    from .commands.run import RunRequest
    from .commands.run import run as prune
    from .commands.sources import DataSource

    request = RunRequest(
        model=model,
        pruning=make_config(strategy, settings, seed=seed),
        source=DataSource(
            train_file, validation_file, dataset_name, dataset_config_name, train_split, validation_split
        ),
        columns=ColumnNames(text_column, text_pair_column, label_column),
        output_dir=output_dir,
        overwrite=overwrite_output_dir,
        task=task,
        max_seq_length=max_seq_length,
        num_samples=num_samples,
        max_eval_samples=max_eval_samples,
        dtype=dtype,
        device=device,
        seed=seed,
        push_to_hub=push_to_hub,
    )
    with quiet_output():
        result = prune(request)
    if as_json:
        _print_json({"output_dir": str(output_dir), "report": result.report.to_dict()})
        return
    _show_report(result.report)
    note(f"The pruned model is in {output_dir}.")
