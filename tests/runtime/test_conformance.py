"""Our public names against the installed litert_lm's: signatures, defaults, members. Every difference has a reason."""

import enum
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import litert_lm

from gemma_edge import runtime

# What applications do not construct themselves: `Engine` makes these.
MADE_BY_THE_ENGINE = {"Conversation", "Session", "LlmCapability"}

NO_LORA = "adapters are not converted"
NO_SPECULATION = "the prompt that it makes has nothing to copy"
GUESSED = "what speculative decoding came to"
ONE_SIZE = "Gemma 3n's vision encoder has one image size"
ONE_DELEGATE = "our executor is XNNPACK with float32 activations"
RINGS_ARE_IN_THE_BUNDLE = "the converter decides about ring caches, the bundle says so"
ALWAYS_MEASURED = "figures are always collected"
NO_EMBEDDINGS = "embedding models are not converted"
CPU_ONLY = "no NPU and no GPU here"
INSIDE = "for a look inside"
A_DICT = "what dict has does"
SERVERS_ASK = "servers tell it with every reply"
ACROSS_RESTARTS = "a prompt that is read once, not at every start"
TASKS = "the common jobs with images and recordings"
LENIENT = "litert_lm drops the words that no grammar has in silence, or refuses"
NO_DEBUGGER = "litert_lm's own build has it off; logits, token_ids and timing serve instead"

TWO_MODELS = "a bundle of ours may hold two models of the same weights"
DIFFERENCES: Mapping[str, str] = {
    "no ActivationDataType": ONE_DELEGATE,
    "no EmbeddingCapability": NO_EMBEDDINGS,
    "no EmbeddingEngine": NO_EMBEDDINGS,
    "no EmbeddingOptions": NO_EMBEDDINGS,
    "no EmbeddingResponse": NO_EMBEDDINGS,
    "no InputOverflowStrategy": NO_EMBEDDINGS,
    "no LiteRtLmBackendType": CPU_ONLY,
    "no LiteRtLmNpuBrand": CPU_ONLY,
    "no LoraConfig": NO_LORA,
    "no LoraRankConfig": NO_LORA,
    "also LitertLmEngine": "Google's engine behind the same API",
    "also describe": TASKS,
    "also generate_batch": "litert_lm has no batch generation",
    "also transcribe": TASKS,
    "also transcribe_and_translate": TASKS,
    "Benchmark: no activation_data_type": ONE_DELEGATE,
    "Benchmark: no enable_speculative_decoding": NO_SPECULATION,
    "Benchmark: no enable_ynnpack": ONE_DELEGATE,
    "Benchmark: no use_ringbuffers_local_attention": RINGS_ARE_IN_THE_BUNDLE,
    "Benchmark: also executor": "ours or litert_lm's",
    "Benchmark: also run_and_look": INSIDE,
    "BenchmarkInfo: also last_accepted_token_count": GUESSED,
    "BenchmarkInfo: also last_batched_token_count": INSIDE,
    "BenchmarkInfo: also last_drafted_token_count": GUESSED,
    "BenchmarkInfo: also last_forced_token_count": INSIDE,
    "BenchmarkInfo: also last_verify_count": GUESSED,
    "BenchmarkInfo: also of": "how it is made from the timing of a turn",
    "Conversation: no get_debug_artifacts": NO_DEBUGGER,
    "Conversation: also asend_message": "asyncio",
    "Conversation: also asend_message_async": "asyncio",
    "Conversation: also finish_reason": "litert_lm does not tell a reply that was cut from one that ended",
    "Conversation: also history": INSIDE,
    "Conversation: also save_cache": ACROSS_RESTARTS,
    "Conversation: also usage": SERVERS_ASK,
    "Conversation: also rewind": "editing history: go back and say something else",
    "Conversation: also timing": INSIDE,
    "Conversation: also token_ids": INSIDE,
    "Engine: no activation_data_type": ONE_DELEGATE,
    "Engine: no enable_ynnpack": ONE_DELEGATE,
    "Engine: no lora_rank_config": NO_LORA,
    "Engine: no use_ringbuffers_local_attention": RINGS_ARE_IN_THE_BUNDLE,
    "Engine: also batch_rows": INSIDE,
    "Engine: also draft_model": "litert_lm has no bundles of two models",
    "Engine: also trusted_key": "litert_lm checks no signatures",
    "Engine: also health": "for services",
    "Engine: also embedding_bytes": "for services",
    "Engine: also keep_chats": "for services",
    "Engine: also save_chats": "for services",
    "Engine: also memory": INSIDE,
    "Engine: also load_cache": ACROSS_RESTARTS,
    "Engine: also slots": "conversations whose keys and values are kept",
    "Engine: also profile": "a device's memory budget",
    "Engine: also over_budget": "a device's memory budget",
    "Engine: also model": TWO_MODELS,
    "Engine: also use_model": TWO_MODELS,
    "Engine: also new_sequence": "token sequences under sessions and conversations",
    "Engine.create_conversation: no filter_channel_content_from_kv_cache": "Gemma 3 and 3n write no channels",
    "Engine.create_conversation: no lora_config": NO_LORA,
    "Engine.create_conversation: also max_tool_rounds": "litert_lm answers calls without end",
    "Engine.create_conversation: also sanitize_control_tokens": "in litert_lm what a user types can close his turn",
    "Engine.create_session: no lora_config": NO_LORA,
    "LlmCapability: no max_vision_token_budget": ONE_SIZE,
    "LlmCapability: no vision_signature_selection": ONE_SIZE,
    "Message: no clear": A_DICT,
    "Message: no pop": A_DICT,
    "Message: no setdefault": A_DICT,
    "Message: no update": A_DICT,
    "Message: also finish_reason": "litert_lm does not tell a reply that was cut from one that ended",
    "ModelInfo: no embedding": NO_EMBEDDINGS,
    "ModelInfo: no is_embedding_model": NO_EMBEDDINGS,
    "ModelInfo: no max_vision_token_budget": ONE_SIZE,
    "ModelInfo: no vision_signature_selection": ONE_SIZE,
    "ModelInfo: no npu_brand_for_modality": CPU_ONLY,
    "ModelInfo: no soc_name_for_modality": CPU_ONLY,
    "ModelInfo: no supported_backends_for_modality": CPU_ONLY,
    "ResponseFormat: also lenient": LENIENT,
    "ResponseFormat.json: also lenient": LENIENT,
    "SamplerConfig: also candidates": "in litert_lm a temperature alone changes nothing",
    "SamplerConfig: also of_bundle": "reads the bundle's defaults",
    "Session: no get_debug_artifacts": NO_DEBUGGER,
    "Session: also logits": INSIDE,
    "Session: also reason": SERVERS_ASK,
    "Session: also save_cache": ACROSS_RESTARTS,
    "Session: also usage": SERVERS_ASK,
    "Session: also stream_decode": "asyncio",
    "Session: also timing": INSIDE,
    "Session: also token_ids": INSIDE,
    "ToolCall: also from_json": "reads what `to_json` writes",
}


