"""Words of the command line: what they stand for, and that nothing in them is run."""

import contextlib
import re

import numpy as np
import pytest
import tf_keras as keras
from hypothesis import given, settings
from hypothesis import strategies as st

from tfpvae import (
    datasets,
    flows,
    likelihoods,
    objectives,
    posteriors,
    priors,
    schedules,
    specs,
    tables,
    words,
)

SHAPE = (3,)
MEANT = [
    ("likelihoods", "Normal", likelihoods.Normal(SHAPE)),
    ("likelihoods", " Normal( scale = 0.5 ) ", likelihoods.Normal(SHAPE, scale=0.5)),
    ("likelihoods", "Binomial(total_count=[1, 2, 3])", None),
    ("likelihoods", "StudentT(df=4, loc=-1.5)", likelihoods.StudentT(SHAPE, df=4, loc=-1.5)),
    ("likelihoods", "Gumbel(scale=2.0)", likelihoods.Likelihood("Gumbel", SHAPE, scale=2.0)),
    (
        "likelihoods",
        "ZeroInflated(component=Poisson)",
        likelihoods.ZeroInflated(likelihoods.Poisson(SHAPE)),
    ),
    (
        "likelihoods",
        "MixtureOf(component=Normal(scale=0.1), num_components=4)",
        likelihoods.MixtureOf(likelihoods.Normal(scale=0.1), 4, event_shape=SHAPE),
    ),
    ("posteriors", "FullRankNormal", posteriors.FullRankNormal(SHAPE)),
    ("posteriors", "Laplace", None),
    (
        "posteriors",
        "Flow(flow=RealNVP(num_layers=2, hidden_units=[8], context_size=4))",
        posteriors.Flow(SHAPE, flows.RealNVP(2, (8,), context_size=4)),
    ),
    ("priors", "NormalMixture(num_components=2, seed=1)", None),
    ("priors", "Flow(flow=Planar(num_layers=2))", priors.Flow(SHAPE, flows.Planar(2))),
    ("objectives", "IWAE(num_samples=5)", objectives.IWAE(num_samples=5)),
    (
        "objectives",
        "ELBO(kl_weight=Linear(num_steps=10), free_bits=0.1)",
        objectives.ELBO(kl_weight=schedules.Linear(10), free_bits=0.1),
    ),
    ("objectives", "ELBO(kl_weight=[1.0, Linear(num_steps=10)])", None),
    ("optimizers", "SGD(momentum=0.9)", keras.optimizers.SGD(momentum=0.9)),
    ("optimizers", "rmsprop", keras.optimizers.RMSprop()),
]


def config(thing):
    """What a thing is, without the names that Keras counts."""
    found = keras.saving.serialize_keras_object(thing)
    return re.sub(r"'(name|shared_object_id)': [^,}]+[,}]", "", str(found))


@pytest.mark.parametrize(("kind", "text", "wanted"), MEANT, ids=lambda v: str(v)[:30])
def test_what_words_stand_for(kind, text, wanted):
    shape = SHAPE if kind in ("likelihoods", "posteriors", "priors") else None
    made = specs.make("here", kind, text, shape)
    if wanted is not None:
        assert config(made) == config(wanted)
        assert type(made) is type(wanted)


def test_pseudo_inputs_have_the_shape_of_x():
    prior = specs.make("prior", "priors", "VampPrior(num_components=7)", (2,), (4, 4))
    assert isinstance(prior, priors.VampPrior)
    assert prior.get_config()["input_shape"] in ((4, 4), [4, 4])


def test_text_overrides_what_is_given():
    made = specs.make("o", "optimizers", "Adam(learning_rate=0.5)", learning_rate=0.1)
    assert float(made.learning_rate) == 0.5
    assert float(specs.make("o", "optimizers", "Adam", learning_rate=0.1).learning_rate) == (
        pytest.approx(0.1)
    )


