"""The family of deep latent Gaussian models: named members, made of the library's public parts.

Each function returns an uncompiled model: `compile` and `fit` it, or take it as a pattern for one
of your own. What is learned can be read off its distributions: `vae.prior()`, `vae.posterior(x)`,
`vae.likelihood(z)`.

Source: Rezende, Mohamed and Wierstra, "Stochastic Backpropagation and Approximate Inference in Deep
Generative Models", 2014, who list the members.
"""

import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tf_keras as keras

from tfpvae import blocks, checks, likelihoods, networks, posteriors, priors
from tfpvae.hierarchical import HierarchicalVAE
from tfpvae.models import VAE


def factor_analysis(
    event_shape: Any,
    latent_size: int,
    *,
    posterior: Callable[..., Any] = posteriors.FullRankNormal,
    seed: int | None = None,
) -> VAE:
    r"""Make a factor analysis: the data are linear in z, with noise of its own in each entry.

    $$ z \sim \mathcal N(0, I_K), \qquad x = W z + b + \varepsilon, \qquad
       \varepsilon \sim \mathcal N(0, \Psi), \quad \Psi = \operatorname{diag}(\psi_1, \dots) $$

    so that p(x) = N(x; b, W W' + Psi), and the exact posterior is

    $$ p(z \mid x) = \mathcal N\bigl(z;\ C\, W^\top \Psi^{-1} (x - b),\ C\bigr), \qquad
       C = (I + W^\top \Psi^{-1} W)^{-1} $$

    The encoder is of that form, a mean that is linear in x and a covariance that is the same for
    all x, so with the full-rank posterior the ELBO reaches log p(x), and training is maximum
    likelihood. W is determined up to a rotation. A diagonal posterior is exact for one rotation
    only, which training finds.

    A constant entry of x has no noise, and a likelihood without bound: leave it out.

    Args:
      event_shape: shape of x, a tuple or a size.
      latent_size: the number K of factors, fewer than there are entries of x.
      posterior: what makes the posterior block of a size K, a class of `tfpvae.posteriors` with a
        parameter `loc`.
      seed: of the model's noise, see `VAE`.

    Raises:
      TypeError, ValueError: for sizes that are none or do not fit, or a posterior without a `loc`.

    Example:
      >>> vae = factor_analysis(5, latent_size=2)
      >>> vae.likelihood(tf.zeros([1, 2])).stddev().numpy().round(3)  # the square roots of Psi
      array([[0.693, 0.693, 0.693, 0.693, 0.693]], dtype=float32)
      >>> b = vae.likelihood(tf.zeros([1, 2])).mean()
      >>> w = tf.transpose(vae.likelihood(tf.eye(2)).mean() - b)
      >>> w.shape
      TensorShape([5, 2])

    Source: Spearman, "'General Intelligence,' Objectively Determined and Measured", 1904; Rubin and
    Thayer, "EM Algorithms for ML Factor Analysis", 1982.
    """
    return _linear_gaussian(event_shape, latent_size, False, posterior, seed)


def probabilistic_pca(
    event_shape: Any,
    latent_size: int,
    *,
    posterior: Callable[..., Any] = posteriors.FullRankNormal,
    seed: int | None = None,
) -> VAE:
    r"""Make a probabilistic principal component analysis: factor analysis with one noise for all.

    $$ z \sim \mathcal N(0, I_K), \qquad x = W z + b + \varepsilon, \qquad
       \varepsilon \sim \mathcal N(0, \sigma^2 I) $$

    At the maximum of the likelihood the columns of W span the K principal components, sigma^2 is
    the mean of the other eigenvalues of the covariance of x, and the model covariance W W' +
    sigma^2 I has the eigenvalues and eigenvectors of it otherwise. Everything else is as in
    `factor_analysis`.

    Args:
      event_shape: shape of x, a tuple or a size.
      latent_size: the number K of components, fewer than there are entries of x.
      posterior: what makes the posterior block of a size K, a class of `tfpvae.posteriors` with a
        parameter `loc`.
      seed: of the model's noise, see `VAE`.

    Raises:
      TypeError, ValueError: for sizes that are none or do not fit, or a posterior without a `loc`.

    Example:
      >>> vae = probabilistic_pca(5, latent_size=2)
      >>> sum(weight.shape.num_elements() for weight in vae.decoder.weights)  # W, b and sigma
      16

    Source: Tipping and Bishop, "Probabilistic Principal Component Analysis", 1999.
    """
    return _linear_gaussian(event_shape, latent_size, True, posterior, seed)


