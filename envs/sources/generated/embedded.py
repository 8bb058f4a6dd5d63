"""Generated sources: six tasks that a tiny model can learn a part of in minutes, and noise.

Every row is a short prompt, its completion and a ``difficulty`` from 0 to 3 that grades the work:

=========  ========================================  ================  ==========================
task       prompt                                    completion        graded by
=========  ========================================  ================  ==========================
addition   ``47+85``                                 ``132``           digits; carries from 1 on
reversal   ``reverse abcd``                          ``dcba``          letters: 3, 5, 7, 9
sorting    ``sort pear fig kiwi``                    ``fig kiwi pear`` words: 2, 3, 4, 5
lookup     ``k7 a4 q1 ? a``                          ``4``             pairs: 2, 4, 6, 8
brackets   ``close ([]{``                            ``})``            brackets: 4, 6, 8, 10
numbers    ``de 342``                                its words         size of the number
noise      ``answer wbkd``                           random letters    letters: 4, 8, 12, 16
=========  ========================================  ================  ==========================

Rows are drawn by the named stream of (seed, task), the grades in equal shares, and no row comes
twice, so splits share none. A grade with fewer rows than its share gives what it has: drawing
stops after a bounded number of attempts, and the caller sees a shorter list.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from mixgym.envs.errors import SourceError, did_you_mean
from mixgym.envs.options import SourceOptions
from mixgym.envs.random_streams import stream
from mixgym.envs.sources.generated.number_words import LANGUAGES, listed, number_words
from mixgym.envs.sources.rows.row import Row

_GRADES = 4
_ATTEMPTS_PER_ROW = 40

LETTERS = "abcdefghijklmnopqrstuvwxyz"
_BRACKETS = {"(": ")", "[": "]", "{": "}", "<": ">"}
_WORDS = listed(
    "ant bee cat dog elk fox gnu hen ibis jay kite lark mole newt owl pig quail ram seal toad "
    "urus vole wasp yak zebu bat cod duck eel frog goat hare koi lynx moth orca puma rook swan"
)

_Rng = np.random.Generator
Draw = Callable[[_Rng, int], tuple[str, str]]


def _letters(rng: _Rng, size: int) -> str:
    return "".join(LETTERS[i] for i in rng.integers(len(LETTERS), size=size))


def _has_carry(a: int, b: int) -> bool:
    return any(int(x) + int(y) > 9 for x, y in zip(str(a)[::-1], str(b)[::-1], strict=True))


def _addition(rng: _Rng, grade: int) -> tuple[str, str]:
    digits = max(2, grade + 1)
    while True:
        a, b = (int(n) for n in rng.integers(10 ** (digits - 1), 10**digits, size=2))
        if _has_carry(a, b) == (grade > 0):
            return f"{a}+{b}", str(a + b)


def _reversal(rng: _Rng, grade: int) -> tuple[str, str]:
    word = _letters(rng, 3 + 2 * grade)
    return f"reverse {word}", word[::-1]


def _sorting(rng: _Rng, grade: int) -> tuple[str, str]:
    words = [_WORDS[i] for i in rng.permutation(len(_WORDS))[: grade + 2]]
    return f"sort {' '.join(words)}", " ".join(sorted(words))


def _lookup(rng: _Rng, grade: int) -> tuple[str, str]:
    pairs = 2 + 2 * grade
    keys = [LETTERS[i] for i in rng.permutation(len(LETTERS))[:pairs]]
    values = [str(n) for n in rng.integers(10, size=pairs)]
    asked = int(rng.integers(pairs))
    table = " ".join(key + value for key, value in zip(keys, values, strict=True))
    return f"{table} ? {keys[asked]}", values[asked]


def _brackets(rng: _Rng, grade: int) -> tuple[str, str]:
    size = 4 + 2 * grade
    text, still_open = "", ""
    # an even size ends with an even number open: forcing the last one open leaves at least two
    for place in range(size):
        if still_open and place < size - 1 and rng.random() < 0.35:
            text += _BRACKETS[still_open[-1]]
            still_open = still_open[:-1]
        else:
            text += "([{<"[rng.integers(4)]
            still_open += text[-1]
    return f"close {text}", "".join(_BRACKETS[b] for b in reversed(still_open))


def _numbers(rng: _Rng, grade: int) -> tuple[str, str]:
    low, high = ((0, 50), (50, 100), (100, 500), (500, 1000))[grade]
    language = tuple(LANGUAGES)[rng.integers(len(LANGUAGES))]
    number = int(rng.integers(low, high))
    return f"{language} {number}", number_words(number, language)


def _noise(rng: _Rng, grade: int) -> tuple[str, str]:
    return f"answer {_letters(rng, 4)}", _letters(rng, 4 + 4 * grade)


@dataclass(frozen=True)
class GeneratedTask:
    """A generated source.

    Attributes:
        draw: a (prompt, completion) of a grade.
        rows: how many by default; the sizes differ as they do in the wild.
        target: weight in rewards and evaluation.
    """

    draw: Draw
    rows: int
    target: float = 1.0


TASKS: Mapping[str, GeneratedTask] = {
    "addition": GeneratedTask(_addition, 3000),
    "reversal": GeneratedTask(_reversal, 1800),
    "sorting": GeneratedTask(_sorting, 1200),
    "lookup": GeneratedTask(_lookup, 800),
    "numbers": GeneratedTask(_numbers, 500),
    "brackets": GeneratedTask(_brackets, 300),
    "noise": GeneratedTask(_noise, 1000, target=0.0),
}


def default_sources() -> dict[str, SourceOptions]:
    """The mixture that ``sources: embedded`` stands for; only the noise is no target."""
    return {
        name: SourceOptions(embedded=name, rows=task.rows, target=task.target)
        for name, task in TASKS.items()
    }


def generate(task: str, rows: int | None, seed: int) -> tuple[Row, ...]:
    """Rows of a task, the same for the same arguments.

    Args:
        task: a name in :data:`TASKS`.
        rows: how many; None for the task's default. Fewer come back if the task has no more.
        seed: the world's seed.

    Raises:
        SourceError: there is no such task.
    """
    if task not in TASKS:
        raise SourceError(f"there is no embedded source {task!r}; {did_you_mean(task, TASKS)}")
    wanted = TASKS[task].rows if rows is None else rows
    rng = stream(seed, "embedded", task)
    drawn: dict[str, tuple[int, str, str]] = {}
    for grade in range(_GRADES):
        _draw_new(TASKS[task].draw, rng, grade, _share(wanted, grade), drawn)
    found = list(drawn.values())
    order = rng.permutation(len(drawn))
    return tuple(_row(task, line, *found[i]) for line, i in enumerate(order, start=1))


def _share(rows: int, grade: int) -> int:
    return (rows + _GRADES - 1 - grade) // _GRADES


def _draw_new(
    draw: Draw, rng: _Rng, grade: int, size: int, drawn: dict[str, tuple[int, str, str]]
) -> None:
    """Add ``size`` rows with prompts of their own to ``drawn``, or as many as turn up."""
    full = len(drawn) + size
    for _ in range(_ATTEMPTS_PER_ROW * size):
        if len(drawn) == full:
            break
        prompt, completion = draw(rng, grade)
        drawn.setdefault(prompt, (grade, prompt, completion))


def _row(task: str, line: int, grade: int, prompt: str, completion: str) -> Row:
    turns = (("user", prompt), ("assistant", completion))
    return Row(turns, None, {"difficulty": grade}, f"embedded:{task}", line, "row")
