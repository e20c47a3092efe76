import inspect
import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras as keras
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import integrate, optimize, special, stats

from tfpvae import (
    KLDivergenceRegularizer,
    blocks,
    flows,
    likelihoods,
    losses,
    posteriors,
    priors,
    serialization,
)
from tfpvae.layers import DistributionLayer
from tfpvae.noise import as_seed, fixed, next_seed

tfb, tfd = tfp.bijectors, tfp.distributions

BATCH = 4


# The densities, written down apart from TFP: numpy for the constraints, scipy for the rest. t are
# the unconstrained numbers of one event, x [B, *event] the values.


def softplus(t):
    return np.logaddexp(0, t)


def entries(count, density):
    """The log density of independent entries, whose `count` parameters come one after the other."""

    def log_prob(t, x):
        pieces = np.split(t, count, axis=-1) if count else ()
        return density(x.reshape(len(x), -1), *pieces).sum(axis=-1)

    return log_prob


def continuous_bernoulli(x, logits):
    def unnormalized(x, logit):
        return special.expit(logit) ** x * special.expit(-logit) ** (1 - x)

    def integral(logit):
        return integrate.quad(unnormalized, 0, 1, args=(logit,), epsabs=1e-13)[0]

    return np.log(unnormalized(x, logits)) - np.log(np.vectorize(integral)(logits))


def categorical(num_classes):
    def log_prob(t, x):
        log_probs = special.log_softmax(t.reshape(*t.shape[:-1], -1, num_classes), axis=-1)
        index = x.reshape(len(x), -1, 1).astype(int)
        return np.take_along_axis(log_probs, index, axis=-1).sum(axis=(-2, -1))

    return log_prob


def one_hot_categorical(t, x):
    return (special.log_softmax(t, axis=-1) * x).sum(axis=-1)


def one_hots(shape):
    def log_prob(t, x):
        return one_hot_categorical(t.reshape(-1, *shape), x).sum(axis=-1)

    return log_prob


def relaxed_one_hots(shape, temperature):
    """Maddison et al. (2017), equation 10."""

    def log_prob(t, x):
        size, x = shape[-1], x / x.sum(axis=-1, keepdims=True)
        terms = t.reshape(-1, *shape) - temperature * np.log(x)
        each = (terms - np.log(x)).sum(axis=-1) - size * special.logsumexp(terms, axis=-1)
        constant = special.gammaln(size) + (size - 1) * np.log(temperature)
        return (constant + each).reshape(len(x), -1).sum(axis=-1)

    return log_prob


def relaxed_bernoulli(temperature):
    """A logistic variable, squashed."""

    def density(x, logits):
        y = special.logit(x)
        squashed = stats.logistic.logpdf(y, logits / temperature, 1 / temperature)
        return squashed - np.log(x) - np.log1p(-x)

    return density


def dirichlet(t, x):
    x = x / x.sum(axis=-1, keepdims=True)  # scipy allows for no rounding
    return np.array([stats.dirichlet.logpdf(*row) for row in zip(x, softplus(t), strict=True)])


def multivariate_normal(t, x):
    """Three dimensions; the entries of L are wound up from its last row, as tfb.FillTriangular."""
    rows, columns = [2, 2, 2, 0, 1, 1], [2, 1, 0, 0, 1, 0]
    log_probs = []
    for row, loc, entries_ in zip(x, t[:, :3], t[:, 3:], strict=True):
        scale = np.zeros((3, 3))
        scale[rows, columns] = entries_
        np.fill_diagonal(scale, softplus(np.diag(scale)))
        log_probs.append(stats.multivariate_normal.logpdf(row, loc, scale @ scale.T))
    return np.array(log_probs)


def correlated_normal(t, x):
    """Three dimensions of unit variance: the rows of L are scaled to length one."""
    log_probs = []
    for row, loc, (a, b, c) in zip(x, t[:, :3], t[:, 3:], strict=True):
        scale = np.array([[1, 0, 0], [c, 1, 0], [b, a, 1]])
        scale /= np.linalg.norm(scale, axis=1, keepdims=True)
        log_probs.append(stats.multivariate_normal.logpdf(row, loc, scale @ scale.T))
    return np.array(log_probs)


def radial(t, z):
    """One layer of the radial flow on the standard normal, in two dimensions."""

    def near_one(t):
        return 0.01 + softplus(0.2 * t + np.log(np.expm1(0.99)))

    center = 0.2 * t[..., :2] + np.random.default_rng(0).normal(size=2)
    alpha = near_one(t[..., 2])
    beta = alpha * (near_one(t[..., 3]) - 1)
    s = np.linalg.norm(z - center, axis=-1)

    def radius(alpha, beta, s):
        return optimize.brentq(lambda r: r + beta * r / (alpha + r) - s, 0, 200 + s, xtol=1e-13)

    r = np.vectorize(radius)(alpha, beta, s)
    z0 = center + (z - center) * (r / s)[..., None]
    log_det = np.log1p(beta / (alpha + r)) + np.log1p(alpha * beta / (alpha + r) ** 2)
    return z0, log_det


def radial_posterior(t, z):
    z0, log_det = radial(t[:, 4:], z)
    return normal(z0, t[:, :2], t[:, 2:4]).sum(axis=-1) - log_det


def radial_prior(t, z):
    z0, log_det = radial(t, z)
    return stats.norm.logpdf(z0).sum(axis=-1) - log_det


def normal(x, loc, scale):
    return stats.norm.logpdf(x, loc, softplus(scale))


def centred_normal(x, scale):
    return normal(x, 0, scale)


def bernoulli(x, logits):
    return stats.bernoulli.logpmf(x, special.expit(logits))


def binomial(total_count):
    return lambda x, logits: stats.binom.logpmf(x, total_count, special.expit(logits))


def poisson(x, log_rate):
    return stats.poisson.logpmf(x, np.exp(log_rate))


def negative_binomial(x, total_count, logits):
    return stats.nbinom.logpmf(x, softplus(total_count), special.expit(-logits))


def gamma(x, concentration, log_rate):
    return stats.gamma.logpdf(x, softplus(concentration), scale=np.exp(-log_rate))


def laplace(x, loc, scale):
    return stats.laplace.logpdf(x, loc, softplus(scale))


def student_t(x, loc, scale):
    return stats.t.logpdf(x, 4, loc, softplus(scale))


def student_t_learned(x, df, loc, scale):
    return stats.t.logpdf(x, softplus(df), loc, softplus(scale))


def beta(x, concentration1):
    return stats.beta.logpdf(x, softplus(concentration1), 2)


def log_normal(x, loc, scale):
    return stats.lognorm.logpdf(x, softplus(scale), scale=np.exp(loc))


def mean_dispersion(x, log_mean, dispersion):
    mean, dispersion = np.exp(log_mean), 1e-6 + softplus(dispersion)
    return stats.nbinom.logpmf(x, 1 / dispersion, 1 / (1 + dispersion * mean))


def discretized_logistic(num_levels):
    def density(x, loc, scale):
        last = num_levels - 1
        # In grey levels; each is the middle of its interval, the first and last go on for ever.
        logistic = stats.logistic((loc + 1) / 2 * last, (softplus(scale) + np.exp(-7)) / 2 * last)
        below = np.where(x == 0, 0, logistic.cdf(x - 0.5))
        return np.log(np.where(x == last, 1, logistic.cdf(x + 0.5)) - below)

    return density


def ordinal(num_classes):
    def log_prob(t, x):
        size = x.shape[-1] if x.ndim > 1 else 1
        cutpoints, loc = np.split(t, [size * (num_classes - 1)], axis=-1)
        cutpoints = cutpoints.reshape(len(x), size, num_classes - 1)
        steps = np.concatenate([cutpoints[..., :1], np.exp(cutpoints[..., 1:])], axis=-1)
        cutpoints = np.cumsum(steps, axis=-1)
        infinity = np.full((len(x), size, 1), np.inf)
        borders = np.concatenate([-infinity, cutpoints, infinity], axis=-1) - loc[..., None]
        probs = np.diff(special.expit(borders), axis=-1)
        index = x.reshape(len(x), size, 1).astype(int)
        return np.log(np.take_along_axis(probs, index, axis=-1)).sum(axis=(-2, -1))

    return log_prob


def multinomial(total_count):
    def log_prob(t, x):
        return stats.multinomial.logpmf(x, total_count, special.softmax(t, axis=-1))

    return log_prob


def dirichlet_multinomial(total_count):
    def log_prob(t, x):
        return stats.dirichlet_multinomial.logpmf(x.astype(int), softplus(t), total_count)

    return log_prob


def zero_inflated(density):
    def inflated(x, *parameters):
        *parameters, logits = parameters
        zero = special.expit(logits)
        return np.log(zero * (x == 0) + (1 - zero) * np.exp(density(x, *parameters)))

    return inflated


def observed(density):
    def masked(x, *parameters):
        missing = np.isnan(x)
        return np.where(missing, 0, density(np.where(missing, 1, x), *parameters))

    return masked


def mixture_of_entries(num_components, count, density):
    """Each of the entries is a mixture; the parameters of its components lie side by side."""

    def log_prob(t, x):
        x = x.reshape(len(x), -1, 1)
        logits, *pieces = (
            piece.reshape(len(x), -1, num_components) for piece in np.split(t, count + 1, axis=-1)
        )
        each = special.log_softmax(logits, axis=-1) + density(x, *pieces)
        return special.logsumexp(each, axis=-1).sum(axis=-1)

    return log_prob


def mixture_of_vectors(num_components, count, density):
    def log_prob(t, x):
        logits, rest = np.split(t, [num_components], axis=-1)
        pieces = (
            piece.reshape(len(x), num_components, -1) for piece in np.split(rest, count, axis=-1)
        )
        each = density(x[:, None], *pieces).sum(axis=-1)
        return special.logsumexp(special.log_softmax(logits, axis=-1) + each, axis=-1)

    return log_prob


def for_all(log_prob):
    """The log density of a prior, whose parameters [params_size] are the same for all x."""
    return lambda t, x: log_prob(np.tile(t, (len(x), 1)), x.reshape(len(x), -1))


