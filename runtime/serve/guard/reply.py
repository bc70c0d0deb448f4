"""What leaves: a reply under the policy's rules, held back as little as that allows, and its classifier."""

from collections.abc import Callable
from typing import NoReturn

from gemma_edge.runtime.serve.errors import Code, RefusedError
from gemma_edge.runtime.serve.guard.classify import Classifier
from gemma_edge.runtime.serve.guard.policy import Direction
from gemma_edge.runtime.serve.guard.rules import Action
from gemma_edge.runtime.serve.guard.scan import Scan


class Judge:
    """Tells of what was found in one direction of a request, and refuses where the policy says so.

    decide: takes action, category and the text that led to it.
    """

    def __init__(
        self, direction: Direction, classifier: Classifier | None, decide: Callable[[str, str, str], None]
    ) -> None:
        self._direction = direction
        self.classifier = classifier
        self.decide = decide

    def found(self, scan: Scan) -> None:
        """What a scan has found since the last time. Raises RefusedError."""
        new = scan.take_found()
        for each in new:
            if each.rule.action is not Action.REFUSE:
                self.decide(each.rule.action.value, each.rule.category, each.raw)
        for each in new:
            if each.rule.action is Action.REFUSE:
                self.refuse(each.rule.category, each.raw)

    def whole(self, text: str) -> str:
        """A whole text, after the classifier. Raises RefusedError."""
        if self.classifier is None or not text:
            return text
        try:
            verdict = self.classifier(text, self._direction)
        except Exception as error:  # a stranger's program: what it could not judge does not pass
            self.refuse(f"classifier failed: {type(error).__name__}", text)
        if verdict is None:
            return text
        if verdict.action is Action.REFUSE:
            self.refuse(verdict.category, text)
        self.decide(verdict.action.value, verdict.category, text)
        return verdict.replacement if verdict.action is Action.MASK else text

    def refuse(self, category: str, text: str) -> NoReturn:
        """Raises RefusedError, which names the category and not the text."""
        self.decide(Action.REFUSE.value, category, text)
        if self._direction is Direction.INPUT:
            message = f"the prompt has what the content policy refuses ({category}); rephrase it"
            raise RefusedError(400, Code.CONTENT_FILTERED, message, param="messages")
        message = f"the reply had what the content policy refuses ({category}); ask in another way"
        raise RefusedError(422, Code.RESPONSE_FILTERED, message)


class ReplyFilter:
    """Of one reply. After a RefusedError it gives nothing back any more."""

    def __init__(self, scan: Scan, judge: Judge) -> None:
        self._scan = scan
        self._judge = judge
        self._held: list[str] = []  # for the classifier, which reads it all

    def feed(self, text: str) -> str:
        """The text that may leave now, of all that was fed. Raises RefusedError (RESPONSE_FILTERED)."""
        return self._passed(self._scan.push(text))

    def finish(self) -> str:
        """The rest, at the end of the reply. Raises RefusedError (RESPONSE_FILTERED)."""
        rest = self._passed(self._scan.finish())
        return self._judge.whole("".join(self._held)) if self._judge.classifier is not None else rest

    def _passed(self, text: str) -> str:
        self._judge.found(self._scan)
        if self._judge.classifier is None:
            return text
        self._held.append(text)
        return ""
