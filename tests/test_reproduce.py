"""Published experiments: their schedule, bits and networks; stopping, killing and going on."""

import itertools
import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from scipy import special, stats

from tfpvae import VAE, datasets, noise, objectives, reproduce

# 8 stages, 933 steps on the digits: 13.1 epochs of 71 steps.
SETTINGS = {"dataset": "digits", "share": 0.004, "num_samples": 2000, "num_test": 20}
NAME, SEED, STEPS = "burda-iwae-k5", 3, 933


def run(output, **kwargs):
    kwargs = {"seeds": [SEED], "verbose": False} | SETTINGS | kwargs
    return reproduce.reproduce(NAME, output=output, **kwargs)


@pytest.fixture(scope="module")
def images():
    return reproduce._Images.load("digits", None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("whole")


@pytest.fixture(scope="module")
def report(folder):
    """A run that nothing stops."""
    return run(folder)


@pytest.fixture(scope="module")
def trained(report, folder):
    return keras.models.load_model(folder / NAME / f"seed-{SEED}" / f"step-{STEPS}.keras")


# The schedule.


def test_the_schedule_is_that_of_the_paper():
    stages = reproduce.schedule(3000)
    rates, steps = np.transpose(stages)
    np.testing.assert_array_equal(steps, 3000 * 3 ** np.arange(8))
    assert steps.sum() == 3280 * 3000
    np.testing.assert_allclose(np.log10(rates), np.linspace(-3, -4, 8))
    # The authors' program rounds the rates.
    rounded = [1e-4 * round(10 ** (1 - i / 7), 1) for i in range(8)]
    np.testing.assert_allclose(rates, rounded, rtol=0.02)


@pytest.mark.parametrize("share", [1.0, 0.1, 0.003, 1e-6])
def test_a_share_shortens_every_stage(share):
    whole, part = reproduce.schedule(3000), reproduce.schedule(3000, share)
    assert [rate for rate, _ in part] == [rate for rate, _ in whole]
    for (_, steps), (_, all_steps) in zip(part, whole, strict=True):
        assert steps >= 1
        assert steps == 1 or abs(steps - share * all_steps) <= 0.5


# The bits.


def test_a_pixel_is_one_with_the_probability_of_its_level(images):
    levels = np.tile(np.arange(17, dtype=np.uint8), (20_000, 1))
    bits = images.bits(levels, np.random.default_rng(1))
    assert bits.dtype == np.uint8
    counts = bits.sum(axis=0)
    assert counts[0] == 0
    assert counts[16] == 20_000
    for level in range(1, 16):
        assert stats.binomtest(int(counts[level]), 20_000, level / 16).pvalue > 1e-4


def test_bits_of_bytes_have_their_mean():
    x = np.full((1000, 3), (0, 100, 255), np.uint8)
    sizes = reproduce._DATASETS["mnist"]
    bits = reproduce._Images(x, x, sizes, "").bits(x, np.random.default_rng(0))
    assert set(bits[:, 0]) == {0}
    assert set(bits[:, 2]) == {1}
    assert stats.binomtest(int(bits[:, 1].sum()), 1000, 100 / 255).pvalue > 1e-4


def test_an_epoch_is_all_images_once_in_another_order_with_other_bits(images):
    """With images that are binary the bits are the images, and can be told apart."""
    size = 40
    codes = ((np.arange(size)[:, None] >> np.arange(8)) & 1).astype(np.uint8)
    binary = reproduce._Images(codes * 16, codes, images.sizes, "")
    orders = []
    for epoch in range(3):
        bits = binary.batches(SEED, 2 * epoch, 2 * epoch + 2)
        orders.append((bits << np.arange(8)).sum(axis=1).tolist())
        assert sorted(orders[-1]) == list(range(size))
    assert orders[0] != orders[1] != orders[2]
    once, again = (images.batches(SEED, 71 * epoch, 71 * epoch + 71) for epoch in (0, 1))
    # Each image has levels in between, which no two epochs binarize alike.
    assert len(np.unique(np.concatenate([once, again]), axis=0)) > 2800


def test_the_batches_of_a_step_do_not_depend_on_the_others(images):
    whole = images.batches(SEED, 0, 150)
    assert whole.shape == (150 * 20, 64)
    for cuts in ([0, 71, 142, 150], [0, 3, 100, 150], [0, 149, 150]):
        parts = [images.batches(SEED, a, b) for a, b in itertools.pairwise(cuts)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert (images.batches(SEED + 1, 0, 150) != whole).any()


# The model.


def test_the_networks_are_those_of_the_paper():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (50, 784), dtype=np.uint8) * (rng.random(784) < 0.5).astype(np.uint8)
    images = reproduce._Images(x, x, reproduce._DATASETS["mnist"], "")
    vae = reproduce._build(reproduce._find("burda-vae-k50"), images, seed=0)
    sizes = [(784, 200), (200, 200), (200, 100), (50, 200), (200, 200), (200, 784)]
    kernels = [w.numpy() for w in vae.trainable_weights if w.shape.rank == 2]
    assert [kernel.shape for kernel in kernels] == sizes
    for kernel in kernels:  # Uniform, as Glorot and Bengio have it, and none like another.
        limit = np.sqrt(6 / sum(kernel.shape))
        assert stats.kstest(kernel.ravel(), stats.uniform(-limit, 2 * limit).cdf).pvalue > 1e-4
    assert np.corrcoef(kernels[1].ravel(), kernels[4].ravel())[0, 1] < 0.05
    *biases, pixels = [w.numpy() for w in vae.trainable_weights if w.shape.rank == 1]
    assert not any(bias.any() for bias in biases)
    mean = np.clip(x.mean(axis=0) / 255, 0.001, 0.999)
    np.testing.assert_allclose(special.expit(pixels), mean, rtol=1e-4)
    tanh = [layer.activation for n in (vae.encoder, vae.decoder) for layer in n.layers[:2]]
    assert tanh == [keras.activations.tanh] * 4
    optimizer = vae.optimizer.get_config()
    assert (optimizer["beta_1"], optimizer["beta_2"], optimizer["epsilon"]) == (0.9, 0.999, 1e-4)
    assert vae.objective.num_samples == 50
    assert type(vae.objective) is objectives.ELBO


def test_the_networks_of_two_layers_are_those_of_the_paper():
    x = np.tile(np.arange(256, dtype=np.uint8), 784 * 2)[: 784 * 256].reshape(256, 784)
    images = reproduce._Images(x, x, reproduce._DATASETS["mnist"], "")
    vae = reproduce._build(reproduce._find("burda-iwae-2-k5"), images, seed=0)
    assert vae.event_shapes == [(100,), (50,)]
    shapes = [tuple(w.shape) for w in vae.trainable_weights if w.shape.rank == 2]
    assert shapes == [
        *((50, 100), (100, 100), (100, 200)),  # p(z_1|z_2)
        *((784, 200), (200, 200), (200, 200)),  # q(z_1|x)
        *((100, 100), (100, 100), (100, 100)),  # q(z_2|z_1)
        *((100, 200), (200, 200), (200, 784)),  # p(x|z_1)
    ]
    kernels = {w.numpy().tobytes() for w in vae.trainable_weights if w.shape.rank == 2}
    assert len(kernels) == len(shapes)
    dense = [layer for layer in vae.submodules if isinstance(layer, keras.layers.Dense)]
    tanh = [layer for layer in dense if layer.activation is keras.activations.tanh]
    assert (len(dense), len(tanh)) == (12, 8)
    assert vae.objective.get_config() == objectives.IWAE(5).get_config()


@pytest.mark.long
def test_two_layers_are_scored_and_their_units_counted(tmp_path):
    settings = SETTINGS | {"num_samples": 200, "seeds": [SEED], "verbose": False}
    report = reproduce.reproduce("burda-vae-2-k5", output=tmp_path, **settings)
    (result,) = report.results
    path = tmp_path / "burda-vae-2-k5" / f"seed-{SEED}" / f"step-{STEPS}.keras"
    vae = keras.models.load_model(path)
    images = reproduce._Images.load("digits", None)
    rng = np.random.default_rng(0)
    x = images.bits(images.test, rng)[:20]
    assert result.negative_elbo == pytest.approx(-vae.elbo(x, 200, seed=5).mean(), abs=0.3)
    assert result.nll < result.negative_elbo
    shown = images.bits(images.train[:500], rng)
    means = vae.posterior(shown).sample(2000, seed=9).numpy().mean(axis=0)
    active = means.var(axis=0) > 0.01 + 1 / 2000
    assert result.active_by_layer == pytest.approx((active[:20].sum(), active[20:].sum()), abs=1)
    assert result.active_units == sum(result.active_by_layer)
    assert f" {result.active_by_layer[0]}+{result.active_by_layer[1]} " in str(report)
    assert json.loads((tmp_path / "burda-vae-2-k5" / "results.json").read_text())["mean"] > 0
    again = reproduce.reproduce("burda-vae-2-k5", output=tmp_path, **settings)
    assert again.results == report.results


def test_with_one_draw_both_bounds_are_the_same(images):
    """As the paper says; so VAE and IWAE differ in the bound and in nothing else."""
    gradients = []
    for bound in ("ELBO", "IWAE"):
        set_up = reproduce.SetUp("x", bound, 1, 0.0, 0, 0.0)
        vae = reproduce._build(set_up, images, seed=1)
        with noise.fixed(5), tf.GradientTape() as tape:
            x = vae.prepare(images.batches(0, 0, 2))
            loss = tf.reduce_mean(vae.example_losses(x, x, training=True)[0])
        gradients.append(tape.gradient(loss, vae.trainable_weights))
    for one, other in zip(*gradients, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


# The results.


def numpy_networks(vae):
    """The encoder and the decoder, written down again."""
    weights = [w.numpy().astype("float64") for w in vae.trainable_weights]

    def network(x, first):
        for i in (first, first + 2):
            x = np.tanh(x @ weights[i] + weights[i + 1])
        return x @ weights[first + 4] + weights[first + 5]

    def encode(x):
        loc, log_scale = np.split(network(x, 0), 2, axis=-1)
        return loc, np.exp(log_scale)

    return encode, lambda z: network(z, 6)


@pytest.mark.long
def test_results_are_those_of_importance_sampling_by_hand(report, trained, images):
    encode, decode = numpy_networks(trained)
    rng = np.random.default_rng(0)
    test = rng.integers(16, size=images.test.shape, dtype=np.uint8) < images.test
    shown = rng.integers(16, size=(500, 64), dtype=np.uint8) < images.train[:500]
    x = test[:20].astype("float64")
    loc, scale = encode(x)
    z = np.random.default_rng(7).normal(loc, scale, (2000, 20, 10))
    logits = decode(z)
    log_likelihood = (x * logits - np.logaddexp(0, logits)).sum(axis=-1)
    log_prior = stats.norm.logpdf(z).sum(axis=-1)
    log_weights = log_likelihood + log_prior - stats.norm.logpdf(z, loc, scale).sum(axis=-1)
    estimates = special.logsumexp(log_weights, axis=0) - np.log(2000)
    (result,) = report.results
    error = np.sqrt(2) * result.nll_standard_error  # Ours has one as large.
    assert 0 < error < 0.2
    assert result.nll == pytest.approx(-estimates.mean(), abs=4 * error)
    elbo_error = log_weights.std(axis=0).mean() / np.sqrt(20 * 100)
    assert result.negative_elbo == pytest.approx(-log_weights.mean(), abs=5 * elbo_error)
    assert result.negative_elbo > result.nll
    assert result.active_units == (encode(shown)[0].var(axis=0) > 0.01).sum()


@pytest.mark.long
def test_training_has_come_somewhere(report, images):
    """Better than pixels that are independent, and what that costs is known."""
    mean = np.clip(images.train.mean(axis=0) / 16, 0.001, 0.999)
    rng = np.random.default_rng(0)
    x = images.bits(images.test, rng)[:20]
    independent = -stats.bernoulli.logpmf(x, mean).sum(axis=1).mean()
    assert report.mean < independent - 0.5


def test_the_report_is_in_results_json(report, folder):
    saved = json.loads((folder / NAME / "results.json").read_text())
    assert saved == report.as_dict()
    assert saved["settings"]["share"] == 0.004
    assert saved["published"] is None  # For the digits nothing was.
    assert saved["sd"] is None
    assert saved["seeds"]["3"]["epochs"] == STEPS / 71


def test_the_table():
    results = [reproduce.Result(i, nll, 0.01, 90.0, 20, 32.8, 60) for i, nll in enumerate((87, 91))]
    report = reproduce.Report(
        reproduce._find("burda-vae-k1"),
        {"dataset": "mnist"},
        {"num_samples": 5000, "num_test": 10_000},
        tuple(results),
    )
    assert (report.mean, report.published) == (89.0, 86.76)
    assert report.sd == pytest.approx(np.sqrt(8))
    lines = str(report).splitlines()
    assert lines[-2:] == [
        "mean       89.00, sd over 2 seeds 2.83",
        "published 86.76 with 19 active units, for 3280 epochs",
    ]


# Stopping and going on.


def state(vae):
    """Weights, those of the optimizer, and the counters of the noise."""
    return [w.numpy() for w in (*vae.weights, *vae.optimizer.variables)]


def saved_step(folder):
    return json.loads((folder / NAME / f"seed-{SEED}" / "progress.json").read_text())["step"]


@pytest.mark.long
def test_killed_and_interrupted_it_goes_on_to_the_same_weights(
    report, trained, tmp_path, monkeypatch, capsys
):
    command = [sys.executable, "-m", "tfpvae", "reproduce", NAME, "--output", str(tmp_path)]
    options = {"seeds": SEED, "checkpoint-steps": 20} | SETTINGS
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    progress = tmp_path / NAME / f"seed-{SEED}" / "progress.json"
    deadline = time.monotonic() + 120
    while not progress.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    killed = saved_step(tmp_path)
    assert 20 <= killed < STEPS

    train = reproduce._Training._train

    def interrupted(self, vae, rate, start, stop):
        train(self, vae, rate, start, stop)
        if stop > 600:  # After the step, before its checkpoint.
            raise KeyboardInterrupt

    monkeypatch.setattr(reproduce._Training, "_train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, checkpoint_steps=300, verbose=True)
    printed = capsys.readouterr().out
    assert f"going on from step {killed} of 933" in printed
    assert "stopped; the same command goes on from step 600 of seed 3" in printed
    assert saved_step(tmp_path) == 600
    monkeypatch.undo()

    again = run(tmp_path)
    names = {path.name for path in progress.parent.iterdir()}
    assert names == {"progress.json", f"step-{STEPS}.keras"}
    resumed = keras.models.load_model(progress.parent / f"step-{STEPS}.keras")
    for one, other in zip(state(trained), state(resumed), strict=True):
        np.testing.assert_array_equal(one, other)
    assert again.results[0]._replace(seconds=0) == report.results[0]._replace(seconds=0)


@pytest.fixture
def no_training(monkeypatch):
    """Training and evaluation fail if they are begun."""
    begun = []

    def fail(self, *args):
        begun.append(self)
        raise RuntimeError("begun")

    monkeypatch.setattr(reproduce._Training, "_train", fail)
    monkeypatch.setattr(VAE, "log_marginal_likelihood", fail)
    return begun


@pytest.fixture
def copied(report, folder, tmp_path):
    """A folder with a finished run that a test may spoil."""
    for path in folder.rglob("*.*"):
        copy = tmp_path / path.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    return tmp_path


def test_a_finished_seed_is_not_run_again(report, folder, no_training, capsys):
    assert run(folder, verbose=True) == report
    assert capsys.readouterr().out == "seed 3: finished earlier, not run again; restart to do so\n"


def test_another_evaluation_needs_no_training(copied, report, monkeypatch):
    monkeypatch.setattr(reproduce._Training, "_train", None)
    other = run(copied, num_samples=10, num_test=5)
    assert other.evaluation == {"num_samples": 10, "num_test": 5}
    assert other.results[0].nll != report.results[0].nll


def test_seeds_are_gathered(copied, report, monkeypatch):
    other = report.results[0]._replace(seed=1, nll=20.0)
    monkeypatch.setattr(reproduce._Training, "run", lambda self: None)
    monkeypatch.setattr(reproduce._Experiment, "_evaluate", lambda self, vae, training: other)
    both = run(copied, seeds=[SEED, 1])
    assert both.results == (other, *report.results)
    assert both.mean == pytest.approx((20.0 + report.mean) / 2)


def test_restart_begins_anew(copied, no_training):
    with pytest.raises(RuntimeError, match="begun"):
        run(copied, restart=True)
    assert no_training[0].step == 0
    names = [path.name for path in copied.rglob("*.*")]
    assert names == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"share": 0.5}, r"holds a run with share 0\.004, wanted one with share 0\.5; choose"),
        ({"seeds": [SEED, 4], "share": 0.5}, r"holds a run with share 0\.004"),
    ],
)
def test_other_settings_are_refused(change, message, copied, no_training):
    with pytest.raises(reproduce.ReproductionError, match=message):
        run(copied, **change)
    (copied / NAME / "results.json").unlink()  # So is a checkpoint by itself.
    with pytest.raises(reproduce.ReproductionError, match=message):
        run(copied, **change)
    assert not no_training
    with pytest.raises(RuntimeError, match="begun"):
        run(copied, restart=True, **change)


