//! Any ids, those of no token included: pieces are the whole.
#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use text::{Detokenizer, Tokenizer};

static TOKENIZER: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| {
    let file = include_bytes!("../../crates/strait/demo/tokenizer.json");
    let config = include_bytes!("../../crates/strait/demo/tokenizer_config.json");
    Arc::new(Tokenizer::from_bytes(file, Some(config)).expect("the demo has a tokenizer"))
});

fuzz_target!(|input: (bool, Vec<u16>)| {
    let (skip_special, ids) = input;
    // A few beyond the vocabulary.
    let ids: Vec<u32> = ids.into_iter().map(|id| u32::from(id) % 800).collect();
    let mut detokenizer = Detokenizer::new(Arc::clone(&TOKENIZER), skip_special);
    let mut pieces: String = ids.iter().map(|&id| detokenizer.push(id)).collect();
    pieces += &detokenizer.finish();
    assert_eq!(pieces, TOKENIZER.decode(&ids, skip_special));
});
