"""The check of the data: nothing bad trains silently."""

import itertools

import keras as keras3
import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tfpvae import VAE, likelihoods, posteriors, priors

D, K, N = 4, 2, 20


def build(likelihood=None, data_size=D):
    likelihood = likelihood or likelihoods.Bernoulli(data_size)
    vae = VAE(
        priors.StandardNormal(K),
        keras.Sequential(
            [keras.layers.Flatten(), keras.layers.Dense(4), posteriors.DiagonalNormal(K)]
        ),
        keras.Sequential([keras.layers.Dense(likelihood.params_size), likelihood]),
        seed=0,
    )
    vae.compile("sgd")
    return vae


@pytest.fixture
def x(rng):
    return rng.random((N, D)).astype("float32")


# Data that do not fit: an error before any step, that names the argument.


def steps_taken(vae):
    return int(vae.optimizer.iterations)


def grey(x):
    return np.round(255 * x)


def nan(x):
    x = x.copy()
    x[3, 1] = np.nan
    return x


def infinite(x):
    x = x.copy()
    x[3, 1] = np.inf
    return x


BAD = {
    "wrong size": (
        lambda x: x[:, :3],
        ValueError,
        r"x: got shape \(20, 3\), wanted \(N, 4\), because Bernoulli has event_shape \(4,\)",
    ),
    "too many sizes": (lambda x: x[..., None], ValueError, r"reshape it: x\.reshape\(-1, 4\)"),
    "one example": (lambda x: x[0], ValueError, r"x: got shape \(4,\), wanted \(N, 4\)"),
    "NaN": (nan, ValueError, r"x: got NaN or infinite values, wanted finite numbers"),
    "infinity": (infinite, ValueError, r"x: got NaN or infinite values"),
    "grey levels": (
        grey,
        ValueError,
        r"x: got values from \d+ to \d+, outside the support of Bernoulli .*scale the data to "
        r"\[0, 1\]: x / 255",
    ),
    "grey bytes": (lambda x: grey(x).astype("uint8"), ValueError, r"scale the data .*x / 255"),
    "negative": (lambda x: x - 0.5, ValueError, r"x: got values from -0\.\d+ to 0\.\d+, outside"),
    "empty": (lambda x: x[:0], ValueError, r"x: got an empty array of shape \(0, 4\)"),
    "no features": (lambda x: x[:, :0], ValueError, r"x: got an empty array of shape \(20, 0\)"),
    "strings": (lambda x: x.astype(str), TypeError, r"x: got strings, wanted real numbers"),
    "a string": (lambda x: "mnist", TypeError, r"x: got strings|x: got str 'mnist', wanted real"),
    "complex": (lambda x: x + 1j, TypeError, r"x: got complex numbers, wanted real numbers"),
    "objects": (lambda x: np.array([{}, {}]), TypeError, r"x: got objects of dtype object"),
    "ragged": (lambda x: [[1.0, 0.0], [1.0]], ValueError, r"x: got rows of different lengths"),
    "None": (lambda x: None, TypeError, r"x: got None, wanted an array"),
    "a number": (lambda x: 3.0, ValueError, r"x: got a single number, wanted an array"),
    "a layer": (lambda x: keras.layers.Dense(1), TypeError, r"x: got Dense"),
    "a Keras 3 model": (lambda x: keras3.Sequential(), TypeError, r"x: got Sequential of Keras 3"),
}


METHODS = ("fit", "evaluate", "elbo", "posterior", "predict", "train_on_batch", "test_on_batch")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", BAD)
def test_bad_data(case, method, x):
    make, error, match = BAD[case]
    vae = build()
    kwargs = {"verbose": 0} if method in ("fit", "evaluate", "predict") else {}
    with pytest.raises(error, match=match):
        getattr(vae, method)(make(x), **kwargs)
    assert steps_taken(vae) == 0


@pytest.mark.parametrize("case", sorted(set(BAD) - {"None"}))
def test_bad_validation_data(case, x):
    make, error, match = BAD[case]
    vae = build()
    match = match.replace(r"x\.", r"validation_data\.").replace("x: ", "validation_data: ")
    match = match.replace("x / 255", "validation_data / 255")
    with pytest.raises(error, match=match):
        vae.fit(x, validation_data=make(x), verbose=0)
    assert steps_taken(vae) == 0


@pytest.mark.long
@pytest.mark.parametrize(
    ("likelihood", "values", "match"),
    [
        (likelihoods.Binomial, 17.0, "outside the support of Binomial"),
        (likelihoods.Binomial, 0.5, "outside the support of Binomial"),
        (likelihoods.Poisson, -1.0, "outside the support of Poisson"),
        (likelihoods.Poisson, 1.5, "outside the support of Poisson"),
        (likelihoods.Categorical, 3.0, "outside the support of Categorical"),
        (likelihoods.Categorical, -1.0, "outside the support of Categorical"),
        (likelihoods.ContinuousBernoulli, 1.1, "outside the support of ContinuousBernoulli"),
    ],
)
def test_one_value_outside_the_support(likelihood, values, match, x):
    kwargs = {
        likelihoods.Binomial: {"total_count": 16},
        likelihoods.Categorical: {"num_classes": 3},
    }
    vae = build(likelihood(D, **kwargs.get(likelihood, {})))
    data = np.zeros((N, D))
    vae.fit(data, verbose=0)
    data[11, 2] = values
    with pytest.raises(ValueError, match=match):
        vae.fit(data, verbose=0)
    assert steps_taken(vae) == 1


