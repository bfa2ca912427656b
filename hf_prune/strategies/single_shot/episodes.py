"""Episodes of meta-training: small samples of one data set each (Zhang et al. 2020, section 3.3)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel

from ...calibration import Batch, CalibrationData, without_labels
from ...errors import PruningError
from ...rows import Collator
from .head_scores import check_input_type
from .meta_pruner import INPUT_TYPES

_TRAINING, _VALIDATION, _SPLIT = range(3)


@dataclass(frozen=True)
class Corpus:
    """One data set, split into rows to train on and rows to validate on.

    Attributes:
        input_type: "single" or "pair".
        training, validation: disjoint rows.
    """

    input_type: str
    training: Dataset
    validation: Dataset


@dataclass(frozen=True)
class Episode:
    """A sample of one data set.

    Attributes:
        number: which of all episodes it is.
        input_type: "single" or "pair".
        rows: the sample.
    """

    number: int
    input_type: str
    rows: Dataset


class Episodes:
    """All episodes of a training: which rows one holds follows from the seed and its number alone.

    Args:
        datasets: tokenised rows by type of input, `{"single": [...], "pair": [...]}`; labels are not looked at.
        examples: rows of an episode.
        validation_share: of each data set's rows, drawn at random.
        size_exponent: an episode's data set is drawn with the weight rows ** size_exponent.
        seed: of all that is drawn.

    Raises:
        PruningError: no data, an unknown type, or a data set that is too small for an episode.
    """

    def __init__(
        self,
        datasets: Mapping[str, Sequence[Dataset]],
        *,
        examples: int,
        validation_share: float,
        size_exponent: float,
        seed: int,
    ) -> None:
        self._examples, self._seed = examples, seed
        _check_types(datasets)
        found = [(kind, rows) for kind in INPUT_TYPES for rows in datasets.get(kind, ())]
        self.corpora = [self._split(kind, rows, validation_share, place) for place, (kind, rows) in enumerate(found)]
        self._weights = torch.tensor([len(corpus.training) ** size_exponent for corpus in self.corpora])

    def training(self, number: int) -> Episode:
        """The training episode of this number, from a data set drawn at random."""
        generator = seeded(self._seed, _TRAINING, number)
        corpus = self.corpora[int(torch.multinomial(self._weights, 1, generator=generator))]
        return self._episode(number, corpus.input_type, corpus.training, generator)

    def validation(self, number: int) -> Episode:
        """The validation episode of this number; data sets take turns."""
        corpus = self.corpora[number % len(self.corpora)]
        return self._episode(number, corpus.input_type, corpus.validation, seeded(self._seed, _VALIDATION, number))

    def _episode(self, number: int, kind: str, rows: Dataset, generator: torch.Generator) -> Episode:
        # Where a data set holds out fewer rows than an episode has: an even number, since one loss compares pairs.
        count = self._examples if len(rows) >= self._examples else len(rows) - len(rows) % 2
        order = torch.randperm(len(rows), generator=generator)[:count]
        return Episode(number, kind, rows.select(order.tolist()))

    def _split(self, kind: str, rows: Dataset, share: float, place: int) -> Corpus:
        held_out = max(2, round(len(rows) * share))
        if len(rows) - held_out < self._examples:
            raise PruningError(
                f"Data set {place} ({kind!r}) has {len(rows)} rows, {held_out} of them for validation: too few for an"
                f" episode of {self._examples}. Give more rows, or set episode_examples."
            )
        order = torch.randperm(len(rows), generator=seeded(self._seed, _SPLIT, place)).tolist()
        return Corpus(kind, rows.select(order[held_out:]), rows.select(order[:held_out]))


class EpisodeBatches:
    """Makes batches of an episode's rows for a model.

    Args:
        model: it decides the columns and the device.
        data_collator: as for `CalibrationData`.
    """

    def __init__(self, model: PreTrainedModel, data_collator: Collator | None = None) -> None:
        self._model = model
        self._collator = data_collator

    def whole(self, episode: Episode) -> Batch:
        """All rows as one batch, without labels.

        Raises:
            PruningError: rows of the other type of input.
        """
        batch = self._batch(episode.rows)
        check_input_type(batch, episode.input_type, self._model.config)
        return batch

    def parts(self, episode: Episode, examples: int | None, at_once: int) -> Iterator[Batch]:
        """The first `examples` rows (None: all) as batches of at most `at_once`."""
        count = len(episode.rows) if examples is None else min(examples, len(episode.rows))
        for start in range(0, count, at_once):
            yield self._batch(episode.rows.select(range(start, min(start + at_once, count))))

    def _batch(self, rows: Dataset) -> Batch:
        data = CalibrationData(rows, self._model, data_collator=self._collator, batch_size=len(rows))
        return without_labels(data.first())


def seeded(*numbers: int) -> torch.Generator:
    """A generator whose stream follows from the numbers."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1))


def _check_types(datasets: Mapping[str, Any]) -> None:
    unknown = [kind for kind in datasets if kind not in INPUT_TYPES]
    if unknown or not any(datasets.get(kind) for kind in INPUT_TYPES):
        got = f"got the type {unknown[0]!r}" if unknown else "got none"
        raise PruningError(
            f"Meta-training needs data sets by type of input, {{'single': [...], 'pair': [...]}}; {got}."
        )
