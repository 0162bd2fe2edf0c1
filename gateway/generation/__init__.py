"""One request with every default applied, the events that answer it, and its measurements.

Every API parses its requests to a `Generation`, and every engine reads it. Every engine emits `Event`s, and every API
renders them. No API depends on an engine, and no engine depends on an API.
"""

from gateway.generation.events import (
    ChoiceFinished,
    Event,
    Finished,
    FinishReason,
    ReasoningDelta,
    Started,
    TextDelta,
    Timings,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from gateway.generation.meter import (
    Meter,
    Route,
    RouteReason,
)
from gateway.generation.request import (
    TOOL,
    UNLIMITED,
    Chat,
    Generation,
    Grammar,
    Message,
    Prompt,
    Role,
    Text,
    TokenIds,
    Tool,
    ToolCall,
    ToolChoice,
)

__all__ = [
    "TOOL",
    "UNLIMITED",
    "Chat",
    "ChoiceFinished",
    "Event",
    "FinishReason",
    "Finished",
    "Generation",
    "Grammar",
    "Message",
    "Meter",
    "Prompt",
    "ReasoningDelta",
    "Role",
    "Route",
    "RouteReason",
    "Started",
    "Text",
    "TextDelta",
    "Timings",
    "TokenIds",
    "TokenLogprob",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "ToolChoice",
    "Usage",
]
