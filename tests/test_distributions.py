"""Every class of tfp.distributions: a block as it is, with help, or none, and why.

The page docs/distributions.md is made of the two tables here: `python tests/test_distributions.py`
writes it.
"""

import inspect
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras as keras
from tensorflow_probability.python.math import hypergeometric

from tfpvae import DistributionLayer

pytestmark = pytest.mark.long  # The quick contract of all blocks is in test_layers.py.

tfb, tfd = tfp.bijectors, tfp.distributions

PAGE = Path(__file__).parents[1] / "docs" / "distributions.md"
COMMAND = "python tests/test_distributions.py"
BATCH, FEATURES = 4, 3
SEED = (1, 2)


# The ranges of parameters, in numpy: from unconstrained numbers t to values.


def real(t):
    return t


def positive(t):
    return np.logaddexp(0, t)


def above_one(t):
    return 1 + positive(t)


def fraction(t):
    return 1 / (1 + np.exp(-t))


def ascending(t):
    return np.cumsum(np.concatenate([t[..., :1], np.exp(t[..., 1:])], axis=-1), axis=-1)


def lower_triangular(t):
    """2 x 2 with a positive diagonal; the entries are wound up from the last row."""
    zero = np.zeros_like(t[..., 0])
    rows = [[positive(t[..., 2]), zero], [t[..., 1], positive(t[..., 0])]]
    return np.moveaxis(np.array(rows), (0, 1), (-2, -1))


def covariance(t):
    scale = lower_triangular(t)
    return scale @ np.swapaxes(scale, -1, -2)


def arguments(source: str) -> dict[str, Any]:
    """Arguments from their source, which the page shows."""
    return eval(f"dict({source})", {"tf": tf, "tfb": tfb, "tfd": tfd, "tfp": tfp})


def join(*sources: str) -> str:
    return ", ".join(filter(None, sources))


class Works(NamedTuple):
    """A class that works: its free parameters, and what has to be known to test it."""

    free: dict[str, Any]  # range, or (range, shape of t) if that is not the event's, by name
    outside: Any = None  # what no parameter value allows: an entry, or a list for a whole event
    event_shape: tuple[int, ...] = (2,)
    given: str = ""
    sizes: str = ""  # what counts as no help
    note: str = ""
    by_hand: str = ""  # what the layer knows from event_shape
    batch_size: int | None = None  # of the Keras model, where it has to be known
    narrow: str = ""  # parameters to fix where a refusal at every value of the first takes minutes

    def layer(self, name: str, more: str = "") -> Any:
        return DistributionLayer(name, self.event_shape, **arguments(join(self.source, more)))

    @property
    def source(self) -> str:
        return join(self.given, self.sizes)

    @property
    def fewer(self) -> str:
        """What leaves one parameter free: a refusal is at every value of each that is free."""
        return self.narrow or join(*(f"{name}=1.0" for name in list(self.free)[1:]))

    @property
    def works(self) -> str:
        return "with help" if self.given else "yes"

    def parameters(self, params: np.ndarray) -> dict[str, np.ndarray]:
        """The free parameters from the layer's input [B, params_size], by name."""
        values, start = {}, 0
        for name, described in self.free.items():
            to_range, shape = described if isinstance(described, tuple) else (described, None)
            shape = self.event_shape if shape is None else shape
            stop = start + int(np.prod(shape))
            piece = params[:, start:stop].reshape(len(params), *shape)
            values[name] = to_range(piece.astype(np.float64)).astype(np.float32)
            start = stop
        assert start == params.shape[1], "the free parameters have other sizes"
        return values

    def log_prob(self, name: str, params: np.ndarray, x: np.ndarray) -> np.ndarray:
        """log f(x), [B], of a distribution made by hand."""
        fixed = arguments(join(self.given, self.by_hand))
        fixed |= fixed.pop("fixed", {})
        fixed.pop("constraints", None)
        log_prob = getattr(tfd, name)(**self.parameters(params), **fixed).log_prob(x).numpy()
        return log_prob.reshape(len(params), -1).sum(axis=1)


LOC_SCALE: dict[str, Any] = {"loc": real, "scale": positive}
BETA: dict[str, Any] = {"concentration1": positive, "concentration0": positive}
CUTPOINTS: dict[str, Any] = {"cutpoints": (ascending, (2, 2)), "loc": real}
RELAXED: dict[str, Any] = {"temperature": (positive, ()), "logits": real}
DF: dict[str, Any] = {"df": positive}
KNOWN = "draws in a Keras model want `batch_size` of the inputs: TFP's sampler has to know it"

