# What start.sh and stop.sh share: processes are known only by the ids that the daemons wrote down.

# running PID: it exists and is no zombie, which the first process of a container may leave lying about.
running() {
    local stat
    stat=$(cat /proc/"$1"/stat 2>/dev/null) || return 1
    stat=${stat##*) }
    [[ ${stat%% *} != Z ]]
}

# alive PIDFILE NAME: the process in the file runs and is the daemon of that name.
alive() {
    [[ -s $1 ]] || return 1
    local pid
    pid=$(<"$1")
    running "$pid" && [[ $(cat /proc/"$pid"/comm 2>/dev/null) == "$2"* ]]
}

# stop_daemon PIDFILE NAME: ask, wait five seconds, then insist.
stop_daemon() {
    if alive "$1" "$2"; then
        local pid
        pid=$(<"$1")
        kill "$pid" 2>/dev/null || true
        for _ in $(seq 50); do
            running "$pid" || break
            sleep 0.1
        done
        ! running "$pid" || kill -9 "$pid" 2>/dev/null || true
    fi
    rm -f "$1"
}
