"""Samples over time as an SVG, one panel above the other."""

import math

WIDTH, PANEL, GAP = 760, 130, 44
LEFT, RIGHT, TOP, BOTTOM = 74, 20, 34, 40
INK, GRID = "#3a4246", "#e6eaec"
COLORS = "#1f6f8b", "#d08c3f"


def draw(path, minutes, panels):
    """A panel is a title and its lines: name -> values, nothing where there is none."""
    height = TOP + len(panels) * (PANEL + GAP) - GAP + BOTTOM
    svg = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        f'font-family="sans-serif" font-size="11" fill="{INK}">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
    ]
    longest = max([*minutes, 1e-9])
    every = step(longest, 8)
    for number, (title, lines) in enumerate(panels):
        top = TOP + number * (PANEL + GAP)
        svg += panel(top, title, minutes, longest, every, lines)
    for mark in range(int(longest / every) + 1):
        x = LEFT + mark * every / longest * (WIDTH - LEFT - RIGHT)
        svg.append(f'<text x="{x:.1f}" y="{height - BOTTOM + 16}" text-anchor="middle">{mark * every:g}</text>')
    svg.append(f'<text x="{WIDTH / 2:.1f}" y="{height - 6}" text-anchor="middle">minutes</text>')
    svg.append("</svg>")
    with open(path, "w") as file:
        file.write("\n".join(svg) + "\n")


def panel(top, title, minutes, longest, every, lines):
    inner = WIDTH - LEFT - RIGHT
    values = [value for line in lines.values() for value in line if drawn(value)]
    unit = step(max([*values, 0]) or 1, 4)
    highest = unit * math.ceil(max([*values, unit]) / unit)
    bottom = top + PANEL

    def x(minute):
        return LEFT + minute / longest * inner

    def y(value):
        return bottom - value / highest * PANEL

    svg = [f'<text x="{LEFT}" y="{top - 8}" font-size="12">{title}</text>']
    for mark in range(round(highest / unit) + 1):
        at = y(mark * unit)
        svg.append(f'<line x1="{LEFT}" y1="{at:.1f}" x2="{WIDTH - RIGHT}" y2="{at:.1f}" stroke="{GRID}"/>')
        svg.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{mark * unit:,g}</text>')
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
