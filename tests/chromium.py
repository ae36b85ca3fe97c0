"""A headless Chromium by its own protocol, for test_browser.py and test_lab.py: opens pages, hears every request."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import websocket

FLAGS = [
    *("--headless", "--no-sandbox", "--no-first-run", "--hide-scrollbars", "--remote-debugging-port=0"),
    *("--disable-gpu", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"),  # WebGL in software
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic"),
    "--proxy-server=127.0.0.1:9",
]


def where() -> str | None:
    """The browser's program, if there is one."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    return next((found for name in names if (found := shutil.which(name))), None)


class Chromium:
    """One browser with one page."""

    def __init__(self, local: bool = False):
        """Nothing but files can be reached, and what this machine itself serves if that is asked for."""
        self.folder = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        rules = "MAP * ~NOTFOUND" + ", EXCLUDE 127.0.0.1" * local
        command = [where(), *FLAGS, f"--host-resolver-rules={rules}", f"--user-data-dir={self.folder.name}"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "stdin": subprocess.DEVNULL}
        self.process = subprocess.Popen([*command, "about:blank"], **quiet, env=os.environ | {"HOME": self.folder.name})
        port = Path(self.folder.name, "DevToolsActivePort")
        deadline = time.monotonic() + 60
        while not port.exists() or port.read_text().count("\n") < 1:
            assert self.process.poll() is None and time.monotonic() < deadline, "Chromium does not start"
            time.sleep(0.05)
        number, path = port.read_text().splitlines()[:2]
        address = f"ws://127.0.0.1:{number}{path}"
        self.socket = websocket.create_connection(address, timeout=60, suppress_origin=True, http_no_proxy=["*"])
        self.asked, self.session, self.events = 0, None, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> "Chromium":
        return self

    def __exit__(self, *_) -> None:
        self.session = None
        try:
            self.call("Browser.close")
        finally:
            self.socket.close()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
            self.folder.cleanup()

    def call(self, method: str, **parameters):
        """Ask the browser for something, and wait for its answer; what it tells meanwhile is kept in events."""
        self.asked += 1
        message = {"id": self.asked, "method": method, "params": parameters}
        self.socket.send(json.dumps(message | ({"sessionId": self.session} if self.session else {})))
        while (answer := json.loads(self.socket.recv())).get("id") != self.asked:
            self.events.append(answer)
        assert "error" not in answer, answer["error"]
        return answer["result"]

    # -- a page -------------------------------------------------------------------------------------------------------

    def open(self, address: str, width: int = 1280, height: int = 900, dark: bool = False, scale: int = 1) -> None:
        """Load a page in a window of some size, and wait until it is there; earlier events are forgotten."""
        size = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        self.call("Page.navigate", url=address)
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(json.loads(self.socket.recv()))

    def run(self, script: str):
        """The value of a JavaScript expression; a promise is waited for."""
        asked = {"expression": script, "returnByValue": True, "awaitPromise": True}
        answer = self.call("Runtime.evaluate", **asked)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, script: str, seconds: float = 30):
        """Wait until an expression is true."""
        deadline = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < deadline, f"waited in vain for {script}"
            time.sleep(0.05)
        return value

    def key(self, name: str, text: str = "") -> None:
        for kind in ("keyDown", "keyUp"):
            codes = {"Enter": 13, "Tab": 9, " ": 32}
            more = {"text": text} if text and kind == "keyDown" else {}
            code = {"windowsVirtualKeyCode": codes[name]} if name in codes else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=name, **more, **code)

    def drag(self, x: float, y: float, dx: float, dy: float) -> None:
        """Press the mouse, move it, let it go."""
        button = {"button": "left", "clickCount": 1}
        self.call("Input.dispatchMouseEvent", type="mousePressed", x=x, y=y, **button)
        for step in range(1, 6):
            where = {"x": x + dx * step / 5, "y": y + dy * step / 5}
            self.call("Input.dispatchMouseEvent", type="mouseMoved", buttons=1, **where, **button)
        self.call("Input.dispatchMouseEvent", type="mouseReleased", x=x + dx, y=y + dy, **button)

    def screenshot(self, target: Path, whole: bool = True) -> None:
        """The page, or what is to be seen of it, as PNG."""
        answer = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        Path(target).write_bytes(base64.b64decode(answer["data"]))

    # -- what happened ------------------------------------------------------------------------------------------------

    def complaints(self) -> list[str]:
        """Errors and warnings in the console since the page was opened; that WebGL in software is slow is none."""
        self.run("1")
        found = []
        for event in self.events:
            told = event.get("params", {})
            if event["method"] == "Runtime.exceptionThrown":
                found.append(json.dumps(told["exceptionDetails"]))
            elif event["method"] == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
                found.append(json.dumps(told["entry"]))
            elif event["method"] == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
                found.append(json.dumps(told["args"]))
        return [told for told in found if "GPU stall due to ReadPixels" not in told]

    def requests(self) -> list[str]:
        """Every address that was asked for since the page was opened."""
        self.run("1")
        sent = [
            event["params"]["request"]["url"] for event in self.events if event["method"] == "Network.requestWillBeSent"
        ]
        return [url for url in sent if not url.startswith("data:")]
