"""What `prune_model` returns, and how it is written: a whole folder or nothing."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from safetensors import safe_open
from transformers import PreTrainedModel

from ..config import PruningConfig
from ..errors import PruningError
from ..offloading import is_offloaded, known_as_offloaded, read_from
from ..processes import is_first_process
from ..shards import has_shards, whole_state
from ..surgery import PruningPlan, save_bitmask
from ..surgery.bitmask import is_packed
from ..surgery.bitmask_checkpoints import WEIGHT_PATTERNS, is_weight_file
from ..surgery.mask_plan import MASKS_FILE, MaskPlan
from ..surgery.plan import PLAN_FILE
from ..whole_files import move_into
from .card import pruned_model_card
from .curve import TradeOffCurve
from .report import PruningReport
from .weight_report import WeightReport

REPORT_FILE = "pruning_report.json"
PLOT_FILE = "pruning.png"
FORMATS = ("dense", "bitmask")
# How much of an offloaded model is in memory at once while it is written.
OFFLOADED_SHARD = "250MB"

# What a result of another kind, or without matplotlib, does not write.
_SIDE_FILES = (PLAN_FILE, MASKS_FILE, PLOT_FILE)


@dataclass
class PruningResult:
    """A pruned model with everything that is known about the cut.

    Attributes:
        model: the pruned model (the object that was passed in).
        plan: which units stayed, counted in the model as it was passed in; or which single weights.
        report: costs, metrics and times before and after; for single weights, where they were.
        config: the configuration that asked for it.
        tokenizer: what the data collator tokenised with, if it has one; saved along, so that `pipeline` finds it.
        curve: all sizes that the training went through, for strategies that record them; with `max_metric_drop` those
            that `prune_model` has tried.
    """

    model: PreTrainedModel
    plan: PruningPlan | MaskPlan
    report: PruningReport | WeightReport
    config: PruningConfig
    tokenizer: Any = None
    curve: TradeOffCurve | None = None

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        tokenizer: Any = None,
        card: Mapping[str, Any] | None = None,
        format: str = "dense",
        **kwargs: Any,
    ) -> None:
        """Writes the model, its card and the side files.

        Everything is written beside the target and moved there when it is complete: a failed or interrupted call
        leaves no half-written folder.

        Args:
            save_directory: where to; files of the same name are replaced.
            tokenizer: a tokenizer or processor to save along; by default the data collator's.
            card: what only you know for the model card (`base_model`, `license`, `language`, `dataset`, `tags`,
                `model_id`; see `pruned_model_card`).
            format: "dense", or "bitmask" for matrices with many zeros in little space, which hf_prune has to be
                imported to read (see `hf_prune.surgery.save_bitmask`). Matrices with few zeros are stored densely
                either way, so a model that has only lost heads and filters gets the same files.
            **kwargs: for `PreTrainedModel.save_pretrained` (`max_shard_size` …); with `is_main_process=False` nothing
                is written. Of an offloaded model one shard is in memory at a time, of at most 250 MB by default. Of
                one that FSDP2 has sharded every process must call this, and the first one writes whole matrices.

        Raises:
            PruningError: an unknown format, the folder that an offloaded model's weights are read from, or shards of it
                between which a weight would be torn.
        """
        check_format(format)
        if has_shards(self.model):
            kwargs.setdefault("state_dict", whole_state(self.model))
            kwargs.setdefault("is_main_process", is_first_process())
        if not kwargs.get("is_main_process", True):
            return
        if is_offloaded(self.model):
            _check_not_read_from(self.model, Path(save_directory))
            kwargs.setdefault("max_shard_size", OFFLOADED_SHARD)
        tokenizer = tokenizer if tokenizer is not None else self.tokenizer
        with _complete_or_nothing(Path(save_directory)) as folder, known_as_offloaded(self.model):
            if format == "bitmask":
                save_bitmask(self.model, folder, **kwargs)
            else:
                self.model.save_pretrained(folder, **kwargs)
            _check_shards(folder)
            if tokenizer is not None:
                tokenizer.save_pretrained(folder)
            self.config.save_pretrained(folder)
            self.plan.save(folder)
            text = json.dumps(self.report.to_dict(), indent=2) + "\n"
            (folder / REPORT_FILE).write_text(text, encoding="utf8")
            picture = PLOT_FILE if find_spec("matplotlib") is not None else None
            if picture is not None:
                self.report.plot(folder / picture)
            about = {"picture": picture, "packed": _is_packed(folder), **(card or {})}
            pruned_model_card(self.report, self.model, **about).save(folder / "README.md")

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        card: Mapping[str, Any] | None = None,
        format: str = "dense",
        **kwargs: Any,
    ) -> str:
        """Uploads what `save_pretrained` writes, as one commit.

        Args:
            repo_id: "name" or "organisation/name"; the repository is created if it does not exist.
            private: whether a new repository is private.
            token: a Hub token; by default the one that is logged in.
            card: as for `save_pretrained`.
            format: as for `save_pretrained`.
            **kwargs: for `save_pretrained`.

        Returns:
            The address of the commit; nothing (`""`) on processes that upload nothing.

        Raises:
            PruningError: an unknown format.
        """
        check_format(format)
        api = HfApi(token=token)
        uploads = kwargs.setdefault("is_main_process", is_first_process())
        repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id if uploads else repo_id
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            self.save_pretrained(folder, card={"model_id": repo, **(card or {})}, format=format, **kwargs)
            if not uploads:
                return ""
            commit = api.upload_folder(
                repo_id=repo,
                folder_path=folder,
                commit_message="Upload pruned model",
                delete_patterns=[*WEIGHT_PATTERNS, *_SIDE_FILES],  # of an earlier model, as in a folder
            )
        return str(commit.commit_url)


def check_format(name: str) -> None:
    """Raises a PruningError where there is no format of that name to write weights in."""
    if name not in FORMATS:
        raise PruningError(f"format={name!r} is unknown; use one of {', '.join(FORMATS)}.")


def _check_not_read_from(model: PreTrainedModel, folder: Path) -> None:
    if folder.resolve() in read_from(model):
        raise PruningError(
            f"{folder} is where the weights of this model are read from whenever they are used: it is offloaded. Save"
            " it to another folder."
        )


def _check_shards(folder: Path) -> None:
    """transformers converts an offloaded model shard by shard to the form of its checkpoints, which joins weights."""
    owners: dict[str, str] = {}
    for file, names in _tensor_names(folder):
        torn = owners.keys() & names
        if torn:
            name = min(torn)
            raise PruningError(
                f"Parts of {name} came to lie in two files, {owners[name]} and {file}. Pass another max_shard_size,"
                " large enough that they come together, or load the model without offloading to save it."
            )
        owners |= dict.fromkeys(names, file)


def _is_packed(folder: Path) -> bool:
    """Whether any matrix in a folder's weight files is in the bitmask format."""
    return any(is_packed(names) for _, names in _tensor_names(folder))


