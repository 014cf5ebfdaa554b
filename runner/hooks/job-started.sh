#!/bin/bash
# GitHub's runner runs this before every job (`bash -e`, as the user of the jobs). The check itself is job_started.py.
#
# Exit code 1 alone does not stop a job: steps with `if: always()` and the `pre` parts of actions run all the same
# (actions/runner issue 2811, StepsRunner.cs), and a fork writes its own `if:`. So a refusal kills the runner's worker,
# the only process that runs steps. The listener then reports the job as failed with what stands on the worker's stderr.
#
# Absolute paths and python3 -I: no PATH, PYTHONPATH or file in the workspace decides what runs here. Cancelling a run
# sends SIGINT, SIGTERM and after 10 seconds SIGKILL to this script: the first two are ignored, and the limit of 5
# seconds ends it before the third. Arguments are for the tests: the runner passes none.
set +e
trap '' INT TERM

worker() { # the nearest ancestor that is the runner's worker
  local pid=$PPID name key value
  while [ "${pid:-0}" -gt 1 ]; do
    read -r name <"/proc/$pid/comm" || return 1
    [ "$name" = Runner.Worker ] && { echo "$pid"; return 0; }
    while read -r key value; do [ "$key" = PPid: ] && pid=$value && break; done <"/proc/$pid/status"
  done
  return 1
}

said=$(/usr/bin/timeout --signal=KILL 5 /usr/bin/python3 -I "${BASH_SOURCE[0]%/*}/job_started.py" "$@" 2>&1)
status=$?
[ "$status" -eq 0 ] && { echo "$said"; exit 0; }
[ "$status" -eq 137 ] && said="refused: the check took longer than 5 seconds. Run the job again; if it stays so, ask the owner of the runner to look at the load of the machine"
[ -n "$said" ] || said="refused: the check could not run (exit code $status). Ask the owner of the runner to run make runner-doctor"

echo "::error title=Refused by the runner::$said"
if pid=$(worker); then
  echo "$said" >"/proc/$pid/fd/2"
  /bin/sleep 1 # the line above is on its way to the live log
  kill -KILL "$pid"
fi
exit 1
