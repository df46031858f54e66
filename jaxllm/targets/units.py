"""Bytes and seconds in units that a person reads."""


def as_size(count: float) -> str:
    """Return bytes as GiB, MiB or KiB.

    Examples:
      >>> as_size(3 * 2**29), as_size(12)
      ('1.50 GiB', '12 B')
    """
    scale, unit = size_unit(abs(count))
    return f"{count / scale:.2f} {unit}" if unit != "B" else f"{count:.0f} B"


def size_unit(count: float) -> tuple[float, str]:
    """Return (bytes in it, name) of the largest unit that so many bytes reach."""
    for exponent, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if count >= 1024**exponent:
            return float(1024**exponent), unit
    return 1.0, "B"


def as_time(seconds: float) -> str:
    """Return seconds as s, ms or us.

    Examples:
      >>> as_time(0.0123)
      '12.30 ms'
    """
    for scale, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= scale:
            return f"{seconds / scale:.2f} {unit}"
    return f"{seconds * 1e6:.2f} us"
