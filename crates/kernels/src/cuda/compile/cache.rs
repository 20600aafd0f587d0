//! Compiled code on disk. Whatever goes wrong here costs a compilation and nothing else.

use sha2::{Digest as _, Sha256};
use std::fs;
use std::path::{Path, PathBuf};
use std::process;

const DIGEST_BYTES: usize = 32;

/// A folder of files named `{name}-{digest of all that decides the code}.cubin`, each the digest of the code and then
/// the code. Of one name, one file is kept.
pub(super) struct Cache<'a> {
    folder: &'a Path,
}

pub(super) struct Entry {
    folder: PathBuf,
    name: String,
    /// `{name}-{digest}.cubin`
    file: String,
}

impl<'a> Cache<'a> {
    pub(super) fn new(folder: &'a Path) -> Self {
        Self { folder }
    }

    /// `texts`: all that decides the code.
    pub(super) fn entry(&self, name: &str, texts: &[&str]) -> Entry {
        let mut hash = Sha256::new();
        for text in texts {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        }
        let key: String = hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        Entry { folder: self.folder.into(), name: name.into(), file: format!("{name}-{key}.cubin") }
    }
}

impl Entry {
    /// `None` where there is no file, or one that was not written whole.
    pub(super) fn read(&self) -> Option<Vec<u8>> {
        let mut bytes = fs::read(self.folder.join(&self.file)).ok()?;
        let code = bytes.get(DIGEST_BYTES..)?;
        if Sha256::digest(code)[..] != bytes[..DIGEST_BYTES] {
            return None;
        }
        bytes.drain(..DIGEST_BYTES);
        Some(bytes)
    }

    /// Others that start at the same time see the whole file or none.
    pub(super) fn write(&self, code: &[u8]) {
        if self.try_write(code).is_some() {
            self.drop_older();
        }
    }

    fn try_write(&self, code: &[u8]) -> Option<()> {
        fs::create_dir_all(&self.folder).ok()?;
        let whole = [&Sha256::digest(code)[..], code].concat();
        let unfinished = self.folder.join(format!("{}.{}", self.file, process::id()));
        let written = fs::write(&unfinished, whole)
            .and_then(|()| fs::rename(&unfinished, self.folder.join(&self.file)));
        if written.is_err() {
            let _ = fs::remove_file(&unfinished);
        }
        written.ok()
    }

    /// Code of the same name that other sources or another compiler made.
    fn drop_older(&self) {
        let Ok(files) = fs::read_dir(&self.folder) else { return };
        let key = |file: &str| {
            let rest = file.strip_prefix(&self.name)?.strip_prefix('-')?.strip_suffix(".cubin")?;
            (rest.len() == 32).then_some(())
        };
        for file in files.flatten() {
            let name = file.file_name();
            if name.to_str().is_some_and(|name| name != self.file && key(name).is_some()) {
                let _ = fs::remove_file(file.path());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            folder.read_dir().unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn code_is_found_again_whole_or_not_at_all() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("new/folder");
        let cache = Cache::new(&folder);
        let entry = cache.entry("rows-sm_80", &["sm_80", "source"]);
        assert_eq!(entry.read(), None);
        entry.write(b"code");
        assert_eq!(entry.read().as_deref(), Some(&b"code"[..]));
        for other in [&["sm_80", "source "][..], &["sm_80source"], &["sm_80", "source", ""]] {
            assert_eq!(cache.entry("rows-sm_80", other).read(), None, "{other:?}");
        }
        let path = folder.join(&entry.file);
        let whole = fs::read(&path).unwrap();
        for damaged in [&whole[..whole.len() - 1], &whole[..20], b"", &[&whole[..], b"x"].concat()] {
            fs::write(&path, damaged).unwrap();
            assert_eq!(entry.read(), None);
        }
        entry.write(b"code");
        assert_eq!(entry.read().as_deref(), Some(&b"code"[..]));
    }

    #[test]
    fn one_file_a_name_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::new(folder.path());
        fs::write(folder.path().join("rows-sm_80-notes.cubin"), "not ours").unwrap();
        cache.entry("rows-sm_80", &["a"]).write(b"old");
        cache.entry("rows-sm_90a", &["a"]).write(b"other");
        let entry = cache.entry("rows-sm_80", &["b"]);
        entry.write(b"new");
        assert_eq!(files(folder.path()).len(), 3, "{:?}", files(folder.path()));
        assert!(
            files(folder.path()).contains(&entry.file) && cache.entry("rows-sm_90a", &["a"]).read().is_some()
        );
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_no_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let entry = Cache::new(file.path()).entry("rows-sm_80", &["a"]);
        entry.write(b"code");
        assert_eq!(entry.read(), None);
    }
}
