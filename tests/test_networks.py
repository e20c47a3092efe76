import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from scipy import stats

from tfpvae import VAE, likelihoods, networks, noise, posteriors, priors

TABLE = {
    "mlp_encoder": (lambda: networks.mlp_encoder((784,), 4), (784,), (4,), 784 * 256 + 256 + 1028),
    "mlp_encoder of images": (
        lambda: networks.mlp_encoder((8, 8, 1), 6, hidden=(32, 16)),
        (8, 8, 1),
        (6,),
        (64 + 1) * 32 + (32 + 1) * 16 + (16 + 1) * 6,
    ),
    "mlp_encoder, linear": (lambda: networks.mlp_encoder(5, 3, hidden=()), (5,), (3,), 18),
    "mlp_decoder": (lambda: networks.mlp_decoder(2, 784), (2,), (784,), 3 * 256 + 257 * 784),
    "mlp_decoder, one layer": (lambda: networks.mlp_decoder(2, 7, hidden=5), (2,), (7,), 15 + 42),
    "conv_encoder": (lambda: networks.conv_encoder((28, 28, 1), 4), (28, 28, 1), (4,), 69_076),
    "conv_encoder, odd": (lambda: networks.conv_encoder((9, 7, 3), 2), (9, 7, 3), (2,), None),
    "conv_encoder, small": (lambda: networks.conv_encoder((8, 8, 1), 4), (8, 8, 1), (4,), None),
    "conv_decoder": (lambda: networks.conv_decoder(2, (28, 28, 1)), (2,), (28, 28, 1), 65_089),
    "conv_decoder, small": (lambda: networks.conv_decoder(2, (8, 8, 1)), (2,), (8, 8, 1), None),
    "conv_decoder, loc and scale": (
        lambda: networks.conv_decoder(3, (8, 12, 3), params_per_channel=2),
        (3,),
        (8, 12, 6),
        None,
    ),
}


@pytest.fixture(params=TABLE.values(), ids=TABLE)
def case(request):
    return request.param


def test_shapes_and_number_of_weights(case):
    make, input_shape, output_shape, count = case
    model = make()
    assert model.input_shape == (None, *input_shape)
    assert model.output_shape == (None, *output_shape)
    assert count is None or model.count_params() == count
    x = np.random.default_rng(0).normal(size=(5, *input_shape)).astype(np.float32)
    y = model(x).numpy()
    assert y.shape == (5, *output_shape)
    assert np.ptp(y, axis=0).any()


def test_the_convolutional_pair_has_134165_weights():
    pair = networks.conv_encoder((28, 28, 1), 4), networks.conv_decoder(2, (28, 28, 1))
    assert sum(model.count_params() for model in pair) == 134_165


def test_configuration_round_trip(case):
    model = case[0]()
    copy = keras.Sequential.from_config(model.get_config())
    copy.set_weights(model.get_weights())
    x = np.random.default_rng(0).normal(size=(3, *case[1])).astype(np.float32)
    np.testing.assert_array_equal(copy(x), model(x))


def test_relu_within_and_nothing_at_the_end(case):
    weighted = [layer for layer in case[0]().layers if layer.weights]
    activations = [layer.activation for layer in weighted]
    assert activations == [keras.activations.relu] * (len(weighted) - 1) + [
        keras.activations.linear
    ]


def test_convolutions_are_those_of_the_tutorial():
    def layers(model):
        return [
            (type(layer).__name__, layer.filters, layer.kernel_size, layer.strides, layer.padding)
            for layer in model.layers
            if hasattr(layer, "filters")
        ]

    assert layers(networks.conv_encoder((28, 28, 1), 4)) == [
        ("Conv2D", 32, (3, 3), (2, 2), "same"),
        ("Conv2D", 64, (3, 3), (2, 2), "same"),
    ]
    assert layers(networks.conv_decoder(2, (28, 28, 1))) == [
        ("Conv2DTranspose", 64, (3, 3), (2, 2), "same"),
        ("Conv2DTranspose", 32, (3, 3), (2, 2), "same"),
        ("Conv2DTranspose", 1, (3, 3), (1, 1), "same"),
    ]


def test_two_of_a_kind_in_one_model():
    for make in (networks.mlp_encoder, networks.mlp_decoder):
        inputs = keras.Input((8,))
        outputs = make(4, 2)(make(8, 4)(inputs))
        assert keras.Model(inputs, outputs).output_shape == (None, 2)


