"""The time from a movement of the pointer to the changed picture, in the page of `explore`.

Each line is of a drag through the latent plane in a real browser, Chromium without a window, 60
movements a second: from the time stamp of the event to the moment after the picture that answers it
has been painted; and the processor time that server and browser take for a picture, which does not
depend on what else the machine does. `.venv/bin/python tests/benchmarks/explore.py` needs Linux,
chromium and chromedriver.
"""

import argparse
import json
import os
import pathlib
import sys
import time
from typing import NamedTuple

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


class Found(NamedTuple):
    """What a drag found.

    Attributes:
      asked: the number of events.
      latencies: the milliseconds until each of the pictures was there.
      server: the processor time of the server for a picture, in milliseconds.
      browser: that of all processes of the browser.
    """

    asked: int
    latencies: list[float]
    server: float
    browser: float


def processor_time(pid: int) -> float:
    """The seconds that a process and all that it started have computed."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    started = pathlib.Path(f"/proc/{pid}/task").glob("*/children")
    children = {int(child) for path in started for child in path.read_text().split()}
    return own + sum(map(processor_time, children))


def measure(model: VAE, shape: tuple[int, ...], seconds: float) -> Found:
    """Drag for so long."""
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
        pid = page.driver.service.process.pid
        before = time.process_time(), processor_time(pid)
        start = time.monotonic()
        for k in range(round(seconds * RATE)):
            angle = 2 * np.pi * k / (2 * RATE)
            offset = radius * np.array([np.sin(angle), np.sin(1.7 * angle)])
            page.pointer("mouseMoved", *(centre + offset))
            time.sleep(max(0.0, start + (k + 1) / RATE - time.monotonic()))
        after = time.process_time(), processor_time(pid)
        page.pointer("mouseReleased", *centre)
        time.sleep(1.0)
        asked, latencies = page.run("return [window.asked, window.latencies]")
    server, browser_time = (np.array(after) - before) * 1000 / len(latencies)
    return Found(asked, latencies, server, browser_time)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each drag")
    parser.add_argument("--json", type=pathlib.Path, help="write the milliseconds to a file")
    options = parser.parse_args()
    found = {}
    heads = "model", "events", "pictures", "median ms", "95 % ms", "server ms", "browser ms"
    print("{:32s}{:>8s}{:>10s}{:>11s}{:>9s}{:>11s}{:>12s}".format(*heads))
    for name, (make, shape) in MODELS.items():
        found[name] = run = measure(make(), shape, options.seconds)
        median, most = np.quantile(run.latencies, [0.5, 0.95])
        times = f"{median:11.1f}{most:9.1f}{run.server:11.1f}{run.browser:12.1f}"
        print(f"{name:32s}{run.asked:8d}{len(run.latencies):10d}{times}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
