"""A node's part in a training run: torchrun's arguments in; this process becomes torchrun.

Started by `pipeline.training.launch`, on several nodes by `srun` on each. It ends with the process that started it. Signals
that tell a run to save are for the ranks, so torchrun ignores them and stays until its ranks have ended.
"""

import os
import signal
import sys
from collections.abc import Sequence

from pipeline.training.launch import SAVE, end_with_parent


def main(arguments: Sequence[str]) -> None:
    """Does not return."""
    end_with_parent()
    for number in SAVE:
        signal.signal(number, signal.SIG_IGN)
    node = f"--node-rank={os.environ.get('SLURM_NODEID', '0')}"
    os.execv(sys.executable, [sys.executable, "-u", "-m", "torch.distributed.run", node, *arguments])


if __name__ == "__main__":
    main(sys.argv[1:])
