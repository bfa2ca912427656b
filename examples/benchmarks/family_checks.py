"""What happens when a model of one type is pruned, saved and loaded, judged without the library's gates and surgery."""

from __future__ import annotations

import copy
import signal
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import torch
from small_configs import small_config
from transformers import AutoModel, PreTrainedModel

from hf_prune.anatomy import Block, ModelAnatomy, describe_model, read_blocks, weight_of
from hf_prune.anatomy.example_inputs import example_batch
from hf_prune.errors import PruningError, UnsupportedModelError
from hf_prune.surgery import PruningPlan, apply_plan, write_metadata

LARGEST = 30_000_000  # parameters of a model that counts as small
AGREEMENT = 1e-3  # largest difference between masked and shrunk outputs, relative to what the mask changes

NOT_BUILT = "not built"
REFUSED = "refused"
SUPPORTED = "supported"
WRONG = "wrong"
NOT_JUDGED = "not judged"
_KINDS = ("attentions", "feed_forwards")


@dataclass(frozen=True)
class Outcome:
    """What happened to one model type.

    Attributes:
        outcome: one of the words above.
        reason: why, unless it is supported.
        attentions, feed_forwards: blocks in which units were removed.
        parameters: before and after.
    """

    outcome: str
    reason: str = ""
    attentions: int = 0
    feed_forwards: int = 0
    parameters: tuple[int, int] = (0, 0)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-serialisable form."""
        return asdict(self)


class TimeLimit(BaseException):
    """A model type took too long. Not an `Exception`: nothing on the way may take it for a failure of its own."""


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Ends what runs inside with `TimeLimit` after so many seconds."""

    def stop(signum: int, frame: object) -> None:
        raise TimeLimit(f"more than {seconds} seconds")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def check_type(model_type: str, seconds: int = 60) -> Outcome:
    """Builds, prunes, saves and loads a small model of one type."""
    try:
        with time_limit(seconds):
            model = _small_model(model_type)
    except (Exception, TimeLimit) as error:  # configurations refuse sizes in as many ways as there are
        return Outcome(NOT_BUILT, _short(error))
    try:
        with time_limit(seconds):
            return _pruned(model)
    except TimeLimit as error:
        return Outcome(NOT_JUDGED, _short(error))
    except Exception as error:
        return Outcome(WRONG, _short(error))


class _TooLarge(Exception):
    pass


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text[:600] if isinstance(error, (PruningError, _TooLarge)) else f"{type(error).__name__}: {text[:300]}"


def _small_model(model_type: str) -> PreTrainedModel:
    config = small_config(model_type)
    with torch.device("meta"):
        size = AutoModel.from_config(copy.deepcopy(config)).num_parameters()
    if size > LARGEST:
        raise _TooLarge(f"{size / 1e6:.0f} million parameters with small sizes")
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModel.from_config(config).eval()
    _scale_weights(model)
    return model


def _scale_weights(model: PreTrainedModel) -> None:
    """Weights, biases and norms with which every head and filter matters."""
    generator = torch.Generator().manual_seed(0)
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() < 2:
                parameter.copy_(0.3 * noise if name.endswith("bias") else 1 + 0.3 * noise)
            elif id(parameter) in embeddings:
                parameter.copy_(noise)
            else:
                fan_in = parameter[0].numel() if parameter.dim() != 3 else parameter.shape[-1]
                parameter.copy_(1.5 * noise / fan_in**0.5)


def _pruned(model: PreTrainedModel) -> Outcome:
    try:
        anatomy, batch = describe_model(model), example_batch(model)
    except UnsupportedModelError as error:  # later on, having accepted the model, it would be a mistake
        return Outcome(REFUSED, _short(error))
    plan = _random_plan(anatomy)
    before, dense = model.num_parameters(), _outputs(model, batch)
    masked = _outputs(_zeroed(model, anatomy, plan), batch)
    unseen = _unseen(model, anatomy.blocks, plan, batch, dense)
    apply_plan(model, anatomy, plan, batch=batch)
    write_metadata(model, anatomy, plan, {"strategy": "random"}, {}, {})
    shrunk, after = _outputs(model, batch), model.num_parameters()
    effect, difference = _distance(dense, masked), _distance(masked, shrunk)
    counts = {kind: sum(1 for block in getattr(anatomy, kind) if plan.count(block) < block.units) for kind in _KINDS}
    wrong = _wrong_cut(effect, difference, before - after, anatomy, plan) or _wrong_reload(model, anatomy, plan, batch)
    if wrong:
        return Outcome(WRONG, wrong, parameters=(before, after), **counts)
    if unseen:
        reason = f"no example shows what {unseen[0]} does"
        return Outcome(NOT_JUDGED, reason, parameters=(before, after), **counts)
    return Outcome(SUPPORTED, parameters=(before, after), **counts)