def multivariate_t(df):
    def log_prob(t, x):
        loc, scale = np.split(t, 2)
        return stats.multivariate_t.logpdf(x, loc, np.diag(softplus(scale) ** 2), df)

    return log_prob


def mixture_of_two_multivariate_normals(t, x):
    """Three dimensions, and the two equally probable."""
    locs, entries_ = np.split(t, [6])
    each = [
        for_all(multivariate_normal)(np.concatenate([loc, tril]), x)
        for loc, tril in zip(locs.reshape(2, 3), entries_.reshape(2, 6), strict=True)
    ]
    return special.logsumexp(each, axis=0) - np.log(2)


def table_row(t, x):
    """A real number, a count, and one of three classes, each of which may be missing."""
    parts = [
        observed(normal)(x[:, 0], t[:, 0], t[:, 1]),
        observed(poisson)(x[:, 1], t[:, 2]),
        observed(lambda k, *_: categorical(3)(t[:, 3:], k))(x[:, 2]),
    ]
    return np.sum(parts, axis=0)


# Values in the support of a distribution, from a numpy generator and a shape.


def counts_of(total_count):
    def values(rng, shape):
        return rng.multinomial(total_count, np.full(shape[-1], 1 / shape[-1]), size=shape[:-1])

    return values


def row(rng, shape):
    columns = [rng.normal(size=BATCH), rng.integers(6, size=BATCH), rng.integers(3, size=BATCH)]
    return np.stack(columns, axis=-1)


def with_gaps(values):
    """Without one entry of each example, another one each time."""

    def incomplete(rng, shape):
        x = values(rng, shape).astype(float)
        x.reshape(len(x), -1)[np.arange(len(x)), np.arange(len(x)) % x[0].size] = np.nan
        return x

    return incomplete


def reals(rng, shape):
    return rng.normal(size=shape)


def positive(rng, shape):
    return rng.gamma(2.0, size=shape)


def fractions(rng, shape):
    return rng.uniform(size=shape)


def integers(high):
    return lambda rng, shape: rng.integers(0, high, size=shape)


def simplex(rng, shape):
    return rng.dirichlet(np.ones(shape[-1]), size=shape[:-1])


def one_hot(rng, shape):
    return np.eye(shape[-1])[rng.integers(0, shape[-1], size=shape[:-1])]


def made(argument):
    """An argument, with the blocks in it made: under the policy of the moment."""
    if isinstance(argument, dict):
        return {name: made(item) for name, item in argument.items()}
    return argument() if isinstance(argument, partial) else argument


class Composite(partial):
    """A class with its arguments, some of which are blocks that are yet to be made."""

    def __call__(self, **kwargs):
        return self.func(*map(made, self.args), **self.keywords, **kwargs)


class Block(NamedTuple):
    """How to make a block, and what it has to be."""

    make: partial  # the class with its arguments
    event_shape: tuple[int, ...]
    params_size: int
    values: Callable  # (rng, shape) -> values in the support
    log_prob: Callable  # (t, x) -> log density [B]

    @property
    def cls(self):
        return self.make.func

    @property
    def is_prior(self):
        return issubclass(self.cls, priors.Prior)

    def params(self, rng):
        """Unconstrained numbers that every precision holds exactly."""
        shape = (self.params_size,) if self.is_prior else (BATCH, self.params_size)
        return np.round(8 * rng.normal(size=shape)) / 8

    def draw(self, rng, dtype=np.float32):
        return self.values(rng, (BATCH, *self.event_shape)).astype(dtype)

    def expected(self, params, x):
        return self.log_prob(params, x.astype(np.float64))

    def __call__(self, layer, params):
        """The distribution of a layer with these unconstrained numbers."""
        if not self.is_prior:
            return layer(params)
        for weight in layer.weights:
            weight.assign(tf.cast(params, weight.dtype))
        return layer()


TABLE = {
    "StandardNormal": Block(
        partial(priors.StandardNormal, 2), (2,), 0, reals, entries(0, stats.norm.logpdf)
    ),
    "prior Normal": Block(partial(priors.Normal, 3), (3,), 6, reals, entries(2, normal)),
    "prior Normal, one learned": Block(
        partial(priors.Normal, 2, loc=0.0), (2,), 2, reals, entries(1, centred_normal)
    ),
    "Prior": Block(
        partial(priors.Prior, "Laplace", (2, 2), initial={"scale": 1.0}),
        (2, 2),
        8,
        reals,
        entries(2, laplace),
    ),
    "prior StudentT": Block(
        partial(priors.StudentT, 2), (2,), 6, reals, entries(3, student_t_learned)
    ),
    "prior StudentT, shared": Block(
        partial(priors.StudentT, 3, df=2.5, shared=True), (3,), 6, reals, multivariate_t(2.5)
    ),
    "NormalMixture": Block(
        partial(priors.NormalMixture, 2, 3),
        (2,),
        15,
        reals,
        for_all(mixture_of_vectors(3, 2, normal)),
    ),
    "NormalMixture, of images": Block(
        partial(priors.NormalMixture, (2, 2), 2, scale=0.5),
        (2, 2),
        10,
        reals,
        for_all(mixture_of_vectors(2, 1, lambda x, loc: stats.norm.logpdf(x, loc, 0.5))),
    ),
    "NormalMixture, full rank": Block(
        partial(priors.NormalMixture, 3, 2, full_rank=True, logits=0.0),
        (3,),
        18,
        reals,
        mixture_of_two_multivariate_normals,
    ),
    "DiagonalNormal": Block(
        partial(posteriors.DiagonalNormal, 2), (2,), 4, reals, entries(2, normal)
    ),
    "posterior Flow": Block(
        Composite(posteriors.Flow, 2, partial(flows.Radial, 1)), (2,), 8, reals, radial_posterior
    ),
    "prior Flow": Block(
        Composite(priors.Flow, 2, partial(flows.Radial, 1)), (2,), 4, reals, radial_prior
    ),
    "FullRankNormal": Block(
        partial(posteriors.FullRankNormal, 3), (3,), 9, reals, multivariate_normal
    ),
    "posterior OneHotCategorical": Block(
        partial(posteriors.OneHotCategorical, (2, 3)), (2, 3), 6, one_hot, one_hots((2, 3))
    ),
    "posterior OneHotCategorical, one variable": Block(
        partial(posteriors.OneHotCategorical, 4), (4,), 4, one_hot, one_hot_categorical
    ),
    "prior OneHotCategorical": Block(
        partial(priors.OneHotCategorical, (2, 3)), (2, 3), 6, one_hot, one_hots((2, 3))
    ),
    "prior OneHotCategorical, uniform": Block(
        partial(priors.OneHotCategorical, (2, 3), logits=0.0),
        (2, 3),
        0,
        one_hot,
        lambda t, x: np.full(len(x), -2 * np.log(3)),
    ),
    "posterior Bernoulli": Block(
        partial(posteriors.Bernoulli, 3), (3,), 3, integers(2), entries(1, bernoulli)
    ),
    "prior Bernoulli": Block(
        partial(priors.Bernoulli, 3), (3,), 3, integers(2), entries(1, bernoulli)
    ),
    "posterior RelaxedOneHotCategorical": Block(
        partial(posteriors.RelaxedOneHotCategorical, (2, 3), 0.7),
        (2, 3),
        6,
        simplex,
        relaxed_one_hots((2, 3), 0.7),
    ),
    "prior RelaxedOneHotCategorical": Block(
        partial(priors.RelaxedOneHotCategorical, 3, 0.5),
        (3,),
        3,
        simplex,
        relaxed_one_hots((3,), 0.5),
    ),
    "posterior RelaxedBernoulli": Block(
        partial(posteriors.RelaxedBernoulli, 3, 0.7),
        (3,),
        3,
        fractions,
        entries(1, relaxed_bernoulli(0.7)),
    ),
    "prior RelaxedBernoulli": Block(
        partial(priors.RelaxedBernoulli, 2, 0.5),
        (2,),
        2,
        fractions,
        entries(1, relaxed_bernoulli(0.5)),
    ),
    "Bernoulli": Block(
        partial(likelihoods.Bernoulli, 4), (4,), 4, integers(2), entries(1, bernoulli)
    ),
    "Bernoulli, one number": Block(
        partial(likelihoods.Bernoulli), (), 1, integers(2), entries(1, bernoulli)
    ),
    "ContinuousBernoulli": Block(
        partial(likelihoods.ContinuousBernoulli, 3),
        (3,),
        3,
        fractions,
        entries(1, continuous_bernoulli),
    ),
    "Categorical": Block(
        partial(likelihoods.Categorical, num_classes=3), (), 3, integers(3), categorical(3)
    ),
    "Categorical image": Block(
        partial(likelihoods.Categorical, (2, 3), num_classes=4),
        (2, 3),
        24,
        integers(4),
        categorical(4),
    ),
    "Binomial": Block(
        partial(likelihoods.Binomial, 3, total_count=16),
        (3,),
        3,
        integers(17),
        entries(1, binomial(16)),
    ),
    "Binomial, trials by entry": Block(
        partial(likelihoods.Binomial, 2, total_count=np.array([4, 9])),
        (2,),
        2,
        integers(5),
        entries(1, binomial(np.array([4, 9]))),
    ),
    "Normal": Block(
        partial(likelihoods.Normal, (2, 2, 1)), (2, 2, 1), 8, reals, entries(2, normal)
    ),
    "Poisson": Block(partial(likelihoods.Poisson, 3), (3,), 3, integers(6), entries(1, poisson)),
    "Likelihood": Block(
        partial(likelihoods.Likelihood, "NegativeBinomial", 2),
        (2,),
        4,
        integers(6),
        entries(2, negative_binomial),
    ),
    "Likelihood, constrained": Block(
        partial(likelihoods.Likelihood, "Normal", 3, scale=0.1, constraints={"loc": tfb.Sigmoid()}),
        (3,),
        3,
        fractions,
        entries(1, lambda x, loc: stats.norm.logpdf(x, special.expit(loc), 0.1)),
    ),
    "Likelihood, the other parameter": Block(
        partial(likelihoods.Likelihood, tfd.Poisson, 2, constraints={"rate": tfb.Softplus()}),
        (2,),
        2,
        integers(6),
        entries(1, lambda x, rate: stats.poisson.logpmf(x, softplus(rate))),
    ),
    "NegativeBinomial": Block(
        partial(DistributionLayer, "NegativeBinomial", (3,)),
        (3,),
        6,
        integers(6),
        entries(2, negative_binomial),
    ),
    "Gamma": Block(partial(likelihoods.Gamma, 3), (3,), 6, positive, entries(2, gamma)),
    "StudentT": Block(
        partial(likelihoods.StudentT, 3, df=4.0), (3,), 6, reals, entries(2, student_t)
    ),
    "StudentT, learned": Block(
        partial(likelihoods.StudentT, 2), (2,), 6, reals, entries(3, student_t_learned)
    ),
    # With both of them learned, draws may be so near to 1 that they are 1.
    "Beta": Block(
        partial(likelihoods.Beta, 3, concentration0=2.0), (3,), 3, fractions, entries(1, beta)
    ),
    "LogNormal": Block(
        partial(likelihoods.LogNormal, 3), (3,), 6, positive, entries(2, log_normal)
    ),
    "Ordinal": Block(
        partial(likelihoods.Ordinal, 2, num_classes=3), (2,), 6, integers(3), ordinal(3)
    ),
    "Multinomial": Block(
        partial(likelihoods.Multinomial, 3, total_count=5), (3,), 3, counts_of(5), multinomial(5)
    ),
    "DirichletMultinomial": Block(
        partial(likelihoods.DirichletMultinomial, 3, total_count=5),
        (3,),
        3,
        counts_of(5),
        dirichlet_multinomial(5),
    ),
    "NegativeBinomial, mean and dispersion": Block(
        partial(likelihoods.NegativeBinomial, 3), (3,), 6, integers(6), entries(2, mean_dispersion)
    ),
    "DiscretizedLogistic": Block(
        partial(likelihoods.DiscretizedLogistic, 3),
        (3,),
        6,
        integers(256),
        entries(2, discretized_logistic(256)),
    ),
    "MixtureOf, by entry": Block(
        Composite(likelihoods.MixtureOf, partial(likelihoods.DiscretizedLogistic), 3, (2, 2, 1)),
        (2, 2, 1),
        36,
        integers(256),
        mixture_of_entries(3, 2, discretized_logistic(256)),
    ),
    "MixtureOf, whole": Block(
        Composite(likelihoods.MixtureOf, partial(likelihoods.Normal, 3), 2),
        (3,),
        14,
        reals,
        mixture_of_vectors(2, 2, normal),
    ),
    "ZeroInflated": Block(
        Composite(likelihoods.ZeroInflated, partial(likelihoods.NegativeBinomial, 3)),
        (3,),
        9,
        integers(3),
        entries(3, zero_inflated(mean_dispersion)),
    ),
    "Columns": Block(
        Composite(
            likelihoods.Columns,
            {
                "height": partial(likelihoods.Normal),
                "visits": partial(likelihoods.Poisson),
                "colour": partial(likelihoods.Categorical, num_classes=3),
            },
        ),
        (3,),
        6,
        row,
        table_row,
    ),
    "Masked": Block(
        Composite(likelihoods.Masked, partial(likelihoods.Normal, (3, 1))),
        (3, 1),
        6,
        with_gaps(reals),
        entries(2, observed(normal)),
    ),
    "Masked Columns": Block(
        Composite(
            likelihoods.Masked,
            Composite(
                likelihoods.Columns,
                {
                    "height": partial(likelihoods.Normal),
                    "visits": partial(likelihoods.Poisson),
                    "colour": partial(likelihoods.Categorical, num_classes=3),
                },
            ),
        ),
        (3,),
        6,
        with_gaps(row),
        table_row,
    ),
    "Dirichlet": Block(partial(DistributionLayer, "Dirichlet", 3), (3,), 3, simplex, dirichlet),
    "OneHotCategorical": Block(
        partial(likelihoods.OneHotCategorical, 4), (4,), 4, one_hot, one_hot_categorical
    ),
    "Laplace": Block(partial(likelihoods.Laplace, (2, 3)), (2, 3), 12, reals, entries(2, laplace)),
    "MultivariateNormalTriL": Block(
        partial(DistributionLayer, "MultivariateNormalTriL", 3), (3,), 9, reals, multivariate_normal
    ),
    "a constraint made of others": Block(
        partial(
            DistributionLayer,
            "Normal",
            2,
            constraints={"scale": tfb.Chain([tfb.Exp(), tfb.Sigmoid()])},
        ),
        (2,),
        4,
        reals,
        entries(2, lambda x, loc, scale: stats.norm.logpdf(x, loc, np.exp(special.expit(scale)))),
    ),
    "a constraint that changes the shape": Block(
        partial(
            DistributionLayer,
            "MultivariateNormalTriL",
            3,
            constraints={"scale_tril": tfb.CorrelationCholesky()},
        ),
        (3,),
        6,
        reals,
        correlated_normal,
    ),
}


