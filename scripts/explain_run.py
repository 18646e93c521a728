"""Say in plain words what the next run would do, before it runs: what was edited, which jobs start, how long they took.

Jobs that Snakemake's own dry run lists only because it cannot know the new selection yet are told apart.
"""

from __future__ import annotations

import argparse

from likeness.program import run
from likeness.reruns.explain import explain_here


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", help="what is to be made, as for snakemake; all where nothing is named")
    print(explain_here(parser.parse_args().targets))


if __name__ == "__main__":
    run(main)
