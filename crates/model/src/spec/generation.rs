//! `generation_config.json`: which tokens end an answer, and how its authors would sample.

use super::fields::{Fields, json_object};
use crate::problems::Problems;

/// What `generation_config.json` says; `None` where it says nothing.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct GenerationConfig {
    /// Empty: not named here.
    pub eos_ids: Vec<u32>,
    pub bos_id: Option<u32>,
    pub do_sample: Option<bool>,
    /// From 0 (greedy) up.
    pub temperature: Option<f32>,
    /// In (0, 1].
    pub top_p: Option<f32>,
    /// 0 is off.
    pub top_k: Option<usize>,
    /// Above 0; 1 is off.
    pub repetition_penalty: Option<f32>,
}

impl GenerationConfig {
    pub fn parse(json: &[u8]) -> Result<Self, Problems> {
        const SUBJECT: &str = "generation_config.json";
        let object = json_object(SUBJECT, json)?;
        let (mut problems, mut notes) = (Problems::of(SUBJECT), Vec::new());
        let config = read(&mut Fields::new(&object, &mut problems, &mut notes));
        Ok(problems.none_or(config)?.expect("no config without a recorded problem"))
    }
}

fn read(fields: &mut Fields<'_>) -> Option<GenerationConfig> {
    // The vocabulary is known to the model's own config; see `ModelSpec::eos_ids`.
    let eos_ids = fields.token_ids("eos_token_id", u32::MAX as usize);
    let bos_id = fields.token_id("bos_token_id", u32::MAX as usize);
    let do_sample = fields.flag_or_null("do_sample");
    let temperature = fields.number_or_null("temperature", 0.0..=100.0);
    let top_p = fields.number_or_null("top_p", 1e-6..=1.0);
    let top_k = fields.integer_or_null("top_k", 0..=1 << 24);
    let repetition_penalty = fields.number_or_null("repetition_penalty", 1e-3..=100.0);
    let single = |x: Option<f64>| x.map(|x| x as f32);
    Some(GenerationConfig {
        eos_ids: eos_ids?,
        bos_id: bos_id?,
        do_sample: do_sample?,
        temperature: single(temperature?),
        top_p: single(top_p?),
        top_k: top_k?,
        repetition_penalty: single(repetition_penalty?),
    })
}
