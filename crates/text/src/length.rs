//! How few tokens a text can have, told from its length alone: no token is longer than the longest one.

use serde_json::Value;

use crate::token_table::TokenTable;
use crate::tokenizer::TokenizerFile;

/// Bytes of the longest token; `None` where text can shrink on its way into tokens, so that its length tells nothing.
pub(crate) fn token_bytes_max(file: &TokenizerFile, table: &TokenTable) -> Option<usize> {
    let splits = || steps(&file.pre_tokenizer, "pretokenizers");
    let is_normalized = steps(&file.normalizer, "normalizers").next().is_some();
    let spaces_vanish = file.added_tokens.iter().any(|token| token.lstrip || token.rstrip);
    let keeps_text = !is_normalized && !spaces_vanish && splits().all(keeps_all);
    // With a token for each byte nothing is unknown: unknown letters are dropped, or many of them are one token.
    let of_bytes = splits().any(|step| step["type"] == "ByteLevel");
    let knows_all = of_bytes && file.model.r#type.as_deref() == Some("BPE") && has_all_bytes(table);
    let longest = (0..table.len()).map(|id| table.bytes(id as u32).len()).max();
    longest.filter(|_| keeps_text && knows_all)
}

/// A step is null, one, or a sequence of steps.
fn steps<'a>(step: &'a Value, list: &str) -> impl Iterator<Item = &'a Value> {
    let list = step[list].as_array();
    let alone = list.is_none() && !step.is_null();
    list.into_iter().flatten().chain(alone.then_some(step))
}

fn keeps_all(step: &Value) -> bool {
    match step["type"].as_str() {
        Some("Split" | "Punctuation") => step["behavior"] != "Removed",
        Some("ByteLevel" | "Digits") => true,
        _ => false,
    }
}

fn has_all_bytes(table: &TokenTable) -> bool {
    let mut known = [false; 256];
    for id in 0..table.len() {
        if let [byte] = table.bytes(id as u32) {
            known[usize::from(*byte)] = true;
        }
    }
    known.into_iter().all(|known| known)
}
