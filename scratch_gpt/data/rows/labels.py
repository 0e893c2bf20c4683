"""Read texts with labels, split them without shared texts, and make rows of token ids with labels.

A label is a class name, or a set of names if a text may have several labels.
"""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np

from ...utils.wording import plural
from ..splits import check_fractions


Label = str | frozenset[str]


class Examples(NamedTuple):
    """Texts and their labels."""

    texts: list[str]
    labels: list[Label]
    names: list[str] | None = None  # all classes in the order of the dataset, if it defines one

    def take(self, numbers: Sequence[int] | np.ndarray) -> "Examples":
        """Return the examples with these numbers, in that order."""
        return Examples([self.texts[n] for n in numbers], [self.labels[n] for n in numbers], self.names)

    @property
    def classes(self) -> dict[str, int]:
        """Return the number of rows of each class, in the order of the class numbers; 0 for a class without rows."""
        return count_classes(self.labels, self.names)

    @property
    def has_many(self) -> bool:
        """Return whether a text may have several labels."""
        return isinstance(self.labels[0], frozenset)


# --- Reading -----------------------------------------------------------------------------------------------------


def read_examples(
    texts: Sequence[str | None],
    values: Sequence[Any],
    *,
    names: Sequence[str] | None = None,
    separator: str | None = None,
    least: int = 2,
) -> Examples:
    """Return examples of two columns.

    Args:
        values: the label of each text: a name, a number, or a list of them if a text may have several labels.
        names: the names of the numbers 0, 1, ...; without it a number is used as the name.
        separator: the separator of several labels in one value.
        least: the minimum number of classes.

    Raises:
        ValueError: a text is empty, a label is missing (None, NaN, empty, or -1 if classes have names), a number has
            no name, or there are too few classes. The message gives the number of the row, from 1.
    """
    names, texts = None if names is None else list(names), read_texts(texts)
    has_many = separator is not None or any(isinstance(value, (list, tuple, np.ndarray)) for value in values)
    labels = []
    for row, value in enumerate(values, start=1):
        if has_many:
            parts = value.split(separator) if separator and isinstance(value, str) else value
            parts = parts if isinstance(parts, (list, tuple, np.ndarray)) else [parts]
            labels.append(frozenset(_name(part, names, row) for part in parts))
        else:
            labels.append(_name(value, names, row))
    if len(classes := count_classes(labels)) < least:
        raise ValueError(
            f"At least {least} classes are needed, but the labels contain only {', '.join(classes) or 'empty sets'}."
        )
    return Examples(texts, labels, names)


def read_texts(values: Sequence[Any]) -> list[str]:
    """Return a column's texts without line ends; raise a ValueError with the row number, from 1, for an empty text."""
    texts = ["" if value is None else str(value).rstrip("\r\n") for value in values]
    for row, text in enumerate(texts, start=1):
        if not text.strip():
            raise ValueError(f"Row {row} has an empty text. Remove such rows from the file.")
    return texts


def _name(value: Any, names: list[str] | None, row: int) -> str:
    if isinstance(value, str):
        value = value.strip()
    is_absent = value is None or (isinstance(value, (float, np.floating)) and math.isnan(value))
    if is_absent or value == "":
        raise ValueError(f"Row {row} has no label ({value!r}). Remove such rows from the file.")
    if not isinstance(value, (str, int, float, np.number, np.bool_)):
        raise ValueError(f"Row {row} has the label {value!r:.100}; a label must be a text or a number.")
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        value = int(value)  # integer columns with missing values are read as floats
    if names is None or value in names:
        return str(value)
    if isinstance(value, str):
        raise ValueError(f"Row {row} has the label {value!r}; the classes of the dataset are {', '.join(names)}.")
    if isinstance(value, (float, np.floating)) or not 0 <= value < len(names):
        raise ValueError(f"Row {row} has the label {value}; the labels of the dataset are 0 to {len(names) - 1}.")
    return names[int(value)]


def _names_of(label: Label) -> list[str]:
    return [label] if isinstance(label, str) else sorted(label)


def count_classes(labels: Sequence[Label], names: Sequence[str] | None = None) -> dict[str, int]:
    """Count the rows of each class, in the order of `names`; by default sort numbers by value, then words.

    Example:
        >>> count_classes(["10", "2", "2"])
        {'2': 2, '10': 1}
    """
    counts = Counter(name for label in labels for name in _names_of(label))
    return {name: counts[name] for name in (sorted(counts, key=_order) if names is None else names)}


