#!/usr/bin/env python3
"""Pydantic AI: agents with typed output and tools, over chat completions and over responses."""

import importlib.metadata

from pydantic import BaseModel, Field
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

import harness
from harness import JSON, JSON_ANSWER, MODEL, SUM, SUM_ANSWER, WEATHER, WEATHER_CALL, WEATHER_RESULT, flow, same

server = harness.server()
MODELS = [OpenAIChatModel, OpenAIResponsesModel]


class Sale(BaseModel):
    animal: str = Field(max_length=20)  # the demo never learned to call a tool with this: its text would have no end
    price: int = Field(ge=0, le=9999)


def agent(kind, **fields):
    provider = OpenAIProvider(base_url=f"{server.url}/v1", api_key="none")
    return Agent(kind(MODEL, provider=provider), model_settings={"temperature": 0}, retries=0, **fields)


@flow
async def output():
    """Agent(output_type=…): as native JSON schema, and as a tool that must be called"""
    for kind in MODELS:
        same((await agent(kind, output_type=NativeOutput(Sale)).run(JSON)).output, Sale(**JSON_ANSWER))
        assert isinstance((await agent(kind, output_type=ToolOutput(Sale)).run(JSON)).output, Sale)


@flow
async def tool():
    """Agent.tool_plain: the agent calls it and answers with its result"""
    for kind in MODELS:
        calls = []
        weather = agent(kind)

        @weather.tool_plain
        def get_weather(city: str) -> str:
            """Tells the weather in a city."""
            calls.append({"city": city})
            return WEATHER_RESULT

        answer = await weather.run(WEATHER)
        same(calls, [WEATHER_CALL])
        assert "25" in answer.output, answer


@flow
async def streamed():
    """Agent.run_stream: text as it comes"""
    for kind in MODELS:
        async with agent(kind).run_stream(SUM) as run:
            pieces = [piece async for piece in run.stream_text(delta=True, debounce_by=None)]
        same(("".join(pieces), len(pieces) > 2), (SUM_ANSWER, True))


if __name__ == "__main__":
    harness.main("pydantic-ai", importlib.metadata.version("pydantic-ai-slim"))
