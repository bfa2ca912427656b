"""The task of `hf-prune demo`: real text and a real, learned model on any machine, without a download."""

from .docstrings import TOPICS, load_docstrings
from .model import tokenize, train_classifier, train_tokenizer

__all__ = ["TOPICS", "load_docstrings", "tokenize", "train_classifier", "train_tokenizer"]
