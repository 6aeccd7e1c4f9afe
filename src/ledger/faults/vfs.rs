//! A virtual file system of SQLite (sqlite.org/vfs.html) that asks before each change of a file what becomes of it.
//!
//! It stands before the usual one and is the default of the whole process. Files that a thread without a [`Disk`] opens
//! are opened by the usual one itself and never come here again, so tests that run beside are not concerned.
#![allow(unsafe_code)] // because a VFS of SQLite is a struct of C functions

use std::cell::RefCell;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::mem::size_of;
use std::path::Path;
use std::ptr;
use std::rc::Rc;
use std::slice;
use std::sync::OnceLock;

use rusqlite::ffi::{self, sqlite3_file, sqlite3_io_methods, sqlite3_vfs};

/// A change of a file that SQLite is about to make.
pub(super) enum Change<'a> {
    /// A file that is not there is created.
    Create,
    Write {
        at: u64,
        bytes: &'a [u8],
    },
    Truncate(u64),
    Sync,
    Delete,
}

/// What becomes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Made,
    /// ENOSPC. A sync that finds no room fails as one does where blocks are allocated late.
    Full,
    /// As [`Answer::Full`], after half of what was to be written.
    HalfFull,
    /// EIO.
    Error,
}

/// Where SQLite's changes on one thread go.
pub(super) trait Disk {
    /// `file` is its name without the directory.
    fn change(&mut self, path: &Path, change: &Change<'_>) -> Answer;
}

thread_local! {
    static DISK: RefCell<Option<Rc<RefCell<dyn Disk>>>> = const { RefCell::new(None) };
}

/// Asks this disk about all that SQLite changes on this thread from now on, until it is dropped.
pub(super) struct Observed;

impl Observed {
    pub(super) fn new(disk: Rc<RefCell<dyn Disk>>) -> Self {
        register();
        DISK.set(Some(disk));
        Self
    }
}

impl Drop for Observed {
    fn drop(&mut self) {
        DISK.set(None);
    }
}

pub(super) fn ask(path: &Path, change: &Change<'_>) -> Answer {
    let disk = DISK.with_borrow(Clone::clone);
    disk.map_or(Answer::Made, |disk| disk.borrow_mut().change(path, change))
}

/// The usual VFS. It is static, and SQLite itself shares it among threads.
struct Usual(*mut sqlite3_vfs);

// SAFETY: nobody writes to a registered VFS, and its functions may be called by any thread.
unsafe impl Send for Usual {}
// SAFETY: as above.
unsafe impl Sync for Usual {}

static USUAL: OnceLock<Usual> = OnceLock::new();

fn register() {
    USUAL.get_or_init(|| {
        // SAFETY: without a name it returns the default VFS, which lives as long as the process.
        let usual = unsafe { ffi::sqlite3_vfs_find(ptr::null()) };
        assert!(!usual.is_null(), "SQLite has a VFS on Linux");
        // SAFETY: it is a valid struct of C pointers and numbers. The copy keeps what the usual functions look up in it.
        let mut own = unsafe { ptr::read(usual) };
        own.zName = c"asked".as_ptr();
        own.szOsFile += size_of::<Asked>() as c_int;
        own.pNext = ptr::null_mut();
        own.xOpen = Some(open);
        own.xDelete = Some(delete);
        // SAFETY: the struct is leaked, so it stays valid as long as it is registered, which is to the end.
        let registered = unsafe { ffi::sqlite3_vfs_register(Box::leak(Box::new(own)), 1) };
        assert_eq!(registered, ffi::SQLITE_OK);
        Usual(usual)
    });
}

fn usual() -> *mut sqlite3_vfs {
    USUAL.get().expect("it is kept before the VFS is registered").0
}

/// An open file. The usual one's own struct follows it, in memory that SQLite allocates by `szOsFile`.
#[repr(C)]
struct Asked {
    base: sqlite3_file,
    real: *mut sqlite3_file,
    path: *mut Path,
}

static METHODS: sqlite3_io_methods = sqlite3_io_methods {
    // The first version has neither shared memory nor memory maps: the ledger uses none.
    iVersion: 1,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: None,
    xShmLock: None,
    xShmBarrier: None,
    xShmUnmap: None,
    xFetch: None,
    xUnfetch: None,
};

/// Calls a function of the usual VFS's file.
macro_rules! real {
    ($file:expr, $function:ident $(, $argument:expr)*) => {{
        // SAFETY: SQLite passes what `open` has filled in, whose real file is open and has all functions of version 1.
        unsafe {
            let real = (*$file.cast::<Asked>()).real;
            ((*(*real).pMethods).$function.unwrap())(real $(, $argument)*)
        }
    }};
}

fn path<'a>(file: *mut sqlite3_file) -> &'a Path {
    // SAFETY: `open` has set it and `close` frees it, after which SQLite uses the file no more.
    unsafe { &*(*file.cast::<Asked>()).path }
}

fn named<'a>(name: *const c_char) -> &'a Path {
    use std::os::unix::ffi::OsStrExt;
    // SAFETY: SQLite's names end in a zero and outlive the call.
    Path::new(std::ffi::OsStr::from_bytes(unsafe { CStr::from_ptr(name) }.to_bytes()))
}

unsafe extern "C" fn open(
    _: *mut sqlite3_vfs,
    name: *const c_char,
    file: *mut sqlite3_file,
    flags: c_int,
    out: *mut c_int,
) -> c_int {
    // SAFETY: the usual VFS is valid and can open.
    let usual_open = unsafe { (*usual()).xOpen.unwrap() };
    if name.is_null() || DISK.with_borrow(Option::is_none) {
        // SAFETY: the memory is at least as large as the usual one asks for, and it sets its own methods.
        return unsafe { usual_open(usual(), name, file, flags, out) };
    }
    let asked = file.cast::<Asked>();
    // SAFETY: SQLite allocated `szOsFile` bytes, aligned to eight, and looks at `pMethods` even where opening fails.
    let real = unsafe {
        (*asked).base.pMethods = ptr::null();
        asked.add(1).cast::<sqlite3_file>()
    };
    if !named(name).exists() && ask(named(name), &Change::Create) != Answer::Made {
        return ffi::SQLITE_CANTOPEN;
    }
    // SAFETY: the rest of the memory is as large as the usual one asks for.
    let opened = unsafe { usual_open(usual(), name, real, flags, out) };
    if opened == ffi::SQLITE_OK {
        // SAFETY: as above; nothing that has to be dropped is overwritten.
        unsafe {
            (*asked).real = real;
            (*asked).path = Box::into_raw(Box::<Path>::from(named(name)));
            (*asked).base.pMethods = &raw const METHODS;
        }
    }
    opened
}

unsafe extern "C" fn delete(_: *mut sqlite3_vfs, name: *const c_char, sync_directory: c_int) -> c_int {
    if named(name).exists() && ask(named(name), &Change::Delete) != Answer::Made {
        return ffi::SQLITE_IOERR_DELETE;
    }
    // SAFETY: the usual VFS is valid and can delete.
    unsafe { (*usual()).xDelete.unwrap()(usual(), name, sync_directory) }
}

unsafe extern "C" fn close(file: *mut sqlite3_file) -> c_int {
    let closed = real!(file, xClose);
    // SAFETY: `open` made it of a box, and SQLite closes a file once.
    drop(unsafe { Box::from_raw((*file.cast::<Asked>()).path) });
    closed
}

unsafe extern "C" fn read(file: *mut sqlite3_file, into: *mut c_void, length: c_int, at: i64) -> c_int {
    real!(file, xRead, into, length, at)
}

unsafe extern "C" fn write(file: *mut sqlite3_file, from: *const c_void, length: c_int, at: i64) -> c_int {
    // SAFETY: SQLite passes so many bytes.
    let bytes = unsafe { slice::from_raw_parts(from.cast::<u8>(), length as usize) };
    match ask(path(file), &Change::Write { at: at as u64, bytes }) {
        Answer::Made => real!(file, xWrite, from, length, at),
        Answer::Full => ffi::SQLITE_FULL,
        Answer::HalfFull => {
            real!(file, xWrite, from, length / 2, at);
            ffi::SQLITE_FULL
        }
        Answer::Error => ffi::SQLITE_IOERR_WRITE,
    }
}

unsafe extern "C" fn truncate(file: *mut sqlite3_file, length: i64) -> c_int {
    match ask(path(file), &Change::Truncate(length as u64)) {
        Answer::Made => real!(file, xTruncate, length),
        _ => ffi::SQLITE_IOERR_TRUNCATE,
    }
}

unsafe extern "C" fn sync(file: *mut sqlite3_file, flags: c_int) -> c_int {
    match ask(path(file), &Change::Sync) {
        Answer::Made => real!(file, xSync, flags),
        _ => ffi::SQLITE_IOERR_FSYNC,
    }
}

unsafe extern "C" fn file_size(file: *mut sqlite3_file, size: *mut i64) -> c_int {
    real!(file, xFileSize, size)
}

unsafe extern "C" fn lock(file: *mut sqlite3_file, level: c_int) -> c_int {
    real!(file, xLock, level)
}

unsafe extern "C" fn unlock(file: *mut sqlite3_file, level: c_int) -> c_int {
    real!(file, xUnlock, level)
}

unsafe extern "C" fn check_reserved_lock(file: *mut sqlite3_file, locked: *mut c_int) -> c_int {
    real!(file, xCheckReservedLock, locked)
}

unsafe extern "C" fn file_control(file: *mut sqlite3_file, operation: c_int, argument: *mut c_void) -> c_int {
    real!(file, xFileControl, operation, argument)
}

unsafe extern "C" fn sector_size(file: *mut sqlite3_file) -> c_int {
    real!(file, xSectorSize)
}

unsafe extern "C" fn device_characteristics(file: *mut sqlite3_file) -> c_int {
    real!(file, xDeviceCharacteristics)
}
