"""Samples over time as an SVG, one panel above the other."""

import math

WIDTH, PANEL, GAP = 760, 130, 44
LEFT, RIGHT, TOP, BOTTOM = 74, 20, 34, 40
INK, GRID = "#3a4246", "#e6eaec"
COLORS = "#1f6f8b", "#d08c3f"


def draw(path, minutes, panels):
    """A panel is a title, its lines (name -> values, nothing where there is none) and whether it is logarithmic."""
    height = TOP + len(panels) * (PANEL + GAP) - GAP + BOTTOM
    svg = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        f'font-family="sans-serif" font-size="11" fill="{INK}">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
    ]
    longest = max([*minutes, 1e-9])
    every = step(longest, 8)
    for number, (title, lines, logarithmic) in enumerate(panels):
        top = TOP + number * (PANEL + GAP)
        svg += panel(top, title, minutes, longest, every, lines, decades if logarithmic else marks)
    for mark in range(int(longest / every) + 1):
        x = LEFT + mark * every / longest * (WIDTH - LEFT - RIGHT)
        svg.append(f'<text x="{x:.1f}" y="{height - BOTTOM + 16}" text-anchor="middle">{mark * every:g}</text>')
    svg.append(f'<text x="{WIDTH / 2:.1f}" y="{height - 6}" text-anchor="middle">minutes</text>')
    svg.append("</svg>")
    with open(path, "w") as file:
        file.write("\n".join(svg) + "\n")


def marks(values):
    """Where the lines of the grid are, and how far up the panel a value is (0 to 1)."""
    unit = step(max([*values, 0]) or 1, 4)
    highest = max(math.ceil(max([*values, 0]) / unit), 1)
    return [mark * unit for mark in range(highest + 1)], lambda value: value / (highest * unit)


def decades(values):
    values = [value for value in values if value > 0] or [1]
    lowest = math.floor(math.log10(min(values)))
    highest = max(math.ceil(math.log10(max(values))), lowest + 1)

    def share(value):
        return (math.log10(value) - lowest) / (highest - lowest) if value > 0 else 0

    return [10.0**power for power in range(lowest, highest + 1)], share


def panel(top, title, minutes, longest, every, lines, scale):
    inner = WIDTH - LEFT - RIGHT
    grid, share = scale([value for line in lines.values() for value in line if drawn(value)])
    bottom = top + PANEL

    def x(minute):
        return LEFT + minute / longest * inner

    def y(value):
        return bottom - share(value) * PANEL

    svg = [f'<text x="{LEFT}" y="{top - 8}" font-size="12">{title}</text>']
    for mark in grid:
        at = y(mark)
        svg.append(f'<line x1="{LEFT}" y1="{at:.1f}" x2="{WIDTH - RIGHT}" y2="{at:.1f}" stroke="{GRID}"/>')
        svg.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{mark:,g}</text>')
    for mark in range(int(longest / every) + 1):
        at = x(mark * every)
        svg.append(f'<line x1="{at:.1f}" y1="{top}" x2="{at:.1f}" y2="{bottom}" stroke="{GRID}"/>')
    for place, (color, (name, line)) in enumerate(zip(COLORS, lines.items())):
        pieces, begins = [], True
        for minute, value in zip(minutes, line):
            if drawn(value):
                pieces.append(f"{'M' if begins else 'L'}{x(minute):.1f} {y(value):.1f}")
            begins = not drawn(value)
        svg.append(f'<path d="{" ".join(pieces)}" fill="none" stroke="{color}" stroke-width="1.3"/>')
        if len(lines) > 1:
            at = WIDTH - RIGHT - 60 * (len(lines) - 1 - place)
            svg.append(f'<text x="{at}" y="{top - 8}" text-anchor="end" fill="{color}">{name}</text>')
    return svg


def drawn(value):
    return value is not None and math.isfinite(value)


def step(most, marks):
    """A round distance with which so many marks suffice."""
    rough = most / marks
    power = 10 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
