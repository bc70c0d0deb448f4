"""Loops without `continue` and `break`, which LiteRT-LM's minijinja lacks: conditions that do the same.

What follows a jump moves into the branches that do not jump; a loop that is left early goes on with its body skipped.
"""

from collections.abc import Sequence
from itertools import count

from jinja2 import nodes


def without_jumps(body: Sequence[nodes.Node]) -> list[nodes.Node]:
    """The same statements. A jump in another block than `if` and `for` stays, for the writer to refuse."""
    numbers = count()

    def statements(body: Sequence[nodes.Node]) -> list[nodes.Node]:
        return [found for node in body for found in statement(node)]

    def statement(node: nodes.Node) -> list[nodes.Node]:
        for field in ("body", "else_"):
            if isinstance(inner := getattr(node, field, None), list):
                setattr(node, field, statements(inner))
        for other in getattr(node, "elif_", ()):
            other.body = statements(other.body)
        if not isinstance(node, nodes.For):
            return [node]
        left = f"_left{next(numbers)}"
        leaves = _jumps(node.body, nodes.Break)
        node.body = _lowered(node.body, left)
        if not leaves:
            return [node]
        line = node.lineno
        at_start = nodes.Call(
            nodes.Name("namespace", "load", lineno=line),
            [],
            [nodes.Keyword("on", nodes.Const(False, lineno=line), lineno=line)],
            None,
            None,
            lineno=line,
        )
        flag = nodes.Getattr(nodes.Name(left, "load", lineno=line), "on", "load", lineno=line)
        node.body = [nodes.If(nodes.Not(flag, lineno=line), node.body, [], [], lineno=line)]
        return [nodes.Assign(nodes.Name(left, "store", lineno=line), at_start, lineno=line), node]

    return statements(body)


def _lowered(body: list[nodes.Node], left: str) -> list[nodes.Node]:
    for place, node in enumerate(body):
        before, after = body[:place], body[place + 1 :]
        match node:
            case nodes.Continue():
                return before
            case nodes.Break():
                flag = nodes.NSRef(left, "on", lineno=node.lineno)
                return [*before, nodes.Assign(flag, nodes.Const(True, lineno=node.lineno), lineno=node.lineno)]
            case nodes.If() if _jumps([node], nodes.Continue, nodes.Break):
                others = [
                    nodes.If(other.test, _lowered([*other.body, *after], left), [], [], lineno=other.lineno)
                    for other in node.elif_
                ]
                then, otherwise = _lowered([*node.body, *after], left), _lowered([*node.else_, *after], left)
                return [*before, nodes.If(node.test, then, others, otherwise, lineno=node.lineno)]
    return body


def _jumps(body: Sequence[nodes.Node], *kinds: type[nodes.Node]) -> bool:
    """Whether one of these jumps leaves the statements, those of loops inside aside."""
    return any(
        isinstance(node, kinds)
        or (isinstance(node, nodes.If) and _jumps([*node.body, *node.elif_, *node.else_], *kinds))
        for node in body
    )
