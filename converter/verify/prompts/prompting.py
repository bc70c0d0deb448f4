"""What turns a conversation into tokens and back: template, added tokens, stop tokens, start token, tokenizer.

None of them moves a logit, and each makes a model answer badly, or never stop. What is right is worked out from the
checkpoint's files as transformers reads them (expected_*.py), without the converter's own code.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import Final

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.verify.find.faults import Finding
from gemma_edge.converter.verify.measure.text import builtin_text
from gemma_edge.converter.verify.prompts.expected_prompts import ExpectedPrompts
from gemma_edge.converter.verify.prompts.expected_stops import expected_stops
from gemma_edge.converter.verify.prompts.expected_tokens import CheckpointTokenizer
from gemma_edge.converter.verify.prompts.probes import TALK, TOOLS, Probe
from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.runtime.chat.prompt import Preface, PromptRenderer, as_received
from gemma_edge.runtime.chat.text_model import TextModel

_CONTROL: Final = ("<pad>", "<eos>", "<bos>", "<unk>")
"""Not made from text by Gemma's own tokenizer.model: LiteRT-LM puts <bos> before a prompt as an id."""

_SPACE: Final = "\u2581"  # how SentencePiece writes a space: beside one it is a run of spaces to it, and not to others

_TEXTS: Final = (
    *(f"a{' ' * n}b\n{' ' * n}c" for n in range(1, 9)),
    "def f(x):\n    return {\n\t'a': [x ** 2 for _ in range(10)],\n\t}\n\n\n",
    "na\u00efve caf\u00e9, Stra\u00dfe \u00bd \u2116 \u2122 \u00a0 \u3000 end",
    "\u0421\u044a\u0435\u0448\u044c \u0436\u0435, \u4e2d\u6587\u5206\u8bcd\u6d4b\u8bd5, \u0645\u0631\u062d\u0628\u0627",
    "\U0001f44d\U0001f3fd \U0001f468\u200d\U0001f469\u200d\U0001f467 \x00\x01\x7f",
)
_NAMED: Final = 3


def prompting_faults(checkpoint: Checkpoint, vocab_size: int, model: TextModel) -> list[Finding]:
    """Where the bundle's answers differ from the checkpoint's own files. Raises VerifyError as reading those does."""
    tokenizer = CheckpointTokenizer.open(checkpoint.side_path, vocab_size)
    prompts = ExpectedPrompts.open(checkpoint.side_path)
    lost = {text: number for text, number in tokenizer.added.items() if text not in _CONTROL}
    lost = {text: number for text, number in lost.items() if model.tokenizer.encode(text) != [number]}
    return [
        *_added_tokens(lost, model),
        *_prompts("wrong chat template", TALK, tokenizer, prompts, model),
        *(_prompts("wrong tool prompts", TOOLS, tokenizer, prompts, model) if prompts.mentions_tools else ()),
        *_stop_tokens(checkpoint, tokenizer, prompts, vocab_size, model),
        *_start_token(tokenizer, model),
        *_tokenizer(tokenizer, tokenizer.added.keys() - lost.keys(), model),
    ]


def _added_tokens(lost: dict[str, int], model: TextModel) -> Iterator[Finding]:
    if lost:
        told = [f"{text!r} is {model.tokenizer.encode(text)[:4]}, not {lost[text]}" for text in list(lost)[:_NAMED]]
        more = f"; and {len(lost) - _NAMED} more" if len(lost) > _NAMED else ""
        meaning = "a token that training added must stay one token: in pieces the model has never seen it"
        yield Finding("lost added tokens", meaning, "; ".join(told) + more)


