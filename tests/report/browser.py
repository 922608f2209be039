"""A headless Chromium over a pipe: what a page shows, asks for and complains of. Nothing but a browser is needed."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
PLAYWRIGHT = (".cache/ms-playwright", "Library/Caches/ms-playwright")
FLAGS = (
    "--headless",
    "--no-sandbox",  # containers run tests as root, for whom Chromium's sandbox does not start
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--remote-debugging-pipe",
)


def find_browser() -> str:
    """The path in CERTVAE_BROWSER, else a Chromium on PATH, else playwright's; skips the test if there is none."""
    given = os.environ.get("CERTVAE_BROWSER")
    if given:
        return given
    on_path = [path for name in NAMES if (path := shutil.which(name))]
    folders = [Path.home() / folder for folder in PLAYWRIGHT]
    downloaded = [str(path) for folder in folders for path in sorted(folder.glob("chromium-*/*/chrome"))]
    found = [*on_path, *downloaded]
    if not found:
        pytest.skip("no browser: install chromium, or name one in CERTVAE_BROWSER")
    return found[0]


class Page:
    """A tab of the browser.

    Attributes:
        events: everything that the browser has reported, as ``(method, params)``.
    """

    def __init__(self, requests: int, answers: int) -> None:
        self._requests, self._answers = requests, answers
        self._pending, self._number, self._session = b"", 0, ""
        self.events: list[tuple[str, dict[str, Any]]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A command of the DevTools protocol; returns its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._requests, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._pending:
            received = os.read(self._answers, 2**20)
            assert received, "the browser has ended"
            self._pending += received
        message, self._pending = self._pending.split(b"\0", 1)
        answer: dict[str, Any] = json.loads(message)
        if "method" in answer:
            self.events.append((answer["method"], answer["params"]))
        return answer

    def open(self, path: Path, width: int, scheme: str = "light", media: str = "screen") -> None:
        """Show a file at a width, and wait until it is loaded and drawn."""
        self.events.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        scheme_feature = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", media=media, features=[scheme_feature])
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not any(method == "Page.loadEventFired" for method, _ in self.events):
            self._next()
        self.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def requests(self) -> list[str]:
        """Addresses that were asked for since the page was opened."""
        return [params["request"]["url"] for method, params in self.events if method == "Network.requestWillBeSent"]

    def complaints(self) -> list[Any]:
        """Whatever the console and the log got."""
        kinds = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        return [params for method, params in self.events if method in kinds]


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """Start a browser with a profile of its own, and end it."""
    requests, to_browser = os.pipe()
    from_browser, answers = os.pipe()
    for end in (requests, answers):
        os.set_inheritable(end, True)
    # The browser reads its descriptor 3 and writes to 4, whatever ours are.
    start = f'exec "$@" 3<&{requests} 4>&{answers}'
    command = ["bash", "-c", start, "browser", find_browser(), *FLAGS, f"--user-data-dir={profile}"]
    process = subprocess.Popen(
        command, pass_fds=(requests, answers), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    os.close(requests)
    os.close(answers)
    try:
        yield Page(to_browser, from_browser)
    finally:
        os.close(to_browser)
        process.terminate()
        process.wait(timeout=30)
        os.close(from_browser)
