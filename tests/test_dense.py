"""The VAE of dense networks: what follows from the data, and what the words say."""

import numpy as np
import pytest
import tf_keras as keras
from scipy import stats

from tfpvae import dense, likelihoods, networks, posteriors, priors

RNG = np.random.default_rng(0)
COUNTS = RNG.poisson(3.0, (40, 3))
REAL = RNG.normal(5.0, 2.0, (40, 3))
MIXED = np.stack([REAL[:, 0], COUNTS[:, 1], COUNTS[:, 2] > 2], axis=1).astype(float)
NAMES = ["a", "b", "c"]
LONG = pytest.mark.long


def make(x, columns=NAMES, **kwargs):
    return dense.vae(x, columns, **{"hidden": (8,), "seed": 0} | kwargs)


def block(vae):
    return vae.decoder.layers[-1]


def kinds(vae):
    return [type(part).__name__ for part in block(vae).columns.values()]


def test_networks_are_those_asked_for():
    vae = make(COUNTS, latent_size=4, hidden=(16, 8), likelihood=["Poisson"])
    encoder, q = vae.encoder.layers
    decoder, p = vae.decoder.layers
    assert [layer.units for layer in encoder.layers] == [16, 8, 8]
    assert [layer.units for layer in decoder.layers] == [8, 16, 3]
    assert isinstance(q, posteriors.DiagonalNormal)
    assert isinstance(p, likelihoods.Poisson)
    assert isinstance(vae.prior, priors.StandardNormal)
    assert q.event_shape == (4,)
    assert vae.preprocessing is None


@pytest.mark.parametrize(
    ("x", "wanted"),
    [
        (COUNTS, "NegativeBinomial"),
        (COUNTS.astype(float), "NegativeBinomial"),
        (COUNTS > 2, "Bernoulli"),
        (REAL, "Normal"),
        (-COUNTS, "Normal"),
        (COUNTS + 0.5, "Normal"),
        (np.where(COUNTS == 0, np.nan, COUNTS), "NegativeBinomial"),
    ],
)
def test_the_likelihood_is_chosen_by_the_values(x, wanted):
    assert dense.guess(x) == wanted
    found = block(make(x))
    found = found.component if isinstance(found, likelihoods.Masked) else found
    assert type(found).__name__ == wanted


def test_columns_of_several_kinds():
    assert kinds(make(MIXED)) == ["Normal", "NegativeBinomial", "Bernoulli"]
    words = ["StudentT(df=4)", "b=Poisson", "c=Categorical(num_classes=2)"]
    vae = make(MIXED, likelihood=words)
    assert kinds(vae) == ["StudentT", "Poisson", "Categorical"]
    assert list(block(vae).columns) == NAMES


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["Normal", "Poisson"], "likelihood: got 'Normal' and 'Poisson', wanted one"),
        (["d=Normal"], "likelihood: got one for 'd', wanted a name of a column"),
        (["bb=Poisson"], "did you mean 'b'"),
        (["b=Poison"], r"likelihood of 'b': got 'Poison'.*did you mean 'Poisson'"),
    ],
)
def test_words_that_fit_no_column(words, message):
    with pytest.raises(ValueError, match=message):
        make(MIXED, likelihood=words)


def test_missing_numbers_are_masked():
    x = np.where(RNG.random(REAL.shape) < 0.2, np.nan, REAL)
    vae = make(x, standardize=True)
    assert isinstance(block(vae), likelihoods.Masked)
    assert isinstance(vae.encoder.layers[0], networks.FillMissing)
    vae.compile()
    assert np.isfinite(vae.evaluate(x, verbose=0)).all()
    ahead = make(REAL, likelihood=["Masked(component=Normal)"])  # They may come later.
    assert isinstance(block(ahead).component, likelihoods.Normal)
    assert np.isfinite(ahead.elbo(x)).all()


def test_standardized_columns_have_mean_0_and_sd_1_where_they_may():
    x = np.where(RNG.random(MIXED.shape) < 0.2, np.nan, MIXED)
    layer = make(x, standardize=True).preprocessing
    found = np.asarray(layer(x.astype("float32")))
    wanted = stats.zscore(x[:, 0], nan_policy="omit")
    np.testing.assert_allclose(found[:, 0], wanted, atol=1e-5)
    np.testing.assert_array_equal(found[:, 1:], x[:, 1:].astype("float32"))


def test_the_density_of_standardized_data_is_that_of_the_data_but_for_the_scale():
    """p(x) = p(y) / prod(sd), with y = (x - mean) / sd: as the page says."""
    vae = make(REAL, hidden=(), standardize=True)
    z = np.array([[0.3, -0.2]])
    p = vae.likelihood(z)
    loc, scale = np.asarray(p.mean()), np.asarray(p.stddev())
    mean, sd = REAL.mean(axis=0), REAL.std(axis=0)
    direct = stats.norm(loc * sd + mean, scale * sd).logpdf(REAL).sum(axis=1)
    scored = np.asarray(p.log_prob(vae.prepare(REAL)))
    np.testing.assert_allclose(scored - np.log(sd).sum(), direct, rtol=1e-5)


def test_scaling_is_part_of_the_model_and_can_be_undone():
    levels = RNG.integers(0, 17, (20, 4, 4)).astype("uint8")
    vae = make(levels, None, scale=16.0)
    assert isinstance(block(vae), likelihoods.Bernoulli)
    y = np.asarray(vae.preprocessing(levels))
    np.testing.assert_allclose(y, levels / 16)
    np.testing.assert_allclose(dense.original(vae, y), levels, atol=1e-5)
    vae = make(REAL, standardize=True)
    y = np.asarray(vae.preprocessing(REAL))
    np.testing.assert_allclose(dense.original(vae, y), REAL, rtol=1e-5)
    plain = make(REAL)
    assert dense.original(plain, REAL) is REAL


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (COUNTS, {"standardize": True}, "standardize: got the likelihood .*NegativeBinomial"),
        (
            REAL * [1, 0, 1] + [0, 0.1, 0],
            {"standardize": True},
            "standardize: got 'b', which is constant",
        ),
        (REAL, {"standardize": True, "scale": 2.0}, "standardize: got a scale, too"),
        (REAL, {"scale": 0.0}, "scale: got 0.0, wanted a positive number"),
        (REAL[..., None], {"standardize": True, "columns": None}, "wanted columns"),
        (REAL, {"posterior": "Nomal"}, "posterior: got 'Nomal'"),
        (REAL, {"prior": "NormalMixture"}, "prior: .*num_components"),
    ],
)
def test_what_cannot_be_made(x, options, message):
    with pytest.raises(ValueError, match=message):
        make(x, **options)


@pytest.mark.parametrize(
    ("posterior", "prior"),
    [
        ("FullRankNormal", "NormalMixture(num_components=3)"),
        pytest.param("Flow(flow=Planar(num_layers=2))", "VampPrior(num_components=4)", marks=LONG),
        pytest.param("DiagonalNormal", "Flow(flow=RealNVP(num_layers=2))", marks=LONG),
        pytest.param("Bernoulli", "Bernoulli", marks=LONG),
    ],
)
def test_posteriors_and_priors_by_name(posterior, prior):
    vae = make(REAL, posterior=posterior, prior=prior)
    vae.build((None, 3))
    assert np.isfinite(vae.elbo(REAL[:5], seed=0)).all()
    assert isinstance(vae, keras.Model)
