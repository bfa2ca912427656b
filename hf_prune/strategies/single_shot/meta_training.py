"""Meta-training: the pruner learns on many small samples of several data sets (Zhang et al. 2020, section 3.3)."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel
from transformers.utils.logging import tqdm

from ...anatomy import describe_model
from ...errors import PruningError
from ...processes import (
    average,
    fail_together,
    process_count,
    process_rank,
    take_from_first,
    told_by_first,
    wait_for_all,
)
from ...rows import Collator
from ...scores import frozen, moments_of, put_moments, stored_moments
from .episode_loss import EpisodeLoss
from .episodes import EpisodeBatches, Episodes, seeded
from .meta_arguments import MetaTrainingArguments
from .meta_checkpoint import MetaTrainingState, load_state, save_state, settings_of
from .meta_pruner import MetaPruner, MetaPrunerConfig

HISTORY_FILE = "meta_training.json"

logger = logging.getLogger(__name__)


def train_meta_pruner(
    model: PreTrainedModel,
    datasets: Mapping[str, Sequence[Dataset]],
    arguments: MetaTrainingArguments,
    *,
    pruner: MetaPruner | None = None,
    data_collator: Collator | None = None,
    accelerator: Accelerator | None = None,
    resume: bool = False,
) -> MetaPruner:
    """Trains a meta-pruner on a pre-trained model, whose weights stay as they are; no labels are needed.

    Each episode samples texts of one data set, draws the heads to keep by the pruner's scores, and moves the scores so
    that the distances between the texts change less than before. The pruner with the lowest validation loss is kept.

    Args:
        model: a pre-trained encoder; of a model with a task head the encoder is used.
        datasets: tokenised rows by type of input: `{"single": [...], "pair": [...]}`. A tenth of each is held out for
            validation.
        arguments: settings. With `output_dir`, the best pruner is written there, the losses (`meta_training.json`), and
            at each validation what `resume` needs.
        pruner: the pruner to train, in place; by default a new one with the paper's sizes.
        data_collator: makes a batch of a list of rows; by default rows are padded.
        accelerator: its processes share the episodes of an update out, and average their gradients; by default those
            of torch's process group, if there is one. All begin with the first one's pruner.
        resume: go on with the interrupted run in `output_dir`, if there is one, exactly as if nothing had happened. A
            finished one goes on, too, if it is given more episodes.

    Returns:
        The pruner, on the model's device and in evaluation mode.

    Raises:
        PruningError: data or settings that do not fit, a model whose attention cannot be shown, or a loss that is not
            finite.
    """
    encoder = model.base_model
    blocks = [block for block in describe_model(encoder).attentions if block.units and block.unit != "sublayer"]
    if not blocks:
        raise PruningError(f"{type(model).__name__} has no attention heads that can be told apart, so none to score.")
    if resume and arguments.output_dir is None:
        raise PruningError("resume=True needs output_dir, where the interrupted run is.")
    episodes = Episodes(
        datasets,
        examples=arguments.episode_examples,
        validation_share=arguments.validation_share,
        size_exponent=arguments.size_exponent,
        seed=arguments.seed,
    )
    pruner = (_new_pruner(arguments.seed) if pruner is None else pruner).to(encoder.device)
    loss = EpisodeLoss(encoder, blocks, pruner, EpisodeBatches(encoder, data_collator), arguments)
    training = MetaTraining(pruner, loss, episodes, arguments, accelerator)
    if resume:
        training.resume()
    with frozen(encoder):
        training.run()
    return pruner


class MetaTraining:
    """The loop of a meta-training.

    Args:
        pruner: what is trained.
        loss: of an episode.
        episodes: which there are.
        arguments: settings.
        accelerator: its processes share the episodes of an update out.

    Raises:
        PruningError: the episodes of an update cannot be shared out evenly.
    """

    def __init__(
        self,
        pruner: MetaPruner,
        loss: EpisodeLoss,
        episodes: Episodes,
        arguments: MetaTrainingArguments,
        accelerator: Accelerator | None = None,
    ) -> None:
        self._pruner, self._loss, self._episodes, self._arguments = pruner, loss, episodes, arguments
        self._processes = process_count() if accelerator is None else accelerator.num_processes
        self._rank = process_rank() if accelerator is None else accelerator.process_index
        if arguments.episodes_per_update % self._processes:
            raise PruningError(
                f"episodes_per_update={arguments.episodes_per_update} must be a multiple of the {self._processes}"
                " processes, which share them out."
            )
        self._optimizer = _optimizer(pruner, arguments)
        self._folder = None if arguments.output_dir is None else Path(arguments.output_dir)
        rows = [len(corpus.training) for corpus in episodes.corpora]
        self._settings = settings_of(arguments, pruner, rows)
        self._state = MetaTrainingState()
        self._losses: list[torch.Tensor] = []

    def resume(self) -> None:
        """Takes up the state of the run in `output_dir`, if there is one."""
        found = None if self._folder is None else load_state(self._folder, self._settings)
        if found is None:
            return
        self._state = found
        self._pruner.load_state_dict(found.part("pruner"))
        for name, parameter in self._pruner.named_parameters():
            put_moments(self._optimizer, parameter, stored_moments(found.tensors, f"optimizer.{name}"))

    def run(self) -> None:
        """Trains to the end; the pruner then is the best one of all validations."""
        state, arguments = self._state, self._arguments
        self._begin_alike()
        if not state.history:
            self.validate()
        bar = tqdm(
            total=arguments.updates, initial=state.update, desc="Meta-training", unit="update", disable=self._rank > 0
        )
        with bar:
            while state.update < arguments.updates:
                self.learn()
                if state.update % arguments.eval_updates == 0 or state.update == arguments.updates:
                    self.validate()
                bar.update()
                bar.set_postfix(best=f"{state.best_loss:.4g}")
        self._pruner.load_state_dict(state.part("best"))
        self._pruner.eval()
        self._finish()

    def _begin_alike(self) -> None:
        """Gives every process the first one's pruner.

        Raises:
            PruningError: not every process has found the interrupted run, or the same one.
        """
        own, first = self._state.history, told_by_first(self._state.history)
        fail_together(lambda: self._check_history(own, first))
        take_from_first(self._pruner.state_dict().values())

    def _check_history(self, own: Sequence[Mapping[str, float]], first: Sequence[Mapping[str, float]]) -> None:
        if own != first:
            raise PruningError(
                f"The first process goes on after {_updates(first)} updates, process {self._rank} after"
                f" {_updates(own)}: every process must see the same {self._folder}."
            )

    def learn(self) -> None:
        """One step of the optimizer, on the episodes of this process; gradients are averaged over all."""
        self._pruner.train()
        fail_together(self._add_gradients)
        parameters = list(self._pruner.parameters())
        average(parameter.grad for parameter in parameters if parameter.grad is not None)
        nn.utils.clip_grad_norm_(parameters, self._arguments.max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._state.update += 1

    def _add_gradients(self) -> None:
        """Adds up the gradients of this process's episodes."""
        per_update = self._arguments.episodes_per_update
        first = self._state.update * per_update
        for number in range(first + self._rank, first + per_update, self._processes):
            episode = self._episodes.training(number)
            loss = self._loss.drawn(episode, seeded(self._arguments.seed, number))
            if not torch.isfinite(loss):
                raise PruningError(
                    f"The loss of episode {number} ({episode.input_type!r}) is {loss.item()}. Look for overflow in half"
                    " precision, or try a lower learning_rate."
                )
            (loss * (self._processes / per_update)).backward()
            self._losses.append(loss.detach())

    def validate(self) -> None:
        """Measures the validation loss, keeps the best pruner, and writes what going on takes."""
        state = self._state
        # Running statistics are each process's own until here.
        average(buffer for buffer in self._pruner.buffers() if buffer.is_floating_point())
        self._pruner.eval()
        parts = torch.zeros(2, dtype=torch.float64)
        parts[0] = fail_together(self._validation_loss)
        if self._losses:
            parts[1] = torch.stack(self._losses).mean().item()
        parts = parts.to(self._pruner.device)
        average([parts])
        entry = {"update": state.update, "validation_loss": parts[0].item()}
        if self._losses:
            entry["training_loss"] = parts[1].item()
        self._losses.clear()
        state.history.append(entry)
        logger.info("%s", entry)
        current = {name: value.detach().cpu().clone() for name, value in self._pruner.state_dict().items()}
        state.tensors = {name: value for name, value in state.tensors.items() if name.startswith("best.")}
        if entry["validation_loss"] < state.best_loss or not state.tensors:
            state.best_loss = entry["validation_loss"]
            state.tensors = {f"best.{name}": value for name, value in current.items()}
        state.tensors |= {f"pruner.{name}": value for name, value in current.items()} | self._moments()
        if self._folder is not None and self._rank == 0:
            save_state(self._folder, state, self._settings)
        wait_for_all()

    def _validation_loss(self) -> float:
        """The part that this process's episodes have in the validation loss, times the number of processes."""
        count, total = self._arguments.validation_episodes, 0.0
        for number in range(self._rank, count, self._processes):
            loss = self._loss.exact(self._episodes.validation(number)).item()
            if not math.isfinite(loss):
                raise PruningError(
                    f"The loss of validation episode {number} is {loss}: no pruner could be told to be the best. Look"
                    " for overflow in half precision."
                )
            total += loss * self._processes / count
        return total

    def _moments(self) -> dict[str, torch.Tensor]:
        tensors: dict[str, torch.Tensor] = {}
        for name, parameter in self._pruner.named_parameters():
            tensors |= moments_of(self._optimizer, parameter, f"optimizer.{name}")
        return tensors

    def _finish(self) -> None:
        """Writes the best pruner and the losses."""
        if self._folder is not None and self._rank == 0:
            self._pruner.save_pretrained(self._folder)
            history = json.dumps(self._state.history, indent=2) + "\n"
            (self._folder / HISTORY_FILE).write_text(history, encoding="utf8")
        wait_for_all()


def _new_pruner(seed: int) -> MetaPruner:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return MetaPruner(MetaPrunerConfig())


def _updates(history: Sequence[Mapping[str, float]]) -> int:
    return int(history[-1]["update"]) if history else 0


def _optimizer(pruner: MetaPruner, arguments: MetaTrainingArguments) -> torch.optim.Optimizer:
    if arguments.optimizer == "sgd":
        return torch.optim.SGD(pruner.parameters(), lr=arguments.learning_rate)
    return torch.optim.AdamW(pruner.parameters(), lr=arguments.learning_rate, weight_decay=0.0)
