"""Bad and odd inputs for every public function, method and constructor, and what each must do.

A call either returns, or raises an error that names an argument. `CASES` has a line for each public
callable; those in `LEFT_OUT` have a reason.
"""

import contextlib
import functools
import importlib
import inspect
import re
import signal
import types
import warnings
from collections.abc import Callable
from typing import NamedTuple
from unittest import mock

import matplotlib as mpl
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras as keras
from hypothesis import strategies as st
from matplotlib import pyplot as plt
from scipy import sparse

import tfpvae
from tfpvae import flows, likelihoods, networks, objectives, posteriors, priors

tfd = tfp.distributions
SECONDS = 30  # the time that a call may take
N = 12


# The walk.


def modules():
    """The public modules by name."""
    names = {*tfpvae.__all__, *tfpvae._MODULES, "layers"}
    found = {
        name: importlib.import_module(f"tfpvae.{name}")
        for name in names
        if name.islower() and name not in tfpvae._NAMES and name != "negative_log_prob"
    }
    return {
        name: module
        for name, module in sorted(found.items())
        if isinstance(module, types.ModuleType)
    }


def public():
    """The names of all public functions, constructors and methods of the package's own classes."""
    found = []
    for module, value in modules().items():
        for name, thing in vars(value).items():
            own = getattr(thing, "__module__", None) == value.__name__
            if name.startswith("_") or not own or not callable(thing):
                continue
            found.append(f"{module}.{name}")
            if inspect.isclass(thing):
                found += [
                    f"{module}.{name}.{method}"
                    for method in vars(thing)
                    if not method.startswith("_") and callable(getattr(thing, method, None))
                ]
    return found


# What a user has in hand when things go wrong.


class _Odd:
    """An object that is nothing."""

    def __repr__(self):
        return "<odd>"


class _Raises:
    """A thing whose conversion fails."""

    def __array__(self, *args, **kwargs):
        raise ValueError("values: this table cannot be read")

    def __repr__(self):
        return "<cannot be read>"


def _failing():
    """A generator that raises when it is asked for its second batch."""
    yield np.zeros((4, 3), "float32")
    raise ValueError("x: the file of the second batch is gone")


def _empty():
    yield from ()


NUMBERS = [
    0,
    1,
    2,
    3,
    -1,
    1.5,
    -0.5,
    np.nan,
    np.inf,
    -np.inf,
    True,
    False,
    "3",
    "",
    None,
    10**30,
    -(10**30),
    1e300,
    1e-300,
    np.float64(0.5),
    np.float32(2),
    np.int64(2),
    np.bool_(True),
    2 + 1j,
    b"2",
    [],
    [2],
    (1, 2),
    {},
    {"a": 1},
    _Odd(),
    np.array(2),
    np.array([1.5]),
    np.zeros(0),
    tf.constant(2),
    tf.constant(1.5),
    int,
    len,
]
STRINGS = ["", "none", "NORMAL", "no such thing", "\0", "é" * 50, "../x", "importance", "mixture"]
OBJECTS = [
    _Odd(),
    _Raises(),
    object,
    np,
    {},
    {1, 2},
    [None],
    [[]],
    [[1.0], [1.0, 2.0]],
    "abc",
    b"abc",
    lambda: None,
    ValueError("x"),
    slice(3),
    range(3),
    np.datetime64("2020-01-01"),
    keras.layers.Dense(2),
    keras.layers.Dense,
    tfd.Normal(0.0, 1.0),
    tfd.Normal,
    likelihoods.Bernoulli,
    [[[]]],
    np.array(None),
    np.array("a"),
    3,
    0.5,
    True,
    None,
]


def _keras3():
    layer = tf.keras.layers.Dense(2)
    return layer if type(layer).__module__.startswith("keras.") else _Odd()


OBJECTS.append(_keras3())


