# SPDX-License-Identifier: MIT
"""Times, memory and the machine's ceilings, by events of the device."""
import statistics
import time

import torch


def milliseconds(fn, budget_s=0.4, least=5):
    """Median and spread of device time; the caches are as the last call left them, and every tensor
    here is far larger than L2."""
    fn()
    torch.cuda.synchronize()
    start, end = torch.cuda.Event(True), torch.cuda.Event(True)
    start.record()
    fn()
    end.record()
    torch.cuda.synchronize()
    repeats = max(least, min(50, int(budget_s * 1e3 / max(start.elapsed_time(end), 1e-3))))
    events = [(torch.cuda.Event(True), torch.cuda.Event(True)) for _ in range(repeats)]
    for a, b in events:
        a.record()
        fn()
        b.record()
    torch.cuda.synchronize()
    times = sorted(a.elapsed_time(b) for a, b in events)
    return statistics.median(times), times[0], times[-1]


def in_turn(runs, rounds):
    """Medians of several calls, one after the other in every round. Each starts from the same state:
    a chip that had as long to cool as the call before took, and a queue that is filled before the
    clock starts."""
    for fn in runs.values():
        fn()
    events = {name: [] for name in runs}
    began = time.monotonic()
    for _ in range(rounds):
        for name, fn in runs.items():
            torch.cuda.synchronize()
            time.sleep(max(0.04, time.monotonic() - began))
            began = time.monotonic()
            a, b = torch.cuda.Event(True), torch.cuda.Event(True)
            torch.cuda._sleep(2_000_000)  # about a millisecond, in which the calls are enqueued
            a.record()
            fn()
            b.record()
            events[name].append((a, b))
    torch.cuda.synchronize()
    medians = {}
    for name, pairs in events.items():
        times = sorted(a.elapsed_time(b) for a, b in pairs)
        medians[name] = {"ms": statistics.median(times), "min": times[0], "max": times[-1]}
    return medians


class Machine:
    """Ceilings measured here and now."""

    def __init__(self):
        a = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
        b = torch.empty_like(a)
        self.bytes_per_s = 2 * a.numel() / milliseconds(lambda: b.copy_(a))[0] * 1e3
        x = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
        self.flops = 2 * 8192 ** 3 / milliseconds(lambda: x @ x)[0] * 1e3

    def floor_ms(self, num_bytes, flops=0.0):
        return max(num_bytes / self.bytes_per_s, flops / self.flops) * 1e3


def peak_extra(fn):
    """Bytes that torch allocates during a call, beyond what lives before it."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    keep = fn()
    torch.cuda.synchronize()
    del keep
    return torch.cuda.max_memory_allocated() - before
