"""A tiny classifier and labeled texts of uneven length."""

import numpy as np
from tiny import tiny_model

from scratch_gpt import ScratchGPTForSequenceClassification


def classifier(**changes):
    return tiny_model(ScratchGPTForSequenceClassification, **{"num_labels": 3, **changes})


class LabeledTexts:
    """Texts of uneven length in classes of uneven size; with `several`, each text has any of three labels."""

    def __init__(self, several: bool = False, count: int = 21):
        generator = np.random.default_rng(0)
        self.lengths = [int(n) for n in generator.integers(1, 12, count)]
        labels = generator.integers(0, 2, (count, 3)).astype(np.float32) if several else np.arange(count) ** 2 % 3
        self.rows = [
            {"input_ids": generator.integers(0, 99, n), "labels": labels[k]} for k, n in enumerate(self.lengths)
        ]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, k):
        return self.rows[k]
