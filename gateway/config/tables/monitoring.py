"""The tables [log], [traces] and [usage]."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct


class LogConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The log. It goes to stderr, and to a file."""

    level: Literal["debug", "info", "warning", "error"] = "info"  # lines of this level and above are written
    format: Literal["text", "json"] = "text"  # of the file, and of stderr if it is not a terminal
    #: A path. "auto": logs/gateway.log in the data folder, if stderr is not a terminal. "": no file.
    file: str = "auto"
    max_mb: Annotated[float, Meta(gt=0, le=1e6)] = 10.0  # size of one file, in units of 1,000,000 bytes
    files: Annotated[int, Meta(ge=1, le=1000)] = 5  # number of files: the newest and older ones; the oldest is deleted


class TracesConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """OpenTelemetry traces, with the packages of `npu-gateway[otel]`: a span for each request, without prompts."""

    #: The address of the collector, for OTLP over HTTP: "http://127.0.0.1:4318". "": no traces. Headers for it come
    #: from the environment variable OTEL_EXPORTER_OTLP_HEADERS.
    endpoint: str = ""


class UsageConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The usage history: counts of each hour, model and key name in the database of [state], without prompts."""

    enabled: bool = True  # false: nothing is kept
    #: The number of days with requests that are kept. Older ones are deleted.
    days: Annotated[int, Meta(ge=1, le=3660)] = 30
