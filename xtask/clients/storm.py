"""A storm of good, bad, cut-off and slow requests on a server of this machine; what is accepted must be answered, memory
must stay as it is, and nothing may be left behind.

usage: storm.py EXOTHERM MODEL SECONDS
"""

import collections
import json
import random
import socket
import statistics
import sys
import threading
import time
import urllib.request

from served import metrics, served, settle

CLIENTS = 40
PLANNED_MIB = 200
# The program, the tokenizer and what connections need, however long the storm lasts.
BESIDE_MIB = 64
# How much more memory there may be at the end than at the beginning; less than this is not told apart from noise.
GROWN_SHARE = 0.03
# Of the time, before memory is looked at: the cache fills, and connections and threads come to be.
WARM_UP_SHARE = 0.2
KINDS = [
    "whole", "whole", "stream", "stream", "many", "complete", "embed", "cut", "unread", "slow", "broken", "huge",
    "unknown", "wrong", "absent",
]  # fmt: skip
# What each kind may be answered. A client that goes away early hears nothing.
ALLOWED = {
    "whole": {"200", "429"},
    "stream": {"200", "429"},
    "many": {"200", "429"},
    "complete": {"200", "429"},
    "embed": {"200", "429"},
    "slow": {"200", "429"},
    "broken": {"400"},
    "huge": {"413"},
    "unknown": {"400"},
    "wrong": {"400"},
    "absent": {"404"},
    "cut": {"left"},
    "unread": {"left"},
}
# Beginnings are sometimes the same and mostly not.
WORDS = "river sea sky stone salt moon field bread glass wind rope lamp".split()
PATHS = {"complete": "/v1/completions", "embed": "/v1/embeddings"}


def body_of(kind, numbers):
    if kind == "huge":
        return b" " * (9 << 20)
    text = " ".join(numbers.choices(WORDS, k=numbers.randint(1, 200)))
    if kind == "embed":
        return json.dumps({"input": [text, "y"]}).encode()
    body = {"max_tokens": numbers.randint(1, 40), "ignore_eos": True}
    body |= {"prompt": text} if kind == "complete" else {"messages": [{"role": "user", "content": text}]}
    if numbers.random() < 0.3:
        body["priority"] = numbers.randint(-2, 2)
    body["stream"] = kind in ("stream", "cut", "unread")
    if kind == "many":
        body |= {"n": 3, "logprobs": True, "top_logprobs": 3, "temperature": 1.5, "stop": ["\n\n"]}
    elif kind == "unknown":
        body["colour"] = "red"
    elif kind == "wrong":
        name, value = numbers.choice([("temperature", 9), ("max_tokens", 2**63), ("n", "x"), ("logit_bias", {"-1": 1})])
        body[name] = value
    elif kind == "absent":
        body["model"] = "absent"
    text = json.dumps(body).encode()
    return text[: numbers.randrange(len(text))] if kind == "broken" else text


def ask(address, kind, numbers):
    """One request; the status of its reply."""
    body = body_of(kind, numbers)
    path = PATHS.get(kind, "/v1/chat/completions")
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
    request = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
    with socket.create_connection(address, timeout=120) as connection:
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
            # A little of the patience that it was asked for.
            time.sleep(0.2 if status == "429" else 0)
        except (AssertionError, OSError) as fault:
            faults.append(f"{kind}: {fault!r}")


def fill(url):
    """Uses every block of the cache once, so that its memory is there from the beginning."""
    numbers = random.Random(0)
    blocks = sum(blocks_of(metrics(url)))
    for _ in range(blocks * 16 // 900 + 1):
        body = {"prompt": [numbers.randrange(1000, 40_000) for _ in range(1000)], "max_tokens": 1}
        urllib.request.urlopen(f"{url}/v1/completions", json.dumps(body).encode(), timeout=120).read()


def blocks_of(samples):
    return [int(value) for name, value in samples.items() if name.startswith("exotherm_kv_blocks{")]


def watch(url, end, faults):
    """Resident memory in MiB, twice a second."""
    seen = []
    while time.time() < end and not faults:
        seen.append(metrics(url)["exotherm_resident_memory_bytes"] / 2**20)
        time.sleep(0.5)
    return seen


def storm(url, seconds):
    """Resident memory while it lasts."""
    host, port = url.removeprefix("http://").split(":")
    counts, faults = collections.Counter(), []
    end = time.time() + seconds
    arguments = [((host, int(port)), seed, end, counts, faults) for seed in range(CLIENTS)]
    threads = [threading.Thread(target=client, args=each) for each in arguments]
    for thread in threads:
        thread.start()
    seen = watch(url, end, faults)
    for thread in threads:
        thread.join()
    assert not faults, faults
    for (kind, status), count in sorted(counts.items()):
        print(f"{kind:8} {status:5} {count}")
    print(f"{sum(counts.values())} requests")
    assert {kind for kind, _ in counts} == set(KINDS), "every kind was there"
    return seen


def check_memory(seen):
    """Memory may not grow: the last third of the time is held to the first after the warm-up."""
    seen = seen[int(len(seen) * WARM_UP_SHARE) :]
    third = len(seen) // 3
    early, late = statistics.median(seen[:third]), statistics.median(seen[-third:])
    print(f"resident memory: {early:.1f} MiB early, {late:.1f} late, {max(seen):.1f} at most; {PLANNED_MIB} are planned")
    assert late <= early * (1 + GROWN_SHARE), "memory grows"
    assert max(seen) < PLANNED_MIB + BESIDE_MIB, "more memory than is planned"


def check_books(before, after):
    """Every block is where it was, and every request ended in some way."""
    blocks = [sum(blocks_of(samples)) for samples in (before, after)]
    assert blocks[0] == blocks[1] > 0, f"blocks were lost or made: {blocks}"
    assert after['exotherm_kv_blocks{model="m",state="used"}'] == 0
    assert after['exotherm_requests_total{model="m",outcome="failed"}'] == 0
    assert not [name for name in after if 'status="5' in name], "no reply was the server's fault"


def main():
    exotherm, model, seconds = sys.argv[1:]
    limits = ["--ctx", "1024", "--max-seqs", "8", "--queue", "16", "--memory", f"{PLANNED_MIB}M"]
    with served(exotherm, "--model", f"m={model}", *limits) as url:
        before = metrics(url)
        fill(url)
        seen = storm(url, float(seconds))
        settle(url)
        check_memory(seen)
        check_books(before, metrics(url))


if __name__ == "__main__":
    main()