def test_every_difference_is_listed_with_a_reason_and_none_is_out_of_date() -> None:
    found = set(differences())
    assert sorted(found - DIFFERENCES.keys()) == []
    assert sorted(DIFFERENCES.keys() - found) == []


def differences() -> Iterator[str]:
    ours, theirs = set(runtime._HOMES), set(litert_lm.__all__)
    yield from (f"no {name}" for name in theirs - ours)
    yield from (f"also {name}" for name in ours - theirs)
    for name in ours & theirs:
        if getattr(getattr(runtime, name), "__name__", name) != name:
            continue  # a second name, compared under the first
        yield from compare(name, getattr(runtime, name), getattr(litert_lm, name))


def compare(name: str, ours: Any, theirs: Any) -> Iterator[str]:
    """Two functions or classes of the same name."""
    if not inspect.isclass(ours):
        yield from compare_signatures(name, ours, theirs)
        return
    if issubclass(ours, enum.Enum):
        if {item.name: item.value for item in ours} != {item.name: item.value for item in theirs}:
            yield f"{name}: other values"
        return
    if name not in MADE_BY_THE_ENGINE:
        yield from compare_signatures(name, ours, theirs)
    yield from (f"{name}: no {member}" for member in members(theirs) - members(ours))
    yield from (f"{name}: also {member}" for member in members(ours) - members(theirs))
    for member in members(ours) & members(theirs):
        a, b = attribute(ours, member), attribute(theirs, member)
        if inspect.isfunction(a) or inspect.isclass(a):
            yield from compare_signatures(f"{name}.{member}", a, b)
        elif isinstance(b, property) and not isinstance(a, property):
            yield f"{name}.{member}: is no property"


def members(cls: type) -> set[str]:
    """Public names of a class and its bases, without those of Python; fields without a default included."""
    own = [base for base in cls.__mro__ if base.__module__.split(".")[0] in ("litert_lm", "gemma_edge")]
    names = {name for base in own for name in (*base.__dict__, *inspect.get_annotations(base))}
    # litert_lm sets its constructor's arguments as attributes; as arguments they are compared anyhow.
    arguments = {parameter for base in own for parameter in inspect.signature(base).parameters}
    return {name for name in names - arguments if not name.startswith("_")}


def attribute(cls: type, name: str) -> Any:
    value = inspect.getattr_static(cls, name, None)
    return getattr(value, "__func__", value)


def compare_signatures(name: str, ours: Any, theirs: Any) -> Iterator[str]:
    a, b = parameters(ours), parameters(theirs)
    yield from (f"{name}: no {parameter}" for parameter in b.keys() - a.keys())
    yield from (f"{name}: also {parameter}" for parameter in a.keys() - b.keys())
    for parameter in a.keys() & b.keys():
        x, y = a[parameter], b[parameter]
        if shown(x.default) != shown(y.default):
            yield f"{name}: {parameter} = {shown(x.default)} for {shown(y.default)}"
        if x.kind != y.kind:
            yield f"{name}: {parameter} is {x.kind.description} for {y.kind.description}"


def parameters(function: Any) -> dict[str, inspect.Parameter]:
    found = inspect.signature(function).parameters
    if inspect.isclass(function) and function is litert_lm.Engine:  # the rest of its **kwargs are its base's fields
        found = {**inspect.signature(litert_lm.AbstractEngine).parameters, **found}  # type: ignore[assignment]
    return {
        name: parameter
        for name, parameter in found.items()
        if name not in ("self", "cls") and parameter.kind is not parameter.VAR_KEYWORD
    }


def shown(default: Any) -> str:
    if default is inspect.Parameter.empty:
        return "nothing"
    return repr(default.value) if isinstance(default, enum.Enum) else repr(default)
