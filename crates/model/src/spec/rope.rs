//! Rotary frequencies, and YaRN (arXiv 2309.00071) as DeepSeek's checkpoints mean it.

use super::family::Family;
use super::fields::Fields;
use kernels::Rope;
use std::f64::consts::PI;

/// What the rotary keys of a config come to.
pub(super) struct Rotary {
    pub(super) rope: Rope,
    /// YaRN's `mscale(factor, mscale_all_dim)^2`; 1 without YaRN.
    pub(super) softmax_factor: f64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Yarn {
    factor: f64,
    beta_fast: f64,
    beta_slow: f64,
    /// `None`: neither key is given.
    mscale: Option<Mscale>,
    original_context: f64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Mscale {
    mscale: f64,
    all_dim: f64,
}

/// One of the two places where a config may describe its rope.
#[derive(PartialEq)]
struct Description {
    theta: Option<f64>,
    yarn: Option<Yarn>,
}

const THETA: std::ops::RangeInclusive<f64> = 1.001..=1e15;

/// Reads `rope_parameters`, else `rope_scaling` and `rope_theta`.
pub(super) fn read(fields: &mut Fields<'_>, family: Family, rope_dim: Option<usize>) -> Option<Rotary> {
    let new = describe(fields, "rope_parameters");
    let old = describe(fields, "rope_scaling");
    let (new, old) = (new?, old?);
    if let (Some(new), Some(old)) = (&new, &old)
        && new.yarn != old.yarn
    {
        fields.refuse("rope_scaling", "contradicts rope_parameters; remove one of them");
        return None;
    }
    let key = if new.is_some() { "rope_parameters" } else { "rope_scaling" };
    let description = new.or(old);
    let theta = match description.as_ref().and_then(|d| d.theta) {
        Some(theta) => theta,
        None => fields.number("rope_theta", THETA)?,
    };
    let yarn = description.and_then(|d| d.yarn);
    if yarn.is_some() && family == Family::Glm4MoeLite {
        fields.refuse(key, "YaRN in glm4_moe_lite has no reference and is not served; set it to null");
        return None;
    }
    Some(rotary(rope_dim?, theta, yarn))
}

fn describe(fields: &mut Fields<'_>, key: &str) -> Option<Option<Description>> {
    const KNOWN: [&str; 12] = [
        "type",
        "rope_type",
        "rope_theta",
        "factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "original_max_position_embeddings",
        "partial_rotary_factor",
        "attention_factor",
        "truncate",
    ];
    let Some(mut rope) = fields.nested(key)? else { return Some(None) };
    let before = rope.problem_count();
    for unknown in rope.keys().filter(|k| !KNOWN.contains(k)).collect::<Vec<_>>() {
        rope.refuse(unknown, "this key may change the rotary embedding and is not served");
    }
    rope.only("partial_rotary_factor", 1);
    rope.only("truncate", true);
    if rope.value("attention_factor").is_some() {
        rope.refuse("attention_factor", "not served; mscale and mscale_all_dim say the same");
    }
    let theta = rope.number_or_null("rope_theta", THETA);
    let kind = match (rope.text_or_null("type")?, rope.text_or_null("rope_type")?) {
        (Some(old), Some(new)) if old != new => {
            rope.refuse("rope_type", format!("contradicts type {old:?}; remove one of them"));
            return None;
        }
        (old, new) => new.or(old),
    };
    let key = if rope.has("rope_type") { "rope_type" } else { "type" };
    let yarn = match kind {
        None | Some("default") => {
            if rope.value("factor").is_some() && kind.is_none() {
                rope.refuse(key, "a factor needs a type; only \"yarn\" and \"default\" are served");
            }
            Some(None)
        }
        Some("yarn") => yarn(&mut rope).map(Some),
        Some(_) => {
            rope.refuse(key, "only \"yarn\" and \"default\" are served");
            None
        }
    };
    let description = Description { theta: theta?, yarn: yarn? };
    (rope.problem_count() == before).then_some(Some(description))
}

fn yarn(rope: &mut Fields<'_>) -> Option<Yarn> {
    let factor = rope.number("factor", 1.0..=1e6);
    let original = rope.integer("original_max_position_embeddings", 1..=1 << 26);
    let beta_fast = rope.number_or_null("beta_fast", 1e-3..=1e6);
    let beta_slow = rope.number_or_null("beta_slow", 1e-3..=1e6);
    let mscale = rope.number_or_null("mscale", 1e-6..=1e3);
    let all_dim = rope.number_or_null("mscale_all_dim", 1e-6..=1e3);
    let mscale = match (mscale?, all_dim?) {
        (Some(mscale), Some(all_dim)) => Some(Mscale { mscale, all_dim }),
        (None, None) => None,
        (Some(_), None) => {
            rope.refuse(
                "mscale_all_dim",
                "must be given where mscale is; implementations disagree without it",
            );
            return None;
        }
        (None, Some(_)) => {
            rope.refuse(
                "mscale",
                "must be given where mscale_all_dim is; implementations disagree without it",
            );
            return None;
        }
    };
    let (beta_fast, beta_slow) = (beta_fast?.unwrap_or(32.0), beta_slow?.unwrap_or(1.0));
    if beta_fast < beta_slow {
        rope.refuse("beta_fast", format!("must not be below beta_slow ({beta_slow})"));
        return None;
    }
    Some(Yarn { factor: factor?, beta_fast, beta_slow, mscale, original_context: original? as f64 })
}

fn rotary(rope_dim: usize, theta: f64, yarn: Option<Yarn>) -> Rotary {
    let plain = |i: usize| theta.powf(-((2 * i) as f64) / rope_dim as f64);
    let Some(yarn) = yarn else {
        let inv_freq = (0..rope_dim / 2).map(|i| plain(i) as f32).collect();
        return Rotary { rope: Rope { inv_freq, scale: 1.0 }, softmax_factor: 1.0 };
    };
    let (low, high) = yarn.correction_range(rope_dim, theta);
    let inv_freq = (0..rope_dim / 2)
        .map(|i| {
            let interpolated = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
            (plain(i) * (interpolated / yarn.factor + 1.0 - interpolated)) as f32
        })
        .collect();
    let (scale, softmax_factor) = match yarn.mscale {
        Some(m) => {
            let all_dim = yarn.mscale(m.all_dim);
            (yarn.mscale(m.mscale) / all_dim, all_dim * all_dim)
        }
        None => (yarn.mscale(1.0), 1.0),
    };
    Rotary { rope: Rope { inv_freq, scale: scale as f32 }, softmax_factor }
}

impl Yarn {
    /// Pairs below the first keep their frequency, pairs above the second are slowed by `factor`.
    fn correction_range(&self, rope_dim: usize, theta: f64) -> (f64, f64) {
        let dim = rope_dim as f64;
        // The pair that turns `beta` times within the original context.
        let pair = |beta: f64| dim * (self.original_context / (beta * 2.0 * PI)).ln() / (2.0 * theta.ln());
        let low = pair(self.beta_fast).floor().max(0.0);
        let high = pair(self.beta_slow).ceil().min(dim - 1.0);
        // A step where both ends meet, not a division by zero.
        if low == high { (low, high + 0.001) } else { (low, high) }
    }

    /// `m(factor, a) = 0.1 a ln factor + 1`
    fn mscale(&self, a: f64) -> f64 {
        0.1 * a * self.factor.ln() + 1.0
    }
}
