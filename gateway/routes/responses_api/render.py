"""Events become a response: one reply, or a stream of named and numbered events with one item open at a time.

The one reply is built from the same stream events, so both forms always agree.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from msgspec import UNSET

from gateway.errors import GatewayError
from gateway.generation import (
    ChoiceFinished,
    Event,
    Finished,
    Generation,
    ReasoningDelta,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from gateway.routes.collect import Collected
from gateway.routes.render import logprobs_of
from gateway.routes.responses_api.parse_tools import full_name
from gateway.routes.responses_api.wire import Reasoning, ResponsesRequest, ResponseText, TextFormat
from gateway.routes.responses_api.wire_response import (
    ArgumentsDone,
    ArgumentsPiece,
    CallItem,
    Completed,
    Created,
    Failed,
    Incomplete,
    IncompleteDetails,
    InProgress,
    InputTokensDetails,
    ItemAdded,
    ItemDone,
    MessageItem,
    OutputItem,
    OutputText,
    OutputTextPiece,
    OutputTokensDetails,
    PartAdded,
    PartDone,
    ReasoningDone,
    ReasoningItem,
    ReasoningPiece,
    ReasoningText,
    Response,
    ResponseError,
    ResponseUsage,
    Status,
    StreamEvent,
    TextDone,
)
from gateway.server.sse import MEDIA_TYPE, frame

StreamEvents = Iterator[StreamEvent]


class ResponsesRendering:
    """See `respond.Rendering`. `save` is called once, with the finished response, unless the request failed."""

    media_type = MEDIA_TYPE

    def __init__(self, request: ResponsesRequest, generation: Generation, save: Callable[[Response], None]) -> None:
        self._response = _response(request, generation)
        self._functions = dict(_namespaced_functions(request))
        self._with_logprobs = generation.logprobs is not None
        self._save = save
        self._is_begun = False
        self._open: OutputItem | None = None
        self._number = 0  # of the next event

    def whole(self, model: str, collected: Collected) -> Response:
        for event in _events_of(collected):
            for _ in self._stream_events(model, event):
                pass  # each step changes `self._response`
        return self._response

    def pieces(self, model: str, event: Event) -> Iterator[bytes]:
        for stream_event in self._stream_events(model, event):
            yield self._frame(stream_event)

    def failed(self, error: GatewayError) -> bytes:
        self._response.status = "failed"
        self._response.error = ResponseError(code=error.code or error.type, message=error.message)
        if self._open is not None:
            self._open.status = "incomplete"
        return b"".join(map(self._frame, self._failure()))

    def _failure(self) -> StreamEvents:
        yield from self._begin(self._response.model)
        yield Failed(response=self._response)

    def _frame(self, event: StreamEvent) -> bytes:
        event.sequence_number = self._number
        self._number += 1
        return frame(event, event=str(type(event).__struct_config__.tag))

    def _stream_events(self, model: str, event: Event) -> StreamEvents:
        if isinstance(event, Started):
            return  # another model may still take over; its name is final with the next event
        yield from self._begin(model)
        match event:
            case TextDelta(text, _, logprobs) if text or logprobs:
                yield from self._text(text, logprobs)
            case ReasoningDelta(text) if text:
                yield from self._reasoning(text)
            case ToolCallDelta():
                yield from self._call(event)
            case ChoiceFinished("length"):
                yield from self._close("incomplete")
                self._response.incomplete_details = IncompleteDetails()
            case ChoiceFinished():
                yield from self._close("completed")
            case Finished():
                yield self._ended(event.usage)

    def _begin(self, model: str) -> StreamEvents:
        if not self._is_begun:
            self._is_begun = True
            self._response.model = model
            yield Created(response=self._response)
            yield InProgress(response=self._response)

    def _ended(self, usage: Usage) -> StreamEvent:
        response = self._response
        response.usage = _usage(usage)
        response.status = "completed" if response.incomplete_details is None else "incomplete"
        self._save(response)
        return Completed(response=response) if response.status == "completed" else Incomplete(response=response)

    # ---- items

    @property
    def _index(self) -> int:
        """Position of the newest item in the output."""
        return len(self._response.output) - 1

    def _new_id(self, prefix: str) -> str:
        return f"{prefix}_{self._response.id.removeprefix('resp_')}{len(self._response.output):04x}"

    def _text(self, text: str, logprobs: tuple[TokenLogprob, ...]) -> StreamEvents:
        if not isinstance(self._open, MessageItem):
            message = MessageItem(id=self._new_id("msg"))
            yield from self._add(message)
            message.content.append(OutputText())
            yield PartAdded(item_id=message.id, output_index=self._index, part=message.content[0])
        assert isinstance(self._open, MessageItem)
        [part] = self._open.content
        scored = logprobs_of(logprobs) if self._with_logprobs else []
        part.text += text
        part.logprobs += scored
        yield OutputTextPiece(item_id=self._open.id, output_index=self._index, delta=text, logprobs=scored)

    def _reasoning(self, text: str) -> StreamEvents:
        if not isinstance(self._open, ReasoningItem):
            item = ReasoningItem(id=self._new_id("rs"))
            yield from self._add(item)
            item.content.append(ReasoningText())
            yield PartAdded(item_id=item.id, output_index=self._index, part=item.content[0])
        assert isinstance(self._open, ReasoningItem)
        self._open.content[0].text += text
        yield ReasoningPiece(item_id=self._open.id, output_index=self._index, delta=text)

    def _call(self, delta: ToolCallDelta) -> StreamEvents:
        if delta.id is not None:
            namespace, name = self._functions.get(delta.name or "", (UNSET, delta.name or ""))
            yield from self._add(CallItem(id=self._new_id("fc"), call_id=delta.id, name=name, namespace=namespace))
        if delta.arguments:
            assert isinstance(self._open, CallItem)
            self._open.arguments += delta.arguments
            yield ArgumentsPiece(item_id=self._open.id, output_index=self._index, delta=delta.arguments)

    def _add(self, item: OutputItem) -> StreamEvents:
        yield from self._close("completed")
        self._open = item
        self._response.output.append(item)
        yield ItemAdded(output_index=self._index, item=item)

    def _close(self, status: Status) -> StreamEvents:
        if self._open is None:
            return
        item, index, self._open = self._open, self._index, None
        match item:
            case MessageItem(id=id, content=[part]):
                yield TextDone(item_id=id, output_index=index, text=part.text, logprobs=part.logprobs)
                yield PartDone(item_id=id, output_index=index, part=part)
            case ReasoningItem(id=id, content=[part]):
                yield ReasoningDone(item_id=id, output_index=index, text=part.text)
                yield PartDone(item_id=id, output_index=index, part=part)
            case CallItem(id=id):
                yield ArgumentsDone(item_id=id, output_index=index, name=item.name, arguments=item.arguments)
        item.status = status
        yield ItemDone(output_index=index, item=item)


def _response(request: ResponsesRequest, generation: Generation) -> Response:
    """The response before the first event: the request's settings, defaults applied."""
    text = request.text or ResponseText()
    return Response(
        id=generation.id,
        created_at=int(time.time()),
        model=generation.model,
        instructions=request.instructions,
        max_output_tokens=request.max_output_tokens,
        parallel_tool_calls=request.parallel_tool_calls is not False,
        previous_response_id=request.previous_response_id,
        reasoning=request.reasoning or Reasoning(),
        store=request.store is not False,
        temperature=generation.sampling.temperature,
        text=ResponseText(format=text.format or TextFormat(type="text"), verbosity=text.verbosity),
        tool_choice=request.tool_choice or "auto",
        tools=request.tools or [],
        top_p=generation.sampling.top_p,
        top_logprobs=request.top_logprobs or 0,
        truncation="auto" if generation.truncation else "disabled",
        metadata=request.metadata or {},
    )


def _namespaced_functions(request: ResponsesRequest) -> Iterator[tuple[str, tuple[str, str]]]:
    """For each function of a namespace: the name that the model knows, and (namespace, name) of the request."""
    for namespace in request.tools or ():
        for function in namespace.tools or ():
            if namespace.name and function.name:
                yield full_name(namespace.name, function.name), (namespace.name, function.name)


def _events_of(collected: Collected) -> Iterator[Event]:
    [choice] = collected.choices
    yield ReasoningDelta(choice.reasoning)
    yield TextDelta(choice.text, logprobs=tuple(choice.logprobs))
    for index, call in enumerate(choice.tool_calls):
        yield ToolCallDelta(index=index, id=call.id, name=call.name, arguments=call.arguments)
    yield ChoiceFinished(choice.reason)
    yield Finished(usage=collected.usage)


def _usage(usage: Usage) -> ResponseUsage:
    return ResponseUsage(
        input_tokens=usage.prompt_tokens,
        input_tokens_details=InputTokensDetails(cached_tokens=usage.cached_tokens),
        output_tokens=usage.completion_tokens,
        output_tokens_details=OutputTokensDetails(reasoning_tokens=usage.reasoning_tokens),
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
    )
