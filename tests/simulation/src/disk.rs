//! A disk that forgets what was not synced, tears writes, runs full and fails to sync.
//!
//! The image in the cache is what reads see. A crash keeps what was synced, and of the writes after that any subset,
//! the last of them possibly cut in the middle of a sector's neighbourhood, as drives do.

use rand_chacha::{
    ChaCha20Rng,
    rand_core::{RngCore as _, SeedableRng as _},
};
use redb::StorageBackend;
use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// A write of one sector is never torn.
const SECTOR: usize = 512;

#[derive(Debug)]
enum Write {
    Data { offset: usize, bytes: Vec<u8> },
    Length(usize),
}

/// What goes wrong next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskFault {
    /// The sync after so many more fails; nothing of it is durable.
    pub failing_sync: Option<u32>,
    /// The disk takes so many more bytes of growth.
    pub full: bool,
    /// Power fails at the operation after so many more writes, syncs and changes of length.
    pub power_fails_after: Option<u64>,
}

#[derive(Debug)]
struct Image {
    synced: Vec<u8>,
    cached: Vec<u8>,
    unsynced: VecDeque<Write>,
    fault: DiskFault,
    operations: u64,
    dead: bool,
}

/// A disk; clones are the same disk.
#[derive(Clone, Debug)]
pub struct Disk(Arc<Mutex<Image>>);

/// What a crash did to the unsynced writes.
#[derive(Clone, Copy, Debug, Default)]
pub struct CrashDamage {
    /// Writes lost.
    pub lost: usize,
    /// Writes cut in the middle.
    pub torn: usize,
}

impl Disk {
    /// A disk with this content.
    pub fn new(content: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new(Image {
            cached: content.clone(),
            synced: content,
            unsynced: VecDeque::new(),
            fault: DiskFault::default(),
            operations: 0,
            dead: false,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Image> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes, syncs and changes of length so far.
    pub fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// Plans a fault.
    pub fn plan(&self, fault: DiskFault) {
        self.lock().fault = fault;
    }

    /// A copy of what is durable.
    pub fn snapshot(&self) -> Vec<u8> {
        self.lock().synced.clone()
    }

    /// Power fails: gives the disk that is found afterwards. This one answers nothing any more.
    pub fn crash(&self, seed: u64) -> (Self, CrashDamage) {
        let mut rng = ChaCha20Rng::seed_from_u64(seed);
        let mut image = self.lock();
        image.dead = true;
        let mut content = std::mem::take(&mut image.synced);
        let mut damage = CrashDamage::default();
        for write in std::mem::take(&mut image.unsynced) {
            match (rng.next_u32() % 4, write) {
                (0 | 1, _) => damage.lost += 1,
                (2, write) => apply(&mut content, &write),
                (_, Write::Length(length)) => apply(&mut content, &Write::Length(length)),
                (_, Write::Data { offset, mut bytes }) => {
                    let sectors = bytes.len().div_ceil(SECTOR).max(1);
                    let kept = usize::try_from(rng.next_u32()).unwrap_or(0) % sectors;
                    bytes.truncate(kept * SECTOR);
                    damage.torn += 1;
                    apply(&mut content, &Write::Data { offset, bytes });
                }
            }
        }
        (Self::new(content), damage)
    }
}

fn apply(content: &mut Vec<u8>, write: &Write) {
    match write {
        Write::Length(length) => content.resize(*length, 0),
        Write::Data { offset, bytes } => {
            let end = offset + bytes.len();
            if content.len() < end {
                content.resize(end, 0);
            }
            if let Some(place) = content.get_mut(*offset..end) {
                place.copy_from_slice(bytes);
            }
        }
    }
}

impl Image {
    fn operation(&mut self) -> io::Result<()> {
        if self.dead {
            return Err(io::Error::other("the machine is down"));
        }
        self.operations += 1;
        if let Some(left) = &mut self.fault.power_fails_after {
            if *left == 0 {
                self.dead = true;
                return Err(io::Error::other("power failed"));
            }
            *left -= 1;
        }
        Ok(())
    }
}

fn place(offset: u64) -> io::Result<usize> {
    usize::try_from(offset).map_err(io::Error::other)
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        u64::try_from(self.lock().cached.len()).map_err(io::Error::other)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let image = self.lock();
        if image.dead {
            return Err(io::Error::other("the machine is down"));
        }
        let offset = place(offset)?;
        let bytes = image.cached.get(offset..offset + out.len());
        out.copy_from_slice(bytes.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut image = self.lock();
        image.operation()?;
        let length = place(len)?;
        if image.fault.full && length > image.cached.len() {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        image.cached.resize(length, 0);
        image.unsynced.push_back(Write::Length(length));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut image = self.lock();
        image.operation()?;
        match &mut image.fault.failing_sync {
            Some(0) => {
                image.fault.failing_sync = None;
                return Err(io::Error::other("the drive did not confirm"));
            }
            Some(left) => *left -= 1,
            None => {}
        }
        let Image { synced, unsynced, .. } = &mut *image;
        for write in unsynced.drain(..) {
            apply(synced, &write);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut image = self.lock();
        image.operation()?;
        if image.fault.full {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        let write = Write::Data { offset: place(offset)?, bytes: data.to_vec() };
        apply(&mut image.cached, &write);
        image.unsynced.push_back(write);
        Ok(())
    }
}
