//! The queue and the writer under a model checker: shuttle runs many orders of the threads' steps, on a disk that refuses
//! some writes. The store is a map; `faults/` has the real one.

mod store;
mod sync;

use std::time::Duration;

use shuttle::future::block_on;
use shuttle::thread;

#[allow(dead_code, clippy::duplicate_mod)]
#[path = "../queue.rs"]
mod queue;
#[allow(dead_code, clippy::duplicate_mod)]
#[path = "../writer.rs"]
mod writer;

use queue::{QUEUED_MAX, Shared};
use store::{Disk, Store};
use sync::Arc;
use writer::Writer;

use super::row::Confirmed;
use super::tests::confirmed;
use super::{row, state_directory};

/// Orders of each model and each way to choose them.
const ORDERS: usize = 400;
/// Changes of the thread in an order of PCT.
const CHANGES: usize = 3;

fn check(name: &str, model: fn()) {
    shuttle::check_random(model, ORDERS);
    shuttle::check_pct(model, ORDERS, CHANGES);
    eprintln!("{name}: {} interleavings", 2 * ORDERS);
}

/// A running ledger on a disk that may refuse so many writes.
fn start(refusals: usize) -> (Arc<Shared>, Arc<Disk>, thread::JoinHandle<()>) {
    let disk = Arc::new(Disk::new(refusals));
    let shared = Arc::new(Shared::new(Arc::default()));
    let writer = Writer::new(Store::new(Arc::clone(&disk)), Arc::clone(&shared));
    (shared, disk, thread::spawn(move || writer.run()))
}

fn confirm(shared: &Shared, path: &[u8], number: u64) {
    shared.add(|queue| queue.put(path.into(), Some(confirmed(number)), QUEUED_MAX));
}

fn wait_until_gone(shared: &Shared, directory: &[u8], name: &[u8]) {
    while shared.lock().is_pending(directory, name) {
        thread::yield_now();
    }
}

/// Ends the ledger, however long it takes.
fn end(shared: &Shared, writer: thread::JoinHandle<()>) {
    while !shared.close(Duration::ZERO) {
        thread::yield_now();
    }
    writer.join().unwrap();
}

#[test]
fn in_many_orders_what_is_confirmed_is_written_by_the_end() {
    check("confirms and an end", || {
        let (shared, disk, writer) = start(0);
        let confirming = [1, 2].map(|number| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                confirm(&shared, &[b'/', b'a' + number], 0);
                confirm(&shared, &[b'/', b'a' + number], number.into());
            })
        });
        confirming.into_iter().for_each(|thread| thread.join().unwrap());
        end(&shared, writer);
        let rows = disk.rows();
        assert_eq!(rows.len(), 2);
        assert!([1u8, 2].iter().all(|number| rows[&[b'/', b'a' + number][..]] == confirmed((*number).into())));
        assert!(shared.lock().is_empty());
    });
}

/// Nobody closes the ledger before the row is there: the thread has to wake for it alone.
#[test]
fn in_many_orders_a_row_is_written_although_no_other_comes() {
    check("a row that nothing follows", || {
        let (shared, disk, writer) = start(1);
        for number in 0..2 {
            confirm(&shared, b"/a", number);
            while disk.rows().get(&b"/a"[..]) != Some(&confirmed(number)) {
                thread::yield_now();
            }
        }
        end(&shared, writer);
    });
}

/// A file waits until the row of its path is gone from the disk, or the next start will do without the rows.
#[test]
fn in_many_orders_no_file_goes_on_before_its_stale_row_is_gone() {
    check("invalidations on a disk that refuses writes", || {
        let (shared, disk, writer) = start(2);
        confirm(&shared, b"/d/a", 1);
        let waiting = [(&b"/d/"[..], &b"a"[..]), (b"/", b"b")].map(|(directory, name)| {
            let (shared, disk) = (Arc::clone(&shared), Arc::clone(&disk));
            thread::spawn(move || {
                let path = [directory, name].concat();
                confirm(&shared, &path, 2);
                if name == b"a" {
                    shared.add(|queue| queue.delete_below(directory));
                } else {
                    shared.add(|queue| queue.invalidate(&path, None));
                }
                wait_until_gone(&shared, directory, name);
                assert!(disk.is_behind() || !disk.rows().contains_key(&path[..]), "a stale row counts");
                confirm(&shared, &path, 3);
            })
        });
        waiting.into_iter().for_each(|thread| thread.join().unwrap());
        end(&shared, writer);
        let written: Vec<Confirmed> = disk.rows().into_values().collect();
        assert!(disk.refused_last() || written == [confirmed(3); 2], "what was queued last is written: {written:?}");
        assert!(disk.refused_last() || !disk.is_behind(), "the mark goes once all is written");
    });
}

#[test]
fn in_many_orders_a_question_is_answered_or_dropped() {
    check("questions", || {
        let (shared, _, writer) = start(1);
        let asking = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || block_on(shared.look_up(b"/a")))
        };
        confirm(&shared, b"/a", 1);
        // A row that is still queued, or was confirmed after the question, is not in the answer.
        let _ = asking.join().unwrap();
        assert!(block_on(shared.look_up(b"/a")).unwrap().is_some(), "what was queued before is in the answer");
        end(&shared, writer);
    });
}