WORKS = {
    "Bates": Works(
        {"high": positive},
        -1.0,
        given='total_count=3.0, low=0.0, constraints={"high": tfb.Softplus()}',
    ),
    "Bernoulli": Works({"logits": real}, 2.0),
    "Beta": Works(BETA, 1.5),
    "BetaBinomial": Works(BETA, 6.0, given="total_count=5.0"),
    "BetaQuotient": Works(
        {
            "concentration1_numerator": positive,
            "concentration0_numerator": positive,
            "concentration1_denominator": positive,
            "concentration0_denominator": positive,
        },
        -1.0,
        event_shape=(),
        narrow="concentration1_numerator=1.0, concentration0_numerator=1.0, "
        "concentration1_denominator=1.0, concentration0_denominator=1.0",
    ),
    "Binomial": Works({"logits": real}, 6.0, given="total_count=5.0"),
    "Categorical": Works({"logits": (real, (2, 3))}, 3.0, sizes="num_classes=3"),
    "Cauchy": Works(LOC_SCALE),
    "Chi": Works(DF, -1.0),
    "Chi2": Works(DF, -1.0),
    "CholeskyLKJ": Works(
        {"concentration": (above_one, ())},
        [[1.0, 0.0, 0.0], [0.0, -1.0, 0.0], [0.0, 0.0, 1.0]],
        (3, 3),
        by_hand="dimension=3",
        note=KNOWN + "; `check_values` refuses what is not positive on the diagonal, only that",
        batch_size=BATCH,
    ),
    "ContinuousBernoulli": Works({"logits": real}, 1.5),
    "DeterminantalPointProcess": Works(
        {"eigenvalues": positive},
        event_shape=(3,),
        note="entries are 0 or 1; TFP, and so `check_values`, does not refuse others",
        given="eigenvectors=[[0.0, 0.6, 0.8], [0.0, 0.8, -0.6], [1.0, 0.0, 0.0]]",
    ),
    "Dirichlet": Works({"concentration": positive}, -0.5, (3,)),
    "DirichletMultinomial": Works(
        {"concentration": positive}, [1.0, 1.0, 1.0], (3,), "total_count=5.0"
    ),
    "DoublesidedMaxwell": Works(LOC_SCALE),
    "ExpGamma": Works({"concentration": positive, "log_rate": real}),
    "ExpInverseGamma": Works({"concentration": positive, "log_scale": real}),
    "ExpRelaxedOneHotCategorical": Works(RELAXED, 1.0, (3,)),
    "Exponential": Works({"rate": positive}, -1.0),
    "ExponentiallyModifiedGaussian": Works(LOC_SCALE | {"rate": positive}),
    "FiniteDiscrete": Works(
        {"logits": (real, (2, 3))}, 0.5, given="outcomes=[0.0, 1.0, 4.0]", sizes="num_classes=3"
    ),
    "Gamma": Works({"concentration": positive, "log_rate": real}, -1.0),
    "GammaGamma": Works(
        {"concentration": positive, "mixing_concentration": positive, "mixing_rate": positive},
        -1.0,
        narrow="concentration=1.0, mixing_concentration=1.0, mixing_rate=1.0",
    ),
    "GeneralizedExtremeValue": Works(LOC_SCALE | {"concentration": real}),
    "GeneralizedNormal": Works(LOC_SCALE | {"power": positive}),
    "GeneralizedPareto": Works(LOC_SCALE | {"concentration": real}),
    "Geometric": Works({"logits": real}, -1.0),
    "Gumbel": Works(LOC_SCALE),
    "HalfCauchy": Works(LOC_SCALE),
    "HalfNormal": Works({"scale": positive}, -1.0),
    "HalfStudentT": Works(DF | LOC_SCALE),
    "Horseshoe": Works({"scale": positive}),
    "InverseGamma": Works({"concentration": positive, "scale": positive}, -1.0),
    "InverseGaussian": Works({"loc": positive, "concentration": positive}, -1.0),
    "JohnsonSU": Works({"skewness": real, "tailweight": positive} | LOC_SCALE),
    "Kumaraswamy": Works(BETA, 1.5),
    "LKJ": Works(
        {"concentration": (above_one, ())},
        2.0,
        (3, 3),
        by_hand="dimension=3",
        note=KNOWN,
        batch_size=BATCH,
    ),
    "LambertWDistribution": Works(
        {"shift": real, "scale": positive, "tailweight": positive},
        given='fixed={"distribution": tfd.Normal(0.0, 1.0)}',
    ),
    "LambertWNormal": Works(LOC_SCALE | {"tailweight": positive}),
    "Laplace": Works(LOC_SCALE),
    "LogLogistic": Works(LOC_SCALE, -1.0),
    "LogNormal": Works(LOC_SCALE, -1.0),
    "Logistic": Works(LOC_SCALE),
    "LogitNormal": Works(LOC_SCALE, 1.5),
    "Moyal": Works(LOC_SCALE),
    "Multinomial": Works({"logits": real}, [1.0, 1.0, 1.0], (3,), "total_count=5.0"),
    "MultivariateNormalDiag": Works({"loc": real, "scale_diag": positive}),
    "MultivariateNormalDiagPlusLowRank": Works(
        {"loc": real, "scale_diag": positive},
        note="`scale_perturb_factor` by name adds the low rank",
    ),
    "MultivariateNormalDiagPlusLowRankCovariance": Works(
        {"loc": real, "cov_diag_factor": positive}, given="cov_perturb_factor=[[1.0], [2.0]]"
    ),
    "MultivariateNormalFullCovariance": Works(
        {"loc": real, "covariance_matrix": (covariance, (3,))}
    ),
    "MultivariateNormalTriL": Works({"loc": real, "scale_tril": (lower_triangular, (3,))}),
    "NegativeBinomial": Works({"total_count": positive, "logits": real}, -1.0),
    "NoncentralChi2": Works(
        DF | {"noncentrality": positive}, -1.0, narrow="df=1.0, noncentrality=1.0"
    ),
    "Normal": Works(LOC_SCALE),
    "NormalInverseGaussian": Works(
        LOC_SCALE | {"tailweight": positive},
        given="skewness=0.0",
        note="`tailweight` has to exceed the size of `skewness`",
    ),
    "OneHotCategorical": Works({"logits": real}, 2.0, (3,)),
    "OrderedLogistic": Works(
        CUTPOINTS, 3.0, sizes="num_classes=3", note="`num_classes - 1` cutpoints for each entry"
    ),
    "PERT": Works(
        {"peak": fraction, "temperature": positive},
        1.5,
        given='low=0.0, high=1.0, constraints={"peak": tfb.Sigmoid()}',
    ),
    "Pareto": Works({"concentration": positive, "scale": positive}, -1.0),
    "PlackettLuce": Works({"scores": positive}, [0.0, 0.0, 1.0], (3,)),
    "Poisson": Works({"log_rate": real}, -1.0),
    "PowerSpherical": Works(
        {"concentration": (positive, ())}, 2.0, (3,), "mean_direction=[0.0, 0.6, 0.8]"
    ),
    "ProbitBernoulli": Works({"probits": real}, 2.0),
    "RelaxedBernoulli": Works({"temperature": positive, "logits": real}, 1.5),
    "RelaxedOneHotCategorical": Works(RELAXED, -0.5, (3,)),
    "SigmoidBeta": Works(BETA),
    "SinhArcsinh": Works(LOC_SCALE | {"skewness": real, "tailweight": positive}),
    "Skellam": Works({"log_rate1": real, "log_rate2": real}, 0.5),
    "StoppingRatioLogistic": Works(
        CUTPOINTS, 3.0, sizes="num_classes=3", note="`num_classes - 1` cutpoints for each entry"
    ),
    "StudentT": Works(DF | LOC_SCALE),
    "Triangular": Works(
        {"peak": fraction}, 1.5, given='low=0.0, high=1.0, constraints={"peak": tfb.Sigmoid()}'
    ),
    "TruncatedCauchy": Works(LOC_SCALE, 1.5, given="low=0.0, high=1.0"),
    "TruncatedNormal": Works(LOC_SCALE, 1.5, given="low=0.0, high=1.0"),
    "TwoPieceNormal": Works(LOC_SCALE | {"skewness": positive}),
    "TwoPieceStudentT": Works(DF | LOC_SCALE | {"skewness": positive}),
    "Uniform": Works(
        {"high": positive}, -1.0, given='low=0.0, constraints={"high": tfb.Softplus()}'
    ),
    "VonMises": Works(
        {"loc": real, "concentration": positive},
        note="an angle, in radians, so that any number will do",
    ),
    "VonMisesFisher": Works(
        {"concentration": (positive, ())}, 2.0, (3,), "mean_direction=[0.0, 0.6, 0.8]"
    ),
    "Weibull": Works({"concentration": positive, "scale": positive}, -1.0),
    "WishartTriL": Works({"scale_tril": (lower_triangular, (3,))}, -9.0, (2, 2), "df=4.0"),
    "ZeroInflatedNegativeBinomial": Works(
        {"inflated_loc_logits": real, "total_count": positive, "logits": real}, -1.0
    ),
    "Zipf": Works({"power": above_one}, 0.0),
}


