"""Parts of small chat templates. A template of a test is put together from them with `loop`."""

from __future__ import annotations

TURN = "[{{ m.role }}]{{ m.content if m.content is string else '' }}"
ALTERNATE = (
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate.') }}{% endif %}"
)
ONLY_TWO_ROLES = (
    "{% if m.role not in ('user', 'assistant') %}{{ raise_exception('Only user and assistant.') }}{% endif %}"
)
ONE_CALL = "{% if m.tool_calls and m.tool_calls | length > 1 %}{{ raise_exception('single calls only') }}{% endif %}"
TOOLS = "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}"


def calls(arguments: str) -> str:
    """`<NAME:ARGUMENTS>` for each call of a message. `arguments`: the expression that prints them."""
    return f"{{% for c in m.tool_calls or [] %}}<{{{{ c.function.name }}}}:{{{{ {arguments} }}}}>{{% endfor %}}"


AS_JSON = calls("c.function.arguments | tojson")
AS_TEXT = calls("'' + c.function.arguments")
AS_IT_IS = calls("c.function.arguments")


def loop(body: str, before: str = "") -> str:
    """A template that prints `before`, `body` for each message `m`, and the begin of an answer."""
    return (
        f"{before}{{% for m in messages %}}{body}{{% endfor %}}{{% if add_generation_prompt %}}[assistant]{{% endif %}}"
    )
