"""L0 regularisation: hard-concrete gates on heads and filters learn beside the weights which of them go."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from ...anatomy import Block, describe_model, inner_model
from ...budget import flops_per_unit, select_heads, select_units
from ...budget.targets import in_wanted_units, wanted_keys
from ...errors import PruningError
from ...gates import UnitGates, fold_in_state_dict, open_probability
from ...report.report import BlockReport
from ...report.result import PruningResult
from ...scores import LearntGates, cubic_sparsity
from ..masked_units import MaskedUnitsPruner, over_columns, stored_masks
from ..training import first_and_last_step
from .config import L0PruningConfig


class L0Pruner(MaskedUnitsPruner):
    """Gates that learn until the units that go are chosen; from then on these are off.

    While gates learn, the weights in the model are those that are trained, and its state dict has them multiplied with
    the gates as they are without noise, which is also how the model computes in evaluation. So a checkpoint is an
    ordinary one, with columns of zeros where gates are closed.

    Attributes:
        gates: what learns.
        chosen: whether the units that go have been chosen.
    """

    def __init__(self, model: Any, config: L0PruningConfig, steps: int) -> None:
        self._start, self._end = first_and_last_step(config, steps)
        if self._start >= self._end:
            raise PruningError(
                f"begin={config.begin} and end={config.end} leave no steps of {steps} in which gates could learn."
            )
        keyword, value = config.budget
        if keyword not in ("flops", "params", "heads"):
            raise PruningError(
                f"{keyword}={value} is measured on a model at rest: while it is trained use flops=, params= or heads=."
            )
        super().__init__(model, config, steps, in_wanted_units(describe_model(inner_model(model)), config))
        self.chosen = self._learning = False
        self._unit_gates: UnitGates | None = None
        self._foldings: list[RemovableHandle] = []
        self._drawing: list[RemovableHandle] = []
        try:
            self.gates = self._new_gates()
            self._best_units()  # a budget out of reach shows before training begins
        except BaseException:
            self.masks.remove()
            raise

    def _new_gates(self) -> LearntGates:
        config = self.config
        wanted = wanted_keys(self.anatomy, config)
        only_heads = config.heads is not None
        candidates = self.anatomy.attentions if only_heads else self.anatomy.blocks
        self._gated = [block for block in candidates if block.key in wanted]
        counted = self._gated if only_heads else self.anatomy.blocks
        total = sum(block.units * self._price(block) for block in counted) or 1
        prices = [self._price(block) / total for block in self._gated]
        gated = sum(block.units * price for block, price in zip(self._gated, prices, strict=True))
        return LearntGates(
            self._gated,
            prices,
            1 - gated,
            self.inner.device,
            learning_rate=config.gate_learning_rate,
            temperature=config.gate_temperature,
            factor=config.regularization,
        )

    def _price(self, block: Block) -> int:
        """What a unit costs, in what the budget counts."""
        if self.config.heads is not None:
            return 1
        return block.parameters_per_unit if self.config.params is not None else flops_per_unit(block, self.lengths)

    def begin(self) -> None:
        """Puts the gates on."""
        self._open()

    def after_step(self) -> None:
        """Lets the gates learn, or keeps the units off that have been chosen."""
        if self.chosen:
            self.masks.apply()
            return
        if self._learning:
            self.gates.learn(self._target())
        self._learning = self.step >= self._start
        if self.step >= self._end:
            self._choose()

    def _target(self) -> float:
        """The cost that the gates are to come to by now."""
        warm = self._start + self.config.target_warmup * (self._end - self._start)
        return cubic_sparsity(self.step, self._start, warm, 1.0, self.config.budget[1], power=1)

    def take_scaler(self, scaler: Any) -> None:
        """For the gates' gradients."""
        self.gates.scaler = scaler

    def _open(self) -> None:
        self._learning = self.step >= self._start
        values = [partial(self._value, index) for index in range(len(self._gated))]
        self._unit_gates = UnitGates(self.inner, self._gated, values)
        # Some heads call their base model, others its parts; in a loop of one's own either may be called.
        roots = dict.fromkeys((self.inner, self.inner.base_model))
        self._drawing = [root.register_forward_pre_hook(self._draw) for root in roots]
        matrices = [matrix for _, matrix in self.projections]
        self._foldings = fold_in_state_dict(self.inner, matrices, lambda index: self._factors(index, self._scales()))

    def _close(self) -> None:
        for handle in (*self._foldings, *self._drawing):
            handle.remove()
        if self._unit_gates is not None:
            self._unit_gates.remove()
        self._foldings, self._drawing, self._unit_gates, self._learning = [], [], None, False

    def _draw(self, *unused: Any) -> None:
        if self._learning and self.inner.training:
            self.gates.draw()

    def _value(self, index: int) -> torch.Tensor:
        """The gates of a block for one pass: ones before they learn, and for a compiled model that still has them."""
        if not self._learning:
            return torch.ones(self._gated[index].units, device=self.inner.device)
        return self.gates.sample(index) if self.inner.training else self.gates.settled(index)

    def _scales(self) -> dict[str, torch.Tensor]:
        """What every block's units are multiplied with where there is no noise, by block key."""
        scales = {block.key: torch.ones(block.units, device=self.inner.device) for block in self.anatomy.blocks}
        return scales | {block.key: self.gates.settled(index) for index, block in enumerate(self._gated)}

    def _factors(self, index: int, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Values of units, over the columns of output projection number `index`."""
        members, matrix = self.projections[index]
        return over_columns(matrix.parameter, members, values)

    def _choose(self) -> None:
        """Takes the units that go off, and makes the gates of the others a part of the weights."""
        units, scales = self._best_units(), self._scales()
        self._close()
        kept = {
            block.key: scales[block.key].masked_fill(~mask.to(self.inner.device), 1.0)
            for block, mask in zip(self.anatomy.blocks, units, strict=True)
        }
        with torch.no_grad():
            for index, (_, matrix) in enumerate(self.projections):
                matrix.parameter.mul_(self._factors(index, kept).to(matrix.parameter))
        self.put(units)
        self.chosen = True

    def _best_units(self) -> list[torch.Tensor]:
        """The units whose gates are most likely open, as many as the budget allows."""
        alphas = {block.key: alpha.detach() for block, alpha in zip(self._gated, self.gates.log_alphas, strict=True)}
        if self.config.heads is not None:
            selection = select_heads(self.anatomy, alphas, self.config, per_layer=False)
        else:
            # Probabilities times prices: then the search, which weighs a score against its price, goes by probability.
            scores = {block.key: torch.zeros(block.units, dtype=torch.float64) for block in self.anatomy.blocks}
            for block in self._gated:
                open_ = open_probability(alphas[block.key].double(), temperature=self.config.gate_temperature)
                scores[block.key] = self._price(block) * open_.cpu()
            selection = select_units(self.inner, self.anatomy, scores, self.config, self.data, self.lengths)
        return [selection.masks[block.key] for block in self.anatomy.blocks]

    @property
    def reached(self) -> bool:
        """Whether the units that go have been chosen."""
        return self.chosen

    @property
    def rows(self) -> list[BlockReport]:
        """What is on now: until units are chosen, those whose gates without noise are not closed."""
        if self.chosen:
            return super().rows
        scales = self._scales()
        return self.rows_of([(scales[block.key] > 0).cpu() for block in self.anatomy.blocks])

    def logs(self) -> dict[str, float]:
        """The share of FLOPs and of units that are on; while gates learn, what they cost and what they are to cost."""
        if self.chosen:
            return super().logs()
        target = {"target_cost": self._target()} if self.config.regularization is None else {}
        return super().logs() | {"expected_cost": self.gates.cost()} | target

    def state(self) -> dict[str, torch.Tensor]:
        """Which units are on and the columns of those that are off; or the gates, and the columns that they change."""
        if self.chosen:
            return super().state() | {"chosen": torch.tensor(True)}
        whole = {key: scale == 1 for key, scale in self._scales().items()}
        tensors = {f"{key}.whole": mask.cpu() for key, mask in whole.items()}
        for index, (_, matrix) in enumerate(self.projections):
            tensors[f"{matrix.name}.raw"] = matrix.parameter.detach()[~self._factors(index, whole)].cpu()
        return super().state() | self.gates.state() | tensors

    def load_state(self, tensors: Mapping[str, torch.Tensor], step: int) -> None:
        """Goes on where `state` was taken."""
        self._close()
        super().load_state(tensors, step)
        self.chosen = "chosen" in tensors
        if self.chosen:
            return
        self._load_raw(tensors)
        self.gates.load_state(tensors)
        self._open()

    @torch.no_grad()
    def _load_raw(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Puts columns that the checkpoint has multiplied with gates back as they were."""
        blocks = self.anatomy.blocks
        whole = dict(zip([block.key for block in blocks], stored_masks(blocks, tensors, "whole"), strict=True))
        for index, (_, matrix) in enumerate(self.projections):
            changed = ~self._factors(index, whole)
            raw = tensors.get(f"{matrix.name}.raw")
            if raw is None or raw.shape != (int(changed.sum()),):
                raise PruningError(f"{matrix.name}: the stored weights do not fit {int(changed.sum())} gated ones.")
            matrix.parameter[changed] = raw.to(matrix.parameter)

    def finish(self) -> PruningResult:
        """A smaller model; where training ended early, with the units that are chosen now."""
        if not self.chosen:
            self._choose()
        return super().finish()

    def abandon(self, *, restore: bool = True) -> None:
        """Takes the gates off; the units that were off are on again."""
        self._close()
        super().abandon(restore=restore)
