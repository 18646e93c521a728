#!/usr/bin/env bash
# A throw-away Slurm cluster on this machine: two nodes, fx1 with a fake GPU, on the loopback address. start.sh DIR PORT
# State, logs and sockets lie in DIR; PORT and the two after it are used. Needs no root, systemd, cgroups or database.
# Exits with 77 and a reason where this machine cannot hold one, with 1 where it could not be started.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
dir=$1 port=$2
nodes=2
export PATH="$PATH:/usr/sbin:/sbin" SLURM_CONF=$dir/slurm.conf
# shellcheck source=lib.sh
source "$here/lib.sh"

cannot() { echo "$*"; exit 77; }
fail() { echo "$*" >&2; exit 1; }

missing=()
for tool in munged munge slurmctld slurmd sbatch srun sinfo; do
    command -v "$tool" >/dev/null || missing+=("$tool")
done
((${#missing[@]} == 0)) ||
    cannot "no Slurm here (missing: ${missing[*]}); on Debian: apt-get install --no-install-recommends slurm-wlm munge"
host=$(hostname -s)
getent hosts "$host" >/dev/null || cannot "the host name '$host' does not resolve; add it to /etc/hosts"

wait_for() { # SECONDS COMMAND...
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < end)) || return 1
        sleep 0.2
    done
}

mkdir -p "$dir/state" "$dir/bin"
node_lines=""
for ((i = 1; i <= nodes; i++)); do
    mkdir -p "$dir/spool.fx$i"
    gres=""
    ((i > 1)) || gres=" Gres=gpu:1"
    node_lines+="NodeName=fx$i NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + i)) CPUs=2 RealMemory=32000$gres"$'\n'
done
# A character device that always exists stands for the GPU; nothing ever opens it.
echo "NodeName=fx1 Name=gpu File=/dev/null" >"$dir/gres.conf"
conf=$(<"$here/slurm.conf.in")
for pair in "HOST=$host" "PORT=$port" "USER=$(id -un)" "DIR=$dir" "NODES=$node_lines"; do
    conf=${conf//"@${pair%%=*}@"/${pair#*=}}
done
printf '%s\n' "$conf" >"$SLURM_CONF"

(umask 077 && head -c 1024 /dev/urandom >"$dir/munge.key")
munged --key-file="$dir/munge.key" --socket="$dir/munge.sock" --pid-file="$dir/munged.pid" \
    --log-file="$dir/munged.log" --seed-file="$dir/munge.seed" --num-threads=2 --force 2>"$dir/munged.err"
wait_for 10 munge --socket="$dir/munge.sock" -n || fail "munged does not answer; see $dir/munged.log"

slurmctld -f "$SLURM_CONF" -i 2>"$dir/start.err" || fail "slurmctld: $(<"$dir/start.err")"
wait_for 20 sinfo || fail "slurmctld does not answer: $(grep -E 'error|fatal' "$dir/slurmctld.log" | tail -n 5)"
for ((i = 1; i <= nodes; i++)); do
    "$here/node.sh" up "fx$i" "$dir"
done

# Inside a job, Snakemake's step executor drops every SLURM_* variable before it calls srun, the place of this
# configuration included; this srun puts it back.
printf '#!/bin/sh\nSLURM_CONF=%s exec %s "$@"\n' "$SLURM_CONF" "$(command -v srun)" >"$dir/bin/srun"
chmod +x "$dir/bin/srun"

all_idle() { [[ $(sinfo -hN -p cpu -o %T | grep -c '^idle$') == "$nodes" ]]; }
wait_for 30 all_idle || fail "the nodes did not come up; see $dir/slurmd.*.log: $(sinfo -Nl)"
