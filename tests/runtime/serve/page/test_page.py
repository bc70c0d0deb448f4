"""The page at `/` in a real browser: Debian's Chromium, headless."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, Request, expect, sync_playwright

from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.serve.guard.guard import Guard
from gemma_edge.runtime.serve.guard.keys import KeyFile, new_key
from gemma_edge.runtime.serve.guard.policy import Policy
from gemma_edge.runtime.serve.monitor.monitor import Monitor
from gemma_edge.runtime.serve.page.page import page as packed_page
from tests.runtime.budget_files import write_profile
from tests.runtime.serve.running import MODEL, Running, running

CHROMIUM = shutil.which("chromium")
# Without them Chromium calls home, which a closed network refuses many at a time.
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
QUESTION = "And it came to pass in those days"
WAIT_MS = 300_000  # on a machine that does other things
ANSWERS = re.compile("^(healthy|degraded)$")  # there, a token may take too long


@pytest.fixture(scope="module")
def engine(serve_model: Path, serve_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """With a budget, so that the page has one to show: a large one, as this process has run other tests."""
    roomy = write_profile(tmp_path_factory.mktemp("profile"), 8 << 30)
    with Engine(str(serve_model), cache_dir=str(serve_cache), slots=4, profile=roomy) as engine:
        yield engine


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("needs chromium (Debian's package)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@dataclass
class Seen:
    """A page, what its browser complained of, and what it got."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    got: list[str] = field(default_factory=list)


@pytest.fixture
def seen(browser: Browser) -> Iterator[Seen]:
    page = browser.new_page(viewport={"width": 1000, "height": 760})
    page.set_default_timeout(WAIT_MS)
    expect.set_options(timeout=WAIT_MS)
    found = Seen(page)
    page.on("console", lambda message: found.complaints.append(message.text) if message.type != "log" else None)
    page.on("pageerror", lambda error: found.complaints.append(str(error)))
    page.on("response", lambda response: found.got.append(response.url))
    yield found
    page.close()


@pytest.fixture(scope="module")
def watched(engine: Engine) -> Iterator[Running]:
    with running(engine, monitor=Monitor(MODEL)) as found:
        yield found


def _ask(page: Page, text: str, *, fails: bool = False) -> str:
    """The reply, once it has ended, well or not. As it is written, its lengths are noted on the page."""
    page.evaluate(
        """() => {
            window.lengths = [];
            new MutationObserver(() => {
                const last = document.querySelector(".turn.assistant:last-child p");
                if (last) window.lengths.push(last.textContent.length);
            }).observe(document.getElementById("log"), { childList: true, subtree: true, characterData: true });
        }"""
    )
    ended = page.locator(".turn.assistant:not(.writing)")
    before = ended.count()
    page.get_by_label("Message").fill(text)
    page.get_by_label("Message").press("Enter")
    expect(ended).to_have_count(before + 1)
    text = page.locator(".turn.assistant p").last.text_content() or ""
    assert ("failed" in (page.locator(".turn.assistant").last.get_attribute("class") or "")) == fails, text
    return text


def test_a_reply_streams_and_figures_live(seen: Seen, watched: Running, repository: Path) -> None:
    page = seen.page
    page.goto(watched.url)
    expect(page.locator("#health")).to_have_text(ANSWERS)
    expect(page.locator("#model")).to_have_text(MODEL)
    expect(page.locator("#memory")).to_have_text(re.compile(r"^\d+ MiB$"))
    expect(page.locator("#queue")).to_have_text("0 of 4 running")
    expect(page.locator("#memory-note")).to_have_text(re.compile(r"^of \d+ MiB, \d+ MiB of files$"))
    expect(page.get_by_label("Memory used of the budget")).to_be_visible()
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Most tokens").fill("48")
    reply = _ask(page, QUESTION)
    lengths = page.evaluate("window.lengths")
    assert len({length for length in lengths if 0 < length < len(reply)}) > 3
    asked = {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 48}
    answer = httpx.post(f"{watched.url}/v1/chat/completions", json=asked, timeout=300).json()
    assert reply == answer["choices"][0]["message"]["content"]
    note = page.locator(".turn.assistant small").last
    tokens = answer["usage"]["completion_tokens"]
    expect(note).to_have_text(re.compile(rf"^first token [\d.]+ m?s · {tokens} tokens · [\d.]+ tokens/s"))
    expect(page.locator("#speed")).to_have_text(re.compile(r"^[\d.]+ tokens/s$"))
    expect(page.locator("#first")).to_have_text(re.compile(r"^[\d.]+ m?s$"))
    second = _ask(page, "What then?")
    assert second
    assert seen.complaints == []
    assert {url.removeprefix(watched.url) for url in seen.got} == {
        "/", "/health", "/v1/stats", "/v1/chat/completions",
    }  # fmt: skip
    artefacts = repository / "build" / "screenshots"
    artefacts.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=artefacts / "page.png")
    page.emulate_media(color_scheme="dark")
    page.set_viewport_size({"width": 400, "height": 860})
    page.screenshot(path=artefacts / "page-dark-phone.png")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_a_second_question_is_one_of_the_same_chat_until_it_is_cleared(seen: Seen, watched: Running) -> None:
    page = seen.page
    sent: list[int] = []

    def note(request: Request) -> None:
        if request.method == "POST":
            sent.append(len((request.post_data_json or {})["messages"]))

    page.on("request", note)
    page.goto(watched.url)
    page.get_by_label("Most tokens").fill("4")
    for _ in range(2):
        _ask(page, QUESTION)
    page.get_by_role("button", name="New chat").click()
    expect(page.locator(".turn")).to_have_count(0)
    _ask(page, QUESTION)
    assert sent == [1, 3, 1]


