#!/usr/bin/env bash
# Builds the serving image and tries it, with or without a container engine.
#
#   deploy/image.sh build             builds it and prints what it adds to its base
#   deploy/image.sh check REPOSITORY  serves that model repository from it, asks it from outside, and stops it. The server
#                                     may write to no disk, has no capability and no network but the one it is asked on.
#
# RUNTIME=cpu (default) or cuda chooses the flavour, EXTRAS adds others ("tracing"), BASE the base image, IMAGE the name (convoy).
#
# docker is used where its engine answers. Elsewhere buildah builds, as root: it needs neither a daemon nor a registry, only
# a file system, and the base is a Debian bookworm with its own Python, made here from Debian's packages. What docker would
# start is started by util-linux then: buildah has no detached containers and no networks.
set -euo pipefail
cd "$(dirname "$0")/.."

runtime=${RUNTIME:-cpu}
image=${IMAGE:-convoy}
largest_addition=250000000 # bytes that the CPU flavour may add to its base
stop_seconds=5             # from SIGTERM to the end
start_seconds=60

main() {
  if [ "${1:-}" = enclosed ]; then enclosed "${@:2}"; fi # by this script itself
  choose_engine
  case ${1:-} in
    build) [ $# -eq 1 ] || usage; build ;;
    check) [ $# -eq 2 ] || usage; check "$2" ;;
    *) usage ;;
  esac
}

usage() {
  echo "usage: deploy/image.sh build | check REPOSITORY" >&2
  exit 2
}

fail() {
  echo "deploy/image.sh: $1" >&2
  exit 1
}

choose_engine() {
  if docker info >/dev/null 2>&1; then
    engine=docker
    base=${BASE:-python:3.12-slim-bookworm}
    return
  fi
  engine=buildah
  # vfs and chroot ask nothing of the kernel, so they also work inside a container.
  export STORAGE_DRIVER=${STORAGE_DRIVER:-vfs} BUILDAH_ISOLATION=chroot
  image=localhost/$image
  base=${BASE:-localhost/convoy-base:bookworm}
  command -v buildah >/dev/null || install_packages buildah
}

