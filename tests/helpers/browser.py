"""Drive a headless Chromium through two pipes (the DevTools protocol) with the standard library only."""

import json
import os
import shutil
import subprocess
import tempfile
import time
from base64 import b64decode
from typing import Any


def find_chromium() -> str | None:
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
    """One page. Records its network requests and the errors in its console."""

    def __init__(self, binary: str):
        self.profile = tempfile.TemporaryDirectory()
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run"]
        flags += [
            f"--user-data-dir={self.profile.name}",
            "--hide-scrollbars",
            "--disable-dev-shm-usage",
            "about:blank",
        ]

        def connect_pipes():  # the protocol reads from descriptor 3 and writes to descriptor 4
            a, b = os.dup(to_browser), os.dup(from_browser)
            os.dup2(a, 3), os.dup2(b, 4)

        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen([binary, *flags], close_fds=False, preexec_fn=connect_pipes, **quiet)
        os.close(to_browser), os.close(from_browser)
        self.number, self.rest, self.session = 0, b"", None
        self.requests: list[str] = []
        self.errors: list[str] = []
        target = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        opened = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self.session = opened["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command of the protocol and return its result; record the events that arrive meanwhile."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        os.write(
            self._out, json.dumps(message | ({"sessionId": self.session} if self.session else {})).encode() + b"\0"
        )
        while True:
            while b"\0" not in self.rest:
                if not (more := os.read(self._in, 2**16)):
                    raise RuntimeError("The browser has exited.")
                self.rest += more
            line, _, self.rest = self.rest.partition(b"\0")
            answer = json.loads(line)
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self._remember(answer.get("method"), answer.get("params", {}))

    def _remember(self, event: str | None, params: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif event == "Network.webSocketCreated":
            self.requests.append(params["url"])
        elif event == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(params["exceptionDetails"])[:300])
        elif event == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            self.errors.append(json.dumps(params["args"])[:300])
        elif event == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(params["entry"]["text"] + " " + params["entry"].get("url", ""))

    def open(self, url: str, width: int = 1100, height: int = 900, theme: str = "light") -> None:
        features = [{"name": "prefers-color-scheme", "value": theme}]
        self.call("Emulation.setEmulatedMedia", features=features)
        self.resize(width, height)
        self.call("Page.navigate", url="about:blank")
        self.until("location.href == 'about:blank'")
        self.errors.clear()  # errors of the previous page as it was closed
        self.call("Page.navigate", url=url)

    def resize(self, width: int, height: int) -> None:
        shape = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **shape)

    def value(self, script: str) -> Any:
        """Return the value of a JavaScript expression."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{script}: {answer['exceptionDetails']['exception'].get('description')}")
        return answer["result"].get("value")

    def until(self, script: str, seconds: float = 20) -> Any:
        """Return the first true value of an expression; raise AssertionError if it stays false for `seconds`."""
        end = time.monotonic() + seconds
        while not (value := self.value(script)):
            assert time.monotonic() < end, f"not true within {seconds} s: {script}"
            time.sleep(0.05)
        return value

    def click(self, script: str) -> None:
        """Click the middle of the element that an expression returns."""
        self.until(f"!!({script})")
        box = self.value(
            f"(e => {{ e.scrollIntoView({{block: 'center'}}); let r = e.getBoundingClientRect();"
            f" return [r.x + r.width / 2, r.y + r.height / 2] }})({script})"
        )
        for kind in ("mousePressed", "mouseReleased"):
            at = {"x": box[0], "y": box[1], "button": "left", "clickCount": 1}
            self.call("Input.dispatchMouseEvent", type=kind, **at)

    def key(self, name: str, code: int) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=code)

    def write(self, selector: str, text: str) -> None:
        """Replace the text of a field as a user does: focus it, select all, type."""
        self.value(f"(e => {{ e.focus(); e.select() }})(document.querySelector({json.dumps(selector)}))")
        self.call("Input.insertText", text=text) if text else self.key("Delete", 46)

    def picture(self) -> bytes:
        """Return a screenshot as PNG."""
        return b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(20)
        os.close(self._out), os.close(self._in)
        self.profile.cleanup()


__all__ = ["Browser", "find_chromium"]
