"""The page of `exotherm serve` under the hands of somebody with a keyboard, in Chromium.

usage: page.py EXOTHERM MODEL FOLDER
"""

import json
import pathlib
import sys
import time

from browser import ALT, CONTROL, SHIFT, Browser, found
from served import served, settle

QUESTION = "Write a very long story about a river."
ANSWER = "document.querySelector('.turn.assistant:last-of-type .text').textContent"
OVER = "!document.querySelector('.writing')"
# How well two colours can be told apart, as the guidelines for accessible pages define it.
CONTRAST = """
(() => {
  const channels = (color) => color.match(/[\\d.]+/g).slice(0, 3).map((c) => c / 255);
  const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  const light = (color) => { const [r, g, b] = channels(color).map(linear); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ground = (at) => {
    for (; at; at = at.parentElement) {
      const color = getComputedStyle(at).backgroundColor;
      if (!/, 0\\)$/.test(color)) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const shown = [...document.querySelectorAll("body *")].filter((at) =>
    at.getClientRects().length && [...at.childNodes].some((n) => n.nodeType === 3 && n.data.trim()));
  return shown.map((at) => {
    const [a, b] = [light(getComputedStyle(at).color), light(ground(at))];
    return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), at.outerHTML.slice(0, 80)];
  }).sort((a, b) => a[0] - b[0])[0];
})()
"""


def opens(browser, url):
    """It is there, its models are there, and a message can be typed at once."""
    browser.look(1280, 800, "light")
    browser.open(url)
    browser.until("document.getElementById('model').options.length === 2")
    assert browser.run("[...document.getElementById('model').options].map((o) => o.value)") == ["m", "other"]
    assert browser.run("document.activeElement.id") == "text", "a message can be typed at once"
    assert browser.run("document.getElementById('empty').textContent.trim().length > 20")


def everything_has_a_name(browser):
    browser.press("s", ALT)
    controls = browser.controls()
    assert len(controls) >= 12, controls
    assert all(name for _, name in controls), controls
    for names in ("Model", "Message", "Temperature", "Settings", "New chat"):
        assert any(name.startswith(names) for _, name in controls), (names, controls)
    browser.press("Escape")
    assert browser.run("document.activeElement.id") == "text", "Escape leads back to the message"


def answer_streams(browser):
    # The likeliest tokens, so that the answer is the same each time, and long.
    browser.run("document.getElementById('temperature').value = 0")
    browser.type("Hello!")
    browser.press("Enter", SHIFT)
    browser.type(QUESTION)
    assert browser.run("document.getElementById('text').value") == f"Hello!\n{QUESTION}"
    browser.press("Enter")
    assert browser.run("document.getElementById('text').value") == ""
    lengths, live = set(), set()
    end = time.monotonic() + 60
    while (len(lengths) < 5 or len(live) < 2) and time.monotonic() < end:
        lengths.add(len(browser.until(ANSWER)))
        live.add(browser.run("document.getElementById('status').textContent"))
    assert len(lengths) >= 5, f"the answer is seen to grow: {lengths}"
    assert any("first token after" in text for text in live), live
    assert any("tok/s" in text for text in live), f"its speed is told as it comes: {live}"
    assert browser.run("document.getElementById('go').textContent") == "Stop"


def escape_stops(browser, url):
    browser.press("Escape")
    browser.until(OVER)
    assert "Stopped." in browser.run("document.querySelector('.turn.assistant').textContent")
    # What nobody reads is not made either.
    settle(url)


def answer_is_whole(browser):
    """An answer to its end, sent with Control and Enter: its times, and its copy in the clipboard."""
    browser.run("document.getElementById('max_tokens').value = 24")
    browser.type("Go on.")
    browser.press("Enter", CONTROL)
    browser.until("document.querySelectorAll('.turn.assistant').length === 2")
    browser.until(OVER)
    told = browser.run("document.querySelector('.turn.assistant:last-of-type .told').textContent")
    assert "tokens read" in told and "written in" in told and "tok/s" in told, told
    assert "cached" in told, f"the conversation is read once: {told}"
    browser.call("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    browser.run("document.querySelector('.turn.assistant:last-of-type .copy').click()")
    browser.until("document.querySelector('.turn.assistant:last-of-type .copy').textContent === 'Copied'")
    assert browser.run("navigator.clipboard.readText()").strip()


def text_is_never_markup(browser):
    """What a model writes is shown as it is, with its code and stresses set apart."""
    text = "**bold** and *slanted* `code <b>` <img src=x onerror=alert(1)>\n\n## Head\n```rust\nfn main() {}\n```\n2 * 3 * 4"
    browser.run(f"(window.shown = document.createElement('div'), render({json.dumps(text)}, shown), true)")
    assert browser.run("shown.querySelector('img') === null && shown.textContent.includes('<img src=x')")
    assert browser.run("shown.querySelector('strong').textContent") == "bold"
    assert browser.run("shown.querySelector('em').textContent") == "slanted"
    assert browser.run("shown.querySelector('pre code').textContent") == "fn main() {}"
    assert browser.run("shown.textContent.includes('2 * 3 * 4')")


def colours_follow_the_user(browser, folder):
    grounds = {}
    for scheme, width, height in [("light", 1280, 800), ("dark", 1280, 800), ("light", 390, 844), ("dark", 390, 844)]:
        browser.look(width, height, scheme)
        browser.screenshot(folder / f"{scheme}-{width}.png")
        grounds[scheme] = browser.run("getComputedStyle(document.body).backgroundColor")
        contrast, where = browser.run(CONTRAST)
        assert contrast >= 4.5, f"{scheme}: {where} can hardly be read: {contrast:.2f}"
        assert browser.run("document.documentElement.scrollWidth") <= width, "nothing sticks out"
    assert grounds["light"] != grounds["dark"], grounds


def errors_are_told(browser, folder):
    browser.look(1280, 800, "light")
    browser.run("document.getElementById('temperature').value = 9")
    browser.type("Hello")
    browser.press("Enter")
    told = browser.until("document.querySelector('.error')?.textContent")
    assert "temperature" in told, told
    browser.until("document.getElementById('text').value === 'Hello'")
    browser.screenshot(folder / "error.png")
    browser.run("document.getElementById('temperature').value = 0.8")
    browser.press("n", ALT)
    assert browser.run("document.querySelectorAll('.turn').length") == 0, "a new chat is empty"
    assert browser.run("document.getElementById('empty') !== null"), "and says what to do"


def main():
    exotherm, model, folder = sys.argv[1:]
    program = found()
    if not program:
        print("SKIPPED: the page in a browser (no chromium is installed)")
        return
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    models = ["--model", f"m={model}", "--model", f"other={model}"]
    with served(exotherm, *models, "--memory", "160M", "--ctx", "1024", "--max-seqs", "2") as url:
        browser = Browser(program)
        try:
            opens(browser, url)
            browser.screenshot(folder / "empty.png")
            everything_has_a_name(browser)
            answer_streams(browser)
            browser.screenshot(folder / "writing.png")
            escape_stops(browser, url)
            answer_is_whole(browser)
            text_is_never_markup(browser)
            colours_follow_the_user(browser, folder)
            assert not browser.complaints(), browser.complaints()
            errors_are_told(browser, folder)
            strangers = [at for at in browser.requested() if not at.startswith((url, "data:"))]
            assert not strangers, f"the page asks nobody else: {strangers}"
        finally:
            browser.close()
    print(f"the page works; pictures of it are in {folder}")


if __name__ == "__main__":
    main()
