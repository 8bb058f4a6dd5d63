"""Numbers from 0 to 999 in words, in English, German, Spanish and French."""

from collections.abc import Callable, Mapping


def listed(words: str) -> list[str]:
    """The words of a text that lists them with spaces between."""
    return words.split()


_EN = listed(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
)
_EN_TENS = listed("twenty thirty forty fifty sixty seventy eighty ninety")

_DE = listed(
    "null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn "
    "fünfzehn sechzehn siebzehn achtzehn neunzehn"
)
_DE_TENS = listed("zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig")

_ES = listed(
    "cero uno dos tres cuatro cinco seis siete ocho nueve diez once doce trece catorce quince "
    "dieciséis diecisiete dieciocho diecinueve veinte veintiuno veintidós veintitrés "
    "veinticuatro veinticinco veintiséis veintisiete veintiocho veintinueve"
)
_ES_TENS = listed("treinta cuarenta cincuenta sesenta setenta ochenta noventa")
_ES_HUNDREDS = listed(
    "ciento doscientos trescientos cuatrocientos quinientos seiscientos setecientos "
    "ochocientos novecientos"
)

_FR = listed(
    "zéro un deux trois quatre cinq six sept huit neuf dix onze douze treize quatorze quinze "
    "seize dix-sept dix-huit dix-neuf"
)
_FR_TENS = listed("vingt trente quarante cinquante soixante")


def _english(n: int) -> str:
    if n < 20:
        return _EN[n]
    if n < 100:
        tens, ones = divmod(n, 10)
        return _EN_TENS[tens - 2] + (f"-{_EN[ones]}" if ones else "")
    hundreds, rest = divmod(n, 100)
    return f"{_EN[hundreds]} hundred" + (f" and {_english(rest)}" if rest else "")


def _german(n: int) -> str:
    if n < 20:
        return _DE[n]
    if n < 100:
        tens, ones = divmod(n, 10)
        return (f"{_german_stem(ones)}und" if ones else "") + _DE_TENS[tens - 2]
    hundreds, rest = divmod(n, 100)
    return f"{_german_stem(hundreds)}hundert" + (_german(rest) if rest else "")


def _german_stem(digit: int) -> str:
    return "ein" if digit == 1 else _DE[digit]


def _spanish(n: int) -> str:
    if n < 30:
        return _ES[n]
    if n < 100:
        tens, ones = divmod(n, 10)
        return _ES_TENS[tens - 3] + (f" y {_ES[ones]}" if ones else "")
    if n == 100:
        return "cien"
    hundreds, rest = divmod(n, 100)
    return _ES_HUNDREDS[hundreds - 1] + (f" {_spanish(rest)}" if rest else "")


def _french(n: int) -> str:
    if n < 100:
        return _french_tens(n)
    hundreds, rest = divmod(n, 100)
    head = "cent" if hundreds == 1 else f"{_FR[hundreds]} cent"
    if rest:
        return f"{head} {_french_tens(rest)}"
    return head if hundreds == 1 else f"{head}s"


def _french_tens(n: int) -> str:
    if n < 20:
        return _FR[n]
    if n == 80:
        return "quatre-vingts"
    if n > 80:
        return f"quatre-vingt-{_FR[n - 80]}"
    tens = min(n // 10, 6)
    rest = n - 10 * tens
    if not rest:
        return _FR_TENS[tens - 2]
    return f"{_FR_TENS[tens - 2]}{' et ' if rest in (1, 11) else '-'}{_FR[rest]}"


LANGUAGES: Mapping[str, Callable[[int], str]] = {
    "en": _english,
    "de": _german,
    "es": _spanish,
    "fr": _french,
}


def number_words(number: int, language: str) -> str:
    """``number`` (0 .. 999) in the words of ``language`` (en, de, es, fr).

    Example:
        >>> [number_words(71, language) for language in ("en", "de", "es", "fr")]
        ['seventy-one', 'einundsiebzig', 'setenta y uno', 'soixante et onze']
    """
    if language not in LANGUAGES or not 0 <= number <= 999:
        raise ValueError(
            f"no words for {number} in {language!r}; give a number from 0 to 999 and one of "
            f"{', '.join(LANGUAGES)}"
        )
    return LANGUAGES[language](number)
