"""Compare the requested provider with those that ran the nodes, and count int8 and float kernels."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from edgekd.bench.records import Record
from edgekd.devices.device import Site
from edgekd.figures import Placement
from edgekd.target import Target

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto

__all__ = ["fallback", "int8_nodes", "placement_of"]

INT8_KERNELS = (
    "QLinear",
    "QGemm",
    "QAttention",
    "QEmbedLayerNormalization",
    "ConvInteger",
    "MatMulInteger",
    "DynamicQuantize",
)
"""Prefixes of the names of kernels that compute in 8 bits (ONNX and com.microsoft)."""


def fallback(record: Record, target: Target) -> str:
    """Describe in one line the nodes that ran on another provider although the target forbids it; empty if there are
    none.
    """
    nodes = record.fingerprint.get("nodes_by_provider") or _by_provider(record)
    others = {name: count for name, count in nodes.items() if name != target.provider.name and count}
    if not others or target.provider.allow_cpu_fallback:
        return ""
    total = sum(nodes.values())
    where = ", ".join(f"{count} of {total} nodes on {name}" for name, count in others.items())
    kinds = record.fingerprint.get("ops_elsewhere") or _elsewhere(record, target)
    which = f" ({', '.join(f'{count} {kind}' for kind, count in kinds.items())})" if kinds else ""
    return f"{where}{which}; target {target.name} asks for {target.provider.name} alone"


def _by_provider(record: Record) -> dict[str, int]:
    """Count nodes by provider, as ONNX Runtime assigned them or, for builds before 1.24, from the profiled kernels."""
    nodes = [provider for provider, _, _ in record.assigned] or [kernel["provider"] for kernel in record.kernels]
    return dict(Counter(nodes))


def _elsewhere(record: Record, target: Target) -> dict[str, int]:
    assigned = [(provider, op) for provider, op, _ in record.assigned]
    nodes = assigned or [(kernel["provider"], kernel["op_type"]) for kernel in record.kernels]
    return dict(Counter(op for provider, op in nodes if provider != target.provider.name))


def placement_of(record: Record, optimized: Path | None, site: Site, costliest: int = 0) -> Placement:
    """Return the placement from a profile record; `optimized` is the graph that ONNX Runtime optimized, if it was
    written.
    """
    spent: dict[str, float] = defaultdict(float)
    rows = [(float(median(kernel["us"])), kernel) for kernel in record.kernels]
    total = sum(us for us, _ in rows) or 1.0
    for us, kernel in rows:
        spent[kernel["provider"]] += us / total
    fused, unfused, blockers = _arithmetic(record, optimized)
    kinds = Counter(kernel["op_type"] for kernel in record.kernels)
    pairs = kinds["QuantizeLinear"] + kinds["DequantizeLinear"]
    rows.sort(key=lambda row: -row[0])
    if not site.measurable:  # times on this device do not apply to the target
        rows, spent = [], {}
    return Placement(
        nodes=_by_provider(record),
        time_share=dict(spent),
        provenance=site.provenance,
        qdq=pairs if fused is not None else None,
        fell_back=_elsewhere(record, site.target),
        fused=fused,
        unfused=unfused,
        blockers=blockers,
        costliest=tuple(_costly(us, us / total, kernel) for us, kernel in rows[:costliest]),
    )


def _costly(us: float, share: float, kernel: dict[str, Any]) -> dict[str, Any]:
    return {**{key: kernel[key] for key in ("node", "op_type", "provider")}, "us": us, "share": share}


def _arithmetic(record: Record, optimized: Path | None) -> tuple[int | None, int | None, dict[str, int]]:
    """Count the 8-bit kernels and the float nodes between quantized ones, and give the op types of the latter."""
    kinds = [kernel["op_type"] for kernel in record.kernels]
    fused = sum(kind.startswith(INT8_KERNELS) for kind in kinds)
    if optimized is not None and optimized.exists():
        import onnx  # needed only to read the graph

        return int8_nodes(onnx.load(optimized, load_external_data=False).graph)
    pairs = "QuantizeLinear" in kinds or "DequantizeLinear" in kinds
    return (fused, None, {}) if fused or pairs else (None, None, {})


def int8_nodes(graph: "GraphProto") -> tuple[int | None, int | None, dict[str, int]]:
    """Return the number of 8-bit nodes, the number of float nodes, and the op types of the latter; None for a float
    graph.

    A float node counts if it reads dequantized weights, or if it lies on a path from DequantizeLinear to
    QuantizeLinear, where the data leave 8 bits and return to them.
    """
    fused = sum(node.op_type.startswith(INT8_KERNELS) for node in graph.node)
    pairs = any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in graph.node)
    if not fused and not pairs:
        return None, None, {}
    constants = {tensor.name for tensor in graph.initializer}
    dequantized = [node for node in graph.node if node.op_type == "DequantizeLinear"]
    weights = {node.output[0] for node in dequantized if node.input[0] in constants}
    left = [node for node in _between(graph.node, dequantized, constants) if not _reads(node, weights)]
    left += [node for node in graph.node if _reads(node, weights)]
    return fused, len(left), dict(Counter(node.op_type for node in left).most_common())


def _reads(node: "NodeProto", names: set[str]) -> bool:
    return any(name in names for name in node.input)


def _between(
    nodes: Iterable["NodeProto"], dequantized: Iterable["NodeProto"], constants: set[str]
) -> list["NodeProto"]:
    """Return nodes after a DequantizeLinear of data and before a QuantizeLinear. The nodes must be in topological
    order.
    """
    ordered = [node for node in nodes if node.op_type not in ("QuantizeLinear", "DequantizeLinear")]
    after = {node.output[0] for node in dequantized if node.input[0] not in constants}
    for node in ordered:
        if _reads(node, after):
            after.update(node.output)
    before = {name for node in nodes if node.op_type == "QuantizeLinear" for name in node.input[:1]}
    for node in reversed(ordered):
        if any(name in before for name in node.output):
            before.update(node.input)
    return [node for node in ordered if _reads(node, after) and any(name in before for name in node.output)]
