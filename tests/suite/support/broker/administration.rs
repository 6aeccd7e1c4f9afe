//! What an administrator asks of a node and changes there, each an Erlang expression by the node's own shell.

use std::sync::atomic::Ordering;

use super::shell::Shell;
use super::{Broker, VHOSTS, configuration, vhost_of};
use crate::support::service::{Ended, Service};
use crate::support::wait::retry;

/// At this share of the machine's memory an alarm is raised; the other is RabbitMQ's default.
const NO_MEMORY: &str = "0.0000001";
const USUAL_MEMORY: &str = "0.4";

/// A text as an Erlang binary; of ASCII, which both languages quote and escape alike.
pub fn binary(text: &str) -> String {
    format!("<<{text:?}>>")
}

impl Broker {
    /// The value of an Erlang expression on the node, as Erlang writes it. Fails the test when it fails.
    #[track_caller]
    pub fn eval(&self, expression: &str) -> String {
        let result = {
            let mut shell = self.shell.lock().unwrap_or_else(|poisoned| {
                // A test failed between an order and its answer, which would be taken for that of the next.
                self.shell.clear_poison();
                let mut shell = poisoned.into_inner();
                *shell = None;
                shell
            });
            shell.get_or_insert_with(|| Shell::start(&self.environment)).eval(expression)
        };
        result.unwrap_or_else(|failure| panic!("{expression}: {failure}"))
    }

    /// Evaluates an expression that answers `ok` when it has done its work.
    #[track_caller]
    pub fn eval_to_ok(&self, expression: &str) {
        assert_eq!(self.eval(expression), "ok", "{expression}");
    }

    /// The value of an expression that is a list of strings, which Erlang writes as JSON does.
    #[track_caller]
    fn listing(&self, expression: &str) -> Vec<String> {
        let list = self.eval(expression);
        serde_json::from_str(&list).unwrap_or_else(|error| panic!("{expression}: {error} in {list}"))
    }

    /// The URL of a virtual host that no other test uses.
    pub fn vhost(&self) -> String {
        let number = self.next_vhost.fetch_add(1, Ordering::Relaxed);
        let mut vhosts = self.vhosts();
        while number >= *vhosts {
            let more = configuration::definitions(*vhosts..*vhosts + VHOSTS).to_string();
            self.eval_to_ok(&format!("rabbit_definitions:import_raw({})", binary(&more)));
            *vhosts += VHOSTS;
        }
        self.url("guest:guest", &format!("t{number}"))
    }

    /// Makes a user with these permissions on a virtual host: configure, write, read. Returns its URL there.
    pub fn user(&self, name: &str, vhost: &str, permissions: [&str; 3]) -> String {
        self.add_user(name, "hunter2", vhost, permissions);
        self.url(&format!("{name}:hunter2"), vhost)
    }

    /// As [`Broker::user`], with a password that a URL may have to escape.
    pub fn add_user(&self, name: &str, password: &str, vhost: &str, permissions: [&str; 3]) {
        let [name, password, vhost] = [name, password, vhost].map(binary);
        let [configure, write, read] = permissions.map(binary);
        self.eval_to_ok(&format!(
            "ok = rabbit_auth_backend_internal:add_user({name}, {password}, <<\"test\">>), \
             rabbit_auth_backend_internal:set_permissions({name}, {vhost}, {configure}, {write}, {read}, <<\"test\">>)"
        ));
    }

    /// Gives a user other permissions in a virtual host, and returns once they count.
    pub fn permit(&self, name: &str, vhost: &str, permissions: [&str; 3]) {
        let [name, vhost] = [name, vhost].map(binary);
        let [configure, write, read] = permissions.map(binary);
        self.eval_to_ok(&format!(
            "rabbit_auth_backend_internal:set_permissions({name}, {vhost}, {configure}, {write}, {read}, <<\"test\">>)"
        ));
    }

    /// Waits until no channel remembers which permissions its user has for a queue. A channel forgets them when it has been idle.
    #[track_caller]
    pub fn wait_until_permissions_count(&self, vhost: &str, queue: &str) {
        let [vhost, queue] = [vhost, queue].map(binary);
        retry("channels that look at the permissions again", || {
            let remember = self.eval(&format!(
                "length([P || P <- rabbit_channel:list_local(), {{dictionary, D}} <- [erlang:process_info(P, dictionary)], \
                 {{permission_cache, C}} <- D, lists:keymember(rabbit_misc:r({vhost}, queue, {queue}), 1, C)])"
            ));
            if remember == "0" { Ok(()) } else { Err(format!("{remember} channels remember them")) }
        });
    }

