from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hf_prune.whole_files import written_whole


@pytest.fixture(params=[0o022, 0o007])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.skipif(os.name != "posix", reason="modes of files are those of POSIX")
@pytest.mark.parametrize("tensors", [False, True])
def test_a_file_has_the_mode_of_any_new_file(tmp_path: Path, umask: int, tensors: bool) -> None:
    """Also one that replaces another, and whichever library fills it."""
    ordinary, target = tmp_path / "ordinary", tmp_path / "target"
    ordinary.write_text("")
    for content in ("one", "two"):
        with written_whole(target) as temporary:
            if tensors:
                save_file({content: torch.ones(2)}, temporary)
            else:
                temporary.write_text(content)
        assert mode(target) == mode(ordinary) == 0o666 & ~umask
        assert content.encode() in target.read_bytes()


def test_what_fails_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("before")

    def write() -> None:
        with written_whole(target) as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write()
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert target.read_text() == "before"


def test_two_writers_do_not_share_a_file(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with written_whole(target) as one, written_whole(target) as other:
        one.write_text("one")
        other.write_text("other")
    assert target.read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
