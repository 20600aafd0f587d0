//! API keys of clients: as typed, and from a file. No message shows one.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Of a file: more are no keys that people were given.
const FILE_BYTES_MAX: u64 = 1 << 20;
const KEYS_MAX: usize = 10_000;
const KEY_BYTES_MAX: usize = 1024;

/// Text that is not shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Secret(String);

impl Secret {
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Those of `--api-key` and the environment.
pub(crate) fn typed(keys: &[Secret]) -> Result<Vec<Secret>, String> {
    for (i, key) in keys.iter().enumerate() {
        if key.0.trim().is_empty() {
            return Err(
                "a key is empty; to serve all who ask, leave out --api-key and STRAIT_API_KEY".to_owned()
            );
        }
        check(&key.0).map_err(|why| format!("key {}: {why}", i + 1))?;
    }
    Ok(keys.to_vec())
}

/// One key a line; lines that are blank or begin with `#` are skipped.
pub(crate) fn in_file(file: Option<&str>) -> Result<Vec<Secret>, String> {
    let Some(file) = file else { return Ok(Vec::new()) };
    if file.is_empty() {
        return Err("is empty; to serve all who ask, leave it out".to_owned());
    }
    let keys = read(Path::new(file)).and_then(|bytes| parse(&bytes));
    keys.map_err(|why| format!("{file}: {why}"))
}

fn read(file: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let read = File::open(file).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes));
    read.map_err(|error| format!("cannot be read: {error}"))?;
    match bytes.len() as u64 {
        n if n > FILE_BYTES_MAX => {
            Err(format!("is larger than {FILE_BYTES_MAX} bytes; is it a file of keys?"))
        }
        _ => Ok(bytes),
    }
}

fn parse(bytes: &[u8]) -> Result<Vec<Secret>, String> {
    let mut keys = Vec::new();
    for (i, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        let line = String::from_utf8_lossy(line.trim_ascii());
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        check(&line).map_err(|why| format!("line {}: {why}", i + 1))?;
        keys.push(Secret(line.into_owned()));
    }
    match keys.len() {
        0 => Err("holds no key; to serve all who ask, leave it out".to_owned()),
        n if n > KEYS_MAX => {
            Err(format!("holds {n} keys; at most {KEYS_MAX} are compared with each request's"))
        }
        _ => Ok(keys),
    }
}

/// What a header cannot carry would never be found.
fn check(key: &str) -> Result<(), String> {
    if key.len() > KEY_BYTES_MAX {
        return Err(format!("is longer than {KEY_BYTES_MAX} bytes"));
    }
    if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(
            "a key is one word of visible ASCII characters; comments have lines of their own".to_owned()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_file(bytes: &[u8]) -> Result<Vec<String>, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let keys = in_file(file.path().to_str());
        keys.map(|keys| keys.iter().map(|key| key.reveal().to_owned()).collect())
    }

    #[test]
    fn one_key_a_line() {
        assert_eq!(in_file(None), Ok(Vec::new()));
        let text = b"# of the team\n\n  sk-one \r\nsk-two#2\n \n\t# gone\nlast";
        assert_eq!(from_file(text).unwrap(), ["sk-one", "sk-two#2", "last"]);
    }

    #[test]
    fn what_is_wrong_is_told_by_its_line_and_no_key_is_shown() {
        let long = [b"fine\n".as_slice(), &[b'x'; KEY_BYTES_MAX + 1]].concat();
        let many = "hidden\n".repeat(KEYS_MAX + 1);
        let large = vec![b'x'; FILE_BYTES_MAX as usize + 1];
        for (bytes, expected) in [
            (b"".as_slice(), "holds no key"),
            (b"\n# hidden\n\n", "holds no key"),
            (b"\nhidden # of Ann\n", "line 2: a key is one word"),
            (b"fine\nhidden\x00\n", "line 2: a key is one word"),
            ("hidd\u{e9}n\n".as_bytes(), "line 1: a key is one word"),
            (b"hidden\xff", "line 1: a key is one word"),
            (&long, "line 2: is longer"),
            (many.as_bytes(), "holds 10001 keys"),
            (&large, "is larger than"),
        ] {
            let error = from_file(bytes).unwrap_err();
            assert!(error.contains(expected), "{error}");
            assert!(!error.contains("hidd") && !error.contains("xxx"), "{error}");
        }
        for (file, expected) in
            [("", "is empty"), ("no/such/file", "cannot be read"), ("/", "cannot be read")]
        {
            let error = in_file(Some(file)).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn typed_keys_are_of_the_same_form() {
        let check = |keys: &[&str]| {
            typed(&keys.iter().map(|key| Secret((*key).to_owned())).collect::<Vec<_>>())
                .map(|keys| keys.len())
        };
        assert_eq!(check(&[]), Ok(0));
        assert_eq!(check(&["a", "b"]), Ok(2));
        for (keys, expected) in
            [(&["a", " "][..], "a key is empty"), (&["a", "hidden b"], "key 2: a key is one word")]
        {
            let error = check(keys).unwrap_err();
            assert!(error.contains(expected) && !error.contains("hidden"), "{error}");
        }
        assert_eq!(format!("{:?}", [Secret("hidden".to_owned())]), "[***]");
    }
}
