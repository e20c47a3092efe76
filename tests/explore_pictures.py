"""Trains three small models, and takes the pictures of docs/explore.md in a real browser.

`TFPVAE_DATA=FOLDER .venv/bin/python tests/explore_pictures.py --output docs/figures`, where the
folder has mnist.npz; it needs chromium and chromedriver, and takes a few minutes.
"""

import argparse
import io
import pathlib
import time

import browser
import numpy as np
import tf_keras as keras
from PIL import Image
from sklearn.datasets import load_wine

from tfpvae import VAE, datasets, explore, likelihoods, posteriors, priors

# A seven, in shares of the canvas.
SEVEN = [(0.3, 0.78), (0.68, 0.78), (0.6, 0.55), (0.5, 0.35), (0.44, 0.18)]


def model(latent_size: int, likelihood: likelihoods.Likelihood, hidden: int) -> VAE:
    """Dense networks with one hidden layer each."""
    posterior = posteriors.DiagonalNormal(latent_size)
    return VAE(
        priors.StandardNormal(latent_size),
        keras.Sequential(
            [
                keras.layers.Dense(hidden, "relu"),
                keras.layers.Dense(posterior.params_size),
                posterior,
            ]
        ),
        keras.Sequential(
            [
                keras.layers.Dense(hidden, "relu"),
                keras.layers.Dense(likelihood.params_size),
                likelihood,
            ]
        ),
        seed=0,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("output"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(0)
    mnist = datasets.load("mnist", scale=True, flatten=True)
    wine = load_wine(as_frame=True)
    table = (wine.data - wine.data.mean()) / wine.data.std()
    names = wine.target_names[wine.target]
    of_mnist = mnist.x_train, mnist.x_test, mnist.y_test
    runs = {
        "plane": (model(2, likelihoods.Bernoulli(784), 256), *of_mnist, 12, 100),
        "units": (model(50, likelihoods.Bernoulli(784), 256), *of_mnist, 6, 100),
        "table": (model(2, likelihoods.Normal(13), 32), table.to_numpy(), table, names, 300, 32),
    }
    for name, (vae, x, shown, labels, epochs, batch_size) in runs.items():
        vae.compile("adam")
        vae.fit(x, epochs=epochs, batch_size=batch_size, verbose=2 if len(x) > 1000 else 0)
        title = "wine.keras" if name == "table" else f"mnist-{vae.prior.event_shape[0]}.keras"
        server = explore.serve(vae, shown, labels, 0, False, block=False, title=title)
        with server, browser.opened(server.url, (1375, 925)) as page:
            points = np.stack([page.data("points")[key] for key in ("x", "y")], axis=-1)
            wanted = np.array([-0.6, -1.3]) if name == "table" else np.array([0.8, -0.9])
            page.click("plane", *points[np.linalg.norm(points - wanted, axis=1).argmin()])
            page.wait(lambda page=page: page.value("chosen") is not None)
            time.sleep(1)
            if name != "table":
                side = page.data("drawing images")["width"][0]
                page.drag("drawing", *(side * np.array(SEVEN)))
                time.sleep(1)
            if name == "plane":
                page.drag("plane", (0, 0), (1.2, 0.5))
                time.sleep(1)
            picture = Image.open(io.BytesIO(page.driver.get_screenshot_as_png())).convert("RGB")
            picture.quantize(200).save(options.output / f"explore_{name}.png", optimize=True)


if __name__ == "__main__":
    main()
