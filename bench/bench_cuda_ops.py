"""Times the CUDA backend's ops one by one; one JSON line a result.

Every speed is given with its share of a limit measured in the same run: of a large device-to-device
copy (bytes read and written) for what moves bytes, of a large bf16 product for what multiplies.
Peers are torch's own kernels on the same data. Run: python bench/bench_cuda_ops.py [--out FILE]
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "cuda"))
from harness import Batch, Cache, Ops, find_library

RESULTS = []
LIMITS = {}


def report(name, us, *, bytes_moved=None, flops=None, **more):
    line = {"bench": "cuda_ops", "name": name, "us": round(us, 2), **more}
    if bytes_moved:
        line["tb_per_s"] = round(bytes_moved / us / 1e6, 3)
        line["share_of_copy"] = round(bytes_moved / us / 1e6 / LIMITS["tb_per_s"], 3)
    if flops:
        line["tflops"] = round(flops / us / 1e6, 1)
        line["share_of_gemm"] = round(flops / us / 1e6 / LIMITS["tflops"], 3)
    RESULTS.append(line)
    print(json.dumps(line), flush=True)


def torch_us(f, inner=1, repeats=20):
    """Median device time of `inner` calls of f(i), a graph of them replayed, in us a call."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for i in range(3):
            f(i)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(inner):
            f(i)
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1000 / inner)
    return statistics.median(times)


def ours_us(call, inner=1, repeats=10):
    """Time of `repeats` calls less that of one, so that the way there and back drops out."""
    call(3)
    times = []
    for _ in range(7):
        t0 = time.perf_counter()
        call(1)
        t1 = time.perf_counter()
        call(1 + repeats)
        t2 = time.perf_counter()
        times.append((t2 - t1 - (t1 - t0)) * 1e6 / repeats / inner)
    return statistics.median(times)


def is_seen(batch, head, query, key):
    return query >= key


def time_peers(what, q, kv, inner=1, causal=False, **work):
    """Times torch's SDPA, in the best of its backends, and its flex_attention, compiled.

    K and V are contiguous; kv(i) gives those of the i'th of `inner` calls.
    """
    times = {}
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):

        def sdpa(i, backend=backend):
            with sdpa_kernel(backend):
                return torch.nn.functional.scaled_dot_product_attention(
                    q, *kv(i), is_causal=causal, enable_gqa=True
                )

        try:
            times[backend.name.split("_")[0].lower()] = torch_us(sdpa, inner)
        except Exception as error:
            print(f"sdpa, {backend.name}, failed:", str(error)[:200])
    if times:
        best = min(times, key=times.get)
        report(f"torch sdpa, contiguous: {what}", times[best], backend=best, **work)
    try:
        length = kv(0)[0].shape[2]
        mask = create_block_mask(is_seen, None, None, length, length) if causal else None
        torch.compiler.reset()
        flex = torch.compile(flex_attention, dynamic=False)
        us = torch_us(lambda i: flex(q, *kv(i), block_mask=mask, enable_gqa=True), inner)
        report(f"torch flex_attention, contiguous: {what}", us, **work)
    except Exception as error:
        print("flex_attention failed:", str(error)[:400])


def measure_limits():
    a = torch.randn(1 << 30, device="cuda")
    b = torch.empty_like(a)
    LIMITS["tb_per_s"] = 8 * a.numel() / torch_us(lambda i: torch.neg(a, out=b), 4) / 1e6
    LIMITS["read_tb_per_s"] = 4 * a.numel() / torch_us(lambda i: torch.sum(a), 4) / 1e6
    x, y = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    z = torch.empty_like(x)
    LIMITS["tflops"] = 2 * 8192**3 / torch_us(lambda i: torch.mm(x, y, out=z), 4) / 1e6
    print(json.dumps({"bench": "cuda_ops", "name": "limits", **LIMITS}), flush=True)
    RESULTS.append({"bench": "cuda_ops", "name": "limits", **LIMITS})


