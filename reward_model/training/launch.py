"""torchrun whose last line is the run's own, not forty lines of ChildFailedError, and whose exit status is the run's.

python -m reward_model.training.launch --nproc_per_node 8 train.py …          (arguments of torchrun, then a script)
"""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C among the imports would be a traceback

import logging
import sys

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from reward_model.training.saving import STOPPED

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    logging.disable(logging.ERROR)  # of this process, which has nothing to say that the run does not
    try:
        run.main()
    except ChildFailedError as failed:
        _, first = failed.get_first_failure()
        if first.message and not first.message.startswith("Signal"):
            print(first.message, file=sys.stderr)
        sys.exit(first.exitcode if first.exitcode > 0 else 128 - first.exitcode)
    except SignalException as stopped:
        print(f"Stopped by {stopped.sigval.name}; the same command goes on.", file=sys.stderr)
        sys.exit(STOPPED)