# Blocks that go through code of their own, one of each kind; the rest differ in TFP's density only.
KINDS = (
    "StandardNormal",
    "prior Normal, one learned",
    "Prior",
    "prior StudentT, shared",
    "NormalMixture",
    "NormalMixture, full rank",
    "DiagonalNormal",
    "FullRankNormal",
    "posterior Flow",
    "Bernoulli",
    "Categorical image",
    "Binomial, trials by entry",
    "Likelihood, constrained",
    "Ordinal",
    "NegativeBinomial, mean and dispersion",
    "DiscretizedLogistic",
    "MixtureOf, by entry",
    "MixtureOf, whole",
    "ZeroInflated",
    "Masked Columns",
    "a constraint made of others",
    "a constraint that changes the shape",
)


@pytest.fixture(params=TABLE.values(), ids=TABLE)
def block(request):
    return request.param


@cache
def layer_of(block):
    """A layer of the block in single precision, one for all tests that ask no more of it."""
    return block.make()


# One contract for all blocks.


def test_every_public_block_is_in_the_table():
    public = {
        value
        for module in (priors, posteriors, likelihoods)
        for name, value in vars(module).items()
        if inspect.isclass(value)
        and value.__module__ == module.__name__
        and not name.startswith("_")
    }
    assert public
    # The one is no distribution without an encoder, the others have no density to be checked:
    # tests/test_priors.py, tests/test_adversarial.py.
    apart = {priors.VampPrior, priors.Implicit, posteriors.Implicit}
    missing = public - {block.cls for block in TABLE.values()} - apart
    assert not missing, "a new block needs a line in TABLE"


def test_params_size_of_class_and_layer(block, rng):
    layer = layer_of(block)
    arguments = map(made, block.make.args)
    assert block.cls.params_size(*arguments, **block.make.keywords) == block.params_size
    assert layer.params_size == block.params_size
    if block.is_prior:
        assert sum(weight.shape.num_elements() for weight in layer.weights) == block.params_size
    else:
        assert layer(tf.zeros([BATCH, block.params_size])).batch_shape == (BATCH,)
        with pytest.raises(ValueError, match=rf"wanted \(\.\.\., {block.params_size}\)"):
            layer(tf.zeros([BATCH, block.params_size + 1]))


def test_shapes(block, rng):
    layer = layer_of(block)
    distribution = block(layer, block.params(rng))
    batch_shape = () if block.is_prior else (BATCH,)
    assert layer.event_shape == block.event_shape
    assert distribution.event_shape == block.event_shape
    assert distribution.batch_shape == batch_shape
    assert distribution.sample().shape == batch_shape + block.event_shape
    assert distribution.sample(5).shape == (5, *batch_shape, *block.event_shape)
    assert distribution.log_prob(block.draw(rng)).shape == (BATCH,)


@pytest.mark.parametrize("name", [name for name, block in TABLE.items() if not block.is_prior])
def test_draws_that_other_layers_see(name, rng):
    block = TABLE[name]
    params, shape = block.params(rng), (BATCH, *block.event_shape)
    five = block.make(convert_to_tensor_fn="sample", num_samples=5)
    assert five.num_samples == 5
    draws = tf.convert_to_tensor(five(params)).numpy()
    assert draws.shape == (5, *shape)
    assert np.ptp(draws, axis=0).any()
    five.check_values(draws.reshape(-1, *block.event_shape))
    if name in KINDS:
        one = block.make(convert_to_tensor_fn="sample")
        assert one.num_samples is None
        assert tf.convert_to_tensor(one(params)).shape == shape


def test_log_prob(block, rng):
    params, x = block.params(rng), block.draw(rng)
    log_prob = block(layer_of(block), params).log_prob(x)
    assert log_prob.dtype == "float32"
    np.testing.assert_allclose(log_prob, block.expected(params, x), rtol=1e-5, atol=1e-5)


def test_config_is_json_and_rebuilds_the_block(block, rng):
    params, x = block.params(rng), block.draw(rng)
    layer = block.make(name="some_name")
    config = json.loads(json.dumps(layer.get_config()))
    rebuilt = block.cls.from_config(config)
    assert rebuilt.name == "some_name"
    assert rebuilt.get_config() == layer.get_config()
    if block.is_prior:
        for first, second in zip(layer.weights, rebuilt.weights, strict=True):
            np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(
        block(rebuilt, params).log_prob(x), block(layer, params).log_prob(x)
    )


def test_every_weight_gets_a_gradient(block, rng):
    layer, x = layer_of(block), block.draw(rng)
    dense = keras.layers.Dense(block.params_size)
    features = tf.constant(rng.normal(size=(BATCH, 5)), tf.float32)
    with tf.GradientTape() as tape:
        distribution = layer() if block.is_prior else layer(dense(features))
        # Weights, lest the examples' gradients cancel.
        loss = -tf.reduce_sum(distribution.log_prob(x) * [1.0, 2.0, 4.0, 8.0])
    weights = layer.trainable_weights if block.is_prior else dense.trainable_weights
    assert len(weights) == (bool(block.params_size) if block.is_prior else 2)
    for weight, gradient in zip(weights, tape.gradient(loss, weights), strict=True):
        assert gradient is not None, weight.name
        assert np.isfinite(gradient).all(), weight.name
        by_parameter = np.reshape(gradient, (-1, block.params_size))
        assert by_parameter.any(axis=0).all(), weight.name


