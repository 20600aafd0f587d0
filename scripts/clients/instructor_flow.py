#!/usr/bin/env python3
"""Instructor: models out of text."""

import importlib.metadata

import instructor
import openai
from pydantic import BaseModel, Field

import harness
from harness import JSON, JSON_ANSWER, MODEL, flow, same

server = harness.server()


class Sale(BaseModel):
    """What was sold, and for how much."""

    animal: str = Field(min_length=1, max_length=20)
    price: int = Field(ge=0, le=9999)


def create(mode, method="create", **fields):
    client = instructor.from_openai(openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0), mode=mode)
    asked = {"model": MODEL, "messages": [{"role": "user", "content": JSON}], "temperature": 0, "max_retries": 0, **fields}
    return getattr(client.chat.completions, method)(response_model=Sale, **asked)


@flow
def tools():
    """create: Mode.TOOLS, a call that must come"""
    assert isinstance(create(instructor.Mode.TOOLS), Sale)


@flow
def schema():
    """create: Mode.JSON_SCHEMA"""
    same(create(instructor.Mode.JSON_SCHEMA).model_dump(), JSON_ANSWER)


@flow
def partial():
    """create_partial: Mode.JSON_SCHEMA, growing models out of a stream"""
    grown = list(create(instructor.Mode.JSON_SCHEMA, "create_partial"))
    same((grown[-1].model_dump(), len(grown) > 2), (JSON_ANSWER, True))


if __name__ == "__main__":
    harness.main("instructor", importlib.metadata.version("instructor"))
