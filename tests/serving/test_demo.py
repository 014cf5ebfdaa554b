"""The page of GET /demo in a real browser, on a real service: python -m pytest tests/serving/test_demo.py"""

import base64
import io
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from conftest import ROOT, encode
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright
from test_serving import make_engine, serving, write_model

from src.serving import http

PAGE = ROOT / "src" / "serving" / "demo.html"
EVIL = "<img src=x onerror=alert(1)>"
CLASSES = ["red", EVIL, "blue"]
KEY = "a-key-for-the-tests-only"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
INSTALLED = next((path for path in map(shutil.which, BROWSERS) if path), None)
in_a_browser = pytest.mark.skipif(INSTALLED is None, reason=f"none of {', '.join(BROWSERS)} is installed here")

DROP = """async ([selector, files]) => {
  const transfer = new DataTransfer();
  for (const [name, type, bytes] of files) transfer.items.add(new File([new Uint8Array(bytes)], name, {type}));
  const how = {dataTransfer: transfer, bubbles: true, cancelable: true};
  document.querySelector(selector).dispatchEvent(new DragEvent("drop", how));
}"""
PIXELS = "() => document.getElementById('picture').toDataURL().split(',')[1]"


def test_the_policy_allows_the_pages_own_script_and_style_and_nothing_else() -> None:
    page = PAGE.read_text()
    policy = http.policy(page)
    assert page.count("<script") == page.count("<script>") == policy.count("script-src 'sha256-") == 1
    assert page.count("<style") == page.count("<style>") == policy.count("style-src 'sha256-") == 1
    assert "unsafe" not in policy
    assert policy.startswith("default-src 'none'")
    assert http.policy(page.replace('"use strict"', '"use strict "')) != policy


def test_beside_each_answer_the_page_warns_of_what_the_model_never_saw() -> None:
    result = re.search(r'<section id="result".*?</section>', PAGE.read_text(), re.DOTALL)
    assert result
    assert "it names one of these as surely" in result[0]


# In a browser


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("demo") / "model", classes=CLASSES)


@pytest.fixture(scope="module")
def urls(model: Path) -> Iterator[dict[str, str]]:
    """Addresses of two services: one is open, one asks for a key."""
    keys = model.parent / "keys"
    keys.write_text(f"{KEY}\n")
    keys.chmod(0o600)
    with serving(make_engine(model)) as free, serving(make_engine(model, keys=keys)) as guarded:
        yield {"open": free, "key": guarded}


@pytest.fixture(scope="module")
def browser(urls: dict[str, str]) -> Iterator[Browser]:  # after the services: in its thread no other event loop can run
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=INSTALLED)
        yield launched
        launched.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Return a function that opens a page. At the end no page may have left its origin or had an error of its own."""
    opened, asked, wrong = list[tuple[str, Page]](), list[str](), list[str]()

    def visit(url: str) -> Page:
        page = browser.new_page(locale="en-US")
        page.set_default_timeout(20_000)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
        page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        page.goto(f"{url}/demo")
        opened.append((url, page))
        return page

    yield visit
    for _, page in opened:
        page.close()
    assert asked
    assert all(any(url == "data:," or url.startswith(f"{origin}/") for origin, _ in opened) for url in asked), asked
    refused = "Failed to load resource: the server responded with a status of 4"  # Chrome's note on each answer 4xx
    assert not [text for text in wrong if not text.startswith(refused)]


def drop(page: Page, *files: tuple[str, str, bytes]) -> None:
    page.evaluate(DROP, ["#drop", [(name, kind, list(content)) for name, kind, content in files]])


def square(colour: int) -> bytes:
    """Return a picture with a square of one colour: red, green or blue."""
    drawn = np.zeros((8, 8, 3), dtype=np.uint8)
    drawn[2:6, 2:6, colour] = 255
    return encode(drawn)


def answer(page: Page) -> str:
    expect(page.locator("#where")).to_contain_text("looked most at")
    return page.locator("#answer").inner_text()


def pixels(page: Page, opacity: int) -> np.ndarray:
    """Return what is drawn, int of shape (height, width, 3), with an overlay of so many percent."""
    page.locator("#opacity").fill(str(opacity))
    with Image.open(io.BytesIO(base64.b64decode(page.evaluate(PIXELS)))) as image:
        return np.asarray(image.convert("RGB")).astype(int)


@in_a_browser
@pytest.mark.journey
def test_a_dropped_picture_shows_what_predict_says_and_where_it_looked(
    urls: dict[str, str], visit: Callable[..., Page]
) -> None:
    page = visit(urls["open"])
    drop(page, ("a picture.png", "image/png", square(0)))
    told = httpx.post(f"{urls['open']}/predict", files={"image": square(0)}).json()
    assert answer(page) == told["label"] == "red"
    bars = page.locator("#bars button").all()
    assert [bar.get_attribute("data-label") for bar in bars] == [one["label"] for one in told["probabilities"]]
    shares = [float(bar.locator(".number").inner_text().lstrip("< ").rstrip("%")) for bar in bars]
    assert shares == pytest.approx([100 * one["probability"] for one in told["probabilities"]], abs=0.11)
    plain, heat = pixels(page, 0), pixels(page, 100)
    assert plain[..., 0].max() > 200, "the picture is not drawn"
    assert np.abs(heat - plain).max() > 60
    assert "unregistered" in page.locator("#model").inner_text()


@in_a_browser
@pytest.mark.journey
def test_a_label_that_looks_like_html_stays_text(urls: dict[str, str], visit: Callable[..., Page]) -> None:
    page = visit(urls["open"])
    drop(page, (f"{EVIL}.png", "image/png", square(1)))
    assert answer(page) == EVIL
    assert EVIL in page.locator("#bars button").first.inner_text()
    assert EVIL in page.locator("#where").inner_text()
    assert page.locator("img").count() == 0


@in_a_browser
@pytest.mark.journey
def test_it_asks_for_a_key_and_goes_on_with_it(urls: dict[str, str], visit: Callable[..., Page]) -> None:
    page = visit(urls["key"])
    expect(page.locator("#key")).to_be_focused()
    drop(page, ("a.png", "image/png", square(2)))
    expect(page.locator("#problem")).to_contain_text("asks for a key")
    page.locator("#key").fill("no-key-of-this-service")
    page.keyboard.press("Enter")
    expect(page.locator("#problem")).to_contain_text("does not know that key")
    page.locator("#key").fill(KEY)
    page.keyboard.press("Enter")
    assert answer(page) == "blue"
    assert not page.locator("#ask-key").is_visible()
    kept = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])")
    assert KEY not in kept + page.content()
