"""Blocks, objectives and optimizers by the words of a command line: `StudentT(df=4)`.

The words are parsed, and never evaluated: a name of this library or of TFP, with literals as
keyword arguments, or more of such names.
"""

import ast
import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import tensorflow_probability as tfp
import tf_keras as keras

from tfpvae import (
    blocks,
    flows,
    layers,
    likelihoods,
    objectives,
    posteriors,
    priors,
    schedules,
    words,
)

tfd = tfp.distributions

_Optimizer = keras.optimizers.Optimizer
_EMPTY = inspect.Parameter.empty

# They want a network, which a line of text is not.
_LEFT_OUT = {
    posteriors.Implicit,
    priors.Implicit,
    likelihoods.Columns,
    objectives.AdversarialELBO,
}


class _Kind(NamedTuple):
    """What may stand for an argument: the public classes of a module that have a base.

    Attributes:
      module: where the classes are.
      base: what they all are.
      any_distribution: makes a block of the name of any class of TFP, None where there is none.
    """

    module: Any
    base: type
    any_distribution: Any = None


KINDS = {
    "likelihoods": _Kind(likelihoods, blocks.Block, likelihoods.Likelihood),
    "posteriors": _Kind(posteriors, blocks.Block, layers.DistributionLayer),
    "priors": _Kind(priors, priors.Prior, priors.Prior),
    "objectives": _Kind(objectives, objectives.Objective),
    "schedules": _Kind(schedules, schedules.Schedule),
    "flows": _Kind(flows, flows.Flow),
    "optimizers": _Kind(keras.optimizers, _Optimizer),
}
# What takes another object in place of a number or a word.
_INNER = {
    "likelihoods": ("likelihoods",),
    "posteriors": ("flows", "posteriors"),
    "priors": ("flows",),
    "objectives": ("schedules",),
    "schedules": ("schedules",),
    "flows": (),
    "optimizers": (),
}


def names(kind: str) -> dict[str, Any]:
    """The classes of a kind by name.

    Example:
      >>> sorted(names("posteriors"))[:2]
      ['Bernoulli', 'DiagonalNormal']
    """
    module, base, other = KINDS[kind]
    bases = {base, other, _Optimizer} | _LEFT_OUT
    return {
        name: found
        for name, found in vars(module).items()
        if inspect.isclass(found)
        and issubclass(found, base)
        and found not in bases
        and not name.startswith("_")
        and (found.__module__ == module.__name__ or kind == "optimizers")
    }


def listing(kind: str) -> str:
    """The names of a kind as a table, with what each takes and what it is.

    Example:
      >>> print(listing("priors").splitlines()[0])
      StandardNormal() - The standard normal prior of the variational autoencoder.
    """
    lines = []
    for name, found in names(kind).items():
        said = (inspect.getdoc(found) or "").split("\n\n")[0].replace("\n", " ")
        takes = ", ".join(
            parameter.name + ("" if parameter.default is _EMPTY else f"={parameter.default!r}")
            for parameter in _parameters(found).values()
            if parameter.name not in _FILLED
        )
        lines.append(f"{name}({takes}) - {said}")
    if KINDS[kind].any_distribution is not None:
        lines.append(
            "Blocks also take the parameters of their tfd class to fix them, as Normal(scale=0.1); "
            "and any class of tfp.distributions that can be a block: docs/distributions.md"
        )
    return "\n".join(lines)


# What follows from the data, and is not for the user to say.
_FILLED = ("event_shape", "input_shape")


