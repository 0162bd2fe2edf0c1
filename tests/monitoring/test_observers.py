"""AnswerRecord and Observers."""

from __future__ import annotations

import logging

import pytest

from gateway.monitoring.observers import AnswerRecord, Observers


def test_observer_that_raises_is_logged_and_the_others_are_called(caplog: pytest.LogCaptureFixture) -> None:
    observers, seen = Observers(), list[AnswerRecord]()

    def broken(record: AnswerRecord) -> None:
        raise OSError("the disk is full")

    observers.add(broken)
    observers.add(seen.append)
    record = AnswerRecord(at=0.0, id="req-1", requested="m", ending="stop")
    with caplog.at_level(logging.ERROR):
        observers.ended(record)
    assert seen == [record]
    assert "the record of req-1 was not taken" in caplog.text and "the disk is full" in caplog.text
