#!/usr/bin/env python3
"""The official `anthropic` client: messages whole, streamed and parsed, tools, the tool runner, counting, errors."""

import json

import anthropic
from pydantic import BaseModel

import harness
from harness import JSON, JSON_ANSWER, KEY, MODEL, SUM, SUM_ANSWER, WEATHER, WEATHER_CALL, WEATHER_RESULT, WEATHER_SCHEMA
from harness import LeftOut, exact, flow, refused, same

server = harness.server()
client = anthropic.Anthropic(base_url=server.url, api_key="none", timeout=60, max_retries=0)
TOOL = {"name": "get_weather", "description": "Tells the weather in a city.", "input_schema": WEATHER_SCHEMA}


class Sale(BaseModel):
    animal: str
    price: int


def ask(prompt, **fields):
    """The fields of a request."""
    messages = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    greedy = {"temperature": 0}  # no argument of the client's any more, yet a field of the API
    return {"model": MODEL, "max_tokens": 100, "messages": messages, "extra_body": greedy, **fields}


@flow
def whole():
    """messages.create: text, usage, why it stopped"""
    answer = exact(client.messages.create(**ask(SUM)))
    same(([block.text for block in answer.content], answer.stop_reason), ([SUM_ANSWER], "end_turn"))
    assert answer.usage.input_tokens > 0 and answer.usage.output_tokens > 0, answer.usage
    same(exact(client.messages.create(**ask(SUM, max_tokens=2))).stop_reason, "max_tokens")
    answer = exact(client.messages.create(**ask(SUM, stop_sequences=[" ="])))
    same((answer.content[0].text, answer.stop_reason, answer.stop_sequence), ("12 + 30", "stop_sequence", " ="))


@flow
def blocks():
    """messages.create: system and content as blocks"""
    content = [{"type": "text", "text": SUM, "cache_control": {"type": "ephemeral"}}]
    system = [{"type": "text", "text": "Be brief."}]
    answer = exact(client.messages.create(**ask([{"role": "user", "content": content}], system=system)))
    same(answer.content[0].text, SUM_ANSWER)


@flow
def streamed():
    """messages.create: every streamed event is as its type says, with text and with a call"""
    for more in ({}, {"tools": [TOOL]}):
        events = [exact(event) for event in client.messages.create(**ask(WEATHER, **more), stream=True)]
        same((events[0].type, events[-1].type), ("message_start", "message_stop"))


@flow
def stream_helper():
    """messages.stream: text as it comes = whole text"""
    whole = client.messages.create(**ask(SUM))
    with client.messages.stream(**ask(SUM)) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    same((text, final.content[0].text, final.stop_reason), (SUM_ANSWER, SUM_ANSWER, "end_turn"))
    same((final.usage.input_tokens, final.usage.output_tokens), (whole.usage.input_tokens, whole.usage.output_tokens))


@flow
def parsed():
    """messages.parse: a pydantic model"""
    answer = client.messages.parse(**ask(JSON), output_format=Sale)
    same(answer.parsed_output, Sale(**JSON_ANSWER))


@flow
def tool_turn():
    """tools: a call whole and streamed, its result, and the answer that uses it"""
    message = exact(client.messages.create(**ask(WEATHER, tools=[TOOL])))
    [call] = message.content
    same((call.type, call.name, call.input, message.stop_reason), ("tool_use", "get_weather", WEATHER_CALL, "tool_use"))
    with client.messages.stream(**ask(WEATHER, tools=[TOOL])) as stream:
        pieces = "".join(event.partial_json for event in stream if event.type == "input_json")
        same((json.loads(pieces), stream.get_final_message().content[0].input), (WEATHER_CALL, WEATHER_CALL))
    result = {"type": "tool_result", "tool_use_id": call.id, "content": WEATHER_RESULT}
    turns = [
        {"role": "user", "content": WEATHER},
        {"role": "assistant", "content": message.content},
        {"role": "user", "content": [result]},
    ]
    assert "25" in exact(client.messages.create(**ask(turns, tools=[TOOL]))).content[0].text


@flow
def tool_choices():
    """tools: tool_choice any, a tool's name and none"""
    for choice in ({"type": "any"}, {"type": "tool", "name": "get_weather"}):
        [call] = exact(client.messages.create(**ask(SUM, tools=[TOOL], tool_choice=choice))).content
        same((call.type, list(call.input)), ("tool_use", ["city"]))
    answer = client.messages.create(**ask(WEATHER, tools=[TOOL], tool_choice={"type": "none"}))
    same({block.type for block in answer.content}, {"text"})


@flow
def tool_runner():
    """beta.messages.tool_runner: calls the function and answers with its result"""
    calls = []

    @anthropic.beta_tool
    def get_weather(city: str) -> str:
        """Tells the weather in a city."""
        calls.append({"city": city})
        return WEATHER_RESULT

    final = client.beta.messages.tool_runner(**ask(WEATHER, tools=[get_weather])).until_done()
    same(calls, [WEATHER_CALL])
    assert "25" in final.content[0].text, final


@flow
def counted():
    """messages.count_tokens: what the answer's usage says"""
    counted = exact(client.messages.count_tokens(model=MODEL, messages=ask(WEATHER)["messages"], tools=[TOOL]))
    same(counted.input_tokens, client.messages.create(**ask(WEATHER, tools=[TOOL])).usage.input_tokens)


@flow
def errors():
    """errors: BadRequestError and NotFoundError in Anthropic's shape"""
    error = refused(anthropic.BadRequestError, lambda: client.messages.create(**ask(SUM, max_tokens=0)))
    same((error.body["type"], error.body["error"]["type"]), ("error", "invalid_request_error"))
    assert "max_tokens" in error.body["error"]["message"], error.body
    error = refused(anthropic.NotFoundError, lambda: client.messages.create(**{**ask(SUM), "model": "no-such-model"}))
    same(error.body["error"]["type"], "not_found_error")
    image = [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "http://localhost/a.png"}}]}]
    error = refused(anthropic.BadRequestError, lambda: client.messages.create(**ask(image)))
    assert "image" in error.body["error"]["message"], error.body


@flow
def keys():
    """errors: a wrong key is AuthenticationError, the right one is served"""
    if not server.keyed:
        raise LeftOut("no second server with a key")
    with_key = anthropic.Anthropic(base_url=server.keyed, api_key=KEY, max_retries=0)
    error = refused(anthropic.AuthenticationError, lambda: with_key.with_options(api_key="wrong").messages.create(**ask(SUM)))
    same((error.status_code, error.body["error"]["type"]), (401, "authentication_error"))
    same(with_key.messages.create(**ask(SUM)).content[0].text, SUM_ANSWER)


@flow
def older_keys():
    """errors: a key in x-api-key, as older clients send it"""
    if not server.keyed:
        raise LeftOut("no second server with a key")
    older = {"authorization": anthropic.Omit(), "x-api-key": KEY}
    with_key = anthropic.Anthropic(base_url=server.keyed, api_key=KEY, max_retries=0, default_headers=older)
    same(with_key.messages.create(**ask(SUM)).content[0].text, SUM_ANSWER)
    wrong = with_key.with_options(default_headers={**older, "x-api-key": "wrong"})
    refused(anthropic.AuthenticationError, lambda: wrong.messages.create(**ask(SUM)))


if __name__ == "__main__":
    harness.main("anthropic (Python)", anthropic.__version__)
