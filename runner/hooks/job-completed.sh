#!/bin/bash
# GitHub's runner runs this after every job: what the job left in its workspace, /tmp and HOME goes. The container, whose
# memory these folders are, ends right after, so this is a second lock on the same door.
# The folders are fixed: GITHUB_WORKSPACE and HOME are what a job may have changed. The one argument is for the tests.
set -u
root=${1:-}

# a folder that the job made read-only would keep its files
/usr/bin/find "$root/runner/_work" "$root/tmp" "$root/home/runner" -xdev -type d ! -perm -700 \
  -exec /bin/chmod u+rwx {} + 2>/dev/null

wipe() { # all in a folder but what the rest of the arguments (for find) spare
  [ -d "$root$1" ] || return 0
  /usr/bin/find "$root$1" -xdev -mindepth 1 "${@:2}" -delete 2>/dev/null
  left=$(/usr/bin/find "$root$1" -xdev -mindepth 1 "${@:2}" -print -quit)
  [ -z "$left" ] || echo "::warning title=Not wiped::$left stays until the container ends"
}

# The runner itself still needs: its file commands and the event for this very hook, the actions, .NET's own sockets.
work=$root/runner/_work
wipe /runner/_work ! -path "$work/_temp" ! -path "$work/_temp/_runner_file_commands*" ! -path "$work/_temp/_github_workflow*" \
  ! -path "$work/_actions*"
wipe /tmp ! -name 'clr-debug-pipe-*' ! -name 'dotnet-diagnostic-*' ! -path "$root/tmp/.dotnet*"
wipe /home/runner
exit 0