def _wrong_cut(effect: float, difference: float, gone: int, anatomy: ModelAnatomy, plan: PruningPlan) -> str:
    if not difference <= AGREEMENT * effect:
        return f"shrunk and masked outputs differ by {difference:.3g}, dense and masked by {effect:.3g}"
    removed = sum((block.units - plan.count(block)) * block.parameters_per_unit for block in anatomy.blocks)
    # Parameters with an axis of heads come on top, and T5's layers get tables of their own.
    exact = not any(block.tables or getattr(block.layout, "shared_bias", False) for block in anatomy.blocks)
    if exact and gone != removed:
        return f"{gone:,} parameters are gone, where the plan removes {removed:,}"
    return ""


def _wrong_reload(model: PreTrainedModel, anatomy: ModelAnatomy, plan: PruningPlan, batch: dict[str, Any]) -> str:
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        # Copied, because tensors in the file lie at other addresses, and kernels may round by their alignment.
        loaded = copy.deepcopy(AutoModel.from_pretrained(folder).eval())
    sizes = {block.key: block.units for block in read_blocks(loaded)}
    for block in anatomy.blocks:
        if sizes.get(block.key) != plan.count(block):
            return f"loaded, {block.key} has {sizes.get(block.key)} units instead of {plan.count(block)}"
    if loaded.num_parameters() != model.num_parameters():
        return f"loaded, there are {loaded.num_parameters():,} parameters instead of {model.num_parameters():,}"
    distance = _distance(_outputs(model, batch), _outputs(loaded, batch))
    return "" if distance == 0 else f"loaded, the outputs differ by {distance:.3g}"


def _random_plan(anatomy: ModelAnatomy) -> PruningPlan:
    """In every third block of a kind nothing stays that may go, in the others a random half."""
    generator = torch.Generator().manual_seed(1)
    kept = {}
    for kind in _KINDS:
        for index, members in enumerate(_groups(getattr(anatomy, kind))):
            for block in members:
                count = block.minimum if index % 3 == 1 else max(block.minimum, block.units // 2)
                order = torch.randperm(block.units, generator=generator).tolist()
                kept[block.key] = tuple(sorted(order[:count]))
    return PruningPlan(kept)


def _groups(blocks: Sequence[Block]) -> list[list[Block]]:
    """Each block by itself, the experts of a layer together."""
    return [list(members) for _, members in groupby(blocks, key=lambda block: block.group or block.key)]


def _zeroed(model: PreTrainedModel, anatomy: ModelAnatomy, plan: PruningPlan) -> PreTrainedModel:
    masked = copy.deepcopy(model)
    for block in anatomy.blocks:
        _zero(masked, block, plan)
    return masked


def _zero(model: PreTrainedModel, block: Block, plan: PruningPlan) -> None:
    """Sets the output projection's columns of the units that go to zero."""
    removed = set(range(block.units)) - set(plan.units(block))
    columns = [column for column, unit in enumerate(block.columns.tolist()) if unit in removed]
    with torch.no_grad():
        weight_of(model.get_submodule(block.layer), block.output)[:, columns] = 0


def _unseen(
    model: PreTrainedModel,
    blocks: Sequence[Block],
    plan: PruningPlan,
    batch: dict[str, Any],
    dense: list[torch.Tensor],
) -> list[str]:
    """Blocks that lose units without any effect on the outputs, so that no mistake in them would show.

    Those beside which others of the same stack and kind have an effect are not counted: models that read an inner
    layer of a tower (LLaVA) do not use its last ones.
    """
    effects: dict[tuple[str, str], dict[str, float]] = {}
    for members in _groups(blocks):
        if all(plan.count(block) == block.units for block in members):
            continue
        weights = [weight_of(model.get_submodule(block.layer), block.output) for block in members]
        before = [weight.detach().clone() for weight in weights]
        for block in members:
            _zero(model, block, plan)
        place = (members[0].stack, members[0].layout.name)
        effects.setdefault(place, {})[members[0].key] = _distance(dense, _outputs(model, batch))
        with torch.no_grad():
            for weight, values in zip(weights, before, strict=True):
                weight.copy_(values)
    return [key for found in effects.values() for key in found if not any(found.values())]


def _outputs(model: PreTrainedModel, batch: dict[str, Any]) -> list[torch.Tensor]:
    torch.manual_seed(0)
    with torch.no_grad():
        return list(_tensors(model(**batch)))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        yield value.double()
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif hasattr(value, "to_tuple"):
        yield from _tensors(value.to_tuple())


def _distance(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> float:
    if [value.shape for value in one] != [value.shape for value in other]:
        return float("inf")
    pairs = [(a - b).abs().nan_to_num(nan=torch.inf) for a, b in zip(one, other, strict=True) if a.numel()]
    return max((pair.max().item() for pair in pairs), default=0.0)
