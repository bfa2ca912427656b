"""ε-gates on the residual mappings of a model (Lin et al. 2020): measured first, and closed below a threshold."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from ..anatomy import ModelAnatomy, describe_model
from ..errors import PruningError
from .epsilon import Reduction, check_epsilon, check_reduction
from .mapping_gates import GATES, GateSettings
from .matrix_masks import check_shapes
from .positions import watch_positions
from .residual_mappings import MappingKind, ResidualMapping, residual_mappings

_SLOT = "_epsilon_gates"


class EpsilonGates:
    """Gates on residual mappings, until `remove()` is called.

    In mode "open" they let everything pass and max|F| of every mapping is measured. In mode "gated" a mapping whose
    max|F| is at most ε is zero, in training and in evaluation, and it is counted how often that is not so.

    A mini-batch is one forward pass of the model. Measured and counted are those in training mode; what gradient
    checkpointing recomputes in the backward pass belongs to the forward pass before it. Reading a statistic, resetting
    and changing the mode end the mini-batch under way, so they go after the backward pass. Padding does not count, as
    far as the model's `attention_mask` (in a decoder that has an encoder: `decoder_attention_mask`) tells it.

    With several processes each decides about its own share of a mini-batch. To know the same, they average the
    `accumulators` before they read.

    Attributes:
        mappings: where the gates are; lists have one tensor for each.
        counts_evaluation: whether forward passes in evaluation mode are measured and counted as well.
        acts: when gates do anything at all: "always", "training" (not in evaluation) or "never".
    """

    def __init__(
        self, model: PreTrainedModel, mappings: Sequence[ResidualMapping], reduction: Reduction = "batch"
    ) -> None:
        check_reduction(reduction)
        self.mappings = tuple(mappings)
        self.counts_evaluation = False
        self.acts: Literal["always", "training", "never"] = "always"
        self._settings = GateSettings(reduction)
        self._model = model
        positions, self._handles = watch_positions(model, [item.blocks[0].stack for item in self.mappings])
        self._gates = [
            GATES[item.kind](item, positions[item.blocks[0].stack], self._settings) for item in self.mappings
        ]
        self._handles += [gate.place(model) for gate in self._gates]
        self._handles.append(model.register_forward_pre_hook(self._begin_batch))

    @property
    def mode(self) -> Literal["open", "gated"]:
        """Whether gates are only measured, or act."""
        return "gated" if self._settings.epsilon else "open"

    @property
    def epsilon(self) -> dict[MappingKind, float]:
        """The threshold of each kind of mapping; empty in mode "open"."""
        return dict(self._settings.epsilon)

    def record(self) -> None:
        """Mode "open": gates let everything pass, and the maxima are measured."""
        self._end_batch()
        self._settings.epsilon = {}

    def gate(self, epsilon: float | Mapping[MappingKind, float]) -> None:
        """Mode "gated": gates act, and their usage is counted.

        Args:
            epsilon: the threshold, one for all or one for each kind of mapping.

        Raises:
            PruningError: a threshold is missing, negative or not finite, or there is no such kind.
        """
        kinds = list(dict.fromkeys(mapping.kind for mapping in self.mappings))
        given = dict(epsilon) if isinstance(epsilon, Mapping) else dict.fromkeys(kinds, epsilon)
        if set(given) != set(kinds):
            raise PruningError(
                f"epsilon is given for {', '.join(given) or 'nothing'}, and the gates are on {', '.join(kinds)}."
            )
        checked = {kind: check_epsilon(value, f"epsilon of {kind}") for kind, value in given.items()}
        self._end_batch()
        self._settings.epsilon = checked

    @property
    def kept(self) -> list[torch.Tensor]:
        """Which gates are not closed for good, bool `[gates]` on the CPU; change them with `close`."""
        return [gate.kept.clone() for gate in self._gates]

    def close(self, masks: Sequence[torch.Tensor]) -> None:
        """Closes gates for good: they are not measured, counted or multiplied any more.

        What they were on is the caller's to remove, or to keep at zero. What has been closed before stays closed.

        Args:
            masks: one bool tensor `[gates]` per mapping, False for what is closed.

        Raises:
            PruningError: their number, a shape or a type does not fit.
        """
        self._check_masks(masks)
        for gate, mask in zip(self._gates, masks, strict=True):
            gate.kept = gate.kept & mask.cpu()

    def batch_maxima(self) -> list[torch.Tensor]:
        """max|F| in the mini-batch under way, `[1 or examples, gates]`; without rows where it was not measured."""
        batches = [(gate.maxima.batch, gate.mapping) for gate in self._gates]
        return [torch.empty(0, item.gates) if batch is None else batch for batch, item in batches]

    def mean_maxima(self) -> list[torch.Tensor]:
        """The mean of max|F| over the mini-batches, float64 `[gates]`; NaN if never measured or closed for good."""
        self._end_batch()
        return [gate.maxima.mean().where(gate.kept, torch.nan) for gate in self._gates]

    def usage(self) -> list[torch.Tensor]:
        """The share of mini-batches with an open gate, float64 `[gates]`; NaN if never counted or closed for good."""
        self._end_batch()
        return [gate.opened.mean().where(gate.kept, torch.nan) for gate in self._gates]

    def reset(self) -> None:
        """Forgets what was measured and counted."""
        self._end_batch()
        for gate in self._gates:
            gate.maxima.reset()
            gate.opened.reset()

    def accumulators(self) -> list[torch.Tensor]:
        """The sums and numbers behind the statistics, to be averaged over all processes in place (`average`)."""
        self._end_batch()
        tallies = [tally for gate in self._gates for tally in (gate.maxima, gate.opened)]
        for tally in tallies:
            tally.to(self._model.device)
        return [tensor for tally in tallies for tensor in (tally.total, tally.count)]

    def state(self) -> dict[str, torch.Tensor]:
        """Thresholds, closed gates and statistics, on the CPU."""
        self._end_batch()
        tensors = {f"epsilon.{kind}": torch.tensor(value, dtype=torch.float64) for kind, value in self.epsilon.items()}
        for gate in self._gates:
            name = gate.mapping.name
            tensors |= {f"{name}.kept": gate.kept.clone()}
            tensors |= gate.maxima.state(f"{name}.maxima") | gate.opened.state(f"{name}.opened")
        return tensors

    def load_state(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """The inverse of `state`.

        Raises:
            PruningError: tensors do not fit the gates.
        """
        epsilon: Any = {
            name.removeprefix("epsilon."): float(value)
            for name, value in tensors.items()
            if name.startswith("epsilon.")
        }
        missing = torch.empty(0)
        masks = [tensors.get(f"{mapping.name}.kept", missing) for mapping in self.mappings]
        self._check_masks(masks)
        for gate in self._gates:
            gate.maxima.check_state(tensors, f"{gate.mapping.name}.maxima")
            gate.opened.check_state(tensors, f"{gate.mapping.name}.opened")
        if epsilon:
            self.gate(epsilon)
        else:
            self.record()
        for gate, mask in zip(self._gates, masks, strict=True):
            gate.kept = mask.cpu().clone()
            gate.maxima.load_state(tensors, f"{gate.mapping.name}.maxima")
            gate.opened.load_state(tensors, f"{gate.mapping.name}.opened")

    def _check_masks(self, masks: Sequence[torch.Tensor]) -> None:
        check_shapes(masks, [(mapping.name, (mapping.gates,)) for mapping in self.mappings], "mappings")

    def remove(self) -> None:
        """Takes the gates off again; what was measured and counted can still be read."""
        self._end_batch()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._model.__dict__.get(_SLOT) is self:
            del self._model.__dict__[_SLOT]

    def __enter__(self) -> EpsilonGates:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.remove()

    def _begin_batch(self, module: PreTrainedModel, args: tuple[Any, ...]) -> None:
        self._end_batch()
        acting = self.acts == "always" or (self.acts == "training" and module.training)
        self._settings.acting = acting
        self._settings.counting = acting and (module.training or self.counts_evaluation)

    def _end_batch(self) -> None:
        self._settings.counting = False
        for gate in self._gates:
            gate.maxima.end_batch()
            gate.opened.end_batch()


def add_epsilon_gates(
    model: PreTrainedModel,
    epsilon: float | Mapping[MappingKind, float] | None = None,
    *,
    kinds: Collection[MappingKind] = ("heads", "feed_forward"),
    reduction: Reduction = "batch",
    anatomy: ModelAnatomy | None = None,
) -> EpsilonGates:
    """Puts ε-gates on the residual mappings of a model.

    Args:
        model: a supported model.
        epsilon: the threshold, one for all or one for each kind; None to measure only.
        kinds: which mappings, see `residual_mappings`.
        reduction: see `epsilon_gate`.
        anatomy: from `describe_model(model)`, or the part of it that gates go on; all by default.

    Returns:
        The gates; a context manager that removes them at its end.

    Raises:
        PruningError: the model has ε-gates already, or an argument is not what it may be.
        UnsupportedModelError: feed-forward mappings of a mixture of experts.
    """
    if _SLOT in model.__dict__:
        raise PruningError(f"{type(model).__name__} already has epsilon gates. Remove them first.")
    gates = EpsilonGates(model, residual_mappings(anatomy or describe_model(model), kinds), reduction)
    try:
        if epsilon is not None:
            gates.gate(epsilon)
    except PruningError:
        gates.remove()
        raise
    model.__dict__[_SLOT] = gates
    return gates


def remove_epsilon_gates(model: PreTrainedModel) -> None:
    """Takes the ε-gates off, if there are any."""
    gates = epsilon_gates_of(model)
    if gates is not None:
        gates.remove()


def epsilon_gates_of(model: PreTrainedModel) -> EpsilonGates | None:
    """The ε-gates that `add_epsilon_gates` put on a model and that are still there."""
    return model.__dict__.get(_SLOT)
