"""A server of this machine that runs as long as a test needs it, and what it says of itself."""

import contextlib
import os
import signal
import subprocess
import time
import urllib.request


@contextlib.contextmanager
def served(exotherm, *options, **environment):
    """Its address; in the end it is stopped and must end in good order."""
    command = [exotherm, "serve", "--port", "0", *options]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment})
    try:
        yield server.stdout.readline().split()[-1]
        server.send_signal(signal.SIGTERM)
        assert server.wait(40) == 0, "it ends in good order"
    finally:
        server.kill()


def metrics(url):
    """The samples of /metrics, by name and labels."""
    text = urllib.request.urlopen(f"{url}/metrics", timeout=30).read().decode()
    samples = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in samples}


def settle(url):
    """Waits until nothing runs or waits and every block of the cache is free or kept for another time."""
    names = ["exotherm_requests_waiting{", "exotherm_requests_running{", "exotherm_kv_blocks{"]
    for _ in range(400):
        busy = {
            name: value
            for name, value in metrics(url).items()
            if value and any(map(name.startswith, names)) and not name.endswith(('"free"}', '"cached"}'))
        }
        if not busy:
            return
        time.sleep(0.05)
    raise AssertionError(f"something stayed behind: {busy}")