def test_targets_and_weights_that_do_not_fit(x, rng):
    vae = build()
    cases = [
        ({"y": x[:5]}, r"y: got shape \(5, 4\), wanted 20 rows, as many as x has"),
        ({"y": np.arange(N)}, r"y: got shape \(20,\), wanted \(N, 4\)"),
        ({"y": 3 * x}, r"y: got values from .* outside the support of Bernoulli"),
        ({"sample_weight": np.ones(3)}, r"sample_weight: got shape \(3,\), wanted 20 rows"),
        ({"sample_weight": np.ones((N, 2))}, r"sample_weight: got shape \(20, 2\), wanted \(20,\)"),
        ({"sample_weight": -np.ones(N)}, r"sample_weight: got .* finite numbers >= 0"),
        ({"sample_weight": np.full(N, np.nan)}, r"sample_weight: got .* finite numbers >= 0"),
        ({"class_weight": {0: 1.0}}, r"class_weight: the model has no classes"),
        ({"validation_data": (x, x[:3])}, r"validation_data\[1\]: got shape \(3, 4\), wanted 20"),
    ]
    for kwargs, match in cases:
        with pytest.raises(ValueError, match=match):
            vae.fit(x, verbose=0, **kwargs)
    noisy = x.copy()
    noisy[0, 0] = np.nan
    with pytest.raises(ValueError, match="x: got NaN or infinite values"):
        vae.fit(noisy, x, verbose=0)
    assert steps_taken(vae) == 0


STREAMS = {
    "dataset": lambda x: tf.data.Dataset.from_tensor_slices(x).batch(5),
    "dataset of pairs": lambda x: tf.data.Dataset.from_tensor_slices((x, x)).batch(5),
    "generator": lambda x: (x[i : i + 5] for i in range(0, N, 5)),
    "iterator": lambda x: iter([x[i : i + 5] for i in range(0, N, 5)]),
}


# Weights without targets, which Keras drops.

LONG = pytest.mark.long


class Triples(keras.utils.Sequence):
    def __init__(self, x, weight):
        self.x, self.weight = np.split(x, 4), np.split(weight, 4)

    def __len__(self):
        return 4

    def __getitem__(self, i):
        return self.x[i], None, self.weight[i]


def triples(x, weight):
    batches = Triples(x, weight)
    return (batches[i % 4] for i in itertools.count())


def dataset_of_triples(x, weight):
    data = tf.data.Dataset.from_tensor_slices((x, weight)).batch(5)
    return data.map(lambda x, weight: (x, None, weight))


WEIGHTED = {
    "arrays": lambda x, w: {"x": x, "sample_weight": w, "batch_size": 5, "shuffle": False},
    "generator": lambda x, w: {"x": triples(x, w), "steps_per_epoch": 4},
    "sequence": lambda x, w: {"x": Triples(x, w), "shuffle": False},
    "dataset": lambda x, w: {"x": dataset_of_triples(x, w)},
}


@pytest.mark.parametrize(
    ("kind", "eager"),
    [
        pytest.param(kind, eager, marks=[] if (kind, eager) == ("generator", False) else LONG)
        for kind in WEIGHTED
        for eager in (False, True)
    ],
)
def test_weights_without_targets_are_kept(kind, eager, x, rng, tmp_path):
    weight = rng.uniform(0.0, 3.0, N).astype("float32")
    x = np.round(x)

    def history(**data):
        keras.utils.set_random_seed(0)
        vae = build()
        vae.compile("sgd", run_eagerly=eager)
        held_out = {"validation_data": (x, None, weight), "validation_batch_size": 5}
        found = vae.fit(**data, **held_out, epochs=2, verbose=0).history
        return [*found["loss"], *found["val_loss"]]

    wanted = history(x=x, y=x, sample_weight=weight, batch_size=5, shuffle=False)
    np.testing.assert_allclose(history(**WEIGHTED[kind](x, weight)), wanted, rtol=1e-6)
    if kind in ("arrays", "dataset"):
        resumed = history(**WEIGHTED[kind](x, weight), resume=tmp_path)
        np.testing.assert_allclose(resumed, wanted, rtol=1e-6)


