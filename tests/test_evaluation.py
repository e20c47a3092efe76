"""check_elbo finds what is wrong with a model, and nothing where all is right."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras as keras

from tfpvae import (
    VAE,
    KLDivergenceRegularizer,
    check_elbo,
    likelihoods,
    losses,
    objectives,
    posteriors,
    priors,
    schedules,
)

tfd, tfpl = tfp.distributions, tfp.layers
D, K, N = 5, 2, 64


@pytest.fixture
def x(rng):
    return rng.random((N, D)).astype("float32")


def stock_prior():
    return tfd.Independent(tfd.Normal(tf.zeros(K), 1.0), 1)


def sequential(posterior, likelihood=None, loss=losses.negative_log_prob, **dense):
    likelihood = likelihood or likelihoods.Bernoulli(D)
    model = keras.Sequential(
        [
            keras.Input((D,)),
            keras.layers.Dense(posterior.params_size if hasattr(posterior, "event_shape") else 4),
            *(posterior if isinstance(posterior, list) else [posterior]),
            keras.layers.Dense(D, **dense),
            likelihood,
        ]
    )
    model.compile("sgd", loss=loss)
    return model


def ours(posterior=posteriors.DiagonalNormal, num_samples=None, **kwargs):
    kl = KLDivergenceRegularizer(priors.StandardNormal(K), **kwargs)
    return posterior(K, num_samples=num_samples, activity_regularizer=kl)


def stock(exact=True, num_samples=None, **kwargs):
    draw = tfd.Distribution.sample if num_samples is None else (lambda d: d.sample(num_samples))
    kl = tfpl.KLDivergenceRegularizer(stock_prior(), use_exact_kl=exact, **kwargs)
    return tfpl.IndependentNormal(K, draw, activity_regularizer=kl)


def vae(num_samples=None, prior=None, posterior=posteriors.DiagonalNormal, **kwargs):
    block = posterior(K, num_samples=num_samples)
    model = VAE(
        prior or priors.StandardNormal(K),
        keras.Sequential([keras.layers.Dense(block.params_size), block]),
        keras.Sequential([keras.layers.Dense(D), likelihoods.Bernoulli(D)]),
    )
    model.compile(**kwargs)
    return model


RIGHT = {
    "blocks": lambda: sequential(ours()),
    "blocks, 10 draws": lambda: sequential(ours(num_samples=10)),
    "blocks, Monte Carlo": lambda: sequential(ours(use_exact_kl=False)),
    "blocks, draws of its own": lambda: sequential(ours(use_exact_kl=False, num_samples=5000)),
    "blocks, full rank": lambda: sequential(ours(posteriors.FullRankNormal)),
    "stock posterior, our regularizer": lambda: sequential(
        tfpl.IndependentNormal(
            K, activity_regularizer=KLDivergenceRegularizer(priors.StandardNormal(K))
        )
    ),
    "VAE": lambda: vae(),
    "VAE, 7 draws": lambda: vae(num_samples=7),
    "VAE, Monte Carlo": lambda: vae(objective=objectives.ELBO(use_exact_kl=False)),
    "VAE, learned prior": lambda: vae(prior=priors.Normal(K, initial={"loc": 1.0, "scale": 2.0})),
    "VAE, draws of the objective": lambda: vae(
        objective=objectives.ELBO(use_exact_kl=False, num_samples=3)
    ),
    "VAE, score function": lambda: vae(
        objective=objectives.ELBO(num_samples=2, estimator="score_function")
    ),
    "VAE, warm-up at its end": lambda: vae(
        objective=objectives.ELBO(schedules.Linear(10, start=1.0))
    ),
    "VAE, full rank": lambda: vae(posterior=posteriors.FullRankNormal),
}


@pytest.mark.parametrize("build", RIGHT)
def test_agrees_where_the_loss_is_right(build, x):
    report = check_elbo(RIGHT[build](), x)
    assert report.ok, str(report)
    assert "The loss is the negative ELBO." in str(report)
    assert [term.name for term in report.terms] == ["nll", "kl", "loss, -ELBO"]
    assert report.terms[0].apart > 0
    assert report.terms[1].apart > 0


def test_values_of_a_known_model(x):
    """Zero weights: q is N(0, log(2)^2), p is a fair coin for each entry."""
    model = sequential(ours(), kernel_initializer="zeros")
    model.layers[0].set_weights([np.zeros((D, 4)), np.zeros(4)])
    nll, kl, loss = check_elbo(model, x).terms
    scale = np.log(2)
    assert nll.apart == pytest.approx(D * np.log(2), rel=1e-6)
    assert kl.apart == pytest.approx(K * 0.5 * (scale**2 - 1 - 2 * np.log(scale)), rel=1e-5)
    assert loss.apart == pytest.approx(nll.apart + kl.apart)


WRONG = {
    "stock": (lambda: sequential(stock()), 2.0, "counted twice: Keras applies"),
    "stock, Monte Carlo": (lambda: sequential(stock(exact=False)), 2.0, "counted twice"),
    "stock, 10 draws": (lambda: sequential(stock(num_samples=10)), 12.8, "the 10 draws instead"),
    "stock, weight": (lambda: sequential(stock(weight=0.5)), 1.0, "weight 0.5"),
    "add loss": (
        lambda: sequential(
            [tfpl.IndependentNormal(K), tfpl.KLDivergenceAddLoss(stock_prior(), use_exact_kl=True)]
        ),
        64.0,
        "summed over the 64 examples",
    ),
    "weighted KL": (lambda: sequential(ours(weight=0.5)), 0.5, "the weight 0.5: the loss is not"),
    "VAE, weighted KL": (
        lambda: vae(objective=objectives.ELBO(kl_weight=0.1)),
        0.1,
        "the weight 0.1: the loss is not",
    ),
    "no KL": (lambda: sequential(posteriors.DiagonalNormal(K)), None, "Nothing adds a KL"),
}


@pytest.mark.parametrize("case", WRONG)
def test_finds_a_wrong_kl(case, x):
    build, ratio, words = WRONG[case]
    report = check_elbo(build(), x)
    assert not report.ok
    assert words in str(report)
    assert report.terms[0].ratio == pytest.approx(1.0, rel=1e-5)
    if ratio is not None:
        assert report.terms[1].ratio == pytest.approx(ratio, rel=1e-4)


@pytest.mark.parametrize(
    "objective", [objectives.IWAE(3), objectives.CUBO(2.0, 3), objectives.ELBO(free_bits=1.0)]
)
def test_says_that_the_objective_is_another(objective, x):
    report = check_elbo(vae(objective=objective), x)
    assert "The objective is" in str(report)
    assert [term.ratio for term in report.terms[:2]] == pytest.approx([1.0, 1.0], rel=1e-4)
    assert report.terms[2].ratio != pytest.approx(1.0, rel=1e-3)


def test_finds_a_wrong_loss(x):
    model = sequential(ours(), loss="mse")
    assert "is not the negative log_prob" in str(check_elbo(model, x))


def test_finds_entries_that_are_averaged(x):
    entries = tfpl.DistributionLambda(lambda t: tfd.Bernoulli(logits=t, dtype=tf.float32))
    model = sequential(ours(), entries, loss=lambda y, p: -p.log_prob(y))
    report = check_elbo(model, x)
    assert f"averaged over the {D} entries" in str(report)
    assert report.terms[0].ratio == pytest.approx(1 / D, rel=1e-4)


def test_says_that_a_regularizer_ignores_weights(x, rng):
    weight = rng.random(N)
    report = check_elbo(sequential(ours()), x, sample_weight=weight)
    assert "The KL ignores sample_weight" in str(report)
    assert "counted twice" not in str(report)
    assert check_elbo(vae(), x, sample_weight=weight).ok
    report = check_elbo(sequential(stock()), x, sample_weight=weight)
    assert "counted twice" in str(report)
    assert "ignores sample_weight" in str(report)


def test_says_what_else_is_in_the_loss(x):
    report = check_elbo(sequential(ours(), kernel_regularizer="l2"), x)
    assert "nats of other regularizers" in str(report)


def test_a_prior_can_be_given_where_the_model_has_none(x):
    report = check_elbo(sequential(posteriors.DiagonalNormal(K)), x, prior=stock_prior())
    assert report.terms[1].keras == 0.0
    assert report.terms[1].apart > 0.0
    assert not report.ok


def test_a_model_without_posterior_has_no_elbo(x):
    model = keras.Sequential([keras.Input((D,)), keras.layers.Dense(D), likelihoods.Bernoulli(D)])
    model.compile("sgd", loss=losses.negative_log_prob)
    assert "no posterior layer" in str(check_elbo(model, x))


def test_leaves_the_model_as_it_was(x):
    model = vae()
    first = model.evaluate(x, verbose=0)
    check_elbo(model, x)
    assert model.evaluate(x, verbose=0) == first
    assert model(x).batch_shape == (N,)


def test_bad_arguments(x):
    with pytest.raises(TypeError, match="model: got 3, wanted a compiled"):
        check_elbo(3, x)
    uncompiled = vae()
    uncompiled._is_compiled = False
    with pytest.raises(ValueError, match=r"not compiled, call model\.compile"):
        check_elbo(uncompiled, x)
    with pytest.raises(ValueError, match=r"sample_weight: got shape \(3,\), wanted \(64,\)"):
        check_elbo(vae(), x, sample_weight=np.ones(3))
    plain = keras.Sequential([keras.Input((D,)), keras.layers.Dense(D)])
    plain.compile("sgd", "mse")
    with pytest.raises(TypeError, match="without a distribution layer"):
        check_elbo(plain, x)
    with pytest.raises(TypeError, match="x: got strings"):
        check_elbo(vae(), np.array(["a", "b"]))
