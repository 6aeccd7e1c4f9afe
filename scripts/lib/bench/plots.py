"""The table's main figures as SVG."""

import contextlib
import os

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

NAME = "apollonia-ingestor"
OURS, RIVAL, INK = "#1f6f8b", "#c3ccd1", "#3a4246"
STYLE = {
    "svg.hashsalt": "bench",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.axisbelow": True,
    "axes.edgecolor": RIVAL,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": "#e6eaec",
    "savefig.bbox": "tight",
}


def draw(directory, lines):
    plt.rcParams.update(STYLE)
    for name in ("files-per-second", "throughput", "latency"):
        # One of an earlier run would not belong to the table beside it.
        with contextlib.suppress(FileNotFoundError):
            os.remove(f"{directory}/{name}.svg")
    # What took turns together; row 4 has the floor.
    rates = [line for line in lines if line.row in (4, 7)]
    bars(f"{directory}/files-per-second.svg", "Small files, warm", "files a second", rates, "files/s")
    bars(f"{directory}/throughput.svg", "Large files, warm", "MB/s", rates, "MB/s")
    latencies = [line for line in lines if line.row == 10 and getattr(line, "raw", None)]
    if latencies:
        cumulative(f"{directory}/latency.svg", latencies)


def bars(path, title, label, lines, unit):
    """One panel for each kind of work, by rate."""
    panels = {}
    for line in reversed(lines):
        if line.unit == unit:
            panel = panels.setdefault(line.work, {})
            panel.setdefault(NAME, line.ours)
            panel["floor: read, no hash" if line.rival == "floor" else line.rival] = line.theirs
    if not panels:
        return
    heights = [len(panel) for panel in panels.values()]
    figure, axes = plt.subplots(
        len(panels),
        figsize=(7.5, 0.36 * sum(heights) + 0.8 * len(panels)),
        sharex=True,
        squeeze=False,
        layout="constrained",
        gridspec_kw={"height_ratios": heights},
    )
    for axis, (work, panel) in zip(axes[:, 0], reversed(panels.items())):
        names = sorted(panel, key=panel.get)
        drawn = axis.barh(
            names,
            [panel[name] for name in names],
            color=[OURS if name == NAME else RIVAL for name in names],
            height=0.7,
        )
        axis.bar_label(drawn, [f"{panel[name]:,.0f}" for name in names], padding=4)
        axis.set_title(f"{title}: {work}", fontsize=10)
        axis.grid(axis="x")
        axis.tick_params(length=0)
        axis.spines["bottom"].set_visible(False)
        axis.margins(x=0.12)
        axis.xaxis.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:,.0f}"))
    axes[-1, 0].set_xlabel(label)
    save(figure, path)


def cumulative(path, lines):
    figure, axis = plt.subplots(figsize=(7.5, 3.2))
    for line, color in zip(lines, (OURS, "#d08c3f")):
        share = [100 * (rank + 1) / len(line.raw) for rank in range(len(line.raw))]
        to = line.work.split("to the ")[1].split(",")[0]
        axis.step(line.raw, share, where="post", color=color, label=f"{to}, median {line.value:.2f} ms")
    axis.set_title("From close(2) of a single file, service idle", fontsize=10)
    axis.set_xlabel("ms")
    axis.set_ylabel("% of files")
    axis.set_xlim(left=0)
    axis.set_ylim(0, 100)
    axis.grid()
    axis.legend(frameon=False, loc="lower right")
    save(figure, path)


def save(figure, path):
    figure.savefig(path, facecolor="white", metadata={"Date": None})
    plt.close(figure)
