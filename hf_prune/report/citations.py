"""The papers to cite, by strategy and by what it pruned."""

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


UNIT_CITATIONS = {
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
    "head_importance": Citation(
        text="Michel et al., 2019, Are Sixteen Heads Really Better than One?, NeurIPS",
        url="https://arxiv.org/abs/1905.10650",
        bibtex="""\
@inproceedings{michel2019sixteen,
  title     = {Are Sixteen Heads Really Better than One?},
  author    = {Michel, Paul and Levy, Omer and Neubig, Graham},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2019}
}""",
    ),
    "l0": Citation(
        text="Louizos et al., 2018, Learning Sparse Neural Networks through L0 Regularization, ICLR",
        url="https://arxiv.org/abs/1712.01312",
        bibtex="""\
@inproceedings{louizos2018learning,
  title     = {Learning Sparse Neural Networks through {$L_0$} Regularization},
  author    = {Louizos, Christos and Welling, Max and Kingma, Diederik P.},
  booktitle = {International Conference on Learning Representations},
  year      = {2018}
}""",
    ),
    "layer_drop": Citation(
        text="Sajjad et al., 2023, On the Effect of Dropping Layers of Pre-trained Transformer Models, Computer Speech"
        " & Language",
        url="https://arxiv.org/abs/2004.03844",
        bibtex="""\
@article{sajjad2023effect,
  title   = {On the Effect of Dropping Layers of Pre-trained Transformer Models},
  author  = {Sajjad, Hassan and Dalvi, Fahim and Durrani, Nadir and Nakov, Preslav},
  journal = {Computer Speech \\& Language},
  volume  = {77},
  year    = {2023}
}""",
    ),
    "single_shot": Citation(
        text="Zhang et al., 2020, Know What You Don't Need: Single-Shot Meta-Pruning for Attention Heads",
        url="https://arxiv.org/abs/2011.03770",
        bibtex="""\
@article{zhang2020know,
  title   = {Know What You Don't Need: Single-Shot Meta-Pruning for Attention Heads},
  author  = {Zhang, Zhengyan and Qi, Fanchao and Liu, Zhiyuan and Liu, Qun and Sun, Maosong},
  journal = {arXiv preprint arXiv:2011.03770},
  year    = {2020}
}""",
    ),
    "snip": Citation(
        text="Lin et al., 2020, Pruning Redundant Mappings in Transformer Models via Spectral-Normalized Identity"
        " Prior, Findings of EMNLP",
        url="https://arxiv.org/abs/2010.01791",
        bibtex="""\
@inproceedings{lin2020pruning,
  title     = {Pruning Redundant Mappings in Transformer Models via Spectral-Normalized Identity Prior},
  author    = {Lin, Zi and Liu, Jeremiah Zhe and Yang, Zi and Hua, Nan and Roth, Dan},
  booktitle = {Findings of the Association for Computational Linguistics: EMNLP 2020},
  year      = {2020}
}""",
    ),
}

WEIGHT_CITATIONS = {
    "magnitude": Citation(
        text="Gordon et al., 2020, Compressing BERT: Studying the Effects of Weight Pruning on Transfer Learning,"
        " RepL4NLP",
        url="https://arxiv.org/abs/2002.08307",
        bibtex="""\
@inproceedings{gordon2020compressing,
  title     = {Compressing {BERT}: Studying the Effects of Weight Pruning on Transfer Learning},
  author    = {Gordon, Mitchell and Duh, Kevin and Andrews, Nicholas},
  booktitle = {Proceedings of the 5th Workshop on Representation Learning for NLP},
  year      = {2020}
}""",
    ),
    "movement": Citation(
        text="Sanh et al., 2020, Movement Pruning: Adaptive Sparsity by Fine-Tuning, NeurIPS",
        url="https://arxiv.org/abs/2005.07683",
        bibtex="""\
@inproceedings{sanh2020movement,
  title     = {Movement Pruning: Adaptive Sparsity by Fine-Tuning},
  author    = {Sanh, Victor and Wolf, Thomas and Rush, Alexander M.},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2020}
}""",
    ),
    "static_mask": Citation(
        text="Jiang et al., 2023, Pruning Pre-trained Language Models Without Fine-Tuning, ACL",
        url="https://arxiv.org/abs/2210.06210",
        bibtex="""\
@inproceedings{jiang2023pruning,
  title     = {Pruning Pre-trained Language Models Without Fine-Tuning},
  author    = {Jiang, Ting and Wang, Deqing and Zhuang, Fuzhen and Xie, Ruobing and Xia, Feng},
  booktitle = {Proceedings of the 61st Annual Meeting of the Association for Computational Linguistics},
  year      = {2023}
}""",
    ),
}