install_packages() {
  if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    fail "needs a running docker engine, or $* (which this can only install as root on Debian)"
  fi
  echo "installing $* ..."
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

# ---- build

build() {
  if [ "$engine" = buildah ] && [ -z "${BASE:-}" ]; then make_base; fi
  echo "building $image ($runtime) on $base with $engine ..."
  local arguments=(--build-arg "BASE=$base" --build-arg "RUNTIME=$runtime" --build-arg "EXTRAS=${EXTRAS:-}" --tag "$image")
  arguments+=(--build-arg "REVISION=$(git rev-parse --short HEAD 2>/dev/null || true)")
  # A network may have a proxy or a package index of its own.
  local name
  for name in PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_TRUSTED_HOST PIP_CERT PIP_DEFAULT_TIMEOUT \
    http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY; do
    if [ -n "${!name:-}" ]; then arguments+=(--build-arg "$name"); fi
  done
  if [ "$engine" = docker ]; then
    docker build "${arguments[@]}" .
  else
    local before
    before=$(buildah images --quiet "$image" 2>/dev/null || true)
    # The health check is part of docker's image format only. The machine's certificates are those its network needs.
    if [ -d /etc/ssl/certs ]; then arguments+=(--volume /etc/ssl/certs:/etc/ssl/certs:ro); fi
    buildah bud --quiet --format docker "${arguments[@]}" .
    # With vfs every image is a whole copy: the one that lost its name goes.
    if [ -n "$before" ] && [ "$before" != "$(buildah images --quiet "$image")" ]; then
      buildah rmi "$before" >/dev/null
    fi
  fi
  report_size
}

make_base() {
  if buildah inspect --type image "$base" >/dev/null 2>&1; then return; fi
  command -v debootstrap >/dev/null || install_packages debootstrap
  echo "making $base from Debian's packages (under a minute) ..."
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$scratch/root" \
    >"$scratch/log" 2>&1 || { tail -n 5 "$scratch/log" >&2; fail "debootstrap failed"; }
  # As images of Debian are published: without the package manager's downloads and lists.
  rm -rf "$scratch"/root/var/cache/apt/* "$scratch"/root/var/lib/apt/lists/*
  container=$(buildah from scratch)
  buildah add --quiet "$container" "$scratch/root" / >/dev/null
  buildah commit --quiet "$container" "$base" >/dev/null
  buildah rm "$container" >/dev/null
}

report_size() {
  local base_bytes image_bytes added
  base_bytes=$(bytes_in "$base")
  image_bytes=$(bytes_in "$image")
  added=$((image_bytes - base_bytes))
  echo "size: base $(megabytes "$base_bytes"), image $(megabytes "$image_bytes"), added $(megabytes $added)"
  if [ "$runtime" = cpu ] && [ $added -gt $largest_addition ]; then
    fail "the CPU flavour adds $(megabytes $added) to its base, want at most $(megabytes $largest_addition)"
  fi
}

# What the files of an image take on the disk, its parts of the kernel (/proc, /sys, /dev) left out.
bytes_in() {
  local measure=(du -sx --block-size=1 --exclude=/proc --exclude=/sys --exclude=/dev /)
  if [ "$engine" = docker ]; then
    docker run --rm --user 0 --entrypoint "" "$1" "${measure[@]}" | cut -f1
  else
    (
      container=$(buildah from "$1")
      trap 'buildah rm "$container" >/dev/null' EXIT
      buildah run --user 0 "$container" -- "${measure[@]}" | cut -f1
    )
  fi
}

megabytes() {
  awk -v bytes="$1" 'BEGIN { printf "%.1f MB", bytes / 1e6 }'
}

# ---- check

check() {
  local repository
  repository=$(realpath "$1") || fail "no model repository at '$1'"
  python=.venv/bin/python
  [ -x $python ] || fail "the question from outside needs $python: run 'make install'"
  log=$(mktemp)
  container='' server='' runner='' network=''
  trap end_everything EXIT
  "start_with_$engine" "$repository"
  wait_until_healthy
  echo "health inside: $(inside convoy health)"
  if inside convoy health --server 127.0.0.1:9 >/dev/null; then fail "the health check passes where nobody listens"; fi
  check_contents
  check_user
  check_enclosure
  beside $python deploy/ask.py "$address"
  stop_by_sigterm
}

start_with_docker() {
  network=$(docker network create --internal "convoy-check-$$")
  container=$(docker run --detach --read-only --cap-drop ALL --security-opt no-new-privileges --network "$network" \
    --volume "$1:/repository:ro" "$image")
  address=$(docker inspect --format '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' "$container"):8001
  server=$(docker inspect --format '{{.State.Pid}}' "$container")
}

# The command, its user and its environment are the image's own, read from it.
start_with_buildah() {
  command -v ip >/dev/null || install_packages iproute2
  local root command
  container=$(buildah from "$image")
  root=$(buildah mount "$container")
  mkdir -p "$root/repository"
  mapfile -t command < <(described entrypoint)
  mapfile -t as_user < <(described user)
  unshare --mount --net --pid --fork --kill-child \
    "$0" enclosed "$root" "$1" "${as_user[@]}" "${command[@]}" >"$log" 2>&1 &
  runner=$!
  address=127.0.0.1:8001
  until server=$(children "$runner" | head -n 1) && [ -n "$server" ]; do sleep 0.05; done
}

# described entrypoint: what the image starts, one word a line. described user: what starts something as its user.
described() {
  buildah inspect --type container "$container" | $python -c '
import json, sys
config = json.load(sys.stdin)["Docker"]["config"]
assert config["Healthcheck"]["Test"] == ["CMD", "convoy", "health"], config.get("Healthcheck")
user, group = config["User"].split(":")
without = ["--clear-groups", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]
words = {
    "entrypoint": [*config["Entrypoint"], *config["Cmd"]],
    "user": ["/usr/bin/env", "-i", *config["Env"], "setpriv", "--reuid", user, "--regid", group, *without],
}
print(*words[sys.argv[1]], sep="\n")' "$1"
}

# enclosed ROOT REPOSITORY COMMAND...: in namespaces of its own, runs the command with ROOT as its root, which it cannot write.
enclosed() {
  local root=$1 repository=$2
  shift 2
  ip link set lo up
  mount --bind "$root" "$root"
  mount --bind "$repository" "$root/repository"
  mount -o remount,bind,ro "$root/repository"
  mount -t proc proc "$root/proc"
  mount --rbind /dev "$root/dev"
  mount -t tmpfs -o size=64m,nosuid,nodev tmpfs "$root/dev/shm" # as large as docker's
  mount -o remount,bind,ro "$root"
  exec /usr/sbin/chroot "$root" "$@"
}

# In the container, as its user.
inside() {
  if [ "$engine" = docker ]; then
    docker exec "$container" "$@"
  else
    nsenter --target "$server" --mount --net --pid --root --wd -- "${as_user[@]}" "$@"
  fi
}

# On this machine, where the server's ports can be reached.
beside() {
  if [ "$engine" = docker ]; then "$@"; else nsenter --target "$server" --net -- "$@"; fi
}

wait_until_healthy() {
  local end=$((SECONDS + start_seconds))
  until beside .venv/bin/convoy health --server "$address" >/dev/null 2>&1; do
    alive || fail "the server ended before it served"
    [ $SECONDS -lt $end ] || fail "the server did not serve within $start_seconds s"
    sleep 0.2
  done
}

alive() {
  if [ "$engine" = docker ]; then
    [ "$(docker inspect --format '{{.State.Running}}' "$container")" = true ]
  else
    kill -0 "$runner" 2>/dev/null
  fi
}

children() {
  # A process that ends meanwhile has none.
  cat "/proc/$1"/task/*/children 2>/dev/null | tr -s ' ' '\n' | grep . || true
}

descendants() {
  local child
  for child in $(children "$1"); do
    echo "$child"
    descendants "$child"
  done
}

check_contents() {
  local name
  inside python3 -c 'import onnxruntime'
  for name in torch onnx models; do
    if inside python3 -c "import $name" 2>/dev/null; then fail "'$name' can be imported in the image"; fi
  done
  echo "contents: onnxruntime; no torch, onnx or models"
}

check_user() {
  # Seen from outside: real, effective, saved and file system uid of the server and of all it started.
  local pid uids
  for pid in "$server" $(descendants "$server"); do
    uids=$(awk '$1 == "Uid:" { print $2, $3, $4, $5 }' "/proc/$pid/status")
    case " $uids " in *" 0 "*) fail "process $pid of the server runs as root (uids $uids)" ;; esac
  done
  echo "user: $uids"
}

