"""The page of GET /demo in a real browser, on a real service: python -m pytest tests/serving/test_demo.py"""

import base64
import io
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
from conftest import ROOT, encode
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from playwright.sync_api import Browser, Error, Page, Playwright, expect, sync_playwright
from test_serving import SERVICE, make_engine, served, serving, wait_ready

from src.core.files import sha256, write_json
from src.serving import demo

EVIL = "<img src=x onerror=alert(1)>"
CLASSES = [*"012", EVIL, *"456789", "no digit", "no letter"]
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
    page = demo.PAGE.decode()
    policy = dict(demo.PAGE_HEADERS)[b"content-security-policy"].decode()
    assert page.count("<script") == page.count("<script>") == policy.count("script-src 'sha256-") == 1
    assert page.count("<style") == page.count("<style>") == policy.count("style-src 'sha256-") == 1
    assert "unsafe" not in policy
    assert policy.startswith("default-src 'none'")
    assert demo.policy(page.replace('"use strict"', '"use strict "')) != policy


def test_the_page_names_no_other_host_and_no_address_from_the_root() -> None:
    page = demo.PAGE.decode()
    assert not re.search(r"https?:|//[a-z]+\.", page)
    assert not re.search(r"""(?:src|href|action)=["']?/|(?:fetch|ask|askPatiently)\(["'`]/""", page)


# ---------------------------------------------------------------------------------------------------------------------
# In a browser
# ---------------------------------------------------------------------------------------------------------------------


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Return the real digits of scikit-learn, uint8 of shape (n, 8, 8), and their classes."""
    from sklearn.datasets import load_digits

    images, classes = load_digits(return_X_y=True)
    return (images.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8), classes


def write_model(folder: Path) -> Path:
    """Write a model that names the digit whose mean image is nearest; two classes more are never near."""
    images, classes = digits()
    means = np.stack([images[classes == digit].mean(axis=0).ravel() / 255 for digit in range(10)])
    weights = np.concatenate([2 * means, np.zeros((2, 64))]).T.astype(np.float32)
    bias = np.concatenate([-(means**2).sum(axis=1), [-90, -90]]).astype(np.float32)
    constants = {
        "weights": weights,
        "bias": bias,
        "white": np.float32([255]),
        "flat": np.array([-1, 64]),
        "channel": np.array([3]),
    }
    steps = [("Div", "floats white"), ("ReduceMean", "scaled channel"), ("Reshape", "grey flat"), ("MatMul", "row weights")]
    names = ["scaled", "grey", "row", "product"]
    nodes = [helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT)]
    nodes += [helper.make_node(kind, takes.split(), [name]) for (kind, takes), name in zip(steps, names, strict=True)]
    nodes += [
        helper.make_node("Add", ["product", "bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
    ]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 8, 8, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", len(CLASSES)])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, {"classes": json.dumps(CLASSES)})
    folder.mkdir()
    onnx.save(model, folder / "model.onnx")
    card = {"classes": CLASSES, "size": [8, 8], "channels": 3, "fit": "crop", "network": "nearest_mean", "width": 1}
    write_json(folder / "card.json", {**card, "model_sha256": sha256(folder / "model.onnx")})
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("demo") / "model")


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
        launched = launch(playwright)
        yield launched
        launched.close()


def launch(playwright: Playwright) -> Browser:
    return playwright.chromium.launch(executable_path=INSTALLED)


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Return a function that opens a page. At the end no page may have left its origin or had an error of its own."""
    opened: list[tuple[str, Page]] = []
    asked: list[str] = []
    wrong: list[str] = []

    def visit(url: str, **options: Any) -> Page:
        page = browser.new_page(locale="en-US", **options)
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


def digit(number: int, kind: str = "PNG") -> bytes:
    return encode(digits()[0][number], kind)


def answer(page: Page) -> str:
    expect(page.locator("#where")).to_contain_text("looked most at")
    return page.locator("#answer").inner_text()


def pixels(page: Page, opacity: int) -> np.ndarray:
    """Return what is drawn, int of shape (height, width, 3), with an overlay of so many percent."""
    page.locator("#opacity").fill(str(opacity))
    with Image.open(io.BytesIO(base64.b64decode(page.evaluate(PIXELS)))) as image:
        return np.asarray(image.convert("RGB")).astype(int)


