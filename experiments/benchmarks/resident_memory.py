"""How much memory a process holds, by Linux's own account."""

from pathlib import Path


def resident_bytes(line: str = "VmRSS") -> int:
    """Return a line of /proc/self/status: "VmRSS" is what is held now, "VmHWM" the most so far.

    Not `resource.getrusage`, whose maximum a child process begins with its parent's.
    """
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(text.split(f"{line}:")[1].split()[0]) * 1024


def restart_peak() -> int:
    """Let "VmHWM" begin anew; return the bytes that are held now."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident_bytes("VmRSS")
