"""One configuration -> one environment, wired. The only place that knows all the parts."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mixgym.envs.arrays import FloatArray
from mixgym.envs.environment import EpisodeHook, MixtureEnv
from mixgym.envs.errors import ConfigError
from mixgym.envs.interval_plan import Budget, DataPlane
from mixgym.envs.learners.base import Learner, PlainStep, StepRule
from mixgym.envs.learners.corpus import Corpus, check_vocabulary
from mixgym.envs.learners.corpus import load_corpus as load_corpus  # the way in for other floors
from mixgym.envs.learners.kinds import CAUSAL_LM, CURVES, LEARNERS, LearnerName
from mixgym.envs.options import (
    EnvironmentOptions,
    TrainingOptions,
    Unit,
    WorldOptions,
)
from mixgym.envs.ranks import world_size
from mixgym.envs.sources.source import Source
from mixgym.envs.spaces.mixture import Mixture, normalise
from mixgym.envs.spaces.priors import prior_weights
from mixgym.envs.world import World

if TYPE_CHECKING:
    from mixgym.envs.curves.tasks.sets import Tasks
    from mixgym.envs.learners.causal_lm import CausalLM
    from mixgym.envs.packing.setup import PackingSetup


BOUND = (
    "an environment around a language model holds its model, optimiser and rows, and is neither "
    "pickled nor deep-copied: use fork() for a second one in this process, save(folder) and "
    "load(folder) for another"
)


def build_environment(
    options: WorldOptions,
    *,
    on_episode_end: EpisodeHook | None = None,
    render_mode: str | None = None,
) -> MixtureEnv:
    """The environment of a configuration.

    Raises:
        MixgymError: if a source, the model or an option cannot be used (the message says which).
    """
    environment = _padded(options.environment)
    world, training = _WORLDS[environment.learner](options)
    return MixtureEnv(world, environment, training, on_episode_end, render_mode)


def _cell_sizes(sources: Sequence[Source], unit: Unit) -> FloatArray:
    """float64[K, G], what the training rows of each cell hold, in the unit of the ratios."""
    sizes = np.zeros((len(sources), sources[0].n_strata))
    for k, source in enumerate(sources):
        rows = source.splits["train"]
        amount = {
            "supervised_tokens": rows.supervised,
            "tokens": rows.lengths,
            "rows": np.ones(len(rows), np.int64),
        }[unit]
        np.add.at(sizes[k], source.strata["train"], amount)
    return sizes


def _make_prior(
    names: Sequence[str],
    sizes: FloatArray,
    cost: FloatArray,
    targets: FloatArray,
    options: EnvironmentOptions,
) -> Mixture:
    """The mixture that a zero action stands for.

    Inside a source it is always the natural one: every stratum by its size.

    Args:
        names: of the K sources.
        sizes: float64[K, G], see :func:`_cell_sizes`.
        cost: float64[K], tokens read per supervised token.
        targets: float64[K].
        options: ``prior`` is a word or a weight for every source by name.

    Raises:
        ConfigError: for names that are missing or unknown.
    """
    trainable = sizes.sum(-1) > 0
    if isinstance(options.prior, str):
        weights = prior_weights(options.prior, sizes.sum(-1), cost, targets)
    else:
        wrong = set(names) ^ set(options.prior)
        if wrong:
            raise ConfigError(
                f"environment.prior: give a weight to every source and to no other; "
                f"{', '.join(sorted(wrong))} is missing or unknown"
            )
        weights = np.array([options.prior[name] for name in names]) * trainable
    if weights.sum() <= 0:
        raise ConfigError("environment.prior: no source that can be trained on has a weight")
    return Mixture(weights / weights.sum(), normalise(sizes, sizes > 0))


def _language_world(options: WorldOptions) -> tuple[World, TrainingOptions]:
    from mixgym.envs.learners.causal_lm import CausalLM
    from mixgym.envs.learners.models.loading import load_model

    corpus = load_corpus(options)
    reference = _reference_of(options, corpus)
    learner = CausalLM(
        lambda: load_model(options.model, options.data.max_length),
        corpus.tokenizer,
        corpus.sources,
        max_length=options.data.max_length,
        model_options=options.model,
        training=options.training,
        seed=options.seed,
        probe_rows=options.environment.probe_rows,
        make_reference=reference,
    )
    check_vocabulary(corpus, learner.model, options.model.name)
    world = row_world(options, corpus.sources, learner)
    if reference is not None:
        world = replace(world, reference=lambda: reference().evaluate("reward"))
    return replace(world, bound=BOUND), options.training


def _reference_of(options: WorldOptions, corpus: Corpus) -> "Callable[[], CausalLM] | None":
    """Makes the learner that holds the reference model; it is loaded when it is asked for.

    Raises:
        ConfigError: if there is no model in the folder, or its tokenizer is another one.
    """
    folder = options.environment.reference
    if folder is None:
        return None
    from mixgym.envs.learners.causal_lm import CausalLM
    from mixgym.envs.learners.models.loading import load_model, load_tokenizer
    from mixgym.envs.learners.models.model_source import said_of

    model = options.model.model_copy(update={"name": folder})
    if not Path(folder).is_dir():
        raise ConfigError(
            f"environment.reference={folder}: no such folder; give one that holds a fine-tuned "
            "model (config.json and its weights)"
        )
    with said_of("environment.reference"):
        own = load_tokenizer(model, lambda: iter(()))
    if own.get_vocab() != corpus.tokenizer.get_vocab():
        raise ConfigError(
            f"environment.reference={folder}: its tokenizer is not that of model.name="
            f"{options.model.name}, so their losses cannot be compared: give a reference "
            "that was fine-tuned from the same model, on the same sources"
        )
    return lambda: CausalLM(
        lambda: load_model(model, options.data.max_length),
        corpus.tokenizer,
        corpus.sources,
        max_length=options.data.max_length,
        model_options=model,
        training=options.training,
        seed=options.seed,
        probe_rows=options.environment.probe_rows,
    )


def row_world(
    options: WorldOptions,
    sources: Sequence[Source],
    learner: Learner,
    processes: int | None = None,
) -> World:
    """The world of sources that have rows, around any learner.

    Args:
        options: the configuration.
        sources: K of them.
        learner: what is trained.
        processes: that steps are laid out for; those there are if None.
    """
    from mixgym.envs.packing.costs.token_cost import token_seconds, tokens_read

    data = options.data
    setup = packing_setup(options, sources, learner, processes)
    make_plane = _planes(options, sources, setup)
    names = [source.name for source in sources]
    targets = np.array([source.target for source in sources])
    sizes, cost = _cell_sizes(sources, data.unit), tokens_read(sources)
    return World(
        names=tuple(names),
        targets=targets,
        prior=_make_prior(names, sizes, cost[0], targets, options.environment),
        cell_size=sizes,
        cost=cost[0],
        cell_cost=cost[1],
        learner=learner,
        make_plane=make_plane,
        step_rule=_make_step_rule(options, tuple(names), sizes),
        fingerprint=_fingerprint(sources),
        constants=token_seconds(sources, setup),
    )


def _planes(
    options: WorldOptions, sources: Sequence[Source], setup: "PackingSetup"
) -> Callable[[int], DataPlane]:
    """Makes the data plane of an episode, by its seed."""
    from mixgym.envs.packing.plane import PackedPlane
    from mixgym.envs.packing.whole_run import WholeRunPlane

    data, training = options.data, options.training

    def make(seed: int) -> DataPlane:
        plane = PackedPlane(
            sources,
            unit=data.unit,
            capacity=data.max_length,
            packs=training.packs,
            seed=seed,
            setup=setup,
        )
        if not setup.whole_run:
            return plane
        whole = Budget(training.steps, training.supervised_tokens, training.tokens)
        return WholeRunPlane(plane, whole, sources)

    return make


def packing_setup(
    options: WorldOptions,
    sources: Sequence[Source],
    learner: Learner | None = None,
    processes: int | None = None,
) -> "PackingSetup":
    """Groups, packer, balance and cost model of a configuration, for the processes there are.

    Args:
        options: ``data.packing``, ``data.max_length`` and ``training.packs``.
        sources: whose training rows the groups are chosen for.
        learner: of rows; the shape of its model is looked up by name if there is none.
        processes: that will train; those there are if None.

    Raises:
        ConfigError: for groups or a machine that cannot be used.
    """
    from mixgym.envs.learners.models.loading import model_config
    from mixgym.envs.packing.costs.descriptions import model_of
    from mixgym.envs.packing.setup import PackingTask, make_setup

    model = getattr(learner, "model", None)
    config = model.config if model is not None else model_config(options.model, options.data)
    try:
        shape = model_of(config, element_bytes=2 if options.model.precision == "bf16" else 4)
    except ConfigError:  # its cost is unknown, which only groups=auto minds
        shape = None
    task = PackingTask(
        np.concatenate([source.splits["train"].lengths for source in sources]),
        options.data.max_length,
        options.training.packs,
        processes or world_size(),
        shape,
        options.seed,
    )
    setup = make_setup(options.data.packing, task)
    if options.training.interval < len(setup.config.groups):
        raise ConfigError(
            f"training.interval={options.training.interval}: each of the "
            f"{len(setup.config.groups)} groups of data.packing needs a step in every interval: "
            "raise it, or use fewer groups"
        )
    return setup


def _make_step_rule(options: WorldOptions, names: tuple[str, ...], sizes: FloatArray) -> StepRule:
    """The rule that takes the optimiser's steps.

    Args:
        options: ``environment.step_rule`` and ``bilevel``.
        names: of the K sources.
        sizes: float64[K, G], see :func:`_cell_sizes`.

    Raises:
        ConfigError: if the rule needs another learner, or more sources.
    """
    if options.environment.step_rule == "plain":
        return PlainStep()
    from mixgym.envs.bilevel.rule import BilevelStep

    learner = LEARNERS[options.environment.learner]
    wanted = options.bilevel.on(learner.name)
    if learner.closed_form and (wanted.estimator, wanted.act) != ("alignment", "sampling"):
        raise ConfigError(
            f"bilevel.estimator={wanted.estimator}, act={wanted.act}: learner {learner.name} "
            "knows the alignment of its sources and has no second model: use alignment and sampling"
        )
    return BilevelStep(wanted, names, sizes.sum(-1), options.seed)


def _fingerprint(sources: Sequence[Source]) -> str:
    """A digest of every token, label and stratum, by which a resume knows its rows again."""
    digest = hashlib.sha256()
    for source in sources:
        digest.update(f"{source.name}\x00{source.target}\x00{source.max_epochs}".encode())
        for split in source.splits:
            rows = source.splits[split]
            for array in (rows.digests, source.strata[split]):
                digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:32]


def _curves_world(options: WorldOptions) -> tuple[World, TrainingOptions]:
    from mixgym.envs.curves.tasks.sets import least_sources, task_set

    if options.sources != "embedded":
        raise ConfigError(
            "environment.learner=curves has no rows: leave sources out, or use learner causal_lm"
        )
    tasks = task_set(options.environment.tasks, options.seed, options.data.strata)
    return TaskWorlds(options, tasks, least_sources(tasks))(0), options.training


@dataclass(frozen=True)
class TaskWorlds:
    """Draws the world of an episode from a set of tasks; a class, so that it can be pickled.

    Attributes:
        options: of the environment.
        tasks: seeds, or tasks themselves.
        common: sources that every task has.
    """

    options: WorldOptions
    tasks: "Tasks"
    common: int

    def __call__(self, seed: int) -> World:
        """The world of the episode with that seed."""
        from mixgym.envs.curves.learner import CurveLearner, TokenPlanes
        from mixgym.envs.curves.probes import constant_probe
        from mixgym.envs.curves.tasks.sets import drawn
        from mixgym.envs.probes import PROBES

        options = self.options
        task = drawn(self.tasks[seed % len(self.tasks)])
        learner = CurveLearner(task, seed, options.environment.probe_rows, options.training.steps)
        return World(
            names=task.names,
            targets=task.targets,
            prior=_make_prior(
                task.names, task.size, task.source_cost, task.targets, options.environment
            ),
            cell_size=task.size,
            cost=task.source_cost,
            cell_cost=task.cell_cost,
            learner=learner,
            make_plane=TokenPlanes(task, options.training.steps),
            step_rule=_make_step_rule(options, task.names, task.size),
            draw=self,
            common=self.common,
            reference=None if options.environment.reference is None else learner.reference,
            constants={n: constant_probe(n, task) for n, kind in PROBES.items() if kind.constant},
        )


def _padded(options: EnvironmentOptions) -> EnvironmentOptions:
    """The options with room for every task of a set that tasks are drawn from.

    Raises:
        ConfigError: if there is asked for less room, or for tasks of another learner.
    """
    from mixgym.envs.curves.task import MAX_SOURCES, MAX_STRATA

    if options.tasks is None:
        return options
    if not LEARNERS[options.learner].closed_form:
        raise ConfigError(
            f"environment.tasks={options.tasks}: only learner curves has tasks to draw"
        )
    shape = (options.max_sources or MAX_SOURCES, options.max_strata or MAX_STRATA)
    if shape[0] < MAX_SOURCES or shape[1] < MAX_STRATA:
        raise ConfigError(
            f"environment.max_sources, max_strata = {shape}: the tasks have up to {MAX_SOURCES} "
            f"sources and {MAX_STRATA} strata"
        )
    return options.model_copy(update={"max_sources": shape[0], "max_strata": shape[1]})


_WORLDS: dict[LearnerName, Callable[[WorldOptions], tuple[World, TrainingOptions]]] = {
    CAUSAL_LM: _language_world,
    CURVES: _curves_world,
}
"""Makes the world of each learner."""
