"""How long logistic regression takes beside NUTS, to the same accuracy.

For each data set a long run of NUTS is the reference. Then both start anew: `fit`, with a full-rank
and with a mean-field normal, and chains of NUTS that grow until their means and standard deviations
are as close to the reference as those of the full-rank `fit`. Each is timed twice: with what
building and compiling costs, and again without. The last row is a short run of NUTS as TFP runs
it by default, in a `tf.function` without XLA.
"""

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from sklearn import datasets

from tfpvae import BayesianRegression, likelihoods, posteriors

CHAINS, WARM_UP = 4, 500


def breast_cancer():
    x, y = datasets.load_breast_cancer(return_X_y=True)
    return (x - x.mean(axis=0)) / x.std(axis=0), y


def simulated(rows, columns=20):
    """Rows enough to keep a processor busy; columns with a correlation of 0.5."""
    rng = np.random.default_rng(0)
    x = np.sqrt(0.5) * (rng.normal(size=(rows, 1)) + rng.normal(size=(rows, columns)))
    logits = x @ rng.normal(size=columns) / 2
    return x, (rng.random(rows) < 1 / (1 + np.exp(-logits))).astype(int)


class Case(NamedTuple):
    """Data, the draws of a chain of the reference, and those of the chains that are timed."""

    load: Callable
    reference: int = 2500
    lengths: tuple[int, ...] = (250, 1000, 2000)
    thorough: bool = True  # with compiled chains again, and without XLA


DATA = {
    "breast cancer, 569 x 30": Case(breast_cancer),
    "simulated, 4,000 x 20": Case(partial(simulated, 4_000)),
    "simulated, 100,000 x 20": Case(partial(simulated, 100_000), 500, (250,), False),
}


class Nuts:
    """NUTS of TFP, compiled by XLA or not, for N(0, 1) coefficients."""

    def __init__(self, x, y, xla=True):
        self.design = tf.constant(np.column_stack([x, np.ones(len(x))]), tf.float32)
        self.y = tf.constant(y, tf.float32)
        self.run = tf.function(self._run, jit_compile=xla)

    def draws(self, num, seed):
        return self.run(num, tf.constant([seed, 0])).numpy()

    def _log_prob(self, w):
        eta = tf.linalg.matmul(w, self.design, transpose_b=True)
        fit = tf.reduce_sum(self.y * eta - tf.nn.softplus(eta), axis=-1)
        return fit - 0.5 * tf.reduce_sum(w**2, axis=-1)

    def _run(self, num, seed):
        kernel = tfp.mcmc.NoUTurnSampler(self._log_prob, 0.1)
        kernel = tfp.mcmc.DualAveragingStepSizeAdaptation(kernel, int(0.8 * WARM_UP))
        start = tf.zeros([CHAINS, self.design.shape[1]])
        draws = tfp.mcmc.sample_chain(
            num, start, kernel=kernel, num_burnin_steps=WARM_UP, trace_fn=None, seed=seed
        )
        return tf.reshape(draws, [-1, self.design.shape[1]])


def fit(x, y, posterior, seed):
    model = BayesianRegression(
        likelihoods.Bernoulli(), None, posterior, intercept_scale=1.0, seed=seed
    )
    model.fit(x, y, verbose=0)
    return model


def timed(function, *args):
    start = time.perf_counter()
    result = function(*args)
    return result, time.perf_counter() - start


class Row(NamedTuple):
    """A method, its seconds, and how far it is from the reference."""

    method: str
    first: float
    again: float
    mean: float  # the worst error of a mean, in standard deviations
    low: float  # standard deviations by the reference's: the least
    high: float  # and the largest

    @property
    def errors(self):
        return np.array([self.mean, max(1 - self.low, self.high - 1)])

    @classmethod
    def of(cls, method, first, again, mean, sd, reference):
        exact = reference.std(axis=0)
        ratio = sd / exact
        worst = np.abs((mean - reference.mean(axis=0)) / exact).max()
        return cls(method, first, again, worst, ratio.min(), ratio.max())


def measure(case, rounds):
    """The rows of the table."""
    x, y = case.load()
    reference = Nuts(x, y).draws(case.reference, 1)
    rows = []
    for posterior in (posteriors.FullRankNormal, posteriors.DiagonalNormal):
        fits = [timed(fit, x, y, posterior, seed) for seed in range(rounds)]
        first = statistics.median(seconds for _, seconds in fits)
        model = fits[0][0]
        q = model.coefficients
        mean, sd = np.array(q.mean()), np.array(q.stddev())
        again = [timed(lambda m=model: m.fit(x, y, verbose=0))[1] for _ in range(rounds)]
        name = f"fit, {posterior.__name__}"
        rows.append(Row.of(name, first, statistics.median(again), mean, sd, reference))
    for num in case.lengths:
        sampler = Nuts(x, y)
        draws, first = timed(sampler.draws, num, 2)
        again = timed(sampler.draws, num, 3)[1] if case.thorough else math.nan
        name = f"NUTS, {CHAINS} x {num}"
        rows.append(Row.of(name, first, again, draws.mean(axis=0), draws.std(axis=0), reference))
        if (rows[-1].errors <= rows[0].errors).all():
            break
    if not case.thorough:
        return rows
    num = case.lengths[0]
    draws, first = timed(Nuts(x, y, xla=False).draws, num, 2)
    name = f"NUTS, {CHAINS} x {num}, no XLA"
    mean, sd = draws.mean(axis=0), draws.std(axis=0)
    rows.append(Row.of(name, first, math.nan, mean, sd, reference))
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    names = "data", "method", "s", "x fit", "s again", "x fit", "worst mean, sd", "sd by NUTS's"
    print("| " + " | ".join(names) + " |\n| --- | --- " + "| ---: " * 6 + "|")
    for name, case in DATA.items():
        print(f"nuts: {name}", file=sys.stderr, flush=True)
        rows = measure(case, rounds)
        for row in rows:
            times = f"{row.first:.2f} | {row.first / rows[0].first:.1f}"
            again = f" | {row.again:.2f} | {row.again / rows[0].again:.1f}"
            times += " |  | " if math.isnan(row.again) else again
            spread = f"{row.low:.2f} - {row.high:.2f}"
            print(f"| {name} | {row.method} | {times} | {row.mean:.3f} | {spread} |", flush=True)


if __name__ == "__main__":
    main()
