"""Templates that would not end, or fill the memory, are refused; the same expressions in sensible sizes are not."""

from typing import Any

import jinja2
import pytest

from gemma_edge.runtime.formats.bounded_jinja import BoundedEnvironment, BoundsError, render


def rendered(source: str, count: int = 1, **context: Any) -> str:
    return render(BoundedEnvironment().compiled(source), context, count)


DOUBLED = (
    "{{% set ns = namespace(x={first}) %}}{{% for i in range(60) %}}{{% set ns.x = {twice} %}}{{% endfor %}}"
    "{{{{ ns.x }}}}"
)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}", "takes more than 201,000"),
        ("{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(99) }}", "201,000 steps"),
        ("{% for i in range(99999) %}" + "y" * 9999 + "{% endfor %}", "more than 134,217,728 characters"),
        ("{% for a in [1, 2] recursive %}{% if loop.depth < 24 %}{{ loop([1, 2]) }}{% endif %}{% endfor %}", "steps"),
        ("{{ 'ab' * 10**9 }}", "a text or list of 2,000,000,000"),
        ("{{ 10**8 * [0] }}", "a text or list of 100,000,000"),
        ("{{ 7 ** (10**7) }}", "more than a thousand digits"),
        ("{{ 2**4000 * 2**4000 }}", "more than a thousand digits"),
        (DOUBLED.format(first="'a'", twice="ns.x ~ ns.x"), "more than 8,388,608 characters"),
        (DOUBLED.format(first="'a'", twice="ns.x + ns.x"), "a text or list of 16,777,216"),
        (DOUBLED.format(first="[0]", twice="[ns.x, ns.x]"), "more than .* 1,048,576 items"),
        (DOUBLED.format(first="[0]", twice="ns.x + ns.x"), "a text or list of 2,097,152"),
        (DOUBLED.format(first="{}", twice="dict(a=ns.x, b=ns.x)"), "more than .* 1,048,576 items"),
        ("{{ '%99999d' % 1 }}", "pads a text"),
        ("{{ '%*d' | format(99999, 1) }}", "pads a text"),
        ("{{ '{:>99999}'.format(1) }}", "pads a text"),
        ("{{ '{:{}}'.format(1, 99999) }}", "pads a text"),
        ("{{ 'a'.rjust(99999) }}", "pads a text"),
        ("{{ 'a' | center(99999) }}", "pads a text"),
        ("{{ {'a': 1} | tojson(indent=99999) }}", "pads a text"),
        ("{{ ('\n' * 9999) | indent(9999) }}", "a text or list of"),
        ("{{ ('a' * 9999).replace('a', 'b' * 9999) }}", "a text or list of 99,990,000"),
        ("{{ ('a' * 9999).translate({97: 'b' * 9999}) }}", "a text or list of"),
        ("{{ range(9999) | join('a' * 9999) }}", "a text or list of"),
        ("{{ ('a' * 9999).join(range(9999) | map('string')) }}", "a text or list of"),
        ("{{ (['a' * 99999] * 9999) | join }}", "more than 8,388,608 characters"),
        ("{{ '%s' * 99 % (('a' * 999999,) * 99) }}", "a text or list of|more than"),
        ("{{ lipsum(9) }}", "filler text"),
        ("{% set a = namespace() %}{% set a.b = a %}{{ a }}", "namespace"),
        ("{% set a = namespace() %}{% set b = namespace(a=a) %}{% set a.b = [b] %}{{ b }}", "namespace"),
        (DOUBLED.format(first="0", twice="[ns.x]").replace("60", "600"), "lists in lists, 101 deep"),
    ],
)  # fmt: skip
def test_what_has_no_end_is_refused(source: str, reason: str) -> None:
    with pytest.raises(BoundsError, match=reason):
        rendered(source)


def test_a_template_that_computes_for_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Comparisons are no steps; the processor's clock tells."""
    monkeypatch.setattr("gemma_edge.runtime.formats.bounded_jinja._MOST_PROCESSOR_S", 0.01)
    with pytest.raises(BoundsError, match="more than 0 s"):
        rendered(
            "{% for i in range(9999) %}{% if many == more %}{% endif %}{% endfor %}", many=[0] * 99999, more=[0] * 99999
        )


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ 5 * 'ab' }}", "ababababab"),
        # Jinja2 gives a call in a loop all variables of the loop, as Gemma 4's own template has two of them.
        ("{% for i in [1, 2] %}{% set a = namespace(x=i) %}{% set b = namespace(x=a.x) %}{{ b.x }}{% endfor %}", "12"),
        ("{{ '%05d' % 7 }}{{ '*%s*' % 20000 }}", "00007*20000*"),
        ("{{ '{:>6}|{}'.format('x', 200000) }}", "     x|200000"),
        ("{{ (['a' * 999] * 99) | join(', ' * 20) | length }}", str(999 * 99 + 40 * 98)),
        ("{{ ', '.join(['a', 'b']) }}{{ 'a\nb' | indent(2) }}", "a, ba\n  b"),
        ("{{ 2**100 }}", str(2**100)),
        ("{% for a, b in [(1, 2)] %}{{ a }}{{ b }}{{ loop.last }}{% else %}none{% endfor %}", "12True"),
        ("{% for a in [1, [2, [3]]] recursive %}{{ a if a is number else loop(a) }}{% endfor %}", "123"),
        ("{% macro m(n) %}{{ n }}{{ m(n - 1) if n }}{% endmacro %}{{ m(3) }}", "3210"),
        ("{{ 'a' ~ 1 ~ none ~ missing }}{{ [1, 'a', {'b': 2}] }}", "a1None[1, 'a', {'b': 2}]"),
        ("{{ [3, 1, 2] | sort | map('string') | join }}{{ 'abcabc'.replace('b', 'xx') }}", "123axxcaxxc"),
    ],
)
def test_what_has_an_end_is_as_in_jinja2(source: str, expected: str) -> None:
    assert rendered(source) == expected == jinja2.Environment().from_string(source).render()


def test_a_long_conversation_may_take_as_long() -> None:
    source = "{% for m in messages %}{% for i in range(200) %}{% endfor %}{{ m.content }}{% endfor %}"
    messages = [{"content": "x" * 100}] * 3000
    assert len(rendered(source, 3000, messages=messages)) == 300_000
    with pytest.raises(BoundsError, match="steps"):
        rendered(source, 1, messages=messages)


UNFIT = {
    "deep": "{{ " + "(" * 9999 + "1" + ")" * 9999 + " }}",
    "a long number": "{{ " + "9" * 5000 + " }}",
    "many blocks": "{% for i in x %}" * 30 + "{% endfor %}" * 30,
    "long": "x" * (2 << 20),
    "syntax": "{% if %}",
}


@pytest.mark.parametrize("source", UNFIT.values(), ids=UNFIT)
def test_what_cannot_be_compiled(source: str) -> None:
    with pytest.raises(jinja2.TemplateSyntaxError):
        BoundedEnvironment().compiled(source)
