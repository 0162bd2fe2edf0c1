"""Takes the record of each request, and writes the numbers to the store every 30 seconds from a thread."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from gateway.monitoring.observers import AnswerRecord
from gateway.monitoring.usage.counts import Cell, Counts, cell_of, counts_of
from gateway.monitoring.usage.store import UsageStore
from gateway.state.database import StateError

_FLUSH_S = 30.0
_LAST_FLUSH_S = 10.0  # a disk that hangs does not hold the end of the gateway for longer
_MOST_CELLS = 10_000  # that wait while the database cannot be written; the oldest go first

_log = logging.getLogger(__name__)


class UsageHistory:
    """The usage of this gateway. `add` is an observer, and returns at once.

    with history.writing():
        ...  # serve

    A database that cannot be written is one warning. The numbers wait in memory, and are written when it can be.
    """

    def __init__(self, store: UsageStore) -> None:
        self.store = store
        self._pending: dict[Cell, Counts] = {}
        self._guard = threading.Lock()  # of `_pending`
        self._flushing = threading.Lock()
        self._stopped = threading.Event()
        self._is_due = threading.Event()  # something waits to be written, or the end
        self._is_failing = False

    def add(self, record: AnswerRecord) -> None:
        cell, counts = cell_of(record), counts_of(record)
        with self._guard:
            self._pending.setdefault(cell, Counter()).update(counts)
        self._is_due.set()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """A thread writes meanwhile. At the end everything is written."""
        thread = threading.Thread(target=self._run, name="usage history", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            self._is_due.set()
            thread.join(_LAST_FLUSH_S)

    def flush(self) -> None:
        """Write what waits. A failure is logged, once until the next success."""
        with self._flushing:
            with self._guard:
                cells, self._pending = self._pending, {}
            if not cells:
                return
            try:
                self.store.add(cells)
            except Exception as error:  # the gateway serves on, whatever it is
                self._take_back(cells)
                self._warn(error, "is not written at present")
            else:
                self._is_failing = False

    def rows(self, since_hour: int) -> dict[Cell, Counts]:
        """The numbers from this hour on, with those that are not written yet. Raises StateError."""
        self.flush()
        try:
            rows = self.store.rows(since_hour)
        except StateError as error:
            self._warn(error, "cannot be read")
            raise
        with self._guard:
            for cell, counts in self._pending.items():
                if cell.hour >= since_hour:
                    rows.setdefault(cell, Counter()).update(counts)
        return rows

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._is_due.wait()
            self._stopped.wait(_FLUSH_S)
            self._is_due.clear()
            self.flush()
        self.flush()  # what came during the last one

    def _take_back(self, cells: dict[Cell, Counts]) -> None:
        with self._guard:
            for cell, counts in self._pending.items():
                cells.setdefault(cell, Counter()).update(counts)
            self._pending = cells
            for cell in sorted(cells)[: max(0, len(cells) - _MOST_CELLS)]:
                del cells[cell]
        self._is_due.set()

    def _warn(self, error: Exception, what: str) -> None:
        if self._is_failing:
            return
        self._is_failing = True
        text = str(error) if isinstance(error, StateError) else f"{self.store.database.label}: {error!r}"
        _log.warning("the usage history %s: %s. Answers are not affected.", what, text.rstrip("."))
