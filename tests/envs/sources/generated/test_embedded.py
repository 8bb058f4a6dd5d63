import re
from collections import Counter
from itertools import pairwise

import pytest

from mixgym.envs.errors import SourceError
from mixgym.envs.sources.generated.embedded import TASKS, default_sources, generate
from mixgym.envs.sources.generated.number_words import number_words

SMALL = {
    "en": {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8,
           "nine": 9, "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14,
           "fifteen": 15, "sixteen": 16, "seventeen": 17, "eighteen": 18, "nineteen": 19,
           "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70,
           "eighty": 80, "ninety": 90, "zero": 0},
    "de": {"null": 0, "ein": 1, "eins": 1, "zwei": 2, "drei": 3, "vier": 4, "fünf": 5, "sechs": 6,
           "sieben": 7, "acht": 8, "neun": 9, "zehn": 10, "elf": 11, "zwölf": 12, "sechzehn": 16,
           "siebzehn": 17, "dreizehn": 13, "vierzehn": 14, "fünfzehn": 15, "achtzehn": 18,
           "neunzehn": 19, "zwanzig": 20, "dreißig": 30, "vierzig": 40, "fünfzig": 50,
           "sechzig": 60, "siebzig": 70, "achtzig": 80, "neunzig": 90},
    "es": {"cero": 0, "uno": 1, "dos": 2, "tres": 3, "cuatro": 4, "cinco": 5, "seis": 6,
           "siete": 7, "ocho": 8, "nueve": 9, "diez": 10, "once": 11, "doce": 12, "trece": 13,
           "catorce": 14, "quince": 15, "dieciséis": 16, "diecisiete": 17, "dieciocho": 18,
           "diecinueve": 19, "veinte": 20, "veintiuno": 21, "veintidós": 22, "veintitrés": 23,
           "veinticuatro": 24, "veinticinco": 25, "veintiséis": 26, "veintisiete": 27,
           "veintiocho": 28, "veintinueve": 29, "treinta": 30, "cuarenta": 40, "cincuenta": 50,
           "sesenta": 60, "setenta": 70, "ochenta": 80, "noventa": 90, "cien": 100, "ciento": 100,
           "doscientos": 200, "trescientos": 300, "cuatrocientos": 400, "quinientos": 500,
           "seiscientos": 600, "setecientos": 700, "ochocientos": 800, "novecientos": 900},
    "fr": {"zéro": 0, "un": 1, "deux": 2, "trois": 3, "quatre": 4, "cinq": 5, "six": 6, "sept": 7,
           "huit": 8, "neuf": 9, "dix": 10, "onze": 11, "douze": 12, "treize": 13, "quatorze": 14,
           "quinze": 15, "seize": 16, "vingt": 20, "vingts": 20, "trente": 30, "quarante": 40,
           "cinquante": 50, "soixante": 60},
}  # fmt: skip


def value_of(words, language):
    """Reads number words back, by adding up rather than by tables of the generator."""
    table = SMALL[language]
    if language == "de":
        head, hundred, rest = words.partition("hundert")
        if hundred:
            return 100 * table[head] + (value_of(rest, "de") if rest else 0)
        ones, und, tens = words.rpartition("und")
        return table[ones] + table[tens] if und else table[words]
    total = 0
    words = words.replace("quatre-vingt", "huitante").replace("huitantes", "huitante")
    for word in re.split(r"[ -]", words):
        if word in ("and", "et", "y"):
            continue
        if word in ("hundred", "cent", "cents"):
            total = 100 * max(total, 1)
        elif word == "huitante":
            total += 80
        else:
            total += table[word]
    return total


@pytest.mark.parametrize("language", SMALL)
def test_number_words_read_back(language):
    words = [number_words(n, language) for n in range(1000)]
    assert len(set(words)) == 1000
    assert [value_of(text, language) for text in words] == list(range(1000))