class Fails(NamedTuple):
    """A class that does not: why, an attempt, and what comes of it."""

    why: str
    outcome: str  # a pattern
    attempt: str = ""
    event_shape: tuple[int, ...] = (2,)


NOTHING_FREE, NO_GRADIENT, NO_FILE = "nothing is free", "no gradient", "a file cannot hold"
NORMAL = "tfd.Normal(0.0, 1.0)"
NORMALS = "tfd.Normal([0.0, 1.0], 1.0)"
BASE = f'fixed={{"distribution": {NORMAL}}}'
VECTOR = "tfd.MultivariateNormalDiag([0.0], [1.0])"
IDENTITY = "tf.linalg.LinearOperatorIdentity(2)"

OF_OTHERS = "its parameters are other distributions; given them, nothing is left for the input"
OF_PROCESS = "needs a kernel, a function that a file of JSON cannot hold"
OF_OPERATOR = "needs a linear operator, which is no tensor, and which a file of JSON cannot hold"
OF_FUNCTION = "is made of a function, which a file of JSON cannot hold"
OF_SEVERAL = "a value is several arrays, not one"
ABSTRACT = "a base class, no distribution"
KERNEL = Fails(OF_PROCESS, NO_FILE, "kernel=tfp.math.psd_kernels.ExponentiatedQuadratic()")
JOINT = Fails(OF_SEVERAL, "cannot be built", f"model=[{NORMAL}, {NORMAL}]")
NAMED = Fails(OF_SEVERAL, "cannot be built", f'model={{"a": {NORMAL}, "b": {NORMAL}}}')
OPERATORS = Fails(OF_OPERATOR, NO_FILE, f"scale_row={IDENTITY}, scale_column={IDENTITY}", (2, 2))

