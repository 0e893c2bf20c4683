"""Compute exact match and token F1 of answers and references, as SQuAD does (Rajpurkar et al. 2016).

Texts are compared without case, punctuation, the articles a, an and the, and repeated white space.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence


ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Return a text in the form in which answers are compared.

    Example:
        >>> normalize_answer("The answer is: Paris.")
        'answer is paris'
    """
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def exact_match(answer: str, reference: str) -> bool:
    """Return whether answer and reference are equal after `normalize_answer`."""
    return normalize_answer(answer) == normalize_answer(reference)


def token_f1(answer: str, reference: str) -> float:
    """Return 2 * precision * recall / (precision + recall) of the words in common, with repetitions; 0 to 1.

    If one of the two has no word, it is 1 if both have none, else 0.

    Example:
        >>> token_f1("the cat sat", "a cat sat down")  # 2 of 2 words and 2 of 3; articles do not count
        0.8
    """
    words, reference_words = normalize_answer(answer).split(), normalize_answer(reference).split()
    shared = (Counter(words) & Counter(reference_words)).total()
    return 2 * shared / (len(words) + len(reference_words)) if words or reference_words else 1.0


def answer_metrics(answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Return the means over all answers: {"exact_match", "f1"}, 0 to 1.

    Raises:
        ValueError: no answers, or a different number of references.
    """
    if not answers or len(answers) != len(references):
        raise ValueError(f"{len(answers)} answers and {len(references)} references: give the same number, at least 1.")
    pairs = list(zip(answers, references, strict=True))
    return {
        "exact_match": sum(exact_match(*pair) for pair in pairs) / len(pairs),
        "f1": sum(token_f1(*pair) for pair in pairs) / len(pairs),
    }


__all__ = ["answer_metrics", "exact_match", "normalize_answer", "token_f1"]
