"""Format numbers with their nouns, and durations."""


def plural(count: int | float, noun: str, plural_noun: str | None = None) -> str:
    """Return a number with thousands separators and its noun.

    Example:
        >>> plural(1, "document"), plural(2500, "document"), plural(2, "process", "processes")
        ('1 document', '2,500 documents', '2 processes')
    """
    return f"{count:,} {noun if count == 1 else plural_noun or noun + 's'}"


def duration(seconds: float) -> str:
    """Return a duration with two or more digits, in the largest unit that fits into it at least twice.

    Example:
        >>> duration(0.0123), duration(44), duration(200)
        ('12.3 ms', '44.00 seconds', '3.3 minutes')
    """
    for unit, length in (("years", 365.25 * 86400), ("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.2f} seconds" if seconds >= 1 else f"{1000 * seconds:.1f} ms"
