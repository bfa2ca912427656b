"""Small models of every way in which layers follow each other and add to the residual stream."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers
from transformers import PreTrainedModel

from tests.family_models import VARIANTS, Head, heads_of, main_head, sample
from tests.small_models import Batch, scale_weights

PYRAMID = {
    "image_size": 32,
    "num_encoder_blocks": 2,
    "depths": [2, 2],
    "sequence_reduction_ratios": [2, 1],
    "hidden_sizes": [16, 32],
    "patch_sizes": [4, 2],
    "strides": [4, 2],
    "num_attention_heads": [2, 4],
    "mlp_ratios": [2, 2],
}


@dataclass(frozen=True)
class Architecture:
    """One way.

    Attributes:
        name: for test ids.
        build: makes the dense model.
        segments: how many layers follow each other directly, from first to last.
        targets: what `find_steps` is to say of the layers' blocks, segment by segment (of a layer in each).
        partial: segments of whose last layer the model reads some positions only.
    """

    name: str
    build: Callable[[], PreTrainedModel]
    segments: tuple[int, ...]
    targets: tuple[str, ...]
    partial: tuple[int, ...] = ()

    def batches(self, model: PreTrainedModel, number: int = 5) -> list[Batch]:
        made = [pictures(seed) if "Pvt" in type(model).__name__ else sample(model, seed) for seed in range(number)]
        return [{name: as_double(value) for name, value in batch.items()} for batch in made]

    def __str__(self) -> str:
        return self.name


def as_double(value: torch.Tensor) -> torch.Tensor:
    return value.double() if value.is_floating_point() else value


def pictures(seed: int) -> Batch:
    return {"pixel_values": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed))}


def of(head: Head, **changes: object) -> Callable[[], PreTrainedModel]:
    return lambda: head.model(**changes).double()


def bare(model_type: str, **changes: object) -> Callable[[], PreTrainedModel]:
    """The model without a head, which shows all of its last hidden states."""
    return of(heads_of(model_type)[0], **changes)


def variant(name: str) -> Callable[[], PreTrainedModel]:
    return of(next(head for head in VARIANTS if head.name == name))


def pyramid() -> PreTrainedModel:
    model = transformers.PvtModel(transformers.PvtConfig(**PYRAMID)).eval()
    scale_weights(model)
    return model.double()


def single(
    name: str, targets: str, build: Callable[[], PreTrainedModel] | None = None, layers: int = 3
) -> Architecture:
    return Architecture(name, build or of(main_head(name)), (layers,), (targets,))


ARCHITECTURES = (
    single("llama", "sum sum"),
    single("gpt2", "sum sum"),
    single("opt", "sum sum"),
    single("gptj", "sum sum"),
    single("gpt_neox", "sum sum"),
    single("phi", "sum sum"),
    single("cohere", "sum sum"),
    single("codegen", "sum sum"),
    single("falcon", "sum sum"),
    single("bloom", "sum sum"),
    single("exaone4", "output output"),
    single("olmo2", "output output"),
    single("granite", "output output", of(main_head("granite"), residual_multiplier=0.5)),
    single("bert", "sum tap", bare("bert")),
    single("deberta-v2", "sum tap", bare("deberta-v2")),
    single("vit", "sum sum", bare("vit")),
    single("dinov2", "output output", bare("dinov2")),
    single("beit", "output output", bare("beit")),
    single("wav2vec2", "sum tap"),
    single("gpt2 with cross-attention", "sum sum sum", variant("gpt2, cross-attention")),
    Architecture("deberta-v2 with a convolution", variant("deberta-v2, convolution"), (1, 2), ("sum tap",) * 2, (1,)),
    Architecture("bart", of(main_head("bart")), (2, 2), ("sum tap", "sum tap tap")),
    Architecture("mbart", of(main_head("mbart")), (2, 2), ("sum sum", "sum sum sum")),
    Architecture("t5", of(main_head("t5")), (2, 2), ("sum sum", "sum sum sum")),
    Architecture("umt5", of(main_head("umt5")), (2, 2), ("sum sum", "sum sum sum")),
    Architecture("whisper", of(main_head("whisper")), (2, 2), ("sum sum", "sum sum sum")),
    Architecture("vit_mae", of(main_head("vit_mae")), (3, 2), ("sum sum", "sum sum"), (1,)),
    Architecture("clip", bare("clip"), (3, 3), ("sum sum", "sum sum"), (0, 1)),
    Architecture("pyramid", pyramid, (2, 2), ("sum", "sum")),
)