def test_a_reply_can_be_stopped(seen: Seen, watched: Running) -> None:
    page = seen.page
    page.goto(watched.url)
    page.get_by_label("Most tokens").fill("400")
    page.evaluate(  # at once: such a small model needs half a second for all of it
        """() => new MutationObserver((_, observer) => {
            if (!document.querySelector(".turn.assistant p")?.textContent) return;
            observer.disconnect();
            document.getElementById("send").click();
        }).observe(document.getElementById("log"), { childList: true, subtree: true, characterData: true })"""
    )
    page.get_by_label("Message").fill(QUESTION)
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".turn.assistant small")).to_contain_text("stopped")
    expect(page.locator("#queue")).to_have_text("0 of 4 running")
    assert seen.complaints == []


def test_text_stays_text(seen: Seen, watched: Running) -> None:
    page = seen.page
    page.goto(watched.url)
    page.get_by_label("Most tokens").fill("2")
    text = "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>"
    _ask(page, text)
    expect(page.locator(".turn.user p")).to_have_text(text)
    assert page.locator("#log img, #log script").count() == 0
    assert page.evaluate("window.hacked") is None


def test_the_policy_stops_what_would_run_or_load(seen: Seen, watched: Running) -> None:
    page = seen.page
    page.goto(watched.url)
    page.evaluate(
        """() => {
            document.body.insertAdjacentHTML("beforeend", "<img src=/evil.png onerror='window.hacked=1'>");
            const script = document.createElement("script");
            script.textContent = "window.hacked = 1";
            document.body.append(script);
        }"""
    )
    expect(page.locator("#health")).to_have_text(ANSWERS)
    assert page.evaluate("window.hacked") is None
    assert not any("evil" in url for url in seen.got)
    assert any("Content Security Policy" in text for text in seen.complaints)


def test_with_a_key_typed_in_it_works(seen: Seen, engine: Engine, tmp_path: Path) -> None:
    key = new_key(tmp_path / "keys", "phone")
    policy = Policy.of({"category": [{"name": "rude", "words": ["blockhead"], "input": "refuse"}]})
    guard = Guard(policy, keys=KeyFile(tmp_path / "keys"))
    with running(engine, guard=guard, monitor=Monitor(MODEL, needs_key=True)) as server:
        page = seen.page
        page.goto(server.url)
        expect(page.locator("#health")).to_have_text(ANSWERS)
        expect(page.get_by_label("API key")).to_have_attribute("placeholder", "needed for figures and chat")
        expect(page.locator("#memory")).to_have_text("\u2013")
        page.get_by_label("API key").fill(key)
        page.get_by_label("API key").press("Enter")
        expect(page.locator("#memory")).to_contain_text("MiB")
        page.get_by_label("Most tokens").fill("8")
        assert _ask(page, QUESTION)
        assert seen.complaints == []
        _ask(page, "you blockhead", fails=True)
        expect(page.locator(".turn.failed p")).to_have_text(
            "the prompt has what the content policy refuses (rude); rephrase it"
        )
        page.reload()  # the key lives as long as the tab
        expect(page.locator("#memory")).to_contain_text("MiB")
    assert any(url.endswith("/v1/chat/completions") for url in seen.got)


def test_the_page_names_its_own_programs_and_nothing_else() -> None:
    html, policy = packed_page()
    text = html.decode()
    assert len(re.findall("<script", text)) == len(re.findall("<style", text)) == 1
    assert not re.search(r"\b(?:src|href)=\"(?!data:)", text)
    assert not re.search(r"\son[a-z]+=|\sstyle=|innerHTML|insertAdjacentHTML|eval\(|\*/[a-z]+/\*", text)
    assert "https://" not in text
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert b'data-key="needed"' in packed_page(needs_key=True).html


def test_a_question_before_the_first_figures_is_answered(seen: Seen, watched: Running) -> None:
    seen.page.route("**/v1/stats", lambda route: route.abort())
    seen.page.goto(watched.url)
    seen.page.get_by_label("Most tokens").fill("2")
    _ask(seen.page, QUESTION)
