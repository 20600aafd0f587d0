#!/usr/bin/env python3
"""The official `openai` client: chat and completions as they are on the wire, whole and streamed, and errors.

    pip install openai
    python3 scripts/clients/openai_wire.py http://127.0.0.1:8000
"""

import openai

import harness
from harness import KEY, MODEL, SUM, LeftOut, exact, flow, near, refused, same

QUESTION = [{"role": "user", "content": SUM}]

server = harness.server()
client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=60, max_retries=0)


def chat(**fields):
    answer = client.chat.completions.create(**{"model": MODEL, "messages": QUESTION, "temperature": 0, **fields})
    return map(exact, answer) if fields.get("stream") else exact(answer)


def complete(**fields):
    answer = client.completions.create(**{"model": MODEL, "temperature": 0, "max_tokens": 12, **fields})
    if fields.get("stream"):
        return (exact(chunk, nulls=["finish_reason"]) for chunk in answer)
    return exact(answer, nulls=["token_logprobs", "top_logprobs"] if fields.get("echo") else ())


def adds_up(usage):
    assert usage.prompt_tokens > 0 and usage.completion_tokens > 0, usage
    same(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens)


@flow
def models():
    """models: list and retrieve"""
    listed = [exact(model) for model in client.models.list().data]
    assert MODEL in [model.id for model in listed], listed
    same(exact(client.models.retrieve(MODEL)).id, MODEL)


@flow
def chat_whole():
    """chat: the demo adds"""
    answer = chat()
    assert "42" in answer.choices[0].message.content, answer
    same(answer.choices[0].message.role, "assistant")
    same(answer.choices[0].finish_reason, "stop")
    adds_up(answer.usage)
    assert answer._request_id, "no x-request-id"


@flow
def chat_streamed():
    """chat: streamed text = whole text, usage last"""
    whole = chat()
    chunks = list(chat(stream=True, stream_options={"include_usage": True}))
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    same("".join(c.delta.content or "" for c in choices), whole.choices[0].message.content)
    same([c.finish_reason for c in choices if c.finish_reason], ["stop"])
    same(choices[0].delta.role, "assistant")
    same(len({chunk.id for chunk in chunks}), 1)
    assert all(chunk.usage is None for chunk in chunks[:-1]), chunks
    same((chunks[-1].choices, chunks[-1].usage), ([], whole.usage))


@flow
def chat_logprobs():
    """chat: logprobs name the tokens of the answer"""
    answer = chat(logprobs=True, top_logprobs=2).choices[0]
    tokens = answer.logprobs.content
    assert b"".join(bytes(t.bytes) for t in tokens).decode().startswith(answer.message.content), tokens
    for token in tokens:
        same(len(token.top_logprobs), 2)
        near(token.top_logprobs[0].logprob, token.logprob)


