//! A node of the fault suite's own that obeys within milliseconds: `rabbitmqctl` takes a second for each call, an
//! Erlang shell that stays connected takes one start.

use std::io::Write;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use std::time::Instant;

use crate::support::broker::{Broker, read_line_within};
use crate::support::wait::TIMEOUT;

/// Seeds use them in turn, so that each begins with an unused one, and a node with few virtual hosts boots quickly.
const VHOSTS: usize = 8;

/// Reads expressions, a line each, and has the broker's node evaluate them.
const LOOP: &str = r#"
    Node = list_to_atom(os:getenv("RABBITMQ_NODENAME")),
    Loop = fun(Again) ->
        case io:get_line("") of
            eof -> halt();
            Line ->
                {ok, Tokens, _} = erl_scan:string(Line),
                {ok, Expressions} = erl_parse:parse_exprs(Tokens),
                case rpc:call(Node, erl_eval, exprs, [Expressions, []]) of
                    {value, Value, _} -> io:format("~w~n", [Value]);
                    Failure -> io:format("failed ~w~n", [Failure])
                end,
                Again(Again)
        end
    end,
    Loop(Loop).
"#;

/// At this share of the memory an alarm is raised; the other is RabbitMQ's default.
const NO_MEMORY: &str = "0.0000001";
const USUAL_MEMORY: &str = "0.4";

pub struct Node {
    broker: Broker,
    shell: Child,
    orders: Option<ChildStdin>,
    answers: ChildStdout,
    next_vhost: usize,
}

impl Node {
    pub fn start() -> Self {
        let broker = Broker::start_with(VHOSTS);
        let mut shell = Command::new("erl")
            .args(["-noshell", "-sname", &format!("faults{}@localhost", broker.port()), "-eval", LOOP])
            .envs(broker.environment())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("erl, which RabbitMQ runs on");
        let (orders, answers) = (shell.stdin.take(), shell.stdout.take().expect("piped"));
        Self { broker, shell, orders, answers, next_vhost: 0 }
    }

    /// A virtual host's name, and its URL.
    pub fn vhost(&mut self) -> (String, String) {
        let name = format!("t{}", self.next_vhost % VHOSTS);
        self.next_vhost += 1;
        let url = self.broker.url("guest:guest", &name);
        (name, url)
    }

    /// The value of an expression on the node.
    fn eval(&mut self, expression: &str) -> String {
        let orders = self.orders.as_mut().expect("held until the end");
        writeln!(orders, "{expression}.").expect("the Erlang shell takes orders");
        let answer = read_line_within(&mut self.answers, expression);
        assert!(!answer.starts_with("failed"), "{expression}: {answer}");
        answer
    }

    /// Evaluates an expression until it has this value.
    fn until(&mut self, expression: &str, wanted: &str) {
        let deadline = Instant::now() + TIMEOUT;
        while self.eval(expression) != wanted {
            assert!(Instant::now() < deadline, "{expression} was not {wanted} within {TIMEOUT:?}");
        }
    }

    pub fn raise_memory_alarm(&mut self) {
        self.eval(&format!("vm_memory_monitor:set_vm_memory_high_watermark({NO_MEMORY})"));
        let alarms = self.eval("rabbit_alarm:get_alarms()");
        assert!(alarms.contains("memory"), "no alarm was raised: {alarms}");
    }

    pub fn lift_memory_alarm(&mut self) {
        self.eval(&format!("vm_memory_monitor:set_vm_memory_high_watermark({USUAL_MEMORY})"));
    }

    /// Closes all connections of the virtual host from the broker's side. Returns how many.
    pub fn close_connections(&mut self, vhost: &str) -> usize {
        // Caught: any of them may just be ending by itself.
        let closed = self.eval(&format!(
            "[catch rabbit_networking:close_connection(P, \"by a test\") || P <- \
             rabbit_networking:connections(), \
             (catch proplists:get_value(vhost, rabbit_networking:connection_info(P, [vhost]))) == <<\"{vhost}\">>]"
        ));
        closed.matches("ok").count()
    }

    /// RabbitMQ stops cleanly, and its Erlang virtual machine stays.
    pub fn stop(&mut self) {
        self.until("rabbit:stop(), rabbit:is_running()", "false");
    }

    pub fn start_again(&mut self) {
        // It answers "ok" and does nothing while the marker of the last boot is still being removed.
        self.until("rabbit:start(), rabbit:is_running()", "true");
        self.broker.wait_until_it_serves();
    }

    pub fn kill(&mut self) {
        self.broker.kill();
    }

    pub fn boot(&mut self) {
        self.broker.boot();
        // It serves before it has finished booting; to be stopped then would leave it in between.
        self.eval("rabbit:await_startup()");
    }

    pub fn freeze(&mut self) {
        self.broker.freeze();
    }

    pub fn thaw(&mut self) {
        self.broker.thaw();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // The shell ends at the end of file.
        drop(self.orders.take());
        // It may be waiting for a node that hangs.
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}
