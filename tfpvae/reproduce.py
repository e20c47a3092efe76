"""Published experiments, run again: their data, schedule and evaluation, several seeds."""

import contextlib
import dataclasses
import difflib
import hashlib
import json
import math
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow_probability as tfp
import tf_keras as keras

from tfpvae import (
    checks,
    datasets,
    diagnostics,
    hierarchical,
    likelihoods,
    models,
    objectives,
    posteriors,
    priors,
)

tfb = tfp.bijectors

_BATCH_SIZE = 20
_STAGES = 8
# Of the test set, so that all set-ups and seeds are scored on the same bits, and of the draws.
_EVALUATION_SEED = 0
_NUM_ELBO_SAMPLES = 100
_NUM_ACTIVITY, _ACTIVE_VARIANCE = 500, 0.01
# Steps in one call of the compiled program. It is fixed, so that one program serves all calls.
_STEPS_PER_CALL = 256


class ReproductionError(ValueError):
    """What was asked for cannot be run: an unknown name, a bad option, a folder of another run."""


@dataclasses.dataclass(frozen=True)
class SetUp:
    """A published experiment of Burda, Grosse and Salakhutdinov (2015).

    Attributes:
      name: what `reproduce` calls it.
      bound: "ELBO" or "IWAE", what is maximized.
      num_samples: the number k of draws of z for each example.
      published: the mean of -log p(x) over the test set, in nats, from their table 1.
      published_active: the number of active units, from the same table, or None.
      replicated: the mean of -log p(x) that an independent TensorFlow program reports.
      num_layers: the number of layers of latent variables, 1 or 2.
    """

    name: str
    bound: str
    num_samples: int
    published: float
    published_active: int | None
    replicated: float
    num_layers: int = 1

    def objective(self) -> objectives.Objective:
        """The bound as an objective; as in the paper, the KL is estimated from the draws."""
        if self.bound == "IWAE":
            return objectives.IWAE(num_samples=self.num_samples)
        return objectives.ELBO(use_exact_kl=False, num_samples=self.num_samples)


_SET_UPS = {
    set_up.name: set_up
    for set_up in (
        SetUp("burda-vae-k1", "ELBO", 1, 86.76, 19, 86.35),
        SetUp("burda-vae-k5", "ELBO", 5, 86.47, 20, 86.10),
        SetUp("burda-vae-k50", "ELBO", 50, 86.35, 20, 86.06),
        SetUp("burda-iwae-k5", "IWAE", 5, 85.54, 22, 85.18),
        SetUp("burda-iwae-k50", "IWAE", 50, 84.78, 25, 84.59),
        SetUp("burda-vae-2-k1", "ELBO", 1, 85.33, None, 84.83, num_layers=2),
        SetUp("burda-vae-2-k5", "ELBO", 5, 85.01, None, 84.08, num_layers=2),
        SetUp("burda-vae-2-k50", "ELBO", 50, 84.78, None, 83.89, num_layers=2),
        SetUp("burda-iwae-2-k5", "IWAE", 5, 83.89, None, 83.48, num_layers=2),
        SetUp("burda-iwae-2-k50", "IWAE", 50, 82.90, None, 82.82, num_layers=2),
    )
}


class _Sizes(NamedTuple):
    """The largest level of a pixel, and the networks for images of that size."""

    max_level: int
    hidden: tuple[int, ...]
    latent_size: int  # of the last layer of latent variables
    lower_latent_size: int  # of the first one, if there are two
    upper_hidden: tuple[int, ...]  # between the two


_DATASETS = {
    "mnist": _Sizes(255, (200, 200), 50, 100, (100, 100)),
    "digits": _Sizes(16, (50, 50), 10, 20, (25, 25)),
}


