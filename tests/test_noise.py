"""Noise: one source, whose state fixes every draw."""

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfpvae import noise


def test_noise_never_returns_the_same_seed_twice():
    source = noise.Noise(seed=0)
    seeds = [tuple(source.next().numpy()) for _ in range(100)]
    seeds += [tuple(source.next(evaluation=True).numpy()) for _ in range(100)]
    assert len(set(seeds)) == 200


def test_noise_is_fixed_by_its_state():
    one, other = noise.Noise(seed=3), noise.Noise(seed=4)
    first = [one.next().numpy() for _ in range(3)]
    other.set_weights(one.get_weights())
    fourth = one.next().numpy()
    np.testing.assert_array_equal(other.next(), fourth)
    again = noise.Noise(seed=3)
    np.testing.assert_array_equal([again.next() for _ in range(3)], first)


def test_evaluation_noise_starts_anew_and_leaves_the_other_alone():
    source = noise.Noise(seed=0)
    first = source.next(evaluation=True).numpy()
    assert not np.array_equal(source.next(evaluation=True), first)
    source.rewind_evaluation()
    np.testing.assert_array_equal(source.next(evaluation=True), first)
    assert int(source.count) == 0


def test_noise_advances_inside_a_compiled_function():
    source = noise.Noise(seed=0)
    wanted = [source.next().numpy() for _ in range(3)]
    source.count.assign(0)
    compiled = tf.function(source.next)
    np.testing.assert_array_equal([compiled() for _ in range(3)], wanted)
    source.count.assign(0)
    xla = tf.function(source.next, jit_compile=True)
    assert len({tuple(xla().numpy()) for _ in range(3)}) == 3
    assert int(source.count) == 3


def test_noise_without_a_seed_follows_the_global_one():
    keras.utils.set_random_seed(1)
    first = noise.Noise().next().numpy()
    assert not np.array_equal(noise.Noise().next(), first)
    keras.utils.set_random_seed(1)
    np.testing.assert_array_equal(noise.Noise().next(), first)
