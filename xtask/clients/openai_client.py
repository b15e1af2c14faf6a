"""Drives `exotherm serve` with the official client, as its users do.

usage: openai_client.py EXOTHERM MODEL
"""

import math
import signal
import subprocess
import sys

import openai

QUESTION = [{"role": "user", "content": "Name three rivers."}]
KEY = "a-key-for-this-test"


def ask(client, **extra):
    return client.chat.completions.create(**{"model": "m", "messages": QUESTION, "max_tokens": 12, "seed": 7, **extra})


def complete(client, **extra):
    return client.completions.create(**{"model": "m", "prompt": "The sea is", "max_tokens": 12, "seed": 7, **extra})


def models(client):
    assert [model.id for model in client.models.list()] == ["m"]
    assert client.models.retrieve("m").owned_by == "exotherm"


def chat(client):
    reply = ask(client)
    assert reply.object == "chat.completion" and reply.model == "m"
    assert reply.choices[0].message.role == "assistant" and reply.choices[0].message.content
    assert reply.choices[0].finish_reason == "length" and reply.usage.completion_tokens == 12
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + 12
    # What a client got it may send back as it is.
    turns = QUESTION + [reply.choices[0].message.model_dump(), {"role": "user", "content": "More."}]
    assert ask(client, messages=turns).usage.prompt_tokens > reply.usage.prompt_tokens


def completions(client):
    reply = complete(client)
    assert reply.object == "text_completion" and reply.choices[0].text
    assert complete(client, echo=True).choices[0].text == "The sea is" + reply.choices[0].text
    many = complete(client, prompt=["The sea is", "The sky is"], n=2)
    assert [choice.index for choice in many.choices] == [0, 1, 2, 3]
    assert many.choices[0].text == reply.choices[0].text
    assert len(complete(client, n=1, best_of=3).choices) == 1


def streams(client):
    whole = ask(client)
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    text = "".join(chunk.choices[0].text for chunk in complete(client, stream=True))
    assert text == complete(client).choices[0].text


def logprobs(client):
    content = ask(client, logprobs=True, top_logprobs=5, temperature=0).choices[0].logprobs.content
    assert len(content) == 12
    for token in content:
        assert token.logprob <= 0 and len(token.top_logprobs) == 5
        assert bytes(token.bytes).decode(errors="replace") == token.token
        assert math.isclose(token.top_logprobs[0].logprob, token.logprob)
        assert sum(math.exp(top.logprob) for top in token.top_logprobs) < 1.001
    told = complete(client, logprobs=3, temperature=0)
    assert "".join(told.choices[0].logprobs.tokens) == told.choices[0].text


def echoes(client):
    """As those who measure models ask: how likely is this text?"""
    ask = {"prompt": ["The sea is deep and blue.", "The sea is"], "echo": True, "logprobs": 1, "max_tokens": 0}
    reply = complete(client, **ask)
    assert reply.usage.completion_tokens == 0
    for prompt, choice in zip(ask["prompt"], reply.choices):
        log = choice.logprobs
        assert choice.text == prompt and choice.finish_reason == "length" and "".join(log.tokens) == prompt
        assert log.token_logprobs[0] is None and log.top_logprobs[0] is None
        assert all(logprob < 0 for logprob in log.token_logprobs[1:])
        for token, offset in zip(log.tokens, log.text_offset):
            assert prompt[offset:].startswith(token)
        for token, logprob, top in zip(log.tokens[1:], log.token_logprobs[1:], log.top_logprobs[1:]):
            # The likeliest, and the token itself where it is another.
            likeliest, most = max(top.items(), key=lambda entry: entry[1])
            assert len(top) <= 2 and math.isclose(top[token], logprob)
            assert math.isclose(most, logprob) if likeliest == token else most >= logprob
    # What comes after the prompt is told after it, and what was chosen is told in the same way when it is given.
    longer = complete(client, echo=True, logprobs=1, max_tokens=6, temperature=0).choices[0]
    assert longer.text.startswith("The sea is") and "".join(longer.logprobs.tokens) == longer.text
    assert len(longer.logprobs.tokens) == len(reply.choices[1].logprobs.tokens) + 6
    given = complete(client, **{**ask, "prompt": longer.text}).choices[0]
    if given.logprobs.tokens == longer.logprobs.tokens:
        assert given.logprobs == longer.logprobs
    chunks = list(complete(client, stream=True, **{**ask, "prompt": "The sea is"}))
    assert chunks[0].choices[0].text == "The sea is" and chunks[-1].choices[0].finish_reason == "length"
    assert chunks[0].choices[0].logprobs.token_logprobs == reply.choices[1].logprobs.token_logprobs


