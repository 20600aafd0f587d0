#!/usr/bin/env python3
"""OpenAI's Agents SDK over chat completions and over responses."""

import importlib.metadata

import agents
import openai
from pydantic import BaseModel

import harness
from harness import JSON, JSON_ANSWER, MODEL, SUM, SUM_ANSWER, WEATHER, WEATHER_CALL, WEATHER_RESULT, flow, same

server = harness.server()
agents.set_tracing_disabled(True)


class Sale(BaseModel):
    animal: str
    price: int


async def each_agent(**fields):
    """An agent over each of the two APIs."""
    settings = agents.ModelSettings(temperature=0)
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        for kind in (agents.OpenAIChatCompletionsModel, agents.OpenAIResponsesModel):
            model = kind(model=MODEL, openai_client=client)
            yield agents.Agent(name="demo", model=model, model_settings=settings, **fields)


@flow
async def tool():
    """Runner.run: calls a function_tool and answers with its result"""
    calls = []

    @agents.function_tool
    def get_weather(city: str) -> str:
        """Tells the weather in a city."""
        calls.append({"city": city})
        return WEATHER_RESULT

    async for agent in each_agent(tools=[get_weather]):
        result = await agents.Runner.run(agent, WEATHER, max_turns=3)
        assert "25" in result.final_output, result
    same(calls, [WEATHER_CALL, WEATHER_CALL])


@flow
async def output():
    """Runner.run: output_type"""
    async for agent in each_agent(output_type=Sale):
        same((await agents.Runner.run(agent, JSON)).final_output, Sale(**JSON_ANSWER))


@flow
async def streamed():
    """Runner.run_streamed: text as it comes"""
    async for agent in each_agent():
        run = agents.Runner.run_streamed(agent, SUM)
        events = [event.data async for event in run.stream_events() if event.type == "raw_response_event"]
        pieces = [event.delta for event in events if event.type == "response.output_text.delta"]
        same(("".join(pieces), run.final_output, len(pieces) > 2), (SUM_ANSWER, SUM_ANSWER, True))


if __name__ == "__main__":
    harness.main("openai-agents", importlib.metadata.version("openai-agents"))
