"""Every endpoint under requests made from the server's own description of itself.

What the description allows must be answered as it says; what it does not allow must be refused with an error that names
what is wrong. The same seed makes the same requests.

usage: fuzz.py EXOTHERM MODEL SECONDS [SEED]
"""

import collections
import http.client
import json
import random
import sys
import time
import urllib.parse
import urllib.request

from schema import Schema, short
from served import metrics, served, settle

# At most so many rounds over all operations, however fast the machine is; the least that must have been done.
ROUNDS = 200
LEAST_ROUNDS = 3
# Tokens that every vocabulary has.
TOKENS = 200


def keep_rules(path, body, numbers):
    """Makes of a body that fits its schema one that also keeps what the descriptions say in words."""
    body = {name: value for name, value in body.items() if name != "model"}
    if numbers.random() < 0.5:
        body["model"] = numbers.choice(["m", None])
    for name in ("prompt", "input", "tokens"):
        if name in body:
            body[name] = known_tokens(body[name])
    if path not in ("/v1/chat/completions", "/v1/completions"):
        return body
    body["max_tokens"] = numbers.randint(0 if path == "/v1/completions" else 1, 5)
    body.pop("max_completion_tokens", None)
    if "logit_bias" in body:
        body["logit_bias"] = {str(numbers.randrange(TOKENS)): v for v in (body["logit_bias"] or {}).values()}
    if body.get("n"):
        body["n"] = min(body["n"], 3)
    if not body.get("stream"):
        body.pop("stream_options", None)
    if body.get("best_of"):
        body["best_of"] = None if body.get("stream") else (body.get("n") or 1) + numbers.randint(0, 2)
    if path == "/v1/chat/completions" and not body.get("logprobs"):
        body.pop("top_logprobs", None)
    return body


def known_tokens(value):
    if isinstance(value, list):
        return [known_tokens(item) for item in value]
    return value % TOKENS if isinstance(value, int) else value


def mangled(text, numbers):
    """Bytes that are hardly JSON any more."""
    data = bytearray(text)
    how = numbers.randrange(5)
    if how == 0:
        return bytes(data[: numbers.randrange(len(data))])
    if how == 1:
        data[numbers.randrange(len(data))] = numbers.randrange(256)
    elif how == 2:
        at = numbers.randrange(len(data))
        data[at:at] = numbers.choice([b"\\ud800", b"\xff", b"\x00", b"[" * 5000, b"{}", b"NaN", b"1e999", b","])
    elif how == 3:
        return bytes(numbers.randrange(256) for _ in range(numbers.randrange(200)))
    else:
        return numbers.choice([b"", b"null", b"[]", b"1", b'"x"', b"true", b'{"a":' * 200, b"\xef\xbb\xbf" + text])
    return bytes(data)