@in_a_browser
@pytest.mark.slow
def test_a_dropped_digit_shows_what_predict_says_and_where_it_looked(
    urls: dict[str, str], visit: Callable[..., Page]
) -> None:
    page = visit(urls["open"])
    drop(page, ("a digit.png", "image/png", digit(0)))
    told = httpx.post(f"{urls['open']}/predict?top=10", files={"image": digit(0)}).json()
    assert answer(page) == told["label"] == "0"
    bars = page.locator("#bars button").all()
    assert [bar.get_attribute("data-label") for bar in bars] == [one["label"] for one in told["probabilities"]]
    shares = [float(bar.locator(".number").inner_text().lstrip("< ").rstrip("%")) for bar in bars]
    assert shares == pytest.approx([100 * one["probability"] for one in told["probabilities"]], abs=0.11)
    assert page.locator("#bars li").last.inner_text().split("\n")[0].startswith("2 others")
    assert re.fullmatch(r"Answered in \d+ ms, there and back", page.locator("#latency").inner_text())
    plain, heat = pixels(page, 0), pixels(page, 100)
    assert len(np.unique(plain[..., 0])) > 5, "the digit is not drawn"
    assert (plain[..., 0] == plain[..., 2]).all(), "without the overlay it is not grey as the digit is"
    assert np.abs(heat - plain).max() > 60
    assert "unregistered" in page.locator("#model").inner_text()


@in_a_browser
@pytest.mark.slow
def test_a_label_that_looks_like_html_stays_text(urls: dict[str, str], visit: Callable[..., Page]) -> None:
    page = visit(urls["open"])
    drop(page, (f"{EVIL}.png", "image/png", digit(3)))
    assert answer(page) == EVIL
    bar = page.locator("#bars button").first
    assert EVIL in bar.inner_text()
    assert EVIL in page.locator("#where").inner_text()
    bar.click()
    assert answer(page) == EVIL
    assert page.locator("img").count() == 0


@in_a_browser
@pytest.mark.slow
def test_no_script_of_the_page_could_make_html_of_a_text(urls: dict[str, str], browser: Browser) -> None:
    with browser.new_page() as page:
        page.goto(f"{urls['open']}/demo")
        with pytest.raises(Error, match="TrustedHTML"):
            page.evaluate("document.body.innerHTML = '<b>no</b>'")


@in_a_browser
@pytest.mark.slow
def test_what_is_no_image_gives_the_sentence_of_the_service(urls: dict[str, str], visit: Callable[..., Page]) -> None:
    page = visit(urls["open"])
    drop(page, ("a.txt", "text/plain", b"no picture"))
    problem = page.locator("#problem")
    expect(problem).to_contain_text("Not an image of PNG")
    assert "{" not in problem.inner_text()
    assert not page.locator("#result").is_visible()
    drop(page)
    expect(problem).to_contain_text("That was no file")
    drop(page, ("a.png", "image/png", digit(1)))
    assert answer(page) == "1"
    assert not problem.is_visible()


@in_a_browser
@pytest.mark.slow
def test_a_keyboard_is_enough(urls: dict[str, str], visit: Callable[..., Page], tmp_path: Path) -> None:
    (tmp_path / "four.png").write_bytes(digit(4))
    page = visit(urls["open"])
    page.on("filechooser", lambda chooser: chooser.set_files(tmp_path / "four.png"))
    page.keyboard.press("Tab")
    expect(page.locator("#choose")).to_be_focused()
    page.keyboard.press("Enter")
    assert answer(page) == "4"
    for _ in range(2):
        page.keyboard.press("Tab")
    second = page.locator("#bars button").nth(1)
    expect(second).to_be_focused()
    assert second.evaluate("button => getComputedStyle(button).outlineStyle") == "solid"
    page.keyboard.press("Space")
    expect(second).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#where")).to_contain_text(f"“{second.get_attribute('data-label')}”")
    page.locator("#bars button").last.focus()
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowLeft")
    assert page.locator("#opacity").input_value() == "69"


@in_a_browser
@pytest.mark.slow
def test_it_asks_for_a_key_and_goes_on_with_it(urls: dict[str, str], visit: Callable[..., Page]) -> None:
    page = visit(urls["key"])
    expect(page.locator("#key")).to_be_focused()
    drop(page, ("a.png", "image/png", digit(7)))
    expect(page.locator("#problem")).to_contain_text("asks for a key")
    page.locator("#key").fill("no-key-of-this-service")
    page.keyboard.press("Enter")
    expect(page.locator("#problem")).to_contain_text("does not know that key")
    page.locator("#key").fill(KEY)
    page.keyboard.press("Enter")
    assert answer(page) == "7"
    assert not page.locator("#ask-key").is_visible()
    kept = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])")
    assert KEY not in kept + page.content()


