"""A loss that becomes NaN or infinite stops training, says where, and leaves good weights."""

import functools
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from tfpvae import (
    VAE,
    BayesianRegression,
    DensityRatio,
    blocks,
    execution,
    likelihoods,
    objectives,
    posteriors,
    priors,
)

X = np.random.default_rng(0).normal(size=(60, 3)).astype("float32")


@keras.saving.register_keras_serializable("test_guards")
class Poisoned(keras.layers.Layer):
    """Passes its input on until a row is above 100, whose values become NaN."""

    def call(self, inputs):
        bad = tf.reduce_any(inputs > 100.0, axis=-1, keepdims=True)
        return tf.where(bad, np.nan, inputs)


@keras.saving.register_keras_serializable("test_guards")
class Steep(keras.layers.Layer):
    """Passes its input on; rows above 100 give its weight a gradient that is infinite."""

    def build(self, input_shape):
        self.level = self.add_weight(name="level", shape=(), initializer="zeros")

    def call(self, inputs):
        @tf.custom_gradient
        def passed(x, level):
            bad = tf.reduce_any(x > 100.0)
            return x + 0.0 * level, lambda dy: (dy, tf.where(bad, np.inf, 0.0))

        return passed(tf.minimum(inputs, 101.0), self.level)


def model(first=None, likelihood=None, way="plain", optimizer="adam", **kwargs):
    keras.utils.set_random_seed(1)
    likelihood = likelihood or likelihoods.Normal(3)
    before = [] if first is None else [first]
    encoder = keras.Sequential([*before, keras.layers.Dense(4), posteriors.DiagonalNormal(2)])
    decoder = keras.Sequential([keras.layers.Dense(likelihood.params_size), likelihood])
    vae = VAE(priors.StandardNormal(2), encoder, decoder, seed=0)
    ways = {"plain": {}, "xla": {"jit_compile": True}, "eager": {"run_eagerly": True}}
    vae.compile(optimizer, **ways[way], **kwargs)
    return vae


def with_bad_row(step, batch_size=10):
    x = X.copy()
    x[step * batch_size - 1, 0] = 1e4
    return x


def finite(vae):
    return all(np.isfinite(weight).all() for weight in vae.get_weights())


fit = {"batch_size": 10, "shuffle": False, "verbose": 0}


@pytest.mark.parametrize("way", ["plain", pytest.param("xla", marks=pytest.mark.long), "eager"])
def test_the_weights_are_those_of_the_step_before(way):
    vae = model(Poisoned(), way=way)
    with pytest.raises(FloatingPointError, match="got NaN or infinite values in epoch 1, step 4"):
        vae.fit(with_bad_row(4), epochs=3, **fit)
    before = model(Poisoned(), way=way)
    before.fit(X[:30], epochs=1, **fit)
    for found, wanted in zip(vae.get_weights(), before.get_weights(), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
    found, wanted = vae.optimizer.variables, before.optimizer.variables
    assert int(vae.optimizer.iterations) == 3
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-6)


def test_training_goes_on_after_it():
    vae = model(Poisoned())
    with pytest.raises(FloatingPointError):
        vae.fit(with_bad_row(4), **fit)
    assert np.isfinite(vae.fit(X, epochs=2, **fit).history["loss"]).all()
    assert np.isfinite(vae.elbo(X)).all()


def test_the_error_names_epoch_term_and_block():
    vae = model(Poisoned())
    with pytest.raises(FloatingPointError) as caught:
        vae.fit(with_bad_row(2), **fit)
    said = str(caught.value)
    assert said.startswith("loss: got NaN or infinite values in epoch 1, step 2; ")
    assert "nll in 1 of 10 examples, kl in 1 of 10 examples" in said
    assert "DiagonalNormal (tfd.Normal), the layer diagonal_normal" in said
    assert "has loc from nan to nan" in said
    assert "weights from before this step" in said
    assert "smaller learning rate" in said


def test_a_likelihood_alone_is_named():
    vae = model()
    vae.build((None, 3))
    # So far away that the square is infinite.
    vae.decoder.layers[0].bias.assign([1e30] * 3 + [0.0] * 3)
    with pytest.raises(FloatingPointError) as caught:
        vae.fit(X, **fit)
    said = str(caught.value)
    assert "nll in 10 of 10 examples;" in said
    assert "kl in" not in said
    assert "has loc from 1e+30 to 1e+30" in said
    assert "DiagonalNormal" not in said


def test_a_gradient_that_is_not_finite():
    vae = model(Steep())
    with pytest.raises(FloatingPointError, match=r"step 3; the gradient of \w+ is not finite") as e:
        vae.fit(with_bad_row(3), **fit)
    assert "level" in str(e.value)
    assert finite(vae)


def test_a_gradient_of_the_last_step_counts_too():
    vae = model(Steep())
    with pytest.raises(FloatingPointError, match="in epoch 1, step 6"):
        vae.fit(with_bad_row(6), epochs=1, **fit)
    assert finite(vae)


def test_weights_that_were_nan_before():
    vae = model()
    vae.build((None, 3))
    vae.encoder.layers[0].bias.assign([np.nan] * 4)
    with pytest.raises(FloatingPointError, match=r"the step the weights dense\S*/bias:0 were"):
        vae.fit(X, **fit)


