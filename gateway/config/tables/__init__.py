"""The tables of config.toml as frozen structs: every key with its type, range, default and meaning.

The docstrings and the comments of the fields are the text of docs/configuration.md (scripts/config_reference.py): a
comment after the field, or `#:` above it.

`config.file.load_config` fills them; config/check.py has the rules that join several keys. Precedence, highest first:
command line, environment (`NPU_GATEWAY_<TABLE>_<KEY>`), file, the defaults here.
"""

from gateway.config.tables.breaker import BreakerConfig
from gateway.config.tables.config import Config, Defaults, MemoryConfig
from gateway.config.tables.limits import KeyLimits, LimitsConfig
from gateway.config.tables.models import (
    MODEL_KINDS,
    Alias,
    BundleModel,
    GenieModel,
    LocalModel,
    ModelBase,
    ModelConfig,
    ResidentModel,
    ScriptedModel,
    UpstreamModel,
    UpstreamTarget,
)
from gateway.config.tables.monitoring import LogConfig, TracesConfig, UsageConfig
from gateway.config.tables.script import Fault, Script
from gateway.config.tables.server import ServerConfig
from gateway.config.tables.state import StateConfig

__all__ = [
    "MODEL_KINDS",
    "Alias",
    "BreakerConfig",
    "BundleModel",
    "Config",
    "Defaults",
    "Fault",
    "GenieModel",
    "KeyLimits",
    "LimitsConfig",
    "LocalModel",
    "LogConfig",
    "MemoryConfig",
    "ModelBase",
    "ModelConfig",
    "ResidentModel",
    "Script",
    "ScriptedModel",
    "ServerConfig",
    "StateConfig",
    "TracesConfig",
    "UpstreamModel",
    "UpstreamTarget",
    "UsageConfig",
]
