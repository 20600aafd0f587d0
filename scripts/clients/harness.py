"""What the checks of all clients share: flows, what they must see, and a line of the table for each.

A script calls `server()`, marks functions with `@flow`, and ends with `main()`. Run one alone against any strait that serves
its demo: `python scripts/clients/openai_wire.py http://127.0.0.1:8000`.
"""

import asyncio
import inspect
import re
import sys
import time
import traceback
import urllib.error
import urllib.request
from typing import NamedTuple

MODEL = "demo"
KEY = "sk-clients"  # of the server at `Server.keyed`, where there is one

# What the demo was trained on; see crates/strait/demo/TRAINING.md.
SUM, SUM_ANSWER = "What is 12 + 30?", "12 + 30 = 42"
JSON, JSON_ANSWER = "JSON: animal goat, price 973", {"animal": "goat", "price": 973}
WEATHER, WEATHER_CALL = "What is the weather in Quito right now.", {"city": "Quito"}
WEATHER_RESULT = '{"city": "Quito", "temp_c": 25}'
WEATHER_SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}

# Fields that a client's types need not know: vLLM's, and two that OpenAI sends.
OURS = {"stop_reason", "prompt_token_ids", "token_ids", "prompt_logprobs", "reasoning_content", "max_model_len", "root", "parent"}
OURS |= {"store", "name"}  # of a response, and of a streamed call's end, where only older types have it

FLOWS = []


class Server(NamedTuple):
    url: str
    keyed: str | None  # a second one, which asks for KEY


class LeftOut(Exception):
    """Why a flow was not tried."""


def flow(function):
    """Registers a flow; its docstring is its line."""
    FLOWS.append(function)
    return function


def same(got, expected):
    assert got == expected, f"{got!r}, expected {expected!r}"


def near(got, expected, tolerance=2e-3):
    assert abs(got - expected) <= tolerance, f"{got}, expected {expected} within {tolerance}"


def refused(error, call):
    """What `call` raises, which must be `error`."""
    try:
        call()
    except error as raised:
        return raised
    raise AssertionError(f"{error.__name__} was not raised")


def exact(answer, nulls=()):
    """`answer`, once its JSON has passed the client's own type: strictly, and with no field that the type lacks but OURS.

    `nulls` are fields that the API itself sends as null against its types.
    """
    try:
        type(answer).model_validate(answer.to_dict(mode="json"), strict=True)
    except ValueError as error:
        wrong = [e for e in error.errors() if e["input"] is not None or not set(nulls) & set(e["loc"])]
        assert not wrong, f"{type(answer).__name__} is not as its type says: {wrong}"
    unknown = {path for path in extras(answer, type(answer).__name__) if re.split(r"\W+", path)[-1] not in OURS}
    assert not unknown, f"fields that the client does not know: {sorted(unknown)}"
    return answer


def extras(value, path):
    """Paths of the fields that a model's class does not declare, at any depth."""
    if isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from extras(item, f"{path}[{index}]")
    elif hasattr(value, "model_fields_set"):
        for name in value.model_extra or {}:
            yield f"{path}.{name}"
        for name in value.model_fields_set - set(value.model_extra or {}):
            yield from extras(getattr(value, name), f"{path}.{name}")


def server(seconds=60):
    """The server that the command line names, once it is healthy."""
    if len(sys.argv) not in (2, 3) or not all(url.startswith("http") for url in sys.argv[1:]):
        sys.exit(f"usage: {sys.argv[0]} http://HOST:PORT [http://HOST:PORT of one with --api-key {KEY}]")
    urls = [url.rstrip("/").removesuffix("/v1") for url in sys.argv[1:]]
    for url in urls:
        wait_until_healthy(url, time.monotonic() + seconds)
    return Server(urls[0], urls[1] if len(urls) == 2 else None)


def wait_until_healthy(url, end):
    while True:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5).close()
            return
        except (urllib.error.URLError, OSError) as error:
            if time.monotonic() > end:
                sys.exit(f"{url} is not healthy: {error}")
        time.sleep(0.1)


def outcome(function):
    try:
        result = function()
        if inspect.isawaitable(result):
            asyncio.run(result)
        return "ok"
    except LeftOut as reason:
        return f"left out: {reason}"
    except Exception as error:  # whatever it is, the others still run
        traceback.print_exc()
        return f"**failed**: {type(error).__name__}"


def main(client, version):
    """Runs all flows; exits 1 if any failed, or if there is none."""
    failed = not FLOWS
    for function in FLOWS:
        said = outcome(function)
        failed |= said.startswith("**")
        print(f"| {client} | {version} | {function.__doc__} | {said} |", flush=True)
    sys.exit(failed)
