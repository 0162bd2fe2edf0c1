"""The model that a bundle was made from, and its tokenizer: AI Hub's export for ONNX Runtime GenAI has none."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from gateway.bundles.genai_config import read_genai_config
from gateway.bundles.identify import identify
from gateway.errors import BundleError
from gateway.pull.download import Downloader
from gateway.pull.hub import read_repo, remotes
from gateway.pull.report import Report
from gateway.pull.sources import find_sources
from gateway.pull.spec import HubSpec

#: The files that name it: `"_name_or_path": "ORG/REPO"`, `base_model: ORG/REPO` in the head of a model card, ...
_FILES = ("metadata.json", "metadata.yaml", "config.json", "genai_config.json", "tool-versions.yaml", "README.md")
_KEYS = rb"_name_or_path|base_model|(?:hf|huggingface)_(?:repo|model)(?:_name|_id)?"
_NAME = re.compile(rb"""\b(?:%b)"?\s*+:\s*+["'\[\s-]*+([\w.-]{1,96}/[\w.-]{1,96})(?![\w./-])""" % _KEYS)
_LONGEST = 1024 * 1024  # bytes of one file
_WANTED = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def without_tokenizer(folder: Path) -> Path | None:
    """The bundle in `folder` if it is in ONNX Runtime GenAI's form, has no tokenizer and names no folder with one."""
    try:
        found = identify(folder)
        root = Path(str(found.root))
        if found.layout not in ("pipeline", "graph") or (root / "tokenizer.json").is_file():
            return None
        return None if read_genai_config(root).tokenizer_dir else root
    except BundleError:  # it is refused, with the reason
        return None


def original_of(root: Path) -> str:
    """ORG/REPO of the model that the bundle in `root` was made from; "": its files do not name it."""
    for name in _FILES:
        try:
            with (root / name).open("rb") as file:
                found = _NAME.search(file.read(_LONGEST))
        except OSError:
            continue
        if found:
            return found[1].decode()
    return ""


def fetch_tokenizer(
    root: Path, folder: Path, downloader: Downloader, report: Report, say: Callable[[str], None]
) -> bool:
    """Download the tokenizer of the model that the bundle in `root` was made from into `folder`. False: impossible."""
    name = original_of(root)
    if not name:
        return False
    try:
        hub = find_sources().hub
        repo = read_repo(hub, HubSpec(repo=name))
        wanted = remotes(hub, repo, [file for file in repo.files if file.path in _WANTED], "")
        if "tokenizer.json" not in wanted:
            raise BundleError(f"{name} has no tokenizer.json.")
        say(f"the bundle has no tokenizer, so that of {name} is downloaded")
        folder.mkdir(parents=True, exist_ok=True)
        for path, remote in wanted.items():
            downloader.fetch(remote, folder / path, report)
    except BundleError as error:
        say(f"the tokenizer of {name} cannot be downloaded: {error.message}")
        return False
    return True
