"""The launcher's Redis does not outlive a launcher that was killed."""

import subprocess
import sys
import time
from pathlib import Path

import psutil

LAUNCHER = """
import sys, time
from pathlib import Path
from lodestar.local.redis_server import RedisServer
with RedisServer(Path(sys.argv[1])) as server:
    print(server.pid, flush=True)
    time.sleep(100)
"""


def test_redis_goes_with_a_killed_launcher(tmp_path: Path) -> None:
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    with launcher:
        assert launcher.stdout is not None
        pid = int(launcher.stdout.readline())
        assert psutil.pid_exists(pid)
        launcher.kill()
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "redis-server is still there"
        time.sleep(0.05)
