"""Which dialect a model speaks: by the name in its configuration, else by its chat template."""

from __future__ import annotations

from gateway.dialects.base import Dialect
from gateway.dialects.plain import PlainDialect
from gateway.errors import ConfigError

_DIALECTS: dict[str, Dialect] = {dialect.name: dialect for dialect in (PlainDialect(),)}


def choose_dialect(name: str, template: str) -> Dialect:
    """The dialect called `name`, or the one that `template` was written for when `name` is "".

    Raises ConfigError when there is none of that name.
    """
    if name and name not in _DIALECTS:
        raise ConfigError(f"There is no dialect '{name}'; known are: {', '.join(sorted(_DIALECTS))}.")
    return _DIALECTS[name or "plain"]
