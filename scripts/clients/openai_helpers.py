#!/usr/bin/env python3
"""The official `openai` client's helpers: `.parse()`, `.stream()`, tools, `.responses` and its tool runner."""

import json

import openai
from openai.lib.responses_tool_runner import RegisteredFunction, ResponsesToolRunner
from pydantic import BaseModel, Field

import harness
from harness import JSON, JSON_ANSWER, MODEL, SUM, SUM_ANSWER, WEATHER, WEATHER_CALL, WEATHER_RESULT
from harness import exact, flow, refused, same

server = harness.server()
client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=60, max_retries=0)


class Sale(BaseModel):
    animal: str
    price: int = Field(ge=0)


class get_weather(BaseModel):
    """Tells the weather in a city."""

    city: str


SALE = Sale(**JSON_ANSWER)
CHAT_TOOL = openai.pydantic_function_tool(get_weather)
TOOL = openai.pydantic_responses_function_tool(get_weather)


def chat(prompt):
    """The fields of a request to chat."""
    return {"model": MODEL, "messages": [{"role": "user", "content": prompt}], "temperature": 0}


def response(prompt):
    """The fields of a request to responses."""
    return {"model": MODEL, "input": prompt, "temperature": 0}


@flow
def chat_parse():
    """chat.parse: a pydantic model"""
    answer = client.chat.completions.parse(**chat(JSON), response_format=Sale)
    same(answer.choices[0].message.parsed, SALE)


@flow
def chat_parse_cut():
    """chat.parse: an answer that is cut is LengthFinishReasonError"""
    cut = lambda: client.chat.completions.parse(**chat(JSON), response_format=Sale, max_tokens=3)
    refused(openai.LengthFinishReasonError, cut)


@flow
def chat_stream():
    """chat.stream: events of a parsed answer, and the final completion"""
    with client.chat.completions.stream(**chat(JSON), response_format=Sale, stream_options={"include_usage": True}) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    for event in events:
        if event.type == "chunk":
            exact(event.chunk)
    deltas = [event.delta for event in events if event.type == "content.delta"]
    same(json.loads("".join(deltas)), JSON_ANSWER)
    same([event.parsed for event in events if event.type == "content.done"], [SALE])
    same((final.choices[0].message.parsed, final.choices[0].finish_reason), (SALE, "stop"))
    same(final.usage.total_tokens, final.usage.prompt_tokens + final.usage.completion_tokens)


@flow
def chat_tool_choices():
    """chat.parse: tool_choice auto, required, named and none"""
    named = {"type": "function", "function": {"name": "get_weather"}}
    for choice in ("auto", "required", named):
        exact(client.chat.completions.create(**chat(WEATHER), tools=[CHAT_TOOL], tool_choice=choice))
        answer = client.chat.completions.parse(**chat(WEATHER), tools=[CHAT_TOOL], tool_choice=choice)
        [call] = answer.choices[0].message.tool_calls
        same(call.function.parsed_arguments, get_weather(**WEATHER_CALL))
        same(answer.choices[0].finish_reason, "tool_calls")
    # The demo would rather add, but must call.
    [call] = client.chat.completions.parse(**chat(SUM), tools=[CHAT_TOOL], tool_choice=named).choices[0].message.tool_calls
    assert isinstance(call.function.parsed_arguments, get_weather), call
    message = client.chat.completions.parse(**chat(WEATHER), tools=[CHAT_TOOL], tool_choice="none").choices[0].message
    same(message.tool_calls, None)


@flow
def chat_tool_turn():
    """chat.stream: a call's events, its result, and the answer that uses it"""
    with client.chat.completions.stream(**chat(WEATHER), tools=[CHAT_TOOL]) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    for event in events:
        if event.type == "chunk":
            exact(event.chunk)
    pieces = [event.arguments_delta for event in events if event.type == "tool_calls.function.arguments.delta"]
    [done] = [event for event in events if event.type == "tool_calls.function.arguments.done"]
    same(("".join(pieces), json.loads(done.arguments)), (done.arguments, WEATHER_CALL))
    message = final.choices[0].message
    request = chat(WEATHER)
    request["messages"] += [
        message,
        {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": WEATHER_RESULT},
    ]
    answer = client.chat.completions.create(**request, tools=[CHAT_TOOL])
    assert "25" in answer.choices[0].message.content, answer


@flow
def responses_create():
    """responses.create: text and usage; a length that ends it is incomplete"""
    answer = exact(client.responses.create(**response(SUM)))
    same((answer.output_text, answer.status), (SUM_ANSWER, "completed"))
    same(answer.usage.total_tokens, answer.usage.input_tokens + answer.usage.output_tokens)
    answer = exact(client.responses.create(**response(SUM), max_output_tokens=2))
    same((answer.status, answer.incomplete_details.reason), ("incomplete", "max_output_tokens"))


@flow
def responses_parse():
    """responses.parse: a pydantic model, and a tool's arguments"""
    same(client.responses.parse(**response(JSON), text_format=Sale).output_parsed, SALE)
    [call] = client.responses.parse(**response(WEATHER), tools=[TOOL]).output
    same(call.parsed_arguments, get_weather(**WEATHER_CALL))


@flow
def responses_stream():
    """responses.stream: events in order, parsed text, the final response"""
    with client.responses.stream(**response(JSON), text_format=Sale) as stream:
        events = list(stream)
        final = stream.get_final_response()
    same([event.sequence_number for event in events], list(range(len(events))))
    same((events[0].type, events[-1].type), ("response.created", "response.completed"))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    same((json.loads(text), final.output_parsed), (JSON_ANSWER, SALE))


@flow
def responses_events():
    """responses.create: every streamed event is as its type says, with text and with a call"""
    for more in ({}, {"tools": [TOOL]}):
        events = [exact(event) for event in client.responses.create(**response(WEATHER), stream=True, **more)]
        same(events[-1].type, "response.completed")
        exact(events[-1].response)


@flow
def responses_tool_runner():
    """ResponsesToolRunner: calls the function and answers with its result, whole and streamed"""
    for stream in (False, True):
        calls = []
        execute = lambda arguments: calls.append(arguments) or WEATHER_RESULT
        runner = ResponsesToolRunner(functions=[RegisteredFunction.from_tool(TOOL, execute=execute)])
        answer = runner.run(client, response(WEATHER), stream=stream)
        same(calls, [get_weather(**WEATHER_CALL)])
        assert "25" in answer.output_text, answer


@flow
def responses_refused():
    """responses: what needs memory is refused by name"""
    for field, value in {"previous_response_id": "resp_1", "background": True}.items():
        error = refused(openai.BadRequestError, lambda: client.responses.create(**response(SUM), **{field: value}))
        same((error.code, error.param), ("unsupported_parameter", field))
    refused(openai.NotFoundError, lambda: client.responses.retrieve("resp_1"))


if __name__ == "__main__":
    harness.main("openai (Python)", openai.__version__)
