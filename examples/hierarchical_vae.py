"""Two layers of latent variables, with the posterior bottom up and top down, beside one layer.

For each model it prints the bounds on log p(x) of the test images, the KL of each layer in nats,
and how many units of each layer are in use. On MNIST: python examples/hierarchical_vae.py
--dataset mnist --data PATH --epochs 30
"""

from typing import Any

import common
import numpy as np
import tf_keras as keras

from tfpvae import (
    HierarchicalVAE,
    datasets,
    diagnostics,
    likelihoods,
    objectives,
    plotting,
    posteriors,
    priors,
    schedules,
)

SIZES = (20, 8)
HIDDEN = (100, 50)


def network(hidden: int, block: keras.layers.Layer) -> keras.Sequential:
    """A dense layer, and what a block makes of it."""
    dense = keras.layers.Dense
    return keras.Sequential([dense(hidden, "tanh"), dense(block.params_size), block])


def head(size: int) -> keras.Sequential:
    """The normal distribution that features say."""
    block = posteriors.DiagonalNormal(size)
    return keras.Sequential([keras.layers.Dense(block.params_size), block])


def build(inference: str, num_layers: int, data_size: int, seed: int) -> HierarchicalVAE:
    """p(z_L) standard normal, all layers diagonal normal, p(x|z_1) Bernoulli."""
    sizes, hidden = SIZES[:num_layers], HIDDEN[:num_layers]
    if inference == "top_down":
        encoders = [
            (keras.layers.Dense(units, "tanh"), head(size))
            for units, size in zip(hidden, sizes, strict=True)
        ]
    else:
        encoders = [
            network(units, posteriors.DiagonalNormal(size))
            for units, size in zip(hidden, sizes, strict=True)
        ]
    decoders = [network(hidden[0], likelihoods.Bernoulli(data_size))]
    decoders += [
        network(units, likelihoods.Normal(size))
        for units, size in zip(hidden[1:], sizes[:-1], strict=True)
    ]
    return HierarchicalVAE(priors.StandardNormal(sizes[-1]), encoders, decoders, inference, seed)


MODELS = {
    "one layer": ("bottom_up", 1),
    "two layers, bottom up": ("bottom_up", 2),
    "two layers, top down": ("top_down", 2),
}


def main() -> None:
    options = common.arguments(__doc__, epochs=60, batch_size=64)
    data = datasets.load(options.dataset, options.data, scale=True, flatten=True)
    x_train, x_test = ((x > 0.5).astype("float32") for x in (data.x_train, data.x_test))
    steps = options.epochs * -(-len(x_train) // options.batch_size)
    shown = {}
    print("nats an image of the test set; active units of all units, layer by layer\n")
    print(f"{'':22s}{'ELBO':>9s}{'log p(x)':>10s}{'KL_1':>7s}{'KL_2':>7s}   active units")
    for title, (inference, num_layers) in MODELS.items():
        keras.utils.set_random_seed(options.seed)
        vae = build(inference, num_layers, x_train.shape[1], options.seed)
        warm_up = schedules.Linear(num_steps=max(1, steps // 4))
        vae.compile(keras.optimizers.Adam(2e-3), objective=objectives.ELBO(warm_up))
        vae.fit(x_train, epochs=options.epochs, batch_size=options.batch_size, verbose=0)
        logs = vae.evaluate(x_test, batch_size=options.batch_size, verbose=0, return_dict=True)
        evidence = vae.log_marginal_likelihood(x_test, num_samples=500, seed=1, verbose=0)
        layers = vae.split(diagnostics.activity(vae.posterior(x_train[:500]), seed=2))
        used = [f"{np.sum(layer > diagnostics.ACTIVITY)} of {len(layer)}" for layer in layers]
        kl = "".join(
            f"{logs[f'kl_{layer}']:7.2f}" if layer <= num_layers else 7 * " " for layer in (1, 2)
        )
        elbo, active = -(logs["nll"] + logs["kl"]), ", ".join(used)
        print(f"{title:22s}{elbo:9.2f}{evidence.mean:10.2f}{kl}   {active}")
        z = vae.prior().sample(10, seed=3)
        shown[title] = vae.likelihood(z).mean().numpy()

    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "hierarchical_vae.png"
    figure: Any = plotting.image_rows(shown).figure
    figure.savefig(path, dpi=150, bbox_inches="tight")
    print(f"\nimages drawn from each model are in {path.resolve()}")


if __name__ == "__main__":
    main()
