"""OpenAI's Responses API as msgspec structs: field names as they are, unknown fields ignored, null means absent."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType, field

from gateway.routes.openai_api.wire import MAX_MESSAGES, MAX_TOOLS, AtLeastOne, Json, Name, Share, TokenLogprobs

Mode = Literal["none", "auto", "required"]
InputRole = Literal["user", "assistant", "system", "developer"]


# ---- requests ------------------------------------------------------------------------------------------------------


class InputPart(Struct, kw_only=True):
    type: str
    text: str | None = None
    refusal: str | None = None


class InputItem(Struct, kw_only=True):
    """An item of any type, also one that an earlier response put out; which fields it must have is its type's business.

    Without a type it is a message.
    """

    type: str | None = None
    id: str | None = None
    # message, reasoning
    role: InputRole | None = None
    content: str | list[InputPart] | None = None
    summary: list[InputPart] | None = None
    # function_call, function_call_output
    call_id: str | None = None
    name: str | None = None
    namespace: str | None = None
    arguments: str | None = None
    output: str | list[InputPart] | None = None


class ResponseTool(Struct, kw_only=True):
    """A function, or a namespace of functions."""

    type: str
    name: Name | None = None
    description: str | None = None
    parameters: Json | None = None
    strict: bool | None = None
    tools: list[ResponseTool] | UnsetType | None = UNSET


class ToolName(Struct, kw_only=True):
    type: str
    name: str | None = None


class ResponseToolChoice(Struct, kw_only=True, omit_defaults=True):
    """`{"type": "function", ...}` or `{"type": "allowed_tools", ...}`."""

    type: str
    name: str | None = None
    mode: Literal["auto", "required"] | None = None
    tools: Annotated[list[ToolName], Meta(min_length=1)] | None = None


class ResponseFormat(Struct, kw_only=True, omit_defaults=True):
    type: str
    name: Name | None = None
    schema: Json | None = None
    description: str | None = None
    strict: bool | None = None


class ResponseText(Struct, kw_only=True, omit_defaults=True):
    format: ResponseFormat | None = None
    verbosity: str | None = None


class Reasoning(Struct, kw_only=True):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    summary: str | None = None


class ResponsesRequest(Struct, kw_only=True):
    input: str | Annotated[list[InputItem], Meta(max_length=MAX_MESSAGES)]
    model: str | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    stream: bool | None = None
    max_output_tokens: AtLeastOne | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Share | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    include: list[str] | None = None
    tools: Annotated[list[ResponseTool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Mode | ResponseToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: ResponseText | None = None
    reasoning: Reasoning | None = None
    metadata: dict[str, str] | None = None
    service_tier: str | None = None
    # known, and refused by name when they ask for something
    truncation: Literal["auto", "disabled"] | None = None
    background: bool | None = None
    conversation: Any = None
    prompt: Any = None


# ---- replies -------------------------------------------------------------------------------------------------------

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
    summary: list[Any] = field(default_factory=list)  # nobody sums up here: what was thought is in `content`
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
    """What was asked, and what came of it. Grows while it is answered; null is null on the wire too."""

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
    truncation: Literal["disabled"] = "disabled"
    background: bool = False
    usage: ResponseUsage | None = None
    metadata: dict[str, str]


class ResponseDeleted(Struct, kw_only=True):
    id: str
    object: Literal["response"] = "response"
    deleted: bool = True


# ---- events of a stream: numbered from 0, named by their type ------------------------------------------------------


class StreamEvent(Struct, kw_only=True):
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
    content_index: int = 0  # a message and a thought have one part each


class PartAdded(InPart, tag="response.content_part.added", kw_only=True):
    part: OutputText | ReasoningText


class PartDone(InPart, tag="response.content_part.done", kw_only=True):
    part: OutputText | ReasoningText


class TextPiece(InPart, tag="response.output_text.delta", kw_only=True):
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
    | TextPiece
    | TextDone
    | ReasoningPiece
    | ReasoningDone
    | ArgumentsPiece
    | ArgumentsDone
)
