"""How well an encoder's sentence vectors say what is alike, without any training (semantic textual similarity)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel
from transformers.utils.logging import tqdm

from ..calibration import valid_tokens
from ..errors import PruningError
from ..scores import evaluating

# Cosines of float32 vectors that differ by less are the same.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class StsCorrelation:
    """Agreement of a model's similarities with people's.

    Attributes:
        spearman: correlation of the ranks, from -1 to 1.
        pearson: linear correlation, from -1 to 1; Zhang et al. (2020, Table 3) report this one.
        pairs: how many pairs of sentences.
    """

    spearman: float
    pearson: float
    pairs: int


def sts_correlation(
    model: PreTrainedModel,
    tokenizer: Any,
    first: Sequence[str],
    second: Sequence[str],
    scores: Sequence[float],
    *,
    batch_size: int = 64,
    max_length: int | None = None,
) -> StsCorrelation:
    """Correlation of the cosines of mean-pooled sentence vectors with gold scores (Zhang et al. 2020, section 4.3).

    Args:
        model: a text encoder; of a model with a task head the encoder is used.
        tokenizer: the model's.
        first, second: the two sentences of every pair, `dataset["sentence1"]` and `dataset["sentence2"]` for instance.
        scores: how alike people find them; any scale.
        batch_size: sentences per forward pass.
        max_length: tokens after which sentences are cut off; by default what the tokenizer says.

    Raises:
        PruningError: fewer than two pairs, numbers of sentences and scores that differ, scores that are no numbers or
            all the same, a model that is no encoder of texts, or one with the same similarity for all pairs.
    """
    gold = _checked_scores(first, second, scores)
    vectors = sentence_vectors(model, tokenizer, [*first, *second], batch_size=batch_size, max_length=max_length)
    one, other = vectors.double().split(len(gold))
    found = cosine_similarity(one, other, dim=-1).numpy()
    if not np.isfinite(found).all() or np.ptp(found) < _ROUNDING:
        raise PruningError(
            f"{type(model).__name__} gives all {len(gold)} pairs the same similarity, or one that is not finite"
            f" ({found[0]:.3g} for the first): there is nothing to correlate. Look for weights that are zero or NaN."
        )
    spearman, pearson = stats.spearmanr(found, gold).statistic, stats.pearsonr(found, gold).statistic
    return StsCorrelation(float(spearman), float(pearson), len(gold))


@torch.no_grad()
def sentence_vectors(
    model: PreTrainedModel,
    tokenizer: Any,
    sentences: Sequence[str],
    *,
    batch_size: int = 64,
    max_length: int | None = None,
) -> torch.Tensor:
    """The mean of every sentence's last hidden states, without padding.

    The model runs in evaluation mode; the modes of its modules are restored.

    Args:
        model, tokenizer, batch_size, max_length: as for `sts_correlation`.
        sentences: texts.

    Returns:
        `[sentences, hidden]` in float32, on the CPU, in the order of the sentences.

    Raises:
        PruningError: the model is no encoder of texts, or a sentence has no tokens.
    """
    encoder = _text_encoder(model)
    order = sorted(range(len(sentences)), key=lambda index: len(sentences[index]))  # little padding
    parts = []
    with evaluating(encoder):
        for start in tqdm(range(0, len(order), batch_size), desc="Sentence vectors", unit="batch"):
            texts = [sentences[index] for index in order[start : start + batch_size]]
            batch = tokenizer(texts, padding=True, truncation=True, max_length=max_length, return_tensors="pt")
            empty = ~valid_tokens(batch).any(dim=1)
            if empty.any():
                raise PruningError(f"The sentence {texts[int(empty.nonzero()[0])]!r} has no tokens. Leave it out.")
            parts.append(_pooled(encoder, batch.to(encoder.device)))
    vectors = torch.cat(parts)
    return torch.empty_like(vectors).index_copy_(0, torch.tensor(order), vectors)


def _text_encoder(model: PreTrainedModel) -> PreTrainedModel:
    encoder = model.base_model
    if getattr(encoder.config, "is_encoder_decoder", False) or encoder.main_input_name != "input_ids":
        raise PruningError(
            f"{type(model).__name__} is no encoder of texts alone, so it has no sentence vectors. Pass the part of it"
            " that reads text: model.get_encoder(), or the text model."
        )
    return encoder


def _pooled(encoder: PreTrainedModel, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    hidden = encoder(**batch, return_dict=True).last_hidden_state.float()
    valid = valid_tokens(dict(batch)).unsqueeze(-1).to(hidden)
    return ((hidden * valid).sum(dim=1) / valid.sum(dim=1)).cpu()


def _checked_scores(first: Sequence[str], second: Sequence[str], scores: Sequence[float]) -> npt.NDArray[np.float64]:
    if not len(first) == len(second) == len(scores) or len(scores) < 2:
        raise PruningError(
            f"{len(first)} first sentences, {len(second)} second ones and {len(scores)} scores: give the same number of"
            " each, at least two."
        )
    try:
        gold = np.array([float(score) for score in scores])
    except (TypeError, ValueError) as error:
        raise PruningError(f"A score is not a number: {error}. Give a number for every pair.") from error
    wrong = next((place for place, score in enumerate(gold) if not math.isfinite(score)), None)
    if wrong is not None:
        raise PruningError(f"The score of pair {wrong} is {gold[wrong]}: leave out pairs without a score.")
    if np.ptp(gold) == 0:
        raise PruningError(f"All {len(gold)} scores are {gold[0]}: there is nothing to correlate with.")
    return gold
