"""The table of rivals, a work at a time."""

import json
import statistics

HEAD = "| work | contestant | files/s | missing | wrong | repeated | CPU a message | memory | latency | ready |\n"
RULE = "| --- | --- | --: | --: | --: | --: | --: | --: | --: | --: |\n"


def add(results, work, outcomes):
    """Appends to rivals.md and rivals.json, and prints."""
    text = "".join(line(work, name, runs) for name, runs in outcomes.items() if runs)
    with open(f"{results}/rivals.md", "a") as file:
        if file.tell() == 0:
            file.write(HEAD + RULE)
            print(HEAD + RULE, end="")
        file.write(text)
    print(text, end="", flush=True)
    with open(f"{results}/rivals.json", "a") as file:
        file.write(json.dumps({"work": work.name, "outcomes": outcomes}) + "\n")


def line(work, name, runs):
    def middle(key):
        return statistics.median(run[key] for run in runs)

    rate = statistics.median((run["files"] - run["missing"]) / run["seconds"] for run in runs)
    counts = " | ".join(f"{sum(run[key] for run in runs):,}" for key in ("missing", "wrong", "repeated"))
    few = f" ({runs[0]['files']} files)" if runs[0]["files"] < work.files else ""
    known = [run["latency"] for run in runs if run["latency"] is not None]
    latency = f"{1e3 * statistics.median(known):,.1f} ms" if known else "none came"
    return (
        f"| {work.name} | {name}{few} | {rate:,.0f} | {counts} | {middle('cpu'):,.0f} µs | {middle('memory'):,.0f} MB "
        f"| {latency} | {middle('ready'):.1f} s |\n"
    )
