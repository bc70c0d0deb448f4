"""Jinja for templates that someone else wrote: sandboxed, and with an end.

Jinja2's sandbox keeps a template from Python, not from the processor and the memory: loops in loops, macros that call
themselves twice, `"x" * 10**9`, `2 ** 10**8`, `{{ "%999999999d" % 1 }}`, a string doubled forty times. Here every step
is counted while a template is compiled and rendered, what it makes is measured, and what would be too long is refused
before it is made.
"""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, Final

import jinja2
from jinja2 import nodes
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

MOST_STEPS: Final = 200_000
"""Turns of loops, calls and operations of one rendering, and as many again for every 200 messages."""
_STEPS_PER_MESSAGE: Final = 1_000
MOST_MADE: Final = 128 << 20
"""Characters and list items that one rendering may make, all together."""
_LONGEST: Final = 8 << 20  # of one text
_MOST_ITEMS: Final = 1 << 20  # of one list
_DEEPEST: Final = 100  # of lists in lists
_MOST_BITS: Final = 4096  # of one number
_WIDEST: Final = 10_000  # of what numbers ask to pad to
_MOST_PROCESSOR_S: Final = 10.0
_STEPS_PER_LOOK: Final = 256  # at the clock, which may cost 0.2 ms
_LONGEST_SOURCE: Final = 1 << 20
# "%10000d", "%*d", "{:>10000}", "{:{}}": a width that is large, or that comes with the values.
_WIDE: Final = re.compile(r"[%:][^%:{}a-zA-Z]*(?:\d{5}|[*{])")
# What makes text as long as a number says, and what writes a text many times. Other filters and methods make no more
# than a few times what they are given.
_PADDING: Final = frozenset(("batch", "center", "expandtabs", "indent", "ljust", "rjust", "slice", "tojson", "zfill"))
_REPEATING: Final = frozenset(("indent", "join", "replace", "translate", "urlize", "wordwrap"))


_VARIABLES: Final = ("_loop_vars", "_block_vars")  # what Jinja2 itself gives each call in a loop or a block
_HELD_NAMESPACE: Final = "it prints a namespace, or holds one in a value"  # which may hold itself


class BoundsError(jinja2.TemplateRuntimeError):
    """A template asks for more than any prompt needs."""


class _Meter:
    """What one compilation or rendering has used."""

    def __init__(self, steps: int) -> None:
        self._most_steps = self._steps = steps
        self._made = MOST_MADE
        self._until_s = time.thread_time() + _MOST_PROCESSOR_S

    def step(self, count: int = 1) -> None:
        self._steps -= count
        if self._steps < 0:
            raise BoundsError(f"it takes more than {self._most_steps:,} steps")
        if self._steps % _STEPS_PER_LOOK == 0 and time.thread_time() > self._until_s:
            raise BoundsError(f"it takes more than {_MOST_PROCESSOR_S:.0f} s")

    def make(self, length: int, most: int = _LONGEST) -> None:
        if length > most:
            raise BoundsError(f"it makes a text or list of {length:,}, the longest may have {most:,}")
        self._made -= length
        if self._made < 0:
            raise BoundsError(f"it makes more than {MOST_MADE:,} characters")
        if length > _MOST_ITEMS // 8:
            self.step(self._steps % _STEPS_PER_LOOK or _STEPS_PER_LOOK)  # looks at the clock

    def value(self, value: Any) -> Any:
        """Counts what printing or comparing a value walks through."""
        self.make(len(value) if isinstance(value, str) else _length(value))
        return value


def _length(value: Any) -> int:
    """Characters and items of a value, each as often as it is held. Raises BoundsError where they are too many."""
    pending, length, items = [(value, 0)], 0, 0
    while pending:
        item, depth = pending.pop()
        items += 1
        if isinstance(item, str | range):
            length += len(item)
        elif isinstance(item, Mapping):
            items += len(item)
            pending.extend((part, depth + 1) for part in item.values())
        elif isinstance(item, list | tuple):
            pending.extend((part, depth + 1) for part in item)
        elif isinstance(item, Namespace):
            raise BoundsError(_HELD_NAMESPACE)
        if depth > _DEEPEST:
            raise BoundsError(f"it makes lists in lists, {depth} deep")
        if length > _LONGEST or items + len(pending) > _MOST_ITEMS:
            raise BoundsError(f"it makes a value of more than {_LONGEST:,} characters or {_MOST_ITEMS:,} items")
    return length + items


_METER: ContextVar[_Meter | None] = ContextVar("meter", default=None)


@contextmanager
def _metered(steps: int) -> Iterator[None]:
    token = _METER.set(_Meter(steps))
    try:
        yield
    finally:
        _METER.reset(token)


