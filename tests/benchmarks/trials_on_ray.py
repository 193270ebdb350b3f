"""Trials per hour of a sweep on a Ray cluster of one and of two nodes, and what the loss of a node costs.

    python tests/benchmarks/trials_on_ray.py OUT.json [--trials 6] [--epochs 10]

The nodes are processes of this machine with one CPU each. The time runs from the first trial's start to the end of the
command, and includes that each node loads torch and the data.
"""

import argparse
import csv
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from edgekd.cluster import SETTINGS

NODE = {"num_cpus": 1, "object_store_memory": 80_000_000}


def sweep(folder: Path, asked: argparse.Namespace, address: str) -> "subprocess.Popen[str]":
    """Start the sweep of digits' smallest student."""
    temperatures = ",".join(f"{1 + number / 2:g}" for number in range(asked.trials))
    command = [sys.executable, "-m", "edgekd", "sweep", "digits", "--shape", "channels=[8,16]", "--shape", "hidden=32"]
    command += ["--temperatures", temperatures, "--alphas", "0.9", "--epochs", str(asked.epochs), "--no-pruning"]
    command += ["--teacher", "teacher.safetensors", "--ray", address, "--out", "sweep"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment
    )


def measured(nodes: int, kill: bool, folder: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Run the sweep on so many nodes; with `kill`, the last one is killed in the middle of a trial."""
    os.environ.update(SETTINGS)
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    more = [cluster.add_node(**NODE) for _ in range(nodes - 1)]
    (folder / "sweep").mkdir()
    command = sweep(folder, asked, cluster.address)
    begin, lines = time.monotonic(), []
    assert command.stderr is not None
    for line in command.stderr:
        lines.append(re.sub(r"\x1b\[\d+m", "", line.strip()))
        if line.startswith("ray: "):
            begin = time.monotonic()
        begun = list((folder / "sweep" / "trials").glob("*/net/checkpoint.pt"))
        if kill and more and len(begun) == nodes:
            cluster.remove_node(more.pop(), allow_graceful=False)
    command.wait()
    seconds = time.monotonic() - begin
    cluster.shutdown()
    with (folder / "sweep" / "trials.csv").open(newline="") as file:
        states = [row["state"] for row in csv.DictReader(file)]
    complete = states.count("complete")
    return {
        "nodes": nodes,
        "node_killed": kill,
        "exit_code": command.returncode,
        "seconds": round(seconds, 1),
        "trials_complete": complete,
        "trials_killed": states.count("killed"),
        "trials_per_hour": round(3600 * complete / seconds, 1),
        "resumed": [line for line in lines if "resumed after epoch" in line],
        "repeated": [line for line in lines if "a trial was lost" in line],
        "load_average": os.getloadavg()[0],
    }


def main() -> None:
    """Measure one node, two nodes, and two nodes of which one is killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--trials", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=10)
    asked = parser.parse_args()
    runs = []
    with tempfile.TemporaryDirectory() as name:
        teacher = Path(name, "teacher.safetensors")
        subprocess.run([sys.executable, "-m", "edgekd", "teach", "digits", "--out", str(teacher)], check=True)
        for nodes, kill in ((1, False), (2, False), (2, True)):
            folder = Path(name, f"{nodes}-{kill}")
            folder.mkdir()
            (folder / teacher.name).write_bytes(teacher.read_bytes())
            runs.append(measured(nodes, kill, folder, asked))
            print(json.dumps(runs[-1]), flush=True)
    about = {"trials": asked.trials, "epochs": asked.epochs, "cpus": os.cpu_count(), "machine": platform.machine()}
    asked.out.write_text(json.dumps({"schema_version": 1, **about, "runs": runs}, indent=2) + "\n")


if __name__ == "__main__":
    main()
