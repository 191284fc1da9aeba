#!/usr/bin/env bash
# Builds the serving image and tries it, with or without a container engine.
#
#   deploy/image.sh build             builds it and prints what it adds to its base
#   deploy/image.sh check REPOSITORY  serves that model repository from it, asks it from outside, and stops it
#
# RUNTIME=cpu (default) or cuda chooses the flavour, BASE the base image, IMAGE the name (convoy).
#
# docker is used where its engine answers. Elsewhere buildah does it, as root: it needs neither a daemon nor a registry,
# only a file system, and the base is a Debian bookworm with its own Python, made here from Debian's packages.
set -euo pipefail
cd "$(dirname "$0")/.."

runtime=${RUNTIME:-cpu}
image=${IMAGE:-convoy}
largest_addition=250000000 # bytes that the CPU flavour may add to its base
stop_seconds=5             # from SIGTERM to the end
start_seconds=60

main() {
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
  local arguments=(--build-arg "BASE=$base" --build-arg "RUNTIME=$runtime" --tag "$image")
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
  container='' server='' runner=''
  trap end_everything EXIT
  "start_with_$engine" "$repository"
  wait_until_healthy
  echo "health inside: $(inside convoy health --server "$inside_address")"
  if inside convoy health --server 127.0.0.1:9 >/dev/null; then fail "the health check passes where nobody listens"; fi
  check_contents
  check_user
  $python deploy/ask.py "$outside_address"
  stop_by_sigterm
}

start_with_docker() {
  container=$(docker run --detach --publish 127.0.0.1::8001 --volume "$1:/repository:ro" "$image")
  inside_address=127.0.0.1:8001
  outside_address=$(docker port "$container" 8001/tcp | head -n 1)
  server=$(docker inspect --format '{{.State.Pid}}' "$container")
}

# buildah has no detached containers and no networks: the server runs under `buildah run`, on this machine's own network,
# so on free ports. The command is the image's own, read from it, with the ports after it.
start_with_buildah() {
  local grpc_port http_port metrics_port command
  read -r grpc_port http_port metrics_port < <(free_ports)
  container=$(buildah from "$image")
  mapfile -t command < <(buildah inspect --type container "$container" | $python -c '
import json, sys
config = json.load(sys.stdin)["Docker"]["config"]
assert config["Healthcheck"]["Test"] == ["CMD", "convoy", "health"], config.get("Healthcheck")
print(*config["Entrypoint"], *config["Cmd"], sep="\n")')
  buildah run --volume "$1:/repository:ro" "$container" -- "${command[@]}" \
    --grpc-port "$grpc_port" --http-port "$http_port" --metrics-port "$metrics_port" >"$log" 2>&1 &
  runner=$!
  inside_address=127.0.0.1:$grpc_port
  outside_address=$inside_address
}

free_ports() {
  $python -c '
import socket
held = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
print(*(one.getsockname()[1] for one in held))'
}

# Here buildah's own words about an exit code that is not 0 say nothing that the caller does not.
inside() {
  if [ "$engine" = docker ]; then docker exec "$container" "$@"; else buildah run "$container" -- "$@" 2>/dev/null; fi
}

wait_until_healthy() {
  local end=$((SECONDS + start_seconds))
  until .venv/bin/convoy health --server "$outside_address" >/dev/null; do
    alive || fail "the server ended before it served"
    [ $SECONDS -lt $end ] || fail "the server did not serve within $start_seconds s"
    sleep 0.2
  done
  if [ "$engine" = buildah ]; then server=$(server_under "$runner"); fi
}

alive() {
  if [ "$engine" = docker ]; then
    [ "$(docker inspect --format '{{.State.Running}}' "$container")" = true ]
  else
    kill -0 "$runner" 2>/dev/null
  fi
}

# `buildah run` starts itself again once or twice to prepare the root, and the last of these starts the server. A signal
# to buildah would end buildah, not the server, so we go down until a process is no longer buildah: that is what would be
# process 1 in a container, and it is what gets SIGTERM.
server_under() {
  local pid=$1
  # It runs from memory the second time: /memfd:buildah-chroot-exec.
  while [[ $(basename "$(readlink "/proc/$pid/exe")") =~ ^(memfd:)?buildah ]]; do
    pid=$(children "$pid" | head -n 1)
    [ -n "$pid" ] || fail "no server under buildah"
  done
  echo "$pid"
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
  else
    if [ -n "$runner" ]; then
      pids=$(descendants "$runner")
      # shellcheck disable=SC2086  # a list of numbers
      kill -KILL "$runner" $pids 2>/dev/null || true
      wait "$runner" 2>/dev/null || true
    fi
    [ -z "$container" ] || buildah rm "$container" >/dev/null
  fi
  rm -f "$log"
  exit $code
}

main "$@"
