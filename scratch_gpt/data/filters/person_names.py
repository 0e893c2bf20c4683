"""A token-classification model -> a finder of people's names in texts, for `privacy.mask_private`."""

from collections.abc import Callable, Iterator

from ...tokenization.tokenizer import load_tokenizer
from ...utils.loading import load_complete
from .words import slices


PERSON = {"PER", "PERSON"}  # CoNLL-2003 and OntoNotes 5
# Taggers saved by older versions of transformers hold a pooler, which tagging does not use.
POOLERS = [f"{kind}.pooler.dense.{part}" for kind in ("bert", "roberta") for part in ("weight", "bias")]
OVERLAP = 32  # tokens that two windows of a long text share


def names_finder(name: str, *, revision: str | None = None) -> Callable[[str], Iterator[tuple[int, int]]]:
    """Return a function that yields the (start, end) of each person's name in a text, in characters.

    `name` is a folder or Hub id of a tagger, such as `dslim/bert-base-NER`.

    The model reads a long text in windows that overlap, and a word as its first token says.

    Raises:
        ValueError: no such model, one that marks no persons, or a tokenizer that does not know where its tokens stood.
    """
    from transformers import AutoModelForTokenClassification, PreTrainedTokenizerFast, pipeline

    model = load_complete(AutoModelForTokenClassification, name, may_hold=POOLERS, revision=revision)
    tokenizer = load_tokenizer(name, revision)
    marks = sorted({label.split("-")[-1].upper() for label in model.config.id2label.values()})
    if not PERSON & set(marks):
        raise ValueError(f"names_model {name} marks {', '.join(marks)}; it has to mark PER or PERSON.")
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(f"names_model {name} has a slow tokenizer, which does not tell where its tokens stood.")
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