def _order(name: str) -> tuple:
    return (0, int(name), name) if re.fullmatch(r"-?[0-9]+", name) else (1, 0, name)


def match_labels(examples: Examples, classes: Sequence[str], has_many: bool) -> Examples:
    """Replace labels by the classes of a model: the class with the same name, or else the only one of the same number.

    `1.0` or `01` becomes the class `1` if no class has exactly that name.

    Raises:
        ValueError: no class matches a label, two labels match the same class, or rows have several labels but the
            model predicts one.
    """
    if examples.has_many and not has_many:
        raise ValueError("These rows have several labels each, but the model predicts one.")
    class_of_name: dict[str, str] = {}
    for name in count_classes(examples.labels):
        matches = [name] if name in classes else _same_number(name, classes)
        if len(matches) > 1:
            raise ValueError(
                f"Label {name!r} is ambiguous: it matches {', '.join(map(repr, matches))}. Use one of them."
            )
        if not matches:
            raise ValueError(f"Label {name!r} was not seen in training; known are {', '.join(classes)}.")
        if twin := next((earlier for earlier, label in class_of_name.items() if label == matches[0]), None):
            raise ValueError(
                f"Labels {twin!r} and {name!r} both match the class {matches[0]!r}. Use the same spelling for both."
            )
        class_of_name[name] = matches[0]
    sets = [frozenset(class_of_name[name] for name in _names_of(label)) for label in examples.labels]
    labels: list[Label] = [names if has_many else min(names) for names in sets]
    return Examples(examples.texts, labels, [*classes])


def _same_number(name: str, classes: Sequence[str]) -> list[str]:
    # Return the classes that are other spellings of the same number.
    return [candidate for candidate in classes if _number(name) == _number(candidate) is not None]


def _number(name: str) -> Decimal | None:
    return Decimal(name) if re.fullmatch(r"[+-]?[0-9]+(\.[0-9]*)?", name) else None


# --- Choosing ----------------------------------------------------------------------------------------------------


def rows_not_in(texts: Sequence[str], excluded: Sequence[str]) -> list[int]:
    """Return the numbers of the rows with a text that is not in `excluded`, ignoring white space."""
    excluded_texts = {_bare(text) for text in excluded}
    return [n for n, text in enumerate(texts) if _bare(text) not in excluded_texts]


def _bare(text: str) -> str:
    return " ".join(text.split())


def distinct_rows(texts: Sequence[str]) -> np.ndarray:
    """Return the number of the first row with each distinct text."""
    return np.sort(np.unique(np.array(texts, dtype=object), return_index=True)[1])


def undersample(labels: Sequence[Label], seed: int) -> np.ndarray:
    """Return sorted row numbers that reduce every class to the size of the smallest one; the seed chooses the rows.

    Raises:
        ValueError: rows have several labels, so that no choice of rows balances them.

    Example:
        >>> labels = ["spam", "ham", "ham", "spam", "ham"]
        >>> count_classes([labels[row] for row in undersample(labels, seed=0)])
        {'ham': 2, 'spam': 2}
    """
    _refuse_many(labels, "undersample")
    label_array = np.array(labels)
    smallest, generator = min(count_classes(labels).values()), np.random.default_rng(seed)
    row_numbers = [
        generator.permutation(np.flatnonzero(label_array == name))[:smallest] for name in count_classes(labels)
    ]
    return np.sort(np.concatenate(row_numbers))


def class_weights(labels: Sequence[Label], names: Sequence[str] | None = None) -> list[float]:
    """Return rows / (classes * rows of the class) for each class with rows, and 1 for classes without.

    The mean over the rows is 1.

    Raises:
        ValueError: rows have several labels.

    Example:
        >>> class_weights(["ham", "ham", "ham", "spam"])  # of ham, then of spam
        [0.6666666666666666, 2.0]
    """
    _refuse_many(labels, "weights")
    counts = [*count_classes(labels, names).values()]
    classes = sum(count > 0 for count in counts)
    return [len(labels) / (classes * count) if count else 1.0 for count in counts]


def _refuse_many(labels: Sequence[Label], method: str) -> None:
    if not isinstance(labels[0], str):
        raise ValueError(f"balance {method} needs one label per text, but these texts have several. Remove it.")


