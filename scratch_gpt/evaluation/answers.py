"""What a model answered and what was right -> exact match and token F1, as SQuAD counts them (Rajpurkar et al. 2016).

Before two texts are compared, both lose case, punctuation, the articles a, an and the, and all but single spaces.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence


ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """A text as it is compared.

    Example:
        >>> normalize("The answer is: Paris.")
        'answer is paris'
    """
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def exact_match(answer: str, reference: str) -> bool:
    """Whether both say the same, as they are compared."""
    return normalize(answer) == normalize(reference)


def token_f1(answer: str, reference: str) -> float:
    """2 * precision * recall / (precision + recall) of the words that both have, each counted; 0 to 1.

    Where one of them has no word, it is 1 if both have none.

    Example:
        >>> token_f1("the cat sat", "a cat sat down")  # 2 of 2 words and 2 of 3; articles do not count
        0.8
    """
    ours, theirs = normalize(answer).split(), normalize(reference).split()
    shared = (Counter(ours) & Counter(theirs)).total()
    return 2 * shared / (len(ours) + len(theirs)) if ours or theirs else 1.0


def answer_metrics(answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Means over all answers: {"exact_match", "f1"}, 0 to 1.

    Raises:
        ValueError: no answers, or as many references as there are not.
    """
    if not answers or len(answers) != len(references):
        raise ValueError(f"{len(answers)} answers and {len(references)} references; give as many of both, at least 1.")
    pairs = list(zip(answers, references, strict=True))
    return {
        "exact_match": sum(exact_match(*pair) for pair in pairs) / len(pairs),
        "f1": sum(token_f1(*pair) for pair in pairs) / len(pairs),
    }


__all__ = ["answer_metrics", "exact_match", "normalize", "token_f1"]
