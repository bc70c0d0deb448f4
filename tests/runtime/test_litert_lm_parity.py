"""The same bundle in litert_lm and here: rendered prompts, token counts and texts.

litert_lm 0.18.1 slips between turns. The last token of a reply, mostly <end_of_turn>, runs with the next message, and
does so with an embedding of zeros (found with a model whose cache can be read back). Its later turns therefore differ
from its own reply to the same tokens prefilled at once, and from transformers. So later turns are compared twice: ours
with litert_lm's reply to the whole conversation at once, and, with that slip made on purpose, with its turns as such.

Conversations are compared in int4 too, up to the first near tie (tests/near_ties.py): XNNPACK rounds activations, and
otherwise for one token than for a chunk. What is drawn, penalized or constrained is compared in float32.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gemma_edge.runtime.chat.conversation import Conversation
from gemma_edge.runtime.chat.options import ConversationOptions, SendOptions
from gemma_edge.runtime.chat.prompt_tokens import Encoded, PromptTokens
from gemma_edge.runtime.chat.text_model import TextModel
from gemma_edge.runtime.config import Backend
from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.executors.litert.decoder import DecoderSections, LitertDecoder
from gemma_edge.runtime.executors.litert.slot import LitertSlot
from gemma_edge.runtime.formats.litertlm import Bundle
from gemma_edge.runtime.kv.scheduler import Scheduler
from gemma_edge.runtime.kv.sequence import TokenSequence
from gemma_edge.runtime.kv.slots import SlotPool
from gemma_edge.runtime.kv.waiting import Waiting
from gemma_edge.runtime.text.constraints import ResponseFormat
from gemma_edge.runtime.text.model_info import LiteRtLmModality, ModelInfo
from gemma_edge.runtime.text.penalties import NoRepeatNgramConfig, RepetitionPenaltyConfig, SuppressTokensConfig
from gemma_edge.runtime.text.sampler import SamplerConfig
from tests.near_ties import NEAR_TIE, check_same_greedy_text

GREEDY = SamplerConfig(top_k=1)
PROMPT = "And the LORD said unto"
IN_FLOAT32 = pytest.mark.parametrize("bundle", ["gemma3-fp32", "gemma3n-fp32"], indirect=True)


@pytest.fixture(scope="module", params=["gemma3-fp32", "gemma3n-fp32", "gemma3n-int4"])
def bundle(request: pytest.FixtureRequest, tiny_bundle: Callable[[str, str], Path]) -> Path:
    return tiny_bundle(*request.param.split("-"))


@pytest.fixture(scope="module")
def engine(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    cache = str(tmp_path_factory.mktemp("cache"))
    with Engine(str(bundle), Backend.CPU(thread_count=2), cache_dir=cache) as engine:
        yield engine


@pytest.fixture(scope="module")
def google(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    import litert_lm

    cache = str(tmp_path_factory.mktemp("litert_lm"))
    with litert_lm.Engine(str(bundle), litert_lm.Backend.CPU(), cache_dir=cache) as engine:
        yield engine


def theirs(value: Any) -> Any:
    """The same config as litert_lm's class."""
    import litert_lm

    return getattr(litert_lm, type(value).__name__)(**asdict(value))


def reply(engine: Engine, sampler: SamplerConfig, **options: Any) -> str:
    with engine.create_conversation(sampler_config=sampler) as conversation:
        return str(conversation.send_message(PROMPT, max_output_tokens=60, **options))


def googles_reply(google: Any, sampler: SamplerConfig, **options: Any) -> str:
    options = {name: theirs(value) for name, value in options.items()}
    with google.create_conversation(sampler_config=theirs(sampler)) as conversation:
        return str(conversation.send_message(PROMPT, max_output_tokens=60, **options))


SAMPLERS = [
    SamplerConfig(top_k=1),
    SamplerConfig(top_k=40, top_p=0.95, temperature=1.0, seed=0),
    SamplerConfig(top_k=40, top_p=0.95, temperature=0.7, seed=12345),
    SamplerConfig(top_k=5, top_p=1.0, temperature=2.0, seed=7),
    SamplerConfig(top_k=40, top_p=0.0, seed=3),
    SamplerConfig(top_k=40, top_p=0.9, temperature=0.0, seed=3),
    SamplerConfig(top_k=40, seed=-5),
    SamplerConfig(top_k=20, seed=3),
    SamplerConfig(seed=3),
    SamplerConfig(),
]