def test_other_data_are_refused(copied, no_training, monkeypatch):
    data = datasets.load("digits", flatten=True)
    data.x_test[0, 0] += 1
    monkeypatch.setattr(datasets, "load", lambda *args, **kwargs: data)
    with pytest.raises(reproduce.ReproductionError, match="a run with other data; choose another"):
        run(copied)


@pytest.mark.parametrize("spoil", ["results.json", "progress.json", "model", "no model", "step"])
def test_spoilt_files_are_refused(spoil, copied, no_training):
    seed = copied / NAME / f"seed-{SEED}"
    model, results = seed / f"step-{STEPS}.keras", copied / NAME / "results.json"
    if spoil == "results.json":
        results.write_text("{")
    else:
        results.unlink()
    if spoil == "progress.json":
        (seed / spoil).write_text(model.read_bytes()[:100].hex())
    elif spoil == "model":
        model.write_bytes(model.read_bytes()[:1000])
    elif spoil == "no model":
        model.unlink()
    elif spoil == "step":
        path = seed / "progress.json"
        path.write_text(path.read_text().replace(f'"step": {STEPS}', '"step": 900'))
    with pytest.raises(reproduce.ReproductionError, match=r"output: .*; restart"):
        run(copied)
    assert not no_training


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "results.json"
    reproduce._write(path, {"a": 1})
    with pytest.raises(TypeError):
        reproduce._write(path, {"a": 2, "b": object()})
    assert json.loads(path.read_text()) == {"a": 1}


