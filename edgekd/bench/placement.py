"""Where did it run? The provider asked for against the providers that took the nodes."""

from edgekd.bench.records import Record
from edgekd.target import Target

__all__ = ["fallback"]


def fallback(record: Record, target: Target) -> str:
    """What fell back to another provider against the target's will, as one line; empty if nothing did."""
    nodes = record.fingerprint.get("nodes_by_provider", {})
    others = {name: count for name, count in nodes.items() if name != target.provider.name and count}
    if not others or target.provider.allow_cpu_fallback:
        return ""
    total = sum(nodes.values())
    where = ", ".join(f"{count} of {total} nodes on {name}" for name, count in others.items())
    return f"{where}; target {target.name} asks for {target.provider.name} alone"
