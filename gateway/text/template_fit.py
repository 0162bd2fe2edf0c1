"""Fits a conversation to the traits of a chat template: what the template would refuse or lose gets another form.

Nothing is dropped here. What cannot stay in its message goes to the nearest turn that the template renders. But a
template that renders either the calls or the text of a message, as those of Llama 3 and Mistral, leaves out that text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from gateway.generation import Chat, Message
from gateway.text.template_traits import IN_CONTENT, IN_SYSTEM_MESSAGE, Traits

_BETWEEN = "\n\n"  # between two texts that become one turn


def fit(chat: Chat, traits: Traits) -> Chat:
    """The conversation in the form that a template with these traits renders completely."""
    messages = _named_results(chat.messages)
    if traits.reasoning == IN_CONTENT:
        messages = list(map(_with_reasoning_in_content, messages))
    if traits.calls and not traits.many_calls:
        messages = list(_one_call_in_each(messages))
    messages = _system_fitted(messages, traits)
    if traits.system_for_user and messages[-1].role != "user":
        messages = _system_in_last_user(messages)
    if traits.alternates:
        messages = _joined(messages)
    if traits.alternates or traits.user_first:
        messages = _with_first_user(messages)
    if traits.alternates:
        messages = list(_alternating(messages))
    if traits.calls and traits.null_content:
        messages = [part for message in messages for part in _content_before_calls(message)]
    if traits.tools == IN_SYSTEM_MESSAGE and chat.tools and messages[0].role != "system":
        messages = [Message(role="system", content=""), *messages]
    return replace(chat, messages=tuple(messages))


def _named_results(messages: Iterable[Message]) -> list[Message]:
    """Each tool result with the name of its function, which Hermes' templates need and OpenAI's clients leave out."""
    names: dict[str | None, str] = {}
    named = []
    for message in messages:
        names |= {call.id: call.name for call in message.tool_calls}
        if message.role == "tool" and not message.name and message.tool_call_id in names:
            message = replace(message, name=names[message.tool_call_id])
        named.append(message)
    return named


def _with_reasoning_in_content(message: Message) -> Message:
    if not message.reasoning or message.role != "assistant":
        return replace(message, reasoning=None)  # also "": it would be rendered in place of the content
    thought = f"<think>\n{message.reasoning}\n</think>{_BETWEEN}"
    return replace(message, content=f"{thought}{message.content or ''}", reasoning=None)


def _one_call_in_each(messages: Sequence[Message]) -> Iterable[Message]:
    """A turn with several calls becomes one turn for each call, and behind each its results."""
    at = 0
    while at < len(messages):
        message = messages[at]
        at += 1
        if len(message.tool_calls) < 2:
            yield message
            continue
        end = next((i for i in range(at, len(messages)) if messages[i].role != "tool"), len(messages))
        yield from _separated(message, messages[at:end])
        at = end


def _separated(turn: Message, results: Sequence[Message]) -> Iterable[Message]:
    strays: list[Message] = []
    own: dict[str | None, list[Message]] = {call.id: [] for call in turn.tool_calls}
    for result in results:
        own.get(result.tool_call_id, strays).append(result)
    for number, call in enumerate(turn.tool_calls):
        first = number == 0
        yield replace(
            turn,
            tool_calls=(call,),
            content=turn.content if first else None,
            reasoning=turn.reasoning if first else None,
        )
        yield from own.pop(call.id, ())  # a client can give two calls one id
    yield from strays


def _content_before_calls(message: Message) -> Iterable[Message]:
    if message.tool_calls and message.content:
        yield replace(message, tool_calls=())
        yield replace(message, content=None, reasoning=None)
    else:
        yield message


def _system_fitted(messages: Sequence[Message], traits: Traits) -> list[Message]:
    """System messages that the template does not render where they are become text of the user."""
    if traits.system and traits.late_system:
        return list(messages)
    begin = next((index for index, message in enumerate(messages) if message.role != "system"), len(messages))
    head = _joined(messages[:begin]) if traits.system else []
    return [*head, *_with_systems_as_user(messages[begin if head else 0 :])]


def _system_in_last_user(messages: Sequence[Message]) -> list[Message]:
    """The system text in the user's last turn, where templates with `system_for_user` put it themselves."""
    at = max((index for index, message in enumerate(messages) if message.role == "user"), default=0)
    if messages[0].role != "system" or at == 0:
        return list(messages)
    user = replace(messages[at], content=_text_of([messages[0].content, messages[at].content]))
    return [*messages[1:at], user, *messages[at + 1 :]]


def _with_systems_as_user(messages: Sequence[Message]) -> Iterable[Message]:
    """Each system text at the head of the user's turn behind it, or as a turn of the user if another turn is there."""
    texts: list[str] = []
    for message in messages:
        if message.role == "system":
            texts.append(message.content or "")
            continue
        if texts and message.role == "user":
            message = replace(message, content=_text_of([*texts, message.content]))
        elif texts:
            yield _user(_text_of(texts))
        texts = []
        yield message
    if texts:
        yield _user(_text_of(texts))


def _joined(messages: Sequence[Message]) -> list[Message]:
    """Neighbours of one role as one message. A message with calls ends its turn, and a result stays alone."""
    joined: list[Message] = []
    for message in messages:
        last = joined[-1] if joined else None
        if last and last.role == message.role != "tool" and not last.tool_calls:
            joined[-1] = _both(last, message)
        else:
            joined.append(message)
    return joined


def _both(first: Message, second: Message) -> Message:
    return replace(
        second,
        content=_text_of([first.content, second.content]),
        reasoning=_text_of([first.reasoning, second.reasoning]) or None,
        name=first.name,
    )


def _alternating(messages: Iterable[Message]) -> Iterable[Message]:
    """Calls and results do not count as turns. The user's next turn behind them follows an empty turn of the model."""
    last = ""
    for message in messages:
        if message.role in ("user", "assistant") and not message.tool_calls:
            if message.role == last == "user":
                yield Message(role="assistant", content="")
            last = message.role
        yield message


def _with_first_user(messages: Sequence[Message]) -> list[Message]:
    begin = 1 if messages[0].role == "system" else 0
    if begin < len(messages) and messages[begin].role == "user":
        return list(messages)
    return [*messages[:begin], _user(""), *messages[begin:]]


def _user(text: str) -> Message:
    return Message(role="user", content=text)


def _text_of(texts: Iterable[str | None]) -> str:
    return _BETWEEN.join(text for text in texts if text)