    /// Deletes a queue of a virtual host, whoever has it.
    pub fn delete_queue(&self, vhost: &str, name: &str) {
        let [vhost, name] = [vhost, name].map(binary);
        self.eval(&format!(
            "{{ok, Queue}} = rabbit_amqqueue:lookup(rabbit_misc:r({vhost}, queue, {name})), \
             {{ok, _}} = rabbit_amqqueue:delete(Queue, false, false, <<\"test\">>)"
        ));
    }

    /// Deletes a virtual host with all that is in it, which ends its connections.
    pub fn delete_vhost(&self, vhost: &str) {
        self.eval_to_ok(&format!("rabbit_vhost:delete({}, <<\"test\">>)", binary(vhost)));
    }

    /// Makes a virtual host that was deleted again, for `guest`.
    pub fn add_vhost(&self, vhost: &str) {
        self.eval_to_ok(&format!("rabbit_vhost:add({}, <<\"test\">>)", binary(vhost)));
        self.permit("guest", vhost, [".*", ".*", ".*"]);
    }

    /// The names of all queues of a virtual host.
    pub fn queues(&self, vhost: &str) -> Vec<String> {
        let names = "[binary_to_list(element(4, amqqueue:get_name(Q)))";
        self.listing(&format!("{names} || Q <- rabbit_amqqueue:list({})]", binary(vhost)))
    }

    /// What the node says about each connection of a virtual host: these items of [`rabbitmqctl list_connections`], as
    /// Erlang writes them: `[{user,<<"guest">>},{ssl,true}]`.
    ///
    /// [`rabbitmqctl list_connections`]: https://www.rabbitmq.com/docs/man/rabbitmqctl.8#list_connections
    pub fn connections(&self, vhost: &str, items: &[&str]) -> Vec<String> {
        let items = items.join(",");
        let connections = self.connections_of(vhost, "true");
        self.listing(&format!(
            "[lists:flatten(io_lib:format(\"~0p\", [I])) || P <- {connections}, \
             I = [_|_] <- [catch rabbit_networking:connection_info(P, [{items}])]]"
        ))
    }

    /// Closes all connections of a virtual host from the broker's side. Returns how many.
    pub fn close_connections(&self, vhost: &str) -> usize {
        // One that is asked to close a second time is cut off before the client has got its reason.
        let connections = self.connections_of(vhost, "S =/= closing, S =/= closed");
        let closed = self.eval(&format!(
            "length([ok || P <- {connections}, ok <- [catch rabbit_networking:close_connection(P, \"by a test\")]])"
        ));
        closed.parse().expect("a number")
    }

    /// An expression for the connections of a virtual host whose state S is admitted by a guard. All calls are caught,
    /// because any of them may just be ending by itself.
    fn connections_of(&self, vhost: &str, guard: &str) -> String {
        let vhost = binary(vhost);
        format!(
            "[P || P <- rabbit_networking:connections(), \
             [{{vhost, V}}, {{state, S}}] <- [catch rabbit_networking:connection_info(P, [vhost, state])], \
             V == {vhost}, {guard}]"
        )
    }

    /// Closes the connections of a service from the broker's side until it has ended.
    #[track_caller]
    pub fn disconnect(&self, url: &str, mut service: Service) -> Ended {
        retry("the end of the service without a broker", || {
            if !service.is_running() {
                return Ok(());
            }
            self.close_connections(vhost_of(url));
            Err(service.stderr())
        });
        service.wait_exit()
    }

    /// Raises the memory alarm: the node blocks each connection that publishes.
    pub fn block(&mut self) {
        self.set_memory_limit(NO_MEMORY, true);
        self.disturbed.blocked = true;
    }

    /// Lifts the memory alarm.
    pub fn unblock(&mut self) {
        self.set_memory_limit(USUAL_MEMORY, false);
        self.disturbed.blocked = false;
    }

    fn set_memory_limit(&self, share: &str, alarm: bool) {
        self.eval_to_ok(&format!("vm_memory_monitor:set_vm_memory_high_watermark({share})"));
        let alarms = self.eval("rabbit_alarm:get_alarms()");
        assert_eq!(alarms.contains("memory"), alarm, "the alarms at a limit of {share}: {alarms}");
    }
}
