"""The options that an agent takes: names, defaults and meanings, read where they are written.

A rule's are the keyword arguments of its class, explained by the class's docstring; HBO's are the
fields of its options; a trained algorithm's are the keyword arguments of Stable-Baselines3's class,
with the preset's values over the defaults, and those of its policy.
"""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from mixgym.agents.registry import find_algorithm
from mixgym.envs.errors import ConfigError, did_you_mean
from mixgym.envs.plugins.outside import load_object

_NOT_OPTIONS = (
    *("self", "env", "names", "policy", "policy_kwargs", "seed", "device", "_init_setup_model"),
    *("observation_space", "action_space", "lr_schedule", "level", "verbose", "tensorboard_log"),
)
"""Arguments of factories that are not the user's to give."""

_ANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
        name: its key, such as ``agent.options.tau``.
        default: what it is if it is not given.
        about: what it means; empty where nobody says.
    """

    name: str
    default: Any
    about: str


def options_of(name: str) -> list[Option]:
    """Every option of an algorithm by its key in a configuration.

    ``agent.options.*`` where it acts at once, ``train.options.*`` and ``train.policy.*`` where it
    is trained by `mixgym train`; HBO is both.

    Raises:
        ConfigError: for an unknown name.
    """
    algorithm = find_algorithm(name)
    found = [] if algorithm.is_trained else _acting(name, "agent.options.")
    preset = algorithm.training
    if preset is not None:
        found += _of_callable(load_object(preset.algorithm), preset.options, "train.options.")
        found += _of_callable(
            load_object(preset.policy), preset.policy_options, "train.policy.", inherited=False
        )
    return found


def check_options(name: str, given: Mapping[str, Any]) -> None:
    """Refuse options that a rule does not take.

    Raises:
        ConfigError: naming the options that there are.
    """
    if find_algorithm(name).options is not None:
        return  # it reads its sections itself
    known = [option.name for option in _acting(name, "")]
    for key in given:
        if key not in known:
            help_ = did_you_mean(str(key), known) if known else "it takes none"
            raise ConfigError(f"agent.options.{key}: {name} has no such option; {help_}")


def _acting(name: str, prefix: str) -> list[Option]:
    """The options of an agent that acts without a training."""
    algorithm = find_algorithm(name)
    if algorithm.options is None:
        return _of_callable(algorithm.load(), {}, prefix)
    model: type[BaseModel] = load_object(algorithm.options)
    return list(_of_model(model, algorithm.preset(), prefix))


def _of_callable(
    factory: Callable[..., Any],
    values: Mapping[str, Any],
    prefix: str,
    *,
    inherited: bool = True,
) -> list[Option]:
    """The keyword arguments of a factory; ``values`` go over their defaults.

    Args:
        factory: a function or a class.
        values: the preset's.
        prefix: of the keys.
        inherited: whether a class that passes ``**kwargs`` on takes its base's too.
    """
    meanings = _described_arguments(factory)
    known = parameters_of(factory) if inherited else inspect.signature(factory).parameters
    defaults = {
        name: None if parameter.default is inspect.Parameter.empty else parameter.default
        for name, parameter in known.items()
        if name not in _NOT_OPTIONS and parameter.kind not in _ANY
    }
    return [
        Option(f"{prefix}{name}", default, meanings.get(name, ""))
        for name, default in {**defaults, **values}.items()
    ]


def parameters_of(factory: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters of a callable by name; a class that passes ``**kwargs`` on has its base's too.

    >>> class Base:
    ...     def __init__(self, size: int = 1) -> None: ...
    >>> class Own(Base):
    ...     def __init__(self, *args: int, rate: float = 0.5, **kwargs: int) -> None: ...
    >>> list(parameters_of(Own))
    ['size', 'rate']
    """
    found: dict[str, inspect.Parameter] = {}
    makers = [factory]
    if inspect.isclass(factory):
        makers = [vars(base)["__init__"] for base in factory.mro() if "__init__" in vars(base)]
    for maker in makers:
        own = inspect.signature(maker).parameters
        kinds = {parameter.kind for parameter in own.values()}
        named = {n: p for n, p in own.items() if p.kind not in _ANY and n != "self"}
        found = {**named, **found}
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            break
    return found


def _of_model(model: type[BaseModel], values: Mapping[str, Any], prefix: str) -> Iterator[Option]:
    for field, info in model.model_fields.items():
        name = info.alias or field
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _of_model(kind, values.get(name, {}), f"{prefix}{name}.")
        else:
            default = values.get(name, info.get_default(call_default_factory=True))
            yield Option(f"{prefix}{name}", default, info.description or "")


def _described_arguments(factory: Callable[..., Any]) -> dict[str, str]:
    """Argument -> meaning, out of the section ``Args:`` of a Google docstring, or of ``:param``.

    >>> def scaled(size: float) -> float:
    ...     '''Scale.
    ...
    ...     Args:
    ...         size: how large,
    ...             in metres.
    ...     '''
    >>> _described_arguments(scaled)
    {'size': 'how large, in metres.'}
    """
    text = inspect.getdoc(factory) or ""
    section = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)*)", text, re.MULTILINE)
    pattern = r"^ {4}(\w+): (.*(?:\n {8}.*)*)" if section else r"^:param (\w+): ?(.*(?:\n +.*)*)"
    body = section[1] if section else text
    return {
        name: " ".join(words.split()) for name, words in re.findall(pattern, body, re.MULTILINE)
    }
