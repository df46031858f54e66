"""How much memory a process holds, by Linux's own account."""

from pathlib import Path


def resident_megabytes(line: str = "VmRSS") -> float:
    """Return a line of /proc/self/status in MB: "VmRSS" is what is held now, "VmHWM" the most so far.

    Not `resource.getrusage`, whose maximum a child process begins with its parent's.
    """
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(text.split(f"{line}:")[1].split()[0]) / 1024
