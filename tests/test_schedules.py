"""Schedules of the weight of the KL: their values, their state, and what they do to a VAE."""

import json

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from tfpvae import VAE, likelihoods, objectives, posteriors, priors, schedules

ignore_weight = pytest.mark.filterwarnings("ignore:fit ended with kl_weight")


def build(schedule, seed=0, **kwargs):
    keras.utils.set_random_seed(seed)
    vae = VAE(
        priors.StandardNormal(2),
        keras.Sequential([keras.layers.Dense(4), posteriors.DiagonalNormal(2)]),
        keras.Sequential([keras.layers.Dense(6), likelihoods.Normal(6, scale=0.5)]),
        seed=seed,
    )
    vae.compile(keras.optimizers.Adam(0.01), objective=objectives.ELBO(schedule), **kwargs)
    return vae


@pytest.fixture
def x(rng):
    return (rng.normal(size=(96, 2)) @ rng.normal(size=(2, 6))).astype("float32")


def values(schedule, num):
    found = []
    for _ in range(num):
        found.append(float(schedule.value()))
        schedule.advance(1.0)
    return found


def test_linear():
    assert values(schedules.Linear(4, start=0.2), 6) == pytest.approx(
        [0.2, 0.4, 0.6, 0.8, 1.0, 1.0]
    )


def test_exponential():
    wanted = 2.0 * 0.05 ** (np.minimum(np.arange(6), 4) / 4)
    assert values(schedules.Exponential(2.0, 0.1, 4), 6) == pytest.approx(list(wanted), rel=1e-5)
    assert values(schedules.Exponential(0.1, 1.0, 3), 5)[3:] == pytest.approx([1.0, 1.0])
    assert schedules.Exponential(2.0, 0.1, 4).remaining() is None


def test_cyclical():
    wanted = [0, 0.25, 0.5, 0.75, 1, 0, 0.25, 0.5, 0.75, 1, 1, 1, 1]
    assert values(schedules.Cyclical(5, num_cycles=2, ramp=0.8), 13) == pytest.approx(wanted)
    assert values(schedules.Cyclical(2, num_cycles=1, ramp=0.0), 3) == [0, 1, 1]


def test_weights_of_layers():
    weights = schedules.PerLayer([0.5, schedules.Linear(2), schedules.TargetRate(10.0)])
    weights.advance(tf.constant([3.0, 3.0, 20.0]))
    wanted = [0.5, 0.5, np.exp(0.01)]  # the last by the KL of its own layer
    np.testing.assert_allclose(weights.value(), wanted, rtol=1e-6)
    assert weights.remaining() is None
    for parts, remaining in (
        ([1.0, schedules.Linear(5)], 5),
        ([schedules.Linear(3), schedules.Linear(5)], 5),
        ([0.5, schedules.Linear(5)], None),
        ([1.0, 1.0], 0),
    ):
        assert schedules.PerLayer(parts).remaining() == remaining
    variable = tf.Variable(0.25, trainable=False)
    parts = schedules.PerLayer([variable, schedules.Linear(3, start=0.5)])
    again = schedules.PerLayer.from_config(json.loads(json.dumps(parts.get_config())))
    np.testing.assert_array_equal(again.value(), [0.25, 0.5])
    assert again.parts[1].num_steps == 3


@pytest.mark.parametrize(
    "make",
    [
        lambda: schedules.Linear(5),
        lambda: schedules.Cyclical(5, 3),
        lambda: schedules.Exponential(0.25, 1.0, 4),
    ],
)
def test_remaining_steps_lead_to_one(make):
    schedule = make()
    values(schedule, 2)
    left = schedule.remaining()
    found = values(schedule, left + 8)
    assert found[left - 1] < 1 or isinstance(schedule, schedules.Cyclical)
    assert found[left:] == [1.0] * 8
    assert schedule.remaining() == 0


@ignore_weight
@pytest.mark.parametrize("path", ["fast", "eager"])
def test_the_weight_is_logged_and_used_at_each_step(path, x):
    vae = build(schedules.Linear(8), run_eagerly=path == "eager")
    history = vae.fit(x, batch_size=32, epochs=4, verbose=0).history  # 3 steps an epoch
    steps = np.minimum(1, np.arange(12) / 8).reshape(4, 3)
    np.testing.assert_allclose(history["kl_weight"], steps.mean(axis=1), rtol=1e-6)
    logs = vae.evaluate(x, verbose=0, return_dict=True)
    assert logs["kl_weight"] == 1.0
    assert logs["loss"] == pytest.approx(-logs["elbo"], rel=1e-6)
    assert int(vae.schedule.step) == 12  # Evaluation is no step.


@ignore_weight
@pytest.mark.parametrize(
    "make", [lambda: schedules.Cyclical(6, 2), lambda: schedules.TargetRate(1.0, 0.5, 0.1)]
)
def test_state_is_saved_with_the_model(make, x, tmp_path):
    vae = build(make())
    vae.fit(x, batch_size=32, epochs=3, verbose=0)
    vae.save(tmp_path / "vae.keras")
    loaded = keras.models.load_model(tmp_path / "vae.keras")
    assert float(loaded.schedule.value()) == float(vae.schedule.value()) != 0.5
    one, other = (m.fit(x, batch_size=32, shuffle=False, verbose=0).history for m in (vae, loaded))
    assert one == other


def test_config_round_trip():
    for schedule in (
        schedules.Linear(4, 0.2),
        schedules.Cyclical(5, 2, 0.8),
        schedules.TargetRate(3.0, 0.5, 0.1),
        schedules.Exponential(1.0, 0.5, 9),
    ):
        config = json.loads(json.dumps(schedule.get_config()))
        again = type(schedule).from_config(config)
        assert again.get_config() == schedule.get_config()
        assert float(again.value()) == float(schedule.value())


@pytest.mark.long
@ignore_weight
def test_target_rate_is_reached(x):
    rate = 4.0
    vae = build(schedules.TargetRate(rate, learning_rate=0.02))
    history = vae.fit(x, batch_size=32, epochs=400, verbose=0).history
    assert np.mean(history["kl"][-50:]) == pytest.approx(rate, rel=0.03)


def test_target_rate_moves_by_a_factor_of_e_to_the_learning_rate_at_most():
    schedule = schedules.TargetRate(1.0, learning_rate=0.1)
    schedule.advance(kl=np.float32(1e6))
    assert float(schedule.value()) == pytest.approx(np.exp(0.1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedules.Linear(0), "num_steps: got 0"),
        (lambda: schedules.Linear(2.5), "num_steps: got 2.5"),
        (lambda: schedules.Linear(5, start=1.5), "start: got 1.5, wanted a number from 0 to 1"),
        (lambda: schedules.Cyclical(5, 0), "num_cycles: got 0"),
        (lambda: schedules.Cyclical(5, ramp="half"), "ramp: got 'half'"),
        (lambda: schedules.TargetRate(0.0), "rate: got 0.0, wanted a positive number"),
        (lambda: schedules.TargetRate(1.0, initial=-1), "initial: got -1"),
        (lambda: schedules.TargetRate(1.0, learning_rate=np.inf), "learning_rate: got inf"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()
