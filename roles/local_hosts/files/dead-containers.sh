#!/bin/sh
# Print the containers with a label that podman believes to be up and whose first process is gone: dead-containers.sh LABEL
set -eu
podman ps --all --quiet --filter="label=$1" | while read -r id; do
    podman inspect --format='{{.Name}} {{.State.Status}} {{.State.Pid}}' "$id"
done | while read -r name status pid; do
    case $status in
        # The number may be another process's by now, but not another systemd's.
        running | stopping | paused) [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = systemd ] || echo "$name" ;;
    esac
done
