"""A chat template's first comment, which says how the model writes tool calls, where no other place can.

LiteRT-LM's metadata has their fences for text models only. The comment also says that the template shows tools by
itself: it reads them as JSON.
"""

import json
import re
from dataclasses import dataclass

_COMMENT = re.compile(r"\{# tool calls: (\{.*?\}) #\}")


@dataclass(frozen=True)
class CallFences:
    """start, end: around a call; empty where that is not known. notation: "json", "python", "fc"."""

    start: str = ""
    end: str = ""
    notation: str = ""

    def comment(self) -> str:
        """For the beginning of a template."""
        values = {"start": self.start, "end": self.end, "notation": self.notation}
        return f"{{# tool calls: {json.dumps(values).replace('#', chr(92) + 'u0023')} #}}"

    @classmethod
    def of_template(cls, source: str) -> "CallFences | None":
        """What a template says; None where it says nothing."""
        found = _COMMENT.match(source)
        if found is None:
            return None
        try:
            values = json.loads(found[1])
        except ValueError:
            return None
        texts = {key: values.get(key) for key in ("start", "end", "notation")}
        return cls(**texts) if all(isinstance(text, str) for text in texts.values()) else None
