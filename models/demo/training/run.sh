#!/bin/sh
# Prepare the data and train the three models one after the other. Start it again to resume.
# usage: run.sh WORK        (a folder with some 500 MB free)
# PYTHON, STEPS and MODELS may be set in the environment.
set -e
here=$(cd "$(dirname "$0")" && pwd)
work=${1:?usage: run.sh WORK}
python=${PYTHON:-python3}
mkdir -p "$work"
# An allocator that keeps its pages saves about a fifth of the time.
jemalloc=$(ls /usr/lib/*/libjemalloc.so.2 2>/dev/null | head -n 1)
if [ -n "$jemalloc" ]; then
    export LD_PRELOAD="$jemalloc" MALLOC_CONF=dirty_decay_ms:-1,muzzy_decay_ms:-1
fi
[ -f "$work/entries.json" ] || "$python" "$here/prepare.py" "$work"
for name in ${MODELS:-ultramemv2 dense moe}; do
    "$python" "$here/train.py" "$name" "$work" ${STEPS:+--steps "$STEPS"}
done
