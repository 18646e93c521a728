#!/usr/bin/env bash
# One node of the cluster in DIR: node.sh up|crash NAME DIR
#   up     start its slurmd
#   crash  kill its slurmd, its step managers and all that they started at once, as a power cut would
set -euo pipefail
action=$1 name=$2 dir=$3
export SLURM_CONF=$dir/slurm.conf PATH="$PATH:/usr/sbin:/sbin"
pidfile=$dir/slurmd.$name.pid

descendants() {
    local child
    for child in $(cat /proc/"$1"/task/*/children 2>/dev/null); do
        descendants "$child"
        echo "$child"
    done
}

# Step managers detach from their slurmd, but keep its log open or sit in its spool folder.
step_managers() {
    local process
    for process in /proc/[0-9]*; do
        [[ $(cat "$process/comm" 2>/dev/null) == slurmstepd ]] || continue
        if [[ $(readlink "$process/cwd" 2>/dev/null) == "$dir/spool.$name"* ]] ||
            ls -l "$process/fd" 2>/dev/null | grep -qF "$dir/slurmd.$name.log"; then
            echo "${process#/proc/}"
        fi
    done
}

case $action in
up)
    slurmd -N "$name" -f "$SLURM_CONF" 2>>"$dir/start.err"
    ;;
crash)
    victims=$(for manager in $(step_managers); do
        descendants "$manager"
        echo "$manager"
    done)
    [[ ! -s $pidfile ]] || victims="$(<"$pidfile") $victims"
    # shellcheck disable=SC2086
    [[ -z ${victims// /} ]] || kill -9 $victims 2>/dev/null || true
    rm -f "$pidfile"
    ;;
*)
    echo "usage: node.sh up|crash NAME DIR" >&2
    exit 2
    ;;
esac
