"""The time from a movement of the pointer to the changed picture, in the page of `explore`.

Each line is of a drag through the latent plane in a real browser, Chromium without a window, 60
movements a second: from the time stamp of the event to the moment after the picture that answers it
has been painted. `.venv/bin/python tests/benchmarks/explore.py` needs chromium and chromedriver.
"""

import argparse
import json
import pathlib
import sys
import time

import numpy as np
import tf_keras as keras

from tfpvae import VAE, explore, likelihoods, networks, posteriors, priors

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import browser

RATE = 60

# Which event a picture answers is told by where it was: the code that comes with the picture.
RECORD = """
const named = (name) => Bokeh.documents[0].get_model_by_name(name)
const plane = named("plane"), sent = named("sent")
window.asked = 0; window.latencies = []
const times = new Map()
let stamp = 0
const [across, up] = arguments
window.addEventListener("pointermove", (event) => { stamp = event.timeStamp }, true)
plane.on_event("pan", (event) => { window.asked++; times.set(`${event.x} ${event.y}`, stamp) })
sent.properties.data.change.connect(() => {
  const z = sent.data.z[0], asked = times.get(`${z[across]} ${z[up]}`)
  if (asked == null) return
  requestAnimationFrame(() => setTimeout(() => latencies.push(performance.now() - asked)))
})
"""


def dense(latent_size: int) -> VAE:
    """784-256-D-256-784, Bernoulli pixels."""
    posterior, likelihood = posteriors.DiagonalNormal(latent_size), likelihoods.Bernoulli(784)
    return VAE(
        priors.StandardNormal(latent_size),
        keras.Sequential([networks.mlp_encoder(784, posterior.params_size), posterior]),
        keras.Sequential([networks.mlp_decoder(latent_size, likelihood.params_size), likelihood]),
        seed=0,
    )


def convolutional(latent_size: int) -> VAE:
    """The networks of examples/conv_vae.py."""
    shape, posterior = (28, 28, 1), posteriors.DiagonalNormal(latent_size)
    decoder = networks.conv_decoder(latent_size, shape)
    return VAE(
        priors.StandardNormal(latent_size),
        keras.Sequential([networks.conv_encoder(shape, posterior.params_size), posterior]),
        keras.Sequential([decoder, likelihoods.Bernoulli(shape)]),
        seed=0,
    )


MODELS = {
    "dense, 2 latent units": (lambda: dense(2), (784,)),
    "dense, 50 latent units": (lambda: dense(50), (784,)),
    "convolutional, 2 latent units": (lambda: convolutional(2), (28, 28, 1)),
}


def measure(model: VAE, shape: tuple[int, ...], seconds: float) -> tuple[int, np.ndarray]:
    """The number of events, and the milliseconds until each of the pictures."""
    model.build((None, *shape))
    x = np.random.default_rng(0).uniform(size=(2000, *shape)).astype("float32")
    with (
        explore.serve(model, x, np.arange(2000) % 10, 0, False, block=False) as server,
        browser.opened(server.url) as page,
    ):
        units = [int(page.value(name)) for name in ("across", "up")]
        page.run(RECORD, *units)
        low, high = page.position("plane", -2.5, -2.5), page.position("plane", 2.5, 2.5)
        centre, radius = (low + high) / 2, np.abs(high - low).min() / 2
        page.pointer("mousePressed", *centre)
        start = time.monotonic()
        for k in range(round(seconds * RATE)):
            angle = 2 * np.pi * k / (2 * RATE)
            offset = radius * np.array([np.sin(angle), np.sin(1.7 * angle)])
            page.pointer("mouseMoved", *(centre + offset))
            time.sleep(max(0.0, start + (k + 1) / RATE - time.monotonic()))
        page.pointer("mouseReleased", *centre)
        time.sleep(1.0)
        asked, latencies = page.run("return [window.asked, window.latencies]")
    return asked, np.array(latencies)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each drag")
    parser.add_argument("--json", type=pathlib.Path, help="write the milliseconds to a file")
    options = parser.parse_args()
    found = {}
    print(f"{'model':32s}{'events':>8s}{'pictures':>10s}{'median ms':>11s}{'95 % ms':>9s}")
    for name, (make, shape) in MODELS.items():
        asked, latencies = measure(make(), shape, options.seconds)
        found[name] = latencies.tolist()
        median, most = np.quantile(latencies, [0.5, 0.95])
        print(f"{name:32s}{asked:8d}{len(latencies):10d}{median:11.1f}{most:9.1f}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
