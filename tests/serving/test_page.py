"""The page in a real browser: streaming, tints, τ, keyboard, themes. $PIPO_SCREENSHOTS is where screenshots go."""

import os
import shutil
from pathlib import Path

import pytest
from asking import expected, gauge, until

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser, server):
    """`open_page(**context options)` -> the page, once it knows the model. Nothing may fail, or load from elsewhere."""
    contexts, problems = [], []

    def go(url=server.url, **options):
        contexts.append(browser.new_context(viewport={"width": 1000, "height": 720}, **options))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: request.url.startswith(url) or problems.append(request.url))
        page.goto(url)
        wait(page, "document.getElementById('model').textContent")
        return page

    yield go
    for context in contexts:
        context.close()
    assert problems == []


def ask(page, text, tokens=40, temperature=0):
    page.fill("#temperature", str(temperature))
    page.fill("#max-tokens", str(tokens))
    page.fill("#said", text)
    page.press("#said", "Enter")


def wait(page, condition):
    """Until it is true; the page's own policy forbids the driver's way, which evaluates strings inside of the page."""
    until(lambda: page.evaluate(condition))


def finished(page, number=1):
    wait(page, f"document.querySelectorAll('.note').length === {number}")


def shoot(page, name):
    if folder := os.environ.get("PIPO_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png")


def count(page, selector):
    return page.locator(selector).count()


def test_an_answer_streams_with_tinted_drafts(open_page, engine):
    page = open_page()
    assert page.text_content("#model") == "tiny"
    ask(page, "what is so")
    finished(page)
    wanted = expected(engine, engine.encode("what is so"), 40)
    shown = page.evaluate(
        "[...document.querySelectorAll('.assistant > div:first-child > span')].map(s => s.textContent).join('')"
    )
    assert shown == wanted.text
    assert page.text_content(".user") == "what is so"
    assert int(page.text_content("#n-tokens")) == 40
    assert int(page.text_content("#n-steps")) == wanted.steps
    assert page.text_content("#per-step") == f"{40 / wanted.steps:.2f}"
    assert int(page.text_content("#n-accepted")) == wanted.accepted
    assert int(page.text_content("#n-rejected")) == wanted.drafted - wanted.accepted
    assert count(page, "del") == wanted.drafted - wanted.accepted
    tints = page.evaluate("[...document.querySelectorAll('.draft')].map(s => [s.style.backgroundColor, s.title])")
    assert 0 < len(tints) <= wanted.accepted  # a draft that ends no character has no text
    assert all("confidence" in title for _, title in tints)
    alphas = {title: float(colour.rstrip(")").split(",")[-1]) for colour, title in tints}
    sure = sorted(alphas, key=lambda title: float(title.split()[-1]))
    assert [alphas[title] for title in sure] == sorted(alphas.values()) and len(set(alphas.values())) > 1


def test_rejected_drafts_can_be_shown(open_page):
    page = open_page()
    ask(page, "what is so")
    finished(page)
    assert not page.locator("del").first.is_visible()
    page.check("#show-rejected")
    assert page.locator("del").first.is_visible()


def test_the_slider_sets_the_threshold(open_page, engine):
    page = open_page()
    assert page.input_value("#tau") == "0.5" and "own" in page.text_content("#tau-value")
    for value, threshold in (("0", 0.0), ("1.01", 1.01)):
        page.fill("#tau", value)
        ask(page, "how many")
        finished(page)
        wanted = expected(engine, engine.encode("how many"), 40, threshold)
        assert int(page.text_content("#n-steps")) == wanted.steps
        page.click("#new")
    page.focus("#tau")
    page.keyboard.press("ArrowLeft")
    assert page.text_content("#tau-value").startswith("1.00")


def test_escape_and_the_button_stop_an_answer(open_page, http):
    """Each in a new chat: what follows an answer that was cut somewhere may be short."""
    page = open_page()
    for stop in (lambda: page.keyboard.press("Escape"), lambda: page.click("#stop")):
        page.click("#new")
        ask(page, "so on", tokens=900)
        wait(page, "Number(document.getElementById('n-tokens').textContent) > 3")
        assert page.is_disabled("#send")
        stop()
        finished(page)
        assert "stopped" in page.text_content(".turn:nth-of-type(2) .note")
        until(lambda: gauge(http, "num_requests_running") == 0)
    assert page.is_enabled("#send") and page.is_disabled("#stop")


