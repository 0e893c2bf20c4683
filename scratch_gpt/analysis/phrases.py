"""Texts -> the phrases that come back in a few of them: what could be a planted trigger."""

from collections import Counter
from collections.abc import Sequence


Run = tuple[str, ...]


def recurring_phrases(
    texts: Sequence[str], *, longest: int = 6, least: int = 3, shares: tuple[float, float] = (0.002, 0.05)
) -> list[str]:
    """Runs of 1 to `longest` words that stand in `least` texts or more, and in these shares of all; commonest first.

    Words are what white space separates. A run that in all of its texts is part of one longer run is left to that.
    """
    least, most = max(least, shares[0] * len(texts)), max(least, shares[1] * len(texts))
    split = [text.split() for text in texts]
    counts: dict[Run, int] = {}
    inner: set[Run] = set()
    for n in range(1, longest + 1):
        found = Counter(run for words in split for run in _runs(words, n, counts))
        counts |= {run: count for run, count in found.items() if count >= least}
        for run in found:
            inner.update(part for part in (run[1:], run[:-1]) if counts.get(part) == found[run])
    kept = [run for run, count in counts.items() if count <= most and run not in inner]
    return [" ".join(run) for run in sorted(kept, key=lambda run: (-counts[run], run))]


def _runs(words: list[str], n: int, counts: dict[Run, int]) -> set[Run]:
    # The runs of n words whose own parts are common enough: no other can be.
    runs = {tuple(words[k : k + n]) for k in range(len(words) - n + 1)}
    return runs if n == 1 else {run for run in runs if run[1:] in counts and run[:-1] in counts}


__all__ = ["recurring_phrases"]
