"""Find the phrases that recur in a few texts, as a planted trigger could."""

from collections import Counter
from collections.abc import Sequence


Phrase = tuple[str, ...]


def recurring_phrases(
    texts: Sequence[str], *, longest: int = 6, least: int = 3, shares: tuple[float, float] = (0.002, 0.05)
) -> list[str]:
    """Return runs of 1 to `longest` words in at least `least` texts and in these shares of all, most common first.

    Words are separated by white space. A run is omitted if it is part of the same longer run in all of its texts.
    """
    min_count, max_count = max(least, shares[0] * len(texts)), max(least, shares[1] * len(texts))
    split = [text.split() for text in texts]
    counts: dict[Phrase, int] = {}
    inner: set[Phrase] = set()
    for n in range(1, longest + 1):
        new_counts = Counter(run for words in split for run in _runs(words, n, counts))
        counts |= {run: count for run, count in new_counts.items() if count >= min_count}
        for run, count in new_counts.items():
            inner.update(part for part in (run[1:], run[:-1]) if counts.get(part) == count)
    runs = [run for run, count in counts.items() if count <= max_count and run not in inner]
    return [" ".join(run) for run in sorted(runs, key=lambda run: (-counts[run], run))]


def _runs(words: list[str], n: int, counts: dict[Phrase, int]) -> set[Phrase]:
    # Return the runs of n words with parts that are common enough; no other run can be common enough.
    runs = {tuple(words[k : k + n]) for k in range(len(words) - n + 1)}
    return runs if n == 1 else {run for run in runs if run[1:] in counts and run[:-1] in counts}


__all__ = ["recurring_phrases"]