def test_sizes_of_numpy_and_lists_are_sizes():
    model = networks.mlp_encoder([np.int64(4), 3], np.int32(2), hidden=[np.int64(5)])
    assert model.output_shape == (None, 2)
    assert model.count_params() == 13 * 5 + 6 * 2


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: networks.mlp_encoder((8, 0), 4), ValueError, r"input_shape\[1\] .*got 0"),
        (lambda: networks.mlp_encoder((), 4), ValueError, "input_shape .*one axis"),
        (lambda: networks.mlp_encoder((None,), 4), TypeError, r"input_shape\[0\] .*got None"),
        (lambda: networks.mlp_encoder("784", 4), TypeError, "input_shape .*got '784'"),
        (lambda: networks.mlp_encoder(8.0, 4), TypeError, "input_shape .*got 8.0"),
        (lambda: networks.mlp_encoder((8,), 0), ValueError, "params_size .*got 0"),
        (lambda: networks.mlp_encoder((8,), 4.0), TypeError, "params_size .*got 4.0"),
        (lambda: networks.mlp_encoder((8,), (4,)), TypeError, r"params_size .*got \(4,\)"),
        (lambda: networks.mlp_encoder((8,), 4, (16, -1)), ValueError, r"hidden\[1\] .*got -1"),
        (lambda: networks.mlp_encoder((8,), 4, True), TypeError, "hidden .*got True"),
        (lambda: networks.mlp_decoder(0, 4), ValueError, "latent_size .*got 0"),
        (lambda: networks.mlp_decoder("2", 4), TypeError, "latent_size .*got '2'"),
        (lambda: networks.mlp_decoder(2, -4), ValueError, "params_size .*got -4"),
        (lambda: networks.mlp_decoder(2, 4, None), TypeError, "hidden .*got None"),
        (lambda: networks.conv_encoder((28, 28), 4), ValueError, r"input_shape .*\(28, 28\)"),
        (lambda: networks.conv_encoder(784, 4), ValueError, "input_shape .*got 784"),
        (lambda: networks.conv_encoder((28, 28, 1), 1.5), TypeError, "params_size .*got 1.5"),
        (lambda: networks.conv_decoder(2, (8, 8)), ValueError, r"output_shape .*\(8, 8\)"),
        (lambda: networks.conv_decoder(2, (30, 28, 1)), ValueError, "divisible by 4.*30 x 28"),
        (lambda: networks.conv_decoder(2, (28, 30, 1)), ValueError, "divisible by 4.*28 x 30"),
        (lambda: networks.conv_decoder(2, (8, 8, 0)), ValueError, r"output_shape\[2\] .*got 0"),
        (lambda: networks.conv_decoder(True, (8, 8, 1)), TypeError, "latent_size .*got True"),
        (lambda: networks.conv_decoder(2, (8, 8, 1), 0), ValueError, "params_per_channel .*got 0"),
    ],
)
def test_bad_sizes_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


# FillMissing: where numbers are missing.

NAN = float("nan")


@pytest.mark.parametrize("value", [0, 0.5, -3.0])
def test_fill_missing_puts_a_value_where_nan_is(value):
    x = np.array([[1.0, NAN, 3.0], [NAN, NAN, 0.0]], "float32")
    filled = networks.FillMissing(value)(x).numpy()
    np.testing.assert_array_equal(filled, [[1.0, value, 3.0], [value, value, 0.0]])


def test_fill_missing_appends_the_mask():
    x = np.array([[[1.0, NAN], [NAN, 0.0]]], "float32")
    layer = networks.FillMissing(mask=True)
    wanted = [[[1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]]]
    np.testing.assert_array_equal(layer(x), wanted)
    assert layer.compute_output_shape((None, 8, 8, 3)) == (None, 8, 8, 6)
    assert networks.FillMissing().compute_output_shape((None, 5)) == (None, 5)
    assert keras.Sequential([keras.Input((4, 2)), layer]).output_shape == (None, 4, 4)


def test_fill_missing_takes_integers():
    x = np.array([[1, 2]])
    np.testing.assert_array_equal(networks.FillMissing(mask=True)(x), [[1.0, 2.0, 1.0, 1.0]])


def test_fill_missing_passes_finite_gradients():
    x = tf.Variable([[2.0, NAN]])
    with tf.GradientTape() as tape:
        y = networks.FillMissing(0.5)(x) ** 2
    np.testing.assert_array_equal(tape.gradient(y, x), [[4.0, 0.0]])