FAILS = {
    "AutoCompositeTensorDistribution": Fails(ABSTRACT, "missing"),
    "Autoregressive": Fails(OF_FUNCTION, NO_FILE, "distribution_fn=abs"),
    "BatchBroadcast": Fails(OF_OTHERS, NOTHING_FREE, f"{BASE}, with_shape=(2,)"),
    "BatchConcat": Fails(OF_OTHERS, NOTHING_FREE, f"distributions=[{NORMALS}], axis=0"),
    "BatchReshape": Fails(
        OF_OTHERS,
        NOTHING_FREE,
        f'fixed={{"distribution": {NORMALS}}}, batch_shape=(2, 1)',
        (2, 1),
    ),
    "Blockwise": Fails(OF_OTHERS, NOTHING_FREE, f"distributions=[{NORMAL}, {NORMAL}]"),
    "Deterministic": Fails("a point mass: its density has no gradient", NO_GRADIENT),
    "Empirical": Fails(
        "its parameters are draws, and counting them has no gradient",
        NOTHING_FREE,
        "samples=[0.0, 1.0]",
        (),
    ),
    "FlatDirichlet": Fails("its only parameter is a shape", "concentration_shape"),
    "GaussianProcess": KERNEL,
    "GaussianProcessRegressionModel": KERNEL,
    "HiddenMarkovModel": Fails(
        OF_OTHERS,
        NOTHING_FREE,
        "initial_distribution=tfd.Categorical([0.0, 1.0]), "
        "transition_distribution=tfd.Categorical([[0.0, 1.0], [1.0, 0.0]]), "
        f"observation_distribution={NORMALS}, num_steps=3, mask=None",
        (3,),
    ),
    "Independent": Fails(
        OF_OTHERS,
        NOTHING_FREE,
        f'fixed={{"distribution": {NORMALS}}}, reinterpreted_batch_ndims=1',
    ),
    "Inflated": Fails(
        "TFP does not broadcast the distribution in it, which is fixed, over a batch",
        "batch shape must be compatible",
        'fixed={"distribution": tfd.Poisson(2.0)}, inflated_loc=0.0',
        (),
    ),
    "JointDistribution": Fails(ABSTRACT, "abstract"),
    "JointDistributionCoroutine": Fails(OF_FUNCTION, NO_FILE, "model=abs"),
    "JointDistributionCoroutineAutoBatched": Fails(OF_FUNCTION, NO_FILE, "model=abs"),
    "JointDistributionNamed": NAMED,
    "JointDistributionNamedAutoBatched": NAMED,
    "JointDistributionSequential": JOINT,
    "JointDistributionSequentialAutoBatched": JOINT,
    "LinearGaussianStateSpaceModel": Fails(
        "its parameters are other distributions, and matrices that TFP does not describe",
        NOTHING_FREE,
        f"num_timesteps=2, transition_matrix=[[1.0]], transition_noise={VECTOR}, "
        f"observation_matrix=[[1.0]], observation_noise={VECTOR}, initial_state_prior={VECTOR}",
        (2, 1),
    ),
    "MarkovChain": Fails(
        OF_FUNCTION, NO_FILE, f"initial_state_prior={NORMAL}, transition_fn=abs, num_steps=2"
    ),
    "Masked": Fails(
        "its parameters are another distribution and a mask, which is true or false",
        "the shape of 'validity_mask' does not follow",
        BASE,
    ),
    "MatrixNormalLinearOperator": OPERATORS,
    "MatrixTLinearOperator": OPERATORS,
    "Mixture": Fails(
        OF_OTHERS,
        NOTHING_FREE,
        f"cat=tfd.Categorical([0.0, 1.0]), components=[{NORMAL}, {NORMAL}]",
        (),
    ),
    "MixtureSameFamily": Fails(
        OF_OTHERS,
        NOTHING_FREE,
        f"mixture_distribution=tfd.Categorical([0.0, 1.0]), components_distribution={NORMALS}",
        (),
    ),
    "MultivariateNormalLinearOperator": Fails(OF_OPERATOR, NO_FILE, f"scale={IDENTITY}"),
    "MultivariateStudentTLinearOperator": Fails(OF_OPERATOR, NO_FILE, f"scale={IDENTITY}"),
    "PixelCNN": Fails("a network with weights of its own, no parameters", "image_shape"),
    "PoissonLogNormalQuadratureCompound": Fails(
        "TFP does not describe its parameters, which it needs itself inside of a Keras model",
        "Error processing property",
        'constraints={"loc": tfb.Identity(), "scale": tfb.Softplus()}',
    ),
    "QuantizedDistribution": Fails(
        "its parameters are another distribution and whole numbers",
        "non-integer",
        f'{BASE}, constraints={{"low": tfb.Identity(), "high": tfb.Softplus()}}',
        (),
    ),
    "Sample": Fails(OF_OTHERS, NOTHING_FREE, f"{BASE}, sample_shape=2"),
    "SphericalUniform": Fails("has no parameters but the size of a value", NOTHING_FREE),
    "StudentTProcess": KERNEL,
    "StudentTProcessRegressionModel": KERNEL,
    "TransformedDistribution": Fails(
        "its parameters are another distribution and a bijector; given them, nothing is left for "
        "the input",
        NOTHING_FREE,
        f"{BASE}, bijector=tfb.Exp()",
        (),
    ),
    "VariationalGaussianProcess": KERNEL,
    "VectorDeterministic": Fails(
        "a point mass: its density has no gradient", NO_GRADIENT, event_shape=(2, 2)
    ),
    "WishartLinearOperator": Fails(OF_OPERATOR, NO_FILE, f"df=4.0, scale={IDENTITY}", (2, 2)),
}


