"""Prints one table of --benchmark-json files: ours, each peer, ratios, shares of the floor."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def milliseconds(seconds: float) -> str:
    ms = 1000 * seconds
    return f"{ms:.3f}" if ms < 1 else f"{ms:.1f}"


def rows(info: dict[str, Any]) -> list[list[str]]:
    work = f"{info['work']} {info['shape']} {info['data']}".strip()
    ours = [
        work,
        info["ours"],
        milliseconds(info["seconds"]),
        "",
        f"{info['share_of_floor']:.0%}",
        f"{info['gflops']:.0f}",
        f"{info['gbs']:.1f}",
        f"{info['errors'][info['ours']]:.1e}",
    ]
    peers = [
        [
            "",
            name,
            milliseconds(t),
            f"{t / info['seconds']:.2f}x",
            "",
            "",
            "",
            f"{info['errors'][name]:.1e}",
        ]
        for name, t in sorted(info["peers"].items(), key=lambda item: item[1])
    ]
    failed = [["", name, "failed", *[""] * 5] for name in info["failures"]]
    return [ours, *peers, *failed]


def footer(infos: list[dict[str, Any]]) -> list[str]:
    """Why peers failed, and the conditions."""
    lines = [
        f"{name} failed, {info['work']} {info['shape']} {info['data']}: {why}"
        for info in infos
        for name, why in info["failures"].items()
    ]
    first = infos[0]
    size = "small shapes" if first["quick"] else "full size"
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    errors = "error: largest deviation from float64, or mismatch rate"
    if first["device"] == "cpu":
        lines += [
            f"{size}; {first['threads']} threads; {versions}; C++ kernels: {first['backend']}",
            f"medians of 5 rounds in turn; {errors}",
        ]
    else:
        lines += [
            f"{size}; {first['device']}; {versions}; kernels: {first['backend']}",
            f"medians of 5 rounds in turn, each of {first['repeats']} calls in a row; {errors}",
            "floor: a product in TF32 or a copy of as many bytes, measured in the same run;"
            " what is read twice may come from the cache, and beat it",
        ]
    return lines


def main(*paths: str) -> None:
    benchmarks = [b for path in paths for b in json.loads(Path(path).read_text())["benchmarks"]]
    infos = [b["extra_info"] for b in benchmarks if "work" in b["extra_info"]]
    if not infos:
        sys.exit(f"{', '.join(paths)}: no benches in it")
    infos.sort(key=lambda info: (info["work"], info["shape"], info["data"]))
    header = ["work", "by", "ms", "ours is faster", "of floor", "GFLOP/s", "GB/s", "error"]
    table = [header, *(row for info in infos for row in rows(info))]
    widths = [max(len(row[i]) for row in table) for i in range(len(header))]
    for row in table:
        cells = [row[0].ljust(widths[0]), row[1].ljust(widths[1])]
        cells += [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        print("  ".join(cells).rstrip())
    print("", *footer(infos), sep="\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