class Result(NamedTuple):
    """What one seed came to.

    Attributes:
      seed: the seed.
      nll: the mean of -log p(x) over the test images, in nats, by importance sampling.
      nll_standard_error: the Monte Carlo error of that mean at these images.
      negative_elbo: the mean of -ELBO(x) over the same images.
      active_units: latent variables whose posterior means vary by more than 0.01.
      epochs: passes over the training data.
      seconds: of training.
      active_by_layer: the active units of each layer of latent variables, if there are several.
    """

    seed: int
    nll: float
    nll_standard_error: float
    negative_elbo: float
    active_units: int
    epochs: float
    seconds: float
    active_by_layer: tuple[int, ...] = ()

    @property
    def active(self) -> str:
        """The active units as the tables show them: "20", or "16+5" in two layers."""
        return "+".join(map(str, self.active_by_layer or (self.active_units,)))

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON."""
        return self._asdict() | {"active_by_layer": list(self.active_by_layer)}


@dataclasses.dataclass(frozen=True)
class Report:
    """The results of all seeds in the folder, beside what was published. Print it for a table.

    Attributes:
      set_up: the experiment.
      settings: of the training: data, share of the budget.
      evaluation: number of draws and of test images.
      results: one for each seed.
    """

    set_up: SetUp
    settings: dict[str, Any]
    evaluation: dict[str, Any]
    results: tuple[Result, ...]

    @property
    def mean(self) -> float:
        """The mean of -log p(x) over the seeds."""
        return float(np.mean([result.nll for result in self.results]))

    @property
    def sd(self) -> float | None:
        """The standard deviation of -log p(x) over the seeds, None for a single one."""
        several = len(self.results) > 1
        return float(np.std([result.nll for result in self.results], ddof=1)) if several else None

    @property
    def published(self) -> float | None:
        """The published -log p(x); None if there is none for these data."""
        return self.set_up.published if self.settings["dataset"] == "mnist" else None

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON."""
        return {
            "name": self.set_up.name,
            "settings": self.settings,
            "evaluation": self.evaluation,
            "seeds": {str(result.seed): result.as_dict() for result in self.results},
            "mean": self.mean,
            "sd": self.sd,
            "published": self.published,
        }

    def __str__(self) -> str:
        draws, num = self.evaluation["num_samples"], self.evaluation["num_test"]
        lines = [
            f"{self.set_up.name} on {self.settings['dataset']}: {num:,} test images, "
            f"{draws:,} draws each, nats",
            "seed   -log p(x)  (error)    -ELBO  active units    epochs   seconds",
        ]
        lines += [
            f"{r.seed:>4}  {r.nll:>10.2f}  {r.nll_standard_error:>7.2f}  {r.negative_elbo:>7.2f}  "
            f"{r.active:>12}  {r.epochs:>8.2f}  {r.seconds:>8.0f}"
            for r in self.results
        ]
        sd = "" if self.sd is None else f", sd over {len(self.results)} seeds {self.sd:.2f}"
        lines.append(f"mean  {self.mean:>10.2f}{sd}")
        if self.published is None:
            lines.append("no number was published for these data")
        else:
            active = self.set_up.published_active
            lines.append(
                f"published {self.published:.2f}"
                + ("" if active is None else f" with {active} active units")
                + f", for {sum(3**i for i in range(_STAGES))} epochs"
            )
        return "\n".join(lines)


def listing() -> str:
    """The set-ups and their published numbers as a table.

    Example:
      >>> print(listing().splitlines()[1])
      burda-vae-k1       ELBO     1      86.76            19        86.35
    """
    head = "name               bound    k  -log p(x)  active units  replication"
    rows = [
        f"{s.name:<17}  {s.bound:<5}  {s.num_samples:>3}  {s.published:>9.2f}  "
        f"{s.published_active or '-':>12}  {s.replicated:>11.2f}"
        for s in _SET_UPS.values()
    ]
    return "\n".join([head, *rows])


def schedule(steps_per_epoch: int, share: float = 1.0) -> list[tuple[float, int]]:
    r"""The learning rate and the number of steps of each stage.

    $$ \eta_i = 10^{-3 - i/7} \quad \text{for } 3^i \text{ epochs}, \qquad i = 0, \dots, 7 $$

    Args:
      steps_per_epoch: batches in the training data.
      share: of the budget of 3280 epochs. Each stage is that much shorter, by steps, and has one
        step at least, so that the learning rate goes through all of them.

    Example:
      >>> [(round(rate, 6), steps // 3000) for rate, steps in schedule(3000)][-2:]
      [(0.000139, 729), (0.0001, 2187)]
      >>> sum(steps for _, steps in schedule(3000, share=0.01)) / 3000
      32.8

    Source: Burda, Grosse and Salakhutdinov, "Importance Weighted Autoencoders", 2015.
    """
    return [
        (1e-3 * 10 ** (-i / 7), max(1, round(share * 3**i * steps_per_epoch)))
        for i in range(_STAGES)
    ]