def _meter() -> _Meter:
    return _METER.get() or _Meter(MOST_STEPS)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Use `compiled` and `render`; filters have to be added before."""

    intercepted_binops = frozenset(("+", "-", "*", "**", "/", "//", "%"))

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        shown = self.finalize
        self.finalize = lambda value: _meter().value(value if shown is None else shown(value))
        self.globals["lipsum"] = _no_lipsum
        self.filters.update({function.__name__: function for function in _OURS})

    def compiled(self, source: str) -> jinja2.Template:
        """A template. Raises jinja2.TemplateSyntaxError for all that cannot be compiled."""
        if len(source) > _LONGEST_SOURCE:
            raise jinja2.TemplateSyntaxError(f"{len(source):,} characters, at most {_LONGEST_SOURCE:,} are read", 1)
        for name, function in list(self.filters.items()):
            self.filters[name] = _bounded(name, function)
        with _metered(MOST_STEPS):
            try:
                return self.from_string(source)
            except jinja2.TemplateSyntaxError:
                raise
            except Exception as error:  # a constant that cannot be computed, blocks too deep for Python's own parser
                raise jinja2.TemplateSyntaxError(str(error) or type(error).__name__, 1) from error

    def parsed(self, source: str) -> nodes.Template:
        """Its syntax tree. Raises jinja2.TemplateSyntaxError."""
        if len(source) > _LONGEST_SOURCE:
            raise jinja2.TemplateSyntaxError(f"{len(source):,} characters, at most {_LONGEST_SOURCE:,} are read", 1)
        try:
            return self.parse(source)
        except RecursionError as error:
            raise jinja2.TemplateSyntaxError("nested too deep", 1) from error

    def _generate(
        self, source: nodes.Template, name: str | None, filename: str | None, defer_init: bool = False
    ) -> str:
        tree: Any = _Counting().visit(source)
        tree.set_environment(self)
        return super()._generate(tree, name, filename, defer_init)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        meter = _meter()
        meter.step()
        _check_operation(meter, operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805  as Jinja2 names them
        meter = _meter()
        meter.step()
        name = getattr(__obj, "__name__", "")
        given = {key: value for key, value in kwargs.items() if key not in _VARIABLES}
        if __obj is Namespace:
            _length([*args, *given.values()])
        args = tuple(_held(meter, name, arg) for arg in args)
        _check_making(meter, name, getattr(__obj, "__self__", None), args, given)
        return _counted(meter, super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Any:
        """Of `"...".format`: Jinja2's own replacement, unless it asks for a width that is out of bounds."""
        formats = super().wrap_str_format(value)
        if formats is None:
            return None
        text = str(value.__self__)

        @wraps(formats)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            _check_format(_meter(), text, text.count("{"), (*args, *kwargs.values()))
            return formats(*args, **kwargs)

        return bounded


def render(template: jinja2.Template, context: Mapping[str, Any], messages: int) -> str:
    """The text. messages: how many there are; longer conversations may take more steps.

    Raises BoundsError, and whatever the template raises.
    """
    with _metered(MOST_STEPS + _STEPS_PER_MESSAGE * messages):
        return template.render(context)


class _Counting(NodeTransformer):
    """Counts every turn of a loop and every call of a macro, with the text that it writes, and measures what is made.

    Counting is a filter, `_step`, whose value is thrown away.
    """

    def visit(self, node: nodes.Node, *_: Any, **__: Any) -> nodes.Node:
        """The node with everything in it counted, the innermost first."""
        found: Any = self.generic_visit(node)
        match found:
            case nodes.For() | nodes.Macro() | nodes.CallBlock():
                written = sum(len(text.data) for text in found.find_all(nodes.TemplateData))
                count = _filtered(nodes.Const(written), _step, found.lineno)
                found.body.insert(0, nodes.ExprStmt(count, lineno=found.lineno))
            case nodes.Concat():
                parts: Any = nodes.List(found.nodes, lineno=found.lineno)
                return _filtered(parts, _joined, found.lineno)
            case nodes.Assign(target=nodes.NSRef()):
                found.node = _filtered(found.node, _stored, found.lineno)
            case nodes.List() | nodes.Dict() | nodes.Tuple(ctx="load"):
                return _filtered(found, _measured, found.lineno)
        return found  # type: ignore[no-any-return]


def _filtered(value: Any, function: Callable[..., Any], line: int) -> nodes.Filter:
    return nodes.Filter(value, function.__name__, [], [], None, None, lineno=line)


@jinja2.pass_context  # or the optimizer would count once, and for all
def _step(_context: Context, written: int) -> None:
    meter = _meter()
    meter.step()
    meter.make(written)


