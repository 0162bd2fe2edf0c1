"""The template sandbox: hostile templates are stopped, ordinary templates render as Jinja renders them."""

from __future__ import annotations

import tracemalloc
from typing import Any

import jinja2
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gateway.text import jinja_sandbox
from gateway.text.jinja_sandbox import BudgetExceeded, Environment, render

VARIABLES: dict[str, Any] = {
    "messages": [{"role": "user", "content": "é <b>"}, {"role": "assistant", "content": "two\nlines"}],
    "text": "x" * 100_000,
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"a": [1, None, True]}}}],
}

BOMBS = {
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "loops over data": "{% for a in text %}{% for b in text %}{% endfor %}{% endfor %}",
    "a comprehension of filters": "{% for i in range(99999) %}{% set x = text[:5000]|list|sort %}{% endfor %}",
    "a slice in a loop": "{% set big = text * 100 %}{% for i in range(99999) %}{% set x = big[1:] %}{% endfor %}",
    "a macro calling itself twice": (
        "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(60) }}"
    ),
    "output": "{% for i in range(99999) %}{{ text }}{% endfor %}",
    "constant output": "{% for i in range(99999) %}{% for j in range(99999) %}"
    + "y" * 1000
    + "{% endfor %}{% endfor %}",
    "output into a variable": "{% set x %}{% for i in range(99999) %}{{ text }}{% endfor %}{% endset %}",
    "doubling with ~": "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "doubling with +": "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "doubling a list": "{% set n = namespace(x=[1]) %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "squaring": "{% set n = namespace(x=9) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "a power": "{{ 9 ** 9 ** 9 ** 9 }}",
    "repetition": "{{ 'x' * 999999999 }}",
    "repetition in steps": "{{ ('x' * 99999) * 99999 }}",
    "a long list": "{{ [0] * 999999999 }}",
    "a nested list": "{{ [[text] * 9999] * 9999 }}",
    "json": "{{ ([text] * 99999) | tojson }}",
    "indented json": "{{ tools | tojson(indent=999999999) }}",
    "a join": "{{ ([text] * 99999) | join(text) }}",
    "a joined generator": "{{ range(99999) | map('string') | join(text) }}",
    "a method join": "{{ text.join(range(99999) | map('string')) }}",
    "replacement": "{{ text | replace('x', text) }}",
    "method replacement": "{{ text.replace('x', text) }}",
    "indentation": "{{ ('\n' * 99999) | indent(99999, true, true) }}",
    "padding": "{{ 'x'.center(999999999) }}",
    "tabs": "{{ ('\t' * 99999).expandtabs(99999) }}",
    "translation": "{{ text.translate({120: text}) }}",
    "a wide format": "{{ '%999999999d' % 1 }}",
    "a wide format by argument": "{{ '%*d' % (999999999, 1) }}",
    "many formats": "{{ ('%(a)s' * 9999) % {'a': text} }}",
    "str.format": "{{ '{:>999999999}'.format(1) }}",
    "many str.formats": "{{ ('{0}' * 9999).format(text) }}",
    "string of a list": "{% set x = ([text] * 99999) | string %}",
}


class StepClock:
    """A clock that advances by one second each time it is read: the deadline becomes a number of budget checks."""

    def __init__(self) -> None:
        self.reads = 0

    def __call__(self) -> float:
        self.reads += 1
        return float(self.reads)


@pytest.mark.parametrize("name", BOMBS)
def test_hostile_template_is_stopped_within_step_and_memory_budget(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jinja_sandbox, "MAX_SECONDS", 300.0)
    template, clock = Environment().from_string(BOMBS[name]), StepClock()
    tracemalloc.start()
    try:
        with pytest.raises((BudgetExceeded, jinja2.TemplateError)):
            render(template, VARIABLES, clock)
        assert clock.reads <= 302  # the deadline, its first check, and the check that stops the template
        assert tracemalloc.get_traced_memory()[1] < 400e6
    finally:
        tracemalloc.stop()


def test_endless_template_is_stopped_by_the_real_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jinja_sandbox, "MAX_SECONDS", 0.05)
    with pytest.raises(BudgetExceeded, match=r"more than 0\.05 s"):
        render(Environment().from_string(BOMBS["nested loops"]), VARIABLES)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ self.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{% include 'x' %}",
        "{% import 'x' as y %}",
    ],
)
def test_template_cannot_reach_python(source: str) -> None:
    with pytest.raises((jinja2.TemplateError, TypeError)):
        render(Environment().from_string(source), VARIABLES)


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ loop.index }}/{{ loop.length }} {{ m.role }}: {{ m['content'] | trim }}{% endfor %}",
        "{% for m in messages if m.role == 'user' %}{{ loop.last }}{% else %}none{% endfor %}",
        "{% for m in [] %}x{% else %}none{% endfor %}",
        "{% for k, v in tools[0].items() %}{{ k }}={{ v }};{% endfor %}",
        "{% for i in messages recursive %}{{ i.role }}{% endfor %}",
        "{% set n = namespace(found=false) %}{% for m in messages %}{% set n.found = true %}{% endfor %}{{ n.found }}",
        "{% macro greet(x, y='!') %}hi {{ x }}{{ y }}{% endmacro %}{{ greet('a') }}{{ greet(1, y=2) }}",
        "{% set x %}block {{ 1 + 1 }}{% endset %}{{ x ~ 1 ~ none ~ 'b' }}",
        "{{ 'a%sb' % 3 }} {{ 7 % 2 }} {{ '{}-{}'.format(1, 'z') }} {{ 2 ** 5 }} {{ 'ab' * 3 }}",
        "{{ messages | map(attribute='role') | join(', ') }} {{ ['a', 1] | join }} {{ 5 | string }}",
        "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}",
        "{{ 'a,b'.split(',')[-1] }} {{ 'abc'[1:] }} {{ ' x '.strip() }} {{ 'a' in 'abc' }} {{ 'x\ny' | indent(4) }}",
        "{{ undefined_thing }}{% if undefined_thing is defined %}no{% endif %}{{ text[:3] | upper }}",
        "  {% if true %}\n  trimmed\n  {% endif %}\n",
    ],
)
def test_ordinary_template_renders_as_in_plain_jinja(source: str) -> None:
    plain = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    assert render(Environment().from_string(source), VARIABLES) == plain.from_string(source).render(VARIABLES)


def test_extensions_of_transformers_are_supported() -> None:
    environment = Environment()
    assert render(environment.from_string("{{ messages[0] | tojson }}"), VARIABLES) == (
        '{"role": "user", "content": "é <b>"}'
    )
    source = "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% break %}{% endfor %}"
    assert render(environment.from_string(source), VARIABLES) == "assistant"
    assert render(environment.from_string("a{% generation %}b{{ 1 }}{% endgeneration %}c"), VARIABLES) == "ab1c"