def test_the_epoch_is_counted():
    vae = model(Poisoned())
    rows = iter([*([X] * 2), with_bad_row(5)])

    def generate():
        for x in rows:
            yield from np.split(x, 6)

    with pytest.raises(FloatingPointError, match="in epoch 3, step 5"):
        vae.fit(generate(), steps_per_epoch=6, epochs=3, verbose=0)


def test_train_on_batch_is_guarded():
    vae = model(Poisoned())
    vae.fit(X, **fit)
    kept = vae.get_weights()
    with pytest.raises(FloatingPointError, match="loss: got NaN or infinite values; "):
        vae.train_on_batch(np.full([10, 3], 1e4, "float32"))
    for found, wanted in zip(vae.get_weights(), kept, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_who_has_terminate_on_nan_gets_no_error():
    vae = model(Poisoned())
    callbacks = [keras.callbacks.TerminateOnNaN()]
    history = vae.fit(with_bad_row(4), epochs=3, callbacks=callbacks, **fit).history
    assert len(history["loss"]) == 1
    with pytest.raises(FloatingPointError):  # The next fit is guarded again.
        vae.fit(X, **fit)


def test_a_callback_list_is_taken_as_it_is():
    vae = model(Poisoned())
    seen = []
    own = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(epoch))
    callbacks = keras.callbacks.CallbackList([own], model=vae, add_history=True)
    vae.fit(X, epochs=2, callbacks=callbacks, **fit)
    assert seen == [0, 1]
    with pytest.raises(FloatingPointError, match="loss: got NaN or infinite values; "):
        vae.fit(with_bad_row(4), callbacks=callbacks, **fit)


def test_loss_scaling_skips_steps_and_is_no_error():
    keras.mixed_precision.set_global_policy("mixed_float16")
    vae = model(optimizer=keras.mixed_precision.LossScaleOptimizer(keras.optimizers.Adam(1e-3)))
    history = vae.fit(X, epochs=2, **fit).history
    assert np.isfinite(history["loss"]).all()
    assert finite(vae)


def test_other_models_are_guarded_and_say_what_may_help():
    regression = BayesianRegression(likelihoods.Poisson(), seed=0)
    regression.compile(keras.optimizers.SGD(1e9))
    with pytest.raises(FloatingPointError, match="a narrower prior, standardize=True"):
        regression.fit(X, [1.0, 2.0, 3.0] * 20, steps=20, verbose=0)
    ratio = DensityRatio(keras.Sequential([keras.layers.Dense(1)]), "exponential", seed=0)
    ratio.compile(keras.optimizers.SGD(1e9))
    with pytest.raises(FloatingPointError, match="loss: got NaN"):
        ratio.fit(X, X + 1.0, epochs=20, verbose=0)


def test_a_discriminator_is_guarded():
    network = keras.Sequential([keras.layers.Dense(4), keras.layers.Dense(1)])
    objective = objectives.AdversarialELBO(network, keras.optimizers.SGD(1e30))
    vae = model(objective=objective)
    with pytest.raises(FloatingPointError, match="loss: got NaN"):
        vae.fit(X, epochs=10, **fit)
    assert all(np.isfinite(w).all() for w in vae.discriminator.get_weights())


def test_blocks_are_recorded_only_inside():
    block = posteriors.DiagonalNormal(2)
    with blocks.recorded() as made:
        block(tf.zeros([3, 4]))
    block(tf.zeros([3, 4]))
    [(found, parameters)] = made
    assert found is block
    assert {name: value.shape for name, value in parameters.items()} == {
        "loc": (3, 2),
        "scale": (3, 2),
    }


def test_without_a_fault_the_guard_changes_nothing(monkeypatch):
    """The same weights with and without it, and no step is taken twice."""
    guarded = model()
    guarded.fit(X, epochs=2, **fit)
    plain = model()
    plain.build((None, 3))
    plain.make_train_function()._guard = None
    plain.fit(X, epochs=2, **fit)
    assert isinstance(plain.train_function, execution.Program)
    for found, wanted in zip(guarded.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(found, wanted)


@functools.cache
def root():
    return Path(__file__).parents[1]


@pytest.mark.long
def test_ctrl_c_leaves_a_model_that_works(tmp_path):
    code = textwrap.dedent(
        """
        import os, signal, sys, threading
        import numpy as np
        import tf_keras as keras
        sys.path.insert(0, "tests")
        import test_guards
        signal.signal(signal.SIGINT, signal.default_int_handler)  # Jobs of a shell ignore it.
        vae = test_guards.model()
        x = np.repeat(test_guards.X, 50, axis=0)

        class Interrupts(keras.callbacks.Callback):
            def on_epoch_begin(self, epoch, logs=None):
                if epoch == 3:
                    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()

        try:
            vae.fit(x, batch_size=5, epochs=10**6, callbacks=[Interrupts()], verbose=0)
        except KeyboardInterrupt:
            print("interrupted")
        assert len(vae.history.history["loss"]) >= 3
        vae.save(sys.argv[1])
        assert np.isfinite(vae.elbo(x)).all()
        again = vae.fit(x, batch_size=50, epochs=2, verbose=0).history
        assert np.isfinite(again["loss"]).all() and int(vae._steps_per_execution) == 1
        loaded = keras.models.load_model(sys.argv[1])
        assert loaded.built
        print("works")
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "vae.keras")],
        cwd=root(),
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": str(root())},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["interrupted", "works"]
