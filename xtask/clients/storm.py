"""A storm of good, bad, cut-off and slow requests on a server of this machine; what is accepted must be answered, and
nothing may stay behind.

usage: storm.py EXOTHERM MODEL SECONDS
"""

import collections
import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request

CLIENTS = 40
PLANNED_MIB = 200
# The program, the tokenizer and what connections need, however long the storm lasts.
BESIDE_MIB = 64
KINDS = ["whole", "whole", "stream", "stream", "cut", "unread", "slow", "broken", "huge", "unknown"]
# What each kind may be answered. A client that goes away early hears nothing.
ALLOWED = {
    "whole": {"200", "429"},
    "stream": {"200", "429"},
    "slow": {"200", "429"},
    "broken": {"400"},
    "huge": {"413"},
    "unknown": {"400"},
    "cut": {"left"},
    "unread": {"left"},
}


def body_of(kind, numbers):
    if kind == "huge":
        return b" " * (9 << 20)
    question = {"role": "user", "content": "x " * numbers.randint(1, 300)}
    body = {"messages": [question], "max_tokens": numbers.randint(1, 40), "ignore_eos": True}
    body["stream"] = kind in ("stream", "cut", "unread")
    if kind == "unknown":
        body["colour"] = "red"
    text = json.dumps(body).encode()
    return text[: numbers.randrange(len(text))] if kind == "broken" else text


def ask(address, kind, numbers):
    """One request; the status of its reply."""
    body = body_of(kind, numbers)
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
    request = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
    with socket.create_connection(address, timeout=60) as connection:
        piece = max(1, len(request) // 5) if kind == "slow" else len(request)
        for start in range(0, len(request), piece):
            connection.sendall(request[start : start + piece])
            time.sleep(0.05 if kind == "slow" else 0)
        if kind == "cut":
            connection.recv(200)
        elif kind == "unread":
            time.sleep(numbers.random())
        if kind in ("cut", "unread"):
            return "left"
        reply = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    status = reply[9:12].decode()
    assert kind != "stream" or status != "200" or b"data: [DONE]" in reply, "a stream broke off"
    return status


def client(address, seed, end, counts, faults):
    numbers = random.Random(seed)
    while time.time() < end and not faults:
        kind = numbers.choice(KINDS)
        try:
            status = ask(address, kind, numbers)
            assert status in ALLOWED[kind], f"{kind}: {status!r}"
            counts[kind, status] += 1
        except (AssertionError, OSError) as fault:
            faults.append(f"{kind}: {fault!r}")


def metric(url, name):
    text = urllib.request.urlopen(f"{url}/metrics", timeout=10).read().decode()
    return float(next(line for line in text.splitlines() if line.startswith(name)).split()[-1])


def storm(url, seconds):
    host, port = url.removeprefix("http://").split(":")
    counts, faults = collections.Counter(), []
    end = time.time() + seconds
    arguments = [((host, int(port)), seed, end, counts, faults) for seed in range(CLIENTS)]
    threads = [threading.Thread(target=client, args=each) for each in arguments]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults, faults
    for (kind, status), count in sorted(counts.items()):
        print(f"{kind:8} {status:5} {count}")
    assert {kind for kind, _ in counts} == set(KINDS), "every kind was there"


def settle(url):
    for _ in range(200):
        names = ['exotherm_kv_blocks{model="m",state="used"}', "exotherm_requests_waiting{", "exotherm_requests_running{"]
        if all(metric(url, name) == 0 for name in names):
            return
        time.sleep(0.05)
    raise AssertionError("something stayed behind")


def main():
    exotherm, model, seconds = sys.argv[1:]
    limits = ["--ctx", "1024", "--max-seqs", "8", "--queue", "16", "--memory", f"{PLANNED_MIB}M"]
    command = [exotherm, "serve", "--model", f"m={model}", "--port", "0", *limits]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        url = server.stdout.readline().split()[-1]
        storm(url, float(seconds))
        settle(url)
        resident = metric(url, "exotherm_resident_memory_bytes") / 2**20
        print(f"resident memory: {resident:.1f} MiB, {PLANNED_MIB} are planned for the model")
        assert resident < PLANNED_MIB + BESIDE_MIB
        assert metric(url, 'exotherm_requests_total{model="m",outcome="failed"}') == 0
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) == 0, "it ends in good order"
    finally:
        server.kill()


if __name__ == "__main__":
    main()