def _with(x, value):
    x = np.array(x, "float64")
    if x.size:
        x.reshape(-1)[x.size // 2] = value
    return x


def _frame(x):
    import pandas as pd

    return pd.DataFrame(np.reshape(x, (len(x), -1)))


def _ragged(x):
    return [[0.0] * (1 + i % 2) for i in range(len(x))]


def _cast(dtype, x):
    return x.astype(dtype)


# What may become of data on the way: each takes an array [N, ...].
MUTATIONS = {
    **{
        f"as {dtype}": functools.partial(_cast, dtype)
        for dtype in (
            "float64",
            "float16",
            "int64",
            "int8",
            "uint8",
            "bool",
            "complex64",
            "object",
            "str",
            "float128",
        )
    },
    "as it is": lambda x: x,
    "a list": lambda x: x.tolist(),
    "a tuple": lambda x: tuple(x.tolist()),
    "a tensor": tf.constant,
    "a tensor in half precision": lambda x: (
        tf.cast(x, tf.bfloat16) if x.dtype.kind in "fiub" else x
    ),
    "a variable": tf.Variable,
    "NaN": lambda x: _with(x, np.nan),
    "infinite": lambda x: _with(x, np.inf),
    "1e10": lambda x: _with(x, 1e10),
    "1e30": lambda x: _with(x, 1e30),
    "1e300": lambda x: _with(x, 1e300),
    "negative": lambda x: -np.abs(x.astype("float64")) - 1.0,
    "fractions": lambda x: x.astype("float64") + 0.5,
    "all NaN": lambda x: np.full(x.shape, np.nan),
    "zeros": np.zeros_like,
    "no rows": lambda x: x[:0],
    "one row": lambda x: x[:1],
    "a row less": lambda x: x[:-1],
    "a row more": lambda x: np.concatenate([x, x[:1]]),
    "a number": lambda x: x.reshape(-1)[0],
    "flat": np.ravel,
    "an axis more": lambda x: x[..., None],
    "an axis before": lambda x: x[None],
    "transposed": np.transpose,
    "a column less": lambda x: x[..., :-1] if x.ndim > 1 else x,
    "no columns": lambda x: x[..., :0] if x.ndim > 1 else x,
    "a column more": lambda x: np.concatenate([x, x], -1) if x.ndim > 1 else x,
    "ragged": _ragged,
    "ragged tensor": lambda x: tf.ragged.constant(_ragged(x)),
    "masked": lambda x: np.ma.masked_array(x, np.arange(x.size).reshape(x.shape) % 3 == 0),
    "sparse": lambda x: sparse.csr_matrix(np.reshape(x, (len(x), -1)).astype("float32")),
    "sparse tensor": lambda x: tf.sparse.from_dense(x),
    "frame": _frame,
    "frame of strings": lambda x: _frame(x).astype(str),
    "dates": lambda x: np.full(x.shape, np.datetime64("2020-01-01")),
    "None inside": lambda x: [None, *x.tolist()],
    "a generator that fails": lambda x: _failing(),
    "a generator of nothing": lambda x: _empty(),
    "a dataset": lambda x: tf.data.Dataset.from_tensor_slices(x).batch(5),
    "a dataset of NaN": lambda x: tf.data.Dataset.from_tensors(np.full(x.shape, np.nan, "float32")),
    "an empty dataset": lambda x: tf.data.Dataset.from_tensor_slices(x[:0]).batch(5),
    "unbatched": tf.data.Dataset.from_tensor_slices,
    "not contiguous": lambda x: np.repeat(x, 2, axis=0)[::2],
    "big endian": lambda x: x.astype(">f8"),
    "a pair": lambda x: (x, x),
    "a dictionary": lambda x: {"x": x},
}


def _mutated(good, name):
    with warnings.catch_warnings():  # of the mutation, not of the library
        warnings.simplefilter("ignore")
        try:
            return MUTATIONS[name](np.asarray(good))
        except (TypeError, ValueError):  # Names of groups have no fractions.
            return good


def odd(good):
    """A strategy of what may stand in the place of a good value; functions make it anew."""
    numbers, strings, objects = map(st.sampled_from, (NUMBERS, STRINGS, OBJECTS))
    anything = st.one_of(numbers, strings, objects).map(lambda value: lambda: value)
    if isinstance(good, np.ndarray):
        mutated = st.sampled_from(sorted(MUTATIONS)).map(
            lambda name: functools.partial(_mutated, good, name)
        )
        return st.one_of(mutated, mutated, mutated, anything)
    if isinstance(good, (int, float)) and not isinstance(good, bool):
        return st.one_of(numbers, numbers, numbers, objects).map(lambda value: lambda: value)
    if isinstance(good, str):
        return st.one_of(strings, strings, anything.map(lambda make: make())).map(
            lambda value: lambda: value
        )
    return anything


# The models that all examples share, and the cases.

RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, 3)).astype("float32")
Z = RNG.normal(size=(N, 2)).astype("float32")
LABELS = np.arange(N) % 3
Y = (X[:, 0] + RNG.normal(size=N)).astype("float32")
WEIGHTS = RNG.uniform(size=N).astype("float32")
GROUPS = np.repeat(["a", "b", "c"], N // 3)
NEW_GROUPS = np.array([f"new {group}" for group in GROUPS])
QUIET = {"verbose": 0}


def ending(block, *first):
    return keras.Sequential([*first, keras.layers.Dense(block.params_size), block])


def simulator(theta, seed):
    return theta + tf.random.stateless_normal(tf.shape(theta), seed)


class Shared:
    """Small trained models; each is made once, and put back to where it was after each example."""

    @functools.cached_property
    def vae(self):
        vae = tfpvae.VAE(
            priors.StandardNormal(2),
            ending(posteriors.DiagonalNormal(2)),
            ending(likelihoods.Normal(3)),
            seed=0,
        )
        return self._fitted(vae, X)

    @functools.cached_property
    def masked(self):
        vae = tfpvae.VAE(
            priors.StandardNormal(2),
            ending(posteriors.DiagonalNormal(2), networks.FillMissing()),
            ending(likelihoods.Masked(likelihoods.Normal(3))),
            seed=0,
        )
        return self._fitted(vae, X)

    @functools.cached_property
    def conditional(self):
        model = tfpvae.ConditionalVAE(
            priors.StandardNormal(2),
            ending(posteriors.DiagonalNormal(2), networks.Join()),
            ending(likelihoods.Normal(3), networks.Join()),
            num_classes=3,
            seed=0,
        )
        return self._fitted(model, X, LABELS)

    @functools.cached_property
    def semi(self):
        return self._fitted(make_semi(), X, LABELS)

    @functools.cached_property
    def hierarchical(self):
        return self._fitted(make_hierarchical(), X)

    @functools.cached_property
    def local(self):
        model = tfpvae.LocalVAE(
            priors.StandardNormal(2),
            posteriors.DiagonalNormal(2),
            ending(likelihoods.Normal(3)),
            N,
            seed=0,
        )
        return self._fitted(model, X)

    @functools.cached_property
    def regression(self):
        model = tfpvae.BayesianRegression(likelihoods.Normal(), seed=0)
        model.fit(X, Y, steps=5, verbose=0)
        return model

    @functools.cached_property
    def classes(self):
        model = tfpvae.BayesianRegression(likelihoods.Categorical(num_classes=3), seed=0)
        model.fit(X, LABELS, steps=5, verbose=0)
        return model

    @functools.cached_property
    def mixed(self):
        model = tfpvae.MixedRegression(likelihoods.Normal(), seed=0)
        model.fit(X, Y, GROUPS, steps=5, verbose=0)
        return model

    @functools.cached_property
    def simulator(self):
        model = tfpvae.SimulatorModel(
            priors.StandardNormal(3), simulator, posteriors.DiagonalNormal(3), seed=0
        )
        model.compile(num_simulations=16, num_samples=2)
        model.fit(X, steps=4, verbose=0)
        return model

    @functools.cached_property
    def ratio(self):
        model = tfpvae.DensityRatio(keras.Sequential([keras.layers.Dense(1)]), seed=0)
        model.compile("adam")
        model.fit(X, X + 1.0, verbose=0)
        return model

    def _fitted(self, model, *data):
        model.compile("adam")
        model.fit(*data, verbose=0)
        return model


def _served(*arguments, open_browser=False, **kwargs):
    with (
        mock.patch("webbrowser.open"),
        tfpvae.explore.serve(*arguments, open_browser=open_browser, block=False, **kwargs),
    ):
        pass


def make_semi():
    return tfpvae.SemiSupervisedVAE(
        priors.StandardNormal(2),
        ending(posteriors.OneHotCategorical(3)),
        ending(posteriors.DiagonalNormal(2), networks.Join()),
        ending(likelihoods.Normal(3), networks.Join()),
        3,
        seed=0,
    )


def make_hierarchical(inference="bottom_up", **kwargs):
    encoders = [ending(posteriors.DiagonalNormal(2)), ending(posteriors.DiagonalNormal(2))]
    decoders = [ending(likelihoods.Normal(3)), ending(likelihoods.Normal(2))]
    return tfpvae.HierarchicalVAE(
        priors.StandardNormal(2), encoders, decoders, inference, seed=0, **kwargs
    )


class Case(NamedTuple):
    """A callable with good arguments.

    Attributes:
      of: takes the shared models, and returns the callable.
      good: arguments by name; functions of no arguments make them anew for each call.
      trains: the model that the call trains, of the shared models.
      also: names that an error may give in place of those of the arguments.
      raises: documented exceptions beside TypeError and ValueError.
    """

    of: Callable
    good: dict
    trains: str = ""
    also: tuple = ()
    raises: tuple = ()


def _plain(path):
    """The callable of that path, which needs no model."""
    module, *names = path.split(".")

    def of(_):
        found = modules()[module]
        for name in names:
            found = getattr(found, name)
        return found

    return of


class New:
    """A good argument that is made anew for each call, as layers are."""

    def __init__(self, make):
        self.make = make


def good_value(value):
    return value.make() if isinstance(value, New) else value


def _of(model, method):
    return lambda shared: getattr(getattr(shared, model), method)


POSTERIOR = New(lambda: ending(posteriors.DiagonalNormal(2)))
DECODER = New(lambda: ending(likelihoods.Normal(3)))
PRIOR = New(lambda: priors.StandardNormal(2))
JOINED_POSTERIOR = New(lambda: ending(posteriors.DiagonalNormal(2), networks.Join()))
JOINED_DECODER = New(lambda: ending(likelihoods.Normal(3), networks.Join()))
ONE = New(lambda: keras.Sequential([keras.layers.Dense(1)]))
NETWORK = New(lambda: keras.Sequential([keras.layers.Dense(2)]))
DATA = {"x": X}
DRAWN = {"seed": 0, **QUIET}
FIT = {"batch_size": 4, "epochs": 1, "sample_weight": WEIGHTS, "validation_split": 0.0, **QUIET}
HIDDEN = {"hidden_units": (4,), "activation": "tanh"}


def cases():
    """The lines: names of `public()` to cases."""
    plain = {
        # blocks
        **{
            f"likelihoods.{name}": {"event_shape": 3, **more}
            for name, more in {
                "Bernoulli": {},
                "ContinuousBernoulli": {},
                "Categorical": {"num_classes": 3},
                "Binomial": {"total_count": 4},
                "Normal": {"scale": 0.5},
                "Poisson": {},
                "StudentT": {"df": 3.0},
                "Laplace": {},
                "Beta": {},
                "Gamma": {},
                "LogNormal": {},
                "OneHotCategorical": {},
                "Ordinal": {"num_classes": 3},
                "Multinomial": {"total_count": 4},
                "DirichletMultinomial": {"total_count": 4},
                "NegativeBinomial": {},
                "DiscretizedLogistic": {"num_levels": 16},
            }.items()
        },
        "likelihoods.Likelihood": {
            "distribution": "Gumbel",
            "event_shape": 3,
            "scale": 1.0,
            "convert_to_tensor_fn": "mean",
        },
        "likelihoods.MixtureOf": {
            "component": New(lambda: likelihoods.Normal(3)),
            "num_components": 2,
            "event_shape": (),
        },
        "likelihoods.ZeroInflated": {"component": New(lambda: likelihoods.Poisson(3))},
        "likelihoods.Columns": {
            "columns": New(lambda: {"a": likelihoods.Normal()}),
            "names": None,
        },
        "likelihoods.Masked": {"component": New(lambda: likelihoods.Normal(3))},
        "layers.DistributionLayer": {
            "distribution": "Normal",
            "event_shape": 3,
            "convert_to_tensor_fn": "sample",
            "num_samples": 2,
            "constraints": {},
            "fixed": {},
            "scale": 1.0,
        },
        "posteriors.DiagonalNormal": {"event_shape": 3, "num_samples": 2},
        "posteriors.FullRankNormal": {"event_shape": 3},
        "posteriors.OneHotCategorical": {"event_shape": 3},
        "posteriors.Bernoulli": {"event_shape": 3},
        "posteriors.RelaxedOneHotCategorical": {"event_shape": 3, "temperature": 0.5},
        "posteriors.RelaxedBernoulli": {"event_shape": 3, "temperature": 0.5},
        "posteriors.Flow": {"event_shape": 2, "flow": New(lambda: flows.Radial(1)), "base": None},
        "posteriors.Implicit": {
            "event_shape": 2,
            "network": NETWORK,
            "context_size": 3,
            "noise_size": 2,
            "noise": "normal",
        },
        "priors.Prior": {"distribution": "Laplace", "event_shape": 2, "initial": {}},
        "priors.StandardNormal": {"event_shape": 2},
        "priors.Normal": {"event_shape": 2, "initial": {}, "scale": 1.0},
        "priors.Flow": {"event_shape": 2, "flow": New(lambda: flows.Radial(1, amortized=False))},
        "priors.Implicit": {
            "event_shape": 2,
            "network": NETWORK,
            "noise_size": 2,
            "noise": "normal",
        },
        "priors.StudentT": {"event_shape": 2, "df": 3.0, "shared": False},
        "priors.NormalMixture": {
            "event_shape": 2,
            "num_components": 2,
            "full_rank": False,
            "seed": 0,
            "initial": {},
        },
        "priors.VampPrior": {"event_shape": 2, "pseudo_inputs": X, "learn_weights": False},
        "priors.OneHotCategorical": {"event_shape": 3, "logits": 0.0},
        "priors.Bernoulli": {"event_shape": 3, "probs": 0.5},
        "priors.RelaxedOneHotCategorical": {"event_shape": 3, "temperature": 0.5},
        "priors.RelaxedBernoulli": {"event_shape": 3, "temperature": 0.5},
        # flows
        "flows.Planar": {"num_layers": 2, "amortized": True},
        "flows.Sylvester": {"num_layers": 2, "num_ortho": 2, "amortized": True},
        "flows.Radial": {"num_layers": 2, "amortized": True},
        **{
            f"flows.{name}": {"num_layers": 1, **HIDDEN, "activation": "elu", "context_size": 0}
            for name in ("MaskedAutoregressive", "InverseAutoregressive", "RealNVP")
        },
        "flows.NeuralSpline": {
            "num_layers": 1,
            **HIDDEN,
            "activation": "elu",
            "context_size": 0,
            "num_bins": 4,
            "bound": 4.0,
        },
        # models
        "models.VAE": {
            "prior": PRIOR,
            "encoder": POSTERIOR,
            "decoder": DECODER,
            "seed": 0,
            "preprocessing": None,
        },
        "conditional.ConditionalVAE": {
            "prior": PRIOR,
            "encoder": JOINED_POSTERIOR,
            "decoder": JOINED_DECODER,
            "num_classes": 3,
            "seed": 0,
        },
        "semi_supervised.SemiSupervisedVAE": {
            "prior": PRIOR,
            "classifier": New(lambda: ending(posteriors.OneHotCategorical(3))),
            "encoder": JOINED_POSTERIOR,
            "decoder": JOINED_DECODER,
            "num_classes": 3,
            "class_prior": None,
            "classification_weight": 0.1,
            "seed": 0,
        },
        "semi_supervised.FrozenEncoder": {"encoder": POSTERIOR},
        "hierarchical.HierarchicalVAE": {
            "prior": PRIOR,
            "encoders": New(lambda: [ending(posteriors.DiagonalNormal(2)) for _ in range(2)]),
            "decoders": New(lambda: [ending(likelihoods.Normal(k)) for k in (3, 2)]),
            "inference": "bottom_up",
            "seed": 0,
        },
        "local_inference.LocalVAE": {
            "prior": PRIOR,
            "posterior": New(lambda: posteriors.DiagonalNormal(2)),
            "decoder": DECODER,
            "num_data": N,
            "seed": 0,
        },
        "local_inference.LocalParameters": {"num_data": N, "params_size": 4},
        "regression.BayesianRegression": {
            "likelihood": New(likelihoods.Normal),
            "prior": None,
            "posterior": None,
            "depends": None,
            "fit_intercept": True,
            "intercept_scale": 10.0,
            "standardize": False,
            "num_samples": 16,
            "class_names": None,
            "feature_names": None,
            "seed": 0,
        },
        "mixed_effects.MixedRegression": {
            "likelihood": New(likelihoods.Normal),
            "random": ["intercept"],
            "group_scale": 1.0,
            "correlated": False,
            "group_posterior": None,
            "encoder": None,
            "groups": None,
        },
        "simulators.SimulatorModel": {
            "prior": New(lambda: priors.StandardNormal(3)),
            "simulator": New(lambda: simulator),
            "posterior": New(lambda: posteriors.DiagonalNormal(3)),
            "discriminator": None,
            "encoder": None,
            "seed": 0,
        },
        "density_ratio.DensityRatio": {
            "network": ONE,
            "scoring_rule": "logistic",
            "event_ndims": 1,
            "seed": 0,
        },
        # networks
        "networks.Binarize": {"max_value": 1.0},
        "networks.FillMissing": {"value": 0.0, "mask": False},
        "networks.AppendParameters": {"size": 2, "shared": False, "initializer": "zeros"},
        "networks.Join": {"flatten": False},
        "networks.mlp_encoder": {
            "input_shape": 3,
            "params_size": 4,
            "hidden": (4,),
            "activation": "relu",
        },
        "networks.mlp_decoder": {
            "latent_size": 2,
            "params_size": 3,
            "hidden": (4,),
            "activation": "relu",
        },
        "networks.conv_encoder": {"input_shape": (8, 8, 1), "params_size": 4},
        "networks.conv_decoder": {
            "latent_size": 2,
            "output_shape": (8, 8, 1),
            "params_per_channel": 1,
        },
        "weights.Parameters": {"size": 3, "initializer": "zeros"},
        "weights.BayesianDense": {
            "units": 2,
            "activation": "relu",
            "use_bias": True,
            "num_data": 10,
            "prior": None,
            "posterior": None,
            "initial_scale": 0.05,
        },
        "weights.at_mean": {"model": NETWORK},
        "weights.at_draw": {"model": NETWORK},
        # family
        **{
            f"family.{name}": {"event_shape": 3, "latent_size": 2, "seed": 0, **more}
            for name, more in {
                "factor_analysis": {},
                "probabilistic_pca": {},
                "logistic_factor_analysis": HIDDEN,
                "nonlinear_factor_analysis": HIDDEN,
            }.items()
        },
        **{
            f"family.{name}": {"event_shape": 3, "latent_sizes": [2, 2], "seed": 0, **HIDDEN}
            for name in ("nonlinear_gaussian_belief_network", "sigmoid_belief_network")
        },
        # objectives and what goes with them
        "objectives.ELBO": {
            "kl_weight": 1.0,
            "use_exact_kl": None,
            "num_samples": 2,
            "estimator": "reparameterized",
            "free_bits": 0.0,
            "temperature": None,
            "straight_through": False,
        },
        "objectives.Renyi": {"alpha": 0.5, "num_samples": 2, "estimator": "reparameterized"},
        "objectives.IWAE": {"num_samples": 2, "estimator": "reparameterized"},
        "objectives.CUBO": {"order": 2.0, "num_samples": 2},
        "objectives.FDivergence": {"discrepancy_fn": "kl_forward", "num_samples": 2},
        "objectives.ReweightedWakeSleep": {"num_samples": 2, "sleep": 0.5},
        "objectives.AdversarialELBO": {
            "discriminator": ONE,
            "optimizer": "adam",
            "adaptive_contrast": True,
            "num_updates": 1,
            "num_samples": 2,
        },
        "objectives.renyi_bound": {"log_weights": X, "alpha": 0.5},
        "regularizers.KLDivergenceRegularizer": {
            "distribution_b": PRIOR,
            "use_exact_kl": None,
            "num_samples": 2,
            "weight": 1.0,
        },
        "regularizers.MaximumMeanDiscrepancy": {
            "distribution_b": PRIOR,
            "weight": 1.0,
            "kernel": "rbf",
            "length_scale": 1.0,
            "unbiased": True,
            "num_samples": 2,
        },
        "regularizers.TotalCorrelation": {"weight": 1.0, "num_data": 10, "num_samples": 2},
        "regularizers.Sum": {"parts": New(lambda: [tfpvae.regularizers.TotalCorrelation()])},
        "schedules.Linear": {"num_steps": 10, "start": 0.0},
        "schedules.Cyclical": {"num_steps": 10, "num_cycles": 2, "ramp": 0.5},
        "schedules.Exponential": {"start": 1.0, "stop": 0.5, "num_steps": 10},
        "schedules.TargetRate": {"rate": 1.0, "initial": 1.0, "learning_rate": 0.01},
        "schedules.PerLayer": {"weights": [1.0, 0.5]},
        "noise.as_seed": {"seed": 0},
        "noise.fixed": {"seed": 0},
        "noise.Noise": {"seed": 0},
        "losses.negative_log_prob": {
            "y_true": X,
            "y_pred": tfd.Independent(tfd.Normal(tf.zeros([N, 3]), 1.0), 1),
        },
        "losses.log_likelihood": {
            "y_true": X,
            "y_pred": tfd.Independent(tfd.Normal(tf.zeros([N, 3]), 1.0), 1),
        },
        # estimators, data sets, runs
        "resuming.Resume": {"folder": "no/such/folder", "min_seconds": 1.0},
        "estimators.BayesianClassifier": {"prior_scale": 1.0, "steps": 5},
        "estimators.BayesianRegressor": {"likelihood": "Normal", "steps": 5},
        "estimators.VariationalAutoencoder": {"latent_size": 2, "steps": 5},
        "datasets.load": {"name": "digits", "scale": True, "flatten": True},
        # latent space
        "latent_space.interpolate": {"z0": Z, "z1": Z[::-1].copy(), "num": 3, "path": "line"},
        # plots
        "plotting.convergence": {"history": {"loss": [1.0, 0.5]}},
        "plotting.latent_plane": {"z": Z, "labels": LABELS},
        "plotting.prior_grid": {"num": 3, "quantile_range": (0.05, 0.95)},
        "plotting.manifold": {"images": RNG.uniform(size=(9, 4, 4))},
        "plotting.reconstructions": {
            "originals": RNG.uniform(size=(3, 4, 4)),
            "reconstructed": RNG.uniform(size=(3, 4, 4)),
        },
        "plotting.image_rows": {"rows": {"a": RNG.uniform(size=(3, 4, 4))}},
        "plotting.traversals": {
            "images": RNG.uniform(size=(2, 3, 4, 4)),
            "values": RNG.normal(size=(2, 3)),
            "units": [0, 1],
        },
        "plotting.imputations": {
            "originals": RNG.uniform(size=(3, 4, 4)),
            "observed": np.ones((3, 4, 4), bool),
            "imputed": {"a": RNG.uniform(size=(3, 4, 4))},
        },
        "plotting.intervals": {
            "draws": {"a": RNG.normal(size=(20, 2))},
            "labels": ["a", "b"],
            "probabilities": (0.5, 0.9),
        },
        "plotting.calibration": {
            "labels": LABELS % 2,
            "probs": RNG.uniform(size=N),
            "num_bins": 3,
            "probability": 0.9,
        },
        "plotting.contours": {
            "x1": np.arange(4.0),
            "x2": np.arange(3.0),
            "values": RNG.normal(size=(3, 4)),
            "levels": None,
            "label": "a",
        },
        "plotting.class_bars": {
            "probs": RNG.dirichlet(np.ones(3), N),
            "labels": LABELS,
            "names": ["a", "b", "c"],
        },
        "plotting.unit_bars": {"values": np.arange(4.0), "active": np.arange(4) > 1, "label": "a"},
        "plotting.gap_bars": {"parts": {"a": (1.0, 0.1)}},
        "plotting.weight_histogram": {
            "values": RNG.uniform(size=N),
            "threshold": 0.7,
            "label": "a",
            "low": False,
        },
        "plotting.aggregate_posterior": {
            "z": Z,
            "prior_z": Z,
            "labels": LABELS,
            "names": ("a", "b"),
        },
        "plotting.marginal": {"x": Z[:, 0], "samples": Z[:, 1], "names": ("a", "b")},
        "marginal_likelihood.Annealing": {
            "num_steps": 5,
            "num_leapfrog_steps": 1,
            "proposal": "posterior",
        },
        "summaries.LatentSummaries": {
            "log_dir": "logs",
            "x": X,
            "labels": LABELS,
            "image_shape": (1, 3),
            "every": 1,
            "images_every": 1,
            "num_images": 2,
            "seed": 0,
        },
        "diagnostics.LatentMonitor": {"x": X, "every": 1, "by_unit": True, "seed": 0},
    }
    also = {"losses": ("negative_log_prob",), "schedules": ("kl_weight",)}
    found = {
        path: Case(_plain(path), good, also=also.get(path.split(".")[0], ()))
        for path, good in plain.items()
    }
    more = {"num_samples": 2, **DRAWN}
    found |= {
        "models.VAE.compile": Case(
            lambda s: make_vae().compile,
            {"optimizer": "adam", "loss": None, "objective": New(lambda: objectives.IWAE(2))},
            also=("jit_compile",),
        ),
        "hierarchical.HierarchicalVAE.compile": Case(
            lambda s: make_hierarchical().compile,
            {"optimizer": "adam", "loss": None, "objective": New(lambda: objectives.IWAE(2))},
        ),
        "semi_supervised.SemiSupervisedVAE.compile": Case(
            lambda s: make_semi().compile, {"optimizer": "adam", "loss": None, "objective": None}
        ),
        "models.VAE.posterior": Case(_of("vae", "posterior"), DATA),
        "models.VAE.likelihood": Case(_of("vae", "likelihood"), {"z": Z}),
        "models.VAE.sample": Case(
            _of("vae", "sample"), {"num": 3, **DRAWN, "prior": None}, also=("num_samples",)
        ),
        "models.VAE.reconstruct": Case(_of("vae", "reconstruct"), DATA | DRAWN),
        "models.VAE.predict_distribution": Case(_of("vae", "predict_distribution"), DATA),
        "models.VAE.log_weights": Case(_of("vae", "log_weights"), DATA | more),
        "models.VAE.elbo": Case(_of("vae", "elbo"), DATA | more),
        "models.VAE.log_marginal_likelihood": Case(
            _of("vae", "log_marginal_likelihood"),
            DATA | DRAWN | {"num_samples": 30, "method": "importance"},
        ),
        "models.VAE.impute": Case(_of("masked", "impute"), DATA | more | {"num_draws": 2}),
        "models.VAE.predict": Case(_of("vae", "predict"), DATA | {"batch_size": 4} | QUIET),
        "training.ProbabilisticModel.fit": Case(
            _of("vae", "fit"), DATA | FIT, "vae", ("y", "epochs", "validation_data")
        ),
        "training.ProbabilisticModel.evaluate": Case(
            _of("vae", "evaluate"), DATA | {"batch_size": 4, "sample_weight": WEIGHTS} | QUIET
        ),
        "training.ProbabilisticModel.train_on_batch": Case(
            _of("vae", "train_on_batch"), DATA | {"sample_weight": WEIGHTS}, "vae", ("y",)
        ),
        "training.ProbabilisticModel.test_on_batch": Case(
            _of("vae", "test_on_batch"), DATA | {"sample_weight": WEIGHTS}
        ),
        "training.ProbabilisticModel.save": Case(
            _of("vae", "save"), {"filepath": "no/such/folder/model.keras"}, raises=(OSError,)
        ),
        "models.VAE.export": Case(
            _of("vae", "export"), {"filepath": "no/such/folder/vae"}, raises=(OSError,)
        ),
        "saving.read_notes": Case(
            _plain("saving.read_notes"), {"path": "no/such/model.keras"}, raises=(OSError,)
        ),
        "saving.load_model": Case(
            _plain("saving.load_model"), {"path": "no/such/model.keras"}, raises=(OSError,)
        ),
        "streams.manifest": Case(
            _plain("streams.manifest"), {"folder": "no/such/folder"}, raises=(OSError,)
        ),
        "conditional.ConditionalVAE.likelihood": Case(
            _of("conditional", "likelihood"), {"z": Z, "y": LABELS}
        ),
        "conditional.ConditionalVAE.sample": Case(
            _of("conditional", "sample"), {"y": LABELS} | DRAWN | {"prior": None}
        ),
        "semi_supervised.SemiSupervisedVAE.fit": Case(
            _of("semi", "fit"), DATA | {"y": LABELS} | FIT | {"labelled_share": 0.1}, "semi"
        ),
        "semi_supervised.SemiSupervisedVAE.predict_proba": Case(
            _of("semi", "predict_proba"), DATA | more
        ),
        "semi_supervised.SemiSupervisedVAE.predict_label": Case(
            _of("semi", "predict_label"), DATA | QUIET
        ),
        "semi_supervised.SemiSupervisedVAE.sample": Case(
            _of("semi", "sample"), {"y": LABELS} | DRAWN
        ),
        "semi_supervised.SemiSupervisedVAE.log_marginal_likelihood": Case(
            _of("semi", "log_marginal_likelihood"),
            DATA | DRAWN | {"num_samples": 30, "method": "importance"},
        ),
        "hierarchical.HierarchicalVAE.split": Case(
            _of("hierarchical", "split"), {"z": np.concatenate([Z, Z], axis=1)}
        ),
        "local_inference.LocalVAE.fit": Case(
            _of("local", "fit"), DATA | {"batch_size": 4, "epochs": 1, **QUIET}, "local"
        ),
        "local_inference.LocalParameters.adapt": Case(
            lambda s: tfpvae.local_inference.LocalParameters(N, 4).adapt, DATA
        ),
        "local_inference.local_posterior": Case(
            lambda s: functools.partial(tfpvae.local_posterior, s.vae),
            DATA
            | {
                "posterior": None,
                "num_samples": 30,
                "tolerance": 0.1,
                "max_steps": 3,
                "learning_rate": 0.1,
                "batch_size": 4,
            }
            | DRAWN,
        ),
        "local_inference.source": Case(
            _plain("local_inference.source"),
            {"distribution": New(lambda: posteriors.DiagonalNormal(2)(tf.zeros([1, 4])))},
            also=("vae",),
        ),
        "local_inference.check_vae": Case(
            lambda s: tfpvae.local_inference.check_vae, {"vae": New(lambda: make_vae())}
        ),
        "marginal_likelihood.log_marginal_likelihood": Case(
            lambda s: functools.partial(tfpvae.marginal_likelihood.log_marginal_likelihood, s.vae),
            DATA | {"num_samples": 30, "method": "importance", "seed": 0, "verbose": 0},
        ),
        "marginal_likelihood.bidirectional_monte_carlo": Case(
            lambda s: functools.partial(
                tfpvae.marginal_likelihood.bidirectional_monte_carlo, s.vae
            ),
            {
                "num_data": 2,
                "num_samples": 2,
                "num_steps": 3,
                "num_leapfrog_steps": 1,
                "tolerance": 1.0,
            }
            | DRAWN,
        ),
        "diagnostics.latents": Case(
            lambda s: functools.partial(tfpvae.diagnostics.latents, s.vae), DATA | DRAWN
        ),
        "diagnostics.activity": Case(
            lambda s: tfpvae.diagnostics.activity,
            {"q": tfd.Independent(tfd.Normal(tf.zeros([N, 2]), 1.0), 1), "seed": 0},
        ),
        "diagnostics.diagnose": Case(
            lambda s: functools.partial(tfpvae.diagnose, s.vae),
            DATA | {"num_samples": 30, "num_local": 2, "posterior": None} | DRAWN,
        ),
        "evaluation.check_elbo": Case(
            lambda s: functools.partial(tfpvae.check_elbo, s.vae),
            DATA | {"y": None, "sample_weight": WEIGHTS, "prior": None, "tolerance": 1e-4},
        ),
        "latent_space.fit_aggregate_posterior": Case(
            lambda s: functools.partial(tfpvae.latent_space.fit_aggregate_posterior, s.vae),
            DATA
            | {
                "density": "mixture",
                "num_components": 2,
                "num_draws": 1,
                "epochs": 1,
                "batch_size": 8,
                "learning_rate": 0.003,
            }
            | DRAWN,
        ),
        "latent_space.traverse": Case(
            lambda s: functools.partial(tfpvae.latent_space.traverse, s.vae),
            {"z": Z[0], "units": [0], "num": 3, "quantiles": (0.1, 0.9)},
        ),
        "explore.serve": Case(
            lambda s: functools.partial(_served, s.vae),
            {"x": X, "labels": LABELS, "port": 0, "open_browser": False, "image_shape": None},
            raises=(OSError,),  # A port below 1024, or one in use.
        ),
        "explore.Explorer": Case(
            lambda s: functools.partial(tfpvae.explore.Explorer, s.vae),
            {"x": X, "labels": LABELS, "image_shape": None},
        ),
        "arviz_export.to_arviz": Case(
            lambda s: functools.partial(tfpvae.arviz_export.to_arviz, s.regression),
            {"num_samples": 5, "seed": 0, "x": X, "y": Y},
        ),
        "density_ratio.DensityRatio.compile": Case(
            lambda s: tfpvae.DensityRatio(keras.layers.Dense(1)).compile, {"optimizer": "adam"}
        ),
        "density_ratio.DensityRatio.fit": Case(
            _of("ratio", "fit"),
            {
                "numerator": X,
                "denominator": X,
                "validation_data": None,
                "epochs": 1,
                "batch_size": 8,
            }
            | QUIET,
            "ratio",
        ),
        "density_ratio.DensityRatio.evaluate": Case(
            _of("ratio", "evaluate"), {"numerator": X, "denominator": X} | QUIET
        ),
        "density_ratio.DensityRatio.log_ratio": Case(
            _of("ratio", "log_ratio"), {"inputs": X} | QUIET
        ),
        "density_ratio.DensityRatio.predict": Case(
            _of("ratio", "predict"), DATA | QUIET, also=("inputs",)
        ),
        "regression.BayesianRegression.compile": Case(
            lambda s: tfpvae.BayesianRegression(likelihoods.Normal()).compile, {"optimizer": "adam"}
        ),
        "regression.BayesianRegression.fit": Case(
            _of("regression", "fit"),
            DATA
            | {
                "y": Y,
                "batch_size": 4,
                "epochs": 1,
                "offset": Y,
                "sample_weight": WEIGHTS,
                "validation_split": 0.0,
            }
            | QUIET,
            "regression",
        ),
        "regression.BayesianRegression.evaluate": Case(
            _of("regression", "evaluate"), DATA | {"y": Y} | QUIET
        ),
        "regression.BayesianRegression.codes": Case(
            _of("classes", "codes"), {"y": LABELS, "learn": False}
        ),
        **{
            f"regression.BayesianRegression.{name}": Case(
                _of("regression", name), DATA | {"num_samples": 3, "seed": 0}
            )
            for name in ("predict_distribution", "conditional_distribution", "predict")
        },
        **{
            f"regression.BayesianRegression.{name}": Case(
                _of("regression", name), DATA | {"y": Y, "num_samples": 3, "seed": 0}
            )
            for name in ("log_weights", "log_likelihood", "elbo")
        },
        "regression.BayesianRegression.summary": Case(
            _of("regression", "summary"), {"num_samples": 30, "seed": 0}
        ),
        "regression.BayesianRegression.draws": Case(
            _of("regression", "draws"), {"num_samples": 3, "seed": 0}
        ),
        "regression.BayesianRegression.to_arviz": Case(
            _of("regression", "to_arviz"), {"num_samples": 3, "seed": 0, "x": X, "y": Y}
        ),
        "mixed_effects.MixedRegression.fit": Case(
            _of("mixed", "fit"),
            DATA | {"y": Y, "groups": GROUPS, "batch_size": 4, "epochs": 1} | QUIET,
            "mixed",
        ),
        "mixed_effects.MixedRegression.evaluate": Case(
            _of("mixed", "evaluate"), DATA | {"y": Y, "groups": GROUPS} | QUIET
        ),
        "mixed_effects.MixedRegression.with_groups": Case(
            _of("mixed", "with_groups"), DATA | {"y": Y, "groups": NEW_GROUPS}, also=("encoder",)
        ),
        **{
            f"mixed_effects.MixedRegression.{name}": Case(
                _of("mixed", name), DATA | {"groups": GROUPS, "num_samples": 3, "seed": 0}
            )
            for name in ("predict_distribution", "conditional_distribution", "predict")
        },
        **{
            f"mixed_effects.MixedRegression.{name}": Case(
                _of("mixed", name), DATA | {"y": Y, "groups": GROUPS, "num_samples": 3, "seed": 0}
            )
            for name in ("log_weights", "log_likelihood", "elbo")
        },
        "mixed_effects.MixedRegression.draws": Case(
            _of("mixed", "draws"), {"num_samples": 3, "seed": 0}
        ),
        "simulators.SimulatorModel.compile": Case(
            lambda s: (
                tfpvae.SimulatorModel(
                    priors.StandardNormal(3), simulator, posteriors.DiagonalNormal(3)
                ).compile
            ),
            {
                "optimizer": "adam",
                "discriminator_optimizer": "adam",
                "reference": "simulator",
                "num_samples": 2,
                "num_simulations": 16,
                "num_references": 2,
                "num_updates": 1,
                "spread": 2.0,
            },
        ),
        "simulators.SimulatorModel.fit": Case(
            _of("simulator", "fit"),
            DATA | {"batch_size": 4, "epochs": 1} | QUIET,
            "simulator",
            raises=(FloatingPointError,),
        ),
        "simulators.SimulatorModel.simulate": Case(
            _of("simulator", "simulate"), {"parameters": X, "seed": 0}
        ),
        "simulators.SimulatorModel.sample": Case(
            _of("simulator", "sample"), {"num": 3, "source": None, "seed": 0}
        ),
        "simulators.SimulatorModel.predictive_check": Case(
            _of("simulator", "predictive_check"),
            DATA | {"statistic": np.mean, "num_replications": 3, "seed": 0},
        ),
        "simulators.SimulatorModel.check_discriminator": Case(
            _of("simulator", "check_discriminator"), {"num_simulations": 40, "x": None, "seed": 0}
        ),
    }
    return found


def make_vae():
    return tfpvae.VAE(
        priors.StandardNormal(2),
        ending(posteriors.DiagonalNormal(2)),
        ending(likelihoods.Normal(3)),
        seed=0,
    )


# Why the rest is left out, by patterns of the names.
LEFT_OUT = {
    r".*\.(call|build|compute_output_shape|get_config|from_config|get_build_config"
    r"|build_from_config|get_compile_config|compile_from_config|build_optimizers"
    r"|make_train_function|make_test_function|train_step|test_step|predict_step)": (
        "Keras calls it, with what it has checked"
    ),
    r".*\.(example_losses|total_loss|prepare|prepare_batch|before_step|check_data|check_scored"
    r"|check_trained|on_epoch_end|build_rows|build_distribution|free_parameters|support|title"
    r"|attach|repeated|masked|check_values|codes|knows)": (
        "a part of the class for its own subclasses and models"
    ),
    r"(flows\.Flow|flows\.\w+\.\w+|flows\.FlowDistribution|flows\.own_flow)": (
        "the base of the flows, and what blocks call"
    ),
    r"objectives\.(Gate|Sample|Coefficients|Draws.*|Objective.*|\w+\.\w+|leave_one_out)": (
        "called with tensors in the middle of a step"
    ),
    r"regularizers\.(AggregateRegularizer|\w+\.\w+|check_weight|weight_config"
    r"|weight_from_config)": ("called with tensors in the middle of a step"),
    r"schedules\.(Schedule|\w+\.\w+|value_of)": ("called with tensors in the middle of a step"),
    r"noise\.(Noise\.\w+|next_seed)": ("takes nothing from users"),
    r"(diagnostics\.(Latents|Gaps|Diagnosis.*)|evaluation\.(Term|ELBOCheck)"
    r"|marginal_likelihood\.(MarginalLikelihood|BidirectionalMonteCarlo|tail_length|check_tail"
    r"|reduced|merged|Annealing\.segments)|local_inference\.LocalPosterior"
    r"|latent_space\.Traversal|simulators\.(DiscriminatorCheck|PredictiveCheck)"
    r"|datasets\.Dataset|density_ratio\.ScoringRule)": (
        "a result, which functions make, or a part of the calculation"
    ),
    r"explore\.(Decoded|Encoded|Explorer\.\w+|Server.*|stroke|ellipse)": (
        "what the page calls, with what it has made, and gets"
    ),
    r"reproduce\..*": ("a command of hours, with tests of its arguments of its own"),
    r"regression\.(pieces_of|affine|paired_draws|warn)": ("called by the models"),
    r"density_ratio\.DensityRatio\.(loss|update)": ("called with tensors in the middle of a step"),
    r"estimators\.\w+\.(fit|predict\w*|set_\w+_request|\w*transform|score\w*|sample)": (
        "scikit-learn's own checks try them, tests/test_estimators.py"
    ),
    r"training\.(ProbabilisticModel|build|ProbabilisticModel\.(compile|predict))": (
        "the base of the models, which are here with their own"
    ),
    r"training\.ProbabilisticModel\.predict_on_batch": (
        "for loops of one's own, which takes a batch as it is, as in Keras"
    ),
    r"weights\.BayesianDense\.(posterior|kl)": "takes nothing from users",
    r"simulators\.SimulatorModel\.(posterior|latent_posterior)|.*to_arviz|.*VAE\.impute": (
        "the model here has none, and refuses whatever comes; those that have it have tests"
    ),
    r"resuming\.(Resume\.\w+|as_resume)|.*\.losses_of": "called by `fit`",
    r"summaries\.LatentSummaries\.\w+": "Keras calls it",
    r"serving\..*|(training|regression|mixed_effects)\.\w+\.export": (
        "called by `VAE.export`, or like it"
    ),
    r"saving\.(InvalidModelFile|save|atomic)|streams\.(read|write|Manifest|Part|Shard)": (
        "they write and read files: tests/test_saving.py and tests/test_streams.py try them"
    ),
}


def left_out(path):
    """Why a public name has no case, None if nothing says so."""
    for pattern, reason in LEFT_OUT.items():
        if re.fullmatch(pattern, path):
            return reason
    return None


# What a call must do.


class OvertimeError(Exception):
    """A call took too long."""


@contextlib.contextmanager
def time_limit(seconds):
    """Raise OvertimeError in the middle of a call; only where there are signals."""

    def stop(*_):
        raise OvertimeError(f"took more than {seconds} s")

    outer = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, outer)


