"""What Open WebUI sends, written down from its source.

backend/open_webui/routers/openai.py lists models and passes a chat on as it comes; routers/tasks.py asks for titles,
tags and follow-up questions beside it, each as one user's message and not as a stream.
"""

import json
from typing import Any

import httpx

from tests.runtime.serve.running import MODEL, Running

HEADERS = {"Content-Type": "application/json", "Authorization": "Bearer none", "User-Agent": "Python aiohttp"}
TASK = """### Task:
Generate a concise, 3-5 word title with an emoji summarizing the chat history.
### Output:
JSON format: {{ "title": "your concise title here" }}
### Chat History:
<chat_history>
USER: {}
</chat_history>"""


def test_a_chat_as_it_sends_it(server: Running) -> None:
    with httpx.Client(base_url=f"{server.url}/v1", headers=HEADERS, timeout=60) as client:
        models = client.get("/models").json()
        assert [model["id"] for model in models["data"]] == [MODEL]
        asked = "And it came to pass in those days"
        messages: list[Any] = [
            {"role": "system", "content": "Speak as the old books do."},
            {"role": "user", "content": asked},
        ]
        for _ in range(2):
            request = {
                "stream": True,
                "model": MODEL,
                "messages": messages,
                "stream_options": {"include_usage": True},
                "temperature": 0,
                "max_tokens": 8,
            }
            with client.stream("POST", "/chat/completions", json=request) as reply:
                assert reply.status_code == 200
                chunks = [json.loads(line[6:]) for line in reply.iter_lines() if line.startswith("data: {")]
            text = "".join(c["delta"].get("content", "") for chunk in chunks for c in chunk["choices"])
            assert text
            assert chunks[-1]["usage"]["completion_tokens"] == 8
            title = {
                "model": MODEL,
                "messages": [{"role": "user", "content": TASK.format(asked)}],
                "stream": False,
                "max_completion_tokens": 1000,
            }
            assert client.post("/chat/completions", json=title).status_code == 200
            messages += [{"role": "assistant", "content": text}, {"role": "user", "content": "And then?"}]
        cached = chunks[-1]["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert cached > 20  # the title did not take the chat's place
