"""`hf-prune run`: a fine-tuned model and rows in, a smaller checkpoint out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..api import prune_model
from ..errors import PruningError
from ..report.result import PruningResult, check_format
from .arguments import UNFINISHED, PruningArguments, RunArguments
from .console import first_line, note
from .inputs import Request, load_inputs


def run(request: Request[RunArguments]) -> PruningResult:
    """Prunes a model and writes it with its tokenizer; on failure nothing is written but what `--resume` keeps.

    Raises:
        PruningError: a request that cannot be carried out.
    """
    arguments = request.arguments
    request.check()
    check_format(arguments.format)
    check_output_folder(arguments, request.model)
    model, rows = load_inputs(request)
    result = prune_model(model, request.pruning, **rows.for_pruning(), resume_dir=arguments.resume_dir)
    saving = {**rows.for_saving(request.data), "format": arguments.format}
    result.save_pretrained(arguments.output_dir, **saving)
    if arguments.push_to_hub:
        _upload(result, arguments, saving)
    return result


def check_output_folder(arguments: PruningArguments, model: str) -> None:
    """Refuses an output folder that would cost the user something, before any work is done.

    Raises:
        PruningError: it is a file, the model's own folder, holds files that may not be overwritten, or cannot be
            written to.
    """
    folder = arguments.output_dir
    if folder.exists() and not folder.is_dir():
        raise PruningError(f"--output_dir {folder} is a file; name a folder.")
    if Path(model).is_dir() and Path(model).resolve() == folder.resolve():
        raise PruningError(f"--output_dir {folder} is the dense model's own folder; name another one.")
    held = {file.name for file in folder.iterdir()} if folder.is_dir() else set()
    if held == {UNFINISHED} and not arguments.resume:
        raise PruningError(
            f"--output_dir {folder} holds an unfinished run: add --resume to go on with it, or remove {UNFINISHED} in"
            " there to start anew."
        )
    if held - {UNFINISHED} and not arguments.overwrite_output_dir:
        raise PruningError(f"--output_dir {folder} is not empty; name another folder or add --overwrite_output_dir.")
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if not os.access(existing, os.W_OK):
        raise PruningError(f"--output_dir {folder}: no permission to write in {existing}; name another folder.")


def _upload(result: PruningResult, arguments: RunArguments, saving: dict[str, Any]) -> None:
    repository = str(arguments.push_to_hub)
    try:
        note(f"Uploaded: {result.push_to_hub(repository, **saving)}")
    except Exception as error:
        # Which HTTP library the Hub's client raises the errors of differs between its versions.
        raise PruningError(
            f"The pruned model is in {arguments.output_dir}, but it could not be uploaded to {repository}:"
            f" {first_line(error)}"
        ) from error
