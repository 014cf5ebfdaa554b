#!/usr/bin/env bash
# Put the runner's files in place, as root: sudo runner/install.sh. May run again: settings that are there stay.
# Writes /opt/ml-runner (scripts, hooks), /etc/systemd/system (units), /etc/ml-runner (settings), /srv/ml-runner (caches,
# remote). With a folder as argument it installs below that, which is what the tests do.
set -euo pipefail
here=$(cd -- "${BASH_SOURCE[0]%/*}" && pwd)
root=${1:-}
[[ $(id -u) = 0 || $root ]] || { echo "install: this writes to /opt and /etc, so run it as root: sudo runner/install.sh" >&2; exit 1; }

owner=() job=()
[[ $(id -u) = 0 ]] && owner=(--owner=root --group=root) job=(--owner=1001 --group=1001) # 1001: `runner` in the image

folder() { install --directory --mode="$1" "${@:3}" "$root$2"; }
file() { install --mode="$1" "${owner[@]}" "$here/$2" "$root$3"; }
setting() { [[ -e $root/etc/ml-runner/$2 ]] || file "$1" "etc/$2" "/etc/ml-runner/$2"; }

folder 0755 /opt/ml-runner "${owner[@]}"
folder 0755 /opt/ml-runner/hooks "${owner[@]}"
folder 0755 /etc/ml-runner "${owner[@]}"
folder 0755 /etc/systemd/system "${owner[@]}"
for name in job-started.sh job-completed.sh; do file 0755 "hooks/$name" "/opt/ml-runner/hooks/$name"; done
file 0644 hooks/job_started.py /opt/ml-runner/hooks/job_started.py
file 0644 jit_config.py /opt/ml-runner/jit_config.py
file 0755 network.sh /opt/ml-runner/network.sh
file 0644 ../docs/runner.md /opt/ml-runner/runner.md
file 0644 ml-runner@.service /etc/systemd/system/ml-runner@.service
file 0644 ml-runner-network.service /etc/systemd/system/ml-runner-network.service

setting 0600 github.json
setting 0644 network.env
for level in pull-request deploy; do
  setting 0644 "$level.env"
  setting 0644 "$level.allowed.json"
  folder 0755 "/srv/ml-runner/$level" "${owner[@]}"
  folder 0700 "/srv/ml-runner/$level/dvc-cache" "${job[@]}" # one cache each: who writes a cache chooses the model
done
folder 0700 /srv/ml-runner/dvc-remote "${job[@]}"

echo "install: done. Fill in $root/etc/ml-runner/github.json and the allowed.json files, then: systemctl daemon-reload"
