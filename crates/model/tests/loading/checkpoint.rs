//! Checkpoints on disk: whole, and broken in every way that a download can break.

use crate::{GOLDENS, golden};
use kernels::DType;
use model::checkpoint::Checkpoint;
use model::problems::Problems;
use proptest::prelude::*;
use std::fs;
use std::path::Path;
use std::sync::OnceLock;
use tempfile::TempDir;

/// A safetensors file from `(name, format, shape, bytes)`.
pub(crate) fn safetensors(tensors: &[(&str, &str, &[usize], usize)]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, format, shape, bytes) in tensors {
        let info = serde_json::json!({"dtype": format, "shape": shape, "data_offsets": [end, end + bytes]});
        header.insert((*name).to_owned(), info);
        end += bytes;
    }
    file(&serde_json::to_string(&header).unwrap(), end)
}

/// A header and `data_len` bytes 0, 1, 2, ….
fn file(header: &str, data_len: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend((0..data_len).map(|i| i as u8));
    file
}

fn dir(files: &[(&str, &[u8])]) -> TempDir {
    let dir = TempDir::new().unwrap();
    for (name, bytes) in files {
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    dir
}

fn open(path: &Path) -> Result<Checkpoint, Problems> {
    Checkpoint::open(path)
}

fn check_refused(files: &[(&str, &[u8])], key: &str, says: &str) {
    let dir = dir(files);
    let problems = open(dir.path()).expect_err(says);
    assert!(problems.first().iter().any(|p| p.key == key), "{problems}");
    assert!(problems.to_string().contains(says), "{problems}");
}

#[test]
fn tensors_of_a_single_file() {
    let tensors = [("b", "BF16", &[2, 3][..], 12), ("a", "F8_E4M3", &[4], 4), ("n", "I64", &[0, 7], 0)];
    let dir = dir(&[("model.safetensors", &safetensors(&tensors))]);
    let checkpoint = open(dir.path()).unwrap();
    let [a, b, n] = ["a", "b", "n"].map(|name| checkpoint.tensor(name).unwrap());
    assert_eq!((a.dtype(), a.shape, a.bytes), (Some(DType::F8E4M3), &[4][..], &[12, 13, 14, 15][..]));
    assert_eq!((b.dtype(), b.shape, b.bytes[0], b.bytes.len()), (Some(DType::Bf16), &[2, 3][..], 0, 12));
    assert_eq!((n.dtype(), n.format().as_str(), n.bytes.len()), (None, "I64", 0));
    assert!(checkpoint.tensor("c").is_none());
    assert_eq!(checkpoint.tensors().count(), 3);
}

#[test]
fn golden_checkpoints_open() {
    for name in GOLDENS {
        let checkpoint = open(&golden(name)).unwrap_or_else(|e| panic!("{e}"));
        assert!(checkpoint.tensor("model.embed_tokens.weight").is_some(), "{name}");
        let tensors: usize = checkpoint.tensors().map(|t| t.bytes.len()).sum();
        assert!(tensors > 0 && tensors < checkpoint.bytes());
    }
    // 85 + … tensors in three shards: all that the index names.
    let index: serde_json::Value =
        serde_json::from_slice(&fs::read(golden("v3-f32").join("model.safetensors.index.json")).unwrap())
            .unwrap();
    let n = index["weight_map"].as_object().unwrap().len();
    assert_eq!(open(&golden("v3-f32")).unwrap().tensors().count(), n);
}

#[test]
fn broken_files() {
    let single =
        |bytes: &[u8], says: &str| check_refused(&[("model.safetensors", bytes)], "model.safetensors", says);
    let whole = "not a whole safetensors file";
    single(b"", "not a file with anything in it");
    single(b"1234567", whole);
    single(&u64::MAX.to_le_bytes(), whole);
    single(&(1u64 << 40).to_le_bytes(), whole);
    single(&[&100u64.to_le_bytes()[..], b"{}"].concat(), whole);
    single(&file("{]", 0), whole);
    single(&file("[]", 0), whole);
    single(&file(&"[".repeat(10_000), 0), whole);
    single(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "Git LFS pointer");
    let header = |info: &str| format!("{{\"a\": {info}}}");
    for (info, len) in [
        (r#"{"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}"#, 4),
        (r#"{"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}"#, 5),
        (r#"{"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}"#, 3),
        (r#"{"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}"#, 8),
        (r#"{"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}"#, 4),
        (r#"{"dtype": "Q4_K", "shape": [1], "data_offsets": [0, 4]}"#, 4),
        (r#"{"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}"#, 4),
        (r#"{"dtype": "F32", "shape": [4294967296, 4294967296], "data_offsets": [0, 0]}"#, 0),
        (r#"{"dtype": "F64", "shape": [2305843009213693952], "data_offsets": [0, 0]}"#, 0),
        (r#"{"dtype": "U8", "shape": [1], "data_offsets": [0, 18446744073709551615]}"#, 1),
    ] {
        single(&file(&header(info), len), whole);
    }
}

#[test]
fn lengths_whose_sum_overflows() {
    const PART: u64 = 1 << 60;
    let ends = (1..16).map(|i| i * PART).chain([u64::MAX]);
    let mut start = 0;
    let header: serde_json::Map<_, _> = ends
        .map(|end| {
            let info =
                serde_json::json!({"dtype": "U8", "shape": [end - start], "data_offsets": [start, end]});
            start = end;
            (format!("t{end}"), info)
        })
        .collect();
    let bytes = file(&serde_json::to_string(&header).unwrap(), 1);
    assert!(Checkpoint::from_bytes(bytes.leak()).is_err());
}

#[test]
fn broken_indices() {
    const INDEX: &str = "model.safetensors.index.json";
    let one = safetensors(&[("a", "U8", &[1], 1)]);
    let both = safetensors(&[("a", "U8", &[1], 1), ("b", "U8", &[1], 1)]);
    let index = |json: &str, says: &str| {
        check_refused(&[(INDEX, json.as_bytes()), ("one.safetensors", &one)], INDEX, says);
    };
    index("", "not a shard index");
    index("{}", "not a shard index");
    index(r#"{"weight_map": {"a": 1}}"#, "not a shard index");
    index(r#"{"weight_map": {}}"#, "names no tensors");
    index(
        r#"{"weight_map": {"a": "one.safetensors", "b": "one.safetensors"}}"#,
        "says that b is in one.safetensors",
    );
    for outside in ["../x", "/etc/passwd", "", ".", "..", "a/b", "one.safetensors/", "x/../y", "nul\\u0000"] {
        index(
            &format!(r#"{{"weight_map": {{"a": "{outside}"}}}}"#),
            "is not the name of a file in the same directory",
        );
    }
    let map = br#"{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}"#;
    check_refused(&[(INDEX, map), ("one.safetensors", &one)], "two.safetensors", "missing, though");
    check_refused(
        &[(INDEX, map), ("one.safetensors", &one), ("two.safetensors", b"")],
        "two.safetensors",
        "anything in it",
    );
    check_refused(
        &[(INDEX, map), ("one.safetensors", &one), ("two.safetensors", &both)],
        "two.safetensors",
        "another shard holds",
    );
}

#[test]
fn directories_without_weights() {
    check_refused(&[], "model.safetensors", "fetch the weights");
    check_refused(&[("pytorch_model.bin", b"x")], "model.safetensors", "pickled");
    check_refused(
        &[("model-00001-of-00002.safetensors", b"x")],
        "model.safetensors",
        "would name the shards",
    );
    let dir = dir(&[("model.safetensors", &safetensors(&[]))]);
    assert!(open(&dir.path().join("nowhere")).unwrap_err().to_string().contains("does not exist"));
    assert!(open(&dir.path().join("model.safetensors")).unwrap_err().to_string().contains("this is a file"));
    fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    fs::create_dir(dir.path().join("model.safetensors")).unwrap();
    assert!(open(dir.path()).is_err());
}

/// The header and a little of the data of a real checkpoint; `'static`, as embedded bytes are.
fn real() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| fs::read(golden("kimik2-bf16").join("model.safetensors")).unwrap())
}

#[test]
fn truncation_anywhere_is_refused() {
    let bytes = real();
    assert_eq!(Checkpoint::from_bytes(bytes).unwrap().bytes(), bytes.len());
    let header_end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let far = (1..64).map(|i| i * bytes.len() / 64);
    for len in (0..64).chain(header_end - 32..header_end + 32).chain(far).chain([bytes.len() - 1]) {
        assert!(Checkpoint::from_bytes(&bytes[..len]).is_err(), "{len} bytes");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// A flipped byte of the header is refused, or leaves tensors that lie within the file.
    #[test]
    fn flipped_header_bytes_never_panic(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        // Small enough to leak a few hundred of them.
        let mut bytes = safetensors(&[
            ("model.norm.weight", "F32", &[3], 12),
            ("lm_head.weight", "BF16", &[2, 3], 12),
            ("q", "F8_E4M3", &[2, 2], 4),
        ]);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(checkpoint) = Checkpoint::from_bytes(bytes.leak()) {
            for tensor in checkpoint.tensors() {
                let elements: usize = tensor.shape.iter().product();
                prop_assert!(tensor.dtype().is_none_or(|d| d.size() * elements == tensor.bytes.len()));
            }
        }
    }
}