def classes() -> set[str]:
    """The names of TFP's distributions."""
    found = {name: value for name, value in vars(tfd).items() if inspect.isclass(value)}
    return {
        name
        for name, value in found.items()
        if issubclass(value, tfd.Distribution) and value is not tfd.Distribution
    }


def page() -> str:
    """docs/distributions.md."""
    lines = []
    for name in sorted(WORKS | FAILS):
        if name in WORKS:
            case = WORKS[name]
            given = f"`{case.source}`" if case.source else ""
            row = (name, case.works, f"`{case.event_shape}`", given, case.note)
        else:
            row = (name, "no", "", "", FAILS[name].why)
        lines.append(f"| {' | '.join(row)} |".replace("  ", " "))
    alone = sum(case.works == "yes" for case in WORKS.values())
    return INTRODUCTION.format(
        total=len(WORKS | FAILS),
        alone=alone,
        helped=len(WORKS) - alone,
        failing=len(FAILS),
        command=COMMAND,
        rows="\n".join(lines),
    )


INTRODUCTION = """\
# Distributions

Every class of `tfp.distributions` that can be a block is one: `DistributionLayer` makes a Keras
layer of it, which takes unconstrained numbers and returns the distribution.

```python
import numpy as np
import tensorflow_probability as tfp
import tf_keras as keras
from tfpvae import DistributionLayer, losses

tfb, tfd = tfp.bijectors, tfp.distributions

lifetimes = np.random.default_rng(0).weibull(2.0, size=[64, 1]).astype("float32")
machines = np.ones([64, 3], "float32")
layer = DistributionLayer("Weibull", event_shape=1)  # its concentration and its scale
model = keras.Sequential(
    [keras.layers.InputLayer([3]), keras.layers.Dense(layer.params_size), layer]
)
model.compile(optimizer="adam", loss=losses.negative_log_prob)
model.fit(machines, lifetimes, verbose=0)
assert model(machines).log_prob(lifetimes).shape == (64,)
```

Some classes want help, since TFP does not say which values a parameter may take, or it may take
whole numbers only. Such a parameter is fixed by name, or gets a bijector in `constraints`; one
that is called `distribution`, like an argument of the layer, goes into `fixed`:

```python
DistributionLayer("Binomial", 4, total_count=16.0)
DistributionLayer("Triangular", 4, low=0.0, high=1.0, constraints={{"peak": tfb.Sigmoid()}})
DistributionLayer("LambertWDistribution", 4, fixed={{"distribution": tfd.Normal(0.0, 1.0)}})
```

Of the {total} classes of TFP 0.25 (`tfd.Distribution` itself aside), {alone} work as they are,
{helped} with help, and {failing} cannot be a block. "Works" means that tests/test_distributions.py
holds the class to all of this: shapes; finite draws inside the support; the log density of the same
distribution made by hand from the same numbers; a gradient for every free parameter; a gradient
step that lowers the loss; a configuration in JSON and a `.keras` file, loaded in safe mode, with
the same log density; `check_values`, which accepts draws and refuses NaN and, unless every number
is a possible value, what is outside of the support. The table says for which `event_shape`, and
with which arguments by name; `num_classes`, a size, does not count as help. Of a class that
cannot be a block the test makes the attempt, and it says why it fails.

This page is written by `{command}`.

| distribution | works | event_shape | given by name | note |
|---|---|---|---|---|
{rows}
"""


