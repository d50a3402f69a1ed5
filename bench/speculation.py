#!/usr/bin/env python3
"""What speculation gains on the demo model, and what it costs where there is nothing to guess.

    bench/speculation.py BUILD_DIR [--rounds N] [--words N] [--speculate N] [--threads N] [--synth]

Servers of the same model run at once: one without speculation, one that looks guesses up in the text itself, one that
also learns from all answers; each of them one process first, then a worker and a coordinator beside two memshards over
TCP. Each request goes to one after the other, in turn, alone or 8 at a time, so that whatever else the machine does
falls on all; the answers must be equal. Rates are tokens a second as a client sees them, prompts and HTTP included;
processor time is that of server, worker and coordinator, which others on the machine disturb less.
Workloads:

  repeats   a conversation in which a question is asked again: the answer stands in the prompt
  new       questions about words that no server has been asked about
  known     the same questions once more
  sampled   temperature 1, no end: text that hardly repeats
  known     (--synth, too) of a scaled-down preset with random weights, of which a step costs what reading them does

Adds rows to bench/results/speculation.csv."""
import argparse
import http.client
import json
import os
import shutil
import subprocess
import tempfile
import threading
import time

import record

COLUMNS = ("model,memshards,workload,draft,speculate,threads,batch,requests,tokens,plain_tok_s,tok_s,ratio,"
           "plain_cpu_ms_a_token,cpu_ms_a_token,plain_steps_a_token,steps_a_token,drafted_a_token,accepted_share,"
           "others_busy_cores").split(",")
WORDS = """river stone winter mountain table music horse window bread island garden bridge letter paper doctor school
summer spring autumn forest ocean desert valley meadow cotton silver copper iron glass leather hammer needle basket
bottle candle mirror ladder pocket button ribbon pillow carpet kitchen chimney cellar tower castle palace temple market
harbor village city street corner border season minute morning evening shadow thunder lightning rainbow""".split()
SYNTH = ["ultramem-151m-x12", "--scale", "0.5", "--vocab", "4096"]


def start_program(build, program, *arguments):
    """(process, its address once it is ready)"""
    ready, written = os.pipe()
    process = subprocess.Popen([record.program(build, program), *arguments, "--ready-fd", str(written)],
                               pass_fds=[written], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.close(written)
    with os.fdopen(ready) as pipe:
        address = pipe.readline().strip()
    if not address:
        raise SystemExit(f"{program} did not start")
    return process, address


class Server:
    """One process; or, with the addresses of memshards, a worker and a coordinator."""

    def __init__(self, options, model, shards, *guess):
        build, threads = options.build, ("--threads", str(options.threads))
        if shards:
            asked = [x for address in shards for x in ("--memshard", address)]
            worker, at = start_program(build, "memrack-worker", "--model", model, *threads, *asked)
            front, self.address = start_program(build, "memrack-coordinator", "--model", model, "--port", "0",
                                                "--worker", at, *guess)
            self.processes = [front, worker]
        else:
            process, self.address = start_program(build, "memrack", "serve", model, "--port", "0", *threads, *guess)
            self.processes = [process]

    def ask(self, method, path, body=None):
        host, port = self.address.rsplit(":", 1)
        connection = http.client.HTTPConnection(host, int(port), timeout=300)
        connection.request(method, path, body and json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
        if response.status != 200:
            raise SystemExit(f"{path} answered {response.status}: {text[:300]}")
        return text

    def answer(self, request):
        """(text, tokens)"""
        path = "/v1/chat/completions" if "messages" in request else "/v1/completions"
        reply = json.loads(self.ask("POST", path, request))
        choice = reply["choices"][0]
        return choice.get("text") or choice.get("message", {}).get("content"), reply["usage"]["completion_tokens"]

    def cpu_seconds(self):
        ticks = 0
        for process in self.processes:
            with open(f"/proc/{process.pid}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def figures(self):
        found = {"cpu": self.cpu_seconds()}
        for line in self.ask("GET", "/metrics").splitlines():
            name, _, value = line.partition(" ")
            for key in ("steps", "speculation_drafted_tokens", "speculation_accepted_tokens", "generated_tokens"):
                if name == f"memrack_{key}_total":
                    found[key] = float(value)
        return found

    def end(self):
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait(timeout=30)


def chat(*turns, **fields):
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)],
            "temperature": 0, **fields}


def workloads(plain, words):
    """name: requests"""
    gloss = {word: plain.answer(chat(f"define {word}"))[0] for word in words}
    pairs = list(zip(words, words[1:] + words[:1]))
    return {"repeats": [chat(f"define {a}", gloss[a], f"define {b}", gloss[b], f"define {a}") for a, b in pairs],
            "new": [chat(f"define {word}") for word in words],
            "known": [chat(f"define {word}") for word in words],
            "sampled": [{"prompt": f"define {word}", "max_tokens": 64, "temperature": 1, "seed": i, "ignore_eos": True}
                        for i, word in enumerate(words)]}


