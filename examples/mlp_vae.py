"""A variational autoencoder of two dense networks with two latent dimensions.

The model of the Keras tutorials (784-256-2-256-784, RMSprop, batches of 100), written as three
distributions. On MNIST: python examples/mlp_vae.py --dataset mnist --data PATH
"""

import common
import tf_keras as keras

from tfpvae import VAE, datasets, likelihoods, networks, posteriors, priors

LATENT_SIZE = 2


def build(data_size: int, seed: int) -> VAE:
    """p(z) standard normal, q(z|x) diagonal normal, p(x|z) Bernoulli."""
    posterior = posteriors.DiagonalNormal(LATENT_SIZE)
    likelihood = likelihoods.Bernoulli(data_size)
    encoder = networks.mlp_encoder(data_size, posterior.params_size)
    decoder = networks.mlp_decoder(LATENT_SIZE, likelihood.params_size)
    return VAE(
        priors.StandardNormal(LATENT_SIZE),
        keras.Sequential([encoder, posterior]),
        keras.Sequential([decoder, likelihood]),
        seed=seed,
    )


def main() -> None:
    options = common.arguments(__doc__, epochs=50, batch_size=100)
    keras.utils.set_random_seed(options.seed)
    data = datasets.load(options.dataset, options.data, scale=True, flatten=True)
    vae = build(data.x_train.shape[1], options.seed)
    vae.compile("rmsprop")
    common.fit(vae, data, options)


if __name__ == "__main__":
    main()
