"""What stock tfp.layers get wrong, measured beside tfpvae; prints the table of the README.

The decoder's kernel is zero, so the negative log-likelihood is the constant D log 2, and whatever
the loss holds beyond it is the KL that was added: divided by the true mean KL it should be 1.
"""

import os
import tempfile
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras as keras

from tfpvae import VAE, KLDivergenceRegularizer, likelihoods, losses, posteriors, priors

tfd, tfpl = tfp.distributions, tfp.layers
DATA_SIZE, LATENT_SIZE = 5, 2
X = np.random.default_rng(0).random((64, DATA_SIZE)).astype("float32")
WEIGHTS = np.full(64, 0.5, "float32")


def stock_model(style: str = "functional", num_samples: int | None = None) -> tuple[Any, Any]:
    """A model of stock layers, and its layer of posterior parameters."""
    prior = tfd.Independent(tfd.Normal(tf.zeros(LATENT_SIZE), 1.0), 1)
    draw = tfd.Distribution.sample if num_samples is None else lambda d: d.sample(num_samples)
    kl = None if style == "add_loss" else tfpl.KLDivergenceRegularizer(prior, use_exact_kl=True)
    posterior = tfpl.IndependentNormal(LATENT_SIZE, draw, activity_regularizer=kl)
    layers = [posterior]
    if style == "add_loss":
        layers.append(tfpl.KLDivergenceAddLoss(prior, use_exact_kl=True))
    return _model(style, layers, tfpl.IndependentBernoulli(DATA_SIZE), lambda y, p: -p.log_prob(y))


def our_model(style: str = "functional", num_samples: int | None = None) -> tuple[Any, Any]:
    """The same model of our layers."""
    kl = KLDivergenceRegularizer(priors.StandardNormal(LATENT_SIZE))
    posterior = posteriors.DiagonalNormal(
        LATENT_SIZE, num_samples=num_samples, activity_regularizer=kl
    )
    return _model(style, [posterior], likelihoods.Bernoulli(DATA_SIZE), losses.negative_log_prob)


def our_vae(style: str = "functional", num_samples: int | None = None) -> tuple[Any, Any]:
    """The same model as a VAE."""
    params = keras.layers.Dense(2 * LATENT_SIZE)
    vae = VAE(
        priors.StandardNormal(LATENT_SIZE),
        keras.Sequential([params, posteriors.DiagonalNormal(LATENT_SIZE, num_samples=num_samples)]),
        keras.Sequential(
            [
                keras.layers.Dense(DATA_SIZE, kernel_initializer="zeros"),
                likelihoods.Bernoulli(DATA_SIZE),
            ]
        ),
    )
    vae.compile("sgd")
    return vae, params


def kl_ratio(
    build: Any,
    style: str = "functional",
    batch_size: int = 64,
    num_samples: int | None = None,
    weights: np.ndarray | None = None,
) -> float:
    """The KL that Keras adds to the loss, divided by the true one."""
    model, params = build(style, num_samples)
    loss = model.evaluate(X, X, batch_size=batch_size, sample_weight=weights, verbose=0)
    loss = loss[0] if isinstance(loss, list) else loss
    loc, raw = np.split(params(X).numpy().astype(float), 2, axis=1)
    scale = np.log1p(np.exp(raw))
    true_kl = 0.5 * (scale**2 + loc**2 - 1 - 2 * np.log(scale)).sum(axis=1)
    weights = np.ones(len(X)) if weights is None else weights
    nll = np.mean(weights) * DATA_SIZE * np.log(2)
    return float((loss - nll) / np.mean(weights * true_kl))


def outcome(attempt: Any) -> str:
    """`works`, or the error's class."""
    try:
        return attempt() or "works"
    except Exception as error:  # Whatever it is, it goes into the table.
        return type(error).__name__


def round_trip(build: Any, name: str, save_format: str) -> str | None:
    """Save the model and load it in Keras's safe mode."""
    model, _ = build()
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/{name}", save_format=save_format)
        loaded = keras.models.load_model(f"{folder}/{name}")
    weights = zip(model.get_weights(), loaded.get_weights(), strict=True)
    return None if all(np.array_equal(a, b) for a, b in weights) else "weights differ"


def mixed_precision(build: Any) -> None:
    """Train an epoch under the policy mixed_bfloat16."""
    try:
        keras.mixed_precision.set_global_policy("mixed_bfloat16")
        build()[0].fit(X, X, verbose=0)
    finally:
        keras.mixed_precision.set_global_policy("float32")


def table() -> list[tuple[str, str, str]]:
    """Rows: what was tried, stock layers, ours."""
    rows: list[tuple[str, str, str]] = []

    def ratio(
        title: str, *, stock: Any = stock_model, ours: Any = our_model, **kwargs: Any
    ) -> None:
        style = kwargs.pop("style", "functional")
        ours_style = "functional" if style == "add_loss" else style
        rows.append(
            (
                title,
                f"{kl_ratio(stock, style, **kwargs):.3f}",
                f"{kl_ratio(ours, ours_style, **kwargs):.3f}",
            )
        )

    for style in ("sequential", "functional"):
        for batch_size in (64, 16):
            ratio(f"{style}, batch {batch_size}", style=style, batch_size=batch_size)
    for batch_size in (64, 16):
        ratio(f"KLDivergenceAddLoss, batch {batch_size}", style="add_loss", batch_size=batch_size)
    ratio("10 draws of z, batch 64", num_samples=10)
    ratio("sample weights of 0.5 (ours: VAE)", ours=our_vae, weights=WEIGHTS)
    for title, attempt in {
        "`.keras` file, loaded in safe mode": lambda b: round_trip(b, "m.keras", "keras"),
        '`save_format="tf"`': lambda b: round_trip(b, "saved_model", "tf"),
        "`mixed_bfloat16`": mixed_precision,
    }.items():
        stock, ours = (
            outcome(lambda build=build, attempt=attempt: attempt(build))
            for build in (stock_model, our_model)
        )
        rows.append((title, stock, ours))
    predicted = type(stock_model()[0].predict(X, verbose=0)).__name__
    vae, _ = our_vae()
    kept = isinstance(vae.predict_distribution(X), tfd.Distribution)
    rows.append(
        ("prediction", f"a draw, {predicted}", "a tfd.Distribution" if kept else "no distribution")
    )
    return rows


def main() -> None:
    print("| KL added by Keras / true KL | stock `tfp.layers` | tfpvae |\n|---|---|---|")
    for row in table():
        print(f"| {' | '.join(row)} |", flush=True)


def _model(style: str, stochastic: list[Any], likelihood: Any, loss: Any) -> tuple[Any, Any]:
    params = keras.layers.Dense(2 * LATENT_SIZE)
    logits = keras.layers.Dense(DATA_SIZE, kernel_initializer="zeros")
    layers = [params, *stochastic, logits, likelihood]
    if style == "sequential":
        model = keras.Sequential([keras.Input((DATA_SIZE,)), *layers])
    else:
        inputs = outputs = keras.Input((DATA_SIZE,))
        for layer in layers:
            outputs = layer(outputs)
        model = keras.Model(inputs, outputs)
    model.compile("sgd", loss=loss)
    return model, params


if __name__ == "__main__":
    main()