# Seen from outside, too, and tried from inside.
check_enclosure() {
  local pid ports
  for pid in "$server" $(descendants "$server"); do
    ! grep -E '^Cap(Eff|Prm|Bnd):' "/proc/$pid/status" | grep -qv '0000000000000000$' ||
      fail "process $pid of the server has capabilities"
  done
  if inside python3 -c 'open("/tmp/mark", "w")' 2>/dev/null; then fail "the root file system can be written"; fi
  if inside python3 -c 'import socket; socket.create_connection(("192.0.2.1", 80), 2)' 2>/dev/null; then
    fail "there is a way to the network"
  fi
  ports=$(listening_ports)
  [ "$ports" = "8000 8001 8002" ] || fail "the server listens on ports $ports, want 8000 8001 8002"
  echo "enclosure: read-only root, no capabilities, no way out, ports $ports"
}

listening_ports() {
  $python -c '
import sys
lines = [line.split() for name in ("tcp", "tcp6") for line in open(f"/proc/{sys.argv[1]}/net/{name}")]
dns = "0B00007F"  # 127.0.0.11, where docker answers for names
listening = {words[1].partition(":") for words in lines if words[3] == "0A"}
print(*sorted(int(port, 16) for address, _, port in listening if address != dns))' "$server"
}

stop_by_sigterm() {
  local code=0 started ended
  started=$(date +%s%N)
  if [ "$engine" = docker ]; then
    docker kill --signal TERM "$container" >/dev/null
    code=$(timeout $stop_seconds docker wait "$container") || fail "the server still runs $stop_seconds s after SIGTERM"
  else
    kill -TERM "$server"
    while kill -0 "$runner" 2>/dev/null; do
      [ $(($(date +%s%N) - started)) -lt $((stop_seconds * 1000000000)) ] ||
        fail "the server still runs $stop_seconds s after SIGTERM"
      sleep 0.05
    done
    wait "$runner" || code=$?
    runner=
  fi
  ended=$(date +%s%N)
  [ "$code" -eq 0 ] || fail "the server ended with exit code $code after SIGTERM, want 0"
  echo "SIGTERM: exit code 0 after $(((ended - started) / 1000000)) ms"
}

# Also where the check fails or is interrupted, nothing of it stays; then the server's log tells why.
end_everything() {
  local code=$? pids
  trap - EXIT
  if [ $code -ne 0 ]; then
    if [ "$engine" = docker ] && [ -n "$container" ]; then docker logs "$container" >"$log" 2>&1 || true; fi
    echo "---- the server's last lines" >&2
    tail -n 30 "$log" >&2
  fi
  if [ "$engine" = docker ]; then
    [ -z "$container" ] || docker rm --force --volumes "$container" >/dev/null
    [ -z "$network" ] || docker network rm "$network" >/dev/null
  else
    if [ -n "$runner" ]; then
      pids=$(descendants "$runner")
      # shellcheck disable=SC2086  # a list of numbers
      kill -KILL "$runner" $pids 2>/dev/null || true
      wait "$runner" 2>/dev/null || true
    fi
    [ -z "$container" ] || { buildah umount "$container" && buildah rm "$container"; } >/dev/null
  fi
  rm -f "$log"
  exit $code
}

main "$@"
