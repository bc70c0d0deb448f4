"""What was written before in a reply, kept up token by token: a step takes no longer where a reply is long."""

from collections import deque

import numpy as np
from numpy.typing import NDArray


class Counts:
    """How often each of the last tokens occurs. window: how many are the last ones; 0: all."""

    def __init__(self, window: int) -> None:
        self._window = window
        self._last: deque[int] = deque()  # only where there is a window
        self._places: dict[int, int] = {}
        self._token_ids = np.zeros(64, np.intp)
        self._counts = np.zeros(64, np.float32)

    def add(self, token_id: int) -> None:
        """The next token."""
        place = self._places.setdefault(token_id, len(self._places))
        if place == len(self._counts):
            self._token_ids = np.concatenate([self._token_ids, np.zeros_like(self._token_ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._token_ids[place] = token_id
        self._counts[place] += 1
        if self._window:
            self._last.append(token_id)
            if len(self._last) > self._window:
                self._counts[self._places[self._last.popleft()]] -= 1

    def found(self) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
        """Each token that occurs, once, and how often: [n], [n]."""
        token_ids, counts = self._token_ids[: len(self._places)], self._counts[: len(self._places)]
        if not self._window:
            return token_ids, counts
        are_there = counts > 0
        return token_ids[are_there], counts[are_there]


class Ngrams:
    """Which tokens would write an n-gram once more. size: its tokens; 0: none is looked for. window: how many tokens
    back count; 0: all; at least one n-gram."""

    def __init__(self, size: int, window: int) -> None:
        self._size, self._window = size, max(window, size) if window else 0
        self._tokens: list[int] = []
        self._last_after: dict[tuple[int, ...], dict[int, int]] = {}  # by beginning: token: where it stood last

    def add(self, token_id: int) -> None:
        """The next token."""
        self._tokens.append(token_id)
        if 0 < self._size <= len(self._tokens):
            beginning = tuple(self._tokens[-self._size : -1])
            self._last_after.setdefault(beginning, {})[token_id] = len(self._tokens) - 1

    def repeating(self) -> list[int]:
        """The tokens that would complete one for the second time."""
        length = len(self._tokens)
        if self._size == 0 or length < self._size:
            return []
        after = self._last_after.get(tuple(self._tokens[length - self._size + 1 :]), {})
        first = (length - self._window if self._window else 0) + self._size - 1
        return [token_id for token_id, at in after.items() if at >= first]
