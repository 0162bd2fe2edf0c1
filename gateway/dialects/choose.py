"""Which dialect a model speaks: by the name in its configuration, else by its chat template."""

from __future__ import annotations

from gateway.dialects.base import Dialect
from gateway.dialects.hermes import HermesDialect
from gateway.dialects.llama import LlamaDialect
from gateway.dialects.mistral import MistralDialect
from gateway.dialects.phi import PhiDialect
from gateway.dialects.plain import PlainDialect
from gateway.errors import ConfigError

_DIALECTS: dict[str, Dialect] = {
    dialect.name: dialect
    for dialect in (
        PlainDialect(),
        HermesDialect("generic"),
        HermesDialect("hermes"),
        HermesDialect("qwen"),
        LlamaDialect(),
        MistralDialect("mistral"),
        MistralDialect("mistral-args"),
        PhiDialect(),
    )
}

DIALECT_NAMES = tuple(sorted(_DIALECTS))

#: What only this family's templates contain; the first that is found decides.
_SIGNS = (
    ("[ARGS]", "mistral-args"),
    ("[TOOL_CALLS]", "mistral"),
    ("[AVAILABLE_TOOLS]", "mistral"),
    ("<|tool|>", "phi"),
    ("<|/tool", "phi"),
    ("enable_thinking", "qwen"),
    ("<tool_call>", "hermes"),
    ("<|python_tag|>", "llama"),
    ("<|start_header_id|>", "llama"),
)


def choose_dialect(name: str, template: str) -> Dialect:
    """The dialect called `name`, or the one that `template` was written for when `name` is "".

    A template of no known family gets "generic"; without one the text is "plain". Raises ConfigError when there is no
    dialect of that name.
    """
    if name and name not in _DIALECTS:
        raise ConfigError(f"There is no dialect '{name}'; known are: {', '.join(DIALECT_NAMES)}.")
    return _DIALECTS[name or _by_signs(template)]


def _by_signs(template: str) -> str:
    if not template:
        return "plain"
    return next((dialect for sign, dialect in _SIGNS if sign in template), "generic")
