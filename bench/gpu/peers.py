#!/usr/bin/env python3
"""What PyTorch does on the same GPU: copy, matrix rates, embedding_bag with weights. CSV as bench.c prints it.

    bench/gpu/peers.py          needs torch with CUDA; without it, it says so and prints nothing else

Rows are drawn at random from a table of 8 GiB, at least 64 MiB of them a call; best of several calls by events."""
import sys

try:
    import torch
except ImportError:
    sys.exit("peers.py: no torch here: nothing to compare with")
if not torch.cuda.is_available():
    sys.exit("peers.py: torch sees no GPU")

ENTRIES, LAUNCH = 84, 256 << 20


def best(call, rounds=12):
    times = []
    for _ in range(rounds):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return min(times[2:])


def main():
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = False
    source = torch.randint(-99, 99, (1 << 28,), dtype=torch.int32, device="cuda")
    target = torch.empty_like(source)
    ms = best(lambda: target.copy_(source))
    rate = 2 * source.numel() * 4 / ms / 1e6
    print(f"torch copy,bytes,0,{2 * source.numel() * 4},{ms:.4f},{rate:.1f},1.000")
    del source, target
    for dtype, name in ((torch.bfloat16, "bf16"), (torch.float32, "f32")):
        a, b = (torch.randn(8192, 8192, device="cuda", dtype=dtype) for _ in range(2))
        ms = best(lambda: a @ b)
        print(f"torch matmul 8192,{name},0,{2 * 8192 ** 3},{ms:.4f},{2 * 8192 ** 3 / ms / 1e6:.0f} GFLOP/s,")
        del a, b
    for row_bytes in (256, 384, 512, 1024, 2048):
        for dtype, name, size in ((torch.float32, "f32", 4), (torch.bfloat16, "bf16", 2)):
            columns, rows = row_bytes // size, (8 << 30) // row_bytes
            table = torch.empty(rows, columns, device="cuda", dtype=dtype).uniform_(-1, 1)
            tokens = LAUNCH // row_bytes // ENTRIES + 1
            index = torch.randint(0, rows, (tokens, ENTRIES), device="cuda")
            weight = torch.rand(tokens, ENTRIES, device="cuda", dtype=dtype)
            ms = best(lambda: torch.nn.functional.embedding_bag(index, table, mode="sum", per_sample_weights=weight))
            moved = tokens * ENTRIES * row_bytes
            print(f"torch embedding_bag,{name},{row_bytes},{moved},{ms:.4f},{moved / ms / 1e6:.1f},"
                  f"{moved / ms / 1e6 / rate:.3f}", flush=True)
            del table, index, weight


if __name__ == "__main__":
    main()
