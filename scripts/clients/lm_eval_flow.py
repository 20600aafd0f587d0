#!/usr/bin/env python3
"""EleutherAI's lm-evaluation-harness: `local-completions` on tasks of local data, by likelihoods and by generation."""

import importlib.metadata
import json
import os
import pathlib
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
TOKENIZER = HERE.parents[1] / "crates/strait/demo"
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}  # read at import
os.chdir(HERE / "lm_eval")  # the tasks name their data from there

import lm_eval
from lm_eval.tasks import TaskManager

import harness
from harness import MODEL, flow, near, same

server = harness.server()


def evaluate(task, **model_args):
    """The scores of a task, and a record for each of its documents."""
    where = {"model": MODEL, "base_url": f"{server.url}/v1/completions", "tokenizer": str(TOKENIZER), "max_retries": 1}
    results = lm_eval.simple_evaluate(
        model="local-completions",
        model_args={**where, "add_bos_token": True, "num_concurrent": 2, **model_args},
        batch_size=4,
        tasks=[task],
        task_manager=TaskManager(include_path=".", include_defaults=False),
        bootstrap_iters=0,
    )
    return results["results"][task], results["samples"][task]


def post(path, **body):
    request = urllib.request.Request(f"{server.url}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def likelihood(context, continuation):
    """By hand, from the texts: the log probability of `continuation`, and whether it is what greedy decoding gives."""
    start = post("/tokenize", prompt=context)["count"]
    asked = {"model": MODEL, "temperature": 0, "logprobs": 1}
    [scored] = post("/v1/completions", prompt=context + continuation, max_tokens=0, echo=True, **asked)["choices"]
    scores = scored["logprobs"]["token_logprobs"][start:]
    [greedy] = post("/v1/completions", prompt=context, max_tokens=len(scores), **asked)["choices"]
    return sum(scores), greedy["text"] == continuation


def generated(context):
    """By hand: the line that greedy decoding writes."""
    [choice] = post("/v1/completions", model=MODEL, prompt=context, max_tokens=24, temperature=0, stop="\n")["choices"]
    return choice["text"]


@flow
def likelihoods():
    """local-completions: multiple_choice; each likelihood is that of /v1/completions by hand"""
    scores, samples = evaluate("sums_choice")
    same(len(samples), 10)
    assert scores["acc,none"] >= 0.8, scores  # the demo errs now and then
    for sample in samples:
        for request, [(score, greedy)] in zip(sample["arguments"], sample["resps"], strict=True):
            expected, is_greedy = likelihood(*request)
            near(score, expected, 1e-4)
            same(greedy, is_greedy)


@flow
def generation():
    """local-completions: generate_until; each text is that of /v1/completions by hand, of ids and of text prompts"""
    for how in ({}, {"tokenizer_backend": "none", "tokenized_requests": False}):
        scores, samples = evaluate("sums_generate", **how)
        texts = [sample["resps"][0][0] for sample in samples]
        same(texts, [generated(sample["arguments"][0][0]) for sample in samples])
        right = sum(text == sample["doc"]["answer"] for text, sample in zip(texts, samples, strict=True))
        same((scores["exact_match,none"], right >= 8), (right / 10, True))


if __name__ == "__main__":
    harness.main("lm-eval", importlib.metadata.version("lm_eval"))