def test_the_conversation_goes_on_and_starts_anew(open_page, engine):
    page = open_page()
    ask(page, "what", tokens=8)
    finished(page)
    first = expected(engine, engine.encode("what"), 8)
    ask(page, "and so", tokens=8)
    finished(page, 2)
    turns = [("user", "what"), ("assistant", first.text), ("user", "and so")]
    second = expected(engine, engine.encode([{"role": r, "content": c} for r, c in turns]), 8)
    last = page.evaluate("[...document.querySelectorAll('.assistant')].at(-1).firstElementChild")
    assert last is not None
    shown = page.evaluate(
        "[...[...document.querySelectorAll('.assistant')].at(-1).firstElementChild.querySelectorAll('span')]"
        ".map(s => s.textContent).join('')"
    )
    assert shown == second.text
    page.click("#new")
    assert count(page, ".turn") == 0 and page.text_content("#n-tokens") == "0"
    ask(page, "what", tokens=8)
    finished(page)
    assert int(page.text_content("#n-steps")) == first.steps


def test_new_chat_during_an_answer_forgets_it(open_page, http):
    page = open_page()
    ask(page, "so on", tokens=900)
    wait(page, "Number(document.getElementById('n-tokens').textContent) > 3")
    page.click("#new")
    wait(page, "!document.getElementById('send').disabled")
    until(lambda: gauge(http, "num_requests_running") == 0)
    assert page.evaluate("state.messages.length") == 0 and count(page, ".turn") == 0


def test_keyboard_and_labels(open_page):
    page = open_page()
    assert page.evaluate("document.activeElement.id") == "said"
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    assert page.input_value("#said") == "one\ntwo" and count(page, ".turn") == 0
    order = []
    page.focus("#tau")
    for _ in range(9):
        order.append(page.evaluate("document.activeElement.id"))
        page.keyboard.press("Tab")
    wanted = ["tau", "temperature", "max-tokens", "show-rejected", "new", "theme"]
    assert [name for name in order if name != "scroll"] == [*wanted, "said", "send"][: len(order)] or order[
        :6
    ] == wanted
    unnamed = page.evaluate(
        "[...document.querySelectorAll('input, textarea, button')]"
        ".filter(e => !(e.labels?.length || e.textContent.trim())).map(e => e.id)"
    )
    assert unnamed == []
    page.focus("#said")
    page.fill("#said", "so")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # on the button
    finished(page)
    assert page.evaluate("document.activeElement.id") == "said"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_dark_mode_follows_the_system_and_the_toggle(open_page, scheme):
    page = open_page(color_scheme=scheme)
    ask(page, "what is so\nand how many", tokens=60)
    finished(page)
    page.check("#show-rejected")

    def brightness():
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(map(int, colour[4:-1].split(","))) / 3

    assert (brightness() < 60) == (scheme == "dark")
    shoot(page, scheme)
    page.click("#theme")
    assert (brightness() > 200) == (scheme == "dark")
    page.reload()
    assert (brightness() > 200) == (scheme == "dark")  # it is remembered


def test_errors_are_shown_and_a_key_can_be_given(open_page, serve, served):
    page = open_page()
    page.fill("#max-tokens", "99999")
    page.fill("#said", "so")
    page.press("#said", "Enter")
    finished(page)
    assert "max_tokens" in page.text_content(".error")
    assert page.evaluate("state.messages.length") == 0
    locked = open_page(serve(served, "--api-key", "key").url)
    assert locked.is_visible("#key") and "API key" in locked.text_content("#model")
    locked.fill("#key", "key")
    locked.press("#key", "Tab")
    wait(locked, "!document.getElementById('model').textContent.includes('API')")
    ask(locked, "so", tokens=5)
    finished(locked)
    assert locked.text_content("#n-tokens") == "5"


def test_narrow_screens(open_page):
    page = open_page()
    page.set_viewport_size({"width": 360, "height": 640})
    ask(page, "what is so", tokens=20)
    finished(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.locator("#said").is_visible() and page.locator("#send").is_visible()
    shoot(page, "narrow")
