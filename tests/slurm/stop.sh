#!/usr/bin/env bash
# Stop the cluster in DIR with all its jobs: stop.sh DIR
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
dir=$1
export SLURM_CONF=$dir/slurm.conf PATH="$PATH:/usr/sbin:/sbin"
# shellcheck source=lib.sh
source "$here/lib.sh"

timeout 5 scancel --user="$(id -un)" 2>/dev/null || true
for pidfile in "$dir"/slurmd.*.pid; do
    [[ -e $pidfile ]] || continue
    name=${pidfile##*/slurmd.}
    "$here/node.sh" crash "${name%.pid}" "$dir"
done
stop_daemon "$dir/slurmctld.pid" slurmctld
stop_daemon "$dir/munged.pid" munged
