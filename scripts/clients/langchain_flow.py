#!/usr/bin/env python3
"""LangChain over chat completions and over responses."""

import importlib.metadata

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

import harness
from harness import JSON, JSON_ANSWER, MODEL, SUM, SUM_ANSWER, WEATHER, WEATHER_CALL, WEATHER_RESULT, flow, same

server = harness.server()


class Sale(BaseModel):
    animal: str
    price: int


@tool
def get_weather(city: str) -> str:
    """Tells the weather in a city."""
    return WEATHER_RESULT


def model(**fields):
    return ChatOpenAI(model=MODEL, base_url=f"{server.url}/v1", api_key="none", temperature=0, max_retries=0, **fields)


@flow
def structured():
    """ChatOpenAI.with_structured_output: json_schema and function_calling"""
    for method in ("json_schema", "function_calling"):
        same(model().with_structured_output(Sale, method=method).invoke(JSON), Sale(**JSON_ANSWER))


@flow
def json_mode():
    """ChatOpenAI.with_structured_output: json_mode"""
    same(model().with_structured_output(Sale, method="json_mode").invoke(JSON), Sale(**JSON_ANSWER))


@flow
def streamed():
    """ChatOpenAI.stream: pieces are the whole answer, with usage"""
    chunks = list(model(stream_usage=True).stream(SUM))
    whole = sum(chunks[1:], chunks[0])
    same((whole.content, len(chunks) > 3), (SUM_ANSWER, True))
    assert whole.usage_metadata["total_tokens"] > whole.usage_metadata["input_tokens"] > 0, whole


def tool_turn(model):
    bound = model.bind_tools([get_weather])
    question = HumanMessage(WEATHER)
    call = bound.invoke([question])
    same([(made["name"], made["args"]) for made in call.tool_calls], [("get_weather", WEATHER_CALL)])
    pieces = list(bound.stream([question]))
    same(sum(pieces[1:], pieces[0]).tool_calls[0]["args"], WEATHER_CALL)
    result = get_weather.invoke(call.tool_calls[0])
    assert isinstance(result, ToolMessage), result
    assert "25" in bound.invoke([question, call, result]).text, result


@flow
def chat_tools():
    """ChatOpenAI.bind_tools: a call whole and streamed, its result, the answer"""
    tool_turn(model())


@flow
def responses_tools():
    """ChatOpenAI(use_responses_api=True).bind_tools: the same over responses"""
    tool_turn(model(use_responses_api=True))


if __name__ == "__main__":
    harness.main("langchain-openai", importlib.metadata.version("langchain-openai"))