def test_every_class_is_in_the_tables():
    assert not {*WORKS} & {*FAILS}
    assert {*WORKS, *FAILS} == classes()
    assert len(classes()) == 124
    assert sum(case.works == "yes" for case in WORKS.values()) >= 63
    assert len(WORKS) >= 75


def test_the_page_is_that_of_the_tables():
    assert PAGE.read_text() == page(), f"rewrite the page: {COMMAND}"


@pytest.mark.parametrize("name", FAILS)
def test_a_class_that_fails(name, rng):
    case = FAILS[name]
    try:
        layer = DistributionLayer(name, case.event_shape, **arguments(case.attempt))
        if layer.params_size:
            params = rng.normal(size=(BATCH, layer.params_size)).astype(np.float32)
            model = keras.Sequential([keras.layers.InputLayer([layer.params_size]), layer])
            x = model(params).sample(seed=SEED)
            slope = gradient(model, params, x)
            outcome = NO_GRADIENT if slope is None or not slope.numpy().any() else "works"
        else:
            outcome = NOTHING_FREE
    except (TypeError, ValueError) as error:
        outcome = str(error)
    assert re.search(case.outcome, outcome), outcome


@pytest.mark.parametrize("name", WORKS)
def test_a_class_that_works(name, tmp_path, rng, monkeypatch):
    if name == "BetaQuotient":  # Its series takes seconds where it runs term by term.
        by_terms = tf.function(hypergeometric._hyp2f1_internal, autograph=False)
        monkeypatch.setattr(hypergeometric, "_hyp2f1_internal", by_terms)
    case = WORKS[name]
    layer = case.layer(name)
    dense = keras.layers.Dense(
        layer.params_size, kernel_initializer=keras.initializers.RandomNormal(stddev=0.5)
    )
    inputs = keras.layers.InputLayer([FEATURES], case.batch_size)
    model = keras.Sequential([inputs, dense, layer])
    features = rng.normal(size=(BATCH, FEATURES)).astype(np.float32)
    params = dense(features).numpy()

    distribution = model(features)
    assert distribution.batch_shape == (BATCH,)
    assert distribution.event_shape == case.event_shape

    x = distribution.sample(seed=SEED).numpy()
    assert x.shape == (BATCH, *case.event_shape)
    assert np.isfinite(x).all(), x
    log_prob = distribution.log_prob(x).numpy()
    assert log_prob.shape == (BATCH,)
    assert np.isfinite(log_prob).all(), "its own draws are outside of the support"
    np.testing.assert_allclose(log_prob, case.log_prob(name, params, x), rtol=1e-4, atol=1e-4)

    check_gradient(layer, params, x)
    fewer = case.outside is not None and case.fewer
    check_support(layer, case.layer(name, fewer) if fewer else layer, x, case.outside)
    config = json.loads(json.dumps(layer.get_config()))
    rebuilt = DistributionLayer.from_config(config)
    np.testing.assert_allclose(rebuilt(params).log_prob(x), log_prob, rtol=1e-6, err_msg="config")
    assert rebuilt.get_config() == config

    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_allclose(loaded(features).log_prob(x), log_prob, rtol=1e-6, err_msg="file")
    check_training_step(model, features, x)