REFUSED = {
    "Poison": r"likelihood: got 'Poison', wanted one of likelihoods; did you mean 'Poisson'\?",
    "Gumbell": "did you mean 'Gumbel'",
    "normal": "did you mean 'Normal'",
    "xyzzy": r"wanted one of likelihoods\. The list: tfpvae train --list likelihoods",
    "Normal(3)": "wanted a name with keyword arguments",
    "Normal(foo=1)": r"Normal\(foo=1\)', which cannot be made: foo: not a parameter of tfd.Normal",
    "Normal(scale=-1)": "cannot be made",
    "Normal(scale='a')": "cannot be made",
    "Normal(scale=1 + 1)": "'1 \\+ 1', wanted a number.*nothing is computed",
    "Normal(scale=f(x=1))": "got 'f', wanted one of likelihoods",
    "Normal(scale=(lambda: 1)())": "wanted a name with keyword arguments",
    "Normal(**{'scale': 1})": "wanted arguments other than",
    "Normal(event_shape=7)": "shapes follow from the data",
    "Binomial": "total_count",
    "likelihoods.Normal": "wanted a name",
    "__import__('os').system('touch run')": "wanted a name",
    "Normal(scale=__import__('os').getpid())": "wanted a name",
    "Normal(scale=Linear(num_steps=3))": "got 'Linear', wanted one of likelihoods",
    "Normal; Poisson": "wanted a name",
    "Normal\nPoisson": "wanted a name",
    "": "got '', wanted a name",
    "1": "wanted a name",
    "(" * 500: "wanted a name",
    "Distribution": "cannot be made",
    "Likelihood": "wanted one of likelihoods",
    "Columns": "wanted one of likelihoods",
}


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: text[:30])
def test_what_means_nothing_is_refused(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"likelihood: ") as error:
        specs.make("likelihood", "likelihoods", text, SHAPE)
    assert re.search(REFUSED[text], str(error.value), re.DOTALL)
    assert "\n" not in str(error.value).replace(repr(text), "")
    assert not list(tmp_path.iterdir())


WORDS = ["Normal", "Poisson", "Gumbel", "scale", "loc", "(", ")", "=", ",", "1", "-1", "[", "]"]
WORDS += ["None", "True", "'a'", "+", "**", "{}", "lambda", ":", ".", "__class__", "\n", "# "]


@settings(deadline=None, max_examples=150)
@given(st.one_of(st.text(max_size=30), st.lists(st.sampled_from(WORDS), max_size=9).map("".join)))
def test_any_text_makes_a_block_or_a_value_error(text):
    made = None
    with contextlib.suppress(ValueError):  # Any other error is a fault.
        made = specs.make("likelihood", "likelihoods", text, SHAPE)
    assert made is None or made.event_shape[-1:] == SHAPE


@pytest.mark.parametrize("kind", specs.KINDS)
def test_the_listing_has_all_names_and_what_they_are(kind):
    lines = specs.listing(kind).splitlines()
    for name, line in zip(specs.names(kind), lines, strict=False):
        assert re.fullmatch(rf"{name}\(.*\) - \S.+", line)
    bases = {"Likelihood", "Prior", "Objective", "Schedule", "Optimizer", "Block"}
    assert not bases & {*specs.names(kind)}


def test_names_are_those_of_the_modules():
    assert {"Normal", "Masked", "MixtureOf", "NegativeBinomial"} <= {*specs.names("likelihoods")}
    assert specs.names("objectives")["IWAE"] is objectives.IWAE
    assert {*specs.names("flows")} >= {"Planar", "NeuralSpline"}
    assert "Flow" not in specs.names("flows")
    assert specs.names("posteriors")["Flow"] is posteriors.Flow


def test_lists_become_lists():
    made = specs.make("o", "objectives", "ELBO(kl_weight=[1.0, Linear(num_steps=10)])")
    assert isinstance(made.kl_weight, schedules.PerLayer)
    made = specs.make("l", "likelihoods", "Binomial(total_count=[1, 2, 3])", SHAPE)
    np.testing.assert_array_equal(made.fixed["total_count"], [1, 2, 3])


def test_the_words_that_are_known_before_tensorflow_are_all():
    assert tuple(sorted(specs.KINDS)) == words.KINDS
    assert tuple(datasets.MAX_LEVELS) == words.DATA_SETS
    assert words.SUFFIXES == tables.SUFFIXES
