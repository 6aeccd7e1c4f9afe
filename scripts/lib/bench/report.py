"""What was measured, as a table, as raw figures and as plots."""

import json
import statistics
from dataclasses import asdict, dataclass, field

from measure import median


@dataclass
class Comparison:
    """Ours against a rival, by rate: a ratio above 1 is ours to have won."""

    row: int
    work: str
    rival: str
    unit: str
    ours: list
    theirs: list
    bar: float = None
    raw: dict = field(default_factory=dict)

    @classmethod
    def of(cls, row, work, rival, unit, amount, our_runs, their_runs, bar=None):
        ours, theirs = ([amount / one.seconds for one in runs] for runs in (our_runs, their_runs))
        raw = {"ours": [asdict(one) for one in our_runs], rival: [asdict(one) for one in their_runs]}
        line = cls(row, work, rival, unit, ours, theirs, bar, raw)
        line.detail = [
            f" ({median(runs):.3g} s ± {spread(runs):.0f} %, CPU {median(runs, 'cpu'):.3g} s)"
            for runs in (our_runs, their_runs)
        ]
        return line

    detail = ("", "")

    @property
    def ratio(self):
        return statistics.median(self.ours) / statistics.median(self.theirs)

    def cells(self):
        ours, theirs = (
            f"{quantity(statistics.median(rates), self.unit)}{detail}"
            for rates, detail in zip((self.ours, self.theirs), self.detail)
        )
        bar = "" if self.bar is None else f"{self.bar:g}, {'met' if self.ratio >= self.bar else '**missed**'}"
        return self.work, ours, f"{self.rival}: {theirs}", f"{self.ratio:.2f}", bar


@dataclass
class Value:
    """A figure of ours that has no rival; less is better."""

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


def spread(runs):
    """Half the range, in percent of the median: how quiet the machine was."""
    seconds = [one.seconds for one in runs]
    return 50 * (max(seconds) - min(seconds)) / median(runs)


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
