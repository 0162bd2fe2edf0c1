"""The table [server]."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct, field

from gateway.config.tables.scalars import Count, Port, Seconds


class ServerConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The HTTP server: address, keys, limits."""

    #: Address to listen on. "127.0.0.1" is only this machine, and includes ::1. "0.0.0.0" is every machine of the
    #: network, which needs a key or `insecure`.
    host: Annotated[str, Meta(min_length=1)] = "127.0.0.1"
    port: Port = 8000  # 0: any free port
    #: The API keys: `{ laptop = "a-long-random-text" }`. The name is in the log, the metrics and the usage. Without
    #: keys, clients need none. A table without a key in it is refused.
    api_keys: Annotated[dict[str, str], Meta(min_length=1)] = field(default_factory=dict)
    #: A file with more keys, one on each line: `KEY` or `NAME KEY`. Lines that begin with # are comments.
    api_keys_file: Annotated[str, Meta(min_length=1)] = ""
    insecure: bool = False  # let other machines connect without a key
    #: Names for the header `Host` of a request, without the port. Addresses, the names of this machine and those that
    #: containers have for it are always allowed. `"*"`: every name. The list protects a gateway without keys from web
    #: pages (DNS rebinding).
    allowed_hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "[::1]")
    #: Web pages that may use the gateway from a browser: `["https://chat.example"]`. `"*"`: every page.
    cors_origins: tuple[str, ...] = ()
    max_body_bytes: Count = 8 * 1024 * 1024  # largest body of a request, in bytes; a larger one gets 413
    ping_s: Seconds = 15.0  # a stream without data for this time gets a comment, so that proxies keep it open
    shutdown_grace_s: Annotated[float, Meta(ge=0, le=1e6)] = 10.0  # time for running requests to finish after Ctrl-C
    #: Time after SIGTERM in which requests are still accepted while /readyz is 503, so that a load balancer has stopped
    #: sending them at its end. Not for Ctrl-C. It comes before `shutdown_grace_s`.
    drain_s: Annotated[float, Meta(ge=0, le=1e6)] = 0.0
    timeout_s: Seconds = 600.0  # time limit of one request, with its time in the queue; then it gets 504
    log_prompts: bool = False  # write the text of every prompt to the log
    #: Apply each change of this file by itself, within seconds. false: only the models of new tables are loaded by
    #: themselves; `npu-gateway reload` applies the other changes.
    watch: bool = False
