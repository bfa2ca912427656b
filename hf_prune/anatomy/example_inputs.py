"""Random inputs for any model: text, images, video or sound, as its config and its `forward` say.

Used to prove an anatomy and to measure latency where there is no data at hand.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import torch
from transformers import PreTrainedModel

from ..errors import UnsupportedModelError
from ..offloading import device_of
from .example_media import MEDIA, Batch, media_variants, noise, number
from .undisturbed import undisturbed

# Further arguments of forward that some models cannot do without.
_STATES = ("states", "actions", "rewards", "returns_to_go", "timesteps")


def example_batch(model: PreTrainedModel, rows: int = 2, length: int = 12) -> Batch:
    """A batch of `rows` random examples that the model takes; found by trying, so the model is run once or twice.

    Args:
        model: any transformers model, with weights.
        rows: examples.
        length: tokens of a text; images, videos and sound have the size that the config gives.

    Raises:
        UnsupportedModelError: none of the kinds of examples that are known suits the model.
    """
    failure: Exception | None = None
    with undisturbed(model), torch.no_grad():
        for batch in _candidates(model, rows, length):
            try:
                model(**batch)
            except Exception as error:  # a candidate of the wrong kind fails in any way
                failure = failure or error
            else:
                return batch
    problem = f" ({type(failure).__name__}: {' '.join(str(failure).split())[:200]})" if failure else ""
    raise UnsupportedModelError(
        f"No example batch could be made for {type(model).__name__}, which reads {model.main_input_name!r}{problem}."
    )


def _candidates(model: PreTrainedModel, rows: int, length: int) -> Iterator[Batch]:
    """Batches to try, those with most kinds of input first."""
    accepted = inspect.signature(model.forward).parameters
    yield from _with_placeholders(model, accepted, rows, length)
    kinds = [name for name in MEDIA if name in accepted]
    needed = [name for name in kinds if name == model.main_input_name or _is_required(accepted[name])]
    with_text = ["input_ids"] if "input_ids" in accepted else []
    tried: list[tuple[str, ...]] = []
    for names in ([*with_text, *kinds], [*with_text, *kinds[:1]], needed, with_text, kinds[:1]):
        if not names or tuple(names) in tried:
            continue
        tried.append(tuple(names))
        text = _text(model, rows, length) if "input_ids" in names else {}
        media = [list(media_variants(model, name, accepted, rows)) for name in names if name in MEDIA]
        for parts in product(*media):
            batch = dict(text)
            for part in parts:
                batch |= part
            yield _completed(model, accepted, batch, rows, length)
    if not tried:
        yield _completed(model, accepted, {}, rows, length)


def _with_placeholders(model: PreTrainedModel, accepted: Mapping[str, Any], rows: int, length: int) -> Iterator[Batch]:
    """Texts with an image or a sound in them: as many placeholder tokens as the model makes features."""
    kinds = (
        ("pixel_values", "get_image_features", ("image_token_id", "image_token_index")),
        ("input_features", "get_audio_features", ("audio_token_id", "audio_token_index")),
    )
    for name, method, tokens in kinds:
        token = next((found for entry in tokens if (found := number(model.config, entry)) is not None), None)
        if name not in accepted or token is None or not hasattr(model, method):
            continue
        for media in media_variants(model, name, accepted, rows):
            count = _feature_count(model, method, media)
            if count and count % rows == 0:
                text = _text(model, rows, length + count // rows)
                text["input_ids"][:, 1 : 1 + count // rows] = token
                if "mm_token_type_ids" in accepted:
                    text["mm_token_type_ids"] = (text["input_ids"] == token).int()
                yield _completed(model, accepted, {**text, **media}, rows, length + count // rows)


def _feature_count(model: PreTrainedModel, method: str, media: Batch) -> int:
    extract = getattr(model, method)
    parameters = inspect.signature(extract).parameters
    given = {name: _on_device(model, value) for name, value in media.items() if name in parameters}
    try:
        features = extract(**given)
    except Exception:  # the wrong kind of image
        return 0
    features = getattr(features, "pooler_output", features)
    pieces = features if isinstance(features, (list, tuple)) else [features]
    return sum(int(piece.numel() // piece.shape[-1]) for piece in pieces if isinstance(piece, torch.Tensor))


def _completed(model: PreTrainedModel, accepted: Mapping[str, Any], batch: Batch, rows: int, length: int) -> Batch:
    """The batch with everything else that `forward` cannot do without, on the model's device."""
    if "decoder_input_ids" in accepted and getattr(model.config, "is_encoder_decoder", False):
        batch["decoder_input_ids"] = _ids(model, rows, length)
    if "bbox" in accepted and "input_ids" in batch:
        batch["bbox"] = torch.zeros(rows, length, 4, dtype=torch.long)
    if "visual_feats" in accepted:
        width = number(model.config, "visual_feat_dim") or 2048
        batch |= {"visual_feats": noise(model, rows, 4, width), "visual_pos": noise(model, rows, 4, 4)}
    if set(_STATES) <= set(accepted):
        batch |= _trajectory(model, rows, length)
    if "lang_ids" in accepted and getattr(model.config, "languages", None):
        batch["lang_ids"] = torch.zeros(rows, dtype=torch.long)
    if "use_cache" in accepted:
        batch["use_cache"] = False
    return {name: _on_device(model, value) for name, value in batch.items()}


def _on_device(model: PreTrainedModel, value: Any) -> Any:
    return value.to(device_of(model)) if isinstance(value, torch.Tensor) else value


def _is_required(parameter: inspect.Parameter) -> bool:
    return parameter.default is inspect.Parameter.empty


def _text(model: PreTrainedModel, rows: int, length: int) -> Batch:
    ids = _ids(model, rows, length)
    end = number(model.config, "eos_token_id")
    if end is not None and end < _vocabulary(model):
        ids[:, -1] = end  # CLIP pools there
    if type(model).__name__.endswith("ForMultipleChoice"):
        ids = ids[:, None]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _ids(model: PreTrainedModel, rows: int, length: int) -> torch.Tensor:
    vocabulary = _vocabulary(model)
    generator = torch.Generator().manual_seed(0)
    # Ids that embeddings treat specially (padding shifts RoBERTa's positions) are low; stay clear of them.
    return torch.randint(min(32, vocabulary // 2), vocabulary, (rows, length), generator=generator)


def _vocabulary(model: PreTrainedModel) -> int:
    size = number(model.config, "vocab_size")
    if size:
        return size
    try:
        return int(model.get_input_embeddings().weight.shape[0])
    except (AttributeError, NotImplementedError):  # CANINE hashes characters
        return 256


def _trajectory(model: PreTrainedModel, rows: int, length: int) -> Batch:
    """What a decision transformer reads."""
    config = model.config
    return {
        "states": noise(model, rows, length, config.state_dim),
        "actions": noise(model, rows, length, config.act_dim),
        "rewards": noise(model, rows, length, 1),
        "returns_to_go": noise(model, rows, length, 1),
        "timesteps": torch.arange(length).repeat(rows, 1),
        "attention_mask": torch.ones(rows, length, dtype=torch.long),
    }
