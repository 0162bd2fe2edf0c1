"""The sampling parameters, each declared once: a field of `Sampling`.

The field gives name, type, range and default. Its `SamplingParam` gives the spelling in each API, whether config.toml
may set it, and the engines that honour it. The wire structs of every API, the keys of `[defaults]` and `[models.NAME]`,
the parse, the OpenAPI document and the refusals of the engines follow from that. The mathematics is in
worker/sampling.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, cast, get_args, get_type_hints

import msgspec
from msgspec import Meta, Struct, field
from msgspec.structs import FieldInfo

Api = Literal["openai", "responses", "anthropic", "ollama"]
EngineKind = Literal["local", "genie", "upstream", "scripted"]

MAX_INT = 2**53  # the largest integer that JSON carries without loss; a worker's frames need less than 2**64
MAX_BIASES = 10_000  # the gateway walks over them for every request
_ALL: frozenset[EngineKind] = frozenset(get_args(EngineKind))
_NOT_GENIE = _ALL - {"genie"}

_ZeroToOne = Annotated[float, Meta(ge=0, le=1)]
_Penalty = Annotated[float, Meta(ge=-2, le=2)]
_MinusOneIsOff = Annotated[int, Meta(ge=-1, le=MAX_INT)]
_TokenId = Annotated[int, Meta(ge=0, le=MAX_INT)]
_Bias = Annotated[float, Meta(ge=-100, le=100)]
_TOKEN_ID_KEYS = {"propertyNames": {"pattern": "^(0|[1-9][0-9]{0,14})$"}}  # JSON writes a dict's integer keys as text

T = TypeVar("T", bound=Struct)


class SamplingParam(Struct, frozen=True, eq=False, kw_only=True):  # hashable: part of a type
    """What the field's type and default do not say.

    Args:
        names: the spelling in each API that has the parameter. The upstream engine sends the "openai" one.
        types: the type in an API whose range differs from the field's.
        off: the value with which clients turn the parameter off, whatever the configured default is.
        in_config: True if `[defaults]` and `[models.NAME]` have a key of the field's name.
        engines: the engines that honour it. The others refuse a request that sets it.
    """

    names: Mapping[Api, str]
    types: Mapping[Api, Any] = {}
    off: float | None = None
    in_config: bool = False
    engines: frozenset[EngineKind] = _ALL


def _everywhere(name: str) -> dict[Api, str]:
    return dict.fromkeys(get_args(Api), name)


def _local(name: str, ollama: str = "") -> dict[Api, str]:
    """The spelling in the APIs of local servers: OpenAI's with the fields of vLLM and llama.cpp, and Ollama's."""
    return {"openai": name, "ollama": ollama or name}


class Sampling(Struct, frozen=True, kw_only=True):
    """How the next token is chosen. The defaults change nothing: one draw from the softmax of the logits."""

    #: Randomness: the logits are divided by it. 0: greedy, always the most probable token.
    temperature: Annotated[
        float,
        Meta(ge=0, le=2),
        SamplingParam(names=_everywhere("temperature"), types={"anthropic": _ZeroToOne}, in_config=True),
    ] = 1.0
    #: Only the most probable tokens whose probabilities together reach this. 1: off.
    top_p: Annotated[_ZeroToOne, SamplingParam(names=_everywhere("top_p"), in_config=True)] = 1.0
    #: Only this number of the most probable tokens. 0: off.
    top_k: Annotated[
        int,
        Meta(ge=0, le=MAX_INT),
        SamplingParam(
            names=_local("top_k") | {"anthropic": "top_k"},
            types=dict.fromkeys(get_args(Api), _MinusOneIsOff),
            off=-1,
            in_config=True,
        ),
    ] = 0
    #: Only tokens with at least this share of the probability of the most probable one. 0: off.
    min_p: Annotated[_ZeroToOne, SamplingParam(names=_local("min_p"), in_config=True, engines=_NOT_GENIE)] = 0.0
    #: Lowers tokens that are in the prompt or the answer. 1: off.
    repetition_penalty: Annotated[
        float,
        Meta(ge=0.01, le=100),  # logits overflow outside this range
        SamplingParam(names=_local("repetition_penalty", "repeat_penalty"), in_config=True, engines=_NOT_GENIE),
    ] = 1.0
    #: DRY lowers the tokens that make a repetition longer (worker/repetition.py); this is its strength. 0: off.
    dry_multiplier: Annotated[
        float,
        Meta(ge=0, le=100),
        SamplingParam(names=_local("dry_multiplier"), in_config=True, engines=_NOT_GENIE),
    ] = 0.0
    #: DRY: the penalty grows by this factor with each token of the repetition.
    dry_base: Annotated[
        float,
        Meta(ge=1, le=100),
        SamplingParam(names=_local("dry_base"), in_config=True, engines=_NOT_GENIE),
    ] = 1.75
    #: DRY: repetitions that are shorter than this number of tokens cost nothing.
    dry_allowed_length: Annotated[
        int,
        Meta(ge=1, le=MAX_INT),
        SamplingParam(names=_local("dry_allowed_length"), in_config=True, engines=_NOT_GENIE),
    ] = 2
    seed: Annotated[
        Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None,
        SamplingParam(names=_local("seed"), off=-1),  # -1: a random one, as in llama.cpp
    ] = None
    presence_penalty: Annotated[_Penalty, SamplingParam(names=_local("presence_penalty"), engines=_NOT_GENIE)] = 0.0
    frequency_penalty: Annotated[_Penalty, SamplingParam(names=_local("frequency_penalty"), engines=_NOT_GENIE)] = 0.0
    logit_bias: Annotated[
        dict[_TokenId, _Bias],
        Meta(max_length=MAX_BIASES, extra_json_schema=_TOKEN_ID_KEYS),
        SamplingParam(names={"openai": "logit_bias"}, engines=_NOT_GENIE),
    ] = field(default_factory=dict)


class _Declared(NamedTuple):
    """One field of `Sampling`."""

    type: Any
    default: Any
    param: SamplingParam


@cache
def parameters() -> dict[str, _Declared]:
    """Every sampling parameter by name, in the order of the declaration."""
    hints = get_type_hints(Sampling, include_extras=True)
    return {item.name: _declared(item, hints[item.name]) for item in msgspec.structs.fields(Sampling)}


def _declared(item: FieldInfo, hint: Any) -> _Declared:
    *ranges, param = hint.__metadata__
    kind = Annotated[(hint.__origin__, *ranges)] if ranges else hint.__origin__
    default = item.default_factory() if item.default is msgspec.NODEFAULT else item.default
    return _Declared(kind, default, param)


def configurable(engine: EngineKind | None = None) -> list[str]:
    """The parameters that config.toml may set; with `engine`, those that this engine honours."""
    return [
        name
        for name, (_, _, param) in parameters().items()
        if param.in_config and (engine is None or engine in param.engines)
    ]


def sampling_of(api: Api, request: Struct, defaults: Struct) -> Sampling:
    """The sampling of one request.

    Args:
        request: a struct with the fields that `with_wire_fields(api)` adds; None: the client did not send it.
        defaults: a struct with the keys that `with_default_keys` adds; None: the parameter's own default.
    """
    values: dict[str, Any] = {}
    for name, (_, default, param) in parameters().items():
        sent = getattr(request, param.names[api]) if api in param.names else None
        if sent is None and param.in_config:
            values[name] = default if (chosen := getattr(defaults, name)) is None else chosen
        elif sent is not None and sent != param.off:
            values[name] = sent
    return Sampling(**values)


def configured(api: Api, defaults: Struct) -> dict[str, Any]:
    """The values for a request that sends none, under the API's spelling. `defaults`: as for `sampling_of`."""
    return {
        param.names[api]: default if getattr(defaults, name) is None else getattr(defaults, name)
        for name, (_, default, param) in parameters().items()
        if param.in_config and api in param.names
    }


