"""The tokens of a conversation, kept equal to those of the text that its template renders.

LiteRT-LM prefills what a longer rendering has more than a shorter one. What the template writes after a reply (a new
line, or the whole end of a turn that was cut off) is then never prefilled, and a conversation that was held has other
tokens than the same one restored from its messages. Here the whole text is tokenized for every prompt, as Hugging Face
does, and of what the cache holds everything stays up to the first token that differs: mostly all of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from gemma_edge.runtime.chat.media_reader import MediaReader
from gemma_edge.runtime.chat.text_model import TextModel
from gemma_edge.runtime.executors.base import ContextOverflowError
from gemma_edge.runtime.kv.prefix import common_prefix
from gemma_edge.runtime.kv.turn import Check, Prompt
from gemma_edge.runtime.media.item import MediaItem
from gemma_edge.runtime.text.template import TemplateError


@dataclass(frozen=True)
class Encoded:
    """What will not be encoded again: everything up to the end of the last image or recording, of which nothing but
    the rows is left. text: as it was rendered. tokens: how many it came to; 0 where there was no media yet.
    """

    text: str = ""
    tokens: int = 0


@dataclass
class PromptTokens:
    """A whole prompt.

    kept: how many of the held tokens it begins with. rest: what follows them. encoded: for the next prompt, once `rest`
    was made.
    """

    kept: int
    rest: Prompt
    encoded: Encoded


def prompt_tokens(
    text: str,
    items: Sequence[MediaItem],
    held: Sequence[int],
    encoded: Encoded,
    model: TextModel,
    media: MediaReader,
    context_tokens: int,
) -> PromptTokens:
    """The tokens of a rendered conversation.

    items: images and recordings that are new since `encoded`. held: the tokens of the conversation so far.

    Raises ContextOverflowError: it does not fit with one token of a reply. TemplateError: the template renders other
    text before media than it did. MediaError. Making `rest` raises MediaError.
    """
    if not text.startswith(encoded.text):
        raise TemplateError(
            "the chat template changes what it rendered before an image or a recording when a message is added; "
            "pass a chat_template that only appends"
        )
    start = held[: encoded.tokens] if encoded.tokens else model.start_tokens
    prompt = media.read(text[len(encoded.text) :], items, follows_media=encoded.tokens > 0)
    asked = len(start) + prompt.token_count + 1
    if asked > context_tokens:  # before the seconds that encoding takes
        raise ContextOverflowError(asked, context_tokens)
    first = (*start, *prompt.first_text)
    kept = common_prefix(held, first)
    result = PromptTokens(kept, first[kept:], encoded)
    if items:
        encoded_text = text[: len(encoded.text) + prompt.media_end]

        def rest(check: Check) -> Sequence[int]:
            token_ids = [*start, *prompt.tokens(check)]
            result.encoded = Encoded(encoded_text, len(token_ids) - len(prompt.last_text))
            return token_ids[kept:]

        result.rest = rest
    return result