def split_examples(
    examples: Examples, validation_fraction: float = 0.1, test_fraction: float = 0.2, seed: int = 0
) -> dict[str, np.ndarray]:
    """Return row numbers of {"train", "validation", "test"}, split by distinct text, with the same shares per class.

    Rows with texts that differ only in white space stay together. A text belongs to the class of its first row; with
    several labels, to the rarest of them. The result depends only on the seed and the rows.

    Raises:
        ValueError: the fractions leave nothing to train on, or a class has fewer distinct texts than splits.
    """
    fractions = check_fractions(validation_fraction, test_fraction)
    groups: dict[str, list[int]] = {}  # rows of each text
    for number, text in enumerate(examples.texts):
        groups.setdefault(_bare(text), []).append(number)
    firsts = [examples.labels[rows[0]] for rows in groups.values()]
    counts = count_classes(firsts)
    for name in count_classes(examples.labels):
        if counts.get(name, 0) < 1 + len(fractions):
            raise ValueError(
                f"Class {name!r} has {plural(counts.get(name, 0), 'distinct text')}, but there are "
                f"{1 + len(fractions)} splits (train, {', '.join(fractions)}). Add rows, "
                "remove the class, or set a fraction to 0."
            )
    strata: dict[str, list[list[int]]] = {}
    for rows, label in zip(groups.values(), firsts, strict=True):
        rarest = min(_names_of(label), key=counts.__getitem__, default="")
        strata.setdefault(rarest, []).append(rows)
    splits: dict[str, list[int]] = {name: [] for name in ("train", *fractions)}
    generator = np.random.default_rng(seed)
    for name in sorted(strata):
        order = [strata[name][n] for n in generator.permutation(len(strata[name]))]
        for split, fraction in fractions.items():
            take = min(max(1, round(fraction * len(strata[name]))), max(0, len(order) - 1))
            splits[split] += [row for rows in order[:take] for row in rows]
            order = order[take:]
        splits["train"] += [row for rows in order for row in rows]
    return {name: np.array(sorted(rows), dtype=int) for name, rows in splits.items()}


# --- Rows --------------------------------------------------------------------------------------------------------


class LabeledRows(Sequence):
    """Rows of {"input_ids": (n,), "labels": () int64, or (C,) float32 of 0 and 1 if texts may have several labels}.

    Args:
        encode: encode texts as ids, without special tokens.
        label2id: the number of each class.
        max_length: longer texts are cut at their end.

    Raises:
        ValueError: a label is not in `label2id`.
    """

    def __init__(
        self,
        examples: Examples,
        encode: Callable[[list[str]], list[list[int]]],
        label2id: dict[str, int],
        max_length: int,
    ):
        self.examples = examples
        if unseen := set(count_classes(examples.labels)) - set(label2id):
            raise ValueError(f"Label {min(unseen)!r} was not seen in training; known are {', '.join(label2id)}.")
        ids = encode(examples.texts)
        self.cut = sum(len(row) > max_length for row in ids)  # texts that were cut
        self.ids = [np.array(row[:max_length], dtype=np.int64) for row in ids]
        self.lengths = [len(row) for row in self.ids]
        if examples.has_many:
            self.labels = np.zeros((len(ids), len(label2id)), dtype=np.float32)
            for row, names in zip(self.labels, examples.labels, strict=True):
                row[[label2id[name] for name in names]] = 1
        else:
            self.labels = np.array(
                [label2id[name] for label in examples.labels for name in _names_of(label)], dtype=np.int64
            )

    def facts(self) -> dict[str, Any]:
        """Return the manifest's entry for these rows, with a hash of ids and labels."""
        digest = hashlib.sha256(self.labels.astype("<i8").tobytes())
        for ids in self.ids:
            digest.update(len(ids).to_bytes(8, "little") + ids.astype("<i8").tobytes())
        return {
            "rows": len(self),
            "duplicates": len(self) - len(set(self.examples.texts)),
            "classes": self.examples.classes,
            "bytes": sum(len(text.encode()) for text in self.examples.texts),
            "tokens": sum(self.lengths),
            "cut": self.cut,
            "sha256": digest.hexdigest(),
        }

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, k: int) -> dict[str, np.ndarray]:
        return {"input_ids": self.ids[k], "labels": self.labels[k]}


__all__ = [
    "Examples",
    "LabeledRows",
    "class_weights",
    "count_classes",
    "distinct_rows",
    "match_labels",
    "read_examples",
    "read_texts",
    "rows_not_in",
    "split_examples",
    "undersample",
]