@flow
def chat_choices():
    """chat: n=2 greedy choices are equal, and streams interleave them"""
    answer = chat(n=2)
    same([c.index for c in answer.choices], [0, 1])
    same(answer.choices[0].message.content, answer.choices[1].message.content)
    texts = ["", ""]
    for chunk in chat(n=2, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    same(texts, [answer.choices[0].message.content] * 2)


@flow
def chat_seed():
    """chat: the same seed draws the same answer"""
    fields = {"temperature": 1.5, "seed": 11, "max_tokens": 24}
    first, second = (chat(**fields).choices[0].message.content for _ in range(2))
    same(first, second)


@flow
def chat_stop():
    """chat: a stop string cuts the answer at its first match"""
    whole = chat().choices[0].message.content
    stop = whole[len(whole) // 2 :][:2]
    answer = chat(stop=[stop]).choices[0]
    same(answer.message.content, whole[: whole.index(stop)])
    same((answer.finish_reason, answer.stop_reason), ("stop", stop))


@flow
def chat_length():
    """chat: max_completion_tokens ends an answer with length"""
    answer = chat(max_completion_tokens=2)
    same((answer.choices[0].finish_reason, answer.usage.completion_tokens), ("length", 2))


@flow
def completion_streamed():
    """completions: streamed text = whole text"""
    whole = complete(prompt="What is 12")
    stream = complete(prompt="What is 12", stream=True)
    same("".join(c.choices[0].text for c in stream if c.choices), whole.choices[0].text)
    adds_up(whole.usage)


@flow
def completion_logprobs():
    """completions: logprobs of each token, the best first"""
    logprobs = complete(prompt="What is 12", logprobs=3).choices[0].logprobs
    lengths = {len(logprobs.tokens), len(logprobs.token_logprobs), len(logprobs.top_logprobs), len(logprobs.text_offset)}
    same(lengths, {len(logprobs.tokens)})
    for chosen, top in zip(logprobs.token_logprobs, logprobs.top_logprobs):
        near(max(top.values()), chosen)


@flow
def completion_token_ids():
    """completions: a prompt of token ids = its text"""
    more = {"return_token_ids": True}
    text = complete(prompt="What is 12", extra_body=more).choices[0]
    ids = text.prompt_token_ids
    same(complete(prompt=ids).choices[0].text, text.text)
    both = complete(prompt=[ids, ids]).choices
    same([(c.index, c.text) for c in both], [(0, text.text), (1, text.text)])


@flow
def completion_scores():
    """completions: echo scores a prompt, and agrees with its generation"""
    made = complete(prompt="What is 12", logprobs=1, extra_body={"return_token_ids": True}).choices[0]
    ids = made.prompt_token_ids + made.token_ids
    echoed = complete(prompt=ids, max_tokens=0, echo=True, logprobs=1)
    scores = echoed.choices[0].logprobs.token_logprobs
    same((scores[0], len(scores)), (None, len(ids)))
    for got, expected in zip(scores[-len(made.token_ids) :], made.logprobs.token_logprobs):
        near(got, expected)


@flow
def bad_value():
    """errors: a value out of range is BadRequestError with code and param"""
    error = refused(openai.BadRequestError, lambda: chat(temperature=-1))
    same((error.status_code, error.code, error.param), (400, "invalid_value", "temperature"))


@flow
def bad_messages():
    """errors: no messages, a context too long, a field not served"""
    error = refused(openai.BadRequestError, lambda: chat(messages=[]))
    same(error.param, "messages")
    long = [{"role": "user", "content": "again and " * 100_000}]
    error = refused(openai.BadRequestError, lambda: chat(messages=long))
    same((error.code, error.param), ("context_length_exceeded", "messages"))
    error = refused(openai.BadRequestError, lambda: chat(modalities=["text", "audio"]))
    same((error.code, error.param), ("unsupported_parameter", "modalities"))


@flow
def bad_stream():
    """errors: a bad streamed request is refused before the stream"""
    error = refused(openai.BadRequestError, lambda: chat(stream=True, top_p=2))
    same(error.param, "top_p")


@flow
def unknown_model():
    """errors: an unknown model is NotFoundError"""
    error = refused(openai.NotFoundError, lambda: chat(model="no-such-model"))
    same((error.code, error.param), ("model_not_found", "model"))
    refused(openai.NotFoundError, lambda: client.models.retrieve("no-such-model"))


@flow
def embeddings():
    """errors: embeddings are NotFoundError, which no client tries again"""
    error = refused(openai.NotFoundError, lambda: client.embeddings.create(model=MODEL, input="words"))
    same(error.code, "unsupported_endpoint")
    assert "embedding" in error.message, error


@flow
def keys():
    """errors: a wrong key is AuthenticationError, the right one is served"""
    if not server.keyed:
        raise LeftOut("no second server with a key")
    with_key = openai.OpenAI(base_url=f"{server.keyed}/v1", api_key=KEY, max_retries=0)
    same([model.id for model in with_key.models.list()], [MODEL])
    error = refused(openai.AuthenticationError, with_key.with_options(api_key="wrong").models.list)
    same((error.status_code, error.code), (401, "invalid_api_key"))


@flow
def stream_left():
    """streams: one that is left midway disturbs nobody"""
    before = chat().choices[0].message.content
    with client.chat.completions.create(model=MODEL, messages=QUESTION, stream=True) as stream:
        next(iter(stream))
    same(chat().choices[0].message.content, before)


if __name__ == "__main__":
    harness.main("openai (Python)", openai.__version__)
