//! The tensors of a checkpoint: one safetensors file, or shards named by an index, mapped into
//! memory. Only headers are read here; weights are read as they are packed.

use crate::problems::Problems;
use kernels::{DType, MappedFile};
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// A 61-layer model of 256 experts has an index of about 9 MB.
const INDEX_BYTES_MAX: u64 = 256 << 20;
/// The same bound as in the format's own library.
const HEADER_BYTES_MAX: usize = 100_000_000;

/// Tensors by name, over bytes that stay mapped as long as this lives.
#[derive(Debug)]
pub struct Checkpoint {
    files: Vec<Bytes>,
    tensors: HashMap<String, TensorEntry>,
}

/// A tensor as it lies in its file: row-major, little-endian, not aligned.
#[derive(Debug, Clone, Copy)]
pub struct Tensor<'a> {
    pub name: &'a str,
    pub shape: &'a [usize],
    pub bytes: &'a [u8],
    stored: Dtype,
}

impl Tensor<'_> {
    /// `None`: a format that weights cannot have here; see [`Tensor::format`].
    pub fn dtype(&self) -> Option<DType> {
        match self.stored {
            Dtype::F32 => Some(DType::F32),
            Dtype::F16 => Some(DType::F16),
            Dtype::BF16 => Some(DType::Bf16),
            Dtype::F8_E4M3 => Some(DType::F8E4M3),
            _ => None,
        }
    }

    /// The format's name in safetensors: `BF16`, `I64`.
    pub fn format(&self) -> String {
        self.stored.to_string()
    }
}

#[derive(Debug)]
enum Bytes {
    Mapped(MappedFile),
    Static(&'static [u8]),
}

impl Bytes {
    fn get(&self) -> &[u8] {
        match self {
            Self::Mapped(file) => file,
            Self::Static(bytes) => bytes,
        }
    }
}

#[derive(Debug)]
struct TensorEntry {
    file: usize,
    stored: Dtype,
    shape: Vec<usize>,
    /// In the file; checked against its length, the shape and the format.
    bytes: Range<usize>,
}

impl Checkpoint {
    /// Opens a directory that holds `model.safetensors` or its shards.
    pub fn open(dir: &Path) -> Result<Self, Problems> {
        let mut problems = Problems::of(dir.display().to_string());
        let index = if dir.join(SINGLE).is_file() {
            None
        } else if dir.join(INDEX).is_file() {
            Some(read_index(dir)?)
        } else {
            problems.push(SINGLE, what_is_there_instead(dir));
            return Err(problems);
        };
        let mut checkpoint = Self { files: Vec::new(), tensors: HashMap::new() };
        match index {
            None => checkpoint.add_file(dir, SINGLE, &mut problems),
            Some(index) => {
                for shard in index.shards() {
                    checkpoint.add_file(dir, shard, &mut problems);
                }
                // A shard that could not be read explains all that is missing.
                if problems.count() == 0 {
                    checkpoint.compare(&index, &mut problems);
                }
            }
        }
        problems.none_or(checkpoint)
    }

    /// One safetensors file that is part of this program.
    pub fn from_bytes(bytes: &'static [u8]) -> Result<Self, Problems> {
        let mut checkpoint = Self { files: Vec::new(), tensors: HashMap::new() };
        let mut problems = Problems::of("embedded checkpoint");
        checkpoint.add(SINGLE, Bytes::Static(bytes), &mut problems);
        problems.none_or(checkpoint)
    }

    pub fn tensor(&self, name: &str) -> Option<Tensor<'_>> {
        self.tensors.get_key_value(name).map(|(name, entry)| self.view(name, entry))
    }

    /// All tensors, in no order.
    pub fn tensors(&self) -> impl Iterator<Item = Tensor<'_>> {
        self.tensors.iter().map(|(name, entry)| self.view(name, entry))
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> usize {
        self.files.iter().map(|file| file.get().len()).sum()
    }

