"""A program of the operator's own that judges whole texts, beside the rules of the policy."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TypeAlias

from gemma_edge.runtime.serve.guard.policy import REPLACEMENT, Direction
from gemma_edge.runtime.serve.guard.rules import Action, PolicyError

GROUP = "gemma_edge.classifiers"  # of entry points


@dataclass(frozen=True)
class Verdict:
    """What a text is. MASK puts `replacement` in place of the whole text."""

    category: str
    action: Action = Action.REFUSE
    replacement: str = REPLACEMENT


Classifier: TypeAlias = Callable[[str, Direction], Verdict | None]
"""Says what a text is, None: nothing of note. Called in the server's own thread, so it has to answer within
milliseconds. Of a reply it sees all at once: with a classifier nothing is streamed before the reply has ended. One that
raises has the text refused."""


def load_classifier(name: str) -> Classifier:
    """The entry point of this name in the group `gemma_edge.classifiers`. Raises PolicyError."""
    found = entry_points(group=GROUP)
    if name not in found.names:
        known = ", ".join(sorted(found.names)) or "none"
        raise PolicyError(f'classifier "{name}" is not installed (found {known}); install its package')
    try:
        classifier = found[name].load()
    except Exception as error:  # a stranger's module may raise anything
        raise PolicyError(f'classifier "{name}" cannot be loaded ({error!r}); repair its package') from error
    if not callable(classifier):
        raise PolicyError(
            f'classifier "{name}" is {type(classifier).__name__}, expected a function; repair its package'
        )
    return classifier  # type: ignore[no-any-return]