@IN_FLOAT32
@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_the_same_seed_draws_the_same_text(engine: Engine, google: Any, sampler: SamplerConfig) -> None:
    assert reply(engine, sampler) == googles_reply(google, sampler)


@IN_FLOAT32
def test_the_bundles_own_sampler(engine: Engine, google: Any) -> None:
    with google.create_conversation() as conversation, engine.create_conversation() as ours:
        expected = str(conversation.send_message(PROMPT, max_output_tokens=60))
        assert str(ours.send_message(PROMPT, max_output_tokens=60)) == expected


PENALTIES: list[Mapping[str, Any]] = [
    *(
        {"repetition_penalty_config": RepetitionPenaltyConfig(*values)}
        for values in [
            (1.3, None, None, None),
            (None, 1.0, None, None),
            (None, None, 0.7, None),
            (1.2, 0.5, 0.3, 5),
            (1.5, None, None, 1),
            (None, 2.0, 0.1, 3),
            (1.1, -1.0, None, None),
        ]
    ),
    *(
        {"no_repeat_ngram_config": NoRepeatNgramConfig(*values)}
        for values in [(1, None), (2, None), (3, None), (2, 4), (3, 6), (3, 2), (1, 5), (4, 10), (2, 2)]
    ),
    {"suppress_tokens_config": SuppressTokensConfig((431, 13, 12))},
    {
        "repetition_penalty_config": RepetitionPenaltyConfig(1.2),
        "no_repeat_ngram_config": NoRepeatNgramConfig(2),
        "suppress_tokens_config": SuppressTokensConfig((431,)),
    },
]


@IN_FLOAT32
@pytest.mark.parametrize("penalties", PENALTIES, ids=str)
@pytest.mark.parametrize("sampler", [GREEDY, SamplerConfig(top_k=20, temperature=0.8, seed=3)], ids=["greedy", "drawn"])
def test_penalties(engine: Engine, google: Any, sampler: SamplerConfig, penalties: Mapping[str, Any]) -> None:
    assert reply(engine, sampler, **penalties) == googles_reply(google, sampler, **penalties)


# litert_lm matches pieces as SentencePiece stores them, so formats with spaces or byte tokens differ by design; in
# this vocabulary brackets are bytes, which leaves JSON values.
FORMATS = [
    *(ResponseFormat.regex(p) for p in ("[a-z]{3,12}", "(yes|no)", "[A-Z][a-z]+,[a-z]+\\.", "[a-z]*", "[0-9]+")),
    *(
        ResponseFormat.json(schema)
        for schema in (
            {"type": "boolean"},
            {"type": "integer", "minimum": 10, "maximum": 99},
            {"enum": ["heaven", "earth", 7]},
            {"type": "string", "pattern": "^[a-z]{3,8}$"},
            {"anyOf": [{"type": "null"}, {"type": "string", "maxLength": 5, "pattern": "^[A-Z]+$"}]},
        )
    ),
]


@IN_FLOAT32
@pytest.mark.parametrize("response_format", FORMATS, ids=lambda wanted: wanted.schema_or_pattern)
def test_constraints(engine: Engine, google: Any, response_format: ResponseFormat) -> None:
    import litert_lm

    is_regex = response_format.type == ResponseFormat.Type.REGEX
    theirs = litert_lm.ResponseFormat.regex if is_regex else litert_lm.ResponseFormat.json
    provider = litert_lm.LiteRtLmConstraintProviderType.LL_GUIDANCE
    # With enable=True litert_lm also loads a constraint library that takes only Gemma's own vocabulary.
    config = litert_lm.ConstrainedDecodingConfig(enable=False, provider=provider)
    with google.create_conversation(
        sampler_config=litert_lm.SamplerConfig(top_k=1), constrained_decoding_config=config
    ) as conversation:
        conversation.constrained_decoding_config = litert_lm.ConstrainedDecodingConfig(provider=provider)
        wanted = theirs(response_format.schema_or_pattern)
        expected = str(conversation.send_message(PROMPT, max_output_tokens=60, response_format=wanted))
    assert reply(engine, GREEDY, response_format=response_format) == expected