def test_number_words_of_known_difficulty():
    assert number_words(101, "de") == "einhunderteins"
    assert number_words(121, "de") == "einhunderteinundzwanzig"
    assert number_words(100, "es") == "cien"
    assert number_words(531, "es") == "quinientos treinta y uno"
    assert [number_words(n, "fr") for n in (21, 71, 80, 81, 91, 99, 200, 201)] == [
        "vingt et un", "soixante et onze", "quatre-vingts", "quatre-vingt-un",
        "quatre-vingt-onze", "quatre-vingt-dix-neuf", "deux cents", "deux cent un",
    ]  # fmt: skip
    assert number_words(342, "en") == "three hundred and forty-two"
    with pytest.raises(ValueError, match="1000 in 'en'"):
        number_words(1000, "en")


def closed(text):
    """The brackets of ``text`` cancelled in pairs until none is left."""
    while True:
        shorter = re.sub(r"\(\)|\[\]|\{\}|<>", "", text)
        if shorter == text:
            return text
        text = shorter


def answer_is_right(task, prompt, completion):
    if task == "addition":
        a, b = prompt.split("+")
        return int(a) + int(b) == int(completion)
    if task == "numbers":
        language, digits = prompt.split()
        return value_of(completion, language) == int(digits)
    _, _, rest = prompt.partition(" ")
    if task == "reversal":
        return all(a == b for a, b in zip(rest, reversed(completion), strict=True))
    if task == "sorting":
        words = completion.split()
        return Counter(words) == Counter(rest.split()) and all(a <= b for a, b in pairwise(words))
    if task == "brackets":
        return closed(rest + completion) == "" and set(completion) <= set(")]}>") and completion
    if task == "lookup":
        return re.findall(prompt[-1] + r"(\d)", prompt) == [completion]
    return completion.isalpha()


@pytest.mark.parametrize("task", TASKS)
def test_rows_are_right_distinct_short_and_graded(task):
    rows = generate(task, None, seed=0)
    assert len(rows) == TASKS[task].rows
    pairs = [(row.messages[0][1], row.messages[1][1]) for row in rows]
    assert len({prompt for prompt, _ in pairs}) == len(rows)
    assert all(answer_is_right(task, *pair) for pair in pairs)
    assert max(len((prompt + completion).encode()) for prompt, completion in pairs) <= 64
    grades = Counter(row.columns["difficulty"] for row in rows)
    assert set(grades) == {0, 1, 2, 3}
    assert max(grades.values()) - min(grades.values()) <= 1
    sizes = {
        g: [
            len(p) + len(c)
            for (p, c), r in zip(pairs, rows, strict=True)
            if r.columns["difficulty"] == g
        ]
        for g in grades
    }
    means = [sum(sizes[g]) / len(sizes[g]) for g in range(4)]
    assert means == sorted(means)


@pytest.mark.parametrize("task", TASKS)
def test_rows_follow_from_seed_and_task(task):
    assert generate(task, 60, seed=3) == generate(task, 60, seed=3)
    assert generate(task, 60, seed=3) != generate(task, 60, seed=4)
    assert [row.line for row in generate(task, 60, seed=3)] == list(range(1, 61))


def test_an_exhausted_task_gives_what_it_has():
    rows = generate("numbers", 4000, seed=0)
    grades = Counter(row.columns["difficulty"] for row in rows)
    assert grades[0] == grades[1] == 200
    assert grades[2] <= 1000
    assert len(rows) < 4000


def test_addition_carries_from_the_second_grade_on():
    for row in generate("addition", 400, seed=0):
        a, b = row.messages[0][1].split("+")
        digits = sum(map(int, a + b)) - sum(map(int, row.messages[1][1]))
        assert (digits > 0) == (row.columns["difficulty"] > 0)


def test_default_sources_are_imbalanced_and_only_noise_is_no_target():
    sources = default_sources()
    assert len(sources) >= 7
    sizes = [source.rows for source in sources.values()]
    assert max(sizes) >= 10 * min(sizes)
    assert [name for name, source in sources.items() if not source.target] == ["noise"]


def test_an_unknown_task_suggests_the_nearest():
    with pytest.raises(
        SourceError, match=r"'additon'; did you mean addition\? \(known: addition, "
    ):
        generate("additon", 10, 0)
