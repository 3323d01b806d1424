"""A headless Chromium, driven over a pipe by its own protocol, so that no driver has to be installed."""

import base64
import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import tempfile
import time

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)


class Browser:
    """One tab.

    Attributes:
        messages: What the page wrote to its console, and its uncaught errors; violations of its policy are among them.
    """

    def __init__(self, reading, writing):
        self._reading, self._writing = reading, writing
        self._rest = b""
        self._number = 0
        self.messages = []
        self._session = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._writing, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def _receive(self):
        while b"\0" not in self._rest:
            part = os.read(self._reading, 1 << 20)
            assert part, "the browser has ended"
            self._rest += part
        found, _, self._rest = self._rest.partition(b"\0")
        answer = json.loads(found)
        if answer.get("method") in {"Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"}:
            self.messages.append(json.dumps(answer["params"]))
        return answer

    def open(self, url):
        self.call("Page.navigate", url=url)
        self.until(f"location.href === {url!r} && document.readyState === 'complete'")

    def run(self, code):
        """The value of a JavaScript expression, once its promise is there."""
        found = self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, code, seconds=30.0):
        """Waits until an expression is true."""
        ends = time.monotonic() + seconds
        while not self.run(f"Boolean({code})"):
            assert time.monotonic() < ends, f"never true: {code}\n{self.messages}"
            time.sleep(0.05)

    def size(self, width, height, *, phone=False, dark=False):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, path):
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextlib.contextmanager
def browser():
    """Runs a browser while the block runs."""
    ours_in, theirs_out = os.pipe()
    theirs_in, ours_out = os.pipe()
    # The protocol's pipes are 3 and 4, which may be some of these, so that the shell gets others.
    given = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (theirs_in, theirs_out)]
    for end in (theirs_in, theirs_out):
        os.close(end)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        command += ["--hide-scrollbars", f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"]
        shell = ["bash", "-c", f'exec "$@" 3<&{given[0]} 4>&{given[1]}', "browser", *command]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(shell, pass_fds=given, **quiet)
        for end in given:
            os.close(end)
        try:
            yield Browser(ours_in, ours_out)
        finally:
            process.terminate()
            process.wait(30)
            os.close(ours_in)
            os.close(ours_out)
