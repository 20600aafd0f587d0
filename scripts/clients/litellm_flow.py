#!/usr/bin/env python3
"""LiteLLM, strait as a custom OpenAI provider."""

import importlib.metadata
import json
import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # read at import: fetch no prices

import litellm

import harness
from harness import MODEL, SUM, SUM_ANSWER, WEATHER, WEATHER_CALL, WEATHER_RESULT, WEATHER_SCHEMA, flow, refused, same

server = harness.server()
litellm.suppress_debug_info = True
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": WEATHER_SCHEMA}}


def complete(messages, **fields):
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    where = {"api_base": f"{server.url}/v1", "api_key": "none", "max_retries": 0}
    return litellm.completion(model=f"openai/{MODEL}", messages=messages, temperature=0, **where, **fields)


@flow
def text():
    """completion: streamed = whole, usage"""
    whole = complete(SUM)
    same(whole.choices[0].message.content, SUM_ANSWER)
    chunks = list(complete(SUM, stream=True, stream_options={"include_usage": True}))
    rebuilt = litellm.stream_chunk_builder(chunks)
    same(rebuilt.choices[0].message.content, SUM_ANSWER)
    same(rebuilt.usage.total_tokens, whole.usage.total_tokens)


@flow
def tools():
    """completion: a call whole and streamed, its result, the answer"""
    message = complete(WEATHER, tools=[TOOL]).choices[0].message
    [call] = message.tool_calls
    same((call.function.name, json.loads(call.function.arguments)), ("get_weather", WEATHER_CALL))
    rebuilt = litellm.stream_chunk_builder(list(complete(WEATHER, tools=[TOOL], stream=True)))
    same(json.loads(rebuilt.choices[0].message.tool_calls[0].function.arguments), WEATHER_CALL)
    result = {"role": "tool", "tool_call_id": call.id, "content": WEATHER_RESULT}
    turns = [{"role": "user", "content": WEATHER}, message.model_dump(), result]
    assert "25" in complete(turns, tools=[TOOL]).choices[0].message.content


@flow
def errors():
    """errors: a context too long is ContextWindowExceededError, a bad value BadRequestError"""
    error = refused(litellm.ContextWindowExceededError, lambda: complete("again and " * 20_000))
    same(error.status_code, 400)
    refused(litellm.BadRequestError, lambda: complete(SUM, top_p=7))


@flow
def anthropic():
    """completion: the anthropic provider over /v1/messages"""
    where = {"api_base": server.url, "api_key": "none", "max_retries": 0}
    question = [{"role": "user", "content": SUM}]
    answer = litellm.completion(model=f"anthropic/{MODEL}", messages=question, temperature=0, max_tokens=50, **where)
    same(answer.choices[0].message.content, SUM_ANSWER)


if __name__ == "__main__":
    harness.main("litellm", importlib.metadata.version("litellm"))
