"""The demo's data: docstrings of Python's own standard library, labelled with the topic of their module.

The text is on every machine that can run the library, so the demo needs no download. Source files are parsed with
`ast`; none of the modules is imported or run.
"""

from __future__ import annotations

import ast
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from hf_prune.errors import PruningError

# Only modules that every distribution of Python carries: tkinter, idlelib, turtle, distutils and venv are often
# packaged apart. A module that joined or left the standard library after Python 3.11 is skipped where it is absent.
TOPICS: dict[str, str] = {
    "concurrency": "_threading_local asyncio concurrent multiprocessing queue sched selectors subprocess threading",
    "data formats": "base64 codecs configparser copyreg csv encodings json plistlib shelve tomllib xml",
    "files": "_pyio bz2 filecmp fileinput fnmatch genericpath glob gzip linecache lzma ntpath os pathlib posixpath"
    " shutil stat tarfile tempfile zipfile",
    "language": "_py_abc abc ast code codeop compileall dis importlib inspect modulefinder pkgutil py_compile pyclbr"
    " runpy symtable tokenize types typing",
    "mail": "email imaplib mailbox mimetypes nntplib poplib quopri smtplib uu",
    "numbers": "_pydatetime _pydecimal _strptime calendar colorsys datetime fractions numbers random statistics"
    " zoneinfo",
    "testing": "bdb cProfile doctest logging pdb profile pstats pydoc timeit trace traceback tracemalloc unittest"
    " warnings",
    "web": "cgi ftplib html http ipaddress socket socketserver ssl telnetlib urllib webbrowser wsgiref xmlrpc",
}
MINIMUM_WORDS = 6
MAXIMUM_WORDS = 25
MINIMUM_ROWS = 200
VALIDATION_SHARE = 0.2

_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_TEST_FOLDERS = {"test", "tests"}


def load_docstrings(seed: int = 0, library: str | Path | None = None) -> DatasetDict:
    """Build the labelled docstrings of the standard library.

    One row per docstring of a module, class, function or method: its first 25 words, white space collapsed.
    Docstrings of fewer than 6 words are left out, repeated ones are kept once, and a text that occurs under two topics
    is dropped, because it has no single right label. The order depends on the seed and on the Python version only.

    Args:
        seed: shuffles the rows before a fifth of them becomes the validation split.
        library: the folder that holds the library's source files; by default that of the running interpreter.

    Returns:
        Splits "train" and "validation", which share no text, with columns `text` (string) and `label` (ClassLabel whose
        names are the topics).

    Raises:
        PruningError: if a topic has fewer than 200 docstrings, as where Python was installed without its source files.
    """
    root = Path(library or sysconfig.get_path("stdlib"))
    topics = sorted(TOPICS)
    rows = sorted((text, topics.index(topic)) for text, topic in _distinct_texts(root).items())
    for index, topic in enumerate(topics):
        found = sum(label == index for _, label in rows)
        if found < MINIMUM_ROWS:
            raise PruningError(
                f"found {found} docstrings about {topic!r} in {root}, at least {MINIMUM_ROWS} are needed: "
                "the demo reads the source files of Python's standard library, use an interpreter that has them"
            )
    random.Random(seed).shuffle(rows)
    validation = round(VALIDATION_SHARE * len(rows))
    return DatasetDict(
        {"train": _dataset(rows[validation:], topics), "validation": _dataset(rows[:validation], topics)}
    )


def _dataset(rows: list[tuple[str, int]], topics: list[str]) -> Dataset:
    features = Features({"text": Value("string"), "label": ClassLabel(names=topics)})
    return Dataset.from_dict({"text": [text for text, _ in rows], "label": [label for _, label in rows]}, features)


def _distinct_texts(root: Path) -> dict[str, str]:
    """Map every text to its topic; texts that differ in case only are one, as they are to the tokenizer."""
    texts: dict[str, str] = {}
    topic_of: dict[str, str] = {}
    ambiguous: set[str] = set()
    for topic, modules in TOPICS.items():
        for path in _source_files(root, modules.split()):
            for text in _docstrings(path):
                key = text.lower()
                texts.setdefault(key, text)
                if topic_of.setdefault(key, topic) != topic:
                    ambiguous.add(key)
    return {texts[key]: topic for key, topic in topic_of.items() if key not in ambiguous}


def _source_files(root: Path, modules: list[str]) -> Iterator[Path]:
    for module in modules:
        single = root / f"{module}.py"
        if single.is_file():
            yield single
        for path in sorted((root / module).rglob("*.py")):
            if _TEST_FOLDERS.isdisjoint(path.relative_to(root).parts):
                yield path


def _docstrings(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_bytes(), filename=str(path))):
        if isinstance(node, _DOCUMENTED):
            words = (ast.get_docstring(node) or "").split()
            if len(words) >= MINIMUM_WORDS:
                yield " ".join(words[:MAXIMUM_WORDS])
