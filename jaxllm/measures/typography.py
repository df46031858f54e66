"""Take away what tells texts' sources apart by typing alone, before anyone claims to detect a source."""

import re

_CURLY = str.maketrans({"‘": "'", "’": "'", "‚": "'", "“": '"', "”": '"', "„": '"', "–": "-", "—": "-",
                        "…": "...", "\u00a0": " "})  # fmt: skip
_NUMBER = re.compile(r"^\s*\d{1,3}\s*[.)]\s+")


def normalize_typography(text: str) -> str:
    """Return a text without list number, outer quotes, curly marks, final full stop and capitals.

    Examples:
      >>> normalize_typography('12. “If it’s late – sleep.”  ')
      "if it's late - sleep"
    """
    text = _NUMBER.sub("", text.translate(_CURLY)).strip()
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1].strip()
    text = text[:-1] if text.endswith(".") and not text.endswith("..") else text
    return " ".join(text.lower().split())
