#!/usr/bin/env python3
"""The official `openai` client against a running strait that serves its demo.

    pip install openai
    python3 scripts/openai_client_check.py http://127.0.0.1:8000

One line a check, then how many passed; exits 1 if any failed.
"""

import sys
import time
import urllib.error
import urllib.request

import openai

QUESTION = [{"role": "user", "content": "What is 12 + 30?"}]
CHECKS = []


def check(function):
    """Registers a check; its docstring is its line."""
    CHECKS.append(function)
    return function


def same(got, expected):
    assert got == expected, f"{got!r}, expected {expected!r}"


def near(got, expected, tolerance=2e-3):
    assert abs(got - expected) <= tolerance, f"{got}, expected {expected} within {tolerance}"


def chat(client, model, **fields):
    return client.chat.completions.create(**{"model": model, "messages": QUESTION, "temperature": 0, **fields})


def complete(client, model, **fields):
    return client.completions.create(**{"model": model, "temperature": 0, "max_tokens": 12, **fields})


def refused(error, call):
    """What `call` raises, which must be `error`."""
    try:
        call()
    except error as raised:
        return raised
    raise AssertionError(f"{error.__name__} was not raised")


def adds_up(usage):
    assert usage.prompt_tokens > 0 and usage.completion_tokens > 0, usage
    same(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens)


@check
def models(client, model):
    """models: list and retrieve"""
    listed = client.models.list().data
    assert model in [m.id for m in listed], listed
    same(client.models.retrieve(model).id, model)


@check
def chat_whole(client, model):
    """chat: the demo adds"""
    answer = chat(client, model)
    assert "42" in answer.choices[0].message.content, answer
    same(answer.choices[0].message.role, "assistant")
    same(answer.choices[0].finish_reason, "stop")
    adds_up(answer.usage)


@check
def chat_streamed(client, model):
    """chat: streamed text = whole text, usage last"""
    whole = chat(client, model)
    chunks = list(chat(client, model, stream=True, stream_options={"include_usage": True}))
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    same("".join(c.delta.content or "" for c in choices), whole.choices[0].message.content)
    same([c.finish_reason for c in choices if c.finish_reason], ["stop"])
    same(choices[0].delta.role, "assistant")
    same(len({chunk.id for chunk in chunks}), 1)
    assert all(chunk.usage is None for chunk in chunks[:-1]), chunks
    same((chunks[-1].choices, chunks[-1].usage), ([], whole.usage))


@check
def chat_logprobs(client, model):
    """chat: logprobs name the tokens of the answer"""
    answer = chat(client, model, logprobs=True, top_logprobs=2).choices[0]
    tokens = answer.logprobs.content
    assert b"".join(bytes(t.bytes) for t in tokens).decode().startswith(answer.message.content), tokens
    for token in tokens:
        same(len(token.top_logprobs), 2)
        near(token.top_logprobs[0].logprob, token.logprob)