def timed(server, requests):
    """(seconds, answers), all at once"""
    answers = [None] * len(requests)

    def one(i):
        answers[i] = server.answer(requests[i])
    threads = [threading.Thread(target=one, args=(i,)) for i in range(len(requests))]
    begin = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.monotonic() - begin, answers


def measure(servers, requests, batch, rounds):
    """{server: (seconds, figures)}; rounds: of the same requests."""
    before = {name: server.figures() for name, server in servers.items()}
    seconds = dict.fromkeys(servers, 0.0)
    for turn in range(rounds):
        for first in range(0, len(requests), batch):
            seen = {}
            order = list(servers)
            at = (turn + first // batch) % len(order)
            order = order[at:] + order[:at]
            for name in order:
                took, seen[name] = timed(servers[name], requests[first:first + batch])
                seconds[name] += took
            if any(answers != seen["plain"] for answers in seen.values()):
                raise SystemExit(f"the answers differ: {seen}")
    after = {name: server.figures() for name, server in servers.items()}
    return {name: (seconds[name], {key: after[name][key] - before[name][key] for key in after[name]})
            for name in servers}


def rows_of(options, model, shards, workload, batch, count, found, busy):
    plain_s, plain = found["plain"]
    rows = []
    for name in ("lookup", "both"):
        took, f = found[name]
        tokens = f["generated_tokens"]
        drafted = f["speculation_drafted_tokens"]
        rows.append([model, shards, workload, name, options.speculate, options.threads, batch, count, int(tokens),
                     f"{plain['generated_tokens'] / plain_s:.0f}", f"{tokens / took:.0f}", f"{plain_s / took:.2f}",
                     f"{1000 * plain['cpu'] / tokens:.3f}", f"{1000 * f['cpu'] / tokens:.3f}",
                     f"{plain['steps'] / tokens:.3f}", f"{f['steps'] / tokens:.3f}", f"{drafted / tokens:.2f}",
                     f"{f['speculation_accepted_tokens'] / drafted if drafted else 0:.2f}", f"{busy:.1f}"])
        print(",".join(str(x) for x in rows[-1]), flush=True)
    return rows


class Cluster:
    """Memshards, where there are any, and the three servers."""

    def __init__(self, options, model, shards):
        started = [start_program(options.build, "memrack-memshard", "--model", model, "--grid", f"{shards}x1",
                                 "--index", str(i), "--of", str(shards)) for i in range(shards)]
        self.shards = [process for process, _ in started]
        addresses = [address for _, address in started]
        guess = ["--speculate", str(options.speculate), "--draft"]
        self.servers = {"plain": Server(options, model, addresses),
                        "lookup": Server(options, model, addresses, *guess, "lookup"),
                        "both": Server(options, model, addresses, *guess, "both")}

    def end(self):
        for server in self.servers.values():
            server.end()
        for process in self.shards:
            process.terminate()
        for process in self.shards:
            process.wait(timeout=30)


def run_demo(options, shards, batch, busy):
    all_of_it = Cluster(options, os.path.join(record.ROOT, "models", "demo"), shards)
    servers, rows = all_of_it.servers, []
    try:
        for name, requests in workloads(servers["plain"], WORDS[:options.words]).items():
            rounds = options.rounds if name == "known" else 1  # otherwise it would be known, too
            found = measure(servers, requests, batch, rounds)
            rows += rows_of(options, "demo", shards, name, batch, len(requests) * rounds, found, busy)
    finally:
        all_of_it.end()
    return rows


def run_synth(options, busy):
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        model = os.path.join(folder, SYNTH[0])
        subprocess.run([record.program(options.build, "memrack"), "synth", SYNTH[0], model, *SYNTH[1:]], check=True,
                       stdout=subprocess.DEVNULL)
        shutil.copy(os.path.join(record.ROOT, "models", "demo", "tokenizer.json"), model)
        for batch in (1, 8):
            all_of_it = Cluster(options, model, 0)
            try:
                requests = [{"prompt": [(i * 7919 + k * 31) % 4000 for k in range(32)], "max_tokens": 96,
                             "temperature": 0, "ignore_eos": True} for i in range(8)]
                measure(all_of_it.servers, requests, batch, 1)
                found = measure(all_of_it.servers, requests, batch, 1)
                rows += rows_of(options, SYNTH[0], 0, "known", batch, len(requests), found, busy)
            finally:
                all_of_it.end()
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("build")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--words", type=int, default=len(WORDS))
    parser.add_argument("--speculate", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--synth", action="store_true")
    options = parser.parse_args()
    record.wait_until_quiet()
    busy = record.busy_cores()
    print(",".join(COLUMNS))
    rows = []
    for shards, batch in ((0, 1), (0, 8), (2, 1), (2, 8)):
        rows += run_demo(options, shards, batch, busy)
    if options.synth:
        rows += run_synth(options, busy)
    record.append("speculation", COLUMNS, rows)


if __name__ == "__main__":
    main()