def _joined(parts: list[Any]) -> str:
    _length(parts)
    return _meter().value("".join(map(str, parts)))  # type: ignore[no-any-return]


def _measured(value: Any) -> Any:
    return _meter().value(value)


def _stored(value: Any) -> Any:
    """What becomes part of a namespace."""
    if isinstance(value, Namespace):
        raise BoundsError(_HELD_NAMESPACE)
    return value


_OURS: Final = (_step, _joined, _measured, _stored)


def _no_lipsum(*_: Any, **__: Any) -> str:
    raise BoundsError("it asks for filler text")


def _bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that counts what it is given and what it gives."""
    if hasattr(function, "is_bounded") or function in _OURS:
        return function

    @wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        meter = _meter()
        meter.step()
        args = tuple(_held(meter, name, arg) for arg in args)
        given = next((i for i, arg in enumerate(args) if not isinstance(arg, _JINJAS)), 0)
        value, more = (args[given], args[given + 1 :]) if given < len(args) else (None, ())
        _check_making(meter, name, value, more, kwargs)
        return _counted(meter, function(*args, **kwargs))

    bounded.is_bounded = True  # type: ignore[attr-defined]
    return bounded


_JINJAS: Final = (jinja2.Environment, Context, nodes.EvalContext)


def _counted(meter: _Meter, made: Any) -> Any:
    if isinstance(made, Iterator):
        return _stepping(meter, made)
    if isinstance(made, str | list | tuple | dict):
        meter.value(made)
    return made


def _held(meter: _Meter, name: str, value: Any) -> Any:
    """What comes one by one, as a list where its length decides how much is made."""
    return list(_stepping(meter, value)) if name in _REPEATING and isinstance(value, Iterator) else value


def _stepping(meter: _Meter, items: Iterator[Any]) -> Iterator[Any]:
    for item in items:
        meter.step()
        yield item


def _check_operation(meter: _Meter, operator: str, left: Any, right: Any) -> None:
    """Refuses an operation whose result would be too large, before it is computed."""
    match operator, left, right:
        case "+", str() | list() | tuple(), str() | list() | tuple():
            meter.make(len(left) + len(right), _longest(left))
        case "*", str() | list() | tuple(), int():
            meter.make(len(left) * max(0, right), _longest(left))
        case "*", int(), str() | list() | tuple():
            meter.make(len(right) * max(0, left), _longest(right))
        case "*", int(), int() if left.bit_length() + right.bit_length() > _MOST_BITS:
            raise BoundsError("it computes a number of more than a thousand digits")
        case "**", int(), int() if left.bit_length() * abs(right) > _MOST_BITS and abs(left) > 1:
            raise BoundsError("it computes a number of more than a thousand digits")
        case "%", str(), _:
            _check_format(meter, left, left.count("%"), right if isinstance(right, tuple) else (right,))


def _longest(value: Any) -> int:
    return _LONGEST if isinstance(value, str) else _MOST_ITEMS


def _check_making(meter: _Meter, name: str, value: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """The same of a filter or method; value: what it is called on."""
    given = (*args, *kwargs.values())
    if name in _PADDING and any(isinstance(arg, int) and abs(arg) > _WIDEST for arg in given):
        raise BoundsError(_TOO_WIDE)
    if name == "format" and isinstance(value, str):
        _check_format(meter, value, value.count("%"), given)
    elif name == "replace" and isinstance(value, str) and len(given) > 1 and all(isinstance(a, str) for a in given[:2]):
        meter.make(len(value) + value.count(given[0]) * len(given[1]))
    elif name == "join":
        # The filter, of a list; or the method, of a separator.
        is_method = isinstance(value, str) and bool(given) and not isinstance(given[0], str)
        items, separator = (given[0], value) if is_method else (value, given[0] if given else "")
        meter.make(_length(items) + _places(items) * _length(separator))
    elif name == "indent" and isinstance(value, str):
        width = max((arg if isinstance(arg, int) else _length(arg) for arg in given), default=4)
        meter.make(len(value) + (value.count("\n") + 1) * width)
    elif name in _REPEATING and isinstance(value, str):
        put_in = [_length(arg) for arg in given if isinstance(arg, str | Mapping)]
        meter.make(len(value) * max(put_in, default=1))


def _places(value: Any) -> int:
    """Where something can be put in."""
    return len(value) if hasattr(value, "__len__") else 0


def _check_format(meter: _Meter, text: str, places: int, given: tuple[Any, ...]) -> None:
    if _WIDE.search(text):
        raise BoundsError(_TOO_WIDE)
    meter.make(len(text) + places * max(map(_length, given), default=0))


_TOO_WIDE: Final = "it pads a text to more than any prompt needs"
