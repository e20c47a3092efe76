"""What was tried to break the library, how often, and what survived: docs/reliability.md.

python tests/reliability.py                     all sections: hours
python tests/reliability.py inputs --share 0.1  one of them, with a tenth of the tries
"""

import argparse
import gc
import importlib
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import hypothesis
import numpy as np
import tf_keras as keras

import tfpvae
from tfpvae import execution, likelihoods, networks, posteriors, priors

FOLDER = Path(__file__).parent
PAGE = FOLDER.parent / "docs" / "reliability.md"
FLAT = 0.05  # growth of the resident memory that counts as none
BATCH_SIZES = 64
MARKS = "<!-- table -->", "<!-- end of the table -->"


class Row(NamedTuple):
    """A line of the table."""

    what: str
    tried: str
    survived: str
    remark: str = ""


class Progress:
    """A line that says how far a section is, renewed every few seconds."""

    def __init__(self, what, total):
        self._what, self._total, self._start, self._shown = what, total, time.monotonic(), 0.0

    def update(self, done):
        now = time.monotonic()
        if now - self._shown < 5.0 and done < self._total:
            return
        self._shown = now
        print(f"  {self._what}: {done} of {self._total}, {now - self._start:.0f} s", flush=True)


# Soak: many calls in one process.


def resident():
    """Resident memory of this process, in MiB; where nobody tells, the largest it has been."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class _Traces:
    """Counts what our programs trace, and Keras's function for predictions."""

    def __init__(self, model):
        self._model, self.num = model, 0

    def __enter__(self):
        self._concrete = concrete = execution.Traced.concrete

        def counting(traced, *arguments):
            before = len(traced._concrete)
            found = concrete(traced, *arguments)
            self.num += len(traced._concrete) - before
            return found

        execution.Traced.concrete = counting
        return self

    def __exit__(self, *_):
        execution.Traced.concrete = self._concrete

    @property
    def total(self):
        function = getattr(self._model, "predict_function", None)
        counted = getattr(function, "experimental_get_tracing_count", None)
        return self.num + (counted() if counted else 0)