def random_cache(blocks, layers, kv_heads, size, dim, dtype=torch.bfloat16):
    data = torch.empty(blocks, layers, 2, kv_heads, size, dim, dtype=torch.bfloat16, device="cuda")
    for part in data.split(max(1, blocks // 64)):
        part.normal_()
    return data.to(dtype)


def decode_attention(
    ops, batch_size, length, dtype=torch.bfloat16, heads=32, kv_heads=8, dim=128, peers=True
):
    size = 16
    per_seq = (length + size - 1) // size
    item = 1 if dtype == torch.float8_e4m3fn else 2
    layer_bytes = batch_size * per_seq * size * kv_heads * dim * 2 * item
    # Of one call nothing is left in the L2 cache when its layer's turn comes again.
    layers = min(32, math.ceil(2e9 / layer_bytes))
    cache = Cache(random_cache(batch_size * per_seq, layers, kv_heads, size, dim, dtype))
    order = torch.randperm(batch_size * per_seq).view(batch_size, per_seq).tolist()
    ops.stage(Batch([1] * batch_size, [length - 1] * batch_size, order, size, per_seq + 1))
    query = torch.randn(batch_size, heads, dim, device="cuda", dtype=torch.bfloat16)
    out = torch.empty_like(query)
    inner = max(layers, 8)
    ints, floats = ops.attention_args(query, out, cache, 0, 1 / math.sqrt(dim), as_step=inner)
    us = ours_us(lambda n: ops.call("paged_attention", ints, floats, n), inner)
    name = f"decode_attention b{batch_size} len{length} {heads}/{kv_heads} hd{dim} {str(dtype)[6:]}"
    report(name, us, bytes_moved=batch_size * length * kv_heads * dim * 2 * item)
    if not peers or dtype == torch.float8_e4m3fn:
        return
    del cache
    kv = torch.randn(
        layers, 2, batch_size, kv_heads, length, dim, device="cuda", dtype=torch.bfloat16
    )
    time_peers(
        f"b{batch_size} len{length}",
        query[:, :, None],
        lambda i: kv[i % layers],
        inner=max(layers, 8),
        bytes_moved=batch_size * length * kv_heads * dim * 4,
    )


def shared_prefix(ops, batch_size=32, prefix=1024, own=64, heads=32, kv_heads=8, dim=128):
    """Decode attention of sequences that hold their first tokens in the same blocks."""
    size, layers = 16, 16
    per_seq = (prefix + own) // size
    count = prefix // size + batch_size * own // size
    cache = Cache(random_cache(count, layers, kv_heads, size, dim))
    order = torch.randperm(count).tolist()
    common, rest = order[: prefix // size], order[prefix // size :]
    tables = [common + rest[i::batch_size] for i in range(batch_size)]
    query = torch.randn(batch_size, heads, dim, device="cuda", dtype=torch.bfloat16)
    out = torch.empty_like(query)
    ints, floats = ops.attention_args(query, out, cache, 0, 1 / math.sqrt(dim), as_step=layers)
    times = {}
    for share in (False, True):
        contexts = [prefix + own - 1] * batch_size
        ops.stage(Batch([1] * batch_size, contexts, tables, size, per_seq + 1, share=share))
        times[share] = ours_us(lambda n: ops.call("paged_attention", ints, floats, n), layers)
    unique = (prefix + batch_size * own) * kv_heads * dim * 4
    loads = (prefix * math.ceil(batch_size / 16) + batch_size * own) * kv_heads * dim * 4
    report(
        f"decode_attention b{batch_size} on {prefix} shared tokens and {own} own",
        times[True],
        bytes_moved=unique,
        us_unshared=round(times[False], 2),
        speed_up=round(times[False] / times[True], 2),
        loaded_over_unique=round(loads / unique, 2),
    )


def prefill_attention(ops, length, dtype=torch.bfloat16, heads=32, kv_heads=8, dim=128, peers=True):
    size = 16
    per_seq = length // size
    cache = Cache(random_cache(per_seq, 2, kv_heads, size, dim, dtype))
    ops.call("reserve_steps", [length, 8, per_seq + 1])
    ops.stage(Batch([length], [0], [torch.randperm(per_seq).tolist()], size, per_seq + 1))
    query = torch.randn(length, heads, dim, device="cuda", dtype=torch.bfloat16)
    out = torch.empty_like(query)
    ints, floats = ops.attention_args(query, out, cache, 0, 1 / math.sqrt(dim))
    us = ours_us(lambda n: ops.call("paged_attention", ints, floats, n), repeats=5)
    flops = 2 * heads * dim * length * length
    report(
        f"prefill_attention len{length} {heads}/{kv_heads} hd{dim} {str(dtype)[6:]}",
        us,
        flops=flops,
    )
    if not peers:
        return
    q = query.transpose(0, 1)[None].contiguous()
    kv = torch.randn(2, 1, kv_heads, length, dim, device="cuda", dtype=torch.bfloat16)
    time_peers(f"prefill len{length}", q, lambda i: kv, causal=True, flops=flops)


def linear(ops, rows, k, n, epilogue="store"):
    copies = max(1, min(16, int(6e8 // (n * k * 2))))
    weights = [torch.randn(n, k, device="cuda", dtype=torch.bfloat16) / 64 for _ in range(copies)]
    x = torch.randn(rows, k, device="cuda", dtype=torch.bfloat16)
    y = torch.empty(rows, n, device="cuda", dtype=torch.bfloat16)
    lists = [ops.linear_ints(x, [w], y) for w in weights]
    ints = [len(lists)] + [v for one in lists for v in one]
    us = ours_us(lambda r: ops.call("linears", ints, (), r), copies)
    report(f"linear m{rows} k{k} n{n} bf16", us, bytes_moved=n * k * 2, flops=2 * rows * n * k)
    z = torch.empty_like(y)
    report(
        f"torch mm m{rows} k{k} n{n} bf16",
        torch_us(lambda i: torch.mm(x, weights[i % copies].T, out=z), copies),
        bytes_moved=n * k * 2,
        flops=2 * rows * n * k,
    )


def blocks(ops, count=256):
    cache = Cache(random_cache(2 * count, 32, 8, 16, 128))
    pairs = [(i, count + i) for i in range(count)]
    block_bytes = cache.data[0].numel() * 2
    us = ours_us(lambda n: ops.copies(0, cache, pairs, repeats=n))
    report(
        f"copy_blocks {count} of {block_bytes >> 10} KiB", us, bytes_moved=2 * count * block_bytes
    )
    host = ops.lib.ops_allocate_host(ops.handle, count * block_bytes)
    pinned = torch.empty(count * block_bytes, dtype=torch.uint8, pin_memory=True)
    device = torch.empty(count * block_bytes, dtype=torch.uint8, device="cuda")
    scattered = [(i, j) for i, j in enumerate(torch.randperm(count).tolist())]
    for what, label in ((1, "swap_out"), (2, "swap_in")):
        src, dst = (device, pinned) if what == 1 else (pinned, device)
        t = []
        for _ in range(5):
            torch.cuda.synchronize()
            t0 = time.perf_counter()
            dst.copy_(src, non_blocking=True)
            torch.cuda.synchronize()
            t.append((time.perf_counter() - t0) * 1e6)
        link = count * block_bytes / statistics.median(t) / 1e3
        us = ours_us(
            lambda n, w=what: ops.copies(w, cache, scattered, host, count, repeats=n), repeats=3
        )
        report(
            f"{label} {count} of {block_bytes >> 10} KiB",
            us,
            gb_per_s=round(count * block_bytes / us / 1e3, 1),
            share_of_link=round(count * block_bytes / us / 1e3 / link, 3),
        )
    ops.lib.ops_free_host(ops.handle, host)


def sampling(ops, rows, vocab, label, **settings):
    logits = torch.randn(rows, vocab, device="cuda") * 3
    how = [{"logit_row": i, "seed": i, "position": 5, **settings} for i in range(rows)]
    times = []
    for _ in range(8):
        t0 = time.perf_counter()
        ops.sample(logits, how)
        times.append((time.perf_counter() - t0) * 1e6)
    report(
        f"sample {label} {rows}x{vocab}, with the way there and back", statistics.median(times[2:])
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    ops = Ops(find_library())
    driver = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
        capture_output=True,
        text=True,
    ).stdout.split()
    about = {
        "device": torch.cuda.get_device_name(),
        "backend": ops.description,
        "torch": torch.__version__,
        "driver": driver[0],
        "commit": os.environ.get("COMMIT", ""),
    }
    print(json.dumps(about), flush=True)
    measure_limits()
    for b, n in (
        (8, 16384),
        (32, 4096),
        (8, 4096),
        (1, 1024),
        (1, 4096),
        (1, 8192),
        (256, 512),
        (32, 1024),
    ):
        decode_attention(ops, b, n, peers=not args.quick)
        torch.cuda.empty_cache()
    decode_attention(ops, 32, 4096, torch.float8_e4m3fn)
    decode_attention(ops, 32, 4096, dim=64)
    shared_prefix(ops)
    shared_prefix(ops, 8, 1024)
    shared_prefix(ops, 128, 2048)
    for n in (1024, 2048, 4096, 8192, 16384):
        prefill_attention(ops, n, peers=not args.quick)
    prefill_attention(ops, 8192, dim=64, peers=False)
    shapes = ((2048, 2048), (2048, 3072), (8192, 2048))  # of the 1B shape, then of the 8B one
    for m in (1, 8, 32, 256):
        for k, n in (*shapes, (4096, 6144), (4096, 28672), (14336, 4096)):
            linear(ops, m, k, n)
    for count in (64, 256):
        blocks(ops, count)
    for rows in (1, 256):
        sampling(ops, rows, 128256, "greedy")
        sampling(ops, rows, 128256, "top_p 0.9", temperature=1.0, top_p=0.9)
        sampling(ops, rows, 128256, "top_k 50", temperature=1.0, top_k=50)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text("".join(json.dumps({**about, **line}) + "\n" for line in RESULTS))


if __name__ == "__main__":
    main()