@check
def chat_choices(client, model):
    """chat: n=2 greedy choices are equal, and streams interleave them"""
    answer = chat(client, model, n=2)
    same([c.index for c in answer.choices], [0, 1])
    same(answer.choices[0].message.content, answer.choices[1].message.content)
    texts = ["", ""]
    for chunk in chat(client, model, n=2, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    same(texts, [answer.choices[0].message.content] * 2)


@check
def chat_seed(client, model):
    """chat: the same seed draws the same answer"""
    fields = {"temperature": 1.5, "seed": 11, "max_tokens": 24}
    first, second = (chat(client, model, **fields).choices[0].message.content for _ in range(2))
    same(first, second)


@check
def chat_stop(client, model):
    """chat: a stop string cuts the answer at its first match"""
    whole = chat(client, model).choices[0].message.content
    stop = whole[len(whole) // 2 :][:2]
    answer = chat(client, model, stop=[stop]).choices[0]
    same(answer.message.content, whole[: whole.index(stop)])
    same((answer.finish_reason, answer.stop_reason), ("stop", stop))


@check
def chat_length(client, model):
    """chat: max_completion_tokens ends an answer with length"""
    answer = chat(client, model, max_completion_tokens=2)
    same((answer.choices[0].finish_reason, answer.usage.completion_tokens), ("length", 2))


@check
def completion_streamed(client, model):
    """completions: streamed text = whole text"""
    whole = complete(client, model, prompt="What is 12")
    stream = complete(client, model, prompt="What is 12", stream=True)
    same("".join(c.choices[0].text for c in stream if c.choices), whole.choices[0].text)
    adds_up(whole.usage)


@check
def completion_logprobs(client, model):
    """completions: logprobs of each token, the best first"""
    logprobs = complete(client, model, prompt="What is 12", logprobs=3).choices[0].logprobs
    lengths = {len(logprobs.tokens), len(logprobs.token_logprobs), len(logprobs.top_logprobs), len(logprobs.text_offset)}
    same(lengths, {len(logprobs.tokens)})
    for chosen, top in zip(logprobs.token_logprobs, logprobs.top_logprobs):
        near(max(top.values()), chosen)


@check
def completion_token_ids(client, model):
    """completions: a prompt of token ids = its text"""
    more = {"return_token_ids": True}
    text = complete(client, model, prompt="What is 12", extra_body=more).choices[0]
    ids = text.prompt_token_ids
    same(complete(client, model, prompt=ids).choices[0].text, text.text)
    both = complete(client, model, prompt=[ids, ids]).choices
    same([(c.index, c.text) for c in both], [(0, text.text), (1, text.text)])


@check
def completion_scores(client, model):
    """completions: echo scores a prompt, and agrees with its generation"""
    made = complete(client, model, prompt="What is 12", logprobs=1, extra_body={"return_token_ids": True}).choices[0]
    ids = made.prompt_token_ids + made.token_ids
    echoed = complete(client, model, prompt=ids, max_tokens=0, echo=True, logprobs=1)
    scores = echoed.choices[0].logprobs.token_logprobs
    same((scores[0], len(scores)), (None, len(ids)))
    for got, expected in zip(scores[-len(made.token_ids) :], made.logprobs.token_logprobs):
        near(got, expected)


@check
def bad_value(client, model):
    """errors: a value out of range is BadRequestError with code and param"""
    error = refused(openai.BadRequestError, lambda: chat(client, model, temperature=-1))
    same((error.status_code, error.code, error.param), (400, "invalid_value", "temperature"))


@check
def bad_messages(client, model):
    """errors: no messages, a context too long, a field not served yet"""
    error = refused(openai.BadRequestError, lambda: chat(client, model, messages=[]))
    same(error.param, "messages")
    long = [{"role": "user", "content": "again and " * 100_000}]
    error = refused(openai.BadRequestError, lambda: chat(client, model, messages=long))
    same((error.code, error.param), ("context_length_exceeded", "messages"))
    error = refused(openai.BadRequestError, lambda: chat(client, model, response_format={"type": "json_object"}))
    same(error.param, "response_format")


@check
def bad_stream(client, model):
    """errors: a bad streamed request is refused before the stream"""
    error = refused(openai.BadRequestError, lambda: chat(client, model, stream=True, top_p=2))
    same(error.param, "top_p")


@check
def unknown_model(client, model):
    """errors: an unknown model is NotFoundError"""
    error = refused(openai.NotFoundError, lambda: chat(client, "no-such-model"))
    same((error.code, error.param), ("model_not_found", "model"))
    refused(openai.NotFoundError, lambda: client.models.retrieve("no-such-model"))


@check
def stream_left(client, model):
    """streams: one that is left midway disturbs nobody"""
    before = chat(client, model).choices[0].message.content
    with chat(client, model, stream=True) as stream:
        next(iter(stream))
    same(chat(client, model).choices[0].message.content, before)


def wait_until_healthy(url, seconds=60):
    end = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5).close()
            return
        except (urllib.error.URLError, OSError) as error:
            if time.monotonic() > end:
                sys.exit(f"{url} is not healthy after {seconds} s: {error}")
        time.sleep(0.1)


def main():
    if len(sys.argv) not in (2, 3) or not sys.argv[1].startswith("http"):
        sys.exit(f"usage: {sys.argv[0]} http://HOST:PORT [API-KEY]")
    url = sys.argv[1].rstrip("/").removesuffix("/v1")
    wait_until_healthy(url)
    key = sys.argv[2] if len(sys.argv) == 3 else "none"
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=key, timeout=60, max_retries=0)
    model = client.models.list().data[0].id
    failed = 0
    for function in CHECKS:
        try:
            function(client, model)
            print(f"ok      {function.__doc__}")
        except Exception as error:  # whatever it is, the others still run
            failed += 1
            print(f"FAILED  {function.__doc__}: {type(error).__name__}: {error}")
    print(f"openai {openai.__version__}: {len(CHECKS) - failed} passed, {failed} failed")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
