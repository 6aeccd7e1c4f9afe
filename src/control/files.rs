//! Questions about files on their way to the sources of jobs, and the status that is made of their answers.

use std::time::{Duration, Instant};

use hyper::body::Incoming;
use hyper::header::HeaderValue;
use hyper::{Request, StatusCode, Uri};
use percent_encoding::percent_decode_str;
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use tokio::time::{timeout, timeout_at};

use super::{JSON, Source, TEXT};
use crate::files::writers::{Writer, writers};
use crate::inquiry::{Answer, FileAnswer, Held, Place, Question, Row, Waiting};
use crate::mailbox::Sender;
use crate::progress::Phase;
use crate::shown::json_line;
use crate::status::file::{FileStatus, OnDisk};
use crate::status::page::page;
use crate::status::{Status, View};

/// How long a source may take for its answer: it is between two rounds of its loop within milliseconds, unless a file system
/// holds it up.
const ANSWER_TIME: Duration = Duration::from_secs(2);

/// How long what is looked up beside it may take: the ledger's row, the file on disk, its writers.
const LOOK_TIME: Duration = Duration::from_secs(1);

/// The longest path that can be asked for, in bytes (PATH_MAX).
const PATH_BYTES_MAX: usize = 4096;

/// The path in a query, `path=` percent-encoded; `None` where there is none.
///
/// # Errors
/// Why it cannot be used, in words.
fn asked_path(uri: &Uri) -> Result<Option<Vec<u8>>, &'static str> {
    let pairs = uri.query().unwrap_or_default().split('&');
    let Some(path) = pairs.filter_map(|pair| pair.strip_prefix("path=")).next() else { return Ok(None) };
    let path: Vec<u8> = percent_decode_str(path).collect();
    match path {
        path if path.len() > PATH_BYTES_MAX => Err("the path is too long\n"),
        path if !path.starts_with(b"/") || path.contains(&0) => Err("path= takes an absolute path, percent-encoded\n"),
        path => Ok(Some(path)),
    }
}

impl Source {
    /// The answer to `GET /`.
    pub(super) async fn page(&self) -> String {
        let status = self.status(None).await;
        page(&status, &self.history().steps())
    }

    /// The answer to `GET /status`.
    pub(super) async fn status_answer(&self, request: &Request<Incoming>) -> (StatusCode, HeaderValue, Vec<u8>) {
        match asked_path(request.uri()) {
            Ok(path) => {
                let body = simd_json::to_string(&self.status(path).await).unwrap_or_default();
                (StatusCode::OK, JSON, json_line(&body).into_bytes())
            }
            Err(why) => (StatusCode::BAD_REQUEST, TEXT, why.as_bytes().to_vec()),
        }
    }

    /// The status, with what the sources of jobs know that answer in time.
    async fn status(&self, path: Option<Vec<u8>>) -> Status<'_> {
        let view = View { progress: &self.progress, stall: self.stall, began: self.began };
        let (answer, missing) = self.ask(path.as_ref()).await;
        let mut status = view.status(&self.history(), missing);
        if let Some(mut answer) = answer {
            // A path of a watch that is silent is no other's.
            let elsewhere = |file: &FileAnswer| status.files_missing.is_none() || file.place != Place::Outside;
            let file = answer.file.take().filter(elsewhere);
            let writers = writers_of(&answer.waiting).await;
            status.files = Some(view.files(&answer, &writers));
            if let (Some(path), Some(file)) = (path, file) {
                status.file = Some(file_status(view, path, file).await);
            }
        }
        status
    }

    /// Asks the sources of jobs. Returns what those know that answer in time, and why others do not.
    async fn ask(&self, path: Option<&Vec<u8>>) -> (Option<Answer>, Option<String>) {
        let sources = self.progress.sources.get().filter(|_| self.progress.phase() != Phase::Starting);
        let Some(sources) = sources else { return (None, Some("the service is starting".to_owned())) };
        let asked = Instant::now();
        let question = |sender: &Sender| {
            let (reply, answer) = oneshot::channel();
            sender.ask(Box::new(Question { path: path.cloned(), asked, reply })).then_some(answer)
        };
        let answers: Vec<_> = sources.iter().map(question).collect();
        let (mut all, mut silent, mut stops) = (None::<Answer>, Vec::new(), false);
        for (volume, answer) in answers.into_iter().enumerate() {
            let until = (asked + ANSWER_TIME).into();
            let answered = match answer {
                Some(answer) => timeout_at(until, answer).await.ok(),
                None => None,
            };
            match (answered, &mut all) {
                (Some(Ok(answer)), Some(all)) => all.add(answer),
                (Some(Ok(answer)), all @ None) => *all = Some(answer),
                (Some(Err(_)), _) => stops = true,
                (None, _) => {
                    let directories = self.progress.volumes().get(volume).map_or("", |volume| &volume.directories);
                    silent.push(format!("the watch of {directories} has not answered: its file system may hold it up"));
                }
            }
        }
        if stops {
            return (all, Some("the service stops".to_owned()));
        }
        (all, (!silent.is_empty()).then(|| silent.join("; ")))
    }
}

/// The writers of those that wait for one.
async fn writers_of(waiting: &[Waiting]) -> Vec<Writer> {
    let held = |waiting: &Waiting| matches!(waiting.held, Held::Settling | Held::Writer);
    // The others' paths are left empty, so that each keeps its number.
    let paths: Vec<Vec<u8>> = waiting.iter().map(|it| if held(it) { it.path.clone() } else { Vec::new() }).collect();
    if paths.iter().all(Vec::is_empty) {
        return Vec::new();
    }
    let search = spawn_blocking(move || writers(&paths.iter().map(Vec::as_slice).collect::<Vec<_>>()));
    timeout(LOOK_TIME, search).await.ok().and_then(Result::ok).unwrap_or_default()
}

async fn file_status(view: View<'_>, path: Vec<u8>, mut answer: FileAnswer) -> FileStatus {
    let row: Option<Row> = match answer.row.take() {
        Some(row) => timeout(LOOK_TIME, row).await.ok().and_then(Result::ok).flatten(),
        None => None,
    };
    let looked = path.clone();
    // A file system that hangs keeps the thread, and not the answer.
    let disk = timeout(LOOK_TIME, spawn_blocking(move || OnDisk::look(&looked))).await;
    let disk = disk.ok().and_then(Result::ok).unwrap_or_else(|| OnDisk::Unseen("no answer".to_owned()));
    let waiting = match &answer.place {
        Place::Waiting(waiting) => {
            let writers = writers_of(std::slice::from_ref(waiting)).await;
            Some(view.waiting(waiting, 0, &writers))
        }
        _ => None,
    };
    FileStatus::of(&path, &answer, row.as_ref(), &disk, waiting)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_taken_byte_for_byte() {
        let asked = |query: &str| asked_path(&format!("/status{query}").parse().unwrap());
        assert_eq!(asked(""), Ok(None));
        assert_eq!(asked("?a=b"), Ok(None));
        assert_eq!(asked("?path=/a%20b%FF%26c"), Ok(Some(b"/a b\xff&c".to_vec())));
        assert!(asked("?path=a").is_err() && asked("?path=").is_err() && asked("?path=/a%00").is_err());
        assert!(asked(&format!("?path=/{}", "a".repeat(PATH_BYTES_MAX))).is_err());
    }
}