def logistic_factor_analysis(
    event_shape: Any,
    latent_size: int,
    *,
    hidden_units: Any = (64,),
    activation: Any = "tanh",
    posterior: Callable[..., Any] = posteriors.FullRankNormal,
    seed: int | None = None,
) -> VAE:
    r"""Make a logistic factor analysis: binary data whose logits are linear in z.

    $$ z \sim \mathcal N(0, I_K), \qquad
       x_i \sim \operatorname{Bernoulli}\bigl(\operatorname{sigmoid}(w_i^\top z + b_i)\bigr) $$

    The exact posterior is not Gaussian, but has one mode and tails no heavier than the prior's.

    Args:
      event_shape: shape of x, a tuple or a size.
      latent_size: the number K of factors.
      hidden_units: sizes of the hidden layers of the encoder, () for none.
      activation: of the hidden layers, as in Keras.
      posterior: what makes the posterior block of a size K, such as a class of
        `tfpvae.posteriors`.
      seed: of the model's noise, see `VAE`.

    Raises:
      TypeError, ValueError: for sizes that are none.

    Example:
      >>> vae = logistic_factor_analysis(5, latent_size=2)
      >>> vae.likelihood(tf.zeros([1, 2])).mean().numpy()
      array([[0.5, 0.5, 0.5, 0.5, 0.5]], dtype=float32)

    Source: Bartholomew, "Factor Analysis for Categorical Data", 1980; Tipping, "Probabilistic
    Visualisation of High-Dimensional Binary Data", 1999.
    """
    shape, size = _event_shape(event_shape), checks.positive_integer("latent_size", latent_size)
    likelihood = likelihoods.Bernoulli(shape)
    decoder = [
        keras.Input((size,), dtype=blocks.full_precision(None)),
        keras.layers.Dense(likelihood.params_size),
        likelihood,
    ]
    return _model(
        shape,
        priors.StandardNormal(size),
        _encoders(shape, hidden_units, activation, [_posterior(posterior, size)]),
        [keras.Sequential(decoder)],
        seed,
    )


def nonlinear_factor_analysis(
    event_shape: Any,
    latent_size: int,
    *,
    hidden_units: Any = (64,),
    activation: Any = "tanh",
    posterior: Callable[..., Any] = posteriors.FullRankNormal,
    seed: int | None = None,
) -> VAE:
    r"""Make a nonlinear factor analysis: a network takes the place of the loadings.

    $$ z \sim \mathcal N(0, I_K), \qquad x = f(z) + \varepsilon, \qquad
       \varepsilon \sim \mathcal N(0, \Psi), \quad \Psi = \operatorname{diag}(\psi_1, \dots) $$

    with a fully connected network f. The noise is learned and does not depend on z.

    Args:
      event_shape: shape of x, a tuple or a size.
      latent_size: the number K of factors.
      hidden_units: sizes of the hidden layers of f, and, in reversed order, of the encoder.
      activation: of the hidden layers, as in Keras.
      posterior: what makes the posterior block of a size K, such as a class of
        `tfpvae.posteriors`.
      seed: of the model's noise, see `VAE`.

    Raises:
      TypeError, ValueError: for sizes that are none.

    Example:
      >>> vae = nonlinear_factor_analysis(5, latent_size=1, hidden_units=(16, 32))
      >>> curve = vae.likelihood(tf.linspace([-2.0], [2.0], 100)).mean()
      >>> curve.shape
      TensorShape([100, 5])

    Source: Lappalainen and Honkela, "Bayesian Non-Linear Independent Component Analysis by
    Multi-Layer Perceptrons", 2000.
    """
    shape, size = _event_shape(event_shape), checks.positive_integer("latent_size", latent_size)
    hidden, num = blocks.as_shape("hidden_units", hidden_units), math.prod(shape)
    network = networks.mlp_decoder(size, num, hidden, activation)
    decoder = [network, networks.AppendParameters(num), likelihoods.Normal(shape)]
    return _model(
        shape,
        priors.StandardNormal(size),
        _encoders(shape, hidden[::-1], activation, [_posterior(posterior, size)]),
        [keras.Sequential(decoder)],
        seed,
    )


