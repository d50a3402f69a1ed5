#!/usr/bin/env python3
"""Drives a running server with the real `openai` client: what users' programs will do.

    memrack serve MODEL --port 8080 &
    python3 -m venv V && V/bin/pip install openai && V/bin/python tests/clients/openai_client.py http://127.0.0.1:8080

Any model with a tokenizer and a known chat template will do; nothing is asserted about its words.
Ends with one line and status 0, or with the first failure."""
import concurrent.futures
import sys
import time

import openai


def check(condition, what):
    if not condition:
        raise AssertionError(what)


def refused(call, error, *parts):
    try:
        call()
    except error as problem:
        for part in parts:
            check(part in str(problem), f"{part!r} not in {problem}")
        return problem
    raise AssertionError(f"not refused: {parts}")


def models(client):
    listed = client.models.list().data
    check(len(listed) == 1 and listed[0].object == "model", listed)
    check(client.models.retrieve(listed[0].id).id == listed[0].id, "retrieve")
    refused(lambda: client.models.retrieve("no-such-model"), openai.NotFoundError, "no-such-model")
    return listed[0].id


def completions(client, model):
    make = client.completions.create
    one = make(model=model, prompt="a river is", max_tokens=12, temperature=0, extra_body={"ignore_eos": True})
    check(one.object == "text_completion" and one.model == model, one)
    check(one.choices[0].finish_reason == "length", one)
    check(one.usage.completion_tokens == 12 and one.usage.total_tokens == one.usage.prompt_tokens + 12, one.usage)
    again = make(model=model, prompt="a river is", max_tokens=12, temperature=0, extra_body={"ignore_eos": True})
    check(again.choices[0].text == one.choices[0].text, "greedy answers differ")
    stop = next((w for w in one.choices[0].text.split() if len(w) > 1), None)
    if stop:
        cut = make(model=model, prompt="a river is", max_tokens=12, temperature=0, stop=[stop])
        check(cut.choices[0].finish_reason == "stop" and stop not in cut.choices[0].text, cut)
        check(one.choices[0].text.startswith(cut.choices[0].text), cut)
    echo = make(model=model, prompt="a river is", max_tokens=3, temperature=0, echo=True)
    check(echo.choices[0].text.startswith("a river is"), echo)
    many = make(model=model, prompt=["one", "two", [5, 6, 7]], n=2, max_tokens=4, seed=1, temperature=1)
    check([c.index for c in many.choices] == list(range(6)), many)


def seeds(client, model):
    def text(seed):
        got = client.completions.create(model=model, prompt="the sea", max_tokens=24, seed=seed, temperature=1.5,
                                        extra_body={"ignore_eos": True}, n=3)
        return [c.text for c in got.choices]

    first = text(1234)
    check(first == text(1234), "the same seed gave other text")
    check(first[0] != first[1] or first[1] != first[2], "all choices are equal")
    check(any(text(s) != first for s in (1, 2, 3)), "the seed does not matter")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        check(all(got == first for got in pool.map(text, [1234] * 16)), "neighbours change the text")


def logprobs(client, model):
    got = client.completions.create(model=model, prompt="a river is", max_tokens=6, temperature=0, logprobs=3)
    probs = got.choices[0].logprobs
    check("".join(probs.tokens) == got.choices[0].text, probs)
    check(len(probs.tokens) == len(probs.token_logprobs) == len(probs.top_logprobs) == len(probs.text_offset), probs)
    check(all(p <= 0 for p in probs.token_logprobs), probs)
    check(all(len(top) == 3 and abs(max(top.values()) - p) < 1e-6
              for top, p in zip(probs.top_logprobs, probs.token_logprobs)), "greedy is not the likeliest")
    chat = client.chat.completions.create(model=model, messages=[{"role": "user", "content": "define sea"}],
                                          max_tokens=5, logprobs=True, top_logprobs=2, temperature=0)
    items = chat.choices[0].logprobs.content
    check(all(len(i.top_logprobs) == 2 and i.top_logprobs[0].logprob == i.logprob for i in items), items)
    check(bytes(b for i in items for b in i.bytes).decode() == chat.choices[0].message.content, items)


