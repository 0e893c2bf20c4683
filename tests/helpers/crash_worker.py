"""Run the pretrain recipe in a launch of several processes and kill one of them when a folder appears.

Process 1 waits for the path CRASH_AT, then sends itself SIGKILL; after a restart it does not.
"""

import os
import signal
import threading
import time
from pathlib import Path


def kill_self_at_crash_path() -> None:
    while not Path(os.environ["CRASH_AT"]).exists():
        time.sleep(0.005)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    from scratch_gpt_training import pretrain

    if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        threading.Thread(target=kill_self_at_crash_path, daemon=True).start()
    pretrain.main()
