//! The promises, checked from outside: the real binary as a process, a real directory, a private RabbitMQ and a real
//! consumer. Each file holds one promise; the harness is in `support`.
//!
//! `INGESTOR_TEST_BINARY` names another build of the binary to run the same tests on.

mod oracle;
mod support;

mod amqp_properties; // the properties and headers of a message, and its id
mod broker_connection_errors; // a broker that cannot be reached or refuses the login: one line, no password
mod broker_failures; // a closed connection, an alarm, a refused message, a dead broker
mod broker_hangs; // a broker that no longer answers
mod broker_limits; // each limit and permission of the broker has a cure of its own
mod cluster_urls; // several hosts in the connection string
mod command_line; // settings, help and outputs that need no broker
mod control_socket_owner; // whose control socket is asked, and where it is when the place is taken
mod deploy; // the dashboard and the alerts query metrics that exist
mod directory_renames; // directories moved in, renamed and exchanged
mod doctor; // each problem is reported with its cure, and nothing is changed
mod events; // one message for each change, by its event type
mod example_consumers; // the consumers in `examples/`
mod exchanges; // an exchange that somebody else has declared
mod faults; // nothing is lost, wrong or repeated whatever fails, over many seeds
mod fences; // the queue that keeps others from a directory stays
mod file_names; // names of any bytes
mod file_systems; // another device number, time stamps of whole seconds
mod files_being_written; // no message has a hash of half a file
mod filters; // include and exclude globs, names of partial files
mod full_disk; // no room for the ledger, or for an output
mod hanging_directories; // a directory that hangs delays its own files alone
mod health_and_metrics; // the control socket: health, readiness, metrics
mod help; // each command shows and reads what it uses
mod inotify_watches; // one watch for each directory, and their limit
mod kills; // nothing is lost by a kill at any moment
mod large_bursts; // many files at once
mod large_files; // small files are not delayed by large ones
mod ledger_rows; // rows go with their files, and no sooner
mod ledger_upgrade; // a ledger of an earlier version
mod links; // hard links, and symbolic links inside and outside
mod live_files_first; // new files are published before a catch-up's
mod log_lines; // events and fields of log lines, no words of Rust's own
mod long_starts; // a long start counts, in the log and to the service manager
mod masked_passwords; // no line shows a password, wherever it was given
mod memory; // memory stays bounded however many files wait
mod message_fields; // the ten fields of a message
mod message_schema; // the JSON schema in `deploy/`
mod mounts_below; // what is mounted in a data directory, and unmounted
mod narrow_connections; // a broker that allows only short frames, or one channel
mod neighbors; // at most ten files that belong together
mod one_line_each; // each event is one line, whatever the names are
mod other_names; // links and hard links of a file that is written by another name
mod outputs; // what was published nowhere is not confirmed
mod overflow; // an overflow of the kernel's queue loses nothing
mod process_limits; // few descriptors, threads, or locked memory
mod read_engines; // io_uring and blocking reads give equal results
mod reconnects; // the broker goes away and comes back
mod recursive; // `--recursive`: files in old and new directories
mod removals; // `--removals`: what went away has a message too
mod restarts; // what has changed since the last start, and `--catch-up`
mod rights_that_come_later; // files and directories that may not be read yet
mod routing; // the exchange, its type, and the routing key of each file
mod scan_and_listen; // the commands `scan` and `listen`
mod scenarios; // what other projects' tests do to files
mod seccomp_profile; // the service works under `deploy/seccomp.json`
mod secret_files; // the connection string and its password from files
mod several_directories; // several data directories in one service
mod signals; // SIGHUP, inherited masks, a scan that is ended early
mod special_files; // FIFOs, devices and loops of links are ignored
mod state_directory; // a state directory that is refused, a damaged ledger
mod status; // what became of a file, and what waits
mod stopping; // signals, and the loss of the data directory
mod streams; // standard output and error: slow, gone, closed, full, not to be waited for
mod terminals; // colors, and the width of the progress bar
mod tls; // trusted authorities, client certificates
mod tls_refusals; // certificates and files that are refused
mod too_large_messages; // a message that the broker refuses for its size
mod unroutable; // messages that no queue takes
mod verify; // the disk against the ledger
mod watchdog; // a stage without progress is not fed to the watchdog
