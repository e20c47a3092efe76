"""A variational autoencoder of two convolutional networks with two latent dimensions.

Adam, batches of 32, and early stopping once the test loss has not improved for two epochs.
On MNIST: python examples/conv_vae.py --dataset mnist --data PATH
"""

import common
import tf_keras as keras

from tfpvae import VAE, datasets, likelihoods, networks, posteriors, priors

LATENT_SIZE = 2


def build(image_shape: tuple[int, int, int], seed: int) -> VAE:
    """p(z) standard normal, q(z|x) diagonal normal, p(x|z) Bernoulli for each pixel."""
    posterior = posteriors.DiagonalNormal(LATENT_SIZE)
    return VAE(
        priors.StandardNormal(LATENT_SIZE),
        keras.Sequential([networks.conv_encoder(image_shape, posterior.params_size), posterior]),
        keras.Sequential(
            [networks.conv_decoder(LATENT_SIZE, image_shape), likelihoods.Bernoulli(image_shape)]
        ),
        seed=seed,
    )


def main() -> None:
    options = common.arguments(__doc__, epochs=100, batch_size=32)
    keras.utils.set_random_seed(options.seed)
    data = datasets.load(options.dataset, options.data, scale=True)
    data = data._replace(x_train=data.x_train[..., None], x_test=data.x_test[..., None])
    vae = build(data.x_train.shape[1:], options.seed)
    vae.compile("adam")
    stop = keras.callbacks.EarlyStopping("val_loss", patience=2, restore_best_weights=True)
    common.fit(vae, data, options, callbacks=[stop])


if __name__ == "__main__":
    main()
