"""The checks pass what holds, and name what does not: every flaw is caught by its own check."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from stable_baselines3 import PPO
from typer.testing import CliRunner

from mixgym.agents.registry import ALGORITHMS, Algorithm
from mixgym.agents.requires import RULE
from mixgym.agents.rule import Rule
from mixgym.envs.errors import ConfigError
from mixgym.envs.packing.packed import Packing
from mixgym.envs.packing.packers import PACKERS, PackerKind, check_lengths
from mixgym.envs.plugins.registry import registries
from mixgym.envs.probes import ProbeKind
from mixgym.envs.rewards import REWARDS, Reward, RewardKind, progress
from mixgym.envs.sources.rows.formats import FORMATS, Parsed, RowFormat
from mixgym.envs.sources.scorers import ScorerKind
from mixgym.trainer.cli.main import app
from mixgym.trainer.merging.methods.catalogue import MethodSpec
from mixgym.trainer.plugins.command import KINDS, check_plugin, find_kind

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "plugin"
MODULE = "solar_plugins"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    made = ModuleType(MODULE)
    monkeypatch.setitem(sys.modules, MODULE, made)
    yield made
    for table in registries().values():
        for word in [word for word in table._found if word.startswith(MODULE)]:
            del table._found[word]


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLE)


def failed(report: Any) -> dict[str, str]:
    return {one.check: one.said for one in report.findings if not one.passed}


@pytest.mark.parametrize("name", ["SPREAD", "BySpread", "FadingPPO"])
def test_the_example_holds_everything(example: None, name: str) -> None:
    report = check_plugin(f"mixgym_example:{name}")
    assert failed(report) == {}
    assert len(report.findings) >= 5
    assert report.origin == "module mixgym_example"


def test_a_bare_function_needs_a_word_for_what_it_is(example: None) -> None:
    with pytest.raises(ConfigError, match=r"nothing that tells its kind; add --as reward, --as pr"):
        check_plugin("mixgym_example:median")
    assert failed(check_plugin("mixgym_example:median", "reward")) == {}
    with pytest.raises(ConfigError, match=r"--as rewad: no kind of plug-in; did you mean reward"):
        check_plugin("mixgym_example:median", "rewad")


@pytest.mark.parametrize("word", REWARDS)
def test_rewards_of_the_package_hold_it(word: str) -> None:
    assert failed(check_plugin(word, "reward")) == {}


@pytest.mark.parametrize("word", PACKERS)
def test_packers_of_the_package_hold_it(word: str) -> None:
    assert failed(check_plugin(word, "packer")) == {}


@pytest.mark.parametrize("word", [word for word in FORMATS if word != "messages"])
def test_formats_of_the_package_hold_it(word: str) -> None:
    assert failed(check_plugin(word, "row-format")) == {}


@pytest.mark.parametrize(
    "word", ["uniform", "temperature", "exp3", "ado", "aioli", "doge", "doremi", "easy_to_hard"]
)
def test_rules_of_the_package_hold_it(word: str) -> None:
    assert failed(check_plugin(word)) == {}


def test_what_is_built_in_elsewhere_is_said() -> None:
    for word in ("ties", "ifd"):
        with pytest.raises(ConfigError, match="is built in"):
            check_plugin(word)


def test_kinds_are_told_by_class_and_by_who_registers() -> None:
    def table(name: str) -> Any:
        return KINDS[name].registry()

    assert [table(name).group for name in KINDS] == [
        f"mixgym.{name}"
        for name in (
            "rewards",
            "probes",
            "algorithms",
            "scorers",
            "row_formats",
            "packers",
            "merge_methods",
        )
    ]
    assert set(ALGORITHMS) >= {"ppo"}


def test_a_decorated_function_tells_its_kind(module: ModuleType) -> None:
    def calm(seen: Any) -> Reward:
        """The same as progress."""
        return progress(seen)

    module.calm = calm  # type: ignore[attr-defined]
    REWARDS.register("solar_calm", calm)
    try:
        assert find_kind(f"{MODULE}:calm") == "reward"
        assert failed(check_plugin(f"{MODULE}:calm")) == {}
    finally:
        REWARDS._registered.pop("solar_calm")
        dict.pop(REWARDS, "solar_calm")


# --- flaws: (what is wrong, the check that says so, a part of the sentence) ---


def paid(value: Callable[[Any], Any], **fields: Any) -> RewardKind:
    def compute(seen: Any) -> Reward:
        found = value(seen)
        return Reward(found, seen.before - seen.after, {"mine": found})

    return RewardKind("a reward", compute, **fields)


def mean_fall(seen: Any) -> Any:
    return np.nanmean(np.where(seen.targets > 0, seen.before - seen.after, np.nan), -1)


def drawn(seen: Any) -> Any:
    return mean_fall(seen) + np.random.default_rng().random(np.shape(seen.before)[:-1])


def written(seen: Any) -> Any:
    seen.before[...] = 0.0
    return mean_fall(seen)


REWARD_FLAWS: dict[str, tuple[Any, str, str]] = {
    "sums all": (paid(lambda s: np.nansum(s.before)), "shape", "reduce over the last axis only"),
    "no reward": (RewardKind("x", lambda s: 1.0), "shape", "return a Reward"),
    "NaN": (paid(lambda s: (s.before - s.after).mean(-1)), "finite", "leave such sources out"),
    "draws": (paid(drawn), "deterministic", "take seen.draws"),
    "writes": (paid(written), "deterministic", "work on a copy"),
    "neighbours": (
        paid(lambda s: mean_fall(s) - np.mean(mean_fall(s))),
        "batched equals single",
        "know nothing of each other",
    ),
    "counts absent ones": (
        paid(lambda s: mean_fall(s) / s.before.shape[-1]),
        "padding",
        "a source that is absent",
    ),
    "unsaid probes": (
        paid(lambda s: np.nanmean(s.source_probe, -1)),
        "cost declared",
        "it raised TypeError",
    ),
    "silent": (RewardKind("", progress), "summary", "a docstring"),
    "components": (
        RewardKind("x", lambda s: Reward(mean_fall(s), s.before, {"half": mean_fall(s) / 2})),
        "components",
        "do not add up",
    ),
}


@pytest.mark.parametrize("name", REWARD_FLAWS)
def test_flaws_of_rewards(module: ModuleType, name: str) -> None:
    module.PLUGIN, check, said = REWARD_FLAWS[name]  # type: ignore[attr-defined]
    assert said in failed(check_plugin(f"{MODULE}:PLUGIN"))[check]


def probe(curves: Any = None, language: Any = None, **fields: Any) -> ProbeKind:
    return ProbeKind("a probe", "stratum", curves=curves, language=language, **fields)


def greedy(probes: Any) -> Any:
    for _ in range(3):
        losses = probes.row_losses()
    return probes.cell_means(losses)


def heavy_handed(probes: Any) -> Any:
    for parameter in probes.probed.parameters():
        parameter.data.mul_(1.01)
    return probes.cell_means(probes.row_losses())


PROBE_FLAWS: dict[str, tuple[Any, str, str]] = {
    "logarithm": (
        probe(lambda seen: np.log(seen.state.given)),
        "fast world: finite",
        "guard divisions and logarithms",
    ),
    "level": (probe(lambda seen: seen.nll.mean(-1)), "fast world: finite", "level is stratum"),
    "draws": (
        probe(lambda seen: seen.nll + np.random.default_rng().random()),
        "fast world: deterministic",
        "draw nothing",
    ),
    "neighbours": (
        probe(lambda seen: seen.nll - seen.nll.mean()),
        "fast world: batched equals single",
        "leading axes",
    ),
    "dear": (
        probe(language=greedy),
        "text: finite, deterministic, cost declared",
        "raise passes",
    ),
    "trains": (
        probe(language=heavy_handed),
        "text: finite, deterministic, cost declared",
        "gave two values",
    ),
    "NaN on text": (
        probe(language=lambda p: p.cell_means(p.row_losses()) * np.inf),
        "text: finite, deterministic, cost declared",
        "is not finite",
    ),
}


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize("name", PROBE_FLAWS)
def test_flaws_of_probes(module: ModuleType, name: str) -> None:
    module.PLUGIN, check, said = PROBE_FLAWS[name]  # type: ignore[attr-defined]
    assert said in failed(check_plugin(f"{MODULE}:PLUGIN"))[check]


class Sound(Rule):
    """Alike."""

    def weights(self, signals: Any, memory: Any) -> tuple[Any, None]:
        return signals.trainable.astype(float), None


class Unknown(Sound):
    """Divides by nothing."""

    def weights(self, signals: Any, memory: Any) -> tuple[Any, None]:
        return signals.sources["size"] * np.nan, None


class Nobody(Sound):
    """Gives nobody anything."""

    def weights(self, signals: Any, memory: Any) -> tuple[Any, None]:
        return np.zeros(len(signals.trainable)), None


class Random(Sound):
    """Draws."""

    def weights(self, signals: Any, memory: Any) -> tuple[Any, None]:
        return np.random.default_rng().random(len(signals.trainable)) + 0.1, None


class Private(Sound):
    """Counts its calls in itself."""

    calls = 0

    def weights(self, signals: Any, memory: Any) -> tuple[Any, None]:
        self.calls += 1
        return np.arange(len(signals.trainable)) + float(self.calls), None


class Forgetful(Sound):
    """Does not say its options.

    Args:
        power: some.
    """

    def __init__(self, env: Any = None, names: Any = (), *, power: float = 1.0) -> None:
        super().__init__(env, names)


class Silent(Sound):
    """Does not explain."""

    def __init__(self, env: Any = None, names: Any = (), *, power: float = 1.0) -> None:
        super().__init__(env, names)

    def options(self) -> dict[str, Any]:
        return {"power": 1.0}


class Reads(Sound):
    """Reads a probe that it does not ask for."""

    def weights(self, signals: Any, memory: Any) -> tuple[Any, None]:
        return signals.probes["loss"].mean(-1), None


RULE_FLAWS: dict[str, tuple[Any, str, str]] = {
    "NaN": (Unknown, "finite", "guard divisions"),
    "nothing": (Nobody, "finite", "all 0"),
    "draws": (Random, "deterministic", "a generator that is seeded"),
    "own memory": (Private, "memory in the state", "belongs into the state"),
    "batch": (Private, "batched equals single", "keep memory in the state"),
    "options": (Forgetful, "saved and loaded", "leaves out power"),
    "explained": (Silent, "options explained", "write a section Args:"),
    "unasked": (Reads, "finite", "it raised KeyError"),
    "period": (
        Algorithm("x", Sound, RULE.__class__(**{**vars(RULE), "probes": {"loss": 0}})),
        "cost declared",
        "at least 1",
    ),
}


def test_a_sound_rule_passes(module: ModuleType) -> None:
    module.PLUGIN = Sound  # type: ignore[attr-defined]
    assert failed(check_plugin(f"{MODULE}:PLUGIN")) == {}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", RULE_FLAWS)
def test_flaws_of_rules(module: ModuleType, name: str) -> None:
    module.PLUGIN, check, said = RULE_FLAWS[name]  # type: ignore[attr-defined]
    assert said in failed(check_plugin(f"{MODULE}:PLUGIN"))[check]


class Idle(PPO):
    """Learns nothing."""

    def train(self) -> None:
        """Nothing."""


class Fickle(PPO):
    """Draws elsewhere."""

    def train(self) -> None:
        self.learning_rate = 1e-3
        super().train()
        for parameter in self.policy.parameters():
            parameter.data += float(np.random.default_rng().random()) * 1e-3


@pytest.mark.parametrize(
    ("plugin", "check", "said"),
    [
        (Idle, "trains in the fast world", "led to no update"),
        (Fickle, "deterministic by seed", "left different parameters"),
    ],
)
def test_flaws_of_trained_algorithms(
    module: ModuleType, plugin: Any, check: str, said: str
) -> None:
    module.PLUGIN = plugin  # type: ignore[attr-defined]
    assert said in failed(check_plugin(f"{MODULE}:PLUGIN"))[check]


def lossy(lengths: Any, capacity: int, generator: Any) -> Packing:
    """Loses the last one."""
    check_lengths(lengths, capacity)
    count = max(len(lengths) - 1, 0)
    return Packing(np.arange(count), np.arange(count + 1))


def stuffed(lengths: Any, capacity: int, generator: Any) -> Packing:
    """All in one."""
    check_lengths(lengths, capacity)
    return Packing(np.arange(len(lengths)), np.array([0, len(lengths)]))


def careless(lengths: Any, capacity: int, generator: Any) -> Packing:
    """One each."""
    return Packing(np.arange(len(lengths)), np.arange(len(lengths) + 1))


def shuffled(lengths: Any, capacity: int, generator: Any) -> Packing:
    """One each, anyhow."""
    order = np.random.default_rng().permutation(len(lengths))
    return Packing(order, np.arange(len(lengths) + 1))


DATA_FLAWS: dict[str, tuple[str, Any, str, str]] = {
    "lossy": ("packer", PackerKind("x", lossy), "every document once", "a document is lost"),
    "stuffed": ("packer", stuffed, "every document once", "a pack holds"),
    "careless": ("packer", careless, "refuses what no pack holds", "check_lengths first"),
    "shuffled": ("packer", shuffled, "deterministic", "the generator that is given"),
    "shape": ("scorer", lambda rows: 1.0, "finite", "one number for each"),
    "rank": (
        "scorer",
        ScorerKind("x", score=lambda rows: np.argsort(np.argsort(rows.lengths))),
        "batched equals single",
        "grade each row by itself",
    ),
    "no stratum": (
        "scorer",
        ScorerKind("x", score=lambda rows: rows.lengths + 0.5, is_stratum=True),
        "finite",
        "is no stratum's number",
    ),
    "nothing learnt": (
        "row-format",
        RowFormat((("a",),), lambda row, _: Parsed((("user", "x"),), None)),
        "parsed",
        "nothing to learn",
    ),
    "raises": (
        "row-format",
        RowFormat((("a",),), lambda row, _: Parsed((), row["a"].strip() or "x")),
        "malformed rows",
        "raise a MalformedError",
    ),
    "neighbours": (
        "merge-method",
        lambda values, base, settings: values[0] - values[0].mean(),
        "element by element",
        "from the elements in its place alone",
    ),
    "short": (
        "merge-method",
        MethodSpec(
            "x", "x", "function", "unused", compute=lambda values, base, settings: values[0][:1]
        ),
        "finite",
        "one value for each",
    ),
}


@pytest.mark.parametrize("name", DATA_FLAWS)
def test_flaws_of_the_rest(module: ModuleType, name: str) -> None:
    kind, module.PLUGIN, check, said = DATA_FLAWS[name]  # type: ignore[attr-defined]
    assert said in failed(check_plugin(f"{MODULE}:PLUGIN", kind))[check]


def test_sound_ones_of_the_rest_pass(module: ModuleType) -> None:
    module.score = lambda rows: rows.lengths * 2.0  # type: ignore[attr-defined]
    module.score.__doc__ = "Twice the length."
    module.mean = lambda values, base, settings: np.mean(values, axis=0)  # type: ignore[attr-defined]
    module.mean.__doc__ = "The mean."
    assert failed(check_plugin(f"{MODULE}:score", "scorer")) == {}
    assert failed(check_plugin(f"{MODULE}:mean", "merge-method")) == {}


def test_the_command_answers_with_its_exit_code(module: ModuleType) -> None:
    module.PLUGIN = paid(mean_fall)  # type: ignore[attr-defined]
    module.BAD = paid(drawn)  # type: ignore[attr-defined]
    run = CliRunner().invoke
    good = run(app, ["check-plugin", f"{MODULE}:PLUGIN"])
    assert good.exit_code == 0
    assert "all checks passed" in good.stdout
    bad = run(app, ["check-plugin", f"{MODULE}:BAD", "--json"])
    assert bad.exit_code == 1
    answer = json.loads(bad.stdout)
    assert (answer["kind"], answer["passed"]) == ("reward", False)
    assert "FAILED  deterministic" in run(app, ["check-plugin", f"{MODULE}:BAD"]).stdout
    misuse = run(app, ["check-plugin", f"{MODULE}:PLUGNI"])
    assert misuse.exit_code == 2
    assert "did you mean PLUGIN?" in misuse.output
