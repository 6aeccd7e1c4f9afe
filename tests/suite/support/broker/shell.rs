//! An Erlang shell that stays connected to a node: an order takes milliseconds, where each `rabbitmqctl` starts an Erlang
//! virtual machine of its own and takes one to two seconds of a core.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use super::read_line_within;

/// Reads expressions, a line each, has the node evaluate them, and answers each with a line. It ends at the end of its
/// standard input, which comes even when the test process is killed with SIGKILL. A node that has been booted again is
/// connected to again by the next call (`rpc`).
const LOOP: &str = r#"
    Node = list_to_atom(os:getenv("RABBITMQ_NODENAME")),
    Loop = fun(Again) ->
        case io:get_line("") of
            eof -> halt();
            Line ->
                {ok, Tokens, _} = erl_scan:string(Line),
                {ok, Expressions} = erl_parse:parse_exprs(Tokens),
                case rpc:call(Node, erl_eval, exprs, [Expressions, []]) of
                    {value, Value, _} -> io:format("value ~0p~n", [Value]);
                    Failure -> io:format("failure ~0p~n", [Failure])
                end,
                Again(Again)
        end
    end,
    Loop(Loop).
"#;

/// It waits most of its time: one scheduler, which does not spin.
const SMALL: [&str; 8] = ["+S", "1:1", "+sbwt", "none", "+sbwtdcpu", "none", "+sbwtdio", "none"];

pub(super) struct Shell {
    process: Child,
    /// `None` only while it is dropped.
    orders: Option<ChildStdin>,
    answers: ChildStdout,
}

impl Shell {
    /// `environment` names the node, and the port mapper and the home directory whose cookie they share.
    pub(super) fn start(environment: &[(&'static str, String)]) -> Self {
        let mut process = Command::new("erl")
            .args(SMALL)
            // Hidden, as `rabbitmqctl` is: it is no member of a cluster.
            .args(["-noshell", "-hidden", "-sname", "shell@localhost", "-eval", LOOP])
            .envs(environment.iter().map(|(name, value)| (name, value)))
            // Its own group: it ends with its standard input, and not by an interrupt at the terminal.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("erl, which RabbitMQ runs on");
        let (orders, answers) = (process.stdin.take(), process.stdout.take().expect("piped"));
        Self { process, orders, answers }
    }

    /// The value of an expression on the node, as Erlang writes it, or how it failed.
    pub(super) fn eval(&mut self, expression: &str) -> Result<String, String> {
        let orders = self.orders.as_mut().expect("held until the end");
        writeln!(orders, "{expression}.").expect("the Erlang shell takes orders");
        let answer = read_line_within(&mut self.answers, expression);
        match answer.split_once(' ') {
            Some(("value", value)) => Ok(value.to_owned()),
            _ => Err(answer),
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        drop(self.orders.take());
        // It may be waiting for a node that hangs.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
