"""What was measured, as a table, as raw figures and as plots."""

import json
import statistics
from dataclasses import asdict, dataclass, field


@dataclass
class Comparison:
    """Ours against a rival, by rate: a ratio above 1 is ours to have won."""

    row: int
    work: str
    rival: str
    unit: str
    # How much each run did, and the runs as dicts with seconds and cpu.
    our_amount: float
    our_runs: list
    their_amount: float
    their_runs: list
    bar: float = None

    @classmethod
    def of(cls, row, work, rival, unit, amount, our_runs, their_runs, bar=None):
        """The same work on both sides."""
        ours, theirs = ([asdict(one) for one in runs] for runs in (our_runs, their_runs))
        return cls(row, work, rival, unit, amount, ours, amount, theirs, bar)

    @property
    def ours(self):
        return self.our_amount / median(self.our_runs)

    @property
    def theirs(self):
        return self.their_amount / median(self.their_runs)

    def cells(self):
        ratio = self.ours / self.theirs
        ours = f"{quantity(self.ours, self.unit)} {detail(self.our_runs)}"
        theirs = f"{self.rival}: {quantity(self.theirs, self.unit)} {detail(self.their_runs)}"
        bar = "" if self.bar is None else f"{self.bar:g}, {'met' if ratio >= self.bar else '**missed**'}"
        return self.work, ours, theirs, f"{ratio:.2f}", bar


@dataclass
class Value:
    """A figure of ours that has no rival; its bar is an upper one."""

    row: int
    work: str
    value: float
    unit: str
    bar: float = None
    raw: list = field(default_factory=list)

    def cells(self):
        bar = ""
        if self.bar is not None:
            bar = f"under {self.bar:g} {self.unit}, {'met' if self.value < self.bar else '**missed**'}"
        return self.work, quantity(self.value, self.unit), "", "", bar


def median(runs, what="seconds"):
    return statistics.median(one[what] for one in runs)


def detail(runs):
    """With half the range, in percent of the median: how quiet the machine was."""
    seconds = [one["seconds"] for one in runs]
    spread = 50 * (max(seconds) - min(seconds)) / median(runs)
    return f"({median(runs):.3g} s ± {spread:.0f} %, CPU {median(runs, 'cpu'):.3g} s)"


def quantity(value, unit):
    number = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return f"{number} {unit}"


def table(lines, heading=True):
    rows = [("row", "work", "ours", "rival", "ratio", "bar"), ("--:", "---", "---", "---", "--:", "---")]
    if not heading:
        rows = []
    rows += [(str(line.row), *line.cells()) for line in lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def write(directory, about, lines, notes):
    with open(f"{directory}/results.md", "w") as file:
        file.write("# Measured against its rivals\n\n")
        file.writelines(f"- {name}: {value}\n" for name, value in about.items())
        file.write(
            "\nMedians, in turns, wall-clock of whole processes; ± is half the range, CPU is user and system time. Ours\n"
            "computes SHA-256 and XXH3-128, the rivals SHA-256 alone.\n\n"
        )
        file.write(table(lines))
        if notes:
            file.write("\n" + "".join(f"- {note}\n" for note in notes))
    with open(f"{directory}/results.json", "w") as file:
        json.dump({"about": about, "notes": notes, "lines": [asdict(line) for line in lines]}, file, indent=1)
        file.write("\n")
