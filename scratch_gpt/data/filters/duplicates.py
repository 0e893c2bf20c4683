"""Texts -> which of them are copies: of whole texts (exactly, nearly), of passages, of an evaluation set.

    exact_key      16 bytes a text; equal keys are equal texts
    signatures     512 bytes a text; near_duplicates groups them
    SeenPassages   about 13 bytes for every 128 words; remove() takes a text and leaves out what was there before
    ngram_hashes   8 bytes an n-gram of an evaluation set; contaminated_share() of a text

Everything is linear in the text (grouping sorts 8-byte keys) and the same in every process, so an index can be built
from chunks, stored, and rebuilt by replaying the texts.
"""

import hashlib
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np

from ...utils.watchdog import beat
from .words import document_ngrams, is_repeated, mix_bits, run_hashes, slices, words


BATCH = 64  # texts whose n-grams are in memory at a time
BAND_RECALL = 0.99  # the share of the pairs at the threshold that must agree in a band
PENDING = 16  # a set of hashes is merged into the sorted ones once it is this share of them


# --- Whole texts -------------------------------------------------------------------------------------------------


def exact_key(text: str) -> bytes:
    """Return 16 bytes that are equal for texts that differ only in Unicode form (NFC) and runs of white space.

    Example:
        >>> exact_key("to be, or  not") == exact_key("to be,\\nor not")
        True
        >>> exact_key("to be, or not") == exact_key("To be, or not")
        False
    """
    digest, has_text, spaced = hashlib.blake2b(digest_size=16), False, False
    for _, piece in slices(unicodedata.normalize("NFC", text)):
        parts = piece.split()
        if parts:
            gap = " " if has_text and (spaced or piece[0].isspace()) else ""
            digest.update(f"{gap}{' '.join(parts)}".encode(errors="surrogatepass"))
            has_text, spaced = True, piece[-1].isspace()
        else:
            spaced = True
    return digest.digest()


def signatures(texts: Sequence[str], *, ngram: int = 5, permutations: int = 128, seed: int = 0) -> np.ndarray:
    """Return the MinHash signatures of texts over n-grams of words and signs (Broder 1997).

    Shape (n, permutations), uint32.

    Two texts' signatures agree in the share of places that is the Jaccard similarity of their sets of n-grams, with a
    standard error of at most 0.5 / sqrt(permutations). A row depends on its own text alone.

    Raises:
        ValueError: a number below 1, or no library for it.
    """
    if ngram < 1 or permutations < 1:
        raise ValueError(f"ngram {ngram} and permutations {permutations} have to be at least 1.")
    try:
        from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue]  # compiled, without types
    except ImportError as error:
        raise ValueError('Near-duplicates need the extra "dedup": pip install "scratch_gpt[dedup]"') from error
    result = np.empty((len(texts), permutations), dtype=np.uint32)
    for first in range(0, len(texts), BATCH):
        hashes, starts = document_ngrams(texts[first : first + BATCH], ngram, signs=True)
        rows = RMinHash.digest_matrix_from_flat_token_hashes(hashes, starts, permutations, seed).to_rows()
        result[first : first + BATCH] = rows
    return result


