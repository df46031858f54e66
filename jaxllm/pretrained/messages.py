"""What a file says, made fit for a message: one short line, whatever is in it."""


def brief(value: object, limit: int = 80) -> str:
    """Return the value as Python writes it, cut to `limit` characters.

    Examples:
      >>> brief([1, 2]), brief("two\\nlines"), brief("A" * 100, limit=12)
      ('[1, 2]', "'two\\\\nlines'", "'AAAAAAAA...")
    """
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def bare(value: object) -> str:
    """Return the same without quotes, for a place that has its own."""
    return brief(value, 40).strip("'")