def reproduce(
    name: str,
    *,
    share: float = 1.0,
    seeds: Iterable[int] = (0,),
    dataset: str = "mnist",
    data: str | os.PathLike[str] | None = None,
    num_samples: int = 5000,
    num_test: int | None = None,
    output: str | os.PathLike[str] = "reproduce-output",
    restart: bool = False,
    checkpoint_steps: int = 6000,
    verbose: bool = True,
) -> Report:
    """Train and evaluate a published set-up for several seeds, or go on where it was stopped.

    The images are binarized afresh each epoch. What a step does depends on the seed and the number
    of the step alone, so a run that was stopped, or killed, and is called again ends in the same
    weights, bit by bit, as one that was not.

    Args:
      name: of the set-up, see `listing`.
      share: of the published budget of 3280 epochs, see `schedule`.
      seeds: non-negative integers, run one after the other: of the weights, the bits, the order of
        the batches and the draws.
      dataset: "mnist", or "digits" for a quick try with smaller networks, for which no number was
        published.
      data: the MNIST archive or its folder, see `datasets.load`.
      num_samples: draws of z for each test image.
      num_test: how many of the test images to score, the first ones; None for all.
      output: folder; `output/name` gets results.json and the checkpoints.
      restart: whether to begin anew, and not to go on with what is in the folder.
      checkpoint_steps: steps between checkpoints; the results do not depend on it.
      verbose: whether to print progress.

    Returns:
      A `Report` on all seeds of these settings in the folder.

    Raises:
      ReproductionError: for an unknown name, bad options, data that cannot be read, or a folder
        with checkpoints of other settings.

    Example:
      >>> reproduce("burda-iwae-k5", share=0.0)
      Traceback (most recent call last):
      tfpvae.reproduce.ReproductionError: share: got 0.0, wanted a number with 0 < share <= 1

    Source: Burda, Grosse and Salakhutdinov, "Importance Weighted Autoencoders", 2015.
    """
    set_up = _find(name)
    seeds = _checked_seeds(seeds)
    with _refusing():
        share = checks.number("share", share, "a number with 0 < share <= 1", lambda s: 0 < s <= 1)
        num_samples = checks.positive_integer("num_samples", num_samples)
        checkpoint_steps = checks.positive_integer("checkpoint_steps", checkpoint_steps)
        if num_test is not None:
            num_test = checks.positive_integer("num_test", num_test)
        images = _Images.load(dataset, data)
    num_test = min(num_test or len(images.test), len(images.test))
    settings = {"dataset": dataset, "data": images.digest, "share": share}
    evaluation = {"num_samples": num_samples, "num_test": num_test}
    experiment = _Experiment(
        set_up, images, settings, evaluation, pathlib.Path(output, name), checkpoint_steps, verbose
    )
    return experiment.run(seeds, restart)