def nonlinear_gaussian_belief_network(
    event_shape: Any,
    latent_sizes: Any,
    *,
    hidden_units: Any = (64,),
    activation: Any = "tanh",
    posterior: Callable[..., Any] = posteriors.DiagonalNormal,
    seed: int | None = None,
) -> VAE:
    r"""Make a nonlinear Gaussian belief network: layers of units that add up what those above say.

    $$ z_L \sim \mathcal N(b_L, \Psi_L), \qquad
       z_l = W_l\, f(z_{l+1}) + b_l + \varepsilon_l, \qquad
       x = W_0\, f(z_1) + b_0 + \varepsilon_0, \qquad
       \varepsilon_l \sim \mathcal N(0, \Psi_l) $$

    with diagonal covariances Psi, all learned, and a nonlinearity f of each unit. The encoder of a
    layer, q(z_1 | x), q(z_2 | z_1), ..., is a fully connected network.

    Args:
      event_shape: shape of x, a tuple or a size.
      latent_sizes: the numbers of units of the layers, from z_1, which is next to the data, upwards
        to z_L; a size for a single layer.
      hidden_units: sizes of the hidden layers of each encoder, () for none.
      activation: f, and that of the encoders' hidden layers, as in Keras; `"relu"` makes it a
        rectified Gaussian belief network.
      posterior: what makes the posterior block of each layer's size, such as a class of
        `tfpvae.posteriors`.
      seed: of the model's noise, see `VAE`.

    Returns:
      A `VAE`, or a `HierarchicalVAE` if there are several layers.

    Raises:
      TypeError, ValueError: for sizes that are none.

    Example:
      >>> vae = nonlinear_gaussian_belief_network(5, latent_sizes=(4, 2), seed=0)
      >>> vae.sample(10, seed=0).shape
      (10, 5)

    Source: Frey and Hinton, "Variational Learning in Nonlinear Gaussian Belief Networks", 1999.
    """
    shape, sizes = _event_shape(event_shape), _latent_sizes(latent_sizes)
    activation = checks.made("activation", keras.activations.get, activation)
    checks.made("activation", activation, tf.zeros([1]))

    def generate(size: int, block: Any) -> Any:
        num = math.prod(block.event_shape)
        return keras.Sequential(
            [
                keras.Input((size,), dtype=blocks.full_precision(None)),
                keras.layers.Activation(activation),
                keras.layers.Dense(num),
                networks.AppendParameters(num),
                block,
            ]
        )

    return _model(
        shape,
        priors.Normal(sizes[-1]),
        _encoders(shape, hidden_units, activation, [_posterior(posterior, size) for size in sizes]),
        [
            generate(size, block)
            for size, block in zip(
                sizes,
                [likelihoods.Normal(shape), *map(posteriors.DiagonalNormal, sizes[:-1])],
                strict=True,
            )
        ],
        seed,
    )


def sigmoid_belief_network(
    event_shape: Any,
    latent_sizes: Any,
    *,
    hidden_units: Any = (),
    activation: Any = "tanh",
    seed: int | None = None,
) -> VAE:
    r"""Make a sigmoid belief network: layers of bits whose logits are linear in the layer above.

    $$ z_L \sim \operatorname{Bernoulli}(\operatorname{sigmoid}(b_L)), \qquad
       z_l \sim \operatorname{Bernoulli}(\operatorname{sigmoid}(W_l z_{l+1} + b_l)), \qquad
       x \sim \operatorname{Bernoulli}(\operatorname{sigmoid}(W_0 z_1 + b_0)) $$

    Without hidden units the encoders are a sigmoid belief network, too, that goes upwards: the
    whole is a Helmholtz machine. Bits have no reparameterization: compile it with
    `IWAE(5, "score_function")` (VIMCO), `ELBO(num_samples=5, estimator="score_function")` or
    `ReweightedWakeSleep(5)` of `tfpvae.objectives`; a few bits can be summed over,
    `ELBO(estimator="enumerated")`.

    Args:
      event_shape: shape of x, a tuple or a size.
      latent_sizes: the numbers of bits of the layers, from z_1, which is next to the data, upwards
        to z_L; a size for a single layer.
      hidden_units: sizes of the hidden layers of each encoder, () for none.
      activation: of the encoders' hidden layers, as in Keras.
      seed: of the model's noise, see `VAE`.

    Returns:
      A `VAE`, or a `HierarchicalVAE` if there are several layers.

    Raises:
      TypeError, ValueError: for sizes that are none.

    Example:
      >>> from tfpvae import objectives
      >>> network = sigmoid_belief_network(5, latent_sizes=(4, 2), seed=0)
      >>> network.compile("adam", objective=objectives.IWAE(5, "score_function"))
      >>> np.unique(network.sample(10, seed=0)).tolist()
      [0.0, 1.0]

    Source: Neal, "Connectionist Learning of Belief Networks", 1992; Hinton, Dayan, Frey and Neal,
    "The Wake-Sleep Algorithm for Unsupervised Neural Networks", 1995 (the Helmholtz machine).
    """
    shape, sizes = _event_shape(event_shape), _latent_sizes(latent_sizes)
    below = [likelihoods.Bernoulli(shape), *map(posteriors.Bernoulli, sizes[:-1])]
    return _model(
        shape,
        priors.Bernoulli(sizes[-1]),
        _encoders(shape, hidden_units, activation, [*map(posteriors.Bernoulli, sizes)]),
        [
            keras.Sequential(
                [
                    keras.Input((size,), dtype=blocks.full_precision(None)),
                    keras.layers.Dense(block.params_size),
                    block,
                ]
            )
            for size, block in zip(sizes, below, strict=True)
        ],
        seed,
    )