def _tensor_names(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """The weight files in a folder, and the tensors in each; only headers are read."""
    for file in sorted(folder.glob("*.safetensors")):
        if is_weight_file(file.name):
            with safe_open(file, "pt") as weights:
                yield file.name, list(weights.keys())


@contextmanager
def _complete_or_nothing(target: Path) -> Iterator[Path]:
    """A temporary folder whose files are moved to `target` once the block has ended well.

    It is within a target that is there, whose parent may be on another file system (a mounted volume) or not to be
    written to; otherwise beside it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    place = target if target.is_dir() else target.parent
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=place))
    try:
        yield temporary
        _open_up(temporary)
        _move_to(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _move_to(source: Path, target: Path) -> None:
    """Makes a folder the target, or moves what is in it there; another process may make the target meanwhile."""
    if not target.exists():
        try:
            os.replace(source, target)
            return
        except OSError:
            if not target.is_dir():
                raise
    move_into(source, target, _is_stale)


def _open_up(folder: Path) -> None:
    """Permissions as if the files had been written in place: temporary ones are for their owner only."""
    mask = os.umask(0)
    os.umask(mask)
    folder.chmod(0o777 & ~mask)
    for path in folder.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def _is_stale(name: str) -> bool:
    """Whether a file is an earlier model's, where the new one has none of this name.

    An old `model.safetensors` beside new shards would be the one that is loaded; heads' plan says nothing of masks.
    """
    return name in _SIDE_FILES or is_weight_file(name)
