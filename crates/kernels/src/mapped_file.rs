//! A read-only file in memory.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;

/// A file mapped read-only. Pages are read from disk as they are touched.
///
/// As with any mapping, a file that another process truncates meanwhile ends this process with
/// SIGBUS; checkpoints are not written while they are served.
#[derive(Debug)]
pub struct MappedFile(memmap2::Mmap);

impl MappedFile {
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        // SAFETY: nobody here writes to the file, and others do not while it is served, as said above.
        Ok(Self(unsafe { memmap2::Mmap::map(&file)? }))
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}