def test_fill_missing_under_mixed_precision():
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    filled = networks.FillMissing(mask=True)(np.array([[NAN, 1.0]], "float32"))
    assert filled.dtype == tf.bfloat16
    np.testing.assert_array_equal(tf.cast(filled, tf.float32), [[0.0, 1.0, 0.0, 1.0]])


def test_fill_missing_is_saved(tmp_path):
    layer = networks.FillMissing(0.25, mask=True)
    again = networks.FillMissing.from_config(layer.get_config())
    assert (again.value, again.mask) == (0.25, True)
    keras.Sequential([keras.Input((2,)), layer]).save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(np.array([[NAN, 1.0]])), [[0.25, 1.0, 0.0, 1.0]])


def test_mistakes_with_fill_missing():
    with pytest.raises(TypeError, match="value: got 'zero', wanted a number"):
        networks.FillMissing("zero")
    with pytest.raises(TypeError, match="value: got True, wanted a number"):
        networks.FillMissing(True)
    with pytest.raises(ValueError, match="value: got nan, wanted a finite number"):
        networks.FillMissing(NAN)
    with pytest.raises(TypeError, match="mask: got 1, wanted True or False"):
        networks.FillMissing(mask=1)
    with pytest.raises(ValueError, match="expected min_ndim=2, found ndim=1"):
        networks.FillMissing(mask=True)(np.zeros(3))


# Binarize: grey levels are probabilities.


def identity_vae(**kwargs):
    """The encoder hands its bits on, and the decoder puts them out with certainty."""
    posterior = posteriors.DiagonalNormal(3, scale=1e-3)
    there, back = keras.layers.Dense(3), keras.layers.Dense(3)
    vae = VAE(
        priors.StandardNormal(3),
        keras.Sequential([there, posterior]),
        keras.Sequential([back, likelihoods.Bernoulli(3)]),
        preprocessing=networks.Binarize(),
        seed=0,
    )
    vae.build((None, 3))
    there.set_weights([np.eye(3), np.zeros(3)])
    back.set_weights([40 * np.eye(3), np.full(3, -20.0)])
    vae.compile(keras.optimizers.SGD(0.0), **kwargs)
    return vae


@pytest.mark.parametrize(("max_value", "dtype"), [(1, "float32"), (255, "uint8"), (4, "float64")])
def test_binarize_draws_ones_with_the_probability_of_the_level(max_value, dtype):
    x = np.tile(np.array([0, 0.2, 0.5, 0.9, 1]) * max_value, (5000, 1)).astype(dtype)
    with noise.fixed(1):
        bits = networks.Binarize(max_value)(x).numpy()
    assert set(np.unique(bits)) == {0.0, 1.0}
    counts = bits.sum(axis=0).astype(int)
    assert (counts[0], counts[4]) == (0, 5000)
    for level, count in zip(x[0, 1:4], counts[1:4], strict=True):
        assert stats.binomtest(int(count), 5000, float(level) / max_value).pvalue > 1e-3


def test_binarize_leaves_binary_data_alone(rng):
    bits = rng.integers(0, 2, (50, 4))
    np.testing.assert_array_equal(networks.Binarize()(bits), bits)
    np.testing.assert_array_equal(networks.Binarize(255)(np.uint8(255 * bits)), bits)
    gaps = np.where(bits == 1, NAN, bits)
    np.testing.assert_array_equal(networks.Binarize()(gaps), gaps)


def test_binarize_after_rescaling():
    both = keras.Sequential([keras.layers.Rescaling(1 / 255), networks.Binarize()])
    bits = both(np.tile(np.array([[0, 128, 255]], "uint8"), (200, 1))).numpy()
    assert [set(column) for column in bits.T] == [{0.0}, {0.0, 1.0}, {1.0}]


def test_binarize_follows_the_seed():
    grey = np.full((20, 4), 0.5, "float32")
    layer = networks.Binarize()
    with noise.fixed(1):
        first, second = layer(grey).numpy(), layer(grey).numpy()
    with noise.fixed(1):
        np.testing.assert_array_equal(layer(grey), first)
    assert (first != second).any()
    assert (layer(grey).numpy() != layer(grey).numpy()).any()  # TFP's own generator draws.


