"""What a bundle says about its language model apart from the weights: tokenizer, tokens, template, defaults."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

from litert_lm_builder.runtime.proto.llm_metadata_pb2 import LlmMetadata, PromptTemplates
from litert_lm_builder.runtime.proto.token_pb2 import TokenUnion

from gemma_edge.runtime.chat.calls.channels import Channel
from gemma_edge.runtime.chat.calls.function_gemma import FUNCTION_GEMMA_SYNTAX
from gemma_edge.runtime.chat.calls.python_syntax import PYTHON_SYNTAX
from gemma_edge.runtime.chat.calls.syntax import ToolSyntax
from gemma_edge.runtime.chat.calls.template_syntax import reads_results, template_syntax
from gemma_edge.runtime.formats.litertlm import BundleError
from gemma_edge.runtime.formats.model import Model
from gemma_edge.runtime.formats.tool_calls import CallFences
from gemma_edge.runtime.kv.generate import StopTokens
from gemma_edge.runtime.text.constraints import Constraint, ConstraintFactory, ResponseFormat
from gemma_edge.runtime.text.control_text import MEDIA_PLACES, ControlText, pieces_between_marks
from gemma_edge.runtime.text.penalties import SuppressTokensConfig
from gemma_edge.runtime.text.sampler import SamplerConfig
from gemma_edge.runtime.text.template import ChatTemplate
from gemma_edge.runtime.text.tokenizer import Tokenizer


class TextModel:
    """Tokenizer and metadata of one bundle. Immutable; shared by all its sessions and conversations."""

    def __init__(self, bundle: Model) -> None:
        """Raises BundleError, OnnxDirectoryError, TokenizerError."""
        self.origin = bundle.path
        self.metadata: LlmMetadata = bundle.metadata()
        self.tokenizer = Tokenizer.of_bundle(bundle)
        self.prompt_templates: PromptTemplates = self.metadata.prompt_templates
        start = self._ids(self.metadata.start_token)
        self.start_token_id = start[0] if start else None
        self.eos_token_ids = [self._ids(token) for token in self.metadata.stop_tokens]
        self.stop = StopTokens(self.eos_token_ids)
        self.sampler_config = SamplerConfig.of_bundle(self.metadata.sampler_params)
        self.suppress = SuppressTokensConfig(tuple(self.metadata.suppress_tokens.ids))

    def _ids(self, token: TokenUnion) -> list[int]:
        return self.tokenizer.encode(token.token_str) if token.HasField("token_str") else list(token.token_ids.ids)

    @property
    def start_text(self) -> str:
        """How the start token is written: "<bos>". Empty where there is none."""
        return "" if self.start_token_id is None else self.tokenizer.piece(self.start_token_id)

    def encode(self, text: str) -> list[int]:
        """Token ids; a start token only where the text begins with it (a control token is never found in text)."""
        if self.start_text and text.startswith(self.start_text):
            return [*self.start_tokens, *self.tokenizer.encode(text.removeprefix(self.start_text))]
        return self.tokenizer.encode(text)

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of a rendered prompt, in which `marked` has marked what stays text."""
        first, *others = pieces_between_marks(text)
        return [*self.encode(first), *(token_id for piece in others for token_id in self.tokenizer.encode(piece))]

    def marked(self, value: Any) -> Any:
        """A JSON value in which the names of this model's control tokens, and of places for media, stay text."""
        return self._control_text.marked(value)

    def marked_reply(self, template: ChatTemplate) -> Callable[[Any], Any]:
        """As `marked`, for an earlier reply: a thought's "</think>" and the like are what the model wrote."""
        if template not in self._replies:
            pieces = self.tokenizer.whole_pieces
            ends = {self.tokenizer.piece(token_id) for ids in self.eos_token_ids for token_id in ids}
            names = (set(pieces) - template.replies_words(pieces)) | ends | set(MEDIA_PLACES)
            self._replies[template] = ControlText(names)
        return self._replies[template].marked

    @cached_property
    def _replies(self) -> WeakKeyDictionary[ChatTemplate, ControlText]:
        return WeakKeyDictionary()

    @cached_property
    def _control_text(self) -> ControlText:
        return ControlText([*self.tokenizer.whole_pieces, *MEDIA_PLACES])

    @property
    def start_tokens(self) -> Sequence[int]:
        """What every sequence starts with: the start token, if there is one."""
        return [] if self.start_token_id is None else [self.start_token_id]

    @cached_property
    def template(self) -> ChatTemplate:
        """The bundle's chat template. Raises BundleError where there is none, TemplateError where it is broken."""
        if not self.metadata.jinja_prompt_template:
            raise BundleError(
                f"{self.origin}: its metadata has no chat template; pass chat_template or convert the model again"
            )
        return ChatTemplate(self.metadata.jinja_prompt_template)

    @property
    def tool_syntax(self) -> ToolSyntax:
        """How this model reads and writes calls."""
        said = CallFences.of_template(self.metadata.jinja_prompt_template)
        if said is not None:
            return template_syntax(said)
        model_type = self.metadata.llm_model_type
        if model_type.WhichOneof("model_type") == "gemma4":  # whose template shows tools by itself
            return template_syntax(
                CallFences(
                    model_type.gemma4.code_fence_start or "<|tool_call>",
                    model_type.gemma4.code_fence_end or "<tool_call|>",
                    model_type.gemma4.syntax_type,
                )
            )
        if model_type.WhichOneof("model_type") != "function_gemma":
            return PYTHON_SYNTAX
        kind = model_type.function_gemma
        if not kind.use_template_for_fc_format:
            return FUNCTION_GEMMA_SYNTAX
        return template_syntax(CallFences(kind.code_fence_start, kind.code_fence_end, kind.syntax_type))

    @cached_property
    def reads_results(self) -> bool:
        """Whether results of tools that are JSON are shown in another notation, and not as the text they are."""
        return not self.tool_syntax.shows_json or reads_results(self.template)

    @cached_property
    def channels(self) -> Sequence[Channel]:
        """What replies may hold outside the answer."""
        return [Channel(said.channel_name, said.start, said.end) for said in self.metadata.channels if said.start]

    def constraint(self, response_format: ResponseFormat) -> Constraint:
        """A fresh constraint for one reply. Raises ConstraintError."""
        return self._constraints.create(response_format)

    @cached_property
    def _constraints(self) -> ConstraintFactory:
        enders = [ids[0] for ids in self.eos_token_ids if len(ids) == 1]
        if not enders:
            raise BundleError(
                f"{self.origin}: found no stop token in its metadata, a response format needs one; "
                "convert the model again"
            )
        return ConstraintFactory(self.tokenizer, enders)