@functools.cache
def _state_of(shared, name):
    model = getattr(shared, name)
    return [(v, v.numpy()) for v in [*model.variables, *model.optimizer.variables]]


def tried(shared, case, spoilt):
    """What a call with spoilt arguments did wrong, None if nothing.

    Args:
      shared: the models.
      case: a `Case`.
      spoilt: functions that make arguments, by name.
    """
    arguments = {name: good_value(value) for name, value in case.good.items()}
    arguments |= {name: make() for name, make in spoilt.items()}
    state = _state_of(shared, case.trains) if case.trains else []
    words = {*arguments, *case.also}
    function = case.of(shared)
    with contextlib.suppress(TypeError, ValueError):
        words |= {*inspect.signature(function).parameters}
    try:
        with warnings.catch_warnings(), time_limit(SECONDS):
            warnings.simplefilter("error", RuntimeWarning)  # numpy's, of what nobody checked
            function(**arguments)
        if case.trains:
            model = getattr(shared, case.trains)
            if not all(np.isfinite(v.numpy()).all() for v in model.trainable_variables):
                return "trained to NaN"
    except (TypeError, ValueError, *case.raises) as error:
        if isinstance(error, case.raises):
            return None
        text = str(error)
        named = re.search(r"\b(" + "|".join(map(re.escape, words)) + r")\b", text)
        if isinstance(error, tf.errors.OpError) or not named:
            return f"{type(error).__name__} that names no argument: {text[:200]}"
    except FloatingPointError as error:  # Training that would have ended in NaN.
        return None if case.trains and str(error).startswith("loss: got NaN") else str(error)
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    finally:
        for variable, value in state:
            variable.assign(value)
        plt.close("all")
    return None


def examples(case):
    """A strategy of spoilt arguments: one of them, or two."""
    names = st.lists(st.sampled_from(sorted(case.good)), min_size=1, max_size=2, unique=True)
    return names.flatmap(
        lambda chosen: st.fixed_dictionaries({name: odd(case.good[name]) for name in chosen})
    )


mpl.use("Agg")
