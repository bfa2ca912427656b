"""The report that lies next to a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

from ..errors import PruningError
from ..report import PruningReport, WeightReport, report_from_dict
from ..report.result import REPORT_FILE


def written_report(name: str) -> PruningReport | WeightReport | None:
    """The report next to a checkpoint, or None.

    Args:
        name: local folder or Hub name.

    Raises:
        PruningError: it is no report.
    """
    path = Path(name) / REPORT_FILE
    if not Path(name).is_dir():
        try:
            path = Path(hf_hub_download(name, REPORT_FILE))
        except (EntryNotFoundError, HfHubHTTPError):
            return None
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf8"))
    except ValueError as error:
        raise PruningError(f"{path} is not JSON ({error}). Delete it to inspect the config alone.") from error
    return report_from_dict(data)
