"""Match the patterns of descriptions, which anybody may have written: none may keep the program busy for ever.

`regex` understands what `re` does and gives up after a time; a pattern of the usual kind takes microseconds a path.
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import regex

from medvar_data.errors import SpecError
from medvar_data.naming import printable

SECONDS = 1.0  # for one pattern on one text
MOST_LETTERS = 2000  # of a pattern
TOO_SLOW = "takes more than {seconds:g} s on one text: it repeats what it may match in many ways, such as (a+)+. Write it more plainly."


@lru_cache(maxsize=512)
def compile_pattern(pattern: str, *, ignore_case: bool = False) -> Any:
    """Compile a pattern once.

    Raises:
        regex.error: it is none.
    """
    if len(pattern) > MOST_LETTERS:
        raise regex.error(f"it has {len(pattern):,} letters; wanted at most {MOST_LETTERS:,}")
    return regex.compile(pattern, regex.IGNORECASE if ignore_case else 0)


def search(pattern: str, text: str, *, ignore_case: bool = False) -> Any:
    """The first match anywhere in a text, or None.

    Raises:
        SpecError: the pattern takes too long.
    """
    return _within_time(pattern, compile_pattern(pattern, ignore_case=ignore_case).search, text)


def fullmatch(pattern: str, text: str, *, ignore_case: bool = False) -> Any:
    """The match of a text as a whole, or None.

    Raises:
        SpecError: the pattern takes too long.
    """
    return _within_time(pattern, compile_pattern(pattern, ignore_case=ignore_case).fullmatch, text)


def _within_time(pattern: str, match: Any, text: str) -> Any:
    try:
        return match(text, timeout=SECONDS)
    except TimeoutError:
        raise SpecError(f"The pattern {printable(pattern)!r} {TOO_SLOW.format(seconds=SECONDS)}") from None


def found_by_any(patterns: Iterable[str], text: str) -> bool:
    """Tell whether one of the patterns is found in a text; errors as of `search`."""
    return any(search(pattern, text) for pattern in patterns)