def unsupported(sampling: Sampling, engine: EngineKind) -> Iterator[str]:
    """The parameters that the request changes and that `engine` does not honour."""
    return (name for name in changed(sampling) if engine not in parameters()[name].param.engines)


def changed(sampling: Sampling) -> Iterator[str]:
    """The parameters that differ from their defaults."""
    return (name for name, (_, default, _) in parameters().items() if getattr(sampling, name) != default)


def with_wire_fields(api: Api) -> Callable[[type[T]], type[T]]:
    """A decorator for a request struct: adds the API's sampling fields, each optional."""
    declared = [(param.names[api], param.types.get(api, kind)) for kind, _, param in _of_api(api)]
    return lambda struct: _extended(struct, [(name, kind | None, None) for name, kind in declared])


def valid(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `values`, by the name of the parameter, that have its type and are in its range."""
    good = {}
    for name, value in values.items():
        with suppress(msgspec.ValidationError):
            good[name] = msgspec.convert(value, parameters()[name].type)
    return good


def with_default_keys(struct: type[T]) -> type[T]:
    """A decorator for the `[defaults]` table: adds the keys that config.toml may set, each optional."""
    return _extended(struct, [(name, parameters()[name].type | None, None) for name in configurable()])


def with_model_keys(engine: EngineKind) -> Callable[[type[T]], type[T]]:
    """A decorator for a `[models.NAME]` table: sets `engine` and adds the keys that it honours, each optional."""
    fields = [(name, parameters()[name].type | None, None) for name in configurable(engine)]
    return lambda struct: _extended(struct, fields, engine=engine)


def _of_api(api: Api) -> Iterable[_Declared]:
    return (declared for declared in parameters().values() if api in declared.param.names)


def _extended(struct: type[T], fields: list[tuple[str, Any, Any]], **class_vars: str) -> type[T]:
    """A subclass of the same name with more fields. Type checkers see only the original."""
    made = msgspec.defstruct(
        struct.__name__,
        fields,
        bases=(struct,),
        module=struct.__module__,
        namespace={"__doc__": struct.__doc__, **class_vars},
        kw_only=True,
    )
    return cast(type[T], made)
