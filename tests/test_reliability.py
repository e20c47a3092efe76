"""A small share of tests/reliability.py, and that nothing public is forgotten by it."""

import warnings

import hostile
import matplotlib.pyplot as plt
import numpy as np
import pytest
import reliability

CASES = hostile.cases()
SHARED = hostile.Shared()  # One for all examples; they are put back after each.


def test_every_public_callable_has_a_line_or_a_reason():
    public = {*hostile.public()}
    assert len(public) > 300
    forgotten = {path for path in public if path not in CASES and not hostile.left_out(path)}
    assert not forgotten, "a new public callable needs a line in hostile.cases()"
    assert {*CASES} <= public


def attempt(path, num):
    with warnings.catch_warnings():  # What odd inputs are warned of is not looked at here.
        warnings.simplefilter("ignore")
        found = reliability.tries(CASES[path], SHARED, num)
    assert found
    assert not [fault for fault in found if fault]


# Constructors and plots take milliseconds, models first have to be trained.
QUICK = [path for path in CASES if path.split(".")[0] in ("objectives", "schedules", "plotting")]


@pytest.mark.parametrize("path", QUICK)
def test_odd_inputs_are_taken_or_refused_by_name(path):
    attempt(path, 3)


@pytest.mark.long
@pytest.mark.parametrize("path", [path for path in CASES if path not in QUICK])
def test_odd_inputs_of_models(path):
    attempt(path, 5)


@pytest.mark.long
@pytest.mark.parametrize("path", CASES)
def test_what_is_good_is_taken(path):
    """Or else a case would show nothing: all its calls would be refused for the same reason."""
    case = CASES[path]
    arguments = {name: hostile.good_value(value) for name, value in case.good.items()}
    try:
        case.of(SHARED)(**arguments)
    except case.raises:
        pass
    finally:
        plt.close("all")


def test_a_fault_is_seen():
    """The judge itself: an error that names nothing, another error, NaN weights."""

    def case(function):
        return hostile.Case(lambda shared: function, {"x": np.ones(3)})

    def unnamed(x):
        raise ValueError("no")

    def named(x):
        raise ValueError("x: got ones, wanted twos")

    def other(x):
        return {}[0]

    assert hostile.tried(SHARED, case(named), {}) is None
    assert hostile.tried(SHARED, case(lambda x: x), {}) is None
    assert "names no argument" in hostile.tried(SHARED, case(unnamed), {})
    assert "KeyError" in hostile.tried(SHARED, case(other), {})


def test_one_trace_serves_all_batch_sizes():
    vae = reliability.small_vae()
    x = np.zeros((64, 8), "float32")
    vae.fit(x[:40], batch_size=20, verbose=0)
    with reliability._Traces(vae) as traces:
        for rows, batch_size in ((40, 40), (33, 7), (1, 1), (64, 64), (64, 16)):
            vae.fit(x[:rows], batch_size=batch_size, verbose=0)
    assert traces.total == 0


def test_the_table_is_replaced_line_by_line(tmp_path):
    page = "above\n" + "\n".join(reliability.MARKS) + "\nbelow\n"
    row = reliability.Row("fits", "3 calls", "flat", "7 MiB")
    once = reliability.updated(page, {"soak": [row]})
    assert "| soak | fits | 3 calls | flat | 7 MiB |" in once
    assert "| kills | not run | | | |" in once
    twice = reliability.updated(once, {"kills": [reliability.Row("kills", "2", "2")]})
    assert "| soak | fits | 3 calls | flat | 7 MiB |" in twice
    assert "| kills | kills | 2 | 2 |  |" in twice
    assert twice.count("not run") == len(reliability.SECTIONS) - 2
    assert twice.startswith("above\n")
    assert twice.endswith("\nbelow\n")
