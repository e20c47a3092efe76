"""A process that trains one contender, epoch by epoch, each when it is told to.

Started by run.py. A line on stdin starts the next epoch, the end of stdin ends the process; a line
of JSON on stdout follows each epoch, and one before the first says that all is loaded.
"""

import dataclasses
import importlib
import json
import os
import resource
import sys
import time
from pathlib import Path

import numpy as np
from workloads import CONTENDERS, WORKLOADS


class Report:
    """Take the time of an epoch, send it, and wait for the word to go on."""

    def __init__(self, pipe):
        self._pipe = pipe
        self._send()

    def __call__(self, loss):
        seconds = time.perf_counter() - self._start
        self._send(seconds=seconds, loss=float(loss), idle_cpu=self._idle_cpu)

    def _send(self, **message):
        print(json.dumps(message | memory()), file=self._pipe)
        cpu = time.process_time()
        if not sys.stdin.readline():
            sys.exit()
        # Whoever prepares the next epoch while others are measured gets caught.
        self._idle_cpu = time.process_time() - cpu
        self._start = time.perf_counter()


def memory():
    """Resident memory now and at its peak, in MB."""
    status = Path("/proc/self/status")
    if status.exists():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        now, peak = (int(fields[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))
    else:  # macOS, which counts in bytes
        now, peak = float("nan"), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    return {"resident": now, "peak": peak}


def main():
    # What the libraries print must not get between the lines.
    pipe = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    file, name, contender, repeat, epochs = sys.argv[1:]
    contender = CONTENDERS[contender]
    train = getattr(importlib.import_module(contender.module), contender.function)
    x = np.load(file).reshape(-1, *WORKLOADS[name].shape)
    workload = dataclasses.replace(WORKLOADS[name], rows=len(x), repeat=int(repeat))
    train(workload, x, int(epochs), Report(pipe))


if __name__ == "__main__":
    main()
