"""The demo in a headless browser: grey text, Tab, arrow, Escape, two tabs, a connection that comes back."""

import shutil

import pytest

pytest.importorskip("uvicorn", reason="the demo's server needs the extra demo")
pytest.importorskip("websockets", reason="the demo's server needs the extra demo")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")

from tests.write.test_server import Running  # noqa: E402

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no chromium is installed"),
]


@pytest.fixture
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def opened(browser, running):
    """Return a page of a user of its own."""
    page = browser.new_context().new_page()
    page.goto(f"http://127.0.0.1:{running.port}/")
    return page


def grey(page, text):
    page.wait_for_function("text => document.querySelector('#mirror span').textContent === text", arg=text)


def value(page):
    return page.input_value("#text")


def test_what_is_grey_is_taken_by_word_or_whole_or_sent_away(tmp_path, browser):
    with Running(tmp_path) as running:
        page = opened(browser, running)
        page.locator("#text").press_sequentially("please send the inv")
        grey(page, "oice today ")
        page.keyboard.press("Tab")
        assert value(page) == "please send the invoice "
        grey(page, "today ")
        page.keyboard.press("Escape")
        grey(page, "")
        page.locator("#text").press_sequentially("t")
        grey(page, "oday ")
        page.keyboard.press("ArrowRight")
        assert value(page) == "please send the invoice today "
        figures = page.inner_text("#figures")
        assert "keys for 30 characters" in figures and "median" in figures


def test_two_tabs_of_two_users_are_apart_and_a_tab_connects_again(tmp_path, browser):
    with Running(tmp_path) as running:
        anna, bert = opened(browser, running), opened(browser, running)
        anna.locator("#text").press_sequentially("xyzzyplugh now.\nxyzzyplugh now.\nxyzzyplugh now.\nxyz")
        grey(anna, "zyplugh ")
        bert.locator("#text").press_sequentially("xyz")
        bert.wait_for_timeout(500)
        assert "plugh" not in bert.inner_text("#mirror") + bert.inner_text("#others")
        anna.evaluate("socket.close()")
        anna.wait_for_function("socket.readyState === 1")
        anna.locator("#text").press_sequentially("z")
        grey(anna, "yplugh ")


def test_two_hundred_keys_a_second_lose_no_letter(tmp_path, browser):
    with Running(tmp_path) as running:
        page, text = opened(browser, running), "send the receipt and then " * 8 + "please send the inv"
        page.locator("#text").press_sequentially(text, delay=5)
        grey(page, "oice today ")
        assert value(page) == text
        assert page.evaluate("seq") == len(text) + 1  # one for each key, and one on connecting
