#!/usr/bin/env python3
"""Converted models through the command line and real processes.

    tests/cluster/converted_models.py BUILD_DIR MODEL_DIR

Goal: `memrack convert` says what it wrote and what it cost; a packed model gives the same bits as its rows,
also from memshards and stages in processes of their own, and a process that maps it holds one copy of its
weights; what cannot be done is refused in one sentence and leaves nothing behind.
Method: the demo model with int4 matrices and int8 tables, as rows and packed; logits by hash; the kernel's
account of the resident memory of `memrack serve`."""
import json
import os
import subprocess
import sys

import cluster
import exact_grids
from cluster import WELCOME, WORKER, Link, Process, request

BUILD, MODEL = sys.argv[1], os.path.normpath(sys.argv[2])
FOLDER = exact_grids.FOLDER
ROWS, PANELS = os.path.join(FOLDER, "rows"), os.path.join(FOLDER, "panels")
STATE = {}


def memrack(*arguments):
    return subprocess.run([os.path.join(BUILD, "memrack"), *arguments], capture_output=True, text=True,
                          timeout=100, check=False)


def bytes_of(model):
    return sum(os.path.getsize(os.path.join(model, name)) for name in os.listdir(model)
               if name.endswith(".safetensors"))


def conversions():
    """int4 matrices and int8 tables, as rows and packed: the same loss, and not a large one"""
    types = ["--dtype", "int4", "--table-dtype", "int8", "--json"]
    done = memrack("convert", MODEL, ROWS, *types)
    packed = memrack("convert", MODEL, PANELS, *types, "--pack", "--file-mib", "4")
    assert done.returncode == 0 and packed.returncode == 0, done.stderr + packed.stderr
    a, b = json.loads(done.stdout), json.loads(packed.stdout)
    assert a["loss"] == b["loss"], (a, b)
    assert a["loss"]["kl_mean"] < 0.4 and a["loss"]["top1_agreement"] > 0.6, a
    assert a["bytes_after"] < 0.6 * a["bytes_before"], a
    assert len([n for n in os.listdir(PANELS) if n.endswith(".safetensors")]) > 1
    for model in (ROWS, PANELS):
        facts = memrack("inspect", model)
        assert "stored as        int4" in facts.stdout and "int8" in facts.stdout, facts.stdout
    back = memrack("convert", ROWS, os.path.join(FOLDER, "back"), "--dtype", "f32", "--no-loss")
    assert back.returncode == 0 and "were codes before" in back.stdout, back.stdout + back.stderr


def same_bits():
    """rows, panels, memshards and stages in processes of their own: the same logits"""
    with open(os.path.join(ROWS, "config.json")) as file:
        vocab = json.load(file)["vocab_size"]
    expected = exact_grids.one_process(ROWS, vocab)
    assert exact_grids.one_process(PANELS, vocab) == expected
    whole, pieces = [exact_grids.TOKENS], [7, 1, 13]
    for model in (ROWS, PANELS):
        exact_grids.check_split(model, "2x2", 3, False, expected, vocab, [whole, pieces])
    shards = [Process(f"memshard-{i}", [os.path.join(BUILD, "memrack-memshard"), "--model", PANELS, "--grid",
                                        "2x1", "--index", str(i), "--of", "2"], FOLDER) for i in range(2)]
    options = [x for shard in shards for x in ("--memshard", shard.wait_line("ready ", 30))]
    for stage in (1, 0):
        worker = Process(f"stage-{stage}", [os.path.join(BUILD, "memrack-worker"), "--model", PANELS,
                                            "--threads", "1", "--stage", f"{stage}/2", *options], FOLDER)
        address = worker.wait_line("ready ", 30)
        options += ["--next", address]
    link = Link(address)
    assert link.open(WORKER)[0] == WELCOME
    assert exact_grids.logits(link, exact_grids.ids_of(vocab), vocab, pieces) == expected
    link.close()


def status_of(pid):
    with open(f"/proc/{pid}/status") as file:
        return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in file if line.endswith(" kB\n")}


def resident(model):
    serve = Process("serve-" + os.path.basename(model), [os.path.join(BUILD, "memrack"), "serve", model,
                                                         "--port", "0", "--kv-blocks", "16"], FOLDER)
    address = serve.wait_line("memrack: http://", 60).split()[0]
    status, answer, _ = request(address, "POST", "/v1/completions",
                                {"model": os.path.basename(model), "prompt": "define river", "max_tokens": 8,
                                 "temperature": 0}, 60)
    assert status == 200, answer
    memory = status_of(serve.pid)
    serve.end()
    return memory, answer["choices"][0]["text"]


def one_copy():
    """`memrack serve` of a packed model: one copy of the files, in the page cache, and the same answer"""
    wide = os.path.join(FOLDER, "wide")
    done = memrack("convert", MODEL, wide, "--dtype", "f32", "--pack", "--no-loss")
    assert done.returncode == 0, done.stderr
    plain, text = resident(MODEL)
    mapped, mapped_text = resident(wide)
    assert text == mapped_text, (text, mapped_text)
    # what is not weights is the same in both; the weights of the plain model are anonymous
    assert mapped["RssAnon"] < plain["RssAnon"] - 5 * 2**20, (plain, mapped)
    assert mapped["RssFile"] - plain["RssFile"] < 1.1 * (bytes_of(wide) - bytes_of(MODEL)) + 9 * 2**20, \
        (plain, mapped)


def refusals():
    """what cannot be done is said in one sentence, and nothing is left behind"""
    out = os.path.join(FOLDER, "none")
    for arguments, reason in (([MODEL, ROWS, "--dtype", "int8"], "not empty"),
                              ([MODEL, out], "nothing to do"),
                              ([MODEL, out, "--dtype", "int5"], "int5"),
                              ([MODEL, out, "--dtype", "int8", "--keep", "nobody"], "nobody"),
                              ([PANELS, out, "--dtype", "int8"], "is packed"),
                              ([MODEL, "/dev/null/none", "--dtype", "int8"], "/dev/null"),
                              ([MODEL, out, "--dtype", "int8", "--samples", "/no/such/file"], "/no/such/file")):
        done = memrack("convert", *arguments)
        assert done.returncode != 0 and reason in done.stderr, (arguments, done.stderr)
        assert done.stderr.count("\n") == 1, done.stderr
    assert not [name for name in os.listdir(FOLDER) if "partial" in name or name == "none"], os.listdir(FOLDER)


cluster.run([conversions, same_bits, one_copy, refusals], 200, FOLDER)