def test_a_loss_that_is_no_number_ends_the_run(images, tmp_path, monkeypatch):
    monkeypatch.setattr(VAE, "fit", lambda *args, **kwargs: FakeHistory())
    with pytest.raises(FloatingPointError, match="seed 3: the loss is nan at step 1"):
        run(tmp_path)
    assert not (tmp_path / NAME / "seed-3").exists()


class FakeHistory:
    history = {"loss": [float("nan")]}  # noqa: RUF012


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"share": 0}, "share: got 0, wanted a number with 0 < share <= 1"),
        ({"share": float("nan")}, "share: got nan"),
        ({"share": "all"}, "share: got 'all'"),
        ({"seeds": []}, "seeds: got none"),
        ({"seeds": [0, -1]}, "seeds: got -1, wanted integers that are not negative"),
        ({"seeds": [True]}, "seeds: got True"),
        ({"num_samples": 0}, "num_samples: got 0, wanted a positive integer"),
        ({"num_test": 1.5}, "num_test: got 1.5"),
        ({"checkpoint_steps": 0}, "checkpoint_steps: got 0"),
        ({"dataset": "cifar"}, "dataset: got 'cifar', wanted one of mnist, digits"),
        ({"data": "here"}, "'digits' comes with scikit-learn and takes no path"),
        ({"dataset": "mnist", "data": "nowhere"}, "there is no file nowhere"),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(change, message, tmp_path):
    with pytest.raises(reproduce.ReproductionError, match=message):
        run(tmp_path / "new", **change)
    assert not (tmp_path / "new").exists()


def test_an_output_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(reproduce.ReproductionError, match="file"):
        run(tmp_path / "file")


def test_unknown_names_get_a_hint():
    with pytest.raises(reproduce.ReproductionError, match="did you mean 'burda-iwae-k50'"):
        reproduce.reproduce("burda-iwae-50")