def gradient(layer, params, x):
    params = tf.constant(params)
    with tf.GradientTape() as tape:
        tape.watch(params)
        loss = -tf.reduce_sum(layer(params).log_prob(x))
    return tape.gradient(loss, params)


def check_gradient(layer, params, x):
    found = gradient(layer, params, x).numpy()
    assert np.isfinite(found).all(), found
    for parameter, piece in zip(
        layer.free, np.split(found, np.cumsum(layer.sizes)[:-1], axis=1), strict=True
    ):
        assert piece.any(), f"{parameter.name} has no gradient"


def check_support(layer, narrow, x, outside):
    """Draws are accepted; NaN and what is outside are not. `narrow` has fewer free parameters."""
    layer.check_values(x)
    bad = x.astype(np.float32)
    first = 0 if np.ndim(outside) else (0,) * x.ndim
    bad[first] = 10.0 if outside is None else outside
    if outside is None:
        bad[(1, *first[1:])] = -10.0
        layer.check_values(bad)
    else:
        with pytest.raises(ValueError, match="outside the support"):
            narrow.check_values(bad)
    bad[first] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        layer.check_values(bad)


def check_training_step(model, features, x):
    """A short step against the gradient lowers the loss."""

    def loss():
        return -tf.reduce_mean(model(features).log_prob(x))

    with tf.GradientTape() as tape:
        before = loss()
    gradients = tape.gradient(before, model.trainable_variables)
    step = 1e-3 / tf.linalg.global_norm(gradients)
    for weight, slope in zip(model.trainable_variables, gradients, strict=True):
        weight.assign_sub(step * slope)
    assert loss() < before


# What the classes of the tables ask of DistributionLayer.


def test_cutpoints_part_the_classes():
    layer = DistributionLayer("OrderedLogistic", 2, num_classes=3)
    assert layer.sizes == [2 * 2, 2]
    layer.check_values(np.array([[0, 2], [1, 1]]))
    with pytest.raises(ValueError, match="outside the support"):
        layer.check_values(np.array([[0, 3]]))
    fixed = DistributionLayer("OrderedLogistic", 2, cutpoints=[-1.0, 1.0])
    assert fixed.sizes == [2]
    # The logistic variable at 0 exceeds 1 with probability sigmoid(-1).
    log_prob = fixed(tf.zeros([1, 2])).log_prob([[2, 2]])
    np.testing.assert_allclose(log_prob, [-2 * np.log1p(np.e)], rtol=1e-5)


@pytest.mark.parametrize("total_count", [3.0, [3.0, 4.0]])
def test_counts_that_add_up_to_one_number_or_one_for_each_vector(total_count):
    layer = DistributionLayer("Multinomial", (2, 3), total_count=total_count)
    counts = layer(tf.zeros([4, 6])).sample(seed=SEED).numpy().sum(axis=-1)
    np.testing.assert_array_equal(counts, np.broadcast_to(total_count, [4, 2]))
    with pytest.raises(ValueError, match=r"total_count: got shape \(3,\), .* broadcasts to \(2,\)"):
        DistributionLayer("Multinomial", (2, 3), total_count=[3.0, 4.0, 5.0])


