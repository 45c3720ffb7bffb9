#!/usr/bin/env bash
# bash launch/again.sh COMMAND ...: runs a command, and starts it again where the same command goes
# on: when it was told to end (status 75) or has lost another process of its job (69), up to
# RESTARTS (20) times. Where process 0 is the one that is lost, JAX may abort the others (134) before
# they notice by themselves. But an abort may also be a fault of the program that comes again: after
# ABORTS (3) in a row it is left at that. Any other status, such as a wrong config's or training that
# is not finite (2), ends it; so does SIGTERM to this script, which the command gets too.
set -euo pipefail

if [ $# -eq 0 ]; then
  echo "error: no command is given: bash launch/again.sh COMMAND ..." >&2
  exit 2
fi
told="" child=""
trap 'told=1; kill -TERM "$child" 2>/dev/null || true' TERM
left=${RESTARTS:-20} aborts=0
while :; do
  "$@" &
  child=$! status=0
  wait "$child" || status=$?
  while [ "$status" -gt 128 ] && kill -0 "$child" 2>/dev/null; do # a signal has ended the waiting
    status=0
    wait "$child" || status=$?
  done
  case $status in
    69 | 75) aborts=0 ;;
    134) aborts=$((aborts + 1)) ;;
    *) exit "$status" ;;
  esac
  if [ -n "$told" ] || [ "$left" -le 0 ] || [ "$aborts" -gt "${ABORTS:-3}" ]; then
    exit "$status"
  fi
  left=$((left - 1))
  echo "status $status: starting again, up to $left more times" >&2
  sleep "${PAUSE_S:-10}"
done
