# For scripts to source: a private RabbitMQ with its own ports, name, cookie and directory, never this machine's node.

open_port() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# Starts one whose files are below the directory; sets broker_port. It takes some 10 s more until it answers.
start_rabbitmq() { # DIRECTORY [PLUGIN]
    local work=$1 plugin=${2:-} home=$1/rabbitmq epmd_port=4379 dist_port=25673 as_user=()
    broker_port=5673
    while open_port "$broker_port"; do broker_port=$((broker_port + 1)); done
    while open_port "$epmd_port"; do epmd_port=$((epmd_port + 1)); done
    while open_port "$dist_port"; do dist_port=$((dist_port + 1)); done
    mkdir "$home"
    printf 'log.console = false\ndisk_free_limit.absolute = 1MB\n' >"$home/rabbitmq.conf"
    printf '[%s].\n' "$plugin" >"$home/enabled_plugins"
    touch "$home/rabbitmq-env.conf"
    if [[ $(id -u) == 0 ]] && id rabbitmq >/dev/null 2>&1; then
        chown -R rabbitmq: "$home"
        as_user=(setpriv --reuid rabbitmq --regid rabbitmq --clear-groups)
    fi
    local server=/usr/lib/rabbitmq/bin/rabbitmq-server
    [[ -x $server ]] || server=$(command -v rabbitmq-server)
    export ERL_EPMD_PORT=$epmd_port
    epmd -port "$epmd_port" -address 127.0.0.1 </dev/null >"$work/epmd.log" 2>&1 &
    epmd=$!
    (cd "$home" && exec env HOME="$home" RABBITMQ_NODENAME="private$broker_port@localhost" \
        RABBITMQ_NODE_IP_ADDRESS=127.0.0.1 RABBITMQ_NODE_PORT="$broker_port" RABBITMQ_DIST_PORT="$dist_port" \
        RABBITMQ_MNESIA_BASE="$home/mnesia" RABBITMQ_LOG_BASE="$home/log" RABBITMQ_PID_FILE="$home/pid" \
        RABBITMQ_CONFIG_FILE="$home/rabbitmq" RABBITMQ_CONF_ENV_FILE="$home/rabbitmq-env.conf" \
        RABBITMQ_ENABLED_PLUGINS_FILE="$home/enabled_plugins" \
        setsid "${as_user[@]}" "$server" </dev/null) >"$work/broker.log" 2>&1 &
    broker=$!
}

# Ends what start_rabbitmq has started, if anything.
stop_rabbitmq() {
    if [[ -n "${broker:-}" ]]; then
        kill -KILL "-$broker" "$epmd" 2>/dev/null || true
        wait "$broker" "$epmd" 2>/dev/null || true
        broker=
    fi
}

# Tries a command until it succeeds; fails when it has not within so many seconds.
wait_for() { # WHAT SECONDS COMMAND...
    local what=$1 tries=$(($2 * 10))
    shift 2
    until "$@" >/dev/null 2>&1; do
        if ((tries-- == 0)); then
            echo "error: $what did not come; see the lines above" >&2
            return 1
        fi
        sleep 0.1
    done
}