@pytest.mark.long
@pytest.mark.parametrize("jit_compile", [True, False])
def test_the_bits_that_are_scored_are_those_that_were_encoded(jit_compile):
    grey = np.full((32, 3), 0.5, "float32")
    vae = identity_vae(jit_compile=jit_compile)
    history = vae.fit(grey, batch_size=8, epochs=3, verbose=0).history
    assert max(history["nll"]) < 1e-3  # 20 for each bit that is another.
    # The KL depends on the bits, which are other ones in each epoch, and again from the same seed.
    assert len(set(history["kl"])) == 3
    vae.noise.count.assign(0)
    repeated = vae.fit(grey, batch_size=8, epochs=3, verbose=0).history
    assert repeated == history


@pytest.mark.long
def test_evaluation_repeats_its_bits():
    grey = np.full((32, 3), 0.5, "float32")
    vae = identity_vae()
    assert vae.evaluate(grey, verbose=0) == vae.evaluate(grey, verbose=0)
    assert vae.elbo(grey, seed=1).min() > -30
    np.testing.assert_array_equal(vae.elbo(grey, seed=1), vae.elbo(grey, seed=1))


def test_binarize_refuses_what_is_no_probability():
    vae = identity_vae()
    grey = np.full((8, 3), 0.5, "float32")
    with pytest.raises(
        ValueError, match=r"binarize.*: got values from 0 to 255, .*Binarize\(255\)"
    ):
        vae.fit(np.tile(np.uint8([0, 9, 255]), (8, 1)), verbose=0)
    with pytest.raises(
        ValueError, match=r"got values from -0\.5 to 0\.5, wanted values in \[0, 1\]"
    ):
        vae.evaluate(grey * [1, 1, -1], verbose=0)
    with pytest.raises(ValueError, match=r"got values from 0 to 300, wanted values in \[0, 255\]"):
        networks.Binarize(255)(np.array([[0.0, NAN, 300.0]]))
    assert int(vae.optimizer.iterations) == 0
    # Where no error can be raised it is seen at once.
    compiled = tf.function(networks.Binarize())(tf.constant([[0.0, 1.0, 1.5, -0.1]]))
    np.testing.assert_array_equal(compiled, [[0.0, 1.0, NAN, NAN]])


def test_binarize_under_mixed_precision():
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    level = np.full((4000, 5), 1 / 512, "float32")
    bits = networks.Binarize()(level)
    assert bits.dtype == tf.float32
    count = int(tf.reduce_sum(bits))
    assert stats.binomtest(count, 20_000, 1 / 512).pvalue > 1e-3


def test_binarize_is_saved(tmp_path):
    assert networks.Binarize.from_config(networks.Binarize(16).get_config()).max_value == 16.0
    vae = identity_vae()
    vae.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    grey = np.full((8, 3), 0.5, "float32")
    np.testing.assert_array_equal(loaded.elbo(grey, seed=1), vae.elbo(grey, seed=1))


@pytest.mark.parametrize(
    ("max_value", "error"),
    [
        (0, ValueError),
        (-1, ValueError),
        (float("inf"), ValueError),
        (NAN, ValueError),
        ("255", TypeError),
        (True, TypeError),
        (None, TypeError),
    ],
)
def test_mistakes_with_binarize(max_value, error):
    with pytest.raises(error, match=r"max_value: got .*, wanted a positive number"):
        networks.Binarize(max_value)


def test_append_parameters_puts_the_same_numbers_behind_every_row():
    layer = networks.AppendParameters(2)
    layer.set_weights([np.array([3.0, 4.0])])
    found = layer(np.array([[1.0, 2.0], [5.0, float("nan")]], "float32")).numpy()
    np.testing.assert_array_equal(found, [[1, 2, 3, 4], [5, np.nan, 3, 4]])
    pixels = layer(np.ones((2, 3, 5, 1), "float32"))  # After a convolution: for all pixels alike.
    assert pixels.shape == layer.compute_output_shape((2, 3, 5, 1)) == (2, 3, 5, 3)
    np.testing.assert_array_equal(pixels[1, 2, 4], [1, 3, 4])


def test_append_parameters_shares_one_number():
    layer = networks.AppendParameters(3, shared=True, initializer="ones")
    assert [w.shape for w in layer.get_weights()] == [(1,)]
    with tf.GradientTape() as tape:
        y = layer(tf.constant([[5], [6]]))  # Integers are cast.
        loss = tf.reduce_sum(y * [[0.0, 1.0, 2.0, 4.0]])
    np.testing.assert_array_equal(y, [[5, 1, 1, 1], [6, 1, 1, 1]])
    np.testing.assert_array_equal(tape.gradient(loss, layer.parameters), [14.0])


