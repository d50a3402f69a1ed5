#!/usr/bin/env python3
"""The same tokens everywhere: clusters of many shapes against one process.

    tests/cluster/same_answers.py BUILD_DIR MODEL_DIR [--all]

Goal: for memshards 1, 2, 3, 8, replicas 1, 2, stages 1, 2, 3, grids and fabrics, the answers and the
logprobs of every token are those of `memrack serve`, digit for digit; also while a replica is stopped
and after it was killed.
Method: real clusters around a real etcd. Without --all a set of shapes in which every pair of values
of any two properties occurs; with it every combination that can exist."""
import hashlib
import itertools
import json
import os
import shutil
import signal
import sys
import threading

import cluster
from cluster import Process, children_of, request

BUILD, MODEL = sys.argv[1], sys.argv[2]
ALL = "--all" in sys.argv[3:]
FOLDER = cluster.temporary_folder()
NAME = os.path.basename(os.path.normpath(MODEL))
STATE = {}
PROPERTIES = {
    "memshards": [1, 2, 3, 8],
    "replicas": [1, 2],
    "stages": [1, 2, 3],
    "grid": ["8x1", "1x8", "4x2"],
    "fabric": ["tcp", "shm"],
}
QUESTIONS = [
    {"prompt": "define river", "max_tokens": 12, "temperature": 0},
    {"prompt": "what does antelope mean? a long question, so that the prompt has several blocks of "
               "tokens and is computed in more than one piece of work", "max_tokens": 8,
     "temperature": 0.9, "seed": 7, "top_p": 0.9},
    {"prompt": "stone", "max_tokens": 10, "temperature": 1.1, "seed": 11, "top_k": 30, "n": 3},
]


def shapes():
    """All combinations, or the first of them that bring a pair nobody brought before."""
    names = list(PROPERTIES)
    everything = [dict(zip(names, values)) for values in itertools.product(*PROPERTIES.values())]
    if ALL:
        return everything
    seen, chosen = set(), []
    pairs_of = lambda shape: {((a, shape[a]), (b, shape[b])) for a, b in itertools.combinations(names, 2)}
    while True:
        best = max(everything, key=lambda shape: len(pairs_of(shape) - seen))
        if not pairs_of(best) - seen:
            return chosen
        seen |= pairs_of(best)
        chosen.append(best)


def ask(address, question):
    body = {"model": NAME, "logprobs": 3, "ignore_eos": True, **question}
    status, answer, _ = request(address, "POST", "/v1/completions", body, 60)
    assert status == 200, (status, answer)
    return [(choice["index"], choice["text"], choice["logprobs"]) for choice in
            sorted(answer["choices"], key=lambda choice: choice["index"])]


def digest(address):
    """One hash over every answer; asked side by side, so that they share steps."""
    answers = [None] * len(QUESTIONS)

    def one(i):
        answers[i] = ask(address, QUESTIONS[i])

    threads = [threading.Thread(target=one, args=(i,)) for i in range(len(QUESTIONS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(answers), answers
    return hashlib.sha256(json.dumps(answers, sort_keys=True).encode()).hexdigest()


def one_process():
    """`memrack serve` gives the answers to compare with"""
    serve = Process("serve", [os.path.join(BUILD, "memrack"), "serve", MODEL, "--port", "0"], FOLDER)
    import time
    end = time.monotonic() + 60
    while "http://" not in serve.text():
        assert time.monotonic() < end and serve.is_alive(), serve.text()
        time.sleep(0.05)
    address = serve.text().split("http://", 1)[1].split()[0]
    STATE["expected"] = digest(address)
    assert digest(address) == STATE["expected"]
    serve.end()


def run_shape(shape):
    def check():
        label = " ".join(f"{key} {value}" for key, value in shape.items())
        options = [item for key, value in shape.items() for item in (f"--{key}", str(value))]
        up = Process("up-" + label.replace(" ", "-"), [os.path.join(BUILD, "memrack"), "up", MODEL, "--port",
                     "0", "--name", f"t{os.getpid()}", "--table", "never", *options], FOLDER)
        address = up.wait_line("serving http://", 90).split()[0]
        assert digest(address) == STATE["expected"], label
        if shape["replicas"] > 1:
            victim = children_of(up.pid)["memshard"][0]
            cluster.stop(victim)
            assert digest(address) == STATE["expected"], label + ", a replica stopped"
            os.kill(victim, signal.SIGCONT)
            cluster.kill(victim)
            assert digest(address) == STATE["expected"], label + ", a replica killed"
        up.end(20)
    check.__doc__ = "same answers: " + ", ".join(f"{key} {value}" for key, value in shape.items())
    return check


if not shutil.which("etcd"):
    print("skipped: etcd is not installed\nsame_answers: 0 passed, 0 failed")
    sys.exit(0)
CHECKS = [one_process] + [run_shape(shape) for shape in shapes()]
cluster.run(CHECKS, 60 + 40 * len(CHECKS) if ALL else 280, FOLDER)