def get_weather(city: str, days: int = 3) -> None:
    """Gets the weather.

    Args:
        city: The city, e.g. "Bath".
    """


CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"days": 2, "city": "the 'old' one"}}}
RESPONSE = {"degrees": [1, None, True, 2.5], "a": {"type": "Mild", "z": 1.0}, "note": "so\u00e9 so \U0001f600"}
CONVERSATIONS: list[tuple[Mapping[str, Any], list[Any]]] = [
    ({}, ["In the beginning", "x", "  spaces \n and \u00e9\u65e5 \U0001f600 <b>&amp;</b> ", "It is"]),
    ({"system_message": 'You are\n a "prophet".'}, ["In the beginning", "and then"]),
    (
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        ["hello", [{"type": "text", "text": "two "}, {"type": "text", "text": "parts"}]],
    ),
    (
        {"tools": [get_weather], "system_message": "Be brief.", "automatic_tool_calling": False},
        [
            "How is it?",
            {"role": "assistant", "content": "Let me see.", "tool_calls": [CALL]},
            {
                "role": "tool",
                "content": [{"type": "tool_response", "name": "get_weather", "response": RESPONSE}, RESPONSE],
            },
            {"role": "tool", "content": "plain"},
        ],
    ),
    (
        {},
        ["It is a truth universally acknowledged, that a single man " * 6, "x", "y " * 60],
    ),  # chunks, beyond the window
]


@pytest.mark.parametrize(("options", "messages"), CONVERSATIONS)
def test_conversations(
    bundle: Path, engine: Engine, google: Any, options: Mapping[str, Any], messages: list[Any]
) -> None:
    import litert_lm

    greedy = litert_lm.SamplerConfig(top_k=1)
    ours = engine.create_conversation(sampler_config=GREEDY, **options)
    with google.create_conversation(sampler_config=greedy, **options) as conversation:
        for turn, message in enumerate(messages):
            sent = {"role": "user", "content": message} if isinstance(message, list) else message
            assert ours.render_message_to_string(sent) == conversation.render_message_to_string(sent)
            with engine.create_conversation(**{**options, "messages": said(options, ours)}) as restored:
                prompt_length = 1 + len(engine.tokenize(restored.render_message_to_string(sent)))
            our_reply = str(ours.send_message(sent, max_output_tokens=25))
            their_reply = str(conversation.send_message(sent, max_output_tokens=25))
            assert turn or ours.token_count == conversation.token_count
            prompt, our_tokens = list(ours.token_ids)[:prompt_length], list(ours.token_ids)[prompt_length:]
            if turn > 0:
                their_reply = said_at_once(google, engine, prompt)
            near_tie = NEAR_TIE[bundle.stem.split("-")[1]]
            check_same_greedy_text(engine, prompt, our_tokens, their_reply, our_reply, near_tie)


def said(options: Mapping[str, Any], conversation: Conversation) -> list[Any]:
    """Everything that was said, for a conversation that is restored."""
    return [*options.get("messages", ()), *conversation.history]


class Appending(Conversation):
    """A conversation that adds to the cache what a turn adds to the rendered text, as litert_lm does.

    The end of the turn before is then left out.
    """

    async def _prompt(
        self,
        sequence: TokenSequence,
        messages: Sequence[Any],
        options: SendOptions,
        wait: Waiting,  # noqa: ARG002
    ) -> PromptTokens:
        text = self._renderer.turn(self._record.messages, messages, options.extra_context)
        start = [] if len(sequence) else list(self._model.start_tokens)
        return PromptTokens(len(sequence), [*start, *self._model.encode_prompt(text)], Encoded())


class ZeroedTable:
    """An embedding table that gives zeros while `zero` is set."""

    zero = False

    def __init__(self, table: Any) -> None:
        self._table = table
        self.rows = table.rows

    def lookup(self, token_ids: Sequence[int], out: NDArray[np.float32]) -> None:
        self._table.lookup(token_ids, out)
        if self.zero:
            out[:] = 0


