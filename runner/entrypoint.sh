#!/usr/bin/env bash
# What a runner container does: read the just-in-time configuration from a file, remove the file, run one job, end.
# Reads /run/jit/jitconfig (runner/jit_config.py wrote it) and /opt/actions-runner; works in /runner, which is empty.
# The three paths are arguments for the tests.
set -euo pipefail
file=${1:-/run/jit/jitconfig} program=${2:-/opt/actions-runner} work=${3:-/runner}

fail() { echo "entrypoint: $1" >&2; exit 1; }

[[ -s $file ]] || fail "$file is missing or empty: start the container by ml-runner@.service, which asks GitHub for it"
[[ -z $(ls -A "$work") ]] || fail "$work is not empty, so an earlier job left something: it must be a fresh tmpfs for each job"
config=$(<"$file")
rm -f -- "$file" || fail "$file cannot be removed, and a job could read it: mount its folder writable"

# GitHub's runner writes beside its own program and looks for an .env there, so it needs a folder of its own.
cp -R "$program/bin" "$work/bin"
ln -s "$program/externals" "$work/externals"
cd "$work"

# The runner takes this variable out of its environment before it starts a job (CommandSettings.cs), and an argument
# would stand in the process list. It is good for this one runner, which GitHub forgets after its one job.
export ACTIONS_RUNNER_INPUT_JITCONFIG=$config
unset config
# Not run.sh: that would start the same program again, and here a new job is a new container.
exec ./bin/Runner.Listener run
