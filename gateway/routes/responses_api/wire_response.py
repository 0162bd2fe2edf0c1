"""The response object and the stream events of OpenAI's Responses API, as msgspec structs."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType, field

from gateway.routes.responses_api.wire import Mode, Reasoning, ResponseText, ResponseTool, ResponseToolChoice
from gateway.routes.wire import TokenLogprobs

Status = Literal["in_progress", "completed", "incomplete", "failed"]


class OutputText(Struct, tag="output_text", kw_only=True):
    text: str = ""
    annotations: list[Any] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)


class ReasoningText(Struct, tag="reasoning_text", kw_only=True):
    text: str = ""


class MessageItem(Struct, tag="message", kw_only=True):
    id: str
    status: Status = "in_progress"
    role: Literal["assistant"] = "assistant"
    content: list[OutputText] = field(default_factory=list)


class ReasoningItem(Struct, tag="reasoning", kw_only=True):
    id: str
    status: Status = "in_progress"
    summary: list[Any] = field(default_factory=list)  # always empty: the reasoning text is in `content`
    content: list[ReasoningText] = field(default_factory=list)


class CallItem(Struct, tag="function_call", kw_only=True):
    id: str
    call_id: str
    name: str
    namespace: str | UnsetType = UNSET
    status: Status = "in_progress"
    arguments: str = ""


OutputItem = MessageItem | ReasoningItem | CallItem


class InputTokensDetails(Struct, kw_only=True):
    cached_tokens: int = 0
    cache_write_tokens: int = 0


class OutputTokensDetails(Struct, kw_only=True):
    reasoning_tokens: int = 0


class ResponseUsage(Struct, kw_only=True):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class IncompleteDetails(Struct, kw_only=True):
    reason: Literal["max_output_tokens"] = "max_output_tokens"


class ResponseError(Struct, kw_only=True):
    code: str
    message: str


class Response(Struct, tag="response", tag_field="object", kw_only=True):
    """The request's settings and the output. It grows while the model answers. None is sent as null."""

    id: str
    created_at: int
    model: str
    status: Status = "in_progress"
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    output: list[OutputItem] = field(default_factory=list)
    parallel_tool_calls: bool = True
    previous_response_id: str | None = None
    reasoning: Reasoning = field(default_factory=Reasoning)
    store: bool = True
    temperature: float
    text: ResponseText
    tool_choice: Mode | ResponseToolChoice
    tools: list[ResponseTool]
    top_p: float
    top_logprobs: int
    truncation: Literal["auto", "disabled"] = "disabled"
    background: bool = False
    usage: ResponseUsage | None = None
    metadata: dict[str, str]


class ResponseDeleted(Struct, kw_only=True):
    id: str
    object: Literal["response"] = "response"
    deleted: bool = True


# ---- events of a stream --------------------------------------------------------------------------------------------


class StreamEvent(Struct, kw_only=True):
    """Sent under its tag as the event's name. Events are numbered from 0."""

    sequence_number: int = 0


class ResponseEvent(StreamEvent, kw_only=True):
    response: Response


class Created(ResponseEvent, tag="response.created"):
    pass


class InProgress(ResponseEvent, tag="response.in_progress"):
    pass


class Completed(ResponseEvent, tag="response.completed"):
    pass


class Incomplete(ResponseEvent, tag="response.incomplete"):
    pass


class Failed(ResponseEvent, tag="response.failed"):
    pass


class ItemEvent(StreamEvent, kw_only=True):
    output_index: int
    item: OutputItem


class ItemAdded(ItemEvent, tag="response.output_item.added"):
    pass


class ItemDone(ItemEvent, tag="response.output_item.done"):
    pass


class InItem(StreamEvent, kw_only=True):
    item_id: str
    output_index: int


class InPart(InItem, kw_only=True):
    content_index: int = 0  # a message or reasoning item has one part


class PartAdded(InPart, tag="response.content_part.added", kw_only=True):
    part: OutputText | ReasoningText


class PartDone(InPart, tag="response.content_part.done", kw_only=True):
    part: OutputText | ReasoningText


class OutputTextPiece(InPart, tag="response.output_text.delta", kw_only=True):
    delta: str
    logprobs: list[TokenLogprobs]


class TextDone(InPart, tag="response.output_text.done", kw_only=True):
    text: str
    logprobs: list[TokenLogprobs]


class ReasoningPiece(InPart, tag="response.reasoning_text.delta", kw_only=True):
    delta: str


class ReasoningDone(InPart, tag="response.reasoning_text.done", kw_only=True):
    text: str


class ArgumentsPiece(InItem, tag="response.function_call_arguments.delta", kw_only=True):
    delta: str


class ArgumentsDone(InItem, tag="response.function_call_arguments.done", kw_only=True):
    name: str
    arguments: str


AnyEvent = (
    Created
    | InProgress
    | Completed
    | Incomplete
    | Failed
    | ItemAdded
    | ItemDone
    | PartAdded
    | PartDone
    | OutputTextPiece
    | TextDone
    | ReasoningPiece
    | ReasoningDone
    | ArgumentsPiece
    | ArgumentsDone
)
