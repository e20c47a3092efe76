"""What was measured, as Markdown and as a chart."""

import contextlib
import importlib.metadata
import math
import os
import platform
import statistics
from pathlib import Path

import matplotlib
import numpy as np
from workloads import CONTENDERS, WORKLOADS

matplotlib.use("Agg")
PACKAGES = ("tensorflow", "tf-keras", "tensorflow-probability", "torch", "pythae")


def facts(options):
    """The processor, the versions and the command, in one line."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    found = [models[0] if models else platform.processor(), f"{os.cpu_count()} cores"]
    found.append(f"Python {platform.python_version()}")
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{package} {importlib.metadata.version(package)}")
    command = f"python tests/benchmarks/run.py --workloads {' '.join(options.workloads)}"
    command += f" --rounds {options.rounds}" + (f" --rows {options.rows}" if options.rows else "")
    return f"{', '.join(found)}. `{command}`"


def title(workload, rows):
    data = f"{rows:,} images, batches of {workload.batch_size}"
    return f"{workload.title}, {workload.optimizer}, {data}"


def speed(workers):
    """Seconds an epoch; `x tfpvae` is the median over the rounds of the ratio of times."""
    rows = []
    for key, worker in workers.items():
        loss = worker.rounds[-1]["loss"]
        rows.append(
            [
                CONTENDERS[key].title,
                *_spread(worker.values("seconds")),
                _ratio(worker, workers.get("tfpvae")),
                f"{worker.first['seconds'] - worker.median:.1f}",
                f"{worker.rounds[-1]['peak']:.0f}",
                "" if math.isnan(loss) else f"{loss:.1f}",
            ]
        )
    names = "contender", "s/epoch", "min - max", "x tfpvae", "start-up s", "peak MB", "loss"
    return _table(names, rows)


def cost_of_batch(workers, rows):
    """Milliseconds a batch by the number of rows."""
    batch_size = WORKLOADS["mlp"].batch_size
    costs = {
        factor: 1e3 * np.array(worker.values("seconds")) / math.ceil(rows * factor / batch_size)
        for factor, worker in workers.items()
    }
    return _table(
        ("rows in arrays", "ms/batch", "min - max", "x first"),
        [
            [f"{rows * factor:,}", *_spread(cost), f"{np.median(cost / costs[1]):.2f}"]
            for factor, cost in costs.items()
        ],
    )


def memory_of_stream(workers, rows):
    """Resident memory by the length of the stream."""
    table = []
    for factor, worker in workers.items():
        sizes = [at["resident"] for at in (worker.start, worker.first, worker.rounds[-1])]
        sizes.append(sizes[-1] - sizes[0])
        table.append([f"{rows * factor:,}", *(f"{size:.0f}" for size in sizes)])
    names = "rows in a stream", "MB at start", "after first epoch", "after last", "growth"
    return _table(names, table)


def draw(panels, file):
    """A panel of bars for each workload."""
    import matplotlib.pyplot as plt

    size = (8, 3.2 * len(panels))
    figure, axes = plt.subplots(len(panels), figsize=size, squeeze=False, layout="constrained")
    for ax, (name, workers) in zip(axes.flat, panels.items(), strict=True):
        for i, (key, worker) in enumerate(workers.items()):
            seconds = worker.values("seconds")
            whisker = [[worker.median - min(seconds)], [max(seconds) - worker.median]]
            own = key == "tfpvae"
            color = "tab:orange" if own else "tab:gray"
            ax.barh(i, worker.median, xerr=whisker, color=color, capsize=3)
            ratio = _ratio(worker, workers.get("tfpvae"))
            text = f"  {ratio} x" if ratio else ""
            ax.text(max(seconds), i, text, va="center", weight="bold" if own else "normal")
        ax.set_yticks(range(len(workers)), [CONTENDERS[key].title for key in workers])
        ax.set(title=name, xlabel="seconds an epoch: median, least to most", axisbelow=True)
        ax.set_xlim(0, 1.15 * max(max(worker.values("seconds")) for worker in workers.values()))
        ax.invert_yaxis()
        ax.grid(axis="x", alpha=0.4)
        ax.spines[["top", "right"]].set_visible(False)
    figure.suptitle("Time to train one epoch, and its ratio to that of tfpvae", weight="bold")
    figure.savefig(file, dpi=150)


def _spread(values):
    return f"{np.median(values):.3f}", f"{min(values):.3f} - {max(values):.3f}"


def _ratio(worker, own):
    if own is None:
        return ""
    pairs = zip(worker.values("seconds"), own.values("seconds"), strict=True)
    return f"{statistics.median(a / b for a, b in pairs):.2f}"


def _table(names, rows):
    rule = ["---", *["---:"] * (len(names) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (names, rule, *rows))
