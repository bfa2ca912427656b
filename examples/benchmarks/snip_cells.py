"""Which trainings the study of SNIP makes, and how."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from cell_arguments import passes
from study_cells import Request, classification_options
from study_runs import Run

DENSE, JOINT, NORMALISED, HEADS, FFNS = "dense", "joint", "joint-normalised", "heads", "feed_forward"


@dataclass(frozen=True)
class Kind:
    """A way to train.

    Attributes:
        title: for tables and pictures.
        units: what is removed, see `SnipPruningConfig`; None where nothing is.
        normalised: with spectral normalisation.
        params: the share of the attention and FFN parameters at which a curve ends.
    """

    title: str
    units: str | None = None
    normalised: bool = False
    params: float = 1.0


# BERT's heads have a third of these parameters (0.3335), its FFNs the rest: half of either is what the curves of one
# kind of unit end at.
KINDS = {
    DENSE: Kind("full fine-tuning"),
    NORMALISED: Kind("heads and FFNs, spectral normalisation", "joint", normalised=True, params=0.25),
    JOINT: Kind("heads and FFNs", "joint", params=0.25),
    HEADS: Kind("heads only, spectral normalisation", "heads", normalised=True, params=0.8333),
    FFNS: Kind("FFNs only, spectral normalisation", "feed_forward", normalised=True, params=0.6668),
}
# The dense model of a task comes first, since curves are compared with it.
TABLES = {"sst2": tuple(KINDS), "mrpc": (DENSE, NORMALISED)}
# What `--only` can name.
FIELDS: dict[str, Collection[Any] | None] = {"task": TABLES, "kind": KINDS, "seed": None}


@dataclass(frozen=True)
class Settings:
    """How all models are trained.

    A curve starts from the model that full fine-tuning has made, `sst2_dense` and `mrpc_dense` steps of it. It is so
    many iterations and, before them, as many steps as each of them has, in which spectral norms come below their bound.
    An iteration that removes FFNs only always removes one, so that these curves take fewer. `rate` is a learning rate,
    `dense_rate` that of full fine-tuning; what is not explained here is the strategy's, see `SnipPruningConfig` (`k`
    for heads, `ffn_k` for FFNs). An FFN of this model is a ninth of the cost, a head a 216th: `most` lets an FFN go
    together with `k` heads that are used less, and `heads_most` lets `k` heads go where nothing else does. The spectral
    norms of its FFNs are 5 to 12 once it is fine-tuned; held below the paper's bound of 5 it loses four points before
    anything is removed.
    """

    sst2_rows: int = 52000
    sst2_dense: int = 1625
    sst2_steps: int = 125
    mrpc_rows: int = 3200
    mrpc_dense: int = 300
    mrpc_steps: int = 100
    batch: int = 32
    schedule: str = "linear"
    rate: float = 1e-4
    dense_rate: float = 5e-5
    iterations: int = 12
    ffn_iterations: int = 3
    gated: float = 0.5
    measured: float = 0.25
    k: int = 3
    ffn_k: int = 1
    theta: float = 0.95
    most: float = 0.13
    heads_most: float = 0.014
    l1: float = 0.01
    layer_rate_decay: float = 0.8
    spectral_bound: float = 8.0

    def rows(self, task: str) -> int:
        """Rows to train on. With as many as all steps together take, no row is seen twice."""
        return self.sst2_rows if task == "sst2" else self.mrpc_rows

    def steps(self, task: str) -> int:
        """Steps of an iteration."""
        return self.sst2_steps if task == "sst2" else self.mrpc_steps

    def dense_steps(self, task: str) -> int:
        """Steps of full fine-tuning."""
        return self.sst2_dense if task == "sst2" else self.mrpc_dense


@dataclass(frozen=True)
class Cell:
    """One training to be measured."""

    task: str
    kind: str
    seed: int
    request: Request[Settings]

    @property
    def name(self) -> str:
        """A readable name for the cache."""
        return f"{self.task}-{self.kind}-{self.request.split}-seed{self.seed}"

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.task} {self.kind} seed {self.seed}"

    @property
    def run(self) -> Run:
        """The training."""
        settings, kind = self.request.settings, KINDS[self.kind]
        stretch = settings.steps(self.task)
        if kind.units is None:
            steps, rate, parent = settings.dense_steps(self.task), settings.dense_rate, None
            strategy: dict[str, Any] = {}
        else:
            iterations = settings.ffn_iterations if kind.units == "feed_forward" else settings.iterations
            steps, rate = stretch * (iterations + 1), settings.rate
            parent = replace(self, kind=DENSE).run
            strategy = _snip_options(settings, kind, iterations)
        options = strategy | classification_options(settings.batch, steps, rate, self.seed)
        options |= {
            # Grouped by length, batches would become shorter for dozens of steps on end, and outputs smaller with them:
            # where ε is estimated and where gates close, other lengths would be seen.
            "train_sampling_strategy": "random",
            "lr_scheduler_type": settings.schedule,
            # A tenth of the whole training would be longer than what comes before the first removal.
            "warmup_steps": stretch // 10,
            "weight_decay": 0.01,
            "adam_epsilon": 1e-6,
            "save_strategy": "steps",
            "save_steps": stretch,
            "save_total_limit": 1,
        }
        files = {"train_file": self.task}
        if parent is None:
            files["model_name_or_path"] = "minilm"
        return Run("text_classification.py", f"{self.task}-{self.kind}", options, files, parent)

    def settings(self) -> dict[str, Any]:
        """Everything that the measured numbers depend on, except for the code."""
        return self.request.measured_settings(self.run)


def _snip_options(settings: Settings, kind: Kind, iterations: int) -> dict[str, Any]:
    """The strategy's."""
    options: dict[str, Any] = {"strategy": "snip", "units": kind.units, "params": kind.params, "iterations": iterations}
    options["k"] = settings.ffn_k if kind.units == "feed_forward" else settings.k
    if kind.units == "joint":
        options["k_feed_forward"] = settings.ffn_k
    options["most"] = settings.heads_most if kind.units == "heads" else settings.most
    same = ("gated", "measured", "theta", "l1", "layer_rate_decay")
    options |= {name: getattr(settings, name) for name in same}
    return options | {"spectral_norm": settings.spectral_bound if kind.normalised else None}


def cells_of(request: Request[Settings], seeds: int, allowed: Mapping[str, Collection[str]]) -> Iterator[Cell]:
    """The cells that pass the filters."""
    for task, kinds in TABLES.items():
        for kind in kinds:
            for seed in range(seeds):
                cell = Cell(task, kind, seed, request)
                if passes(cell, allowed):
                    yield cell
