"""The pretrain recipe in a launch of several processes, one of which is killed once a folder is there.

The first launch of process 1 watches for CRASH_AT and sends itself SIGKILL; a restarted one does not.
"""

import os
import signal
import threading
import time
from pathlib import Path


def die_when_it_is_there() -> None:
    while not Path(os.environ["CRASH_AT"]).exists():
        time.sleep(0.005)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    from scratch_gpt_training import pretrain

    if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        threading.Thread(target=die_when_it_is_there, daemon=True).start()
    pretrain.main()
