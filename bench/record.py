"""What the benchmark drivers share: the machine, the commit, the CSV files.

Every row of bench/results/*.csv begins with when, on which commit and on which machine it was
measured, so that figures of different machines and times are never compared by accident."""
import csv
import datetime
import os
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
HEAD = ["date", "commit", "cpu", "cores"]


def cpu_model():
    """The processor's name; virtual machines may only give family and model."""
    fields = {}
    with open("/proc/cpuinfo") as file:
        for line in file:
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    return (f"{fields.get('model name', 'unknown')} family {fields.get('cpu family', '?')}"
            f" model {fields.get('model', '?')}").replace(",", " ")


def commit():
    """Short id of HEAD, with a + where tracked files were changed since."""
    run = subprocess.run(["git", "describe", "--always", "--dirty=+", "--exclude=*"], cwd=ROOT,
                         capture_output=True, text=True)
    return run.stdout.strip() or "none"


def machine():
    today = datetime.datetime.now().strftime("%Y-%m-%d %H:%M")
    return [today, commit(), cpu_model(), os.cpu_count()]


def busy_cores(seconds=1.0):
    """How many cores the whole machine kept busy, on average."""
    def ticks():
        with open("/proc/stat") as file:
            fields = [int(x) for x in file.readline().split()[1:9]]
        return sum(fields), fields[3] + fields[4]
    total, idle = ticks()
    time.sleep(seconds)
    total_after, idle_after = ticks()
    return os.cpu_count() * (1 - (idle_after - idle) / max(total_after - total, 1))


def wait_until_quiet(limit_s=20):
    """Other people's work makes figures worthless: waits until there is nearly none, else says so."""
    until = time.monotonic() + limit_s
    while (busy := busy_cores()) > 0.15:
        if time.monotonic() > until:
            print(f"the machine is not quiet ({busy:.1f} cores busy): figures may be off", file=sys.stderr)
            return


def append(name, columns, rows):
    """Adds rows to bench/results/NAME.csv; a file with other columns is refused."""
    path = os.path.join(ROOT, "bench", "results", name + ".csv")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    head = HEAD + columns
    if os.path.exists(path):
        with open(path) as file:
            found = next(csv.reader(file), [])
        if found != head:
            sys.exit(f"{path} has other columns: move it away first")
    new = not os.path.exists(path)
    with open(path, "a", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        if new:
            out.writerow(head)
        here = machine()
        for row in rows:
            out.writerow(here + list(row))
    print(f"{len(rows)} rows added to bench/results/{name}.csv")


def program(build, *parts):
    path = os.path.join(build, *parts)
    if not os.access(path, os.X_OK):
        sys.exit(f"{path} is not there: build it first (cmake -S . -B {build} && cmake --build {build})")
    return path