def test_the_dimension_follows_from_the_event_or_is_given():
    assert DistributionLayer("SphericalUniform", 3)(tf.zeros([1, 0])).event_shape == (3,)
    with pytest.raises(ValueError, match="event_shape"):
        DistributionLayer("LKJ", (3, 3), dimension=2)


def test_parameters_that_go_through_other_keyword_arguments():
    """`ZeroInflatedNegativeBinomial(inflated_loc_logits, inflated_loc_probs, **kwargs)`."""
    name = "ZeroInflatedNegativeBinomial"
    constraints = {"inflated_loc_probs": tfb.Sigmoid()}
    layer = DistributionLayer(name, 2, total_count=3.0, constraints=constraints)
    assert [parameter.name for parameter in layer.free] == ["inflated_loc_probs", "logits"]
    # Half of the values are inflated, half of the trials fail: 0 has probability 1/2 + (1/2)^4.
    log_prob = layer(tf.zeros([1, 4])).log_prob([[0.0, 0.0]])
    np.testing.assert_allclose(log_prob, [2 * np.log(9 / 16)], rtol=1e-5)
    with pytest.raises(TypeError, match="rate: not a parameter"):
        DistributionLayer(name, 2, rate=1.0)


@pytest.mark.parametrize(
    ("name", "given", "free"),
    [
        ("MultivariateNormalDiagPlusLowRank", "scale_perturb_factor=[[1.0], [2.0]]", 2 + 2),
        ("Skellam", 'constraints={"rate1": tfb.Softplus(), "rate2": tfb.Softplus()}', 2 + 2),
        ("FiniteDiscrete", "outcomes=[0.0, 1.0], atol=0.1, num_classes=2", 2 * 2),
        ("FiniteDiscrete", "outcomes=[0.0, 1.0], probs=[0.5, 0.5], num_classes=2", 0),
        ("ProbitBernoulli", 'constraints={"probs": tfb.Sigmoid()}', 2),
        ("Gamma", "rate=1.0", 2),
    ],
)
def test_a_name_takes_the_place_of_its_other_form_only(name, given, free):
    assert DistributionLayer(name, 2, **arguments(given)).params_size == free


def test_parameters_named_like_an_argument_of_the_layer():
    layer = DistributionLayer(
        "TransformedDistribution",
        fixed={"distribution": tfd.Normal(0.0, 2.0)},
        bijector=tfb.Exp(),
    )
    config = json.loads(json.dumps(layer.get_config()))
    assert config["distribution"] == "TransformedDistribution"
    rebuilt = DistributionLayer.from_config(config)
    assert rebuilt.get_config() == config
    for made in (layer, rebuilt):  # log-normal at 1: the normal density at 0
        log_prob = made(tf.zeros([1, 0])).log_prob(1.0)
        np.testing.assert_allclose(log_prob, -np.log(2 * np.sqrt(2 * np.pi)), rtol=1e-5)
    with pytest.raises(TypeError, match=r"distributon: not a parameter .* did you mean"):
        DistributionLayer("TransformedDistribution", fixed={"distributon": tfd.Normal(0.0, 1.0)})


class Shifted(tfd.Distribution):
    """A distribution that does not describe its parameters."""

    def __init__(self, by, name="Shifted", **kwargs):
        parameters = dict(locals()) | kwargs
        self._normal = tfd.Normal(by, 1.0)
        kwargs = {"validate_args": False, "allow_nan_stats": True} | kwargs
        super().__init__(
            tf.float32, tfd.FULLY_REPARAMETERIZED, parameters=parameters, name=name, **kwargs
        )

    def _batch_shape(self):
        return self._normal.batch_shape

    def _event_shape(self):
        return self._normal.event_shape

    def _log_prob(self, x):
        return self._normal.log_prob(x)

    def _sample_n(self, n, seed=None):
        return self._normal.sample(n, seed=seed)


def test_a_class_that_does_not_describe_its_parameters():
    layer = DistributionLayer(Shifted, 2, constraints={"by": tfb.Shift(1.0)})
    inputs = keras.layers.Input([2])
    model = keras.Model(inputs, layer(inputs))
    log_prob = model(np.zeros([1, 2], np.float32)).log_prob([[1.0, 1.0]])
    np.testing.assert_allclose(log_prob, [-np.log(2 * np.pi)], rtol=1e-5)
    with pytest.raises(TypeError, match=r"cannot be built from .* 'by'"):
        DistributionLayer(Shifted, 2)


if __name__ == "__main__":
    PAGE.write_text(page())
