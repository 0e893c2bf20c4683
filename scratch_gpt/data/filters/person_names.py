"""Find people's names in texts with a token-classification model, for `privacy.mask_private`."""

from collections.abc import Callable, Iterator

from ...tokenization.tokenizer import load_tokenizer
from ...utils.loading import load_complete
from .words import slices


PERSON = {"PER", "PERSON"}  # CoNLL-2003 and OntoNotes 5
# Taggers saved by older versions of transformers contain a pooler, which is not used.
POOLERS = [f"{kind}.pooler.dense.{part}" for kind in ("bert", "roberta") for part in ("weight", "bias")]
OVERLAP = 32  # tokens shared by neighboring windows of a long text


def names_finder(name: str, *, revision: str | None = None) -> Callable[[str], Iterator[tuple[int, int]]]:
    """Return a function that yields the (start, end) of each person's name in a text, in characters.

    `name` is a folder or Hub id of a tagger, such as `dslim/bert-base-NER`.

    A long text is read in overlapping windows. A word has the label of its first token.

    Raises:
        ValueError: the model is missing, has no label for persons, or its tokenizer gives no positions of tokens.
    """
    from transformers import AutoModelForTokenClassification, PreTrainedTokenizerFast, pipeline

    model = load_complete(AutoModelForTokenClassification, name, may_hold=POOLERS, revision=revision)
    tokenizer = load_tokenizer(name, revision)
    marks = sorted({label.split("-")[-1].upper() for label in model.config.id2label.values()})
    if not PERSON & set(marks):
        raise ValueError(f"names_model {name} has the labels {', '.join(marks)}; it needs PER or PERSON.")
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(
            f"names_model {name} has a slow tokenizer, which gives no positions of tokens. Choose a model with a fast "
            "tokenizer."
        )
    limit = min(tokenizer.model_max_length, model.config.max_position_embeddings)
    tokenizer.model_max_length = limit
    find_entities = pipeline(
        "token-classification",
        model=model,
        tokenizer=tokenizer,
        trust_remote_code=False,
        aggregation_strategy="first",
        stride=min(OVERLAP, limit // 4),
    )

    def names(text: str) -> Iterator[tuple[int, int]]:
        for offset, piece in slices(text):
            for entity in find_entities(piece) if piece.strip() else ():
                if entity["entity_group"].upper() in PERSON:
                    yield offset + int(entity["start"]), offset + int(entity["end"])

    return names


__all__ = ["names_finder"]
