//! Files that change while a program runs, and the certificate that is one of them.

use crate::{TlsError, TlsIdentity};
use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

/// Time between two looks at files.
pub const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// Looks between two at how long a certificate still holds: a day.
const LOOKS_PER_DAY: u32 = 43_200;
/// Days before a certificate expires from which on its operator is told.
const NOTICE_DAYS: u32 = 45;
const DAY: Duration = Duration::from_secs(86_400);

/// Files that a running program reads again when they change.
#[derive(Debug)]
pub struct WatchedFiles {
    paths: Vec<PathBuf>,
    /// As they were read.
    seen: Vec<Option<SystemTime>>,
    /// As they could not be read.
    failed: Option<Vec<Option<SystemTime>>>,
}

impl WatchedFiles {
    /// As they are now, before they are read for the first time; some may not be there.
    pub fn new(paths: Vec<PathBuf>) -> Self {
        let seen = paths.iter().map(|path| changed_at(path)).collect();
        Self { paths, seen, failed: None }
    }

    /// Reads them if they are others than those that were read. Several change one after the other, and their rights
    /// after that: what fails is tried again at each look, and told once for each change.
    pub fn look<T, E>(&mut self, read: impl FnOnce() -> Result<T, E>) -> Option<Result<T, E>> {
        let now: Vec<_> = self.paths.iter().map(|path| changed_at(path)).collect();
        if now == self.seen {
            return None;
        }
        let answer = read();
        if answer.is_ok() {
            (self.seen, self.failed) = (now, None);
            return Some(answer);
        }
        let told = self.failed.replace(now.clone()) == Some(now);
        (!told).then_some(answer)
    }
}

fn changed_at(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).ok()?.modified().ok()
}

/// The certificate of a member, which is shown anew when its files change.
#[derive(Debug)]
pub struct Renewal {
    files: WatchedFiles,
    name: String,
    looks: u32,
}

impl Renewal {
    /// Of these files, before they are read for the first time; it has to be for this name.
    pub fn new(paths: Vec<PathBuf>, name: String) -> Self {
        Self { files: WatchedFiles::new(paths), name, looks: 0 }
    }

    /// To be called every [`LOOK_AGAIN`]: if the files have changed and hold a certificate that is good now, the
    /// identity shows it from now on. Gives what came of a change.
    pub fn look<E: From<TlsError>>(
        &mut self,
        identity: &TlsIdentity,
        read: impl FnOnce() -> Result<TlsIdentity, E>,
    ) -> Option<Result<(), E>> {
        self.looks = self.looks.wrapping_add(1);
        let name = &self.name;
        self.files.look(|| {
            let newer = read()?;
            newer.check(name)?;
            identity.renew(&newer);
            Ok(())
        })
    }

    /// Once a day, if the certificate that is shown expires soon: within how many days.
    pub fn notice(&self, identity: &TlsIdentity) -> Option<u32> {
        let due = self.looks % LOOKS_PER_DAY == 1 && identity.expires_within(DAY * NOTICE_DAYS);
        due.then_some(NOTICE_DAYS)
    }
}
