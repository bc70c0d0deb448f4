"""Counts over the words of a reply. None of them reads; each says below what it counts and what it cannot see.

They are the documents' four scores by what they measure. They find a reply that went off the rails (empty, one endless
sentence, nothing of the question in it, words of the policy) and rank nothing finer. Whether an answer is true or
helpful they cannot tell.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

from gemma_edge.runtime.chat.session import Session
from gemma_edge.runtime.serve.guard.rules import Rule
from gemma_edge.runtime.serve.guard.scan import Scan
from gemma_edge.runtime.serve.monitor.metrics import QualityMetrics

USUAL_WORDS = (5, 30)  # in a sentence
MOST_CHARACTERS = 20_000  # of each text that are looked at
_SENTENCE_END = re.compile(r"[.!?\u3002\uff01\uff1f]+(?=\s|$)|\n")


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text[:MOST_CHARACTERS].casefold())


def _sentences(text: str) -> list[str]:
    return [each for each in _SENTENCE_END.split(text[:MOST_CHARACTERS]) if each.strip()]


def word_overlap(prompt: str, reply: str) -> float:
    """Twice the share of the prompt's different words that the reply has, at most 1, as the documents count it.

    A reply in other words, or in another language, scores low however good it is; one that parrots the prompt scores 1.
    Languages without spaces between words are one long word to it.
    """
    asked, said = set(_words(prompt)), set(_words(reply))
    return min(1.0, 2 * len(asked & said) / len(asked)) if asked else 0.0


def sentence_length(reply: str) -> float:
    """1 where sentences have 5 to 30 words on average; less in proportion, the shorter or longer they are.

    Nonsense in sentences of usual length scores 1; a list, a table, code or a plain "Yes." scores low.
    """
    sentences = _sentences(reply)
    words = sum(len(_words(each)) for each in sentences)
    if not words:
        return 0.0
    mean, (fewest, most) = words / len(sentences), USUAL_WORDS
    return min(1.0, mean / fewest, most / mean)


def sentences_without_hits(reply: str, rules: Sequence[Rule], *, accents: bool = True) -> float | None:
    """The share of sentences in which no rule finds anything; None without rules, 1 for an empty reply.

    It knows the words it was given and no others: what is harmful in other words scores 1.
    """
    if not rules:
        return None
    sentences = _sentences(reply)
    clean = 0
    for sentence in sentences:
        scan = Scan(rules, accents=accents)
        scan.push(sentence)
        scan.finish()
        clean += not scan.take_found()
    return clean / len(sentences) if sentences else 1.0


def reference_overlap(reply: str, reference: str) -> float:
    """F1 of the words of reply and reference, each as often as it stands there.

    "It is not true" and "It is true" share nearly all words: this finds what is missing, not what is wrong.
    """
    said, meant = Counter(_words(reply)), Counter(_words(reference))
    shared = (said & meant).total()
    return 2 * shared / (said.total() + meant.total()) if shared else 0.0


def quality(
    prompt: str,
    reply: str,
    reference: str | None = None,
    *,
    rules: Sequence[Rule] = (),
    perplexity: float | None = None,
) -> QualityMetrics:
    """Every count. reference: None: accuracy is not measured, since nothing can be known of it."""
    return QualityMetrics(
        relevance_score=word_overlap(prompt, reply),
        coherence_score=sentence_length(reply),
        safety_score=sentences_without_hits(reply, rules),
        factual_accuracy=None if reference is None else reference_overlap(reply, reference),
        perplexity=perplexity,
    )


def reply_perplexity(session: Session, reply: str) -> float:
    """exp of the mean negative log likelihood of the reply's tokens, as what follows in a session that was prefilled.

    The session stays as it is; the model runs once over the reply. It measures how expected the reply was to this
    model, not how good it is: a model finds its own repetitions most likely of all.

    Raises SessionError: nothing was prefilled. ContextOverflowError: the reply does not fit. ValueError: it is empty.
    """
    [scores] = session.run_text_scoring([reply]).token_scores
    if not scores:
        raise ValueError("the reply has no tokens; give one with text")
    return math.exp(-sum(scores) / len(scores))