class Fuzz:
    def __init__(self, url, seed):
        self.host = url.removeprefix("http://")
        self.document = json.load(urllib.request.urlopen(f"{url}/openapi.json", timeout=30))
        self.schemas = Schema(self.document)
        self.counts = collections.Counter()
        self.seed = seed
        self.connection = http.client.HTTPConnection(self.host, timeout=60)
        self.operations = [
            (path, method.upper(), operation)
            for path, methods in self.document["paths"].items()
            for method, operation in methods.items()
        ]

    def ask(self, method, path, body=None, **headers):
        """Status, headers and body of a reply; a connection that breaks off is a fault of the server."""
        self.connection.request(method, path, body, headers)
        reply = self.connection.getresponse()
        return reply.status, reply.headers, reply.read()

    def check(self, operation, reply, allowed):
        """A reply must have one of these statuses and be as it is described."""
        status, headers, body = reply
        assert status in allowed, f"{status} instead of {sorted(allowed)}: {body[:300]}"
        assert headers["x-request-id"], "every reply has a name"
        described = operation["responses"].get(str(status)) or operation["responses"]["default"]
        if "$ref" in described:
            described = self.document["components"]["responses"][described["$ref"].rsplit("/", 1)[1]]
        content = described.get("content")
        if not content:
            return
        kind = headers["content-type"].split(";")[0]
        assert kind in content, f"{kind} is not described"
        if kind == "application/json":
            faults = self.schemas.faults(content[kind]["schema"], json.loads(body), "reply")
            assert not faults, faults
        elif kind == "text/event-stream":
            check_stream(body)

    def get(self, path, operation, numbers):
        """A path as it is described, with a query that nobody asked for."""
        name = numbers.choice(["m", "absent", "a b", "ü/..", "%", "x" * 500])
        query = numbers.choice(["", "", "?x=1", "?%ff"])
        place = path.replace("{id}", urllib.parse.quote(name, safe="/")) + query
        known = "{id}" not in path or name == "m"
        self.check(operation, self.ask("GET", place), {200} if known else {404})
        self.counts[path, "valid" if known else "wrong"] += 1

    def post(self, path, operation, numbers):
        """One body that is right, one that keeps to its schema only, one that is wrong, one that is hardly JSON."""
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        right = keep_rules(path, self.schemas.make(schema, numbers), numbers)
        self.send(path, operation, "valid", right, {200})
        loose = self.schemas.make(schema, numbers)
        if "completions" in path:
            loose["max_tokens"] = 1
        self.send(path, operation, "loose", loose, {200, 400, 404, 429})
        wrong, where = self.schemas.spoil(schema, right, numbers)
        error = self.send(path, operation, "wrong", wrong, {400})["error"]
        named = (error["param"] or "").rstrip("…").split("[")[0].split(".")[0]
        assert any(name.startswith(named) and error["param"] is not None for name in where), (path, wrong, error)
        bytes_ = mangled(json.dumps(right).encode(), numbers)
        self.send(path, operation, "broken", bytes_, {400} if not is_object(bytes_) else {200, 400, 404})

    def send(self, path, operation, kind, body, allowed):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        try:
            reply = self.ask("POST", path, data, **{"content-type": "application/json"})
            self.check(operation, reply, allowed)
        except Exception as fault:
            raise AssertionError(f"{kind} request to {path}: {data[:2000]!r}") from fault
        self.counts[path, kind] += 1
        return json.loads(reply[2]) if reply[0] != 200 else None

    def others(self, path, operation, numbers):
        """What is not described is no method of this path, and no path."""
        methods = {"GET", "POST", "PUT", "PATCH", "DELETE", "TRACE", "BREW"}
        method = numbers.choice(sorted(methods - {m.upper() for m in self.document["paths"][path]}))
        place = path.replace("{id}", "m")
        described = {"responses": {"default": {"$ref": "#/components/responses/Error"}}}
        self.check(described, self.ask(method, place), {405})
        self.check(described, self.ask(method, place.rstrip("/") + numbers.choice(["/x", "x", "%00", ";"])), {404, 405})
        self.counts[path, "undescribed"] += 2

    def run(self, seconds):
        """The rounds that were done in the time."""
        end = time.monotonic() + seconds
        for turn in range(ROUNDS):
            for path, method, operation in self.operations:
                numbers = random.Random(f"{self.seed} {turn} {path}")
                (self.get if method == "GET" else self.post)(path, operation, numbers)
                self.others(path, operation, numbers)
            if time.monotonic() > end:
                return turn + 1
        return ROUNDS


def is_object(data):
    """Whether it may be an object to a reader who is stricter than Python's."""
    try:
        return isinstance(json.loads(data), dict)
    except (ValueError, RecursionError):
        return False


def check_stream(body):
    events = body.decode().split("\n\n")
    assert events.pop() == "", "every event ends with an empty line"
    data = [event.removeprefix("data: ") for event in events if not event.startswith(":")]
    assert data.pop() == "[DONE]", "a stream says that it is over"
    chunks = [json.loads(each) for each in data]
    assert not any("error" in chunk for chunk in chunks), short(chunks)
    ended = [choice["index"] for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"]]
    assert sorted(ended) == list(range(len(ended))) and ended, "every choice ends once"


def check_the_checker():
    """A test that could not fail would prove nothing."""
    schemas = Schema({"x": {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer", "minimum": 1}}}})
    at = {"$ref": "#/x"}
    assert not schemas.faults(at, {"a": 1}) and all(schemas.faults(at, wrong) for wrong in [{}, {"a": 0}, {"a": True}, []])
    whole = {"allOf": [at], "properties": {"b": {"enum": [None, "x"]}}, "unevaluatedProperties": False}
    assert not schemas.faults(whole, {"a": 1, "b": None})
    assert schemas.faults(whole, {"a": 1, "b": "y"}) and schemas.faults(whole, {"a": 1, "c": 1})


def main():
    exotherm, model, seconds, *seed = sys.argv[1:]
    check_the_checker()
    limits = ["--ctx", "1024", "--max-seqs", "8", "--queue", "16", "--memory", "200M"]
    with served(exotherm, "--model", f"m={model}", *limits) as url:
        fuzz = Fuzz(url, *(seed or ["1"]))
        rounds = fuzz.run(float(seconds))
        kinds = ["valid", "loose", "wrong", "broken", "undescribed"]
        print("requests              ", *(f"{kind:>11}" for kind in kinds))
        for path in fuzz.document["paths"]:
            print(f"{path:22}", *(f"{fuzz.counts[path, kind]:11}" for kind in kinds))
        print(f"{sum(fuzz.counts.values())} requests in {rounds} rounds")
        assert rounds >= LEAST_ROUNDS, "there was no time for all kinds of requests"
        settle(url)
        samples = metrics(url)
        assert samples['exotherm_requests_total{model="m",outcome="failed"}'] == 0
        assert not [name for name in samples if 'status="5' in name], "no reply was the server's fault"


if __name__ == "__main__":
    main()