def make(
    argument: str,
    kind: str,
    text: str,
    event_shape: tuple[int, ...] | None = None,
    input_shape: tuple[int, ...] | None = None,
    **given: Any,
) -> Any:
    """What a text stands for: `StudentT(df=4)` for `likelihoods.StudentT(event_shape, df=4)`.

    Args:
      argument: the name that errors give it.
      kind: one of `KINDS`.
      text: a name, and keyword arguments in parentheses if it has some: numbers, strings, lists,
        True, False and None, or more names where a class wants another one, as a flow.
      event_shape: of the block, if it is one.
      input_shape: of x, for priors that are made of pseudo-inputs.
      **given: more arguments, which the text may override.

    Raises:
      ValueError: for what is no such text, an unknown name, or arguments that the class refuses.

    Example:
      >>> make("likelihood", "likelihoods", "StudentT(df=4)", event_shape=(10,)).params_size
      20
      >>> make("likelihood", "likelihoods", "Gumbel", event_shape=(10,)).params_size
      20
      >>> make("objective", "objectives", "ELBO(kl_weight=Linear(num_steps=100))").num_samples
      >>> make("likelihood", "likelihoods", "StudenT", event_shape=(10,))
      Traceback (most recent call last):
      ValueError: likelihood: got 'StudenT', wanted one of likelihoods; did you mean 'StudentT'?...
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        tree = None
    if not isinstance(tree, ast.Name | ast.Call):
        raise ValueError(
            f"{argument}: got {text!r}, wanted a name, with keyword arguments in parentheses if it "
            "takes some: 'StudentT(df=4)'"
        )
    return _made(argument, (kind,), tree, (event_shape, input_shape), given)


def _made(argument: str, kinds: tuple[str, ...], tree: Any, shapes: Any, given: Any) -> Any:
    """What a name or a call stands for."""
    function = tree.func if isinstance(tree, ast.Call) else tree
    text = ast.unparse(tree)
    if not isinstance(function, ast.Name) or (isinstance(tree, ast.Call) and tree.args):
        raise ValueError(
            f"{argument}: got {text!r}, wanted a name with keyword arguments: 'Name(argument=1)'"
        )
    kind, found = _find(argument, kinds, function.id)
    keywords = tree.keywords if isinstance(tree, ast.Call) else []
    takes = _parameters(found)
    # In a block of entries that are alike, what it is made of is for one of them.
    inner = ((), shapes[1]) if "event_shape" in takes and kind == "likelihoods" else shapes
    arguments = {}
    for keyword in keywords:
        if keyword.arg is None or keyword.arg in _FILLED:
            raise ValueError(
                f"{argument}: got {text!r}, wanted arguments other than {keyword.arg or '**'}: "
                "shapes follow from the data"
            )
        arguments[keyword.arg] = _value(argument, _INNER[kind], keyword.value, inner)
    filled = dict(given)
    if shapes[0] is not None and ("event_shape" in takes or found not in names(kind).values()):
        filled["event_shape"] = shapes[0]
    if shapes[1] is not None and "input_shape" in takes and "pseudo_inputs" not in arguments:
        filled["input_shape"] = shapes[1]
    try:
        if found not in names(kind).values():
            return KINDS[kind].any_distribution(found.__name__, **filled | arguments)
        return found(**filled | arguments)
    except Exception as error:  # TensorFlow raises what it likes for arguments that are odd.
        said = " ".join(str(error).replace("__init__()", "").split())
        raise ValueError(f"{argument}: got {text!r}, which cannot be made: {said}") from error


def _value(argument: str, kinds: tuple[str, ...], tree: Any, shapes: Any) -> Any:
    """The value of an argument: a literal, or what a name stands for; also in a list."""
    if isinstance(tree, ast.Name | ast.Call):
        return _made(argument, kinds, tree, shapes, {})
    if isinstance(tree, ast.List | ast.Tuple):
        return [_value(argument, kinds, item, shapes) for item in tree.elts]
    try:
        return ast.literal_eval(tree)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        raise ValueError(
            f"{argument}: got {ast.unparse(tree)!r}, wanted a number, a string, a list, True, "
            "False or None: nothing is computed"
        ) from None


def _find(argument: str, kinds: tuple[str, ...], name: str) -> tuple[str, Any]:
    """The kind and the class of a name; ValueError with the nearest one if there is none."""
    known: dict[str, Any] = {}
    for kind in kinds:
        known |= names(kind)
        for own, found in names(kind).items():  # Keras, too, takes optimizers in any case.
            if own == name or (kind == "optimizers" and own.lower() == name.lower()):
                return kind, found
    others: list[str] = []
    for kind in kinds:
        if KINDS[kind].any_distribution is not None:
            distribution = getattr(tfd, name, None)
            if inspect.isclass(distribution) and issubclass(distribution, tfd.Distribution):
                return kind, distribution
            others = [other for other, value in vars(tfd).items() if inspect.isclass(value)]
    wanted = " or ".join(kinds) or "a number, a string, a list, True, False or None"
    hint = words.nearest(name, [*known, *others])
    lists = f" The list: tfpvae train --list {kinds[0]}" if kinds else ""
    raise ValueError(
        f"{argument}: got {name!r}, wanted {'one of ' if kinds else ''}{wanted}{hint}{lists}"
    )


def _parameters(found: type) -> Mapping[str, Any]:
    """The named arguments of a class."""
    parameters = inspect.signature(found).parameters
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {name: p for name, p in parameters.items() if p.kind not in kinds}