def _linear_gaussian(
    event_shape: Any, latent_size: int, shared: bool, posterior: Any, seed: int | None
) -> VAE:
    """Factor analysis, or with one noise for all entries probabilistic PCA."""
    shape, size = _event_shape(event_shape), checks.positive_integer("latent_size", latent_size)
    num = math.prod(shape)
    if size >= num:
        raise ValueError(
            f"latent_size: got {size}, wanted less than the {num} entries of x: so many explain "
            "all of it without noise"
        )
    block = _posterior(posterior, size)
    if len(block.free) < 2 or (block.free[0].name, block.free[0].size) != ("loc", size):
        raise ValueError(
            f"posterior: got {block.title()}, whose parameters are "
            f"{[parameter.name for parameter in block.free]}, wanted a loc and then a scale, as of "
            "posteriors.FullRankNormal: the one is linear in x, the other the same for all x"
        )
    encoder = [
        keras.Input(shape, dtype=blocks.full_precision(None)),
        *([keras.layers.Flatten()] if len(shape) > 1 else []),
        keras.layers.Dense(size),
        networks.AppendParameters(block.params_size - size),
        block,
    ]
    decoder = [
        keras.Input((size,), dtype=blocks.full_precision(None)),
        keras.layers.Dense(num),
        networks.AppendParameters(num, shared),
        likelihoods.Normal(shape),
    ]
    return _model(
        shape,
        priors.StandardNormal(size),
        [keras.Sequential(encoder)],
        [keras.Sequential(decoder)],
        seed,
    )


def _encoders(
    shape: tuple[int, ...], hidden_units: Any, activation: Any, above: list[Any]
) -> list[Any]:
    """The q(z_1|x), q(z_2|z_1), ... of these blocks: fully connected networks."""
    hidden = blocks.as_shape("hidden_units", hidden_units)
    shapes = [shape, *(block.event_shape for block in above[:-1])]
    return [
        keras.Sequential(
            [networks.mlp_encoder(below, block.params_size, hidden, activation), block]
        )
        for below, block in zip(shapes, above, strict=True)
    ]


def _model(
    shape: tuple[int, ...], prior: Any, encoders: list[Any], decoders: list[Any], seed: int | None
) -> VAE:
    """The model of one layer of latent variables, or of several, with its weights."""
    if len(encoders) == 1:
        vae = VAE(prior, encoders[0], decoders[0], seed=seed)
    else:
        vae = HierarchicalVAE(prior, encoders, decoders, seed=seed)
    vae.build((None, *shape))
    return vae


def _event_shape(event_shape: Any) -> tuple[int, ...]:
    shape = blocks.as_shape("event_shape", event_shape)
    if not shape:
        raise ValueError("event_shape: got (), wanted a size or a tuple of sizes: (1,) for numbers")
    return shape


def _latent_sizes(latent_sizes: Any) -> tuple[int, ...]:
    sizes = blocks.as_shape("latent_sizes", latent_sizes)
    if not sizes:
        raise ValueError("latent_sizes: got (), wanted a size or a tuple of sizes, one a layer")
    return sizes


def _posterior(posterior: Any, size: int) -> Any:
    """A posterior block of this size."""
    makes = callable(posterior) and not isinstance(posterior, keras.layers.Layer)
    block = posterior(size) if makes else None
    if not isinstance(block, blocks.Block):
        raise TypeError(
            f"posterior: got {posterior!r}, wanted a class of tfpvae.posteriors, or a function "
            "that makes a block of a size"
        )
    return block
