"""How much pruning changes the distances between texts: the meta-pruner's loss (Zhang et al. 2020, section 3.2)."""

from __future__ import annotations

import torch
from torch.nn import functional

# Of the authors' code.
SHARPNESS = 10.0
GROUP = 2
KEPT_DIMENSIONS = 0.2
SINGLE_WEIGHT = 10.0


def relative_distances(vectors: torch.Tensor) -> torch.Tensor:
    """Logarithms of the relative distance distributions, one row per text (Eq. 3).

    Dist is the cosine similarity, so near texts have most of the mass: that is what the authors' code exponentiates,
    and the paper does not say which sign its "cosine distance" has.

    Args:
        vectors: `[texts, hidden]`.

    Returns:
        `[texts, texts]`; each row is a log-distribution.
    """
    unit = functional.normalize(vectors, dim=-1)
    return torch.log_softmax(unit @ unit.T, dim=-1)


def paper_divergence(dense: torch.Tensor, pruned: torch.Tensor) -> torch.Tensor:
    """Σ over texts of KL(dense ‖ pruned) between their relative distance distributions (Eq. 4 and 5).

    Args:
        dense, pruned: vectors of the same texts from the two models, `[texts, hidden]`.
    """
    return functional.kl_div(relative_distances(pruned), relative_distances(dense), reduction="sum", log_target=True)


def authors_divergence(
    dense: torch.Tensor, pruned: torch.Tensor, dimensions: torch.Tensor | None = None
) -> torch.Tensor:
    """The loss of the authors' code, which is not the paper's.

    Vectors are centred over the texts, cosine similarities multiplied by 10, and the softmax is taken over pairs of
    neighbouring entries of the similarity matrix instead of whole rows; then the mean over all entries.

    Args:
        dense, pruned: vectors of the same texts, `[texts, hidden]`, of an even number of texts.
        dimensions: bool `[hidden]`, the dimensions that are looked at (the authors draw a fifth of them anew each
            time); None for all.
    """
    rows = []
    for vectors in (dense, pruned):
        if dimensions is not None:
            vectors = vectors[:, dimensions]
        unit = functional.normalize(vectors - vectors.mean(dim=0), dim=-1)
        rows.append(torch.log_softmax((SHARPNESS * unit @ unit.T).reshape(-1, GROUP), dim=-1))
    return functional.kl_div(rows[1], rows[0], reduction="none", log_target=True).mean()


def draw_dimensions(hidden: int, generator: torch.Generator) -> torch.Tensor:
    """Which dimensions `authors_divergence` looks at: each with a chance of a fifth, and at least one."""
    drawn = torch.rand(hidden, generator=generator)
    return drawn <= max(KEPT_DIMENSIONS, float(drawn.min()))
