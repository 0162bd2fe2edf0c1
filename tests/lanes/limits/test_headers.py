"""The headers of limits, in the formats of OpenAI and Anthropic."""

from __future__ import annotations

import pytest

from gateway.lanes.limits.counters import Levels, Quota
from gateway.lanes.limits.headers import OPENAI_HEADERS, anthropic_headers, duration, openai_headers

QUOTA = Quota(requests=60, tokens=600)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.0004, "1ms"),
        (0.12, "120ms"),
        (0.9999, "1s"),
        (1, "1s"),
        (7.66, "7.66s"),
        (59.9999, "1m0s"),
        (360, "6m0s"),
        (90.5, "1m30.5s"),
        (3600, "1h0m0s"),
        (90061.25, "25h1m1.25s"),
    ],
)
def test_duration_is_written_as_openai_does(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_openai_headers_have_limit_remaining_and_reset() -> None:
    headers = openai_headers(Levels(requests=1.5, tokens=601), QUOTA)
    assert headers == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "58",
        "x-ratelimit-reset-requests": "1.5s",
        "x-ratelimit-limit-tokens": "600",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "1m0.1s",
    }
    assert set(headers) == set(OPENAI_HEADERS)


def test_anthropic_headers_have_the_time_of_the_reset() -> None:
    assert anthropic_headers(Levels(requests=1.5, tokens=600), QUOTA, 1767225600.0) == {
        "anthropic-ratelimit-requests-limit": "60",
        "anthropic-ratelimit-requests-remaining": "58",
        "anthropic-ratelimit-requests-reset": "2026-01-01T00:00:02Z",
        "anthropic-ratelimit-tokens-limit": "600",
        "anthropic-ratelimit-tokens-remaining": "0",
        "anthropic-ratelimit-tokens-reset": "2026-01-01T00:01:00Z",
    }
    late = anthropic_headers(Levels(tokens=1e15), Quota(tokens=1), 1767225600.0)
    assert late["anthropic-ratelimit-tokens-reset"] == "9999-12-31T23:59:59Z"


def test_limit_that_a_key_does_not_have_has_no_header() -> None:
    assert list(openai_headers(Levels(), Quota(concurrent=3))) == []
    assert {name[-8:] for name in openai_headers(Levels(), Quota(requests=3))} == {"requests"}
