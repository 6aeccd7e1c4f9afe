"""What the samples come to: the table, and what must not be."""

import math
import statistics

from observe import in_bytes, overflows

# The last tenth's memory against the second's.
MEMORY_MAY_GROW = 1.15
GONE = "apollonia_files_gone_total"
# Fewer samples have no tenths.
SAMPLES_MIN = 10


def tenth(samples, number, name):
    part = samples[len(samples) * (number - 1) // 10 : len(samples) * number // 10]
    return [sample[name] for sample in part if sample[name] is not None]


def rows(samples):
    """Name, second tenth, last tenth, ratio, most."""
    for title, name, written, most in (
        ("resident memory", "rss_bytes", size, "rss_bytes"),
        ("descriptors", "descriptors", whole, "descriptors_most"),
        ("threads", "threads", whole, "threads"),
        ("p50, event to confirm", "p50_seconds", milliseconds, "p50_seconds"),
        ("p99, event to confirm", "p99_seconds", milliseconds, "p99_seconds"),
        ("messages/s", "messages_per_second", whole, "messages_per_second"),
    ):
        parts = (tenth(samples, number, name) for number in (2, 10))
        early, late = (statistics.median(values) if values else None for values in parts)
        ratio = f"{late / early:.2f}" if early and late is not None else ""
        highest = max((sample[most] for sample in samples if sample[most] is not None), default=None)
        yield title, written(early), written(late), ratio, written(highest)


def table(samples):
    lines = [("", "second tenth", "last tenth", "ratio", "most"), *rows(samples)]
    widths = [max(len(line[place]) for line in lines) for place in range(5)]
    for title, *cells in lines:
        print("  ".join([title.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells, widths[1:]))]))


def grown(samples):
    """What must not grow and has."""
    early, late = (min(tenth(samples, number, "descriptors")) for number in (2, 10))
    if late > early:
        yield f"descriptors grew from {early} to {late}, the least of each tenth"
    early, late = (statistics.median(tenth(samples, number, "rss_bytes")) for number in (2, 10))
    if late > MEMORY_MAY_GROW * early:
        yield f"memory grew from {in_bytes(early)} to {in_bytes(late)}"


def totals(written, end, peak, cpu):
    """Of what the writer did and what the service's metrics were at the end."""
    print(
        f"written: {written['versions']:,} versions ({written['files_made']:,} files made, "
        f"{written['files_rewritten']:,} rewritten, {written['files_renamed']:,} renamed; "
        f"{written['directories_renamed']:,} directories renamed with their files), "
        f"{written['files_deleted']:,} files deleted, {written['directories_made']:,} directories made, "
        f"{written['directories_removed']:,} removed"
    )
    print(
        f"seen: {whole(end['apollonia_messages_confirmed_total'])} messages, all of them at the consumer, "
        f"{whole(end['apollonia_files_unchanged_total'])} files read again without a change, "
        f"{whole(end['apollonia_busy_total'])} looks at files being written, "
        f"{whole(end[GONE])} gone before they could be read, {overflows(end)} overflows; "
        f"peak memory {in_bytes(peak)}, {cpu:.0f} s of processor time"
    )
    if written["seconds_dropped"]:
        print(f"note: the writer could not keep the rate and left out {written['seconds_dropped']} s of it")


def size(count):
    return "" if count is None else in_bytes(count)


def whole(number):
    return "" if number is None else f"{number:,.0f}"


def milliseconds(seconds):
    if seconds is None:
        return ""
    return "over 600 s" if math.isinf(seconds) else f"{seconds * 1e3:,.2f} ms"