def embeddings(client):
    texts = ["A river runs to the sea.", "The river flows into the ocean.", "Interest rates rose by a quarter point."]
    river, stream, rates = [entry.embedding for entry in client.embeddings.create(model="m", input=texts).data]
    assert math.isclose(sum(v * v for v in river), 1, rel_tol=1e-4)
    assert nearness(river, stream) > nearness(river, rates)
    plain = client.embeddings.create(model="m", input=texts[0], encoding_format="float").data[0].embedding
    assert all(math.isclose(a, b, abs_tol=1e-6) for a, b in zip(plain, river))


def nearness(a, b):
    return sum(x * y for x, y in zip(a, b))


def stops_and_seeds(client):
    whole = ask(client, max_tokens=30)
    text = whole.choices[0].message.content
    assert ask(client, max_tokens=30).choices[0].message.content == text
    assert ask(client, max_tokens=30, seed=8, temperature=2).choices[0].message.content != text
    stop = text[9:14]
    cut = ask(client, max_tokens=30, stop=[stop])
    assert cut.choices[0].message.content == text[: text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"
    choices = ask(client, n=3).choices
    assert len({choice.message.content for choice in choices}) > 1
    only = ask(client, logit_bias={"28": 100}, max_tokens=3, logprobs=True).choices[0].logprobs.content
    assert len({token.token for token in only}) == 1


def refused(error, status, param, call):
    try:
        call()
    except error as caught:
        assert caught.status_code == status and caught.param == param, caught
        assert caught.request_id.startswith("req-")
        return
    raise AssertionError(f"{error} was expected")


def errors(client):
    bad = openai.BadRequestError
    refused(bad, 400, "temperature", lambda: ask(client, temperature=3))
    refused(bad, 400, "colour", lambda: ask(client, extra_body={"colour": "red"}))
    refused(bad, 400, "max_tokens", lambda: ask(client, max_tokens=2**63))
    refused(bad, 400, "max_tokens", lambda: ask(client, max_tokens=0))
    refused(bad, 400, "prompt[1]", lambda: complete(client, prompt=["fine", "x " * 2000]))
    refused(bad, 400, "tools", lambda: ask(client, tools=[{"type": "function", "function": {"name": "f"}}]))
    refused(bad, 400, "suffix", lambda: complete(client, suffix="x"))
    refused(bad, 400, "messages", lambda: ask(client, messages=[]))
    refused(openai.NotFoundError, 404, "model", lambda: ask(client, model="absent"))
    stranger = client.with_options(api_key="wrong")
    refused(openai.AuthenticationError, 401, None, lambda: ask(stranger))


def extensions(client):
    reply = ask(client, extra_body={"top_k": 1, "min_p": 0.1, "repetition_penalty": 1.1, "receipt": True})
    assert reply.timings["generated_tokens"] == 12
    assert reply.receipt["seed"] == 7 and len(reply.receipt["template_sha256"]) == 64


def main():
    exotherm, model = sys.argv[1:]
    command = [exotherm, "serve", "--model", f"m={model}", "--port", "0", "--ctx", "1024", "--api-key", KEY]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        address = server.stdout.readline().split()[-1]
        client = openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0, timeout=60)
        for test in [models, chat, completions, streams, logprobs, echoes, embeddings, stops_and_seeds, errors, extensions]:
            test(client)
            print(f"{test.__name__}: fine")
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) == 0, "it ends in good order"
    finally:
        server.kill()


if __name__ == "__main__":
    main()
