"""The registry of dialects, and the choice of a model's dialect.

To add a dialect:

1. Add a file to `families/` with a subclass of `FamilyDialect` (20 to 40 lines; `phi.py` is the shortest).
2. Add a line to `_REGISTRY`, with strings that occur only in the chat templates of this family.
3. tests/dialects/ tests every dialect of the registry. Add a row to `test_family_accepts_call_spelling` for each
   spelling that models write.
"""

from __future__ import annotations

from typing import NamedTuple

from gateway.dialects.base import Dialect
from gateway.dialects.families.deepseek import DeepSeekDialect
from gateway.dialects.families.gemma import GemmaDialect
from gateway.dialects.families.granite import GraniteDialect
from gateway.dialects.families.hermes import HermesDialect
from gateway.dialects.families.llama import LlamaDialect
from gateway.dialects.families.mistral import MistralDialect
from gateway.dialects.families.phi import PhiDialect
from gateway.dialects.plain import PlainDialect
from gateway.errors import ConfigError


class _Entry(NamedTuple):
    dialect: Dialect
    template_signs: tuple[str, ...] = ()  # a chat template with one of these strings belongs to the family


#: The first entry with a sign in the template is chosen, so the more specific entry comes first.
_REGISTRY = (
    _Entry(MistralDialect("mistral-args"), ("[ARGS]",)),
    _Entry(MistralDialect("mistral"), ("[TOOL_CALLS]", "[AVAILABLE_TOOLS]")),
    _Entry(PhiDialect("phi"), ("<|tool|>", "<|/tool")),
    _Entry(HermesDialect("qwen"), ("enable_thinking",)),
    _Entry(HermesDialect("hermes"), ("<tool_call>",)),
    _Entry(LlamaDialect("llama"), ("<|python_tag|>", "<|start_header_id|>")),
    _Entry(DeepSeekDialect("deepseek"), ("<｜Assistant｜>",)),
    _Entry(GraniteDialect("granite"), ("<|start_of_role|>",)),
    _Entry(GemmaDialect("gemma"), ("<start_of_turn>",)),
    _Entry(HermesDialect("generic")),  # for a template of an unknown family
    _Entry(PlainDialect()),  # for a model without a template
)
_BY_NAME = {entry.dialect.name: entry.dialect for entry in _REGISTRY}
DIALECT_NAMES = tuple(sorted(_BY_NAME))


def choose_dialect(name: str, *templates: str) -> Dialect:
    """Return the dialect with this name. If the name is "", return the dialect of the chat templates.

    Args:
        name: the value of the configuration key `dialect`.
        templates: the Jinja sources of the model's chat templates; "" for one that it does not have.

    Raises:
        ConfigError: no dialect has this name.
    """
    if name and name not in _BY_NAME:
        raise ConfigError(f"There is no dialect '{name}'; known are: {', '.join(DIALECT_NAMES)}.")
    return _BY_NAME[name or _name_for("".join(templates))]


def _name_for(template: str) -> str:
    if not template:
        return "plain"
    found = (entry for entry in _REGISTRY if any(sign in template for sign in entry.template_signs))
    return next((entry.dialect.name for entry in found), "generic")
