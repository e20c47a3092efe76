"""What the examples share: their options, and the pictures they leave behind."""

import argparse
import json
import pathlib
from typing import Any

import numpy as np
import tf_keras as keras

from tfpvae import VAE, datasets, plotting


def arguments(description: str, **defaults: Any) -> argparse.Namespace:
    """The command line of an example."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--dataset", choices=("digits", "mnist"), default="digits")
    parser.add_argument("--data", help="an mnist.npz file or the folder that holds it")
    parser.add_argument("--epochs", type=int, default=defaults["epochs"])
    parser.add_argument("--batch-size", type=int, default=defaults["batch_size"])
    parser.add_argument("--seed", type=int, default=0, help="of the weights, batches and draws")
    parser.add_argument("--output", type=pathlib.Path, default="output", help="a folder")
    return parser.parse_args()


def fit(vae: VAE, data: datasets.Dataset, options: argparse.Namespace, **kwargs: Any) -> Any:
    """Train on the options' schedule and write pictures, history and model to their folder."""
    options.output.mkdir(parents=True, exist_ok=True)
    history = vae.fit(
        data.x_train,
        epochs=options.epochs,
        batch_size=options.batch_size,
        validation_data=data.x_test,
        **kwargs,
    ).history
    write(vae, data, history, options.output)
    losses = vae.evaluate(data.x_test, batch_size=options.batch_size, verbose=0, return_dict=True)
    print("test", ", ".join(f"{name} {value:.2f}" for name, value in losses.items()), "nats")
    print(f"figures, history.json and model.keras are in {options.output.resolve()}")
    return history


def write(vae: VAE, data: datasets.Dataset, history: dict[str, Any], folder: pathlib.Path) -> None:
    """The pictures, the history and the model."""
    z = vae.posterior(data.x_test).mean().numpy()
    shown = data.x_test[:10]
    grid = plotting.prior_grid(20)
    axes = {
        "convergence": plotting.convergence(history),
        "latent_plane": plotting.latent_plane(z, data.y_test),
        "manifold": plotting.manifold(vae.likelihood(grid).mean().numpy(), z=grid),
        "reconstructions": plotting.reconstructions(shown, vae.reconstruct(shown, seed=0)),
    }
    for name, ax in axes.items():
        figure: Any = ax.figure
        figure.savefig(folder / f"{name}.png", dpi=150, bbox_inches="tight")
    (folder / "history.json").write_text(json.dumps(history, default=np.ndarray.tolist))
    vae.save(folder / "model.keras")
    assert isinstance(keras.models.load_model(folder / "model.keras"), VAE)
