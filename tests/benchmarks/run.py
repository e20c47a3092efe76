"""Training speed of tfpvae beside others, in seconds an epoch: `make bench`.

Each contender trains in a process of its own. They take turns, an epoch each, one at a time, so
that whatever else the machine does meets all of them; ratios are those of epochs of one round.
A contender's first epoch, which builds the model and compiles, is not among the rounds.

Prints the tables, and with --output writes them to speed-table.md and a chart to figures/speed.png.
Wants the machine for itself, and up to 8 GB.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import results
from workloads import CONTENDERS, WORKLOADS

RIVALS = [name for name in CONTENDERS if name != "tfpvae-stream"]
SCALE_ROWS, SCALE_FACTORS = 15_000, (1, 4, 16)
SCALE_ROUNDS = 7  # With fewer, runs on the fewest rows are too short to be compiled by XLA.
TABLES = {
    "parts": ("Where the time of a dense epoch goes", "parts.py"),
    "choice": ("Without XLA and with it", "choice.py"),
    "evaluation": ("Log p(x) of images by importance sampling", "evaluation.py"),
    "nuts": ("Logistic regression beside NUTS", "nuts.py"),
    "memory": ("Memory of training on shards, by the size of the data", "memory.py"),
}


class Worker:
    """A contender in its process, and what it reported."""

    def __init__(self, file, workload, contender, repeat, epochs):
        task = [Path(__file__).with_name("worker.py"), file, workload, contender, repeat, epochs]
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115, the process writes to it
        self._process = subprocess.Popen(
            [sys.executable, *map(str, task)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            bufsize=1,
        )
        self.title = f"{contender} on {workload}"
        self.start = self._read()
        self.first = self.epoch()
        self.rounds = []

    def epoch(self):
        print("go", file=self._process.stdin)
        return self._read()

    def values(self, key):
        return [epoch[key] for epoch in self.rounds]

    @property
    def median(self):
        return statistics.median(self.values("seconds"))

    def close(self):
        self._process.stdin.close()
        self._process.wait()

    def _read(self):
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            raise SystemExit(f"{self._log.read()}\n{self.title}: the process ended, see above")
        return json.loads(line)


def measure(tasks, rounds):
    """Let the workers of the tasks `{key: arguments of Worker}` take turns, `rounds` times."""
    workers = {}
    with contextlib.ExitStack() as stack:
        for key, task in tasks.items():
            workers[key] = worker = Worker(*task, epochs=rounds + 1)
            stack.callback(worker.close)
            progress(f"first epoch of {worker.title}: {worker.first['seconds']:.2f} s")
        for i in range(rounds):
            first = i % len(workers)
            for worker in (*list(workers.values())[first:], *list(workers.values())[:first]):
                worker.rounds.append(worker.epoch())
            times = (f"{key} {worker.rounds[-1]['seconds']:.2f}" for key, worker in workers.items())
            progress(f"round {i + 1} of {rounds}, seconds: {', '.join(times)}")
    for worker in workers.values():
        if statistics.median(worker.values("idle_cpu")) > 0.05:
            progress(f"{worker.title} worked while others were measured: do not trust the times")
    return workers


def race(name, contenders, file, rounds):
    """The workers of a workload; of the two limits the one of the faster framework."""
    tasks = {key: (file, name, key, 1) for key in contenders if name in CONTENDERS[key].workloads}
    workers = measure(tasks, rounds)
    limits = [key for key in workers if key.startswith("products")]
    for slower in sorted(limits, key=lambda key: workers[key].median)[1:]:
        del workers[slower]
    return workers


def scale(contender, factors, file, rounds):
    """The library's workers on so many times the data, by factor."""
    return measure({factor: (file, "mlp", contender, factor) for factor in factors}, rounds)


def table_of(script, options):
    """The table that a script beside this one prints."""
    command = [sys.executable, str(Path(__file__).with_name(script)), f"--rounds={options.rounds}"]
    if script in ("parts.py", "evaluation.py") and options.data:
        command.append(f"--data={options.data}")
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def progress(text):
    print(text, file=sys.stderr, flush=True)


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = (*WORKLOADS, "scale", *TABLES)
    parser.add_argument("--workloads", nargs="+", choices=names, default=names)
    parser.add_argument("--contenders", nargs="+", choices=RIVALS, default=RIVALS)
    parser.add_argument("--rounds", type=int, default=5, help="epochs of each that count: 5")
    parser.add_argument("--data", help="mnist.npz or its folder, else what TFPVAE_DATA names")
    parser.add_argument("--output", type=Path, help="folder for table and chart, such as docs")
    parser.add_argument("--rows", type=int, help="at most so many images, for a quick look")
    return parser.parse_args()


def main():
    options = arguments()
    contenders = [name for name in options.contenders if not CONTENDERS[name].missing]
    for name in set(options.contenders) - set(contenders):
        print(f"{CONTENDERS[name].title} is left out: {CONTENDERS[name].package} is not installed")
    if os.getloadavg()[0] > 0.5:
        progress("the machine has other work: do not trust the times, PyTorch's least of all")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

    from tfpvae import datasets  # Loads TensorFlow, for which --help need not wait.

    images = datasets.load("mnist", options.data, scale=True).x_train[: options.rows]
    parts, panels = [results.facts(options)], {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "images.npy")
        for name in options.workloads:
            if name in TABLES:
                title, script = TABLES[name]
                parts.append(f"## {title}\n\n{table_of(script, options)}")
                continue
            x = images[: SCALE_ROWS if name == "scale" else WORKLOADS[name].rows]
            np.save(file, x)
            if name == "scale":
                rounds = max(options.rounds, SCALE_ROUNDS)
                workers = scale("tfpvae", SCALE_FACTORS, file, rounds)
                parts.append(results.cost_of_batch(workers, len(x)))
                workers = {}
                for factor in (SCALE_FACTORS[0], SCALE_FACTORS[-1]):  # one after the other
                    workers |= scale("tfpvae-stream", [factor], file, rounds)
                parts.append(results.memory_of_stream(workers, len(x)))
            else:
                workers = race(name, contenders, file, options.rounds)
                title = results.title(WORKLOADS[name], len(x))
                parts.append(f"## {title}\n\n{results.speed(workers)}")
                panels[title] = workers
    text = "\n\n".join(parts)
    print(text)
    if options.output:
        (options.output / "figures").mkdir(parents=True, exist_ok=True)
        (options.output / "speed-table.md").write_text(f"# Speed, all figures\n\n{text}\n")
        if panels:
            results.draw(panels, options.output / "figures" / "speed.png")


if __name__ == "__main__":
    main()
