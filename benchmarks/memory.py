"""The most memory that a function needs beyond what was there before it."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

# What the profiler itself has to say is not for readers of a table.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")


def peak_extra_bytes(function: Callable[[], object], device: torch.device) -> int:
    """Bytes that torch's allocator had handed out at the peak of one call of `function`, less those from before it.

    Counted are all tensors made in the call, for as long as they live: results, gradients, what is saved for the
    backward pass, and every intermediate array. Not counted are the tensors that were there before, and what code
    outside of torch's allocator takes for itself. On a CPU the profiler's record of all allocations tells it, exactly
    and the same each time; on CUDA the allocator's own peak.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiled:
        kept = function()
    del kept
    held = peak = 0
    for change in _changes(profiled):
        held += change
        peak = max(peak, held)
    return peak


def _changes(profiled: profile) -> list[int]:
    """Bytes of each allocation, and less than 0 of each release, in the order in which they happened."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiled.export_chrome_trace(str(path))
        events = [event for event in json.loads(path.read_text())["traceEvents"] if event.get("name") == "[memory]"]
    return [event["args"]["Bytes"] for event in sorted(events, key=lambda event: float(event["ts"]))]