def chat(client, model):
    messages = [{"role": "system", "content": "You define words."}, {"role": "user", "content": "define river"}]
    one = client.chat.completions.create(model=model, messages=messages, max_completion_tokens=40, temperature=0)
    check(one.object == "chat.completion" and one.choices[0].message.role == "assistant", one)
    check(one.choices[0].finish_reason in ("stop", "length"), one)
    parts = [{"role": "user", "content": [{"type": "text", "text": "define "}, {"type": "text", "text": "river"}]}]
    whole = [{"role": "user", "content": "define river"}]
    texts = [client.chat.completions.create(model=model, messages=m, max_tokens=20, temperature=0)
             .choices[0].message.content for m in (parts, whole)]
    check(texts[0] == texts[1], texts)
    return one.choices[0].message.content, messages


def streams(client, model):
    whole, messages = chat(client, model)
    stream = client.chat.completions.create(model=model, messages=messages, max_completion_tokens=40, temperature=0,
                                            stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    check(chunks[0].choices[0].delta.role == "assistant", chunks[0])
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    check(text == whole, f"{text!r} streamed, {whole!r} whole")
    check(chunks[-1].usage and not chunks[-1].choices, chunks[-1])
    check(sum(1 for c in chunks if c.choices and c.choices[0].finish_reason) == 1, "one finish_reason")
    many = client.completions.create(model=model, prompt=["a", "b"], n=2, max_tokens=9, stream=True, seed=3,
                                     logprobs=1, extra_body={"ignore_eos": True})
    seen = {}
    for chunk in many:
        for choice in chunk.choices:
            text, tokens, finish = seen.get(choice.index, ("", 0, None))
            if choice.logprobs:
                tokens += len(choice.logprobs.tokens)
            seen[choice.index] = (text + choice.text, tokens, choice.finish_reason or finish)
    check(sorted(seen) == [0, 1, 2, 3], seen)
    check(all(tokens == 9 and finish == "length" for _, tokens, finish in seen.values()), seen)
    stream = client.completions.create(model=model, prompt="x", max_tokens=200, stream=True,
                                       extra_body={"ignore_eos": True})
    next(iter(stream))
    stream.close()  # leaving in mid-answer must not disturb anybody


def errors(client, model):
    create = client.completions.create
    bad = openai.BadRequestError
    refused(lambda: create(model="other", prompt="x"), openai.NotFoundError, "other")
    refused(lambda: create(model=model, prompt=""), bad, "empty")
    problem = refused(lambda: create(model=model, prompt=[5] * 200_000), bad, "200000", "context")
    check(problem.code == "context_length_exceeded" and problem.param == "prompt", problem)
    refused(lambda: create(model=model, prompt="word " * 1_000_000), bad, "context")
    refused(lambda: create(model=model, prompt=[99999999]), bad, "vocabulary")
    refused(lambda: create(model=model, prompt="x", n=0), bad, "n is 0")
    refused(lambda: create(model=model, prompt="x", temperature=9), bad, "temperature")
    refused(lambda: create(model=model, prompt="x", frequency_penalty=1), bad, "frequency_penalty")
    refused(lambda: create(model=model, prompt="x", logit_bias={"5": 10}), bad, "logit_bias")
    refused(lambda: create(model=model, prompt="x", suffix="y"), bad, "suffix")
    refused(lambda: client.chat.completions.create(model=model, messages=[]), bad, "messages")
    refused(lambda: client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "x"}],
        tools=[{"type": "function", "function": {"name": "f"}}]), bad, "tools")
    refused(lambda: client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "x"}],
        response_format={"type": "json_object"}), bad, "response_format")
    create(model=model, prompt="x", max_tokens=1, extra_body={"some_future_field": 1})


def main():
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    client = openai.OpenAI(base_url=sys.argv[1].rstrip("/") + "/v1", api_key="none", timeout=60, max_retries=0)
    start = time.monotonic()
    model = models(client)
    for part in (completions, seeds, logprobs, chat, streams, errors):
        part(client, model)
        print(f"{part.__name__}: good", flush=True)
    print(f"the openai client {openai.__version__} gets along with {model} ({time.monotonic() - start:.1f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
