"""Which Auto class loads a model, and which task the Hub files it under, from transformers' own tables."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto


@dataclass(frozen=True)
class Task:
    """How a kind of model is loaded and called.

    Attributes:
        auto_class: name of the Auto class.
        pipeline_tag: the Hub's name for the task, or None where it has none.
    """

    auto_class: str
    pipeline_tag: str | None


# Heads before the bare model; the second entry names transformers' table of model type → class name(s).
_TASKS = (
    (Task("AutoModelForSequenceClassification", "text-classification"), "SEQUENCE_CLASSIFICATION"),
    (Task("AutoModelForTokenClassification", "token-classification"), "TOKEN_CLASSIFICATION"),
    (Task("AutoModelForQuestionAnswering", "question-answering"), "QUESTION_ANSWERING"),
    (Task("AutoModelForMultipleChoice", "multiple-choice"), "MULTIPLE_CHOICE"),
    (Task("AutoModelForMaskedLM", "fill-mask"), "MASKED_LM"),
    (Task("AutoModelForCausalLM", "text-generation"), "CAUSAL_LM"),
    (Task("AutoModelForSeq2SeqLM", None), "SEQ_TO_SEQ_CAUSAL_LM"),
    (Task("AutoModelForNextSentencePrediction", None), "NEXT_SENTENCE_PREDICTION"),
    (Task("AutoModelForImageClassification", "image-classification"), "IMAGE_CLASSIFICATION"),
    (Task("AutoModelForAudioClassification", "audio-classification"), "AUDIO_CLASSIFICATION"),
    (Task("AutoModelForPreTraining", None), "PRETRAINING"),
)
_BARE = Task("AutoModel", "feature-extraction")


def task_of(model: PreTrainedModel) -> Task:
    """The task of a model, by its class.

    The class and its parents are looked up before `config.architectures`: a mixin subclass is found by its parent, and
    a head put on a pretrained encoder by its own name, while the config still names the class of the pretraining.
    A class that is in none of transformers' tables counts as a bare model.
    """
    classes = [cls.__name__ for cls in type(model).__mro__]
    names = [*classes, *(getattr(model.config, "architectures", None) or ())]
    for name in names:
        for task, table in _TASKS:
            if name in _class_names(f"MODEL_FOR_{table}_MAPPING_NAMES", model.config.model_type):
                return task
        if name in _class_names("MODEL_MAPPING_NAMES", model.config.model_type):
            return _BARE
    return _BARE


def _class_names(table: str, model_type: str) -> tuple[str, ...]:
    names = getattr(modeling_auto, table).get(model_type, ())
    return (names,) if isinstance(names, str) else tuple(names)
