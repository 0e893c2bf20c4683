"""Write the speed of preparing data as Markdown: filters, and near-duplicates next to other libraries."""

from markup import lines, table
from targets import figures


def filters() -> str:
    """List the text that each filter processes in a second of processor time."""
    found = figures("cleaning")["speeds"]
    names = {
        "exact duplicates": "`--deduplicate exact`",
        "near duplicates": "`--deduplicate near`",
        "passages": "`--deduplicate-passages 128`",
        "quality": "`--quality true`",
        "privacy": "`--privacy mask`",
        "all five": "all five",
    }
    cells = [f"{found['mb_per_second'][name]:.1f}" for name in names]
    row = f"| MB of text per second of processor time | {' | '.join(cells)} |"
    return table(f"| | {' | '.join(names.values())} |", [row])


def near_duplicates() -> str:
    """Compare the search for near-duplicates with datatrove's and text-dedup's."""
    (size, found), *_ = figures("near_duplicates").items()
    rows = []
    for way, one in found["ways"].items():
        if one is None:
            continue
        name = "ours" if way == "ours" else way.replace("text_dedup", "text-dedup")
        cells = [f"{one['mb_per_processor_second']:.1f}", f"{one['peak_anonymous_bytes'] / 1e6:.0f} MB"]
        cells += ["" if pair["share"] is None else f"{100 * pair['share']:.0f} %" for pair in one["pairs"]]
        rows.append(f"| {name} | {' | '.join(cells)} | {one['false_removals']} |")
    bins = [pair["similarity"] for pair in found["ways"]["ours"]["pairs"]]
    ranges = [f"below {high:g}" if low == 0 else f"{low:g} to {high:g}" for low, high in bins]
    corpus, ours = found["corpus"], found["ways"]["ours"]["parameters"]
    facts = f"""{size} MB: {corpus["documents"]:,} passages of {corpus["words_per_document"]} words from 24 books, with
    {corpus["planted_pairs"]:,} planted pairs. One process on one core; the threshold is {ours["threshold"]} and an
    n-gram has {ours["ngram"]} words. Speed is text per second of processor time. The columns by similarity give the
    share of planted pairs of which a text is removed. Pairs below the threshold should stay."""
    head = f"| | MB per second | peak memory | {' | '.join(ranges)} | other rows removed |"
    return f"{lines(facts)}\n\n{table(head, rows)}"


__all__ = ["filters", "near_duplicates"]