def test_weights_of_one_batch(x):
    """An example of weight 0 has no part in a step."""

    def stepped(x, weight):
        keras.utils.set_random_seed(0)
        vae = build()
        logs = vae.train_on_batch(x, sample_weight=weight, return_dict=True)
        held_out = vae.test_on_batch(x, sample_weight=weight, return_dict=True)
        return [logs["loss"], held_out["loss"], *vae.get_weights()]

    x, other = np.round(x), np.round(x)
    other[: N // 2] = 1.0 - other[: N // 2]
    weight = np.repeat([0.0, 2.0], N // 2)
    for found, wanted in zip(stepped(other, weight), stepped(x, weight), strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert stepped(other, np.ones(N))[0] != stepped(x, np.ones(N))[0]


def test_a_batch_is_no_stream(x):
    with pytest.raises(TypeError, match="x: got a generator, wanted one batch: fit takes streams"):
        build().train_on_batch(triples(x, np.ones(N)))


@pytest.mark.parametrize("case", ["wrong size", "NaN", "grey levels", "negative"])
@pytest.mark.parametrize("stream", STREAMS)
def test_the_first_batch_of_a_stream_is_checked(stream, case, x):
    make, error, _ = BAD[case]
    vae = build()
    with pytest.raises(error, match=r"^[xy]: got"):
        vae.fit(STREAMS[stream](make(x)), verbose=0)
    assert steps_taken(vae) == 0


@pytest.mark.parametrize("stream", ["dataset", "dataset of pairs"])
def test_nan_in_a_later_batch_stops_training(stream, x):
    x[13, 0] = np.nan
    vae = build()
    with pytest.raises(tf.errors.InvalidArgumentError, match="NaN or infinite values in a batch"):
        vae.fit(STREAMS[stream](x), verbose=0)
    weights = vae.get_weights()
    assert all(np.isfinite(weight).all() for weight in weights)


@pytest.mark.parametrize(
    "stream", [tf.data.Dataset.from_tensor_slices(np.zeros((0, D))).batch(5), iter([])]
)
def test_empty_streams(stream):
    with pytest.raises(ValueError, match=r"x: got an empty .*, wanted batches"):
        build().fit(stream, verbose=0)


def test_a_dataset_that_is_not_batched(x):
    with pytest.raises(ValueError, match=r"x: got shape \(4,\), wanted \(N, 4\)"):
        build().fit(tf.data.Dataset.from_tensor_slices(x), verbose=0)


def test_networks_that_do_not_take_the_data(x):
    encoder = keras.Sequential(
        [keras.Input((7,)), keras.layers.Dense(4), posteriors.DiagonalNormal(K)]
    )
    decoder = keras.Sequential([keras.layers.Dense(D), likelihoods.Bernoulli(D)])
    vae = VAE(priors.StandardNormal(K), encoder, decoder)
    vae.compile("sgd")
    with pytest.raises(ValueError, match=r"x: got shape \(20, 4\), which the model's networks"):
        vae.fit(x, verbose=0)
    decoder = keras.Sequential([keras.layers.Dense(3), likelihoods.Bernoulli(D)])
    vae = VAE(priors.StandardNormal(K), keras.Sequential(encoder.layers), decoder)
    vae.compile("sgd")
    with pytest.raises(ValueError, match=r"got parameters of shape .*3\), wanted \(\.\.\., 4\)"):
        vae.fit(np.ones((N, 7)), verbose=0)


def acceptable(values):
    """What a Bernoulli likelihood of 4 entries may be trained on, stated independently."""
    try:
        array = np.asarray(values)
    except ValueError:
        return False
    if array.dtype.kind not in "biuf" or array.ndim != 2 or array.shape[1] != D or not len(array):
        return False
    if array.dtype.kind == "f":  # TensorFlow takes subnormal numbers for zeros.
        array = np.where(np.abs(array) < np.finfo("float32").tiny, 0, array)
    return bool(np.isfinite(array).all() and (array >= 0).all() and (array <= 1).all())


DTYPES = st.sampled_from(["float64", "float32", "float16", "int8", "int64", "uint8", "bool", "U3"])
SHAPES = st.one_of(
    st.just((3, D)), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
)
ELEMENTS = st.sampled_from([0.0, 1.0, 0.25, -1.0, 2.0, 255.0, float("nan"), float("inf"), 2.0**-40])
FLOATS = hnp.arrays(np.float32, st.just((3, D)), elements=ELEMENTS)
ARRAYS = st.one_of(DTYPES.flatmap(lambda dtype: hnp.arrays(dtype, SHAPES)), FLOATS)
OBJECTS = st.one_of(
    st.none(),
    st.text(max_size=3),
    st.floats(),
    st.booleans(),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
    st.lists(st.one_of(st.integers(), st.text(max_size=1), st.lists(st.floats())), max_size=3),
    st.just(np.ones((2, 2), object)),
    st.just(np.array(["2020-01-01"], "datetime64[D]")),
)


@pytest.fixture(scope="module")
def shared_vae():
    return build()


@settings(deadline=None, max_examples=300)
@given(values=st.one_of(ARRAYS, OBJECTS))
def test_whatever_comes_is_taken_or_refused_with_a_reason(shared_vae, values):
    if acceptable(values):
        assert np.isfinite(shared_vae.elbo(values, seed=0)).all()
    else:
        with pytest.raises((TypeError, ValueError), match=r"^x: got"):
            shared_vae.elbo(values)
