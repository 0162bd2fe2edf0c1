"""Which config.toml is read, and why."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from gateway.bundles.disk import data_folder
from gateway.config.check import TABLES, fields_of
from gateway.config.tables import Config
from gateway.config.toml_file import has_header, read_toml
from gateway.errors import ConfigError

CONFIG_VARIABLE = "NPU_GATEWAY_CONFIG"
NAME = "config.toml"
_log = logging.getLogger("gateway")


class Candidate(NamedTuple):
    """One step of the search.

    Args:
        why: what makes it a candidate: "--config", "this folder", ...
        base: the folder to which relative paths in the file are relative.
        state: "used" at most once; "" after that.
    """

    file: Path
    base: Path
    why: str
    state: str


def find_config(path: Path | None = None, environ: Mapping[str, str] | None = None) -> tuple[Path, Path]:
    """The file to read, and the folder to which its relative paths are relative."""
    found = next(each for each in search(path, environ) if each.state == "used")
    return found.file, found.base


def search(path: Path | None = None, environ: Mapping[str, str] | None = None) -> list[Candidate]:
    """The files in the order of the search, and which of them is used.

    `--config FILE`, the variable NPU_GATEWAY_CONFIG, ./config.toml if it is of this program, config.toml in the user's
    data folder, the delivered one.
    """
    is_found = False
    candidates = []
    for each in _candidates(path, os.environ if environ is None else environ):
        candidates.append(each._replace(state="") if is_found else each)
        is_found = is_found or each.state == "used"
    return candidates


def warn_of_foreign(path: Path | None, environ: Mapping[str, str]) -> None:
    """Log once that ./config.toml is passed over, if it is."""
    for each in search(path, environ):
        if each.state == _FOREIGN:
            _warn(str(each.file.absolute()))


_FOREIGN = "of another program: it has no [models] table"


def _candidates(path: Path | None, environ: Mapping[str, str]) -> Iterator[Candidate]:
    if path is not None:
        yield Candidate(path, path.absolute().parent, "--config", "used")
    elif named := environ.get(CONFIG_VARIABLE):
        yield Candidate(Path(named), Path(named).absolute().parent, f"environment variable {CONFIG_VARIABLE}", "used")
    here = Path(NAME)
    yield Candidate(here, Path.cwd(), "the current folder", _state(here))
    user = user_file(environ)
    yield Candidate(user, user.parent, "your data folder", "used" if user.is_file() else "no file")
    delivered, base = delivered_file(environ)
    yield Candidate(delivered, base, "delivered with npu-gateway", "used")


def user_file(environ: Mapping[str, str] | None = None) -> Path:
    """The file of this user, for every folder that he works in. It may not exist."""
    return data_folder(environ) / NAME


def config_folder() -> Path:
    """The folder of this user's configuration of all programs, on Linux."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")


def delivered_file(environ: Mapping[str, str] | None = None) -> tuple[Path, Path]:
    """The file in the package, or in the clone, and the folder of its relative paths."""
    packaged = Path(__file__).parent.with_name(NAME)
    if packaged.is_file():
        return packaged, data_folder(environ)
    clone = clone_folder()
    return clone / NAME, clone


def clone_folder() -> Path:
    """The folder of this code's clone. `scripts/code_copy.py` writes it into `clone` next to a copy of the code."""
    here = Path(__file__).parents[2]
    copied = here / "clone"
    return Path(copied.read_text(encoding="utf-8")) if copied.is_file() else here


def own_program(name: str) -> Path:
    """The program `name` next to Python. In a clone it is behind the link `.venv`, which an upgrade does not change."""
    python, link = Path(sys.executable).absolute(), clone_folder() / ".venv"
    is_clone = link.exists() and link.resolve() == Path(sys.prefix).resolve()
    return (link / python.parent.name if is_clone else python.parent) / name


def _state(file: Path) -> str:
    try:
        stat = file.stat()
    except OSError:
        return "no file"
    if not file.is_file():
        return "no file"
    return "used" if _is_ours(file.absolute(), stat.st_mtime_ns, stat.st_size) else _FOREIGN


@lru_cache(maxsize=8)  # the running gateway looks every second
def _is_ours(file: Path, changed_ns: int, size: int) -> bool:
    """True if the file has a model, also if it has mistakes, or nothing but keys of this program."""
    try:
        if has_header(file, {"models"}):
            return True
        content = read_toml(file)
    except OSError:
        return True  # the reader says why it cannot be read
    except ConfigError:
        return has_header(file, TABLES.keys() & _ONLY_OURS)
    known = {"models", *TABLES, *fields_of(Config)}
    tables = [name.lower() for name, value in content.items() if isinstance(value, dict)]
    if any(get_close_matches("models", tables, 1, _NEAR)):
        return True
    return "models" in content or (content.keys() <= known and all(map(_is_table_of_ours, content.items())))


_NEAR = 0.8  # of 1: [model], [Models], [modles]; not Hugo's [module]
_ONLY_OURS = {"breaker", "defaults", "usage"}


def _is_table_of_ours(item: tuple[str, object]) -> bool:
    name, table = item
    struct = TABLES.get(name)
    return struct is None or (isinstance(table, dict) and table.keys() <= fields_of(struct).keys())


@lru_cache(maxsize=8)
def _warn(file: str) -> None:
    _log.warning("%s is %s. It is passed over; --config %s reads it.", file, _FOREIGN, file)
