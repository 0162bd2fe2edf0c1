"""The table [state]."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct


class StateConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What several gateways share: usage, limits of keys, keys, stored responses. docs/state.md has an example."""

    #: The database: "sqlite:///FILE" for gateways of this machine, "postgresql://USER:PASSWORD@HOST:PORT/DATABASE" for
    #: gateways of several machines, with the package of `npu-gateway[postgres]`. @ and / in the password are written as
    #: %40 and %2F. "": state.sqlite in the data folder has the usage and the keys of `npu-gateway keys`; responses and
    #: what counts against limits stay in memory.
    url: str = ""
    #: A request needs a key: one of [server], or one of `npu-gateway keys add NAME`, which are in the database.
    keys: bool = False
    #: Days for which responses of the Responses API are stored, if `url` is set. Before, the oldest ones of a key are
    #: deleted if it has too many.
    responses_days: Annotated[int, Meta(ge=1, le=3660)] = 30
