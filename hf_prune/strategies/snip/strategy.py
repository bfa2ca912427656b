"""SNIP: whole residual mappings are removed while a model is fine-tuned (Lin et al. 2020, section 3.4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from ...anatomy import Block, ModelAnatomy, UndoLog, describe_model, inner_model, parameter_of
from ...anatomy.skip import can_skip, skip_sublayer
from ...budget.targets import keys_left
from ...errors import PruningError
from ...gates import (
    add_epsilon_gates,
    add_spectral_norm,
    check_bare,
    load_spectral_state,
    remove_epsilon_gates,
    remove_spectral_norm,
    spectral_state,
)
from ...processes import average, process_count
from ...scores import smallest_mean, unused
from ..levels import LevelsPruner
from .closing import Gates, to_close
from .config import UNITS, SnipPruningConfig
from .costs import check_goal, check_k, gate_costs, least_gates
from .iterations import Iterations
from .layer_rates import SlowerLayers, layer_factors
from .shrinkage import shrink

_REACHED = 1e-9


class SnipPruner(LevelsPruner):
    """Trains with gates, removes what stays closed, retrains, and begins again.

    What is removed keeps its shapes until training ends, since optimizer and checkpoints depend on them, but it is
    zero, and sublayers of which nothing is left are not computed (but in a training of several processes, where DDP
    wants a gradient for everything).
    """

    def __init__(self, model: Any, config: SnipPruningConfig, steps: int) -> None:
        self.iterations = Iterations(steps, config.iterations, config.gated, config.measured)
        inner = inner_model(model)
        check_bare(inner)
        anatomy = describe_model(inner)
        wanted = wanted_part(anatomy, config)
        super().__init__(model, config, steps, anatomy, with_bias=True)
        self._skipped = UndoLog()
        self._means: list[torch.Tensor] = []
        self._place = self.iterations.place(0)
        try:
            self._set_up(wanted)
        except BaseException:
            self.abandon()
            raise

    def _set_up(self, wanted: ModelAnatomy) -> None:
        model, config = self.inner, self.config
        self._gates = add_epsilon_gates(model, kinds=UNITS[config.units], anatomy=wanted, reduction=config.reduction)
        mappings = self._gates.mappings
        self._k = {mapping.kind: config.k for mapping in mappings}
        if config.k_feed_forward is not None and "feed_forward" in self._k:
            self._k["feed_forward"] = config.k_feed_forward
        self._costs = gate_costs(mappings, self.dense_rows, flops=config.flops is not None)
        check_k(mappings, self._k)
        check_goal(mappings, self._costs, config.goal)
        self._weights = {block.key: _weights(model, block) for mapping in mappings for block in mapping.blocks}
        decay = config.layer_rate_decay
        self._slower = SlowerLayers(model, layer_factors(model, self.anatomy, decay) if decay else {})
        if config.spectral_norm is not None:
            add_spectral_norm(model, bound=config.spectral_norm, form=config.spectral_form)
        self._enter_phase()

    @property
    def _left_to_go(self) -> float:
        """The share of the dense cost that is still to be removed; without a goal everything is."""
        if self.config.goal is None:
            return 1.0
        keyword, value = self.config.goal
        parameters, flops = self.shares
        return max(0.0, (parameters if keyword == "params" else flops) - value)

    @property
    def reached(self) -> bool:
        """Whether the model has the size that was asked for; where a metric decides, whether training has ended."""
        return self.step >= self.steps if self.config.goal is None else not self._is_going

    def begin(self) -> None:
        """Nothing is removed before the first step."""

    def before_step(self) -> None:
        """Remembers the weights of layers that are to learn more slowly."""
        self._slower.before_step()

    def after_step(self) -> None:
        """Slows layers down, shrinks gated weights, and goes on to the next phase when it is time."""
        self._slower.after_step()
        self._shrink()
        self.masks.apply()
        before, self._place = self._place, self.iterations.place(self.step)
        if self._place != before:
            if before.phase == "gated" and self._gates.mode == "gated":
                self._remove_unused()
            self._enter_phase()
        begins = self._place.iteration > before.iteration
        self.level_due = self.step >= self.steps or (begins and not self.curve.ends_with(self.kept))

    def _shrink(self) -> None:
        """The l1 term, on the weights of sublayers that still have gates."""
        if not self.config.l1 or self.followed is None:
            return
        groups = self.followed.param_groups
        rates = {item: float(group["lr"]) for group in groups for item in group["params"] if item.requires_grad}
        for block, mask in zip(self.anatomy.blocks, self.units, strict=True):
            for weight in self._weights.get(block.key, ()) if mask.any() else ():
                shrink(weight, self.config.l1 * rates.get(weight, 0.0) * self._slower.factor(weight))

    def _enter_phase(self) -> None:
        """Lets the gates do what belongs to the phase that training is in."""
        gates = self._gates
        epsilon: dict[Any, float] = {}
        if self._place.phase == "gated" and self._is_going:
            self._means = self._agreed(gates.mean_maxima)
            epsilon = self._epsilon()
        gates.reset()
        if epsilon:
            gates.gate(epsilon)
        else:
            gates.record()
        self._set_gates_working()

    @property
    def _is_going(self) -> bool:
        """Whether something is still to be removed."""
        return self._left_to_go > _REACHED

    def _set_gates_working(self) -> None:
        """Gates cost nothing while they have nothing to do."""
        self._gates.acts = "training" if self._place.phase != "open" and self._is_going else "never"

    def _agreed(self, read: Callable[[], list[torch.Tensor]]) -> list[torch.Tensor]:
        """A statistic over the mini-batches of all processes."""
        average(self._gates.accumulators())
        return read()

    def _epsilon(self) -> dict[Any, float]:
        """Step 1: ε of every kind is its k-th smallest mean activation, or the largest where fewer are left.

        It is empty where nothing was measured, which happens if mixed precision gave up all steps of that phase.
        """
        thresholds = {}
        for kind, k in self._k.items():
            pairs = zip(self._gates.mappings, self._means, strict=True)
            means = [mean for mapping, mean in pairs if mapping.kind == kind]
            left = sum(int((~mean.isnan()).sum()) for mean in means)
            thresholds[kind] = smallest_mean(means, min(k, left)) if left else 0.0
        return thresholds if any(not mean.isnan().all() for mean in self._means) else {}

    def _remove_unused(self) -> None:
        """Steps 3 and 4: what was open too seldom goes."""
        gates, config = self._gates, self.config
        usage, kept, epsilon = self._agreed(gates.usage), gates.kept, gates.epsilon
        flags = unused(usage, config.theta, kept, config.rule)
        known = zip(gates.mappings, flags, usage, self._means, kept, self._costs, strict=True)
        groups = [
            Gates(flag, rate, mean / (epsilon[mapping.kind] or 1.0), on, cost, least_gates(mapping))
            for mapping, flag, rate, mean, on, cost in known
        ]
        closed = to_close(groups, most=config.most, wanted=self._left_to_go)
        gates.close([~mask for mask in closed])
        self._follow_gates()

    def _follow_gates(self) -> None:
        """Takes the units off whose gates are closed for good."""
        units = {block.key: mask.clone() for block, mask in zip(self.anatomy.blocks, self.units, strict=True)}
        for mapping, kept in zip(self._gates.mappings, self._gates.kept, strict=True):
            for block in mapping.blocks:
                units[block.key] &= kept
        self.put([units[block.key] for block in self.anatomy.blocks])
        self._skip_empty()

    def _skip_empty(self) -> None:
        """Sublayers of which nothing is left are not computed from now on."""
        if process_count() > 1:
            return
        self._skipped.roll_back()
        self._skipped = UndoLog()
        for block, mask in zip(self.anatomy.blocks, self.units, strict=True):
            if not mask.any() and can_skip(block):
                skip_sublayer(self.inner.get_submodule(block.layer), block, self._skipped)

    def logs(self) -> dict[str, float]:
        """The shares of parameters, FLOPs and units that are on, the iteration, and ε while there are gates."""
        epsilon = {f"epsilon_{kind}": value for kind, value in self._gates.epsilon.items()}
        return {"params": self.shares[0], **super().logs(), "iteration": float(self._place.iteration), **epsilon}

    @property
    def level_details(self) -> dict[str, Any]:
        """The iterations behind it."""
        return {"iterations": self.iterations.ended(self.step)}

    def take_off(self) -> None:
        """Takes the gates off, and folds spectral normalisation into the weights."""
        self._skipped.roll_back()
        self._gates.remove()
        remove_spectral_norm(self.inner, fold=True)

    def abandon(self, *, restore: bool = True) -> None:
        """What was off is on again, and the weights are the raw ones."""
        self._skipped.roll_back()
        remove_epsilon_gates(self.inner)
        super().abandon(restore=restore)
        remove_spectral_norm(self.inner, fold=False)

    def state(self) -> dict[str, torch.Tensor]:
        """Masks and curve, gates with their statistics, means of the activations, and raw weights."""
        own = {f"gates.{name}": value for name, value in self._gates.state().items()}
        own |= {f"mean.{number}": mean for number, mean in enumerate(self._means)}
        return super().state() | own | spectral_state(self.inner)

    def load_state(self, tensors: Mapping[str, torch.Tensor], step: int) -> None:
        """Goes on where `state` was taken."""
        means = _under("mean.", tensors)
        sizes = {str(number): (mapping.gates,) for number, mapping in enumerate(self._gates.mappings)}
        if means and {number: tuple(mean.shape) for number, mean in means.items()} != sizes:
            raise PruningError(f"The stored mean activations do not fit the model's {len(sizes)} mappings.")
        load_spectral_state(self.inner, tensors)
        super().load_state(tensors, step)
        self._gates.load_state(_under("gates.", tensors))
        self._means = [means[number] for number in sizes] if means else []
        self._place = self.iterations.place(step)
        self._set_gates_working()
        self._skip_empty()


def _under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def wanted_part(anatomy: ModelAnatomy, config: SnipPruningConfig) -> ModelAnatomy:
    """The part of the model that may be pruned.

    Raises:
        PruningError: whole layers are to be pruned, and a layer is in it in part.
    """
    left = keys_left(anatomy, config)
    blocks = tuple(block for block in anatomy.blocks if block.key in left)
    for block in anatomy.blocks if config.units == "layers" else ():
        if block not in blocks and any(other.layer == block.layer for other in blocks):
            raise PruningError(
                f"units='layers' removes a layer as a whole, but target_modules and exclude_modules leave {block.key}"
                " out. Name all blocks of a layer, with a regular expression for instance: '.*layer[.][0-5][.].*'."
            )
    return replace(anatomy, blocks=blocks)


def _weights(model: Any, block: Block) -> list[torch.Tensor]:
    """The parameters of a sublayer's projections, each once."""
    layer = model.get_submodule(block.layer)
    found = [parameter_of(layer, projection) for projection in block.projections]
    return list({id(weight): weight for weight in found}.values())
