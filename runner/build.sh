#!/usr/bin/env bash
# Build the runner's image from runner/pins.env: runner/build.sh (on the GPU machine, as root or in the group docker).
# Reads requirements/ and runner/; makes the image ml-runner:current.
set -euo pipefail
here=$(cd -- "${BASH_SOURCE[0]%/*}" && pwd)

fail() { echo "build: $1" >&2; exit 1; }

require() { # name, value, pattern, example
  [[ $2 ]] || fail "$1 is empty in runner/pins.env: docs/runner.md (\"Build the image\") says where to read it"
  [[ $2 =~ ^$3$ ]] || fail "$1 in runner/pins.env is '$2', which is not of the form $4: docs/runner.md says where to read it"
}

# shellcheck source=/dev/null
. "$here/pins.env"
require BASE_DIGEST "${BASE_DIGEST:-}" 'sha256:[0-9a-f]{64}' 'sha256:<64 hexadecimal digits>'
require RUNNER_VERSION "${RUNNER_VERSION:-}" '[0-9]+\.[0-9]+\.[0-9]+' '2.336.0'
require RUNNER_SHA256 "${RUNNER_SHA256:-}" '[0-9a-f]{64}' '<64 hexadecimal digits>'
command -v docker >/dev/null || fail "docker is not installed: docs/runner.md, step 2"

arguments=(--build-arg "BASE_DIGEST=$BASE_DIGEST" --build-arg "RUNNER_VERSION=$RUNNER_VERSION" --build-arg "RUNNER_SHA256=$RUNNER_SHA256")
for name in BASE_IMAGE RUNNER_ARCH; do # a mirror of the base, or arm64: named in pins.env where needed
  [[ ${!name:-} ]] && arguments+=(--build-arg "$name=${!name}")
done

# Only what the image needs goes to the engine, never data or .git. No layer is reused: a rebuild is for the updates.
tar --create --directory "$here/.." runner requirements |
  docker build --no-cache --tag ml-runner:current --file runner/Dockerfile "${arguments[@]}" -
echo "build: ml-runner:current holds runner $RUNNER_VERSION; the next job starts from it"
