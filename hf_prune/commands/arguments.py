"""What `hf-prune run` and `sweep` can be told besides the strategy's settings; every field is an option of its name."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from ..errors import PruningError

# The folder in the output folder that holds an unfinished run.
UNFINISHED = "unfinished_run"


@dataclass(frozen=True)
class DataArguments:
    """Where the rows are, and how they are read. The fields' help texts are their description."""

    panel: ClassVar[str] = "Data"

    train_file: Path | None = field(
        default=None,
        metadata={"help": "Rows to calibrate on: .tsv (unquoted, as GLUE's), .csv, .json, .jsonl, .parquet or .txt."},
    )
    validation_file: Path | None = field(default=None, metadata={"help": "Rows to measure on, before and after."})
    dataset_name: str | None = field(
        default=None, metadata={"help": "Data set on the Hub, or a folder, instead of files."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of the data set."})
    train_split: str = field(default="train", metadata={"help": "The data set's split to calibrate on."})
    validation_split: str | None = field(
        default=None,
        metadata={"help": "The data set's split to measure on. Default: validation, or validation_matched."},
    )
    text_column: str | None = field(
        default=None, metadata={"help": "Column of the text, or of the words. Default: the names that GLUE uses."}
    )
    text_pair_column: str | None = field(default=None, metadata={"help": "Column of the second text, for pairs."})
    label_column: str | None = field(
        default=None,
        metadata={
            "help": "Column of the label, or of the words' tags; rows to calibrate on need none where the strategy"
            " needs none. Default: label."
        },
    )
    max_seq_length: int | None = field(
        default=None, metadata={"help": "Tokens per example. Default: 128, and 384 for question answering."}
    )
    num_samples: int = field(default=2048, metadata={"help": "Rows to calibrate on, drawn at random."})
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Rows to measure on, drawn at random. Default: all."}
    )

    def __post_init__(self) -> None:
        for name in ("max_seq_length", "num_samples", "max_eval_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise PruningError(f"--{name} {value} must be at least 1.")
        if self.dataset_name and (self.train_file or self.validation_file):
            raise PruningError("--dataset_name and --train_file/--validation_file exclude each other; give one source.")
        for name in ("dataset_config_name", "validation_split"):
            if getattr(self, name) and not self.dataset_name:
                raise PruningError(f"--{name} belongs to --dataset_name, which is not given.")
        if self.text_pair_column and not self.text_column:
            raise PruningError("--text_pair_column names the second text of a pair; name the first with --text_column.")

    @property
    def given(self) -> bool:
        """Whether there are any rows."""
        return bool(self.dataset_name or self.train_file or self.validation_file)

    @property
    def measured(self) -> bool:
        """Whether rows to measure on were asked for; a data set may have some that were not."""
        return bool(self.validation_file or self.validation_split)

    def check_rows(self, labelled: bool) -> None:
        """Raises a PruningError where there are no rows to calibrate on, which are to be labelled."""
        if not self.dataset_name and not self.train_file:
            raise PruningError(
                f"{'Labelled rows' if labelled else 'Rows'} are needed to calibrate on: give --dataset_name, or"
                " --train_file (.tsv, .csv, .json, .jsonl, .parquet, .txt)."
            )


@dataclass(frozen=True)
class PruningArguments:
    """What to prune how, and where what it makes goes. The fields' help texts are their description."""

    panel: ClassVar[str] = "Run"

    output_dir: Path = field(metadata={"help": "Folder for the pruned model."})
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Replace files in an output folder that is not empty."}
    )
    strategy: str = field(default="fisher", metadata={"help": "The pruning method."})
    task: str | None = field(
        default=None, metadata={"help": "The task, as pipelines call it. Default: that of the model's head."}
    )
    dtype: str = field(
        default="float32",
        metadata={"help": "Precision to prune and write in: float32, float16, bfloat16, float64, or auto (as stored)."},
    )
    device: str | None = field(
        default=None, metadata={"help": "As PyTorch calls it. Default: the GPU if there is one."}
    )
    device_map: str | None = field(
        default=None,
        metadata={
            "help": "For a model that is too large: auto (weights that do not fit on the GPU, or in memory, wait in"
            " memory or on disk), or disk (one layer is in memory at a time)."
        },
    )
    offload_folder: Path | None = field(
        default=None,
        metadata={"help": "Folder for what --device_map keeps on disk meanwhile. Default: that of temporary files."},
    )
    resume: bool = field(
        default=False,
        metadata={
            "help": "Keep what the run has found in the output folder until it has ended well, and go on with what an"
            " interrupted run has kept there: the same command again."
        },
    )
    seed: int = field(default=0, metadata={"help": "Of the choice of rows, and of the strategy if it draws anything."})

    @property
    def resume_dir(self) -> Path | None:
        """Where an unfinished run is kept, if it is to be."""
        return self.output_dir / UNFINISHED if self.resume else None


@dataclass(frozen=True)
class RunArguments(PruningArguments):
    """Those of `run`."""

    push_to_hub: str | None = field(default=None, metadata={"help": "Hub repository to upload the result to."})
    format: str = field(
        default="dense",
        metadata={
            "help": "How weights are written: dense, or bitmask (many zeros in little space; reading takes hf_prune)."
        },
    )


@dataclass(frozen=True)
class SweepArguments(PruningArguments):
    """Those of `sweep`."""

    output_dir: Path = field(metadata={"help": "Folder for the curve, its picture and the models that are saved."})
    budget: str = field(
        default="flops",
        metadata={"help": "What the budgets count: flops, params, latency, latency_ms, heads or layers."},
    )
    budgets: str = field(default="0.7,0.5,0.3", metadata={"help": "What to keep, with commas between."})
    save: str | None = field(
        default=None, metadata={"help": "Those of the budgets, with commas between, whose models are saved."}
    )
    save_all: bool = field(default=False, metadata={"help": "Save the model of every budget."})
    measure_latency: bool = field(default=False, metadata={"help": "Time every model beside the dense one."})
    metric: str | None = field(
        default=None,
        metadata={"help": "The metric that sizes are compared by. Default: the first beside the loss, or the loss."},
    )

    def __post_init__(self) -> None:
        if self.save is not None and self.save_all:
            raise PruningError(f"--save {self.save} says nothing beside --save_all; give one of them.")
        unknown = [value for value in self.saved if value not in self.values]
        if unknown:
            raise PruningError(f"--save {self.save}: {unknown[0]:g} is none of --budgets {self.budgets}.")

    @property
    def values(self) -> list[float]:
        """The budgets as numbers."""
        return _fractions(self.budgets, "budgets")

    @property
    def saved(self) -> list[float]:
        """Those whose models are saved."""
        if self.save_all:
            return self.values
        return [] if self.save is None else _fractions(self.save, "save")


def _fractions(text: str, option: str) -> list[float]:
    """The numbers of a list with commas."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise PruningError(f"--{option} {text}: numbers with commas between are needed, as in 0.7,0.5,0.3.") from error