def soaked(what, call, tried, model):
    """Call a function many times; the growth of memory after a tenth of them, and the traces."""
    rng, progress = np.random.default_rng(0), Progress(what, tried)
    warm = max(tried // 10, 2)
    with _Traces(model) as traces:
        for done in range(1, tried + 1):
            call(int(rng.integers(1, BATCH_SIZES + 1)), rng)
            if done == 1:
                first = traces.total
            if done == warm:
                gc.collect()
                before = resident()
            progress.update(done)
        again = traces.total - first
    gc.collect()
    after = resident()
    growth = after / before - 1.0
    flat = growth <= FLAT
    remark = f"{before:.0f} to {after:.0f} MiB, {growth:+.1%}; {again} traces after the first call"
    print(f"  {what}: {remark}", flush=True)
    return Row(what, f"{tried} calls", "flat" if flat and not again else "not flat", remark)


def ending(block, *first):
    """A small network that ends in a block."""
    return keras.Sequential(
        [
            *first,
            keras.layers.Dense(16, "relu"),
            keras.layers.Dense(block.params_size),
            block,
        ]
    )


def small_vae(seed=0):
    """A small model of incomplete data, so that all methods are there."""
    vae = tfpvae.VAE(
        priors.StandardNormal(2),
        ending(posteriors.DiagonalNormal(2), networks.FillMissing()),
        ending(likelihoods.Masked(likelihoods.Normal(8))),
        seed=seed,
    )
    vae.compile("adam")
    return vae


def soak(share):
    """Short fits and calls of every inference method in one process."""
    x = np.random.default_rng(0).normal(size=(BATCH_SIZES, 8)).astype("float32")
    x[::3, 2] = np.nan
    vae = small_vae()
    quiet = {"verbose": 0}

    def rows(size, rng):
        return x[rng.permutation(BATCH_SIZES)[:size]]

    def fit(size, rng):
        part = rows(int(rng.integers(1, BATCH_SIZES + 1)), rng)
        vae.fit(part, batch_size=size, epochs=1, **quiet)

    def of(method, *arguments, **settings):
        return lambda size, rng: getattr(vae, method)(rows(size, rng), *arguments, **settings)

    z = np.random.default_rng(0).normal(size=(BATCH_SIZES, 2)).astype("float32")
    calls = {
        "VAE.elbo": of("elbo", 2, **quiet),
        "VAE.log_weights": of("log_weights", 2, **quiet),
        "VAE.posterior": of("posterior"),
        "VAE.likelihood": lambda size, rng: vae.likelihood(z[:size]),
        "VAE.sample": lambda size, rng: vae.sample(size, **quiet),
        "VAE.reconstruct": of("reconstruct", **quiet),
        "VAE.predict": of("predict", batch_size=32, **quiet),
        "VAE.predict_distribution": of("predict_distribution"),
        "VAE.evaluate": of("evaluate", batch_size=32, **quiet),
        "VAE.log_marginal_likelihood": of("log_marginal_likelihood", 30, **quiet),
        "VAE.impute": of("impute", 10, **quiet),
    }
    fits, num = max(round(2000 * share), 5), max(round(10_000 * share), 20)
    found = [soaked("fits of one VAE", fit, fits, vae)]
    found += [soaked(name, call, num, vae) for name, call in calls.items()]

    regression = tfpvae.BayesianRegression(likelihoods.Normal(), seed=0)
    features = np.nan_to_num(x)
    y = features[:, 0] + np.random.default_rng(1).normal(size=BATCH_SIZES)
    regression.fit(features, y, steps=50, verbose=0)

    def given(method, *arguments, target=False):
        def call(size, rng):
            data = (features[:size], y[:size]) if target else (features[:size],)
            getattr(regression, method)(*data, *arguments)

        return call

    calls = {
        "BayesianRegression.predict": given("predict", 10),
        "BayesianRegression.predict_distribution": given("predict_distribution", 10),
        "BayesianRegression.elbo": given("elbo", 10, target=True),
        "BayesianRegression.log_likelihood": given("log_likelihood", 10, target=True),
    }
    found += [soaked(name, call, num, regression) for name, call in calls.items()]

    def fresh(size, rng):
        small_vae(size).fit(rows(size, rng), batch_size=8, epochs=1, **quiet)
        gc.collect()

    # They cannot be flat to the trace: each model is traced anew.
    row = soaked("fits of models made anew", fresh, max(round(200 * share), 5), None)
    before, after = map(float, re.findall(r"(\d+) to (\d+) MiB", row.remark)[0])
    made = max(round(200 * share), 5)
    each = (after - before) / (made - max(made // 10, 2))
    remark = f"{before:.0f} to {after:.0f} MiB: {each:.2f} MiB a model"
    verdict = "flat" if after / before - 1.0 <= FLAT else "not flat"
    return [*found, row._replace(survived=verdict, remark=remark)]


# What others try: modules beside this one.


def _beside(name):
    """A module of this folder."""
    sys.path.insert(0, str(FOLDER))
    return importlib.import_module(name)


def kills(share):
    """Training that is killed, and goes on as if it had not been."""
    found = _beside("kills").run(max(round(40 * share), 1), 0, lambda line: print(f"  {line}"))
    tried = f"{found['kills']} kills in {found['runs']} runs"
    epochs = [epoch or 0 for epoch in found["epochs"]]
    between = f"killed after {min(epochs)} to {max(epochs)} of 40 epochs"
    return [Row("runs that end with the same bits", tried, f"{found['same']} runs", between)]


def files(share):
    """Files that were corrupted: refused, or what they were."""
    module = _beside("fuzz_files")
    found = module.run(max(round(1000 * share), 5), 0)
    survived = sum(found[outcome] for outcome in module.OUTCOMES[:3])
    remark = ", ".join(f"{found[outcome]} {outcome}" for outcome in module.OUTCOMES)
    return [Row("mutations of model files", str(found["num"]), str(survived), remark)]


NUM_INPUTS = 12_000


def tries(case, shared, num, seed=0):
    """What a case did wrong in so many tries, an entry for each; None where it did nothing."""
    hostile = _beside("hostile")
    found = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=num,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(hostile.examples(case))
    def attempt(spoilt):
        found.append(hostile.tried(shared, case, spoilt))

    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:  # Some calls write a file under any name.
        os.chdir(folder)
        try:
            attempt()
        finally:
            os.chdir(here)
    return found


def inputs(share):
    """Odd arguments of every public function, method and constructor."""
    hostile = _beside("hostile")
    cases, shared = hostile.cases(), hostile.Shared()
    each = max(round(NUM_INPUTS * share / len(cases)), 2)
    progress, tried, failed, short = Progress("callables", len(cases)), 0, 0, []
    for done, (path, case) in enumerate(cases.items(), 1):
        found = tries(case, shared, each)
        faults = [fault for fault in found if fault]
        tried, failed = tried + len(found), failed + len(faults)
        if faults:
            short.append(f"{path} ({len(faults)})")
            print(f"  {path}: {len(faults)} times, as {faults[0]}", flush=True)
        progress.update(done)
    remark = f"of {len(cases)} public callables" + (f"; short: {', '.join(short)}" if short else "")
    what = "odd arguments: a result, or an error that names one"
    return [Row(what, str(tried), str(tried - failed), remark)]


def _tests(what, *arguments):
    """The row of pytest's cases."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        subprocess.run([*command, f"--junitxml={report}", *arguments], cwd=FOLDER.parent)
        suite = re.search(r"<testsuite [^>]*>", report.read_text()).group()
    count = {
        name: int(re.search(rf'{name}="(\d+)"', suite).group(1))
        for name in ("tests", "failures", "errors", "skipped")
    }
    tried = count["tests"] - count["skipped"]
    survived = tried - count["failures"] - count["errors"]
    skipped = f"{count['skipped']} skipped" if count["skipped"] else ""
    return Row(what, f"{tried} cases", str(survived), skipped)


def workers(share):
    """Several workers: the tests of tests/test_distribute.py."""
    return [_tests("cases of several devices and workers", str(FOLDER / "test_distribute.py"))]


def precisions(share):
    """The tests of tests/test_precision.py: all of them, or with a small share the quick ones."""
    marked = "not study" if share == 1.0 else "not study and not long"
    test = str(FOLDER / "test_precision.py")
    return [_tests("blocks and models in other precisions", test, "-m", marked)]


SECTIONS = {
    "kills": kills,
    "files": files,
    "inputs": inputs,
    "workers": workers,
    "precisions": precisions,
    "soak": soak,
}


def updated(page, found):
    """The page with the lines of these sections in place of what its table has of them."""
    before, rest = page.split(MARKS[0], 1)
    old, after = rest.split(MARKS[1], 1)
    known = {}
    for line in old.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        if cells[0] in SECTIONS:
            known.setdefault(cells[0], []).append(line)
    lines = ["", "| section | what | tried | survived | remark |", "|---|---|---|---|---|"]
    for name in SECTIONS:
        rows = found.get(name)
        if rows:
            lines += ["| " + " | ".join((name, *row)) + " |" for row in rows]
        else:
            lines += known.get(name, [f"| {name} | not run | | | |"])
    return before + MARKS[0] + "\n".join([*lines, ""]) + MARKS[1] + after


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sections", nargs="*", help=f"some of {', '.join(SECTIONS)}; all if none")
    parser.add_argument("--share", type=float, default=1.0, help="of the tries of each section")
    parser.add_argument("--output", type=Path, default=PAGE, help="the page with the table")
    options = parser.parse_args(arguments)
    unknown = {*options.sections} - {*SECTIONS}
    if unknown:
        parser.error(f"sections: got {sorted(unknown)}, wanted some of {', '.join(SECTIONS)}")
    if not 0.0 < options.share <= 1.0:
        parser.error(f"--share: got {options.share}, wanted a number > 0 and <= 1")
    for name in options.sections or SECTIONS:
        print(f"{name}:", flush=True)
        try:
            rows = SECTIONS[name](options.share)
        except Exception as error:  # One section that fails is a line of the table.
            traceback.print_exc()
            rows = [Row("the section itself", "", "failed", type(error).__name__)]
        for row in rows:
            print("  " + ": ".join(filter(None, row)), flush=True)
        options.output.write_text(updated(options.output.read_text(), {name: rows}))


if __name__ == "__main__":
    main()
