"""What the callback writes is read back by TensorBoard itself, and is what the model says."""

import importlib.util
import pathlib

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from tfpvae import (
    VAE,
    BayesianRegression,
    ConditionalVAE,
    HierarchicalVAE,
    likelihoods,
    networks,
    objectives,
    posteriors,
    priors,
    schedules,
    training,
)
from tfpvae.summaries import LatentSummaries

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
X = np.random.default_rng(0).random((120, 16)).astype("float32") > 0.4
X = X.astype("float32")


def ending(block, *first):
    return keras.Sequential([*first, keras.layers.Dense(block.params_size), block])


def model(size=2, likelihood=None, *first, num_steps=8):
    keras.utils.set_random_seed(0)
    vae = VAE(
        priors.StandardNormal(size),
        ending(posteriors.DiagonalNormal(size), *first),
        ending(likelihoods.Bernoulli(16) if likelihood is None else likelihood),
        seed=0,
    )
    vae.compile("adam", objective=objectives.ELBO(kl_weight=schedules.Linear(num_steps)))
    return vae


def read(folder, run):
    """All values of a run by tag: lists of (step, array)."""
    events = accumulator.EventAccumulator(str(folder / run), {"tensors": 0}).Reload()
    return {
        tag: [(event.step, tf.make_ndarray(event.tensor_proto)) for event in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
    }


def values(found, tag):
    return [float(value) for _, value in found[tag]]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of five epochs: model, history, folder."""
    folder = tmp_path_factory.mktemp("logs")
    vae, held_out = model(), X[100:]
    summaries = LatentSummaries(
        folder, held_out, np.arange(20) % 3, image_shape=(4, 4), images_every=2, num_images=3
    )
    options = {"epochs": 5, "batch_size": 50, "validation_data": held_out, "verbose": 0}
    return vae, vae.fit(X[:100], callbacks=[summaries], **options).history, folder, options


def test_terms_are_those_of_the_history(run):
    _, history, folder, _ = run
    train, validation = read(folder, "train"), read(folder, "validation")
    for name in ("loss", "elbo", "nll", "kl"):
        assert [step for step, _ in train[f"epoch/{name}"]] == [0, 1, 2, 3, 4]
        np.testing.assert_array_equal(values(train, f"epoch/{name}"), np.float32(history[name]))
        np.testing.assert_array_equal(
            values(validation, f"epoch/{name}"), np.float32(history[f"val_{name}"])
        )
    # Two steps an epoch, and eight until the weight is one.
    assert values(train, "epoch/kl_weight") == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert set(train) == {f"epoch/{name}" for name in ("loss", "elbo", "nll", "kl", "kl_weight")}


def test_latents_are_those_of_the_closed_form(run):
    vae, _, folder, _ = run
    found = read(folder, "latents")
    loc, raw = np.split(vae.encoder.layers[0](X[100:]).numpy().astype(float), 2, axis=1)
    scale = np.log1p(np.exp(raw))
    kl = np.mean(0.5 * (scale**2 + loc**2 - 1 - 2 * np.log(scale)), axis=0)
    assert [values(found, f"kl_by_unit/{d}")[-1] for d in range(2)] == pytest.approx(kl, rel=1e-4)
    assert values(found, "latents/kl")[-1] == pytest.approx(kl.sum(), rel=1e-4)
    assert values(found, "latents/active_units")[-1] == np.sum(loc.var(axis=0) > 0.01)
    assert len(found["latents/activity"]) == 5
    # A histogram's rows are (left, right, count).
    histogram = found["latents/kl_by_unit"][-1][1]
    assert histogram[:, 2].sum() == 2
    assert histogram[0, 0] <= kl.min() * 1.0001
    assert histogram[-1, 1] >= kl.max() * 0.9999


def test_pictures_come_every_so_often_and_at_the_end(run):
    *_, folder, _ = run
    found = read(folder, "latents")
    for name in ("latent_plane", "manifold", "reconstructions", "samples"):
        assert [step for step, _ in found[name]] == [0, 2, 4]
        width, height, png = found[name][0][1]
        image = tf.io.decode_png(png).numpy()
        assert image.shape == (int(height), int(width), 4)
        assert len(np.unique(image)) > 2
        assert any(len(value) > 2 and value[2] != png for _, value in found[name][1:]), name


def test_training_is_the_same_without(run):
    vae, history, _, options = run
    other = model()
    without = other.fit(X[:100], **options).history
    assert without == history
    for a, b in zip(vae.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_keeps_the_fast_path(tmp_path):
    assert not training._wants_each_batch([LatentSummaries(tmp_path, X)])


@pytest.mark.long
def test_a_resumed_run_goes_on(run, tmp_path):
    options = {"batch_size": 50, "verbose": 0, "resume": str(tmp_path / "state")}
    for epochs in (2, 4):
        summaries = LatentSummaries(tmp_path / "logs", X[100:], images_every=3)
        model(3, num_steps=2).fit(X[:100], epochs=epochs, callbacks=[summaries], **options)
    options["resume"] = str(tmp_path / "other")
    whole = LatentSummaries(tmp_path / "whole", X[100:], images_every=3)
    model(3, num_steps=2).fit(X[:100], epochs=4, callbacks=[whole], **options)
    for part in ("train", "latents"):
        found, wanted = read(tmp_path / "logs", part), read(tmp_path / "whole", part)
        assert set(found) == set(wanted)
        for tag in set(wanted) - {"latents/kl_by_unit", "latents/activity"}:
            assert found[tag] == wanted[tag], tag


@pytest.mark.parametrize(
    "kind",
    [
        "conditional",
        *(
            pytest.param(kind, marks=pytest.mark.long)
            for kind in ("colour", "hierarchical", "missing", "no images")
        ),
    ],
)
def test_other_models(kind, tmp_path):
    x, pictures = X[:60], {"reconstructions", "samples"}
    if kind == "conditional":
        vae = ConditionalVAE(
            priors.StandardNormal(3),
            ending(posteriors.DiagonalNormal(3), networks.Join()),
            ending(likelihoods.Bernoulli(16), networks.Join()),
            num_classes=2,
            seed=0,
        )
        data = x, np.arange(60) % 2
    elif kind == "hierarchical":
        blocks = [posteriors.DiagonalNormal(3), posteriors.DiagonalNormal(2)]
        decoders = [ending(likelihoods.Bernoulli(16)), ending(likelihoods.Normal(3))]
        encoders = [ending(block) for block in blocks]
        vae = HierarchicalVAE(priors.StandardNormal(2), encoders, decoders, seed=0)
        data = (x,)
    elif kind == "colour":  # Normal means may be outside of the colours' range.
        block = likelihoods.Normal((2, 2, 3))
        decoder = keras.Sequential([keras.layers.Dense(24), keras.layers.Reshape((2, 2, 6)), block])
        encoder = ending(posteriors.DiagonalNormal(3), keras.layers.Flatten())
        vae = VAE(priors.StandardNormal(3), encoder, decoder, seed=0)
        data = (3.0 * np.random.default_rng(0).random((60, 2, 2, 3)).astype("float32"),)
    elif kind == "missing":
        block = likelihoods.Masked(likelihoods.Bernoulli(16))
        vae = model(3, block, networks.FillMissing())
        data = (np.where(np.random.default_rng(0).random(x.shape) < 0.2, np.nan, x),)
    else:
        vae, data, pictures = model(3), (x,), set()
    vae.compile("adam")
    given = data[0][:20] if len(data) == 1 else tuple(values[:20] for values in data)
    shape = None if kind in ("colour", "no images") else (4, 4)
    summaries = LatentSummaries(tmp_path, given, image_shape=shape)
    vae.fit(*data, epochs=1, verbose=0, callbacks=[summaries])
    found = read(tmp_path, "latents")
    assert {"latents/kl", "latents/mutual_information"} < set(found)
    assert pictures == {"reconstructions", "samples", "latent_plane", "manifold"} & set(found)


@pytest.mark.parametrize(
    "wrong",
    [
        {"log_dir": 3},
        {"x": None},
        {"every": 0},
        {"images_every": 1.5},
        {"num_images": -1},
        {"labels": [1, 2]},
        {"image_shape": (4, 4, 2)},
        {"image_shape": 16},
        {"seed": 0.5},
    ],
)
def test_bad_arguments(wrong, tmp_path):
    with pytest.raises((TypeError, ValueError), match=f"{next(iter(wrong))}: got"):
        LatentSummaries(**{"log_dir": tmp_path, "x": X} | wrong)


def test_what_does_not_fit_is_refused_before_any_step(tmp_path):
    vae = model()
    with pytest.raises(ValueError, match=r"image_shape: got \(3, 4\) for x of shape \(120, 16\)"):
        vae.fit(X, verbose=0, callbacks=[LatentSummaries(tmp_path, X, image_shape=(3, 4))])
    with pytest.raises(ValueError, match=r"x: got shape \(120, 15\)"):
        vae.fit(X, verbose=0, callbacks=[LatentSummaries(tmp_path, X[:, 1:])])
    assert vae.optimizer.iterations.numpy() == 0
    regression = BayesianRegression(likelihoods.Normal(), seed=0)
    with pytest.raises(TypeError, match=r"vae: got .*, wanted a VAE"):
        regression.fit(X, X[:, 0], callbacks=[LatentSummaries(tmp_path, X)], verbose=0)
    assert not [*pathlib.Path(tmp_path).iterdir()]


def test_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'tfpvae\[tensorboard\]'"):
        LatentSummaries(tmp_path, X)
