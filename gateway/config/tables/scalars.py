"""Types of values in config.toml, with their ranges."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

Port = Annotated[int, Meta(ge=0, le=65535)]  # 0: any free port
# The upper limits refuse `inf`, which would switch a limit off, and what a timer of the system cannot hold.
Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Natural = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Seconds = Annotated[float, Meta(gt=0, le=1e6)]
Millis = Annotated[float, Meta(ge=0, le=1e9)]
Delay = Annotated[float, Meta(ge=0)]  # of a script; `inf` hangs
Share = Annotated[float, Meta(gt=0, le=1)]
Weight = Annotated[float, Meta(gt=0, le=1e6)]
Truncation = Literal["auto", "disabled"]  # "auto": leave out the oldest turns of a chat that is too long
MaxTokens = Count | Literal["context"]  # "context": up to the end of the context
KeepAlive = Annotated[float, Meta(ge=-1, le=1e9)]  # seconds; negative: for ever