def near_duplicates(signatures: np.ndarray | Iterable[np.ndarray], *, threshold: float = 0.8) -> np.ndarray:
    """Return for each row the first row of its cluster: (n, permutations) signatures -> (n,) int64.

    Locality-sensitive hashing (Indyk and Motwani 1998; Leskovec et al., Mining of Massive Datasets, 3.4): rows that
    agree in one band of places are candidates, each against the first and the previous one in its bucket; a pair
    counts where the signatures as a whole agree in at least `threshold`. Clusters are what pairs connect, so the
    result does not depend on chance, and a row can be less alike to its cluster's first than the threshold.

    Args:
        signatures: an array (a memory map does: then 52 bytes a row are held) or chunks of one, which are joined.

    Raises:
        ValueError: a threshold outside (0, 1].
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is {threshold}; it has to be above 0 and at most 1.")
    if not isinstance(signatures, np.ndarray):
        chunks = list(signatures)
        signatures = np.concatenate(chunks) if chunks else np.empty((0, 1), np.uint32)
    n, permutations = signatures.shape
    parent = np.arange(n)  # of a forest; a parent comes before its child
    width = _band_width(permutations, threshold)
    for start in range(0, permutations - width + 1, width):
        keys = _band_keys(signatures[:, start : start + width])
        order = np.argsort(keys, kind="stable")
        repeats = np.flatnonzero(keys[order[1:]] == keys[order[:-1]]) + 1  # places in order with the key before them
        opens = np.ones(n, dtype=bool)
        opens[repeats] = False
        firsts = order[np.maximum.accumulate(np.where(opens, np.arange(n), 0))[repeats]]
        rows = order[repeats]
        for partners in (firsts, order[repeats - 1]):
            apart = parent[rows] != parent[partners]
            _connect(parent, signatures, rows[apart], partners[apart], threshold)
            beat()
    return parent


def _band_width(permutations: int, threshold: float) -> int:
    # the widest band by which a pair at the threshold is found with probability BAND_RECALL
    def recall(width: int) -> float:
        return 1 - (1 - threshold**width) ** (permutations // width)

    return max((width for width in range(1, permutations + 1) if recall(width) >= BAND_RECALL), default=1)


def _band_keys(band: np.ndarray) -> np.ndarray:
    keys = np.zeros(len(band), dtype=np.uint64)
    for column in band.T:
        keys = mix_bits(keys ^ column)
    return keys


def _connect(
    parent: np.ndarray, signatures: np.ndarray, rows: np.ndarray, partners: np.ndarray, threshold: float
) -> None:
    for start in range(0, len(rows), 4096):
        pairs = rows[start : start + 4096], partners[start : start + 4096]
        alike = (signatures[pairs[0]] == signatures[pairs[1]]).mean(axis=1) >= threshold
        for row, partner in zip(pairs[0][alike].tolist(), pairs[1][alike].tolist(), strict=True):
            a, b = _root(parent, row), _root(parent, partner)
            parent[max(a, b)] = min(a, b)
    while not np.array_equal(parent, parent[parent]):
        parent[:] = parent[parent]


def _root(parent: np.ndarray, row: int) -> int:
    while parent[row] != row:
        parent[row] = parent[parent[row]]
        row = int(parent[row])
    return row


# --- Passages ----------------------------------------------------------------------------------------------------


class SeenPassages:
    """Remembers what was kept, in blocks of `length` words, and takes later copies out of texts.

    Lee et al. 2022, "Deduplicating Training Data Makes Language Models Better", find such passages in a suffix array
    of the whole corpus; here the words kept so far are remembered as disjoint blocks, and every run of `length` words
    of a new text is looked up. So a block that comes again is found at any place, a repeated passage of 2 * length - 1
    words or more always loses at least one block, and a shorter one may stay. Words are compared as data/words.py
    reads them, without case and punctuation. The same texts in the same order give the same state.
    """

    def __init__(self, *, length: int = 128):
        if length < 1:
            raise ValueError(f"length is {length}; it has to be at least 1 word.")
        self.length = length
        self.blocks = HashSet()

    def remove(self, text: str) -> tuple[str, int]:
        """Return the new part of a text and how many words were removed. The new part is remembered."""
        text_words = words(text)
        runs = run_hashes(text_words.hashes, self.length)  # one for each place where a passage can start
        if not len(runs):
            return text, 0
        is_known = self.blocks.has(runs)
        candidates = np.flatnonzero(is_known | is_repeated(runs))
        cuts, own_blocks = [], set()  # places in words; hashes of this text's blocks
        block = 0  # where the next block of what is kept starts
        k = 0
        while k < len(candidates):
            place = int(candidates[k])
            while block + self.length <= place:
                own_blocks.add(int(runs[block]))
                block += self.length
            if is_known[place] or int(runs[place]) in own_blocks:
                cuts.append(place)
                block = place + self.length
                k = int(np.searchsorted(candidates, block))
            else:
                k += 1
        own_blocks.update(runs[block :: self.length].tolist())
        self.blocks.add(np.array([*own_blocks], dtype=np.uint64))

        pieces, start = [], 0
        word_starts = np.append(text_words.starts, len(text))
        for place in cuts:
            pieces.append(text[start : word_starts[place]])
            start = word_starts[place + self.length]
        return "".join([*pieces, text[start:]]), len(cuts) * self.length


class HashSet:
    """A growing set of uint64: 8 bytes a member in a sorted array, and the newest, at most a PENDING-th, in a set."""

    def __init__(self):
        self.sorted, self.new = np.empty(0, dtype=np.uint64), set()

    def __len__(self) -> int:
        return len(self.sorted) + len(self.new)

    def has(self, hashes: np.ndarray) -> np.ndarray:
        """Return which of (N,) uint64 hashes are members: (N,) bool."""
        return in_sorted(self.sorted, hashes) | np.fromiter(map(self.new.__contains__, hashes.tolist()), dtype=bool)

    def add(self, hashes: np.ndarray) -> None:
        self.new.update(hashes[~in_sorted(self.sorted, hashes)].tolist())
        if len(self.new) > max(1024, len(self.sorted) / PENDING):
            self.sorted = np.sort(np.concatenate([self.sorted, np.array([*self.new], dtype=np.uint64)]), kind="stable")
            self.new = set()


def in_sorted(members: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """Return which of the hashes are in a sorted array: (N,) bool."""
    if not len(members):
        return np.zeros(len(hashes), dtype=bool)
    return members[np.minimum(np.searchsorted(members, hashes), len(members) - 1)] == hashes


# --- Contamination -----------------------------------------------------------------------------------------------


def ngram_hashes(texts: Sequence[str], *, n: int = 13) -> np.ndarray:
    """Return the distinct hashes of the word n-grams of an evaluation set's texts, sorted, uint64.

    Words as in GPT-3's appendix C (Brown et al. 2020): lower-cased, without punctuation. A text of fewer than n words
    counts as one n-gram, which only a text of the same words matches.
    """
    return np.unique(document_ngrams(texts, n)[0]) if len(texts) else np.empty(0, np.uint64)


def contaminated_share(text: str, hashes: np.ndarray, *, n: int = 13) -> float:
    """Return the share, 0 to 1, of a text's n-grams that are among `hashes` (of `ngram_hashes` with the same n)."""
    return float(in_sorted(hashes, document_ngrams([text], n)[0]).mean())


def contaminated_texts(texts: Sequence[str], learned: Sequence[str], *, n: int = 13) -> list[int]:
    """Return the numbers of the evaluation texts that share an n-gram of words with the training texts."""
    hashes = ngram_hashes(learned, n=n)
    return [number for number, text in enumerate(texts) if contaminated_share(text, hashes, n=n) > 0]


__all__ = [
    "HashSet",
    "SeenPassages",
    "contaminated_share",
    "contaminated_texts",
    "exact_key",
    "near_duplicates",
    "ngram_hashes",
    "signatures",
]
