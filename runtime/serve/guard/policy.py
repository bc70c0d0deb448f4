"""A content policy as data: a TOML file, read and checked once. runtime/SERVE.md shows its fields."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from gemma_edge.runtime.serve.guard.limits import Limits
from gemma_edge.runtime.serve.guard.pattern import PatternError
from gemma_edge.runtime.serve.guard.rules import Action, PolicyError, Rule, expressions
from gemma_edge.runtime.serve.guard.sanitise import DOCUMENTED_ROLES, Sanitising

REPLACEMENT = "[filtered]"
MOST_BYTES = 1 << 20  # of a policy file
_MOST_PATTERN = 1000  # characters of a pattern's text


class Direction(StrEnum):
    """Which way a text goes: to the model, or from it."""

    INPUT = "input"
    OUTPUT = "output"


@dataclass(frozen=True)
class Policy:
    """What may be said. accents: whether they tell words apart. log_text: whether the log shows what met a rule.

    limits: None: the file does not say. sanitising: None: messages stay as they are. classifier: its name (`classify`).
    """

    rules: Mapping[Direction, tuple[Rule, ...]] = field(default_factory=dict)
    accents: bool = True
    log_text: bool = False
    limits: Limits | None = None
    sanitising: Sanitising | None = None
    classifier: str | None = None

    @classmethod
    def read(cls, path: Path) -> "Policy":
        """Raises PolicyError: not there, no TOML, or a field that is unknown or of the wrong kind."""
        try:
            with path.open("rb") as file:
                data = file.read(MOST_BYTES + 1)
        except OSError as error:
            raise PolicyError(f"{path}: cannot read ({error.strerror}); name a policy file") from None
        if len(data) > MOST_BYTES:
            raise PolicyError(f"{path}: more than {MOST_BYTES} bytes; expected a policy, split long lists of words")
        try:
            return cls.of(tomllib.loads(data.decode()), str(path))
        except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise PolicyError(f"{path}: no TOML in UTF-8 ({error}); correct it there") from None

    @classmethod
    def of(cls, values: Mapping[str, Any], where: str = "policy") -> "Policy":
        """Of what a file says. Raises PolicyError."""
        table = _Table(values, where)
        accents, log_text = table.flag("accents", True), table.flag("log_text", False)
        replacement = table.text("replacement", REPLACEMENT)
        rules: dict[Direction, list[Rule]] = {direction: [] for direction in Direction}
        for number, each in enumerate(table.tables("category"), 1):
            for direction, rule in _category(_Table(each, f"{where}, category {number}"), replacement, accents):
                rules[direction].append(rule)
        classifier = table.text("classifier", "") or None
        limits, sanitising = table.table("limits"), table.table("input")
        table.no_more()
        return cls(
            {direction: tuple(found) for direction, found in rules.items()},
            accents,
            log_text,
            None if limits is None else _limits(limits),
            None if sanitising is None else _sanitising(sanitising),
            classifier,
        )


def _category(table: "_Table", replacement: str, accents: bool) -> list[tuple[Direction, Rule]]:
    name = table.text("name", "")
    if not name:
        raise PolicyError(f"{table.where}: no name; give it one, which refusals and the log show")
    where = f"{table.where} ({name})"
    words, patterns = table.texts("words"), table.texts("patterns")
    replacement = table.text("replacement", replacement)
    actions = [(direction, table.text(direction.value, "")) for direction in Direction]
    table.no_more()
    if not words and not patterns:
        raise PolicyError(f"{where}: neither words nor patterns; give it one of them")
    if not any(action for _, action in actions):
        raise PolicyError(f'{where}: neither input nor output; say what happens, such as input = "refuse"')
    for direction, action in actions:
        if action and action not in [each.value for each in Action]:
            known = ", ".join(each.value for each in Action)
            raise PolicyError(f'{where}: {direction.value} is "{action}", expected one of {known}')
    if too_long := [each for each in patterns if len(each) > _MOST_PATTERN]:
        raise PolicyError(
            f"{where}: a pattern of {len(too_long[0])} characters, expected at most {_MOST_PATTERN}; split it"
        )
    try:
        found = expressions(words, patterns, where, accents=accents)
    except PatternError as error:
        raise PolicyError(f"{where}: {error}") from None
    return [(direction, Rule(name, Action(action), replacement, found)) for direction, action in actions if action]


def _limits(table: "_Table") -> Limits:
    default = Limits()
    found = Limits(
        requests=table.count("requests", default.requests),
        tokens=table.count("tokens", default.tokens),
        window_s=float(table.count("window_s", int(default.window_s)) or default.window_s),
    )
    table.no_more()
    return found


def _sanitising(table: "_Table") -> Sanitising:
    default = Sanitising()
    found = Sanitising(
        strip_markup=table.flag("strip_markup", default.strip_markup),
        characters=table.count("characters", default.characters),
        messages=table.count("messages", default.messages),
        roles=tuple(table.texts("roles") or DOCUMENTED_ROLES),
    )
    table.no_more()
    return found


class _Table:
    """A table of TOML: takes out what is known, and refuses what is left."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.where = where
        self._left = dict(values)

    def _take(self, name: str, kind: type, meant: str) -> Any:
        value = self._left.pop(name, None)
        if value is not None and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
            raise PolicyError(f"{self.where}: {name} is {value!r}, expected {meant}; correct it")
        return value

    def text(self, name: str, default: str) -> str:
        value = self._take(name, str, "text")
        return default if value is None else value

    def flag(self, name: str, default: bool) -> bool:
        value = self._take(name, bool, "true or false")
        return default if value is None else value

    def count(self, name: str, default: int | None) -> int | None:
        """0: no limit."""
        value = self._take(name, int, "a number, 0 for no limit")
        if value is not None and value < 0:
            raise PolicyError(f"{self.where}: {name} is {value}, expected 0 or more; 0 means no limit")
        return default if value is None else value or None

    def texts(self, name: str) -> list[str]:
        value = self._take(name, list, "a list of texts") or []
        if wrong := [each for each in value if not isinstance(each, str)]:
            raise PolicyError(f"{self.where}: {name} has {wrong[0]!r}, expected texts; put it in quotes")
        return value

    def table(self, name: str) -> "_Table | None":
        value = self._take(name, dict, f"a table, [{name}]")
        return None if value is None else _Table(value, f"{self.where}, [{name}]")

    def tables(self, name: str) -> list[Mapping[str, Any]]:
        value = self._take(name, list, f"tables, [[{name}]]") or []
        if not all(isinstance(each, dict) for each in value):
            raise PolicyError(f"{self.where}: {name} is a list, expected tables, [[{name}]]; write them so")
        return value

    def no_more(self) -> None:
        if self._left:
            raise PolicyError(f"{self.where}: {', '.join(sorted(self._left))} is not known; take it out or correct it")