def _prompts(
    name: str, probes: Iterable[Probe], tokenizer: CheckpointTokenizer, prompts: ExpectedPrompts, model: TextModel
) -> Iterator[Finding]:
    """The first conversation that does not become the checkpoint's token ids, start token aside."""
    for probe in probes:
        expected = prompts.render(probe.messages, probe.tools)
        if expected is None:
            continue
        try:
            found = _rendered(model, probe)
        except GemmaEdgeError as error:
            evidence = f"for {probe.what} the bundle writes nothing ({error})"
            yield Finding(name, "the bundle cannot render what the checkpoint's chat template renders", evidence)
            return
        right, ids = tokenizer.encode(expected), model.tokenizer.encode(found)
        right = right[1:] if right[:1] == [tokenizer.bos_id] else right
        if ids == right:
            continue
        start = prompts.special.get("bos_token", "<bos>")
        if (text := expected.removeprefix(start)) != found:
            at = next(i for i, pair in enumerate(zip_longest(text, found)) if pair[0] != pair[1])
            evidence = (
                f"for {probe.what}, after {text[max(0, at - 24) : at]!r} the bundle writes {found[at : at + 32]!r}, "
                f"the checkpoint {text[at : at + 32]!r}"
            )
            meaning = "prompts must look as in training: compare the bundle's template with the checkpoint's"
        else:
            at = next(i for i, pair in enumerate(zip_longest(right, ids)) if pair[0] != pair[1])
            evidence = (
                f"for {probe.what}, {found[:32]!r} becomes {_told(model, ids[at : at + 4])} from token {at} on, in the "
                f"checkpoint {_told(model, right[at : at + 4])}"
            )
            meaning = "prompts must be the tokens of training: what looks like a special token must be one"
        yield Finding(name, meaning, evidence)
        return


def _rendered(model: TextModel, probe: Probe) -> str:
    """The whole prompt as a conversation of the runtime makes it. Raises GemmaEdgeError where it cannot."""
    *before, last = probe.messages
    renderer = PromptRenderer(model.template, model.tool_syntax, Preface(before, probe.tools or ()))
    text = renderer.turn([], [as_received(last)], {})
    if len(before) > 1 and probe.tools is None:  # message by message: it must go on where it stopped
        PromptRenderer(model.template, model.tool_syntax, Preface()).turn(before, [as_received(last)], {})
    return text


def _stop_tokens(
    checkpoint: Checkpoint, tokenizer: CheckpointTokenizer, prompts: ExpectedPrompts, vocab_size: int, model: TextModel
) -> Iterator[Finding]:
    expected = expected_stops(checkpoint.side_path, tokenizer, prompts, vocab_size)
    found = {tuple(ids) for ids in model.eos_token_ids}
    lacks = [
        f"lacks {_spelled(model, (number,))}, asked for by {source}"
        for number, source in sorted(expected.required.items())
        if (number,) not in found
    ]
    besides = sorted(ids for ids in found if len(ids) != 1 or ids[0] not in expected.allowed)
    parts = [*lacks, *([f"has besides {', '.join(_spelled(model, ids) for ids in besides)}"] if besides else [])]
    if parts:
        meaning = (
            "a reply ends at eos_token_id of generation_config.json or config.json, at the tokenizer's <eos> and where "
            "the chat template ends a reply, and nowhere else"
        )
        yield Finding("wrong stop tokens", meaning, f"the bundle {' and '.join(parts)}")


def _start_token(tokenizer: CheckpointTokenizer, model: TextModel) -> Iterator[Finding]:
    if model.start_token_id != tokenizer.bos_id:
        evidence = f"the bundle starts with {model.start_token_id}, the tokenizer's <bos> is {tokenizer.bos_id}"
        yield Finding("wrong start token", "Gemma predicts nonsense without <bos>", evidence)


def _tokenizer(tokenizer: CheckpointTokenizer, added: Iterable[str], model: TextModel) -> Iterator[Finding]:
    """added: tokens that are themselves right, tried between letters and between spaces."""
    within = [text for token in added if token not in _CONTROL for text in (f"a{token}b", f"a {token} b")]
    texts = [*builtin_text().splitlines(), *_TEXTS, *(text for text in within if _SPACE not in text)]
    for text, expected in zip(texts, tokenizer.encode_all(texts), strict=True):
        found = model.tokenizer.encode(text)
        if expected != found:
            evidence = f"{text[:40]!r} is {found[:8]} in the bundle, {expected[:8]} in the checkpoint"
            yield Finding("wrong tokenizer", "the same text must become the same tokens", evidence)
            return


def _told(model: TextModel, ids: Sequence[int]) -> str:
    return ", ".join(_spelled(model, (number,)) for number in ids) or "nothing"


def _spelled(model: TextModel, ids: tuple[int, ...]) -> str:
    names = [model.tokenizer.piece(i) if 0 <= i < model.tokenizer.size else "?" for i in ids]
    return " ".join(f"{i} ({name})" for i, name in zip(ids, names, strict=True))
