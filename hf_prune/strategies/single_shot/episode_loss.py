"""What one episode costs: the dense and the pruned stream of the same frozen model, and how far they are apart."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from ...anatomy import Block
from ...budget import keep_heads
from ...calibration import Batch, valid_tokens
from ...errors import PruningError
from ...gates import UnitGates
from .attention_maps import each_attention_map
from .distribution_loss import SINGLE_WEIGHT, authors_divergence, draw_dimensions, paper_divergence
from .episodes import Episode, EpisodeBatches
from .gumbel import choose_top, gumbel_noise
from .head_scores import ScoreSums
from .meta_arguments import MetaTrainingArguments
from .meta_pruner import MetaPruner


class EpisodeLoss:
    """The loss of an episode: how pruning by the meta-pruner's scores changes the distances between its texts.

    Args:
        model: the model that is looked at; its weights are frozen already.
        blocks: the attention blocks whose units are chosen.
        pruner: what is trained; the loss has a gradient with respect to its weights only.
        batches: makes batches of episodes.
        arguments: settings.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        blocks: Sequence[Block],
        pruner: MetaPruner,
        batches: EpisodeBatches,
        arguments: MetaTrainingArguments,
    ) -> None:
        self._model, self._blocks, self._pruner = model, tuple(blocks), pruner
        self._batches, self._arguments = batches, arguments
        self._keep = [int(mask.sum()) for mask in self._highest([torch.zeros(block.units) for block in self._blocks])]

    def drawn(self, episode: Episode, generator: torch.Generator) -> torch.Tensor:
        """The loss with heads drawn by Gumbel top-k, differentiable.

        Args:
            episode: the sample.
            generator: draws the noise, and the layers that are pruned.
        """
        batch = self._batches.whole(episode)
        scores = self.scores(episode)
        pruned = self._pruned_layers(generator)
        masks = []
        for place, (score, keep) in enumerate(zip(scores, self._keep, strict=True)):
            noise = gumbel_noise(score.shape, generator).to(score)
            logits = self._arguments.score_scale * score + noise
            chosen = choose_top(logits, keep, self._arguments.temperature)
            masks.append(chosen if place in pruned else torch.ones_like(score))
        return self._divergence(episode, batch, masks, generator)

    @torch.no_grad()
    def exact(self, episode: Episode) -> torch.Tensor:
        """The loss with the highest scores in every layer, as the pruner is used."""
        batch = self._batches.whole(episode)
        scores = self.scores(episode)
        masks = [mask.to(score) for mask, score in zip(self._highest(scores), scores, strict=True)]
        return self._divergence(episode, batch, masks, None)

    def scores(self, episode: Episode) -> list[torch.Tensor]:
        """The mean score of every unit over the episode's scored texts, one tensor per block.

        With several parts of `scored_at_once` texts, the network's activations on a part are made again for its
        gradient, and so are the maps: nothing but sums is kept of it.
        """
        settings = self._arguments
        parts = list(self._batches.parts(episode, settings.scored_examples, settings.scored_at_once))
        if len(parts) == 1 or not torch.is_grad_enabled():
            found = [self._sums(part, episode.input_type) for part in parts]
        else:
            # Batch normalisation takes note of a part twice then, so its running statistics follow a little faster.
            found = [checkpoint(self._sums, part, episode.input_type, use_reentrant=False) for part in parts]
        sums = [torch.stack(of_block).sum(dim=0) for of_block in zip(*(sums for sums, _ in found), strict=True)]
        counts = torch.stack([count for _, count in found]).sum(dim=0)
        return [total / count for total, count in zip(sums, counts, strict=True)]

    def _sums(self, batch: Batch, input_type: str) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Sums of scores per block over some texts, and how many maps they are of.

        The maps of all layers go through the network together: a batch norm that saw one layer at a time would learn
        other statistics than it is used with.
        """
        seen: list[tuple[Block, torch.Tensor]] = []
        size = self._pruner.config.map_size
        each_attention_map(self._model, self._blocks, batch, size, lambda block, maps: seen.append((block, maps)))
        flat = torch.cat([maps.flatten(0, 1) for _, maps in seen])
        scores = self._pruner.scores(flat, input_type, at_once=None if self._pruner.training else 256)
        totals = ScoreSums(self._blocks, scores.device)
        for (block, maps), part in zip(seen, scores.split([maps[..., 0, 0].numel() for _, maps in seen]), strict=True):
            totals.add(block, part.reshape(maps.shape[:2]))
        return totals.sums, totals.counts

    def _highest(self, scores: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        minima = [max(block.minimum, 1) for block in self._blocks]
        return keep_heads(scores, self._arguments.heads, per_layer=True, minimum=minima)

    def _pruned_layers(self, generator: torch.Generator) -> set[int]:
        count = max(1, round(self._arguments.pruned_layers * len(self._blocks)))
        return set(torch.randperm(len(self._blocks), generator=generator)[:count].tolist())

    def _divergence(
        self, episode: Episode, batch: Batch, masks: Sequence[torch.Tensor], generator: torch.Generator | None
    ) -> torch.Tensor:
        with torch.no_grad():
            dense = self._vectors(batch, episode.input_type)
        with UnitGates(self._model, self._blocks, masks):
            pruned = self._vectors(batch, episode.input_type)
        if self._arguments.objective == "paper":
            return paper_divergence(dense, pruned)
        drawn = None if generator is None else draw_dimensions(dense.shape[1], generator).to(dense.device)
        return authors_divergence(dense, pruned, drawn) * (SINGLE_WEIGHT if episode.input_type == "single" else 1)

    def _vectors(self, batch: Batch, input_type: str) -> torch.Tensor:
        """One vector per text, `[texts, hidden]`."""
        output = self._model(**batch, return_dict=True)
        how = self._arguments.pair_vector if input_type == "pair" else "mean"
        found = getattr(output, "pooler_output" if how == "pooler" else "last_hidden_state", None)
        if found is None:
            advice = "Choose another pair_vector." if how == "pooler" else "Give the bare encoder of a text model."
            raise PruningError(f"{type(self._model).__name__} returns nothing to represent a text by {how}. {advice}")
        if how == "pooler":
            return found.float()
        if how == "first_token":
            return found[:, 0].float()
        valid = valid_tokens(batch).to(found.device).unsqueeze(-1).float()
        return (found.float() * valid).sum(dim=1) / valid.sum(dim=1).clamp(min=1)
