"""What goes to the model: every text of a request under the policy's rules, its sanitising and its classifier."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from gemma_edge.runtime.chat.message_json import Json
from gemma_edge.runtime.serve.errors import Code, RefusedError
from gemma_edge.runtime.serve.guard.classify import Classifier
from gemma_edge.runtime.serve.guard.decisions import Decision, Hasher, Sink
from gemma_edge.runtime.serve.guard.policy import Direction, Policy
from gemma_edge.runtime.serve.guard.reply import Judge, ReplyFilter
from gemma_edge.runtime.serve.guard.rules import Action
from gemma_edge.runtime.serve.guard.sanitise import SanitiseError
from gemma_edge.runtime.serve.guard.scan import Scan
from gemma_edge.runtime.serve.hooks import Caller

MOST_CHARACTERS = 200_000  # of a request that rules are to read: some 0.2 s
_MEDIA = ("image", "audio")


class Content:
    """A policy at work."""

    def __init__(self, policy: Policy, classifier: Classifier | None, hasher: Hasher, sink: Sink) -> None:
        self._policy = policy
        self._classifier = classifier
        self._hash = hasher
        self._sink = sink

    def reply_filter(self, caller: Caller, request_id: str) -> ReplyFilter:
        """For one reply."""
        return ReplyFilter(self._scan(Direction.OUTPUT), self._judge(caller, request_id, Direction.OUTPUT))

    def cleaned(self, caller: Caller, request_id: str, messages: Sequence[Json]) -> list[Json]:
        """The messages as they may go to the model. Raises RefusedError."""
        policy = self._policy
        try:
            if policy.sanitising is not None:
                policy.sanitising.check(messages)
            if not self._has_work():
                return list(messages)
            told = ("content", "tool_calls", "tool_call_id")
            _check_length([[message.get(key) for key in told] for message in messages])
            judge = self._judge(caller, request_id, Direction.INPUT)
            return [self._message(message, judge) for message in messages]
        except SanitiseError as error:
            raise RefusedError(400, Code.VALIDATION_ERROR, str(error), param="messages") from None

    def check_tools(self, caller: Caller, request_id: str, tools: Sequence[Json]) -> None:
        """Raises RefusedError: a rule that refuses or masks is met in any text of a tool, names of fields too."""
        if not tools or not self._policy.rules.get(Direction.INPUT):
            return
        try:
            _check_length(tools)
        except SanitiseError as error:
            raise RefusedError(400, Code.VALIDATION_ERROR, str(error), param="tools") from None
        self._together("\n".join(_texts(tools)), self._judge(caller, request_id, Direction.INPUT))

    def _has_work(self) -> bool:
        strips = self._policy.sanitising is not None and self._policy.sanitising.strip_markup
        return strips or self._classifier is not None or bool(self._policy.rules.get(Direction.INPUT))

    def _scan(self, direction: Direction) -> Scan:
        return Scan(self._policy.rules.get(direction, ()), accents=self._policy.accents)

    def _judge(self, caller: Caller, request_id: str, direction: Direction) -> Judge:
        return Judge(direction, self._classifier, partial(self._decide, caller, request_id, direction))

    def _decide(
        self, caller: Caller, request_id: str, direction: Direction, action: str, category: str, text: str
    ) -> None:
        self._sink(
            Decision(
                action=action,
                direction=direction.value,
                category=category,
                caller=caller.id,
                request=request_id,
                text_hash=self._hash(text),
                text=text if self._policy.log_text else None,
            )
        )

    def _message(self, message: Json, judge: Judge) -> Json:
        clean = partial(self._text, judge)
        content = message.get("content")
        cleaned: dict[str, Any] = {**message}
        if isinstance(content, str):
            cleaned["content"] = clean(content)
        elif isinstance(content, list):
            cleaned["content"] = [_part(part, clean) for part in content]
            texts = [part["text"] for part in cleaned["content"] if isinstance(part.get("text"), str)]
            if len(texts) > 1:
                self._together("".join(texts), judge)
                self._together(" ".join(texts), judge)
        if calls := message.get("tool_calls"):
            cleaned["tool_calls"] = _strings(calls, clean)
        if "tool_call_id" in message:
            cleaned["tool_call_id"] = clean(message["tool_call_id"])
        return cleaned

    def _text(self, judge: Judge, text: str) -> str:
        sanitising = self._policy.sanitising
        cleaned = text if sanitising is None else sanitising.clean(text)
        if cleaned != text:
            judge.decide("strip", "markup", text)
        scan = self._scan(Direction.INPUT)
        cleaned = scan.push(cleaned) + scan.finish()
        judge.found(scan)
        return judge.whole(cleaned)

    def _together(self, text: str, judge: Judge) -> None:
        """Of several texts that stand beside each other in the prompt: no phrase may be spread over them."""
        scan = self._scan(Direction.INPUT)
        scan.push(text)
        scan.finish()
        for found in scan.take_found():
            if found.rule.action is not Action.LOG:
                judge.refuse(found.rule.category, found.raw)


def _check_length(value: object) -> None:
    length = sum(map(len, _texts(value)))
    if length > MOST_CHARACTERS:
        raise SanitiseError(
            f"{length} characters, expected at most {MOST_CHARACTERS} under a content policy; shorten them"
        )


def _texts(value: object) -> Iterator[str]:
    """Every text inside, names of fields too; what stands for images and recordings is none."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping) and value.get("type") not in _MEDIA:
        for name, each in value.items():
            yield from (str(name), *_texts(each))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each)


def _part(part: Mapping[str, Any], clean: Callable[[str], str]) -> Mapping[str, Any]:
    kind = part.get("type")
    if kind in _MEDIA:
        return part
    if isinstance(part.get("text"), str):
        return {**part, "text": clean(part["text"])}
    return {name: value if name == "type" else _strings(value, clean) for name, value in part.items()}


def _strings(value: Any, clean: Callable[[str], str]) -> Any:
    """The same with every text inside cleaned; names of fields stay."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, Mapping):
        return {name: _strings(each, clean) for name, each in value.items()}
    return [_strings(each, clean) for each in value] if isinstance(value, list | tuple) else value