class _Images(NamedTuple):
    """Images as levels, uint8 `[N, D]`, and their largest possible level."""

    train: np.ndarray
    test: np.ndarray
    sizes: _Sizes
    digest: str

    @classmethod
    def load(cls, dataset: str, path: Any) -> "_Images":
        if dataset not in _DATASETS:
            raise ValueError(f"dataset: got {dataset!r}, wanted one of {', '.join(_DATASETS)}")
        source = datasets.load(dataset, path, flatten=True)
        digest = hashlib.sha256()
        for x in (source.x_train, source.x_test):
            digest.update(str(x.shape).encode() + x.tobytes())
        return cls(source.x_train, source.x_test, _DATASETS[dataset], digest.hexdigest())

    @property
    def steps_per_epoch(self) -> int:
        return len(self.train) // _BATCH_SIZE

    def bits(self, levels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Each pixel is 1 with probability level / max_level, exactly."""
        draws = rng.integers(self.sizes.max_level, size=levels.shape, dtype=np.uint8)
        return (draws < levels).view(np.uint8)

    def batches(self, seed: int, start: int, stop: int) -> np.ndarray:
        """The bits that the steps from `start` to before `stop` are taken on, in their order."""
        size, parts = self.steps_per_epoch, []
        for epoch in range(start // size, math.ceil(stop / size)):
            rng = np.random.default_rng([seed, epoch])
            bits = self.bits(self.train[rng.permutation(len(self.train))], rng)
            first, last = max(start - epoch * size, 0), min(stop - epoch * size, size)
            parts.append(bits[first * _BATCH_SIZE : last * _BATCH_SIZE])
        return np.concatenate(parts)

    def logits(self) -> np.ndarray:
        """The logits of the mean training image, kept finite."""
        mean = np.clip(self.train.mean(axis=0) / self.sizes.max_level, 0.001, 0.999)
        return np.log(mean / (1.0 - mean))


def _build(set_up: SetUp, images: _Images, seed: int) -> models.VAE:
    """The model before training: two tanh layers both ways, diagonal normals, Bernoulli pixels."""
    data_size = images.train.shape[1]
    sizes = images.sizes
    two = set_up.num_layers == 2
    z1_size = sizes.lower_latent_size if two else sizes.latent_size
    seeds = iter(np.random.SeedSequence(seed).generate_state(16).tolist())

    def dense(units: int, activation: str | None = "tanh") -> Any:
        initializer = keras.initializers.GlorotUniform(next(seeds))
        return keras.layers.Dense(units, activation, kernel_initializer=initializer)

    def network(size: int, hidden: tuple[int, ...], end: Callable[[], Iterable[Any]]) -> Any:
        # In this order, as each layer takes the next seed.
        return keras.Sequential([keras.Input((size,)), *map(dense, hidden), *end()])

    def normal(kind: Any, size: int) -> Callable[[], Iterable[Any]]:
        block = kind(size, constraints={"scale": tfb.Exp()})
        return lambda: (dense(block.params_size, None), block)

    likelihood = likelihoods.Bernoulli(data_size)
    pixels = dense(likelihood.params_size, None)
    prior = priors.StandardNormal(sizes.latent_size)
    vae: models.VAE
    encoder = network(data_size, sizes.hidden, normal(posteriors.DiagonalNormal, z1_size))
    decoder = network(z1_size, sizes.hidden, lambda: (pixels, likelihood))
    if two:
        z2_size, between = sizes.latent_size, sizes.upper_hidden
        encoders = [
            encoder,
            network(z1_size, between, normal(posteriors.DiagonalNormal, z2_size)),
        ]
        decoders = [decoder, network(z2_size, between, normal(likelihoods.Normal, z1_size))]
        vae = hierarchical.HierarchicalVAE(prior, encoders, decoders, seed=seed)
    else:
        vae = models.VAE(prior, encoder, decoder, seed=seed)
    pixels.bias.assign(images.logits())
    vae.compile(
        keras.optimizers.Adam(beta_1=0.9, beta_2=0.999, epsilon=1e-4),
        objective=set_up.objective(),
        steps_per_execution=_STEPS_PER_CALL,
        # Always, and not in long runs only: what a step does must not depend on how many follow.
        jit_compile=True,
    )
    vae.build((None, data_size))
    return vae


@dataclasses.dataclass
class _Experiment:
    set_up: SetUp
    images: _Images
    settings: dict[str, Any]
    evaluation: dict[str, Any]
    folder: pathlib.Path
    checkpoint_steps: int
    verbose: bool

    def run(self, seeds: tuple[int, ...], restart: bool) -> Report:
        """Train and evaluate each seed that has no result yet."""
        if restart:
            self._discard(seeds)
        self.results()  # Before any work: it refuses those of other settings.
        with _refusing():
            self.folder.mkdir(parents=True, exist_ok=True)
        for seed in seeds:
            if seed in self.results():
                self.say(f"seed {seed}: finished earlier, not run again; restart to do so")
                continue
            training = _Training(self, seed)
            vae = training.run()
            result = self._evaluate(vae, training)
            # Read again: another process may have finished another seed.
            self._write(self.results() | {seed: result})
        return self._report(self.results())

    def say(self, line: str) -> None:
        """Print progress."""
        if self.verbose:
            print(line, flush=True)

    def results(self) -> dict[int, Result]:
        """What is in results.json by seed; nothing of another evaluation."""
        saved = _read(self.folder / "results.json")
        if saved is None:
            return {}
        self.refuse_other(saved["settings"])
        if saved["evaluation"] != self.evaluation:
            return {}
        found = {int(seed): Result(**result) for seed, result in saved["seeds"].items()}
        return {
            seed: result._replace(active_by_layer=tuple(result.active_by_layer))
            for seed, result in found.items()
        }

    def refuse_other(self, settings: dict[str, Any]) -> None:
        """Refuse a folder with a run of other settings than these."""
        names = sorted(self.settings.keys() | settings.keys())
        others = [n for n in names if settings.get(n) != self.settings.get(n)]
        if others:
            listed = ", ".join(
                "other data" if n == "data" else f"{n} {settings.get(n)}" for n in others
            )
            wanted = ", ".join(f"{n} {self.settings[n]}" for n in others if n != "data")
            raise ReproductionError(
                f"output: got {self.folder}, which holds a run with {listed}"
                f"{wanted and f', wanted one with {wanted}'}; choose another output, or restart"
            )

    def _discard(self, seeds: tuple[int, ...]) -> None:
        path = self.folder / "results.json"
        kept: dict[int, Result] = {}
        with contextlib.suppress(ReproductionError):  # What cannot be gone on with is to go.
            kept = {seed: r for seed, r in self.results().items() if seed not in seeds}
        if kept:
            self._write(kept)
        else:
            path.unlink(missing_ok=True)
        for seed in seeds:
            _Training(self, seed).discard()

    def _write(self, results: dict[int, Result]) -> None:
        _write(self.folder / "results.json", self._report(results).as_dict())

    def _report(self, results: dict[int, Result]) -> Report:
        ordered = tuple(results[seed] for seed in sorted(results))
        return Report(self.set_up, self.settings, self.evaluation, ordered)

    def _evaluate(self, vae: models.VAE, training: "_Training") -> Result:
        num_samples, num_test = self.evaluation["num_samples"], self.evaluation["num_test"]
        title = f"{num_test:,} test images with {num_samples:,} draws each"
        self.say(f"seed {training.seed}: scoring {title}")
        rng = np.random.default_rng(_EVALUATION_SEED)
        x = self.images.bits(self.images.test, rng)[:num_test]
        seed, bar = _EVALUATION_SEED, "auto" if self.verbose else 0
        found = vae.log_marginal_likelihood(x, num_samples, seed=seed, verbose=bar)
        elbo = vae.elbo(x, min(num_samples, _NUM_ELBO_SAMPLES), seed=seed, verbose=bar)
        shown = self.images.bits(self.images.train[:_NUM_ACTIVITY], rng)
        activity = diagnostics.activity(vae.posterior(shown), seed) > _ACTIVE_VARIANCE
        by_layer: tuple[int, ...] = ()
        if isinstance(vae, hierarchical.HierarchicalVAE):
            by_layer = tuple(int(layer.numpy().sum()) for layer in vae.split(activity))
        return Result(
            seed=training.seed,
            nll=-float(found.mean),
            nll_standard_error=float(found.mean_standard_error),
            negative_elbo=-float(elbo.mean()),
            active_units=int(activity.sum()),
            epochs=training.stop / self.images.steps_per_epoch,
            seconds=round(training.seconds, 1),
            active_by_layer=by_layer,
        )


class _Training:
    """The training of one seed, from its last checkpoint on.

    A checkpoint is a model file and progress.json, which names it. The model is written first:
    until progress.json is replaced, in one step, the last checkpoint counts.
    """

    def __init__(self, experiment: _Experiment, seed: int) -> None:
        self.experiment, self.seed = experiment, seed
        self.folder = experiment.folder / f"seed-{seed}"
        images = experiment.images
        self.stages = schedule(images.steps_per_epoch, experiment.settings["share"])
        #: steps in all, steps that are done, seconds that they took
        self.stop = sum(steps for _, steps in self.stages)
        self.step, self.seconds = 0, 0.0

    def run(self) -> models.VAE:
        """The trained model."""
        vae = self._resume() or self._begin()
        saved = self.step
        try:
            for rate, start, stop in self._pieces():
                self._train(vae, rate, start, stop)
                if stop == self.stop or stop % self.experiment.checkpoint_steps == 0:
                    self._save(vae)
                    saved = stop
        except KeyboardInterrupt:
            self.experiment.say(
                f"\nstopped; the same command goes on from step {saved:,} of seed {self.seed}"
            )
            raise
        return vae

    def discard(self) -> None:
        """Remove the checkpoint."""
        (self.folder / "progress.json").unlink(missing_ok=True)
        self._tidy(keep=None)

    def _begin(self) -> models.VAE:
        epochs = self.stop / self.experiment.images.steps_per_epoch
        self._say(f"training for {epochs:,.2f} epochs, {self.stop:,} steps")
        return _build(self.experiment.set_up, self.experiment.images, self.seed)

    def _resume(self) -> models.VAE | None:
        """The model of the last checkpoint, None if there is none."""
        saved = _read(self.folder / "progress.json")
        if saved is None:
            return None
        self.experiment.refuse_other(saved["settings"])
        path = self.folder / saved["model"]
        try:
            vae = keras.models.load_model(path)
        except (OSError, ValueError) as error:
            raise ReproductionError(f"output: {path} cannot be read ({error}); restart") from error
        self.step, self.seconds = saved["step"], saved["seconds"]
        if int(vae.optimizer.iterations) != self.step:
            raise ReproductionError(f"output: {path} is not the model of step {self.step}; restart")
        self._say(f"going on from step {self.step:,} of {self.stop:,}")
        return vae

    def _pieces(self) -> Iterator[tuple[float, int, int]]:
        """What is left to do: a learning rate, the first step, and the one after the last."""
        every, end = self.experiment.checkpoint_steps, 0
        for rate, steps in self.stages:
            end += steps
            while self.step < end:
                yield rate, self.step, min(end, (self.step // every + 1) * every)

    def _train(self, vae: models.VAE, rate: float, start: int, stop: int) -> None:
        began = time.monotonic()
        bits = self.experiment.images.batches(self.seed, start, stop)
        vae.optimizer.learning_rate = rate
        fitted = vae.fit(bits, batch_size=_BATCH_SIZE, shuffle=False, verbose=0)
        seconds = time.monotonic() - began
        loss = fitted.history["loss"][-1]
        if not math.isfinite(loss):
            raise FloatingPointError(f"seed {self.seed}: the loss is {loss} at step {stop}")
        self.step, self.seconds = stop, self.seconds + seconds
        pace = seconds / (stop - start)
        self._say(
            f"step {stop:,} of {self.stop:,}, learning rate {rate:.2e}, loss {loss:.2f}, "
            f"{1e3 * pace:.2f} ms a step, {_duration((self.stop - stop) * pace)} left"
        )

    def _save(self, vae: models.VAE) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step-{self.step}.keras"
        vae.save(path)
        with path.open("rb+") as stream:
            os.fsync(stream.fileno())
        progress = {
            "settings": self.experiment.settings,
            "step": self.step,
            "seconds": self.seconds,
            "model": path.name,
        }
        _write(self.folder / "progress.json", progress)
        self._tidy(keep=path)

    def _tidy(self, keep: pathlib.Path | None) -> None:
        """Remove models of earlier steps, and what a process that was killed left behind."""
        for path in self.folder.glob("step-*.keras"):
            if path != keep:
                path.unlink()
        for path in self.folder.glob(".step-*"):
            shutil.rmtree(path)

    def _say(self, line: str) -> None:
        self.experiment.say(f"seed {self.seed}: {line}")


def _find(name: str) -> SetUp:
    if name not in _SET_UPS:
        near = difflib.get_close_matches(str(name), _SET_UPS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ReproductionError(f"name: got {name!r}, wanted one of {', '.join(_SET_UPS)}{hint}")
    return _SET_UPS[name]


def _checked_seeds(seeds: Iterable[int]) -> tuple[int, ...]:
    values = tuple(seeds)
    for seed in values:
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
            raise ReproductionError(f"seeds: got {seed!r}, wanted integers that are not negative")
    if not values:
        raise ReproductionError("seeds: got none, wanted one at least")
    return tuple(dict.fromkeys(int(seed) for seed in values))


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    """Turn what bad options and missing data raise into refusals."""
    try:
        yield
    except (TypeError, ValueError, OSError, ImportError) as error:
        raise ReproductionError(str(error)) from error


def _read(path: pathlib.Path) -> Any:
    """What a JSON file holds, None if it is not there."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ReproductionError(f"output: {path} cannot be read ({error}); restart") from error


def _write(path: pathlib.Path, value: Any) -> None:
    """Write a JSON file, all of it or nothing."""
    part = path.with_name(f"{path.name}.part")
    with part.open("w") as stream:
        json.dump(value, stream, indent=2)
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(path)


def _duration(seconds: float) -> str:
    """Seconds as a person says them."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
