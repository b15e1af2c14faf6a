"""Chromium under the DevTools protocol, over a pipe: nothing but Python and the browser is needed."""

import base64
import collections
import json
import os
import select
import shutil
import subprocess
import tempfile
import time

NAMES = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"]
PATIENCE_S = 60
# What a key is called, for those that type nothing.
KEYS = {"Enter": 13, "Escape": 27, "Tab": 9}
ALT, CONTROL, SHIFT = 1, 2, 8


def found():
    """Where a Chromium is, if there is one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page of a browser without a window."""

    def __init__(self, program):
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        commands, self.out = os.pipe()
        self.into, replies = os.pipe()

        def place():
            # The browser reads commands from 3 and writes to 4. Through high numbers, so that neither overwrites the other.
            high = os.dup2(commands, 60), os.dup2(replies, 61)
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        options = ["--headless=new", "--remote-debugging-pipe", f"--user-data-dir={self.profile.name}"]
        options += ["--no-first-run", "--disable-gpu", "--hide-scrollbars", "--disable-background-networking"]
        # Its sandbox does not work for root; what it opens here is ours.
        options += ["--no-sandbox"] if os.geteuid() == 0 else []
        quiet = subprocess.DEVNULL
        command = [program, *options, "about:blank"]
        self.process = subprocess.Popen(command, preexec_fn=place, pass_fds=(3, 4), stdout=quiet, stderr=quiet)
        os.close(commands)
        os.close(replies)
        self.held, self.number, self.session = b"", 0, None
        self.events = collections.deque(maxlen=100_000)
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "Accessibility"):
            self.call(f"{domain}.enable")

    def close(self):
        self.process.kill()
        self.process.wait()
        self.profile.cleanup()

    def call(self, method, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        reply = self.read(lambda message: message.get("id") == self.number)
        assert "error" not in reply, (method, reply["error"])
        return reply["result"]

    def read(self, wanted):
        """The first message that is wanted; the others are kept as events."""
        end = time.monotonic() + PATIENCE_S
        while True:
            while b"\0" in self.held:
                text, _, self.held = self.held.partition(b"\0")
                message = json.loads(text)
                if wanted(message):
                    return message
                self.events.append(message)
            ready, _, _ = select.select([self.into], [], [], max(0, end - time.monotonic()))
            assert ready, "the browser does not answer"
            piece = os.read(self.into, 1 << 16)
            assert piece, "the browser has gone"
            self.held += piece

    def open(self, url):
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, script):
        """The value of an expression in the page; a promise's when it is there."""
        options = {"returnByValue": True, "awaitPromise": True, "userGesture": True}
        reply = self.call("Runtime.evaluate", expression=script, **options)
        assert "exceptionDetails" not in reply, (script, reply["exceptionDetails"])
        return reply["result"].get("value")

    def until(self, script, patience_s=PATIENCE_S):
        """Waits for an expression to be true, and tells its value."""
        end = time.monotonic() + patience_s
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"never came true: {script}"
            time.sleep(0.02)
        return value

    def press(self, key, modifiers=0):
        """One key; what a letter types goes in unless Alt or Control is held."""
        code = KEYS.get(key) or (ord(key.upper()) if key.isalnum() else 0)
        name = f"Key{key.upper()}" if len(key) == 1 else key
        text = "\r" if key == "Enter" else key if len(key) == 1 and not modifiers & (ALT | CONTROL) else ""
        about = {"key": key, "code": name, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **about)
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def type(self, text):
        for character in text:
            self.press(character)

    def look(self, width, height, scheme):
        """How large the page is shown and which colours its user prefers."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def screenshot(self, path):
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def complaints(self):
        """Errors and warnings that the page or the browser wrote to the console."""
        told = []
        for event in self.events:
            method, params = event.get("method"), event.get("params", {})
            if method == "Runtime.exceptionThrown":
                told.append(params["exceptionDetails"])
            elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
                told.append(params["entry"]["text"])
            elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
                told.append(params["args"])
        return told

    def requested(self):
        """Every address that the page asked for."""
        asked = (event for event in self.events if event.get("method") == "Network.requestWillBeSent")
        return [event["params"]["request"]["url"] for event in asked]

    def controls(self):
        """What a user of a screen reader can operate: pairs of role and name."""
        operated = {"button", "textbox", "combobox", "spinbutton", "MenuListPopup", "checkbox", "slider", "link"}
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        told = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node["ignored"]]
        return [(role, name) for role, name in told if role in operated and role != "MenuListPopup"]
