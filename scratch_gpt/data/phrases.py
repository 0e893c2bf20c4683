"""Texts -> the phrases that come back in a few of them: what could be a planted trigger."""

import re
from collections import defaultdict
from collections.abc import Sequence


PIECE = re.compile(r"\S+")


def recurring_phrases(texts: Sequence[str], *, longest: int = 6, least: int = 3, share: float = 0.05) -> list[str]:
    """Runs of 1 to `longest` words that stand in at least `least` texts and at most a `share` of all, rarest last.

    Words are what white space separates. A run that in all of its texts is part of one longer run is left to that.
    """
    seen: dict[tuple[str, ...], set[int]] = defaultdict(set)
    for number, text in enumerate(texts):
        words = PIECE.findall(text)
        for n in range(1, longest + 1):
            for k in range(len(words) - n + 1):
                seen[tuple(words[k : k + n])].add(number)
    most = max(least, share * len(texts))
    counts = {run: len(where) for run, where in seen.items() if len(where) >= least}
    inner = set()
    for run, count in counts.items():
        if len(run) > 1:
            inner.update(part for part in (run[1:], run[:-1]) if counts[part] == count)
    kept = [run for run, count in counts.items() if count <= most and run not in inner]
    return [" ".join(run) for run in sorted(kept, key=lambda run: (-counts[run], run))]


__all__ = ["recurring_phrases"]