@pytest.mark.parametrize("name", ["DiagonalNormal", "FullRankNormal"])
def test_draws_of_a_posterior_are_reparameterized(name, rng):
    block = TABLE[name]
    params = tf.constant(block.params(rng), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(params)
        z = tf.convert_to_tensor(block.make()(params))
        loss = tf.reduce_sum(z**2)
    gradient = tape.gradient(loss, params).numpy()
    assert gradient.all()
    np.testing.assert_allclose(gradient[:, : z.shape[-1]], 2 * z, rtol=1e-5)  # z = loc + ...


# In single precision see test_log_prob. Half precision is dealt with in the same place for all
# blocks of a kind; double precision shows what any of them computes in single.
PRECISIONS = [
    (policy, name)
    for policy in ("mixed_bfloat16", "mixed_float16", "float64")
    for name in (TABLE if policy == "float64" else KINDS)
]


@pytest.mark.parametrize(("policy", "name"), PRECISIONS)
def test_precision_is_full_under_every_policy(policy, name, rng):
    block = TABLE[name]
    keras.mixed_precision.set_global_policy(policy)
    dtype, tolerance = ("float64", 1e-9) if policy == "float64" else ("float32", 1e-5)
    compute_dtype = keras.mixed_precision.global_policy().compute_dtype
    params, x = block.params(rng), block.draw(rng, dtype)
    # The numbers are such that half precision holds them; the density must not be rounded.
    distribution = block(block.make(), tf.cast(params, compute_dtype))
    log_prob = distribution.log_prob(x)
    assert log_prob.dtype == dtype
    expected = block.expected(params, x)
    np.testing.assert_allclose(log_prob, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.long
def test_log_prob_compiled_by_xla(block, rng):
    """Also: traced, for a batch of unknown size, by a layer that was never called before."""
    params, x = block.params(rng), block.draw(rng)
    unknown_batch = tf.TensorSpec([None] * (params.ndim - 1) + [block.params_size])

    def log_prob(layer, jit_compile):
        def log_prob(params):
            return (layer() if block.is_prior else layer(params)).log_prob(x)

        if block.is_prior:
            block(layer, params)  # sets the weights
        function = tf.function(log_prob, [unknown_batch], jit_compile=jit_compile)
        return function(params.astype(np.float32))

    expected = block.expected(params, x)
    # TensorFlow has no kernel for XLA of the draws that the layer would pass on.
    no_kernel = block.make.args[:1] == ("NegativeBinomial",)
    layer = block.make(**{"convert_to_tensor_fn": "mean"} if no_kernel else {})
    np.testing.assert_allclose(log_prob(layer, True), expected, rtol=1e-5, atol=1e-5)
    if no_kernel:
        actual = log_prob(block.make(), False)
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


# Saving.


def measure(model, features, x):
    """What a saved model, or a layer by itself, must repeat."""
    last = getattr(model, "layers", [model])[-1]
    regularizer = getattr(last, "activity_regularizer", None)
    # The first call builds the regularizer's prior into the graph; its value is of no interest.
    numbers = {"log_prob": model(features).log_prob(x).numpy()}
    if regularizer is not None:
        numbers["prior"] = regularizer.prior().log_prob(x).numpy()
    return numbers


LOAD = """
import json, pathlib, sys
import numpy as np
import tf_keras as keras
import tfpvae


def load(path):
    if path.suffix == ".keras":
        return keras.models.load_model(path)
    return keras.saving.deserialize_keras_object(json.loads(path.read_text()), safe_mode=True)


failures = {}
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.[kj]*")):
    try:
        numbers = measure(load(path), **np.load(path.with_suffix(".npz")))
        np.savez(path.with_suffix(".loaded.npz"), **numbers)
    except Exception as error:
        failures[path.stem] = f"{type(error).__name__}: {error}"
print(json.dumps(failures))
"""


#: what goes with a prior that is no density on all real numbers
POSTERIORS = {
    "Bernoulli": (posteriors.Bernoulli, {}),
    "OneHotCategorical": (posteriors.OneHotCategorical, {}),
    "RelaxedBernoulli": (posteriors.RelaxedBernoulli, {"temperature": 0.5}),
    "RelaxedOneHotCategorical": (posteriors.RelaxedOneHotCategorical, {"temperature": 0.5}),
}


def model_with(block, rng):
    """A Keras model that ends in the block, or in a posterior regularized by it if a prior."""
    layer = block.make()
    if block.is_prior:
        # A prior other than it starts as: loading must restore the weights.
        block(layer, block.params(rng))
        kl = KLDivergenceRegularizer(layer)
        make, fixed = POSTERIORS.get(type(layer).__name__, (posteriors.DiagonalNormal, {}))
        layer = make(block.event_shape, activity_regularizer=kl, **fixed)
    elif isinstance(layer, (posteriors.DiagonalNormal, posteriors.FullRankNormal)):
        kl = KLDivergenceRegularizer(priors.StandardNormal(block.event_shape))
        layer = block.make(activity_regularizer=kl)
    inputs = keras.Input([5])
    return keras.Model(inputs, layer(keras.layers.Dense(layer.params_size)(inputs)))


@pytest.mark.long
def test_every_block_survives_safe_saving_into_a_new_process(tmp_path, rng):
    """A model in a file, for each prior and for one block of each kind; the others by themselves.

    A layer without weights is no more in a file than what `serialize_keras_object` makes of it.
    """
    models = {
        name: (block, model_with(block, rng) if name in KINDS or block.is_prior else block.make())
        for name, block in TABLE.items()
    }
    compiled = model_with(TABLE["Bernoulli"], rng)
    compiled.compile(loss=losses.negative_log_prob)
    # First in the order of loading: nothing that another model loads may come to its help.
    models["0 compiled with negative_log_prob"] = TABLE["Bernoulli"], compiled
    expected = {}
    for name, (block, model) in models.items():
        size = 5 if isinstance(model, keras.Model) else block.params_size
        features = rng.normal(size=(BATCH, size)).astype(np.float32)
        x = block.draw(rng)
        expected[name] = measure(model, features, x)
        if isinstance(model, keras.Model):
            model.save(tmp_path / f"{name}.keras")
        else:
            config = json.dumps(keras.saving.serialize_keras_object(model))
            (tmp_path / f"{name}.json").write_text(config)
        np.savez(tmp_path / f"{name}.npz", features=features, x=x)
    run = subprocess.run(
        [sys.executable, "-c", inspect.getsource(measure) + LOAD, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout.splitlines()[-1]) == {}
    for name, numbers in expected.items():
        with np.load(tmp_path / f"{name}.loaded.npz") as file:
            loaded = dict(file)
        assert set(loaded) == set(numbers)
        for key, number in numbers.items():
            np.testing.assert_allclose(loaded[key], number, rtol=1e-6, err_msg=f"{name} {key}")


def test_a_registered_distribution_of_the_user_can_be_saved(monkeypatch):
    class Registered(tfd.Normal):
        pass

    monkeypatch.setitem(keras.saving.get_custom_objects(), "Registered", Registered)
    layer = DistributionLayer(Registered, 2)
    rebuilt = DistributionLayer.from_config(json.loads(json.dumps(layer.get_config())))
    assert isinstance(rebuilt(tf.zeros([1, 4])).tensor_distribution.distribution, Registered)


def test_what_could_not_be_loaded_is_refused_before_it_is_saved():
    class Unregistered(tfd.Normal):
        pass

    layer = DistributionLayer(Unregistered, 2)
    with pytest.raises((TypeError, ValueError), match=r"distribution: .*Unregistered.*register"):
        layer.get_config()


def test_every_argument_is_saved():
    kl = KLDivergenceRegularizer(priors.StandardNormal(2), weight=0.25)
    layer = posteriors.DiagonalNormal(
        2, num_samples=3, trainable=False, name="z", scale=0.5, activity_regularizer=kl
    )
    rebuilt = posteriors.DiagonalNormal.from_config(json.loads(json.dumps(layer.get_config())))
    assert (rebuilt.num_samples, rebuilt.trainable, rebuilt.name) == (3, False, "z")
    assert rebuilt.activity_regularizer.weight == 0.25
    assert rebuilt.activity_regularizer.prior().event_shape == (2,)
    assert rebuilt.get_config() == layer.get_config()

    layer = likelihoods.Bernoulli(2, sample_dtype="int32", validate_args=True)
    rebuilt = likelihoods.Bernoulli.from_config(json.loads(json.dumps(layer.get_config())))
    distribution = rebuilt(tf.zeros([1, 2]))
    assert distribution.sample().dtype == "int32"
    assert distribution.tensor_distribution.distribution.validate_args


def test_the_numbers_of_a_bijector_are_saved(rng):
    affine = tfb.Chain([tfb.Shift(0.5), tfb.Scale(np.array([2.0, 3.0], np.float32))])
    layer = DistributionLayer("Normal", 2, scale=1.0, constraints={"loc": affine})
    rebuilt = DistributionLayer.from_config(json.loads(json.dumps(layer.get_config())))
    params = rng.normal(size=(BATCH, 2))
    np.testing.assert_allclose(rebuilt(params).mean(), 0.5 + params * [2, 3], rtol=1e-5)


def refuse_to_run(*args, **kwargs):
    raise AssertionError("a file must not choose which function runs")


@pytest.mark.parametrize("kind", ["bijector", "distribution"])
def test_a_file_cannot_call_what_is_neither_distribution_nor_bijector(kind, monkeypatch):
    module, _ = serialization._TFP[kind]
    monkeypatch.setattr(module, "evil", refuse_to_run, raising=False)
    config = DistributionLayer("Normal", 2).get_config()
    item = {"tfpvae": kind, "name": "evil", "parameters": {}}
    with pytest.raises(ValueError, match=f"'evil', wanted a {kind} of TFP"):
        DistributionLayer.from_config(config | {"constraints": {"loc": item}})
    with pytest.raises(ValueError, match=f"'evil', wanted a {kind} of TFP"):
        DistributionLayer.from_config(config | {"scale": item})
    with pytest.raises(ValueError, match="'nothing', wanted a"):
        DistributionLayer.from_config(config | {"scale": item | {"name": "nothing"}})


def test_a_file_cannot_call_a_registered_function_as_distribution(monkeypatch):
    monkeypatch.setitem(keras.saving.get_custom_objects(), "evil", refuse_to_run)
    monkeypatch.setattr(tfd, "evil_too", refuse_to_run, raising=False)
    config = DistributionLayer("Normal", 2).get_config()
    for name in ("evil", "evil_too", "kl_divergence", "os.system", "tfpvae>DistributionLayer"):
        with pytest.raises(ValueError, match=f"distribution: got '{name}', wanted the name"):
            DistributionLayer.from_config(config | {"distribution": name})


def test_a_file_with_an_unknown_kind_of_object_is_refused():
    config = DistributionLayer("Normal", 2).get_config()
    with pytest.raises(ValueError, match="config: got 'evil'"):
        DistributionLayer.from_config(config | {"scale": {"tfpvae": "evil", "name": "Normal"}})


# Parameters: flat, with several draws, or as the output of a convolution.

PIXELS = (2, 3, 2)


def normal_image(rng):
    loc, scale = rng.normal(size=(2, BATCH, *PIXELS))
    flat = np.concatenate([loc.reshape(BATCH, -1), scale.reshape(BATCH, -1)], axis=-1)
    x = rng.normal(size=(BATCH, *PIXELS))
    expected = stats.norm.logpdf(x, loc, softplus(scale)).sum(axis=(1, 2, 3))
    return likelihoods.Normal(PIXELS), flat, np.concatenate([loc, scale], axis=-1), x, expected


def bernoulli_image(rng):
    logits = rng.normal(size=(BATCH, *PIXELS))
    x = rng.integers(0, 2, size=(BATCH, *PIXELS))
    expected = bernoulli(x, logits).sum(axis=(1, 2, 3))
    return likelihoods.Bernoulli(PIXELS), logits.reshape(BATCH, -1), logits, x, expected


def categorical_image(rng):
    logits = rng.normal(size=(BATCH, *PIXELS, 3))
    x = rng.integers(0, 3, size=(BATCH, *PIXELS))
    log_probs = special.log_softmax(logits, axis=-1)
    expected = np.take_along_axis(log_probs, x[..., None], axis=-1).sum(axis=(1, 2, 3, 4))
    layer = likelihoods.Categorical(PIXELS, num_classes=3)
    return layer, logits.reshape(BATCH, -1), logits.reshape(BATCH, 2, 3, 6), x, expected


@pytest.mark.parametrize("image", [normal_image, bernoulli_image, categorical_image])
def test_parameters_flat_with_draws_or_from_a_convolution(image, rng):
    layer, flat, convolution, x, expected = image(rng)
    for params in (flat, convolution):
        np.testing.assert_allclose(layer(params).log_prob(x), expected, rtol=1e-5)
        several = np.stack([params, np.roll(params, 1, axis=0), params])  # [S, B, ...]
        distribution = layer(several)
        assert distribution.batch_shape == (3, BATCH)
        log_prob = distribution.log_prob(np.stack([x, np.roll(x, 1, axis=0), x]))
        rolled = np.stack([expected, np.roll(expected, 1), expected])
        np.testing.assert_allclose(log_prob, rolled, rtol=1e-5)


def test_a_convolution_in_front(rng):
    inputs = keras.Input((2, 3, 4))
    layer = likelihoods.Normal(PIXELS)
    model = keras.Model(inputs, layer(keras.layers.Conv2D(4, 1)(inputs)))
    assert model(tf.zeros([5, 2, 3, 4])).batch_shape == (5,)
    features = rng.normal(size=(7, 2, 3, 4)).astype(np.float32)
    kernel, bias = model.layers[1].get_weights()
    loc = (features @ kernel[0, 0] + bias)[..., :2]
    np.testing.assert_allclose(model.predict(features, verbose=0), loc, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("event_shape", [(1, 5), (1, 1, 5), (1, 1)])
def test_flat_parameters_of_one_example_are_no_image(event_shape):
    layer = DistributionLayer("Normal", event_shape)
    for batch in (1, 2):
        assert layer(tf.zeros([batch, layer.params_size])).batch_shape == (batch,)


# The value that other layers see.


@pytest.mark.parametrize("as_method", [False, True], ids=["name", "method"])
@pytest.mark.parametrize("name", blocks.CONVERSIONS)
def test_convert_to_tensor_fn(name, as_method, rng):
    loc, scale = rng.normal(size=(2, BATCH, 3))
    expected = {
        "mean": loc,
        "mode": loc,
        "stddev": softplus(scale),
        "variance": softplus(scale) ** 2,
    }
    conversion = getattr(tfd.Distribution, name) if as_method else name
    layer = DistributionLayer("Normal", 3, convert_to_tensor_fn=conversion)
    assert layer.get_config()["convert_to_tensor_fn"] == name
    distribution = layer(np.concatenate([loc, scale], axis=-1))
    value = tf.convert_to_tensor(distribution).numpy()
    if name != "sample":
        np.testing.assert_allclose(value, expected[name], rtol=1e-5)
        return
    assert value.shape == (BATCH, 3)
    assert not np.isin(value, loc.astype(np.float32)).any()
    # One draw for one call: whoever asks again sees the same value.
    np.testing.assert_array_equal(tf.convert_to_tensor(distribution), value)


def test_draws_have_the_moments_of_the_distribution():
    layer = posteriors.DiagonalNormal(1, num_samples=40_000)
    draws = tf.convert_to_tensor(layer([[3.0, 0.5]])).numpy()
    scale = np.log1p(np.exp(0.5))
    assert abs(draws.mean() - 3) < 5 * scale / 200
    assert abs(draws.std() - scale) < 5 * scale / 200


def test_predict_of_a_likelihood_is_the_mean_and_of_a_categorical_the_mode(rng):
    logits = rng.normal(size=(6, 3)).astype(np.float32)

    def predict(layer):
        return keras.Sequential([keras.Input([3]), layer]).predict(logits, verbose=0)

    np.testing.assert_allclose(predict(likelihoods.Bernoulli(3)), special.expit(logits), 1e-5)
    np.testing.assert_allclose(predict(likelihoods.Poisson(3)), np.exp(logits), 1e-5)
    classes = predict(likelihoods.Categorical(num_classes=3))
    np.testing.assert_array_equal(classes, logits.argmax(axis=-1))


@pytest.mark.parametrize("kind", [list, np.float32, np.float64])
def test_grey_levels_are_scored_by_bernoulli_whatever_their_type(kind):
    x, logits = np.array([[0.25, 0.75, 0.5]]), np.array([[1.0, -2.0, 0.5]])
    equation = x * np.log(special.expit(logits)) + (1 - x) * np.log(special.expit(-logits))
    values = x.tolist() if kind is list else x.astype(kind)
    log_prob = likelihoods.Bernoulli(3)(logits).log_prob(values)
    np.testing.assert_allclose(log_prob, equation.sum(axis=-1), rtol=1e-5)


def test_dtype_of_draws():
    zeros = tf.zeros([1, 3])
    assert likelihoods.Bernoulli(3)(zeros).sample().dtype == "float32"
    assert likelihoods.Bernoulli(3, dtype="float64")(zeros).sample().dtype == "float64"
    assert likelihoods.Bernoulli(3, sample_dtype="int32")(zeros).sample().dtype == "int32"
    assert likelihoods.Categorical(num_classes=3)(zeros).sample().dtype == "int32"


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("float16", "float32"),
        ("float64", "float64"),
        (tf.float32, "float32"),
        (keras.mixed_precision.Policy("mixed_float16"), "float32"),
    ],
    ids=str,
)
def test_dtype_of_a_layer(dtype, expected):
    layer = DistributionLayer("Normal", 2, dtype=dtype)
    assert layer(tf.zeros([1, 4])).dtype == expected
    rebuilt = DistributionLayer.from_config(json.loads(json.dumps(layer.get_config())))
    assert rebuilt(tf.zeros([1, 4])).dtype == expected


def test_asking_a_class_for_its_params_size_leaves_the_automatic_names_alone():
    keras.backend.clear_session()
    names = []
    for _ in range(2):
        names.append(likelihoods.Poisson(3).name)
        likelihoods.Poisson.params_size(3)
    assert names == ["poisson", "poisson_1"]


# Noise.


def draws(count=1):
    layer = DistributionLayer("Normal", 2)
    return [tf.convert_to_tensor(layer(tf.zeros([3, 4]))).numpy() for _ in range(count)]


def test_noise_repeats_and_differs_between_seeds_and_draws():
    with fixed(1):
        first = draws(2)
    with fixed(1):
        again = draws(2)
    with fixed(2):
        other = draws(2)
    np.testing.assert_array_equal(first, again)
    assert len({draw.tobytes() for draw in first + other}) == 4
    assert not np.array_equal(*draws(2)), "outside of noise every draw is new"


def test_noise_is_fixed_inside_a_graph():
    layer = posteriors.DiagonalNormal(2)

    @tf.function
    def draw(seed):
        with fixed(seed):
            return tf.convert_to_tensor(layer(tf.zeros([3, 4])))

    with fixed(5):
        expected = draws()[0]
    np.testing.assert_allclose(draw(as_seed(5)), expected, rtol=1e-6)
    assert not np.array_equal(draw(as_seed(6)), expected)


def test_noise_nests():
    with fixed(1):
        first = draws(2)
    with fixed(2):
        inner = draws()
    with fixed(1):
        before = draws()
        with fixed(2):
            between = draws()
        after = draws()
    np.testing.assert_array_equal(before + after, first)
    np.testing.assert_array_equal(between, inner)


def test_noise_belongs_to_its_thread():
    seeds = []
    with fixed(1):
        thread = threading.Thread(target=lambda: seeds.append(next_seed()))
        thread.start()
        thread.join()
        assert next_seed() is not None
    assert seeds == [None]


def test_noise_ends_with_an_exception():
    with fixed(1):
        first = draws(2)
    with fixed(1):
        before = draws()
        with pytest.raises(KeyError), fixed(2):
            raise KeyError
        after = draws()
    np.testing.assert_array_equal(before + after, first)
    assert next_seed() is None


def test_as_seed_keeps_integers_apart():
    integers = [0, 1, -1, 2**31, 2**32, 2**32 + 1, 2**33, -(2**40), 2**63 - 1, -(2**63)]
    seeds = [as_seed(integer) for integer in integers]
    assert all(seed.shape == (2,) and seed.dtype == "int32" for seed in seeds)
    assert len({seed.numpy().tobytes() for seed in seeds}) == len(integers)
    np.testing.assert_array_equal(as_seed(np.int64(-5)), as_seed(-5))


def test_as_seed_refuses_integers_that_do_not_fit():
    for integer in (2**64, -(2**63) - 1):
        with pytest.raises(ValueError, match=f"seed: got {integer}, wanted .* 64 bits"):
            as_seed(integer)


@pytest.mark.parametrize(
    "seed", [[3, -4], (3, -4), np.array([3, -4]), tf.constant([3, -4]), tf.Variable([3, -4])]
)
def test_as_seed_takes_tensors(seed):
    seed = as_seed(seed)
    assert seed.dtype == "int32"
    np.testing.assert_array_equal(seed, [3, -4])


@pytest.mark.parametrize(
    "seed",
    [True, 1.5, "1", None, [1, 2, 3], [1.0, 2.0], tf.constant(1.0), [True, False], [1, "a"], [[1]]],
    ids=str,
)
def test_as_seed_refuses_the_rest(seed):
    with pytest.raises(TypeError, match=r"seed: got .*, wanted an integer"):
        as_seed(seed)


# Priors.


def test_initial_values_of_a_prior_are_those_asked_for():
    initial = {"loc": [1.5, -2.0], "scale": [0.1, 30.0]}
    prior = priors.Normal(2, initial=initial)()
    np.testing.assert_allclose(prior.mean(), initial["loc"], rtol=1e-6)
    np.testing.assert_allclose(prior.stddev(), initial["scale"], rtol=1e-6)
    np.testing.assert_allclose(priors.Normal(3)().mean(), [0, 0, 0])
    np.testing.assert_allclose(priors.Normal(3)().stddev(), [1, 1, 1], rtol=1e-6)
    np.testing.assert_allclose(priors.Normal(2, scale=3.0)().stddev(), [3, 3])
    covariance = np.array([[4.0, 1.0, 0.5], [1.0, 2.0, 0.2], [0.5, 0.2, 1.0]])
    scale_tril = np.linalg.cholesky(covariance)
    full = priors.Prior("MultivariateNormalTriL", 3, loc=0.0, initial={"scale_tril": scale_tril})
    np.testing.assert_allclose(full().covariance(), covariance, rtol=1e-5)


def test_initial_values_of_a_prior_in_double_precision():
    prior = priors.Normal(2, initial={"loc": 0.1, "scale": 0.3}, dtype="float64")()
    np.testing.assert_allclose(prior.mean(), [0.1, 0.1], rtol=1e-14)
    np.testing.assert_allclose(prior.stddev(), [0.3, 0.3], rtol=1e-14)


def test_a_normal_prior_starts_with_unit_scale_when_only_loc_is_given():
    prior = priors.Normal(2, initial={"loc": 3.0})()
    np.testing.assert_allclose(prior.mean(), [3, 3])
    np.testing.assert_allclose(prior.stddev(), [1, 1], rtol=1e-6)


def test_a_learned_prior_is_trained_with_the_model(rng):
    prior = priors.Normal(2)
    kl = KLDivergenceRegularizer(prior)
    model = keras.Sequential(
        [
            keras.Input([3]),
            keras.layers.Dense(4),
            posteriors.DiagonalNormal(2, activity_regularizer=kl),
        ]
    )
    assert any(weight is prior.trainable_weights[0] for weight in model.trainable_weights)
    assert len(prior.trainable_weights) == 1
    with tf.GradientTape() as tape:
        model(rng.normal(size=(BATCH, 3)).astype(np.float32))
        loss = tf.add_n(model.losses)
    gradient = tape.gradient(loss, prior.trainable_weights[0])
    assert gradient.shape == (4,)
    assert np.isfinite(gradient).all()
    assert np.all(gradient != 0)


def test_a_prior_of_fixed_parameters_has_no_weights():
    assert priors.StandardNormal(2).weights == []


# check_values: what is accepted, what is refused, and what the refusal says.

VALUES = {
    "Bernoulli": (likelihoods.Bernoulli, {}, [[0, 1, 1], [0, 0, 1]]),
    "Bernoulli, grey levels": (likelihoods.Bernoulli, {}, [[0.0, 0.25, 1.0]]),
    "ContinuousBernoulli": (likelihoods.ContinuousBernoulli, {}, [[0.0, 0.25, 1.0]]),
    "Categorical": (likelihoods.Categorical, {"num_classes": 4}, [[0, 3, 2], [1, 1, 0]]),
    "Categorical by name": (
        DistributionLayer,
        {"distribution": "Categorical", "num_classes": 4},
        [[0, 3, 2], [1, 1, 0]],
    ),
    "Binomial": (likelihoods.Binomial, {"total_count": 16}, [[0, 16, 7]]),
    "Normal": (likelihoods.Normal, {}, [[-1e6, 0.5, 255.0]]),
    "Poisson": (likelihoods.Poisson, {}, [[0, 3, 100_000]]),
    "Gamma": (likelihoods.Gamma, {}, [[1e-3, 1.0, 1e4]]),
    "NegativeBinomial": (DistributionLayer, {"distribution": "NegativeBinomial"}, [[0, 3, 1000]]),
    "NegativeBinomial, mean and dispersion": (likelihoods.NegativeBinomial, {}, [[0, 3, 1000]]),
    "StudentT": (likelihoods.StudentT, {}, [[-1e6, 0.5, 255.0]]),
    "Laplace": (likelihoods.Laplace, {}, [[-1e6, 0.5, 255.0]]),
    "Beta": (likelihoods.Beta, {}, [[1e-3, 0.25, 0.999]]),
    "LogNormal": (likelihoods.LogNormal, {}, [[1e-3, 1.0, 1e4]]),
    "Ordinal": (likelihoods.Ordinal, {"num_classes": 4}, [[0, 3, 2], [1, 1, 0]]),
    "Multinomial": (likelihoods.Multinomial, {"total_count": 4}, [[0, 3, 1], [4, 0, 0]]),
    "DirichletMultinomial": (
        likelihoods.DirichletMultinomial,
        {"total_count": 4},
        [[0, 3, 1], [4, 0, 0]],
    ),
    "DiscretizedLogistic": (likelihoods.DiscretizedLogistic, {}, [[0, 1, 255], [128, 3, 0]]),
    "Dirichlet": (DistributionLayer, {"distribution": "Dirichlet"}, [[0.2, 0.3, 0.5]]),
    "OneHotCategorical": (
        likelihoods.OneHotCategorical,
        {},
        [[0, 1, 0], [0, 0, 1]],
    ),
    # Whether these accept a value is for their learned parameters to say.
    "Uniform, learned": (
        DistributionLayer,
        {"distribution": "Uniform", "constraints": {"high": tfb.Exp()}},
        [[-3.0, 0.5, 40.0], [2.0, 7.0, -1.0]],
    ),
    "TruncatedNormal, learned": (
        DistributionLayer,
        {"distribution": "TruncatedNormal", "low": 0.0, "constraints": {"high": tfb.Exp()}},
        [[0.5, 20.0, 1.0]],
    ),
}


def layer_and_values(name):
    make, kwargs, values = VALUES[name]
    return make(event_shape=3, **kwargs), np.array(values)


@pytest.mark.parametrize("name", VALUES)
def test_check_values_accepts_data_of_the_support(name):
    layer, values = layer_and_values(name)
    layer.check_values(values)
    layer.check_values(values.astype(np.float32))
    layer.check_values(values.tolist())


@pytest.mark.parametrize("size", [1, 100])
@pytest.mark.parametrize("distribution", ["Uniform", "TruncatedNormal"])
def test_check_values_leaves_a_learned_support_to_training(distribution, size, rng):
    layer = DistributionLayer(distribution, size, low=0.0, constraints={"high": tfb.Exp()})
    layer.check_values(rng.uniform(0, 50, size=(10, size)))


def test_check_values_holds_to_the_part_of_a_support_that_is_fixed():
    layer = DistributionLayer("Uniform", 3, low=0.0, constraints={"high": tfb.Exp()})
    with pytest.raises(ValueError, match=r"x: got values from -1 to .*outside the support"):
        layer.check_values(np.full((10, 3), -1.0))


def test_check_values_accepts_any_real_dtype():
    layer = likelihoods.Bernoulli(2)
    for dtype in (bool, np.uint8, np.int64, np.float16, np.float64):
        layer.check_values(np.array([[0, 1], [1, 1]], dtype))


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_check_values_refuses_what_is_not_finite(name, bad):
    layer, values = layer_and_values(name)
    values = np.repeat(values.astype(float), 3, axis=0)
    values[1, 2] = bad
    with pytest.raises(ValueError, match="y: got NaN or infinite values"):
        layer.check_values(values, "y")


@pytest.mark.parametrize(
    ("event_shape", "shape", "message"),
    [
        (4, (5, 3), r"x: got shape (5, 3), wanted (N, 4), because Bernoulli has event_shape (4,)"),
        (4, (5, 2, 2), "x: got shape (5, 2, 2), wanted (N, 4)"),
        (4, (5, 2, 2), "reshape it: x.reshape(-1, 4)"),
        ((2, 2, 1), (5, 2, 2), "wanted (N, 2, 2, 1)"),
        ((2, 2, 1), (5, 2, 2), "reshape it: x.reshape(-1, 2, 2, 1)"),
        ((), (5, 1), "x: got shape (5, 1), wanted (N,)"),
        (4, (4,), "x: got shape (4,), wanted (N, 4)"),
    ],
)
def test_check_values_refuses_the_wrong_shape(event_shape, shape, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        likelihoods.Bernoulli(event_shape).check_values(np.zeros(shape))


def test_check_values_gives_no_reshape_hint_that_would_not_work():
    with pytest.raises(ValueError, match="wanted") as error:
        likelihoods.Bernoulli(4).check_values(np.zeros((5, 3)))
    assert "reshape" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((0, 2)), r"x: got .*(empty|no |\(0, 2\))"),
        (np.array([["a", "b"]]), "x: got .*wanted .*numbers"),
        ([[1.0, None]], "x: got"),
        ([[1.0, 2.0], [3.0]], "x: got .*length"),
        (np.array([[1j, 2.0]]), "x: got"),
        (1.0, r"x: got .*wanted .*N"),
    ],
    ids=["empty", "strings", "None", "ragged", "complex", "a number"],
)
def test_check_values_refuses_what_is_no_data(values, message):
    with pytest.raises((TypeError, ValueError), match=message):
        likelihoods.Normal(2).check_values(values)


