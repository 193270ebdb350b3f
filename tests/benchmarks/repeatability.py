"""The same model benched again and again: how far p50 moves, and how often the shown interval is right.

    python tests/benchmarks/repeatability.py OUT.json MODEL [--times 20]

The pooled value is the median over all calls of all repetitions but the one that is judged.
"""

import argparse
import time
from pathlib import Path
from statistics import median, stdev

import numpy as np

from edgekd.bench.records import Effort
from edgekd.bench.runner import measure_latency
from edgekd.bench.statistics import latency_of
from edgekd.devices.local import connect
from edgekd.errors import EdgekdError
from edgekd.files import write_json
from edgekd.target import load_target


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--times", type=int, default=20)
    asked = parser.parse_args()
    shown, calls, seconds, waited = [], [], [], []
    for _ in range(asked.times):
        begin = time.monotonic()
        records = measure_latency([asked.model], connect(load_target("cpu-x86")), None, Effort())[0]
        if isinstance(records, EdgekdError):
            raise records
        seconds.append(time.monotonic() - begin)
        shown.append(latency_of([record.latency_s for record in records]))
        calls.append(np.concatenate([record.latency_s for record in records]))
        waited.append(max(record.disturbance["others_cores"] or 0.0 for record in records))
    held = {}
    for name, q in (("p50", 50), ("p95", 95)):
        right = 0
        for place, stats in enumerate(shown):
            pooled = float(np.percentile(np.concatenate(calls[:place] + calls[place + 1 :]), q))
            interval = getattr(stats, name)
            right += interval.low <= pooled <= interval.high
        held[name] = right
    p50 = [1e3 * stats.p50.value for stats in shown]
    width = [(stats.p50.high - stats.p50.low) / stats.p50.value for stats in shown]
    content = {
        "model": asked.model.name,
        "times": asked.times,
        "p50_ms": p50,
        "p50_range": (max(p50) - min(p50)) / median(p50),
        "p50_sd": stdev(p50) / median(p50),
        "interval_width_median": median(width),
        "interval_held_pooled": held,
        "seconds_each": [round(s, 1) for s in seconds],
        "others_cores_max": [round(w, 2) for w in waited],
        "how": "default effort (8 fresh processes), one thread, CPU provider, seeded random inputs",
    }
    write_json(asked.out, content)
    print({key: content[key] for key in ("p50_range", "p50_sd", "interval_width_median", "interval_held_pooled")})


if __name__ == "__main__":
    main()
