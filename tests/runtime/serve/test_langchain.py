"""langchain-openai, unmodified."""

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, SecretStr

from tests.runtime.serve.running import MODEL, Running


@tool
def weather(sunny: bool) -> str:
    """How the weather is."""
    return "clear" if sunny else "rain"


class Answer(BaseModel):
    """An answer."""

    good: bool


def model(server: Running, most: int) -> ChatOpenAI:
    return ChatOpenAI(
        model=MODEL,
        base_url=f"{server.url}/v1",
        api_key=SecretStr("none"),
        temperature=0,
        max_retries=0,
        max_completion_tokens=most,
    )


def test_a_chat_and_its_stream(server: Running) -> None:
    chat = model(server, 12)
    messages = [SystemMessage("Speak as the old books do."), HumanMessage("And it came to pass")]
    whole = chat.invoke(messages)
    assert whole.content
    assert "".join(str(chunk.content) for chunk in chat.stream(messages)) == whole.content


def test_a_round_of_tools(server: Running) -> None:
    chat = model(server, 64)
    asked = HumanMessage("How is the weather?")
    called = chat.bind_tools([weather], tool_choice="weather").invoke([asked])
    assert isinstance(called, AIMessage)
    [call] = called.tool_calls
    answer = ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"])
    assert chat.bind_tools([weather]).invoke([asked, called, answer]).content


def test_a_structured_answer(server: Running) -> None:
    chat = model(server, 64)
    for method in ("json_schema", "function_calling"):
        found = chat.with_structured_output(Answer, method=method).invoke("Is it good?")
        assert isinstance(found, Answer)
