#!/usr/bin/env bash
# Ray 2.60.0: with log_to_driver=False a program's standard output still gets messages of Ray's.
#
# What one expects: ray.init(log_to_driver=False) leaves standard output to the program, so that a table or one line of JSON
# can be piped on. What happens: nothing that workers print comes, but when one of them dies Ray prints several lines
# that begin "(raylet) A worker died or was killed", and prints them to standard output, not to standard error.
# Who meets it: whoever runs a command with --json or > file over a cluster whose workers may be killed (memory, spot machines).
# What helps: keep the descriptor 1 for the program's own output (os.dup) and let Ray have standard error in its place while
# the cluster is joined.
#
# Seen: "what a worker prints is on stdout: False; that one died is on stdout: True, on stderr: False"
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check ray==2.60.0
cd "$folder"
cat >program.py <<'PYTHON'
import os
import signal
import time

import ray

ray.init(num_cpus=1, log_to_driver=False, include_dashboard=False)


@ray.remote
class Worker:
    def pid(self):
        print("printed by a worker", flush=True)
        return os.getpid()


worker = Worker.remote()
os.kill(ray.get(worker.pid.remote()), signal.SIGKILL)
try:
    ray.get(worker.pid.remote(), timeout=60)
except ray.exceptions.RayActorError:
    pass
time.sleep(10)  # what raylets say is passed on now and then
PYTHON
venv/bin/python -W ignore program.py >out.txt 2>err.txt
found() { grep -q "$1" "$2" && echo True || echo False; }
told="what a worker prints is on stdout: $(found 'printed by a worker' out.txt); that one died is on stdout: $(found 'A worker died' out.txt), on stderr: $(found 'A worker died' err.txt)"
echo "$told"
test "$told" = "what a worker prints is on stdout: False; that one died is on stdout: True, on stderr: False"
