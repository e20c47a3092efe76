import json

import numpy as np
import pytest
import tensorflow as tf

from tfpvae import objectives


def test_elbo_is_the_weighted_sum():
    loss = objectives.ELBO(kl_weight=0.25)(tf.constant([1.0, 2.0]), tf.constant([4.0, 8.0]))
    np.testing.assert_allclose(loss, [2.0, 4.0])


def test_a_variable_weight_is_read_at_every_call():
    weight = tf.Variable(0.0, trainable=False)
    loss = tf.function(objectives.ELBO(weight))
    assert float(loss(1.0, 2.0)) == 1.0
    weight.assign(1.0)
    assert float(loss(1.0, 2.0)) == 3.0


def test_a_number_cannot_be_changed_in_vain():
    with pytest.raises(AttributeError):
        objectives.ELBO().kl_weight = 0.5  # It is compiled into the training step.


@pytest.mark.parametrize("weight", [0.5, tf.Variable(0.5, trainable=False)])
def test_config_round_trip(weight):
    config = json.loads(json.dumps(objectives.ELBO(weight, use_exact_kl=False).get_config()))
    again = objectives.ELBO.from_config(config)
    assert float(again.kl_weight) == 0.5
    assert isinstance(again.kl_weight, tf.Variable) == isinstance(weight, tf.Variable)
    assert again.use_exact_kl is False


@pytest.mark.parametrize("weight", [-0.1, float("inf"), tf.Variable(1.0)])
def test_bad_weights(weight):
    with pytest.raises(ValueError, match="kl_weight: got"):
        objectives.ELBO(weight)
    with pytest.raises(TypeError, match="kl_weight: got None"):
        objectives.ELBO(None)
