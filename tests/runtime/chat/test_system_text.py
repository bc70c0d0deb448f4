"""System texts: in every template each of them reaches the model, in a role that the model knows."""

from typing import Any

import pytest

from gemma_edge.converter.tokenizer.chat_template import gemma_template
from gemma_edge.runtime.chat.calls.python_syntax import PYTHON_SYNTAX
from gemma_edge.runtime.chat.messages import read_message
from gemma_edge.runtime.chat.prompt import Preface, PromptRenderer
from gemma_edge.runtime.text.template import ChatTemplate

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for p in m.content %}{{ p.text }}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# One system message, at the start only, and of it the first part.
LLAMA2 = (
    "{% if messages[0].role == 'system' %}<<SYS>>{{ messages[0].content[0].text }}<</SYS>>"
    "{% set messages = messages[1:] %}{% endif %}"
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('system comes first') }}{% endif %}"
    "[{{ m.role }}]{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"
)


def rendered(template: str, *messages: dict[str, Any]) -> str:
    renderer = PromptRenderer(ChatTemplate(template), PYTHON_SYNTAX, Preface())
    return renderer.turn([], [read_message(message) for message in messages], {})


def system(*texts: str) -> dict[str, Any]:
    return {"role": "system", "content": [{"type": "text", "text": text} for text in texts]}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


MODEL = {"role": "assistant", "content": "yes"}


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([system("A"), user("hi")], "<start_of_turn>user\nA\n\nhi<end_of_turn>\n"),
        ([system("A", "B", "C"), user("hi")], "<start_of_turn>user\nA\n\nB\n\nC\n\nhi<end_of_turn>\n"),
        ([system("A"), system("B", "C"), user("hi")], "<start_of_turn>user\nA\n\nB\n\nC\n\nhi<end_of_turn>\n"),
        (
            [{"role": "developer", "content": "A"}, system("B"), user("hi")],
            "<start_of_turn>user\nA\n\nB\n\nhi<end_of_turn>\n",
        ),
        (
            [user("hi"), MODEL, system("A"), user("on")],
            "<start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\nyes<end_of_turn>\n"
            "<start_of_turn>user\nA\n\non<end_of_turn>\n",
        ),
        (
            [user("hi"), MODEL, system("A"), {"role": "user", "content": [{"type": "text", "text": "on"}]}],
            "<start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\nyes<end_of_turn>\n"
            "<start_of_turn>user\nA\n\non<end_of_turn>\n",
        ),
        ([user("hi"), system("A")], "<start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>user\nA<end_of_turn>\n"),
        ([system("A", "B")], "<start_of_turn>user\nA\n\nB<end_of_turn>\n"),
        (
            [system("A"), MODEL, user("hi")],
            "<start_of_turn>user\nA<end_of_turn>\n<start_of_turn>model\nyes<end_of_turn>\n"
            "<start_of_turn>user\nhi<end_of_turn>\n",
        ),
    ],
)
def test_gemma_reads_every_system_text(messages: list[dict[str, Any]], text: str) -> None:
    assert rendered(gemma_template(), *messages) == text + "<start_of_turn>model\n"


def test_a_template_with_turns_for_them_keeps_its_turns() -> None:
    assert rendered(CHATML, system("A", "B"), system("C"), user("hi"), MODEL, system("D"), user("on")) == (
        "<|im_start|>system\nAB<|im_end|>\n<|im_start|>system\nC<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
        "<|im_start|>assistant\nyes<|im_end|>\n<|im_start|>system\nD<|im_end|>\n<|im_start|>user\non<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_a_template_that_refuses_a_second_one() -> None:
    messages = [system("A", "B"), system("C"), user("hi"), MODEL, system("D"), user("on")]
    assert rendered(LLAMA2, *messages) == "<<SYS>>A\n\nB\n\nC<</SYS>>[user]hi[assistant]yes[user]D\n\non"


def test_an_image_before_the_text_stays_before_it() -> None:
    template = "{% for m in messages %}{% for p in m.content %}<{{ p.type }}{{ p.text }}>{% endfor %}{% endfor %}"
    image = {"role": "user", "content": [{"type": "image", "path": "/a"}, {"type": "text", "text": "hi"}]}
    assert rendered(template, user("q"), system("A"), image) == "<textq><textA><image><texthi>"
