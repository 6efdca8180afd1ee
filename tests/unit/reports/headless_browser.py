"""Drives a headless Chromium by the WebDriver protocol, with the standard library alone."""

import base64
import json
import re
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# The driver is on this machine: an HTTP proxy of the environment must not stand between.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def missing_program() -> str | None:
    """Name of a program that a browser test needs and that is not installed."""
    return next((name for name in ("chromium", "chromedriver") if not shutil.which(name)), None)


class Browser:
    """One browser window; a context manager that ends what it started."""

    def __init__(self, width: int = 1280, height: int = 1000, *flags: str) -> None:
        self._profile = tempfile.TemporaryDirectory()
        self._driver = subprocess.Popen(
            ["chromedriver", "--port=0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._address = f"http://127.0.0.1:{self._read_port()}"
        arguments = [
            *FLAGS,
            *flags,
            f"--window-size={width},{height}",
            f"--user-data-dir={self._profile.name}",
        ]
        wanted = {
            "browserName": "chrome",
            "timeouts": {"script": 15_000},
            "goog:chromeOptions": {"binary": shutil.which("chromium"), "args": arguments},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        opened = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._session = f"/session/{opened['sessionId']}"

    def __enter__(self) -> "Browser":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._call("DELETE", self._session)
        finally:
            self._driver.terminate()
            self._driver.wait(timeout=20)
            if self._driver.stdout is not None:
                self._driver.stdout.close()
            self._profile.cleanup()

    def open(self, page: Path, fragment: str = "", *, wait: bool = True) -> None:
        """Loads a file anew and waits for its script."""
        self.call("url", {"url": "about:blank"})  # a new fragment alone would not load it again
        self.call("url", {"url": page.resolve().as_uri() + fragment})
        if not wait:
            return
        self.run_async(
            "const done = arguments[0]; const wait = () => document.documentElement.dataset.ready"
            " ? setTimeout(() => done(true), 200) : setTimeout(wait, 50); wait();"
        )

    def run(self, script: str, *arguments: Any) -> Any:
        """Runs a script and returns what it returns."""
        return self.call("execute/sync", {"script": script, "args": list(arguments)})

    def run_async(self, script: str) -> Any:
        """Runs a script that reports by its last argument."""
        return self.call("execute/async", {"script": script, "args": []})

    def move_pointer(self, x: int, y: int) -> None:
        """Moves the mouse to a place in the window, in two steps as a hand would."""
        moves = [
            {"type": "pointerMove", "x": x - 20, "y": y},
            {"type": "pointerMove", "x": x, "y": y},
        ]
        self.call("actions", {"actions": [{"type": "pointer", "id": "mouse", "actions": moves}]})
        self.run_async("setTimeout(arguments[0], 300)")

    def screenshot(self) -> bytes:
        """The visible part of the page as PNG."""
        return base64.b64decode(self._call("GET", self._session + "/screenshot"))

    def log(self, kind: str = "browser") -> list[dict[str, Any]]:
        """Entries since the last call: `browser` for the console, `performance` for requests."""
        return list(self.call("se/log", {"type": kind}))

    def requests(self) -> list[str]:
        """Addresses that the browser asked for since the last call."""
        messages = [json.loads(entry["message"])["message"] for entry in self.log("performance")]
        return [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]

    def call(self, command: str, body: dict[str, Any]) -> Any:
        """Sends one command of the protocol to the window."""
        return self._call("POST", f"{self._session}/{command}", body)

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._address + path, data=data, method=method)
        try:
            with DIRECT.open(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            with error:
                raise RuntimeError(json.load(error)["value"]["message"]) from None

    def _read_port(self) -> int:
        assert self._driver.stdout is not None
        for line in self._driver.stdout:
            if found := re.search(r"started successfully on port (\d+)", line):
                return int(found.group(1))
        raise RuntimeError("chromedriver did not start")
