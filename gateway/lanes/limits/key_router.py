"""The router as an API key sees it that may use only some models."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from gateway.config.limits import limits_table
from gateway.config.value import nearest
from gateway.errors import LONGEST_QUOTE, ModelNotFound, quote
from gateway.lanes.router import Router


class KeyRouter(Router):
    """A view of `router`, for one request. The models that its key may not use do not exist: not by name or alias, not
    in lists, and not as a fallback.

    Args:
        models: that the key may use.
        key: its name; "" if the gateway has no keys.
    """

    def __init__(self, router: Router, models: Set[str], key: str) -> None:
        self._router, self._models, self._key = router, models, key

    def __getattr__(self, name: str) -> Any:
        return getattr(self._router, name)  # as it is now: a reload can change it while the request runs

    def check(self, name: str) -> None:
        """Raise ModelNotFound unless the key may use the model with this name. The default model does not take it."""
        model = self.known(name)
        if model is None or not self._may_use(model):
            raise self._not_found(name)

    def _may_use(self, model: str) -> bool:
        return model in self._models

    def _not_found(self, wanted: str) -> ModelNotFound:
        own = [name for name in self.lanes if self._may_use(name)]
        what = f"The model {quote(wanted)} does not exist or is not allowed" if wanted else "The request names no model"
        names = [name for name, model in self._names.items() if model in own]
        hint = nearest(wanted, names) if len(wanted) <= LONGEST_QUOTE else ""
        owner = f"the API key {quote(self._key)}" if self._key else "a client of this gateway"
        where = f"'models' in {limits_table(self._key)} of the gateway's config"
        may = f"{owner} may use {', '.join(own) or 'no model'} ({where})"
        return ModelNotFound(f"{what}{hint or ';'} {may if not hint else may[0].upper() + may[1:]}.", param="model")