def test_append_parameters_makes_noise_that_does_not_depend_on_z(tmp_path):
    layers = [keras.layers.Dense(3), networks.AppendParameters(3), likelihoods.Normal(3)]
    decoder = keras.Sequential([keras.Input((2,)), *layers])
    layers[1].set_weights([np.array([-1.0, 0.0, 1.0])])
    p = decoder(np.random.default_rng(0).normal(size=(7, 2)))
    assert np.ptp(p.mean(), axis=0).all()
    np.testing.assert_allclose(p.stddev(), np.tile(np.log1p(np.exp([-1, 0, 1])), (7, 1)), rtol=1e-6)
    decoder.save(tmp_path / "decoder.keras")
    again = keras.models.load_model(tmp_path / "decoder.keras")
    np.testing.assert_array_equal(again(np.ones((1, 2))).stddev(), p.stddev()[:1])


@pytest.mark.parametrize(
    ("policy", "dtype"), [("mixed_float16", "float32"), ("float64", "float64")]
)
def test_append_parameters_computes_in_full_precision(policy, dtype):
    keras.mixed_precision.set_global_policy(policy)
    layer = networks.AppendParameters(1, initializer=keras.initializers.Constant(1.0001))
    y = layer(keras.layers.Dense(2)(np.ones((1, 2))))
    assert y.dtype == layer.parameters.dtype == dtype
    assert float(y[0, 2]) == np.dtype(dtype).type(1.0001)  # Half precision would make it 1.


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0,), ValueError, "size: got 0"),
        ((2.0,), TypeError, "size: got 2.0"),
        ((2, "yes"), TypeError, "shared: got 'yes', wanted True or False"),
    ],
)
def test_mistakes_with_append_parameters(arguments, error, message):
    with pytest.raises(error, match=f"^{message}"):
        networks.AppendParameters(*arguments)


def test_join_concatenates_vectors():
    h, y = np.arange(6).reshape(2, 3), np.array([[0.0, 1.0], [1.0, 0.0]])
    joined = networks.Join()([tf.constant(h), tf.constant(y)])
    np.testing.assert_array_equal(joined, [[0, 1, 2, 0, 1], [3, 4, 5, 1, 0]])


@pytest.mark.parametrize("pixels", [(4, 6), (5,)])
def test_join_appends_channels(pixels, rng):
    h, y = rng.normal(size=(2, *pixels, 3)), rng.normal(size=(2, 7))
    joined = networks.Join()([tf.constant(h, tf.float32), tf.constant(y, tf.float32)]).numpy()
    assert joined.shape == (2, *pixels, 10)
    np.testing.assert_allclose(joined[..., :3], h, rtol=1e-6)
    everywhere = y.reshape(2, *[1] * len(pixels), 7) * np.ones((*pixels, 1))
    np.testing.assert_allclose(joined[..., 3:], everywhere, rtol=1e-6)
    images = networks.Join()([h, everywhere])
    np.testing.assert_array_equal(images, joined)


def test_join_makes_vectors(rng):
    h, y = rng.normal(size=(2, 4, 6)), rng.normal(size=(2, 4))
    joined = networks.Join(flatten=True)([h, y])
    np.testing.assert_allclose(joined, np.c_[h.reshape(2, 24), y], rtol=1e-6)
    assert networks.Join()([y, h]).shape == (2, 28)


def test_join_is_saved_and_takes_any_batch(tmp_path):
    model = keras.Sequential([networks.Join(flatten=True), keras.layers.Dense(2)])
    model.build([(None, 4, 4), (None, 3)])
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    for size in (1, 5):
        given = [np.ones((size, 4, 4)), np.ones((size, 3))]
        np.testing.assert_array_equal(again(given), model(given))


def test_join_under_mixed_precision():
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    assert networks.Join()([np.ones((2, 3)), np.ones((2, 1), int)]).dtype == "bfloat16"


def test_mistakes_with_join():
    with pytest.raises(TypeError, match=r"^flatten: got 1, wanted True or False"):
        networks.Join(1)
    with pytest.raises(TypeError, match="wanted two inputs"):
        networks.Join()(np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"got y of shape \(2, 5, 5, 1\) .* \(B, 4, 4, D\)"):
        networks.Join()([np.ones((2, 4, 4, 1)), np.ones((2, 5, 5, 1))])
    with pytest.raises(ValueError, match=r"got y of shape \(2, 3, 4\)"):
        networks.Join()([np.ones((2, 4, 4, 1)), np.ones((2, 3, 4))])
