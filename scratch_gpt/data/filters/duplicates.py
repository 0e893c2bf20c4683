"""Find copies: of complete texts (exact or near), of passages, and of an evaluation set.

    exact_key      16 bytes per text; texts with equal keys are equal
    signatures     512 bytes per text; near_duplicates groups them
    SeenPassages   about 20 bytes per 128 words; remove() cuts passages that occurred in an earlier text
    ngram_hashes   8 bytes per n-gram of an evaluation set; used by contaminated_share() of a text

All functions take linear time (grouping sorts 8-byte keys) and return the same values in every process. An index can
therefore be built from chunks, stored, and rebuilt from the same texts.
"""

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from ...utils.watchdog import beat
from .words import Words, document_ngrams, is_repeated, mix_bits, runs_of_texts, slices


BATCH = 64  # texts in a batch: only its n-grams are in memory
BAND_RECALL = 0.99  # share of the pairs at the threshold that must agree in at least one band
SPARSE = 4  # bytes of a table for each member of a set of hashes, at least
PENDING = 16  # new hashes are merged into the sorted array when they exceed 1 / PENDING of it


# --- Complete texts ----------------------------------------------------------------------------------------------


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

    The share of positions in which two signatures agree estimates the Jaccard similarity of the two sets of n-grams,
    with a standard error of at most 0.5 / sqrt(permutations). A signature depends only on its text.

    Raises:
        ValueError: `ngram` or `permutations` is below 1, or the library is not installed.
    """
    if ngram < 1 or permutations < 1:
        raise ValueError(f"ngram and permutations must be at least 1, not {ngram} and {permutations}.")
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
    """Return the first row of each row's cluster, (n,) int64.

    Locality-sensitive hashing (Indyk and Motwani 1998; Leskovec et al., Mining of Massive Datasets, 3.4): rows that
    agree in one band of positions are in the same bucket. Each is compared with the first and the previous row of its
    bucket, and the pair is connected if at least `threshold` of the complete signatures agree. Clusters are the
    connected components, so the result is deterministic, and a row can differ from the first row of its cluster by
    more than the threshold allows for a pair.

    Args:
        signatures: (n, permutations) as an array, or chunks of it, which are joined. A memory-mapped array needs 52
            bytes of memory per row.

    Raises:
        ValueError: the threshold is outside (0, 1].
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be above 0 and at most 1, not {threshold}.")
    if not isinstance(signatures, np.ndarray):
        chunks = list(signatures)
        signatures = np.concatenate(chunks) if chunks else np.empty((0, 1), np.uint32)
    n, permutations = signatures.shape
    parent = np.arange(n)  # a forest: a parent comes before its child
    width = _band_width(permutations, threshold)
    for start in range(0, permutations - width + 1, width):
        keys = _band_keys(signatures[:, start : start + width])
        order = np.argsort(keys, kind="stable")
        repeats = np.flatnonzero(keys[order[1:]] == keys[order[:-1]]) + 1  # indices of `order` with the previous key
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
    # Return the widest band that finds a pair at the threshold with a probability of at least BAND_RECALL.
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
        is_similar = (signatures[pairs[0]] == signatures[pairs[1]]).mean(axis=1) >= threshold
        for row, partner in zip(pairs[0][is_similar].tolist(), pairs[1][is_similar].tolist(), strict=True):
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
    """Stores the kept words in blocks of `length` words, and cuts repetitions of a block from later texts.

    Lee et al. 2022, "Deduplicating Training Data Makes Language Models Better", find such passages in a suffix array
    of the complete corpus. Here the words kept so far are stored as disjoint blocks, and every run of `length` words
    of a new text is looked up. A repeated block is thus found at any position. A repeated passage of at least
    2 * length - 1 words always loses at least one block; a shorter one may stay. Words are compared without case and
    punctuation (words.py). The same texts in the same order give the same state.
    """

    def __init__(self, *, length: int = 128):
        if length < 1:
            raise ValueError(f"length must be at least 1 word, not {length}.")
        self.length = length
        self.blocks = HashSet()

    def remove(self, text: str) -> tuple[str, int]:
        """Return the new part of a text and the number of removed words. The new part is stored."""
        return next(self.remove_all([text]))

    def remove_all(self, texts: Sequence[str]) -> Iterator[tuple[str, int]]:
        """Yield for each text in turn what `remove` returns, in less time."""
        for text, found in zip(texts, runs_of_texts(texts, self.length), strict=True):
            yield self._remove(text, *found)

    def _remove(self, text: str, text_words: Words, runs: np.ndarray) -> tuple[str, int]:
        # There is a run for each word at which a passage can start.
        if not len(runs):
            return text, 0
        is_known = self.blocks.has(runs)
        candidates = np.flatnonzero(is_known | is_repeated(runs))
        cuts, own_blocks = [], set()  # positions in words; hashes of this text's blocks
        block = 0  # position in words of the next kept block
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
    """A growing set of uint64: a sorted array, and a Python set with the newest members, at most 1 / PENDING of it.

    A table with at least SPARSE entries for each member excludes most other hashes.
    """

    def __init__(self):
        self.sorted, self.new = np.empty(0, dtype=np.uint64), set()
        self._table = np.zeros(2**16, dtype=bool)

    def __len__(self) -> int:
        return len(self.sorted) + len(self.new)

    def has(self, hashes: np.ndarray) -> np.ndarray:
        """Return which of (N,) uint64 hashes are members: (N,) bool."""
        found = self._table[self._places(hashes)]
        likely = np.flatnonzero(found)
        new = np.fromiter(map(self.new.__contains__, hashes[likely].tolist()), dtype=bool, count=len(likely))
        found[likely] = new | in_sorted(self.sorted, hashes[likely])
        return found

    def add(self, hashes: np.ndarray) -> None:
        self.new.update(hashes[~in_sorted(self.sorted, hashes)].tolist())
        self._table[self._places(hashes)] = True
        if len(self.new) > max(1024, len(self.sorted) / PENDING):
            self.sorted = np.sort(np.concatenate([self.sorted, np.array([*self.new], dtype=np.uint64)]), kind="stable")
            self.new = set()
            if len(self.sorted) * SPARSE > len(self._table):
                self._table = np.zeros(2 * len(self._table), dtype=bool)
                self._table[self._places(self.sorted)] = True

    def _places(self, hashes: np.ndarray) -> np.ndarray:
        return hashes & np.uint64(len(self._table) - 1)


def in_sorted(members: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """Return which of the hashes are in a sorted array: (N,) bool."""
    if not len(members):
        return np.zeros(len(hashes), dtype=bool)
    return members[np.minimum(np.searchsorted(members, hashes), len(members) - 1)] == hashes


# --- Contamination -----------------------------------------------------------------------------------------------


def ngram_hashes(texts: Sequence[str], *, n: int = 13) -> np.ndarray:
    """Return the sorted distinct hashes of the word n-grams of an evaluation set's texts, uint64.

    Words are lower-cased, without punctuation, as in GPT-3's appendix C (Brown et al. 2020). A text of fewer than n
    words is one n-gram, which only a text of the same words matches.
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
