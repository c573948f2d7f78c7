"""The app in a real browser: every tab, files of every kind, a bad one, two visitors at once, a narrow screen.

`make test-browser` installs Playwright for it; the browser is the system's Chromium.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demos.samples import SAMPLES

sync_api = pytest.importorskip("playwright.sync_api", reason="make test-browser installs Playwright")
pytest.importorskip("gradio", reason="the demo needs Gradio")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
PATIENCE = 60_000  # milliseconds
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed; on Debian: apt install chromium")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a server of its own, with the model in the box."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).with_name("omni"), "demo", "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    url = f"http://127.0.0.1:{port}/"
    try:
        for _ in range(120):
            if server.poll() is not None:
                pytest.fail(f"the server ended: {server.stdout.read() if server.stdout else ''}")
            with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
                break
            time.sleep(1)
        yield url
    finally:
        server.terminate()
        server.communicate()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


class Visitor:
    """A page of its own, and what went wrong in it."""

    def __init__(self, browser: Any, address: str, width: int = 1280) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 900})
        self.context.set_default_timeout(PATIENCE)
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(address, wait_until="load")
        self.page.get_by_role("button", name="receipt.jpg").first.wait_for()

    def tab(self, name: str) -> None:
        """Open a tab, which a narrow screen keeps in a menu."""
        known = self.page.get_by_role("tab", name=name)
        if known.count() and known.first.is_visible():
            known.first.click()
        else:
            self.page.locator(".overflow-menu > button").first.click()
            self.page.locator(".overflow-dropdown button", has_text=name).click()

    def sample(self, name: str) -> None:
        """Take a sample; its question appears in the box."""
        self.page.get_by_role("button", name=name).first.click()
        self.page.wait_for_function("() => [...document.querySelectorAll('textarea')].some(t => t.value.length > 3)")

    def attach(self, path: Path) -> None:
        """Choose a file in the chat, and wait until it is up."""
        self.page.locator(".chatbox input[type=file]").first.set_input_files(str(path))
        self.page.locator(".chatbox .thumbnail-item").first.wait_for()

    def send(self) -> str:
        """Press Enter, and wait until the answer is whole; the conversation."""
        notes = self.page.get_by_text("tokens in")
        before = notes.count()
        self.page.locator("textarea").first.press("Enter")
        notes.nth(before).wait_for()
        return self.page.locator(".bubble-wrap").inner_text()

    def close(self) -> None:
        """Nothing went wrong in the page."""
        self.context.close()
        assert self.errors == []


@pytest.fixture
def visitor(browser: Any, address: str) -> Iterator[Visitor]:
    made = Visitor(browser, address)
    yield made
    made.close()


def test_a_sample_is_answered_and_looked_into(visitor: Visitor) -> None:
    visitor.sample("receipt.jpg")
    assert "526.55" in visitor.send()
    visitor.tab("Under the hood")
    visitor.page.locator(".receipt iframe").wait_for()


@pytest.mark.parametrize("name", ["invoice.pdf", "receipt.jpg", "clip.mp4", "recording.wav"])
def test_files_of_each_kind_are_taken(visitor: Visitor, name: str) -> None:
    visitor.attach(SAMPLES / name)
    visitor.page.locator("textarea").first.fill("What is said?" if name.endswith("wav") else "What is the total?")
    assert "tokens in" in visitor.send()
    assert not visitor.page.locator(".trouble").is_visible()


def test_an_answer_streams(visitor: Visitor) -> None:
    visitor.sample("recording.wav")
    seen: set[int] = set()
    visitor.page.locator("textarea").first.press("Enter")
    done = visitor.page.get_by_text("tokens in")
    for _ in range(3000):
        seen.add(len(visitor.page.locator(".bubble-wrap").inner_text()))
        if done.count():
            break
    assert len(seen) > 3


def test_a_bad_file_is_told_and_the_question_stays(visitor: Visitor, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    visitor.attach(tmp_path / "broken.png")
    visitor.page.locator("textarea").first.fill("What is this?")
    visitor.page.locator("textarea").first.press("Enter")
    visitor.page.locator(".trouble").wait_for()
    assert "broken.png" in visitor.page.locator(".trouble").inner_text()
    assert visitor.page.locator("textarea").first.input_value() == "What is this?"


def test_two_visitors_at_once_do_not_mix(browser: Any, address: str) -> None:
    visitors = [Visitor(browser, address) for _ in range(2)]
    for each, name in zip(visitors, ("recording.wav", "receipt.jpg"), strict=True):
        each.sample(name)
    for each in visitors:
        each.page.locator("textarea").first.press("Enter")
    texts: list[str] = []
    for each in visitors:
        each.page.get_by_text("tokens in").first.wait_for()
        texts.append(each.page.locator(".bubble-wrap").inner_text())
        each.close()
    assert ["teacher" in text for text in texts] == [True, False]
    assert ["526.55" in text for text in texts] == [False, True]


def test_a_document_is_read_beside_its_pages(visitor: Visitor) -> None:
    visitor.tab("Document")
    visitor.page.get_by_role("button", name="On page 1: What is the price of Audit?").click()
    visitor.page.locator(".page").nth(2).wait_for()
    visitor.page.get_by_role("button", name="Ask", exact=True).first.click()
    visitor.page.locator(".said .note").first.wait_for()
    assert "93.13" in visitor.page.locator(".said").first.inner_text()
    visitor.page.get_by_role("button", name="Table to CSV").click()
    visitor.page.get_by_text("Download CSV").first.wait_for()


def test_a_clip_is_read_and_a_frame_moves_it(visitor: Visitor) -> None:
    visitor.tab("Long video")
    visitor.page.get_by_role("button", name="When does the circle turn orange?").click()
    visitor.page.locator(".gauge").wait_for()
    visitor.page.get_by_role("button", name="Read", exact=True).click()
    visitor.page.locator(".speech").wait_for()
    frame = visitor.page.locator(".frame").nth(2)
    frame.focus()
    visitor.page.keyboard.press("Enter")
    visitor.page.wait_for_function("() => document.querySelector('#film video').currentTime > 0")


@pytest.mark.parametrize("width", [1280, 400])
def test_a_recording_is_heard_on_any_screen(browser: Any, address: str, width: int) -> None:
    visitor = Visitor(browser, address, width)
    visitor.tab("Listen")
    visitor.page.get_by_role("button", name="recording.wav").last.click()
    visitor.page.locator(".lines").wait_for()
    assert visitor.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    visitor.close()