    fn view<'a>(&'a self, name: &'a str, entry: &'a TensorEntry) -> Tensor<'a> {
        let bytes = &self.files[entry.file].get()[entry.bytes.clone()];
        Tensor { name, shape: &entry.shape, bytes, stored: entry.stored }
    }

    fn add_file(&mut self, dir: &Path, name: &str, problems: &mut Problems) {
        let path = dir.join(name);
        // An empty file cannot be mapped everywhere, and a directory not at all.
        let opened = fs::metadata(&path).and_then(|meta| match meta.is_file() && meta.len() > 0 {
            true => MappedFile::open(&path).map(Some),
            false => Ok(None),
        });
        match opened {
            Ok(Some(file)) => self.add(name, Bytes::Mapped(file), problems),
            Ok(None) => problems.push(name, "not a file with anything in it; fetch it again"),
            Err(e) if e.kind() == ErrorKind::NotFound => {
                problems.push(name, format!("missing, though {INDEX} names it; fetch it"));
            }
            Err(e) => problems.push(name, format!("cannot be opened: {e}")),
        }
    }

    fn add(&mut self, file_name: &str, bytes: Bytes, problems: &mut Problems) {
        let (data_start, header) = match read_header(bytes.get()) {
            Ok(read) => read,
            Err(what) => {
                problems.push(file_name, what);
                return;
            }
        };
        let file = self.files.len();
        for (name, info) in header.tensors() {
            let (start, end) = info.data_offsets;
            let bytes = data_start + start..data_start + end;
            let entry = TensorEntry { file, stored: info.dtype, shape: info.shape.clone(), bytes };
            match self.tensors.entry(name) {
                Entry::Vacant(free) => {
                    free.insert(entry);
                }
                Entry::Occupied(taken) => {
                    let what = format!("holds {}, which another shard holds too; remove one", taken.key());
                    problems.push(file_name, what);
                }
            }
        }
        self.files.push(bytes);
    }

    /// Every tensor of the index must be in some shard.
    fn compare(&self, index: &Index, problems: &mut Problems) {
        for (name, shard) in &index.weight_map {
            if !self.tensors.contains_key(name) {
                problems.push(
                    INDEX,
                    format!("says that {name} is in {shard}, which does not hold it; fetch both again"),
                );
            }
        }
    }
}

/// Where a file's data starts, and its header: 8 bytes of length, then JSON.
///
/// `SafeTensors::read_metadata` does the same, but adds lengths from the file unchecked.
fn read_header(file: &[u8]) -> Result<(usize, Metadata), String> {
    if file.starts_with(b"version https://git-lfs") {
        return Err("a Git LFS pointer, not the weights; run `git lfs pull`".into());
    }
    let broken = |why: &str| format!("not a whole safetensors file ({why}); fetch it again");
    let (header_len, rest) = file.split_first_chunk().ok_or_else(|| broken("less than 8 bytes"))?;
    let header_len = usize::try_from(u64::from_le_bytes(*header_len)).unwrap_or(usize::MAX);
    if header_len > rest.len().min(HEADER_BYTES_MAX) {
        return Err(broken(&format!("a header of {header_len} bytes")));
    }
    let (header, data) = rest.split_at(header_len);
    // Parsing checks that the tensors lie end to end and are as long as shape and format say.
    let header: Metadata = serde_json::from_slice(header).map_err(|e| broken(&e.to_string()))?;
    if header.data_len() != data.len() {
        return Err(broken(&format!("{} bytes of data where {} belong", data.len(), header.data_len())));
    }
    Ok((file.len() - data.len(), header))
}

/// `model.safetensors.index.json`
#[derive(serde::Deserialize)]
struct Index {
    /// Tensor to file name; each is a plain name in the same directory.
    weight_map: HashMap<String, String>,
}

impl Index {
    fn shards(&self) -> BTreeSet<&str> {
        self.weight_map.values().map(String::as_str).collect()
    }
}

fn read_index(dir: &Path) -> Result<Index, Problems> {
    let mut problems = Problems::of(dir.display().to_string());
    let path = dir.join(INDEX);
    let index: Index = match read_bounded(&path, INDEX_BYTES_MAX).and_then(|bytes| {
        serde_json::from_slice(&bytes).map_err(|e| format!("not a shard index ({e}); fetch it again"))
    }) {
        Ok(index) => index,
        Err(what) => {
            problems.push(INDEX, what);
            return Err(problems);
        }
    };
    if index.weight_map.is_empty() {
        problems.push(INDEX, "weight_map names no tensors; fetch it again");
    }
    for shard in index.shards().into_iter().filter(|shard| !is_plain_name(shard)) {
        problems.push(INDEX, format!("{shard:?} is not the name of a file in the same directory"));
    }
    problems.none_or(index)
}

fn read_bounded(path: &PathBuf, bytes_max: u64) -> Result<Vec<u8>, String> {
    match fs::metadata(path) {
        Ok(meta) if meta.len() > bytes_max => {
            Err(format!("{} bytes, at most {bytes_max} are read", meta.len()))
        }
        _ => fs::read(path).map_err(|e| format!("cannot be read: {e}")),
    }
}

/// One component that is the whole name: no separator, no `..`, not absolute.
fn is_plain_name(name: &str) -> bool {
    let first = Path::new(name).components().next();
    matches!(first, Some(Component::Normal(part)) if part == name) && !name.contains('\0')
}

fn what_is_there_instead(dir: &Path) -> String {
    if !dir.exists() {
        return "the directory does not exist".into();
    }
    if !dir.is_dir() {
        return "this is a file; give the directory that holds it".into();
    }
    let ends_in = |end: &str| {
        fs::read_dir(dir).is_ok_and(|mut files| {
            files.any(|f| f.is_ok_and(|f| f.file_name().to_string_lossy().ends_with(end)))
        })
    };
    if ends_in(".bin") {
        return "the weights are pickled (.bin); take the checkpoint in safetensors".into();
    }
    if ends_in(".safetensors") {
        return format!("missing, and so is {INDEX}, which would name the shards; fetch it");
    }
    format!("missing, and so is {INDEX}; fetch the weights")
}
