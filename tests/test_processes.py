import os
import subprocess
import sys
import threading
import time

from tests import processes

# Starts processes that end at once, and now and then one that has a child of its own.
_COMINGS_AND_GOINGS = """
import subprocess
while True:
    subprocess.run(["sh", "-c", "true & true"])
"""


def test_processes_that_end_during_a_look_are_left_out():
    with subprocess.Popen([sys.executable, "-c", _COMINGS_AND_GOINGS]) as busy:
        try:
            seen = set()
            begin = time.monotonic()
            # At least a second, and until it has seen many: this process may be paused for longer than that.
            while (passed := time.monotonic() - begin) < 1.0 or len(seen) <= 20:
                assert passed < 60
                for pid in processes.below(busy.pid):
                    seen.add(pid)
                    assert isinstance(processes.words(pid), list)
                    processes.ran_seconds(pid)
                    processes.alive(pid)
        finally:
            busy.kill()


def test_all_below_a_process_is_found_whichever_thread_started_it():
    started = []
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
    thread = threading.Thread(
        target=lambda: started.append(subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE))
    )
    thread.start()
    thread.join()
    with started[0] as parent:
        deadline = time.monotonic() + 20
        while len(found := processes.below(parent.pid)) < 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert parent.pid in processes.below(os.getpid())
        assert len(found) == 1
        assert processes.alive(parent.pid)
        assert sys.executable in processes.words(parent.pid)
        assert processes.ran_seconds(parent.pid) > 0
    assert not processes.alive(parent.pid)
    assert processes.words(parent.pid) == [""]
    assert processes.children(parent.pid) == []
    assert processes.ran_seconds(parent.pid) == 0


def test_process_that_nobody_has_waited_for_is_not_alive():
    with subprocess.Popen(["true"]) as ended:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        assert not processes.alive(ended.pid)