@in_a_browser
@pytest.mark.slow
def test_several_files_are_a_list_in_which_a_bad_one_spoils_nothing(
    urls: dict[str, str], visit: Callable[..., Page]
) -> None:
    page = visit(urls["open"])
    good = [(f"{number}.png", "image/png", digit(number)) for number in (0, 1, 4, 6, 7)]
    drop(page, *good[:2], ("a.txt", "text/plain", b"no picture"), *good[2:])
    expect(page.locator("#status")).to_have_text("5 of 6 files classified")
    rows = page.locator("#files button")
    assert [row.split("\n")[0] for row in rows.all_inner_texts()] == ["0.png", "1.png", "a.txt", "4.png", "6.png", "7.png"]
    assert ["".join(row.split("\n")[1:])[:2] for row in rows.all_inner_texts()] == ["0,", "1,", "No", "4,", "6,", "7,"]
    rows.nth(3).click()
    assert answer(page) == "4"
    rows.nth(2).click()
    expect(page.locator("#problem")).to_contain_text("Not an image")


@in_a_browser
@pytest.mark.slow
def test_a_format_that_the_browser_cannot_show_is_classified_all_the_same(
    urls: dict[str, str], visit: Callable[..., Page]
) -> None:
    page = visit(urls["open"])
    drop(page, ("a.tif", "image/tiff", digit(6, "TIFF")))
    assert answer(page) == "6"
    assert "cannot show" in page.locator("#where").inner_text()


@in_a_browser
@pytest.mark.slow
def test_the_heat_lies_on_the_part_of_the_picture_that_the_model_saw(
    urls: dict[str, str], visit: Callable[..., Page], random: np.random.Generator
) -> None:
    wide = random.integers(0, 60, (64, 160, 3), dtype=np.uint8)
    wide[:, 48:112] = np.repeat(np.kron(digits()[0][0], np.ones((8, 8), dtype=np.uint8))[..., None], 3, axis=2)
    page = visit(urls["open"])
    drop(page, ("wide.png", "image/png", encode(wide)))
    assert answer(page) == "0"
    changed = np.abs(pixels(page, 100) - pixels(page, 0)).max(axis=(0, 2)) > 8
    left, right = np.flatnonzero(changed)[[0, -1]] / len(changed)
    assert 0.29 < left < 0.45
    assert 0.55 < right < 0.71
    assert pixels(page, 0)[:, : int(0.29 * len(changed)), :3].max() < 40, "what the model did not see is not darkened"


@in_a_browser
@pytest.mark.slow
def test_it_works_under_a_path_of_a_proxy(urls: dict[str, str], browser: Browser) -> None:
    asked = []
    page = browser.new_page()
    page.set_default_timeout(20_000)

    def forward(route: Any) -> None:
        asked.append(route.request.url)
        route.fulfill(response=route.fetch(url=route.request.url.replace("/team/vision/", "/")))

    page.route("**/*", forward)
    page.goto(f"{urls['open']}/team/vision/demo")
    drop(page, ("a.png", "image/png", digit(9)))
    assert answer(page) == "9"
    assert all(url.startswith(f"{urls['open']}/team/vision/") for url in asked), asked
    page.close()


@in_a_browser
@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_readable_on_a_phone_by_day_and_night(urls: dict[str, str], visit: Callable[..., Page], scheme: str) -> None:
    page = visit(urls["open"], viewport={"width": 360, "height": 740}, color_scheme=scheme)
    drop(page, *[(f"{'long name ' * 12}{number}.png", "image/png", digit(number)) for number in range(3)])
    page.locator("#files button").first.click()
    answer(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert contrast(page, "h1") > 7
    assert all(contrast(page, place) > 4.5 for place in (".soft", "#bars .number", "dt", "#drop b"))


def contrast(page: Page, place: str) -> float:
    """Return the contrast of a text with the page under it, by https://www.w3.org/TR/WCAG21/#dfn-contrast-ratio."""
    script = "(e) => [getComputedStyle(e).color, getComputedStyle(e.closest('.card') ?? document.body).backgroundColor]"
    colours = page.locator(place).first.evaluate(script)
    light, dark = sorted((luminance(re.findall(r"\d+", colour)[:3]) for colour in colours), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: list[str]) -> float:
    shares = np.array(colour, dtype=float) / 255
    linear = np.where(shares <= 0.03928, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@in_a_browser
@pytest.mark.slow
def test_the_real_service_shows_it(model: Path, tmp_path: Path, visit: Callable[..., Page]) -> None:
    with served(tmp_path, SERVICE, ROOT, SERVE_MODEL=str(model), SERVE_WORKERS="1") as (_, url):
        wait_ready(url)
        page = visit(url)
        drop(page, ("a digit.png", "image/png", digit(5)))
        assert answer(page) == httpx.post(f"{url}/predict", files={"image": digit(5)}).json()["label"]
