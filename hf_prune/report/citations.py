"""The papers to cite, by strategy."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Citation:
    """A paper.

    Attributes:
        text: authors, year, title and venue in one line.
        url: where to read it.
        bibtex: its BibTeX entry.
    """

    text: str
    url: str
    bibtex: str


CITATIONS = {
    "fisher": Citation(
        text="Kwon et al., 2022, A Fast Post-Training Pruning Framework for Transformers, NeurIPS",
        url="https://arxiv.org/abs/2204.09656",
        bibtex="""\
@inproceedings{kwon2022fast,
  title     = {A Fast Post-Training Pruning Framework for Transformers},
  author    = {Kwon, Woosuk and Kim, Sehoon and Mahoney, Michael W. and Hassoun, Joseph and Keutzer, Kurt and
               Gholami, Amir},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2022}
}""",
    ),
}
