//! The promises, checked from outside: the real binary as a process, a real directory, a private
//! RabbitMQ and a real consumer. One file a promise; the harness comes first.
//!
//! `INGESTOR_TEST_BINARY` names another build of the binary to put to the same tests.

mod broker;
mod certificates;
mod consumer;
mod files;
mod service;
mod world;

mod backlog;
mod broker_faults;
mod broker_hangs;
mod bulk;
mod cli;
mod cli_broker;
mod control;
mod control_stall;
mod data_directories;
mod deploy;
mod doctor;
mod events;
mod events_links;
mod events_writers;
mod examples;
mod faults;
mod filters;
mod hostile;
mod hosts;
mod large_files;
mod ledger;
mod limits;
mod memory;
mod message;
mod message_amqp;
mod names;
mod names_together;
mod neighbors;
mod outputs;
mod overflow;
mod pipeline_engines;
mod refused;
mod scan_listen;
mod schema;
mod seccomp;
mod slow_directory;
mod stop;
mod tls;
mod tls_refusals;
mod trees;
mod unroutable;
mod versions;