OUTSIDE = {
    "0..255 for Bernoulli": (likelihoods.Bernoulli(3), [[0, 128, 255]], r"scale .*x / 255"),
    "0..16 for Bernoulli": (likelihoods.Bernoulli(3), [[0, 7, 16]], r"scale .*x / 16"),
    "-1 for Bernoulli": (likelihoods.Bernoulli(3), [[0, -1, 1]], "from -1 to 1"),
    "1.5 for ContinuousBernoulli": (
        likelihoods.ContinuousBernoulli(3),
        [[0.5, 1.5, 0]],
        "from 0 to 1.5",
    ),
    "17 for Binomial of 16": (
        likelihoods.Binomial(3, total_count=16),
        [[0, 3, 17]],
        "from 0 to 17",
    ),
    "0.5 for Binomial": (likelihoods.Binomial(3, total_count=16), [[0, 0.5, 1]], "fraction"),
    "-1 for Poisson": (likelihoods.Poisson(3), [[0, -1, 3]], "from -1 to 3"),
    "0.5 for Poisson": (likelihoods.Poisson(3), [[0, 0.5, 3]], "fraction"),
    "K for Categorical": (likelihoods.Categorical(3, num_classes=4), [[0, 1, 4]], "from 0 to 4"),
    "-1 for Categorical": (likelihoods.Categorical(3, num_classes=4), [[0, 1, -1]], "negative"),
    "0.5 for Categorical": (likelihoods.Categorical(3, num_classes=4), [[0, 1, 0.5]], "outside"),
    "-1 for Gamma": (likelihoods.Gamma(3), [[1, -1, 2]], "from -1 to 2"),
    "-1 for NegativeBinomial": (DistributionLayer("NegativeBinomial", 3), [[1, -1, 2]], "from -1"),
    "0.5 for NegativeBinomial": (DistributionLayer("NegativeBinomial", 3), [[1, 0.5, 2]], "0.5"),
    "-1 for the mean and dispersion": (likelihoods.NegativeBinomial(3), [[1, -1, 2]], "from -1"),
    "0.5 for the mean and dispersion": (likelihoods.NegativeBinomial(3), [[1, 0.5, 2]], "0.5"),
    "K for Ordinal": (likelihoods.Ordinal(3, num_classes=4), [[0, 1, 4]], "from 0 to 4"),
    "0.5 for Ordinal": (likelihoods.Ordinal(3, num_classes=4), [[0, 1, 0.5]], "outside"),
    "grey levels scaled to [0, 1]": (
        likelihoods.DiscretizedLogistic(3),
        [[0, 0.5, 1]],
        r"wanted whole grey levels 0\.\.255",
    ),
    "256 for DiscretizedLogistic": (
        likelihoods.DiscretizedLogistic(3),
        [[0, 1, 256]],
        r"wanted whole grey levels 0\.\.255",
    ),
    "0.5 for MixtureOf": (
        likelihoods.MixtureOf(likelihoods.Poisson(), 2, event_shape=3),
        [[0, 0.5, 3]],
        "fraction",
    ),
    "-1 for ZeroInflated": (
        likelihoods.ZeroInflated(likelihoods.Poisson(3)),
        [[0, -1, 3]],
        "from -1 to 3",
    ),
    "-1 for Masked": (likelihoods.Masked(likelihoods.Poisson(3)), [[0, -1, 3]], "from -1 to 3"),
    "no sum of one for Dirichlet": (DistributionLayer("Dirichlet", 3), [[0.2, 0.2, 0.5]], "sum"),
    "two hot": (DistributionLayer("OneHotCategorical", 3), [[0, 1, 1]], "outside the support"),
    "between outcomes": (
        DistributionLayer("FiniteDiscrete", 3, outcomes=[0.0, 5.0, 10.0], num_classes=3),
        [[0.0, 3.0, 10.0]],
        "outside the support",
    ),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_check_values_refuses_what_is_outside_the_support(name):
    layer, values, message = OUTSIDE[name]
    with pytest.raises(ValueError, match=r"x: got values from .*outside the support") as error:
        layer.check_values(np.array(values))
    assert re.search(message, str(error.value))
    # The reason is one that a user can read: no op names, no printed tensors.
    assert not re.search(r"\{\{|`\[\[|\n|\[Op:", str(error.value))


# One for each way to find it: among the least, the largest and the broken numbers, or row by row.
@pytest.mark.parametrize(
    "name",
    [
        "-1 for Poisson",
        "17 for Binomial of 16",
        "0.5 for Binomial",
        "0.5 for Categorical",
        "grey levels scaled to [0, 1]",
        "0.5 for MixtureOf",
        "-1 for ZeroInflated",
        "-1 for Masked",
        "no sum of one for Dirichlet",
        "two hot",
        "between outcomes",
    ],
)
def test_check_values_finds_one_bad_row_of_many(name):
    layer, values, _ = OUTSIDE[name]
    rows = np.zeros((10_000, 3))
    if "hot" in name:
        rows[:, 0] = 1.0
    elif "Dirichlet" in name:
        rows += 1 / 3
    else:
        rows[::2] = 10.0 if "outcomes" in name else 1.0  # 0.5 is neither least nor largest
    layer.check_values(rows)
    rows[7_000] = values[0]
    with pytest.raises(ValueError, match="outside the support"):
        layer.check_values(rows)


@pytest.mark.parametrize(
    ("layer", "values"),
    [
        (likelihoods.Categorical(num_classes=3), [0, 1, 2, 3]),
        (likelihoods.Binomial(1, total_count=16), [[0], [8], [17]]),
    ],
    ids=["Categorical", "Binomial"],
)
def test_check_values_does_not_advise_to_scale_labels_and_counts(layer, values):
    with pytest.raises(ValueError, match="outside the support") as error:
        layer.check_values(np.array(values))
    assert "scale" not in str(error.value)


@pytest.mark.parametrize("name", ["Gamma", "LogNormal"])
def test_check_values_refuses_a_boundary_where_no_density_is_finite(name):
    layer = DistributionLayer(name, 2)
    with pytest.raises(ValueError, match="outside the support"):
        layer.check_values(np.array([[1.0, 0.0]]))


def test_check_values_works_when_the_user_validates_too():
    layer = DistributionLayer("Poisson", 2, validate_args=True)
    layer.check_values(np.array([[0, 3]]))
    with pytest.raises(ValueError, match="outside the support"):
        layer.check_values(np.array([[0, -3]]))


def whole(x):
    return x == np.floor(x)


# A layer, values that it accepts, and in numpy's words which ones it does. All values are eighths:
# none lies within rounding of a boundary.
SUPPORTS = {
    "Bernoulli": (likelihoods.Bernoulli, {}, (0, 8), lambda x: (x >= 0) & (x <= 1)),
    "ContinuousBernoulli": (
        likelihoods.ContinuousBernoulli,
        {},
        (0, 8),
        lambda x: (x >= 0) & (x <= 1),
    ),
    "Categorical": (
        likelihoods.Categorical,
        {"num_classes": 3},
        (0, 2),
        lambda x: whole(x) & (x >= 0) & (x < 3),
    ),
    "Binomial": (
        likelihoods.Binomial,
        {"total_count": 16},
        (0, 16),
        lambda x: whole(x) & (x >= 0) & (x <= 16),
    ),
    "Poisson": (likelihoods.Poisson, {}, (0, 99), lambda x: whole(x) & (x >= 0)),
    "DiscretizedLogistic": (
        likelihoods.DiscretizedLogistic,
        {},
        (0, 255),
        lambda x: whole(x) & (x >= 0) & (x < 256),
    ),
    "Normal": (likelihoods.Normal, {}, (-99, 99), np.isfinite),
    "Gamma": (likelihoods.Gamma, {}, (1, 99), lambda x: x > 0),
}
ANYTHING = st.one_of(
    st.integers(-16, 160).map(lambda eighths: eighths / 8),
    st.sampled_from([-1.0, 3.0, 17.0, 255.0, 1e6, np.nan, np.inf, -np.inf]),
)


@cache
def layer_with_support(name):
    make, kwargs, *_ = SUPPORTS[name]
    return make(event_shape=3, **kwargs)


@pytest.mark.parametrize("name", SUPPORTS)
@settings(max_examples=15, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_check_values_accepts_exactly_the_support(name, data):
    _, _, (low, high), inside = SUPPORTS[name]
    whole_numbers = name not in ("Bernoulli", "ContinuousBernoulli", "Normal", "Gamma")
    elements = st.integers(low, high).map(lambda n: float(n) if whole_numbers else n / 8)
    shape = (data.draw(st.integers(1, 4)), 3)
    x = data.draw(hnp.arrays(np.float32, shape, elements=elements))
    if data.draw(st.booleans()):
        x[data.draw(st.integers(0, shape[0] - 1)), data.draw(st.integers(0, 2))] = data.draw(
            ANYTHING
        )
    layer = layer_with_support(name)
    if (np.isfinite(x) & inside(x)).all():
        layer.check_values(x)
    else:
        with pytest.raises(ValueError, match="x: got"):
            layer.check_values(x)


# Errors.


def keras3(make):
    """An object of Keras 3, which TensorFlow brings along as tf.keras."""
    return make(pytest.importorskip("keras"))


class MyExp(tfb.Exp):
    """A bijector that a file could name but nobody could load."""


ERRORS = {
    "unknown distribution": (
        lambda: DistributionLayer("Normall", 2),
        ValueError,
        "distribution: got 'Normall', .*did you mean 'Normal'",
    ),
    "a function of TFP": (
        lambda: DistributionLayer("kl_divergence", 2),
        ValueError,
        "distribution: got 'kl_divergence', wanted the name of a class",
    ),
    "a distribution, no class": (
        lambda: DistributionLayer(tfd.Normal(0.0, 1.0), 2),
        TypeError,
        "distribution: got .*wanted a class",
    ),
    "unknown parameter": (
        lambda: DistributionLayer("Normal", 2, scal=1.0),
        TypeError,
        r"scal: not a parameter of tfd.Normal \(loc, scale\).*did you mean scale",
    ),
    "unknown parameter of a named block": (
        lambda: likelihoods.Poisson(2, ratee=1.0),
        TypeError,
        "ratee: not a parameter of tfd.Poisson .*did you mean",
    ),
    "parameters of the wrong size": (
        lambda: DistributionLayer("Normal", 2)(tf.zeros([3, 5])),
        ValueError,
        r"got parameters of shape \(3, 5\), wanted \(\.\.\., 4\).*loc 2 \+ scale 2.*Dense\(4\)",
    ),
    "parameters of the wrong size in a model": (
        lambda: keras.Sequential([keras.Input([5]), likelihoods.Normal(2)]),
        ValueError,
        r"got parameters of shape \(None, 5\), wanted \(\.\.\., 4\)",
    ),
    "convolution with the wrong channels": (
        lambda: DistributionLayer("Normal", (2, 2, 1))(tf.zeros([3, 2, 2, 3])),
        ValueError,
        r"got parameters of shape \(3, 2, 2, 3\).*convolution that puts out \(\.\.\., 2, 2, 2\)",
    ),
    "unknown constraint": (
        lambda: DistributionLayer("Normal", 2, constraints={"mu": tfb.Exp()}),
        ValueError,
        r"constraints: got 'mu', wanted one of .*\['loc', 'scale'\]",
    ),
    "constraint of a fixed parameter": (
        lambda: DistributionLayer("Normal", 2, scale=1.0, constraints={"scale": tfb.Exp()}),
        ValueError,
        r"constraints: got 'scale', wanted one of .*\['loc'\]",
    ),
    "constraint that is a function": (
        lambda: DistributionLayer("Normal", 2, constraints={"scale": tf.exp}),
        TypeError,
        "constraints: ",
    ),
    "constraint that cannot be saved": (
        lambda: DistributionLayer("Normal", 2, constraints={"scale": MyExp()}),
        TypeError,
        "constraints: .*which a file cannot hold",
    ),
    "constraint that TFP does not name": (
        lambda: DistributionLayer("Uniform", 2),
        ValueError,
        "no constraint for its parameter 'high': fix it by name .*or give constraints",
    ),
    "Categorical without num_classes": (
        lambda: DistributionLayer("Categorical", 2),
        ValueError,
        "the shape of 'logits' does not follow .*num_classes",
    ),
    "scalar event of a vector distribution": (
        lambda: DistributionLayer("MultivariateNormalTriL", ()),
        ValueError,
        "event_shape",
    ),
    "scalar event of FullRankNormal": (
        lambda: posteriors.FullRankNormal(()),
        ValueError,
        "event_shape",
    ),
    "num_samples of the mean": (
        lambda: DistributionLayer("Normal", 2, num_samples=3, convert_to_tensor_fn="mean"),
        ValueError,
        "num_samples: got 3 with convert_to_tensor_fn='mean'",
    ),
    "a lambda": (
        lambda: DistributionLayer("Normal", 2, convert_to_tensor_fn=lambda d: d.mean()),
        ValueError,
        "convert_to_tensor_fn: got .*wanted one of sample, mean, mode",
    ),
    "an unknown name": (
        lambda: DistributionLayer("Normal", 2, convert_to_tensor_fn="median"),
        ValueError,
        "convert_to_tensor_fn: got 'median', wanted one of sample",
    ),
    "TFP's regularizer": (
        lambda: DistributionLayer(
            "Normal",
            2,
            activity_regularizer=tfp.layers.KLDivergenceRegularizer(tfd.Normal(0.0, 1.0)),
        ),
        ValueError,
        "activity_regularizer: .*double; use tfpvae.KLDivergenceRegularizer",
    ),
    "tensor of Keras 3": (
        lambda: DistributionLayer("Normal", 2)(keras3(lambda keras: keras.Input([4]))),
        TypeError,
        "inputs: got KerasTensor of Keras 3 .*import tf_keras as keras",
    ),
    "layer of Keras 3": (
        lambda: DistributionLayer("Normal", 2)(keras3(lambda keras: keras.layers.Dense(4))),
        TypeError,
        "inputs: got Dense of Keras 3 .*import tf_keras as keras",
    ),
    "model of tf.keras": (
        lambda: DistributionLayer("Normal", 2)(tf.keras.Sequential([tf.keras.layers.Dense(4)])),
        TypeError,
        "inputs: got Sequential of Keras 3 .*import tf_keras as keras",
    ),
    "fixed parameter of the wrong shape": (
        lambda: DistributionLayer("Normal", 3, scale=np.ones(2)),
        ValueError,
        r"scale: got shape \(2,\), wanted a value that broadcasts to \(3,\)",
    ),
    "fixed parameter that is a variable": (
        lambda: DistributionLayer("Normal", 3, scale=tf.Variable(1.0)),
        TypeError,
        "scale: got <tf.Variable.*which a file cannot hold.*a prior block",
    ),
    "fixed parameter that is a lambda": (
        lambda: DistributionLayer("Normal", 3, scale=lambda: 1.0),
        TypeError,
        "scale: got <function.*which a file cannot hold",
    ),
    "fixed parameter that is a string": (
        lambda: DistributionLayer("Normal", 3, scale="a"),
        (TypeError, ValueError),
        "scale",
    ),
    "negative fixed scale": (
        lambda: DistributionLayer("Normal", 3, scale=-1.0),
        ValueError,
        "scale",
    ),
    "negative number of trials": (
        lambda: likelihoods.Binomial(3, total_count=-1),
        ValueError,
        "total_count",
    ),
    "initial value of an unknown parameter": (
        lambda: priors.Normal(2, initial={"sd": 1.0}),
        ValueError,
        r"initial: got 'sd', wanted one of \['loc', 'scale'\]",
    ),
    "initial value of a fixed parameter": (
        lambda: priors.Normal(2, loc=0.0, initial={"loc": 1.0}),
        ValueError,
        r"initial: got 'loc', wanted one of \['scale'\]",
    ),
    "initial value where nothing is learned": (
        lambda: priors.StandardNormal(2, initial={"loc": 1.0}),
        (TypeError, ValueError),
        "initial: got 'loc'",
    ),
    "initial value out of range": (
        lambda: priors.Normal(2, initial={"scale": -3.0}),
        ValueError,
        "initial: got .*-3.0.*wanted values that Normal allows",
    ),
    "initial value of the wrong shape": (
        lambda: priors.Normal(2, initial={"loc": [1.0, 2.0, 3.0]}),
        ValueError,
        r"initial: .*loc.*\(3,\).*\(2,\)",
    ),
    "initial value that is a string": (
        lambda: priors.Normal(2, initial={"loc": "a"}),
        (TypeError, ValueError),
        "initial: .*loc",
    ),
    "initial value that is a variable": (
        lambda: priors.Normal(2, initial={"loc": tf.Variable(1.0)}),
        TypeError,
        "initial: got <tf.Variable.*which a file cannot hold",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_the_argument_what_came_and_what_was_wanted(name):
    action, error, message = ERRORS[name]
    with pytest.raises(error, match="(?s)" + message):
        action()


@pytest.mark.parametrize("event_shape", [0, -1, 1.5, "3", True, None, (2, 0), (2, 1.5), [2, "a"]])
def test_bad_event_shapes(event_shape):
    message = re.escape(f"event_shape: got {event_shape!r}, wanted a size or a tuple of sizes")
    with pytest.raises(ValueError, match=message):
        DistributionLayer("Normal", event_shape)
    with pytest.raises(ValueError, match=message):
        likelihoods.Bernoulli(event_shape)


@pytest.mark.parametrize(
    ("num_samples", "error"),
    [(0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError), ("3", TypeError)],
)
def test_bad_num_samples(num_samples, error):
    message = f"num_samples: got {num_samples!r}, wanted a positive integer"
    with pytest.raises(error, match=message):
        posteriors.DiagonalNormal(2, num_samples=num_samples)


@pytest.mark.parametrize("num_classes", [0, -1, 2.5, "3", None])
def test_bad_num_classes(num_classes):
    with pytest.raises((TypeError, ValueError), match=r"num_classes: got|num_classes for"):
        likelihoods.Categorical(num_classes=num_classes)


def test_a_layer_can_be_made_inside_a_compiled_function():
    @tf.function
    def mean():
        return DistributionLayer("Normal", 2)(tf.zeros([1, 4])).mean()

    np.testing.assert_array_equal(mean(), [[0.0, 0.0]])


def test_sample_dtype_where_there_is_no_choice():
    with pytest.raises(TypeError, match=r"sample_dtype: got 'int32', but the dtype of tfd\.Normal"):
        DistributionLayer("Normal", 2, sample_dtype="int32")


def test_the_hint_for_an_unknown_distribution_is_a_class():
    with pytest.raises(ValueError, match="got 'kl_divergence'") as caught:
        DistributionLayer("kl_divergence", 2)
    assert "did you mean 'kl_divergence'" not in str(caught.value)
