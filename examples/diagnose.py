"""A variational autoencoder of handwritten digits with more latent units than it uses, diagnosed.

The pixels have noise of standard deviation 0.3, the latent space has 16 units, and some of them
collapse onto the prior: what they could say is lost in the noise. `diagnose` says which, how far
the ELBO is from log p(x), and what that is due to.
"""

import argparse
import pathlib

import tf_keras as keras

from tfpvae import VAE, datasets, diagnose, likelihoods, networks, posteriors, priors

LATENT_SIZE = 16
SIZE = 64
HIDDEN = 256
SCALE = 0.3


def build(seed: int) -> VAE:
    """p(z) standard normal, q(z|x) diagonal normal, p(x|z) normal."""
    posterior = posteriors.DiagonalNormal(LATENT_SIZE)
    likelihood = likelihoods.Normal(SIZE, scale=SCALE)
    encoder = networks.mlp_encoder(SIZE, posterior.params_size, HIDDEN)
    decoder = networks.mlp_decoder(LATENT_SIZE, likelihood.params_size, HIDDEN)
    return VAE(
        priors.StandardNormal(LATENT_SIZE),
        keras.Sequential([encoder, posterior]),
        keras.Sequential([decoder, likelihood]),
        seed=seed,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--num-samples", type=int, default=2000, help="draws of z for each image")
    parser.add_argument("--num-local", type=int, default=100, help="images that split the gap")
    parser.add_argument("--seed", type=int, default=0, help="of the weights, batches and draws")
    parser.add_argument("--output", type=pathlib.Path, default="output", help="a folder")
    options = parser.parse_args()
    keras.utils.set_random_seed(options.seed)
    try:
        data = datasets.load("digits", scale=True, flatten=True)
    except ImportError as error:
        raise SystemExit(str(error)) from None
    vae = build(options.seed)
    vae.compile(keras.optimizers.Adam(1e-3))
    vae.fit(data.x_train, epochs=options.epochs, batch_size=options.batch_size)
    found = diagnose(
        vae,
        data.x_test,
        options.num_samples,
        num_local=options.num_local,
        posterior=posteriors.FullRankNormal(LATENT_SIZE),
        seed=options.seed,
    )
    print(found)

    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "diagnose.png"
    found.figure(data.y_test).savefig(path, dpi=100)
    print(f"\nthe figure is {path.resolve()}")


if __name__ == "__main__":
    main()
