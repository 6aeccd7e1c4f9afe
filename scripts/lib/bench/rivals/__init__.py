"""scripts/bench --rivals: the service beside what one would pick instead, on the same work in the same run."""

from measure import Failure, Skip
from rivals import table
from rivals.contestants import contestants
from rivals.works import WORKS, play


def run(bench):
    """Every work with every contestant in turn; each row as soon as it is there. Returns whether one failed."""
    failed = False
    field = contestants(bench)
    for number, work in enumerate(WORKS, 1):
        if number not in bench.only:
            continue
        bench.note(f"rivals: {work.name}")
        outcomes = {contestant.name: [] for contestant in field}
        for _ in range(bench.long_rounds):
            for contestant in field:
                try:
                    outcomes[contestant.name].append(play(bench, work, contestant))
                except Skip as skip:
                    bench.note(f"{contestant.name} is left out of {work.name}: {skip}")
                except Failure as failure:
                    bench.note(f"{contestant.name}, {work.name}: {failure}")
                    failed = failed or contestant.ours
        table.add(bench.results, work, outcomes)
    return failed
