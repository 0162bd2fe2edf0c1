"""The template sandbox: no way to Python, limits in its process, ordinary templates render as Jinja renders them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import jinja2
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gateway.sandbox.process import Sandbox
from gateway.sandbox.running import Limits, SandboxLimit
from gateway.text.jinja_environment import Environment

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
    "a power": "{{ 9 ** (9 ** 9) }}",
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
    "sample text": "{{ lipsum(999999) }}",
    "a batch filled up": "{{ [1] | batch(999999999, 0) | list }}",
    "two deep lists compared": (
        "{% set n = namespace(x=[0], y=[0]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}"
        "{% set n.y = [n.y, n.y] %}{% endfor %}{{ n.x == n.y }}"
    ),
    "a padded number in a repeated format": "{% set x = ('%(a)99999d' * 40000) % {'a': 1} %}",
    "slices kept in a list": (
        "{% set n = namespace(x=[]) %}{% for i in range(99999) %}{% set n.x = n.x + [text[1:]] %}{% endfor %}"
    ),
    "a deep list printed": (
        "{% set n = namespace(x=[0]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}"
    ),
    "a search in a deep list": (
        "{% set n = namespace(x=[0], y=[0]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}"
        "{% set n.y = [n.y, n.y] %}{% endfor %}{{ n.x in [n.y] }}"
    ),
    "a recursive loop": (
        "{% for a in [[[messages]]] recursive %}{% for i in range(9999) %}{{ loop.parent }}{% endfor %}{% endfor %}"
        "{% for i in range(99999) %}{% for j in range(99999) %}{{ loop.index }}{% endfor %}{% endfor %}"
    ),
    "a cycler without an end": (
        "{% set c = cycler(1, 2) %}{% for i in range(99999) %}{% for j in range(99999) %}{{ c.next() }}"
        "{% endfor %}{% endfor %}"
    ),
}

LIMITS = Limits(cpu_s=0.5, wall_s=120, resident_bytes=300 << 20, address_bytes=1 << 30)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    sandbox = Sandbox("tests.text.render_task:open_task", lambda: VARIABLES, LIMITS)
    yield sandbox
    sandbox.close()


@pytest.mark.parametrize("name", BOMBS)
def test_hostile_template_is_stopped_and_the_next_is_rendered(name: str, sandbox: Sandbox) -> None:
    with suppress(SandboxLimit):
        assert sandbox.request(BOMBS[name].encode()).startswith(b"error: ")
    assert sandbox.request(b"{{ 1 + 1 }}") == b"output: 2"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ ''['__class__'].__mro__ }}",
        "{{ ''|attr('__class__') }}",
        "{{ ('{0.__class__.__mro__}'|attr('format'))('') }}",
        "{{ messages|map('attr', '__class__')|join }}",
        "{{ [messages]|map(attribute='__class__')|join }}",
        "{{ messages|groupby('__class__') }}",
        "{{ messages|sum('__class__') }}",
        "{{ messages|map(attribute='__class__')|list|first|string|upper + undefined.x }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(a=1) }}",
        "{{ messages[0].pop('role') }}",
        "{{ self.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ joiner.__init__.__globals__.os }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ range.__self__.x }}",
        "{{ dict.__subclasses__() }}",
        "{{ raise_exception.__globals__ }}",
        "{{ lipsum.__globals__ }}",
        "{{ config.items() }}",
        "{{ '{0.__class__.__mro__}'.format('') }}",
        "{{ '{a.__class__}'.format_map({'a': ''}) }}",
        "{{ ('{0.__class__}'.format)('') }}",
        "{% set f = '{0.__class__}'.format %}{{ f('') }}",
        "{% set n = namespace() %}{% set n.__class__ = 1 %}{{ n.__class__.x }}",
        "{% for x in (1).__class__.__mro__ %}{{ x.y }}{% endfor %}{{ undefined.x }}",
        "{% macro m() %}{% endmacro %}{{ m.__call__.__func__.__globals__ }}",
        "{{ loop.__class__.__init__ }}",
        "{{ (messages|map('upper')).gi_frame.f_globals }}",
        "{% include 'x' %}",
        "{% import 'x' as y %}",
        "{% extends 'x' %}",
    ],
)
def test_template_cannot_reach_python(source: str) -> None:
    try:
        output = Environment().from_string(source).render(VARIABLES)
    except (jinja2.TemplateError, TypeError):
        return
    assert output == ""  # undefined


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
    assert Environment().from_string(source).render(VARIABLES) == plain.from_string(source).render(VARIABLES)


FILTERS = (
    "{{ [3, -1] | sum }} {{ messages | sum(attribute='n', start=1) }} {{ [1, 2, 3] | batch(2, 0) | list }}",
    "{{ '%s of %d' | format('one', 2) }} {{ [1, 2, 3] | slice(2) | list }}{{ 'x' | center(5) }}{{ 'a b' | wordcount }}",
    "{% for role, group in messages | groupby('role') %}{{ role }}={{ group | length }};{% endfor %}",
    "{{ '<b>a</b>' | striptags }} {{ 'a b&c' | urlencode }} {{ 1000 | filesizeformat }} {{ [1, [2]] | pprint }}",
    "{{ 'one two three' | wordwrap(7) }} {{ {'a': 1} | xmlattr }} {{ '<' | forceescape }} {{ 'http://x.y' | urlize }}",
    "{{ messages[0] | attr('x') is undefined }} {{ ['b', 'a'] | random in ['a', 'b'] }} {{ lipsum(1) | length > 9 }}",
    "{{ 3 is odd }} {{ 4 is divisibleby 2 }} {{ none is none }} {{ 'a' is lower }} {{ 1 is eq 1 }} {{ 1 is in [1] }}",
    "{{ 'sum' is filter }} {{ 'odd' is test }} {{ messages is iterable }} {{ {} is mapping }} {{ 1.5 is float }}",
)


@pytest.mark.parametrize("source", FILTERS)
def test_every_filter_and_test_of_jinja_is_there(source: str) -> None:
    plain = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    variables = {"messages": [{"role": "user", "n": 1}, {"role": "assistant", "n": 2}]}
    assert Environment().from_string(source).render(variables) == plain.from_string(source).render(variables)
    assert Environment().filters.keys() == plain.filters.keys() and Environment().tests.keys() == plain.tests.keys()


def test_tojson_takes_the_arguments_of_transformers() -> None:
    source = "{{ x | tojson }}|{{ x | tojson(ensure_ascii=true) }}|{{ x | tojson(separators=(',', ':')) }}|"
    source += "{{ x | tojson(sort_keys=true, indent=1) }}"
    rendered = Environment().from_string(source).render(x={"b": "é<'", "a": 1}).split("|")
    assert rendered[:3] == [
        '{"b": "é<\'", "a": 1}',
        '{"b": "\\u00e9<\'", "a": 1}',
        '{"b":"é<\'","a":1}',
    ]
    assert rendered[3] == '{\n "a": 1,\n "b": "é<\'"\n}'


def test_extensions_of_transformers_are_supported() -> None:
    environment = Environment()
    assert environment.from_string("{{ messages[0] | tojson }}").render(VARIABLES) == (
        '{"role": "user", "content": "é <b>"}'
    )
    source = "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% break %}{% endfor %}"
    assert environment.from_string(source).render(VARIABLES) == "assistant"
    assert environment.from_string("a{% generation %}b{{ 1 }}{% endgeneration %}c").render(VARIABLES) == "ab1c"
