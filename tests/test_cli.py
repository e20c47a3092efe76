"""The command line: what it does with files, what it passes on, and how it ends."""

import ast
import functools
import json
import os
import pty
import re
import runpy
import shlex
import signal
import socket
import subprocess
import sys
import time
import types
from pathlib import Path

import click
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
import tf_keras as keras
from click.testing import CliRunner
from scipy import stats

import tfpvae
from tfpvae import (
    BayesianRegression,
    cli,
    commands,
    dense,
    likelihoods,
    models,
    reproduce,
    saving,
    tables,
)

ROOT = Path(tfpvae.__file__).parents[1]
DEFAULTS = reproduce.reproduce.__kwdefaults__
LONG = pytest.mark.long


def run(*words, capsys):
    """The exit code, the result on the last line of stdout, the lines before it, and stderr."""
    code = cli.main([str(word) for word in words])
    captured = capsys.readouterr()
    *lines, last = captured.out.splitlines() or [""]
    return code, (json.loads(last) if last.startswith("{") else None), lines, captured.err


@pytest.fixture
def ran(capsys):
    """Run a command that has to go well; its result."""

    def ran(*words):
        code, result, lines, err = run(*words, capsys=capsys)
        assert code == 0, err
        assert not lines
        return result

    return ran


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with data, a model that was trained on them, and files of other kinds."""
    folder = tmp_path_factory.mktemp("cli")
    rng = np.random.default_rng(0)
    z = rng.normal(size=(90, 2))
    counts = pd.DataFrame(rng.poisson(np.exp(z @ rng.normal(size=(2, 4)) * 0.5 + 1)))
    counts.columns = list("abcd")
    counts.to_csv(folder / "counts.csv", index=False)
    counts.assign(kind=np.where(z[:, 0] > 0, "rose", "tulip")).to_csv(
        folder / "kinds.csv", index=False
    )
    np.save(folder / "counts.npy", counts.to_numpy())
    np.savez(folder / "images.npz", images=rng.integers(0, 17, (60, 4, 5)), y=np.arange(60) % 3)
    words = ["--epochs", "2", "--hidden", "8", "--batch-size", "30"]
    words += ["--output", folder / "model.keras"]
    assert cli.main(["train", f"{folder}/kinds.csv", "--label", "kind", *map(str, words)]) == 0
    plain = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    saving.save(plain, folder / "plain.keras")
    regression = BayesianRegression(likelihoods.Normal(), seed=0)
    regression.fit(rng.normal(size=(20, 2)), rng.normal(size=20), epochs=1, verbose=0)
    regression.save(folder / "regression.keras")
    whole = (folder / "model.keras").read_bytes()
    (folder / "cut.keras").write_bytes(whole[: len(whole) // 2])
    return folder


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# Training, and what later commands know of it.


def test_the_file_knows_the_columns_the_label_and_the_history(folder):
    notes = saving.read_notes(folder / "model.keras")
    assert notes["columns"] == list("abcd")
    assert notes["label"] == "kind"
    assert {name: len(values) for name, values in notes["history"].items()} == dict.fromkeys(
        ("loss", "elbo", "nll", "kl"), 2
    )


@LONG
def test_a_model_is_what_was_asked_for(folder, ran):
    words = "--latent 3 --hidden 8,6 --likelihood Poisson --likelihood StudentT(df=4)"
    with pytest.raises(AssertionError, match="wanted one for all columns"):
        ran("train", folder / "counts.csv", "--output", "a.keras", *words.split())
    words = (
        "--latent 3 --hidden 8,6 --likelihood Poisson --likelihood b=NegativeBinomial "
        "--posterior FullRankNormal --prior NormalMixture(num_components=2) --epochs 1 "
        "--objective IWAE(num_samples=2) --optimizer rmsprop --learning-rate 0.01 --seed 3 "
        "--validation-split 0.2 --drop d"
    )
    result = ran("train", folder / "counts.csv", "--output", "a.keras", *words.split())
    vae = tfpvae.load_model("a.keras")
    columns = vae.decoder.layers[-1].columns
    assert [type(block).__name__ for block in columns.values()] == [
        "Poisson",
        "NegativeBinomial",
        "Poisson",
    ]
    assert vae.prior.event_shape == (3,)
    assert type(vae.prior).__name__ == "NormalMixture"
    assert type(vae.encoder.layers[-1]).__name__ == "FullRankNormal"
    assert [layer.units for layer in vae.encoder.layers[0].layers[:2]] == [8, 6]
    assert type(vae.objective).__name__ == "IWAE"
    assert vae.objective.num_samples == 2
    assert isinstance(vae.optimizer, keras.optimizers.RMSprop)
    assert float(vae.optimizer.learning_rate) == pytest.approx(0.01)
    assert int(vae.optimizer.iterations) == 1  # 72 of 90 rows in batches of 100
    assert result["model"] == "a.keras"
    assert result["num_data"] == 90
    assert result["epochs"] == 1
    assert {"loss", "elbo", "nll", "kl", "val_loss", "val_elbo"} <= {*result}
    assert result["elbo"] == pytest.approx(-(result["nll"] + result["kl"]), abs=1e-4)


@LONG
def test_the_same_command_makes_the_same_model(folder, ran):
    for name in ("a", "b"):
        keras.utils.set_random_seed(int.from_bytes(name.encode(), "big"))
        ran(*f"train {folder}/counts.csv --output {name}.keras --epochs 1 --seed 1".split())
    a, b = (tfpvae.load_model(f"{name}.keras").get_weights() for name in "ab")
    for one, other in zip(a, b, strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_is_evaluated_is_the_librarys(folder, ran):
    """Bit for bit; and by the label of the file the text column is left out."""
    x = pd.read_csv(folder / "counts.csv").to_numpy()
    vae = tfpvae.load_model(folder / "model.keras")
    wanted = vae.evaluate(x, batch_size=100, verbose=0, return_dict=True)
    weights = vae.log_marginal_likelihood(x, 30, seed=5, verbose=0)
    words = ["--num-samples", 30, "--seed", 5]
    found = ran("evaluate", folder / "model.keras", folder / "kinds.csv", *words)
    assert found["num_data"] == 90
    for name in ("elbo", "nll", "kl"):
        assert found[name] == wanted[name]
    assert found["log_marginal_likelihood"] == weights.mean
    assert found["standard_error"] == weights.mean_standard_error
    # One draw for each example, as `evaluate` takes it, beside many.
    many = vae.elbo(x, 2000, seed=0, verbose=0)
    spread = vae.log_weights(x, 200, seed=1, verbose=0).std(axis=0)
    assert abs(found["elbo"] - many.mean()) < 4 * np.linalg.norm(spread) / 90


@LONG
def test_columns_are_found_by_name_whatever_their_order(folder, ran):
    frame = pd.read_csv(folder / "counts.csv")
    frame[["d", "c", "b", "a"]].assign(more="text").to_parquet("other.parquet")
    wanted = ran("evaluate", folder / "model.keras", folder / "kinds.csv")
    for name in ("other.parquet", folder / "counts.csv", folder / "counts.npy"):
        assert ran("evaluate", folder / "model.keras", name) == wanted


@LONG
def test_log_evidence_beside_a_closed_form(ran, rng):
    """A linear decoder with normal noise: x ~ N(b, W W' + s^2 I), whatever the training did."""
    x = rng.normal(size=(200, 2)) @ rng.normal(size=(2, 4)) + 0.5 * rng.normal(size=(200, 4)) + 3
    np.save("x.npy", x)
    words = (
        "train x.npy --output linear.keras --hidden none --posterior FullRankNormal --epochs 300 "
        "--likelihood Normal(scale=0.5) --learning-rate 0.02"
    )
    ran(*words.split())
    found = ran(*["evaluate", "linear.keras", "x.npy", "--num-samples", "2000", "--seed", "1"])
    weights, bias = tfpvae.load_model("linear.keras").decoder.get_weights()
    exact = stats.multivariate_normal(bias, weights.T @ weights + 0.25 * np.eye(4)).logpdf(x)
    assert found["standard_error"] < 0.02
    assert abs(found["log_marginal_likelihood"] - exact.mean()) < 4 * found["standard_error"]
    assert found["elbo"] < exact.mean()
    # The sampling error is that of the mean over the rows.
    assert found["sampling_error"] == pytest.approx(stats.sem(exact), rel=0.02)


@LONG
def test_the_scale_is_part_of_the_model(ran, rng):
    """Standardized columns need no option later, and samples come back on the scale of the data."""
    frame = pd.DataFrame({"big": rng.normal(1e4, 300.0, 400), "few": rng.poisson(2.0, 400)})
    frame.to_csv("x.csv", index=False)
    words = "--output m.keras --standardize --epochs 80 --hidden 8 --learning-rate 0.01"
    ran("train", "x.csv", *words.split())
    assert ran("evaluate", "m.keras", "x.csv")["nll"] < 5  # of 1e4 by the first step of Adam: 1e8
    ran(*["sample", "m.keras", "2000", "--output", "s.csv"])
    drawn = pd.read_csv("s.csv")
    assert list(drawn) == ["big", "few"]
    assert drawn["big"].mean() == pytest.approx(1e4, abs=100)
    assert drawn["big"].std() == pytest.approx(300, rel=0.3)
    assert (drawn["few"] == drawn["few"].round()).all()
    assert drawn["few"].mean() == pytest.approx(2.0, abs=0.5)


@LONG
def test_missing_numbers(folder, ran, rng, capsys):
    frame = pd.read_csv(folder / "counts.csv").astype(float)
    frame = frame.mask(rng.random(frame.shape) < 0.2)
    frame.to_csv("gaps.csv", index=False)
    words = "--output m.keras --epochs 1 --hidden 8 --likelihood Poisson"
    code, *_, err = run("train", "gaps.csv", *words.split(), capsys=capsys)
    assert code == 0
    assert re.fullmatch(r"tfpvae train: \d\d\.\d% of the numbers are missing\n", err)
    found = ran("evaluate", "m.keras", "gaps.csv")
    assert np.isfinite(found["elbo"])
    assert "marginals.png" in str(ran(*["plot", "m.keras", "gaps.csv", "--output", "f"])["figures"])


@LONG
def test_images_from_an_archive(folder, ran):
    words = "--key images --label y --scale 16 --output m.keras --epochs 1 --hidden 8"
    ran("train", folder / "images.npz", *words.split())
    figures = ran("plot", "m.keras", folder / "images.npz", "--output", "f")["figures"]
    names = {"convergence", "latent", "manifold", "reconstructions", "samples"}
    assert {*figures} == {f"f/{name}.png" for name in names}
    ran(*["sample", "m.keras", "7", "--output", "s.npz"])
    with np.load("s.npz") as archive:
        assert archive["x"].shape == (7, 4, 5)
        assert {*np.unique(archive["x"])} <= {0, 16}
    ran(*["sample", "m.keras", "20", "--output", "s.png"])
    assert Path("s.png").stat().st_size > 1000


@LONG
def test_a_data_set_by_name(ran):
    result = ran(*["train", "digits", "--output", "m.keras", "--epochs", "1", "--hidden", "16"])
    assert result["num_data"] == 1437
    assert "val_loss" in result
    found = ran(*["evaluate", "m.keras", "digits"])
    assert found["num_data"] == 360  # the test images
    assert found["elbo"] == pytest.approx(result["val_elbo"], rel=1e-5)


@LONG
def test_a_model_from_python(ran):
    """Flat and scaled by hand: no notes in the file, and other shapes of the same images."""
    x = tfpvae.datasets.load("digits", scale=True, flatten=True).x_test
    q, p = tfpvae.posteriors.DiagonalNormal(2), likelihoods.Bernoulli(64)
    encoder, decoder = keras.layers.Dense(4), keras.layers.Dense(64)
    vae = tfpvae.VAE(
        tfpvae.priors.StandardNormal(2),
        keras.Sequential([encoder, q]),
        keras.Sequential([decoder, p]),
        seed=0,
    )
    vae.build(x.shape)
    vae.save("m.keras")
    found = ran(*["evaluate", "m.keras", "digits", "--scale", "16"])
    vae.compile()
    assert found["elbo"] == vae.evaluate(x, batch_size=100, verbose=0, return_dict=True)["elbo"]


# What is written.


@LONG
def test_diagnosis(folder, capsys):
    words = "--num-samples 30 --num-local 5 --figure d.png"
    files = [folder / "model.keras", folder / "kinds.csv"]
    code, result, lines, _ = run("diagnose", *files, *words.split(), capsys=capsys)
    assert code == 0
    assert lines[0].startswith("nats, mean over 90 examples")
    x = pd.read_csv(folder / "counts.csv").to_numpy()
    vae = tfpvae.load_model(folder / "model.keras")
    wanted = tfpvae.diagnose(vae, x, 30, num_local=5, seed=0, verbose=0)
    assert result["elbo"] == pytest.approx(wanted.elbo.mean())
    assert result["active_units"] == wanted.latents.active.sum()
    assert result["findings"] == list(wanted.findings)
    assert "\n".join(lines) == str(wanted)
    assert Path("d.png").read_bytes().startswith(b"\x89PNG")


LONG_KINDS = [pytest.param(kind, marks=LONG) for kind in ("parquet", "npy", "npz")]


@pytest.mark.parametrize("suffix", ["csv", *LONG_KINDS])
def test_samples_are_the_models(folder, ran, suffix):
    ran("sample", folder / "model.keras", 30, "--output", f"s.{suffix}", "--seed", 4)
    found = tables.read(f"s.{suffix}")
    wanted = tfpvae.load_model(folder / "model.keras").sample(30, seed=4)
    np.testing.assert_array_equal(found.x, wanted)
    assert found.x.dtype.kind == "i"
    assert found.columns == (tuple("abcd") if suffix in ("csv", "parquet") else None)


@LONG
def test_pictures_of_a_table(folder, ran):
    words = ["plot", folder / "model.keras", folder / "kinds.csv", "--output", "f"]
    names = [f"f/{name}.png" for name in ("convergence", "latent", "marginals")]
    assert ran(*words)["figures"] == names
    assert sorted(map(str, Path("f").iterdir())) == names
    assert ran(*words, "--overwrite")["figures"] == names


@LONG
@pytest.mark.parametrize("latent", [1, 5])
def test_pictures_of_other_sizes(folder, ran, latent):
    words = f"--output m.keras --epochs 1 --latent {latent} --hidden 8 --label kind"
    ran("train", folder / "kinds.csv", *words.split())
    figures = ran("plot", "m.keras", folder / "kinds.csv", "--output", "f")["figures"]
    assert "f/latent.png" in figures


@LONG
def test_pictures_of_a_flow(folder, ran):
    words = "--output m.keras --epochs 1 --posterior Flow(flow=Planar(num_layers=2)) --hidden 8"
    ran("train", folder / "counts.csv", *words.split())
    assert (
        "f/latent.png" in ran("plot", "m.keras", folder / "counts.csv", "--output", "f")["figures"]
    )


@LONG
def test_export(folder, ran):
    ran("export", folder / "model.keras", "served", "--num-samples", 20)
    x = pd.read_csv(folder / "counts.csv").to_numpy()
    served = tf.saved_model.load("served").signatures["elbo"]
    given = tf.cast(x, served.structured_input_signature[1]["x"].dtype)
    found = served(x=given, seed=tf.constant([3, 0]))["elbo"].numpy()
    wanted = tfpvae.load_model(folder / "model.keras").elbo(x, 20, seed=3)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


@LONG
@pytest.mark.filterwarnings(r"ignore:\s*Warning. tf.lite.Interpreter is deprecated:UserWarning")
def test_export_of_the_decoder(folder, ran):
    ran("export", folder / "model.keras", "decoder.tflite", "--tflite")
    call = tf.lite.Interpreter(model_path="decoder.tflite").get_signature_runner()
    z = np.array([[0.5, -1.0]], "float32")
    wanted = tfpvae.load_model(folder / "model.keras").likelihood(z).mean()
    np.testing.assert_allclose(call(z=z)["mean"], wanted, rtol=1e-4)


@LONG
def test_a_hierarchy_from_python(folder, ran):
    def network(*blocks):
        return [
            keras.Sequential([keras.layers.Dense(block.params_size), block]) for block in blocks
        ]

    x = pd.read_csv(folder / "counts.csv").to_numpy()
    vae = tfpvae.HierarchicalVAE(
        tfpvae.priors.StandardNormal(2),
        network(tfpvae.posteriors.DiagonalNormal(3), tfpvae.posteriors.DiagonalNormal(2)),
        network(likelihoods.Poisson(4), likelihoods.Normal(3)),
        seed=0,
    )
    vae.compile("adam")
    vae.fit(x, epochs=1, verbose=0)
    vae.save("m.keras")
    found = ran("evaluate", "m.keras", folder / "counts.csv", "--num-samples", 20)
    assert found["elbo"] == vae.evaluate(x, batch_size=100, verbose=0, return_dict=True)["elbo"]
    assert found["elbo"] < found["log_marginal_likelihood"]
    ran("sample", "m.keras", 5, "--output", "s.npy")
    np.testing.assert_array_equal(np.load("s.npy"), vae.sample(5, seed=0))
    figures = ran("plot", "m.keras", folder / "counts.csv", "--output", "f")["figures"]
    assert figures == ["f/latent.png", "f/marginals.png"]


@LONG
def test_demo(ran):
    result = ran(*["demo", "--epochs", "1"])
    assert {path.name for path in Path("demo-output").iterdir()} == {
        "model.keras",
        *(f"{n}.png" for n in ("convergence", "latent", "manifold", "reconstructions", "samples")),
    }
    assert -60 < result["val_elbo"] < -20
    found = ran(*["evaluate", "demo-output/model.keras", "digits"])
    assert found["elbo"] == pytest.approx(result["val_elbo"], rel=1e-5)


@pytest.fixture
def page(monkeypatch):
    """A page that only takes note of what it is asked to serve."""
    calls = []
    module = types.ModuleType("tfpvae.explore")
    module.serve = lambda *args, **kwargs: calls.append((args, kwargs))
    monkeypatch.setitem(sys.modules, "tfpvae.explore", module)
    return calls


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_explore_passes_model_data_and_labels_on(folder, page, capsys):
    port = free_port()
    words = ["explore", folder / "model.keras", folder / "kinds.csv", "--port", port]
    assert run(*words, "--no-browser", capsys=capsys)[0] == 0
    assert run("explore", folder / "model.keras", "--port", port, capsys=capsys)[0] == 0
    ((model, x, labels), kwargs), ((_, nothing, no_labels), others) = page
    assert isinstance(model, tfpvae.VAE)
    np.testing.assert_array_equal(x, pd.read_csv(folder / "counts.csv"))
    assert {*labels} == {"rose", "tulip"}
    assert kwargs == {"port": port, "open_browser": False}
    assert nothing is None
    assert no_labels is None
    assert others == {"port": port, "open_browser": True}


# Mistakes: one line, and a code that is not zero.

MISTAKES = [
    ("train nothing.csv --output m.keras", "nothing.csv: there is no such file"),
    ("train nothing --output m.keras", r"DATA: got 'nothing', wanted a file .* or one of digits"),
    ("train digit --output m.keras", "did you mean 'digits'"),
    ("train {f}/counts.csv", "Missing option '--output'"),
    ("train {f}/counts.csv --output m.h5", r"output: got 'm.h5', wanted a name in .keras"),
    ("train {f}/counts.csv --output no/m.keras", "but there is no folder .*no: make it"),
    ("train {f}/counts.csv --output {f}/model.keras", "which is there: .*--overwrite"),
    ("train {f}/counts.csv --output m.keras --epochs -1", "-1 is not in the range"),
    ("train {f}/counts.csv --output m.keras --epochs many", "'many' is not a valid integer"),
    ("train {f}/counts.csv --output m.keras --hidden 8,x", "hidden: got '8,x', wanted numbers"),
    ("train {f}/counts.csv --output m.keras --hidden 0", "hidden: got 0, wanted a positive"),
    ("train {f}/counts.csv --output m.keras --learning-rate=-1", "-1.0 is not in the range"),
    ("train {f}/counts.csv --output m.keras --validation-split 2", "validation_split: got 2.0"),
    ("train {f}/counts.csv --output m.keras --likelihood Poison", "did you mean 'Poisson'"),
    ("train {f}/counts.csv --output m.keras --likelihood Beta", "outside the support of"),
    ("train {f}/counts.csv --output m.keras --prior NormlMixture", "mean 'NormalMixture'"),
    ("train {f}/counts.csv --output m.keras --objective IWEA", "did you mean 'IWAE'"),
    ("train {f}/counts.csv --output m.keras --objective IWAE(k=5)", "unexpected keyword"),
    ("train {f}/counts.csv --output m.keras --optimizer adamm", "did you mean 'Adam'"),
    ("train {f}/counts.csv --output m.keras --columns a,bb", "columns: got 'bb', .*mean 'b'"),
    ("train {f}/kinds.csv --output m.keras", "text in the column 'kind' .'(rose|tulip)' in row 1"),
    ("train {f}/counts.npy --output m.keras --columns a", "whose columns have none"),
    ("train {f}/images.npz --output m.keras", "key: got none, wanted the name of one"),
    ("train digits --output m.keras --label y", "label: got 'y', wanted none"),
    ("train --list likelihood", "'likelihood' is not one of"),
    ("evaluate no.keras {f}/counts.csv", "no such model file: no.keras"),
    ("evaluate {f}/cut.keras {f}/counts.csv", "got no readable archive"),
    ("evaluate {f}/counts.csv {f}/counts.csv", "wanted a file that ends in .keras"),
    ("evaluate {f}/plain.keras {f}/counts.csv", "got a Sequential, wanted a VAE"),
    ("evaluate {f}/regression.keras {f}/counts.csv", "got a BayesianRegression, wanted a VAE"),
    ("evaluate {f}/model.keras {f}/counts.csv --columns a,b", r"rows of shape \[2\] .a, b"),
    ("evaluate {f}/model.keras {f}/images.npz --key images", r"shape \[4, 5\], wanted \[4\]"),
    ("evaluate {f}/model.keras {f}/counts.csv --num-samples 0", "0 is not in the range"),
    ("evaluate {f}/model.keras", "Missing argument 'DATA'"),
    ("diagnose {f}/model.keras {f}/counts.csv --figure d.doc", "output: got 'd.doc', wanted"),
    ("sample {f}/model.keras many --output s.csv", "'many' is not a valid integer"),
    ("sample {f}/model.keras 5 --output s.txt", "output: got 's.txt', wanted a name in"),
    ("sample {f}/model.keras 5 --output no/s.csv", "there is no folder"),
    ("plot {f}/model.keras {f}/counts.csv --output {f}", "which is there"),
    ("export {f}/model.keras {f}", "which is there"),
    ("export {f}/model.keras decoder --tflite", "wanted a name in .tflite"),
    ("explore {f}/model.keras --port 99999", "is not in the range"),
    ("reproduce burda-iwae-k500", "wanted one of .*; did you mean 'burda-iwae-k50'?"),
    ("reproduce burda-vae-k1 --share 2", "share: got 2.0, wanted a number with 0 < share"),
    ("reproduce burda-vae-k1 --data nowhere", "there is no file nowhere"),
    ("reproduce burda-vae-k1 --dataset cifar", "dataset: got 'cifar', wanted one of mnist"),
    ("reproduce burda-vae-k1 --share much", "'much' is not a valid float"),
    ("reproduce burda-vae-k1 --seeds", "requires an argument"),
    ("tran", "No such command 'tran'"),
    ("train --epoch 3", "No such option"),
]


@pytest.mark.parametrize(("line", "message"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_mistakes_end_in_one_line(line, message, folder, tmp_path, capsys):
    before = sorted(folder.iterdir())
    code, result, lines, err = run(*line.format(f=folder).split(), capsys=capsys)
    assert code == 2
    assert result is None
    assert not lines
    name = line.split()[0] if line != "tran" else ""
    notes = r"(tfpvae train: the likelihood is .*\n)?"
    assert re.fullmatch(rf"{notes}tfpvae( {name})?: error: .*{message}.*\n", err), err
    assert not list(tmp_path.iterdir())
    assert sorted(folder.iterdir()) == before


NEED_NOTHING = """
train nothing.csv --output m.keras
train nothing --output m.keras
train {f}/counts.csv
train {f}/counts.csv --output m.h5
train {f}/counts.csv --output no/m.keras
train {f}/counts.csv --output m.keras --epochs many
train --list likelihood
demo --output {f}
evaluate no.keras {f}/counts.csv
evaluate {f}/counts.csv {f}/counts.csv
evaluate {f}/model.keras no.csv
diagnose {f}/model.keras {f}/counts.csv --figure d.doc
sample {f}/model.keras 5 --output s.txt
plot {f}/model.keras {f}/counts.csv --output {f}
export {f}/model.keras {f}
explore {f}/model.keras no.csv
tran
--epochs
""".strip().splitlines()


@pytest.mark.parametrize("line", NEED_NOTHING)
def test_mistakes_that_are_found_before_tensorflow_is_loaded(line, folder, monkeypatch, capsys):
    monkeypatch.setattr(commands, "_load", lambda name: pytest.fail("it was loaded"))
    code, *_, err = run(*line.format(f=folder).split(), capsys=capsys)
    assert code == 2
    assert err.count("\n") == 1


def test_no_command_says_what_there_is(capsys):
    assert cli.main([]) == 2
    assert capsys.readouterr().err == (
        "tfpvae: error: got no command, wanted one of train, demo, evaluate, diagnose, sample, "
        "plot, export, explore, reproduce, completion: tfpvae --help\n"
    )


def test_what_a_file_says_cannot_write_to_the_terminal(capsys):
    """The text of an error may come from a file of somebody else."""
    assert cli.main(["train", "\x1b[2J\x07.csv", "--output", "m.keras"]) == 2
    err = capsys.readouterr().err
    assert err == "tfpvae train: error: ?[2J?.csv: there is no such file\n"


def test_a_table_of_another_width(folder, capsys):
    frame = pd.read_csv(folder / "counts.csv")
    frame[["a", "b", "c"]].to_csv("three.csv", index=False)
    code, *_, err = run("evaluate", folder / "model.keras", "three.csv", capsys=capsys)
    assert code == 2
    assert re.search(r"columns: got 'd', wanted one of the columns of three\.csv: a, b, c", err)
    np.save("three.npy", frame[["a", "b", "c"]].to_numpy())
    code, *_, err = run("evaluate", folder / "model.keras", "three.npy", capsys=capsys)
    assert code == 2
    assert re.search(r"rows of shape \[3\], wanted \[4\], those of the model \(a, b, c, d\)", err)


def test_a_port_in_use(folder, page, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, *_, err = run("explore", folder / "model.keras", "--port", port, capsys=capsys)
    assert code == 2
    assert re.fullmatch(rf"tfpvae explore: error: port: got {port}, which is in use.*\n", err)
    assert not page


def test_a_part_that_is_not_installed(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tfpvae.explore", None)
    code, *_, err = run("explore", folder / "model.keras", "--port", free_port(), capsys=capsys)
    assert code == 2
    assert re.fullmatch(r"tfpvae explore: error: .*\n", err)
    monkeypatch.setitem(sys.modules, "pandas", None)
    code, *_, err = run("train", folder / "counts.csv", "--output", "m.keras", capsys=capsys)
    assert code == 2
    assert "pip install 'tfpvae[tables]'" in err


def test_a_training_that_fails(folder, capsys):
    """Its weights are infinite in the first step: no mistake in the words, so another code."""
    words = "--output m.keras --epochs 1 --hidden 8 --optimizer SGD --learning-rate 1e38 --quiet"
    code, result, _, err = run("train", folder / "counts.csv", *words.split(), capsys=capsys)
    assert code == 1
    assert result is None
    assert re.fullmatch(r"tfpvae train: error: loss: got NaN or infinite values.*\n", err)
    assert not Path("m.keras").exists()


@LONG
def test_warnings_are_lines(folder, capsys):
    words = "--output m.keras --epochs 1 --hidden 8 --quiet"
    words = [*words.split(), "--objective", "ELBO(kl_weight=0.5)"]
    code, *_, err = run("train", folder / "counts.csv", *words, capsys=capsys)
    assert code == 0
    assert re.fullmatch(r"tfpvae train: warning: fit ended with kl_weight = 0\.5.*\n", err)


# Ctrl-C.


def test_ctrl_c_keeps_what_is_trained(folder, monkeypatch, capsys, ran):
    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    fit = models.VAE.fit
    words = f"train {folder}/counts.csv --hidden 8 --batch-size 30 --quiet".split()
    with monkeypatch.context() as patch:
        patch.setattr(
            models.VAE, "fit", lambda self, x, **kwargs: fit(self, x, callbacks=[Stop()], **kwargs)
        )
        code, result, _, err = run(*words, "--output", "a.keras", capsys=capsys)
    assert code == 130
    assert result is None
    assert err.strip() == "tfpvae train: stopped in epoch 3; what is trained is in a.keras"
    ran(*words, "--output", "b.keras", "--epochs", 2)
    a, b = (tfpvae.load_model(name) for name in ("a.keras", "b.keras"))
    for one, other in zip(a.get_weights(), b.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert saving.read_notes("a.keras") == saving.read_notes("b.keras")


def test_ctrl_c_before_the_first_step_leaves_nothing(folder, monkeypatch, capsys):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(models.VAE, "fit", stop)
    words = f"train {folder}/counts.csv --hidden 8 --output a.keras"
    code, *_, err = run(*words.split(), capsys=capsys)
    assert code == 130
    assert err.endswith("tfpvae train: stopped before the first step; nothing is written\n\n")
    assert not Path("a.keras").exists()


def start(*words, **kwargs):
    """The program itself, in a process of its own."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path}
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)
    command = [sys.executable, "-m", "tfpvae", *map(str, words)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **kwargs,
    )


@LONG
def test_a_real_ctrl_c(folder):
    words = f"train {folder}/counts.csv --hidden 8 --output a.keras --epochs 1000000 --resume state"
    # Jobs of a shell in the background ignore Ctrl-C, and so do their children.
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = start(*words.split(), preexec_fn=heed)
    deadline = time.monotonic() + 300
    while not {path.name for path in Path().glob("state/epoch-*")} - {"epoch-00000"}:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert out == ""
    said = r"tfpvae train: stopped in epoch \d+; what is trained is in a\.keras\n"
    assert re.search(said, err), err
    assert "Traceback" not in err
    assert int(tfpvae.load_model("a.keras").optimizer.iterations) > 0


@LONG
def test_resume_goes_on(folder, ran):
    words = f"train {folder}/counts.csv --hidden 8 --batch-size 30".split()
    ran(*words, "--output", "a.keras", "--epochs", 2, "--resume", "state")
    result = ran(*words, "--output", "b.keras", "--epochs", 4, "--resume", "state")
    assert result["epochs"] == 4
    ran(*words, "--output", "c.keras", "--epochs", 4, "--resume", "other")
    b, c = (tfpvae.load_model(name).get_weights() for name in ("b.keras", "c.keras"))
    for one, other in zip(b, c, strict=True):
        np.testing.assert_array_equal(one, other)


# The page, word for word.

PAGE = (ROOT / "docs" / "command_line.md").read_text()


def test_commands_on_the_page_parse():
    blocks = "".join(re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)).replace("\\\n", " ")
    lines = [line for line in blocks.splitlines() if line.startswith("tfpvae ")]
    assert {line.split()[1] for line in lines} >= {"train", "evaluate", "plot", "export", "sample"}
    for line in lines:
        _, name, *words = shlex.split(re.sub(r" > .*", "", line))
        if "--list" not in words:
            commands.tfpvae.commands[name].make_context(name, words)


@LONG
@pytest.mark.page
def test_the_page_word_for_word(tmp_path):
    """In an empty folder, by a real shell; what the page shows is what is printed."""
    (tmp_path / "bin").mkdir()
    for name, words in (("python", ""), ("tfpvae", "-m tfpvae ")):
        script = tmp_path / "bin" / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {words}"$@"\n')
        script.chmod(0o755)
    folder = tmp_path / "empty"
    folder.mkdir()
    environment = os.environ | {
        "PATH": os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    printed, shown = "", 0
    for kind, block in re.findall(r"```(sh|json)\n(.*?)```", PAGE, re.DOTALL):
        if kind == "sh":
            command = ["bash", "-e", "-o", "pipefail", "-c", block]
            process = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, text=True
            )
            assert process.returncode == 0, process.stderr
            assert "Traceback" not in process.stderr
            printed = process.stdout
            continue
        found, wanted = json.loads(printed.splitlines()[-1]), json.loads(block)
        assert {*found} == {*wanted}
        shown += 1
        for name, value in wanted.items():  # Other versions of TensorFlow round otherwise.
            loose = {"rel": 0.5} if name.endswith(("error", "size")) else {"rel": 0.02, "abs": 0.1}
            assert found[name] == (value if value == found[name] else pytest.approx(value, **loose))
    assert shown == 2
    assert len(pd.read_csv(folder / "samples.csv")) == 500
    columns = ",".join(pd.read_csv(folder / "samples.csv"))
    assert columns == "apples,pears,plums,figs,limes"
    pictures = ["figures/convergence", "figures/latent", "figures/marginals", "diagnosis"]
    for name in pictures:
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "elbo" in tf.saved_model.load(folder / "served").signatures
    assert (folder / "decoder.tflite").read_bytes()[4:8] == b"TFL3"
    block = tfpvae.load_model(folder / "mixed.keras").decoder.layers[-1]
    kinds = {name: type(part).__name__ for name, part in block.columns.items()}
    assert kinds["limes"] == "Poisson"
    assert kinds["figs"] == "ZeroInflated"
    assert kinds["pears"] == "NegativeBinomial"
    assert "complete" in (folder / "tfpvae.bash").read_text()


# The program as such.


SCRIPT = "import sys; from tfpvae.cli import main; sys.exit(main())"  # as pip writes it


@pytest.mark.parametrize("line", ["--help", "train --help", "tran"])
@pytest.mark.parametrize("is_module", [True, False])
def test_it_starts_without_tensorflow(line, is_module):
    Path("tfpvae").write_text(SCRIPT)
    program = ["-m", "tfpvae"] if is_module else ["tfpvae"]
    process = subprocess.run(
        [sys.executable, "-X", "importtime", *program, *line.split()],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert process.returncode == (2 if line == "tran" else 0)
    loaded = {text.rsplit("|")[-1].strip() for text in process.stderr.splitlines()}
    assert "tfpvae.commands" in loaded
    assert not loaded & {"tensorflow", "tf_keras", "numpy"}


@LONG
@pytest.mark.parametrize(
    ("line", "code", "error"),
    [
        (
            "evaluate {f}/plain.keras {f}/counts.csv",
            2,
            r"tfpvae evaluate: error: .*got a Sequential, wanted a VAE.*\n",
        ),
        ("reproduce burda", 2, r"tfpvae reproduce: error: name: got 'burda'.*\n"),
        ("evaluate {f}/model.keras {f}/counts.csv", 0, ""),
        (f"evaluate {ROOT}/tests/golden/0.1.0/vae.keras {{f}}/bits.npy", 0, ""),
    ],
)
def test_tensorflows_own_lines_are_left_out(line, code, error, folder):
    np.save(folder / "bits.npy", np.eye(4))
    process = start(*line.format(f=folder).split())
    out, err = process.communicate(timeout=300)
    assert process.returncode == code
    assert re.fullmatch(error, err), err
    assert out.count("\n") == (code == 0)


@LONG
def test_a_bar_on_a_terminal_and_results_apart(folder):
    """On a terminal the bar goes to it, and stdout holds the result alone."""
    master, slave = pty.openpty()
    words = f"-m tfpvae train {folder}/counts.csv --hidden 8 --output a.keras --epochs 2"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, *words.split()], stdout=subprocess.PIPE, stderr=slave, env=environment
    )
    os.close(slave)
    shown = b""
    while True:
        try:
            piece = os.read(master, 4096)
        except OSError:  # The other end is closed.
            break
        if not piece:
            break
        shown += piece
    out = process.communicate(timeout=300)[0].decode()
    assert process.returncode == 0
    assert b"Epoch 2/2" in shown
    assert out.count("\n") == 1
    assert json.loads(out)["epochs"] == 2


@LONG
def test_without_a_terminal_there_is_no_bar(folder, capsys):
    words = f"train {folder}/counts.csv --hidden 8 --output a.keras --epochs 2"
    assert "Epoch" not in run(*words.split(), capsys=capsys)[3]


def test_without_click(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "click", None)
    monkeypatch.delitem(sys.modules, "tfpvae.commands")
    monkeypatch.delattr(tfpvae, "commands")
    assert cli.main(["train", "--help"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == ("tfpvae: error: no click, wanted it: pip install 'tfpvae[cli]'\n")


def test_only_the_command_line_needs_click_and_tables_pandas():
    for path in (ROOT / "tfpvae").glob("*.py"):
        tree = ast.parse(path.read_text())
        outside = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {
            (alias.name if isinstance(node, ast.Import) else node.module or "").split(".")[0]
            for node in outside
            for alias in node.names
        }
        assert not names & {"pandas", "pyarrow"}, path
        assert ("click" in names) == (path.stem == "commands")


def commands_by_name():
    return sorted(commands.tfpvae.commands)


@pytest.mark.parametrize("name", [*commands_by_name(), ""])
def test_help_shows_examples_that_parse(name, capsys):
    assert cli.main([*([name] if name else []), "--help"]) == 0
    text = capsys.readouterr().out.replace("\\\n", " ")
    examples = re.findall(r"^ +tfpvae (.*)$", text, re.MULTILINE)
    assert examples
    for example in examples:
        words = shlex.split(re.sub(r" >+ .*", "", example))
        command = commands.tfpvae.commands[words[0]]
        if "--list" not in words:
            command.make_context(words[0], words[1:], resilient_parsing=False)


def test_every_option_says_what_it_is():
    for name, command in commands.tfpvae.commands.items():
        assert command.help
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{name} {parameter.name}"


def test_lists(capsys):
    assert cli.main(["train", "--list", "likelihoods"]) == 0
    assert "\nNegativeBinomial() - Counts" in capsys.readouterr().out


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"tfpvae {tfpvae.__version__}\n"


def test_mistakes_of_ours_keep_their_traceback(monkeypatch):
    def fail(*args, **kwargs):
        raise AttributeError("of ours")

    monkeypatch.setattr(dense, "vae", fail)
    np.save("x.npy", np.eye(3))
    with pytest.raises(AttributeError, match="of ours"):
        cli.main(["train", "x.npy", "--output", "m.keras"])


def test_a_traceback_on_demand(monkeypatch, capsys):
    monkeypatch.setenv("TFPVAE_TRACEBACK", "1")
    assert cli.main(["train", "no.npy", "--output", "m.keras"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "FileNotFoundError" in err


def test_completion(capsys):
    """The shell itself completes words by the script."""
    assert cli.main(["completion", "bash"]) == 0
    Path("script").write_text(capsys.readouterr().out)

    def complete(*words):
        call = f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _tfpvae"
        code = f'source ./script; {call}; echo "${{COMPREPLY[@]}}"'
        found = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
        assert not found.stderr
        return found.stdout.split()

    assert complete("tfpvae", "ev") == ["evaluate"]
    assert {*complete("tfpvae", '""')} == {*commands.tfpvae.commands}
    assert complete("tfpvae", "train", "x.csv", "--lat") == ["--latent"]
    assert complete("tfpvae", "train", "--likelihood", "Neg") == ["NegativeBinomial"]
    assert complete("tfpvae", "train", "--objective", "IW") == ["IWAE"]
    assert complete("tfpvae", "train", "dig") == ["digits"]
    assert complete("tfpvae", "sample", "dig") == []


def test_zsh_uses_the_same_script(capsys):
    assert cli.main(["completion", "zsh"]) == 0
    assert capsys.readouterr().out.startswith("autoload -U +X bashcompinit && bashcompinit\n")


def test_the_package_runs_as_a_program(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tfpvae", "reproduce", "burda-vae-k1", "--seeds", "-1"])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_module("tfpvae", run_name="__main__")
    assert capsys.readouterr().err.startswith("tfpvae reproduce: error: seeds: got -1")


def test_the_script_that_is_installed_is_there():
    text = (ROOT / "pyproject.toml").read_text()
    module, function = re.search(r'^tfpvae = "(.+):(.+)"$', text, re.MULTILINE).groups()
    assert getattr(sys.modules[module], function) is cli.main


def test_under_clicks_own_runner():
    assert CliRunner().invoke(commands.tfpvae, ["--help"]).exit_code == 0


# Published experiments.


@pytest.fixture
def calls(monkeypatch):
    """What the library is called with, in place of the library."""
    found = []

    def call(*args, **kwargs):
        found.append((args, kwargs))
        return "the report"

    monkeypatch.setattr(reproduce, "reproduce", call)
    return found


def test_defaults_are_those_of_the_library(calls, capsys):
    assert cli.main(["reproduce", "burda-vae-k1"]) == 0
    ((args, kwargs),) = calls
    assert args == ("burda-vae-k1",)
    kwargs |= {"seeds": tuple(kwargs["seeds"]), "output": str(kwargs["output"])}
    assert kwargs | {"verbose": True} == DEFAULTS
    assert capsys.readouterr().out == "the report\n"


@pytest.mark.parametrize("seeds", ["--seeds 3 4", "--seeds 3 --seeds 4"])
def test_options_are_passed_on(seeds, calls):
    line = (
        f"reproduce burda-iwae-k5 --share 0.5 {seeds} --dataset digits --data here "
        "--num-samples 7 --num-test 8 --output there --restart --checkpoint-steps 9"
    )
    assert cli.main(line.split()) == 0
    ((args, kwargs),) = calls
    assert args == ("burda-iwae-k5",)
    assert kwargs == {
        "share": 0.5,
        "seeds": [3, 4],
        "dataset": "digits",
        "data": "here",
        "num_samples": 7,
        "num_test": 8,
        "output": Path("there"),
        "restart": True,
        "checkpoint_steps": 9,
    }


@pytest.mark.parametrize("line", ["reproduce", "reproduce --list", "reproduce burda-vae-k1 --list"])
def test_the_set_ups_are_listed(line, calls, capsys):
    assert cli.main(line.split()) == 0
    assert not calls
    printed = capsys.readouterr().out
    assert re.search(r"^burda-iwae-k50 +IWAE +50 +84\.78 +25 ", printed, re.MULTILINE)
    assert re.search(r"^burda-iwae-2-k50 +IWAE +50 +82\.90 +- ", printed, re.MULTILINE)
    assert len(printed.splitlines()) == 11


def test_ctrl_c_ends_in_130(monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(reproduce, "reproduce", stop)
    assert cli.main(["reproduce", "burda-vae-k1"]) == 130
