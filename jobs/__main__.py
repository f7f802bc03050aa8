"""The command line: `python -m jobs VERB STAGE|all key=value …`, with the same settings as `python -m pipeline STAGE|all`.

In: a verb and a command of the pipeline. Out: lines that say what was done; a mistake is one line on standard error.
"""

import sys

from jobs.chain import ask, lines_of

VERBS = {
    "submit": "sends the stages that are not finished to Slurm, each after the one before it, and ends",
    "status": "shows how far they are",
    "logs": "shows the ends of their logs, and why units failed",
    "cancel": "cancels their jobs; what is finished stays",
}


def main(arguments: list[str]) -> int:
    """Runs one command; returns the exit code."""
    dry = "--dry-run" in arguments
    rest = [argument for argument in arguments if argument != "--dry-run"]
    if not rest or rest[0] in ("-h", "--help"):
        print("usage: python -m jobs VERB STAGE|all [key=value …]\n")
        print("\n".join(f"  {verb:<8}{text}" for verb, text in VERBS.items()))
        print("\nsubmit --dry-run prints the scripts that it would send.")
        return 0 if rest else 2
    try:
        if rest[0] not in VERBS:
            raise ValueError(f"{rest[0]}: no such verb; there are {', '.join(VERBS)}")
        if len(rest) < 2:
            raise ValueError(f"{rest[0]}: name a stage, or all")
        for line in lines_of(rest[0], ask(rest[1:]), dry):
            print(line, flush=True)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
