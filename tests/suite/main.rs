//! The promises, checked from outside: the real binary as a process, a real directory, a private RabbitMQ and a real
//! consumer. Each file holds one promise; the harness is in `support`.
//!
//! `INGESTOR_TEST_BINARY` names another build of the binary to run the same tests on.

mod support;

mod amqp_properties; // the properties and headers of a message, and its id
mod broker_connection_errors; // a broker that cannot be reached or refuses the login: one line, no password
mod broker_failures; // a closed connection, an alarm, a refused message, a dead broker
mod broker_hangs; // a broker that no longer answers
mod cluster_urls; // several hosts in the connection string
mod command_line; // settings, help and outputs that need no broker
mod deploy; // the dashboard and the alerts query metrics that exist
mod directory_renames; // directories moved in, renamed and exchanged
mod doctor; // each problem is reported with its cure, and nothing is changed
mod events; // one message for each change, by its event type
mod example_consumers; // the consumers in `examples/`
mod faults; // nothing is lost, wrong or repeated whatever fails, over many seeds
mod file_names; // names of any bytes
mod file_systems; // another device number, time stamps of whole seconds
mod files_being_written; // no message has a hash of half a file
mod filters; // include and exclude globs, names of partial files
mod full_disk; // no room for the ledger, or for an output
mod hanging_directories; // a directory that hangs delays its own files alone
mod health_and_metrics; // the control socket: health, readiness, metrics
mod inotify_watches; // one watch for each directory, and their limit
mod kills; // nothing is lost by a kill at any moment
mod large_bursts; // many files at once
mod large_files; // small files are not delayed by large ones
mod ledger_rows; // rows go with their files, and no sooner
mod ledger_upgrade; // a ledger of an earlier version
mod links; // hard links, and symbolic links inside and outside
mod live_files_first; // new files are published before a catch-up's
mod memory; // memory stays bounded however many files wait
mod message_fields; // the ten fields of a message
mod message_schema; // the JSON schema in `deploy/`
mod neighbors; // at most ten files that belong together
mod other_names; // links and hard links of a file that is written by another name
mod outputs; // what was published nowhere is not confirmed
mod overflow; // an overflow of the kernel's queue loses nothing
mod process_limits; // few descriptors, threads, or locked memory
mod read_engines; // io_uring and blocking reads give equal results
mod recursive; // `--recursive`: files in old and new directories
mod removals; // `--removals`: what went away has a message too
mod restarts; // what has changed since the last start, and `--catch-up`
mod rights_that_come_later; // files and directories that may not be read yet
mod scan_and_listen; // the commands `scan` and `listen`
mod seccomp_profile; // the service works under `deploy/seccomp.json`
mod several_directories; // several data directories in one service
mod special_files; // FIFOs, devices and loops of links are ignored
mod state_directory; // a state directory that is refused, a damaged ledger
mod stopping; // signals, and the loss of the data directory
mod tls; // trusted authorities, client certificates
mod tls_refusals; // certificates and files that are refused
mod unroutable; // messages that no queue takes
mod watchdog; // a stage without progress is not fed to the watchdog
