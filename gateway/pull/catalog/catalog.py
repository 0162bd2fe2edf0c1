"""Every model that a user can get for the chips of Snapdragon laptops, and one model by its name."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from gateway.bundles.disk import cache_folder
from gateway.config.hosts import is_loopback
from gateway.errors import BundleError, ConfigError, quote
from gateway.pull.catalog.ai_hub import Listed, read_ai_hub
from gateway.pull.catalog.entry import Entry, same_key
from gateway.pull.catalog.fetch import Reader
from gateway.pull.catalog.hub import read_hub
from gateway.pull.catalog.kept import Answer, kept_or_read
from gateway.pull.catalog.listed import listed_entries, with_speed
from gateway.pull.sources import Sources, find_sources
from gateway.qnn.chips import CHIPS, Chip

_SOURCE_ORDER = ("AI Hub", "Hugging Face", "AI Dev Home", "AI Hub (older)")


class Catalog(NamedTuple):
    """The entries, sorted by name, and one sentence for each server that could not be read.

    `is_read`: a server answered, now or in the last day. `is_whole`: of each server there is a
    list, perhaps an old one.
    """

    entries: list[Entry]
    problems: list[str]
    is_read: bool = True
    is_whole: bool = True


def read_catalog(
    *,
    sources: Sources | None = None,
    refresh: bool = False,
    folder: Path | None = None,
    make_reader: Callable[[], Reader] = Reader,
    now_s: float | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Catalog:
    """List the models. A server that does not answer costs its entries, or makes them old ones, and no more.

    Args:
        refresh: read the servers also if there is a list of today.
        folder: of the lists of today; None: the user's cache folder.
        say: gets one line before a server is read, which takes seconds.
    """
    sources = sources or find_sources()
    folder = folder or cache_folder()
    now_s = time.time() if now_s is None else now_s
    with make_reader() as reader:

        def read(name: str, server: str, listing: Callable[[], Listed]) -> Answer:
            def with_a_line() -> Listed:
                say(f"reading the lists of {name}")
                return listing()

            file = folder / f"{name.lower().replace(' ', '-')}.json"
            return kept_or_read(file, server, with_a_line, refresh=refresh, now_s=now_s)

        hub_models = read("AI Hub", sources.ai_hub, lambda: read_ai_hub(sources.ai_hub, reader))
        known = {same_key(entry.title) for entry in hub_models.entries}
        others = read("Hugging Face", sources.hub, lambda: read_hub(sources.hub, reader, known))
    cards = [entry for entry in others.entries if entry.url.startswith("hf:") or same_key(entry.title) not in known]
    entries = filter(_is_protected, [*hub_models.entries, *cards, *listed_entries(sources)])
    problems = [*_sentences("AI Hub", hub_models), *_sentences("Hugging Face", others)]
    is_read = bool(hub_models.entries or others.entries)
    is_whole = all(answer.entries or not answer.problem for answer in (hub_models, others))
    return Catalog(sorted(map(with_speed, entries), key=_order), problems, is_read, is_whole)


def resolve(name: str, chip: Chip, catalog: Catalog | None = None) -> Entry:
    """The best entry with this name for the chip: one that can be served and downloaded, if there is one.

    Its `url` is "" if the model cannot be downloaded; `export` then has the commands that make it.
    Raises ConfigError with the nearest names or with the chips that have the model, BundleError if a list is missing.
    """
    return named(name, chip, catalog or read_catalog())[0]


def named(name: str, chip: Chip | None, catalog: Catalog) -> list[Entry]:
    """The entries with this name that the chip runs, the one to pull first; None: of every chip.

    Raises ConfigError if there is none, BundleError if it can be in a list that could not be read.
    """
    every = [entry for entry in catalog.entries if same_key(name) in (same_key(entry.name), same_key(entry.id))]
    if not every and not catalog.is_whole:
        raise BundleError(f"{quote(name)} is in no list that could be read. {catalog.problems[0]}")
    if not every:
        raise ConfigError(_unknown(name, catalog))
    found = [entry for entry in every if chip is None or is_for(entry, chip)]
    if not found and chip:
        chips = ", ".join(other.title for other in CHIPS if any(entry.chip == other.name for entry in every))
        raise ConfigError(f"{every[0].name} is not published for {chip.title}. It is published for {chips}.")
    return sorted(_without_doubles(found, chip), key=lambda entry: (entry.kind != "text", not entry.url, _order(entry)))


def is_for(entry: Entry, chip: Chip) -> bool:
    """True if the chip runs it. X Plus runs what was made for X Elite: they have one NPU."""
    made_for = next(other for other in CHIPS if other.name == entry.chip)
    return made_for == chip or (
        set(made_for.soc_models) <= set(chip.soc_models) and set(made_for.ai_hub_names) <= set(chip.ai_hub_names)
    )


def entries_for(chip: Chip | None, catalog: Catalog) -> list[Entry]:
    """The entries that the chip runs; None: all."""
    return _without_doubles([entry for entry in catalog.entries if chip is None or is_for(entry, chip)], chip)


def _without_doubles(entries: list[Entry], chip: Chip | None) -> list[Entry]:
    """Without entries of another chip, if the same source has the model for this chip."""
    own = {(entry.name, entry.source) for entry in entries if chip and entry.chip == chip.name}
    return [entry for entry in entries if not chip or entry.chip == chip.name or (entry.name, entry.source) not in own]


def _order(entry: Entry) -> tuple[object, ...]:
    """By name, then Qualcomm's own files before those that others put into the Hub."""
    source = _SOURCE_ORDER.index(entry.source) if entry.source in _SOURCE_ORDER else len(_SOURCE_ORDER)
    is_of_others = entry.url.startswith("hf:")
    return (entry.name, is_of_others, source, entry.chip, entry.precision != "w4a16", entry.precision)


def _is_protected(entry: Entry) -> bool:
    """False for an address without encryption: what a server lists must not lead there."""
    try:
        host = urlsplit(entry.url).hostname or ""
        return not entry.url or entry.url.startswith(("hf:", "https://")) or is_loopback(host)
    except ValueError:  # no address at all
        return False


def _sentences(server: str, answer: Answer) -> Iterator[str]:
    if answer.problem:
        old = f" Its list is {answer.age_s / 86400:.1f} days old." if answer.entries else ""
        yield f"{server} could not be read: it {answer.problem}.{old} {answer.next_step}"
    yield from (f"{server} {problem}." for problem in answer.problems)


def _unknown(name: str, catalog: Catalog) -> str:
    names = list(dict.fromkeys(entry.name for entry in catalog.entries))
    close = _closest(name, names)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    unread = f" {catalog.problems[0]}" if catalog.problems else ""
    return f"There is no model {quote(name)} in the catalog.{hint} `npu-gateway catalog` lists the models.{unread}"


def _closest(name: str, names: Iterable[str]) -> list[str]:
    """At most three names: those that begin with the same letters, or that are spelt alike."""
    names = list(names)
    wanted = same_key(name)
    longer = [each for each in names if wanted and same_key(each).startswith(wanted)]
    return (longer or difflib.get_close_matches(name.lower(), names, 3, 0.6))[:3]