class SlippingSlot(LitertSlot):
    """Our slot with litert_lm's slip. Token by token: a chunk could compute the slipped position again."""

    tables: Sequence[ZeroedTable]

    def chunks(self, token_ids: Sequence[int]) -> Iterator[int]:
        for index, token_id in enumerate(token_ids):
            yield self.position
            for table in self.tables:
                table.zero = index == 0 and self.position > 0
            self.decode(token_id)
        for table in self.tables:
            table.zero = False


@pytest.fixture(scope="module")
def slipping(bundle: Path) -> LitertDecoder:
    decoder = LitertDecoder(DecoderSections.of(Bundle.open(bundle)), threads=2, cache_dir=None)
    shared = decoder._shared
    embedder: Any = ZeroedTable(shared.embedder)
    per_layer: Any = None if shared.per_layer_embedder is None else ZeroedTable(shared.per_layer_embedder)
    decoder._shared = replace(shared, embedder=embedder, per_layer_embedder=per_layer)
    new_slot = decoder.new_slot

    def slipping_slot(context_tokens: int | None = None) -> SlippingSlot:
        slot = new_slot(context_tokens)
        slot.__class__ = SlippingSlot
        assert isinstance(slot, SlippingSlot)
        slot.tables = [table for table in (embedder, per_layer) if table is not None]
        return slot

    decoder.new_slot = slipping_slot  # type: ignore[method-assign]
    return decoder


@IN_FLOAT32
@pytest.mark.parametrize("sampler", [GREEDY, SamplerConfig(top_k=40, seed=11)], ids=["greedy", "drawn"])
@pytest.mark.parametrize(("options", "messages"), CONVERSATIONS)
def test_later_turns_with_litert_lms_slip(
    bundle: Path,
    slipping: LitertDecoder,
    google: Any,
    options: Mapping[str, Any],
    messages: list[Any],
    sampler: SamplerConfig,
) -> None:
    sequence = TokenSequence(Scheduler(), SlotPool(slipping, None, 1))
    ours = Appending(TextModel(Bundle.open(bundle)), sequence, ConversationOptions(sampler_config=sampler, **options))
    with google.create_conversation(sampler_config=theirs(sampler), **options) as conversation:
        for message in messages:
            sent = {"role": "user", "content": message} if isinstance(message, list) else message
            expected = str(conversation.send_message(sent, max_output_tokens=25))
            assert str(ours.send_message(sent, max_output_tokens=25)) == expected


def said_at_once(google: Any, engine: Engine, token_ids: list[int]) -> str:
    """litert_lm's reply to these tokens in one prefill. The text must come back as the same tokens."""
    import litert_lm

    text = engine.detokenize(token_ids[1:])
    assert engine.tokenize(text) == token_ids[1:], "the replies merged with the prompts; choose other ones"
    with google.create_session(
        apply_prompt_template=False, sampler_config=litert_lm.SamplerConfig(top_k=1), max_output_tokens=25
    ) as session:
        session.run_prefill([text])
        return str(session.run_decode().texts[0])


def test_tokens(engine: Engine, google: Any) -> None:
    assert (engine.bos_token_id, engine.eos_token_ids) == (google.bos_token_id, google.eos_token_ids)
    text = " <start_of_turn>user\nna\u00efve \U0001f600   x<end_of_turn>"
    assert engine.tokenize(text) == google.tokenize(text)
    assert engine.detokenize(engine.tokenize(text)) == google.detokenize(google.tokenize(text)) == text


def test_model_info(bundle: Path) -> None:
    import litert_lm

    with ModelInfo(bundle) as ours, litert_lm.ModelInfo(bundle) as other:
        for name in ("max_context_tokens", "model_type", "is_llm_model", "is_dynamic_context", "min_runtime_version"):
            assert getattr(ours, name) == getattr(other, name), name
        assert asdict(ours.input_modalities) == asdict(other.input_modalities)
        assert list(map(int, LiteRtLmModality)) == list(map(int, litert_lm.LiteRtLmModality))
        assert ours.llm is not None
        assert ours.llm.supports_thinking() == other.llm.supports_thinking()
        assert ours.llm.supports_function_calling() == other.llm.supports_function_calling()
        assert ours.llm.has_speculative_decoding_support() == other.llm.has_speculative_decoding_support()
        assert asdict(ours.llm.default_sampler_params) == asdict(other.llm.default_sampler_params)
