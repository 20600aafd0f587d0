//! Logits of reference checkpoints, through the bare model: whole, in chunks, in latent space and expanded,
//! with odd block sizes. The goldens allow 2e-3; this code is asked for 2e-4.

mod golden;

use golden::{Chunks, Golden, Nearness, Shape, WHOLE, WHOLE_EXPANDED, error_of, largest_error, run_watched};
use kernels::{CacheFormat, Cpu, Isa, Precision, Reference, Scoring};
use model::forward::Place;
use model::spec::{Mlp, ModelSpec};

const SHAPE: Shape = Shape { step_tokens: 450, block_len: 64 };

#[test]
fn logits_within_tolerance() {
    for golden in Golden::all() {
        let [singly, by_33] = [1, 33].map(|len| Chunks { len, expanded: false });
        let by_33_expanded = Chunks { expanded: true, ..by_33 };
        for (chunks, block_len, threads) in
            [(WHOLE, 64, 2), (WHOLE_EXPANDED, 64, 2), (singly, 7, 1), (by_33, 16, 3), (by_33_expanded, 16, 3)]
        {
            let shape = Shape { step_tokens: 450, block_len };
            let mut model = golden.model(Cpu::new(threads, Precision::F32), Precision::F32, shape);
            let error = error_of(&golden, &mut model, chunks);
            println!("{}: {chunks:?}, blocks of {block_len}: {error:.1e}", golden.name);
            assert!(error < 2e-4, "{}, {chunks:?}, blocks of {block_len}: {error}", golden.name);
        }
    }
}

#[test]
fn every_instruction_set_agrees() {
    let golden = Golden::open("v3-fp8");
    for isa in Isa::all() {
        let mut model = golden.model(Cpu::with_isa(2, Precision::F32, isa), Precision::F32, SHAPE);
        for chunks in [WHOLE, WHOLE_EXPANDED] {
            let error = error_of(&golden, &mut model, chunks);
            assert!(error < 2e-4, "{isa:?} {chunks:?}: {error}");
        }
    }
}

#[test]
fn the_reference_backend_agrees() {
    for golden in Golden::all() {
        let mut model = golden.model(Reference::new(Precision::F32), Precision::F32, SHAPE);
        for chunks in [WHOLE, WHOLE_EXPANDED] {
            let error = error_of(&golden, &mut model, chunks);
            assert!(error < 2e-4, "{} {chunks:?}: {error}", golden.name);
        }
    }
}

#[test]
fn hidden_states_and_routing() {
    for golden in Golden::all() {
        let mut model = golden.model(Cpu::new(2, Precision::F32), Precision::F32, SHAPE);
        let prompt = golden.ids(2);
        let n = prompt.len();
        run_watched(&mut model, &[prompt], WHOLE, |place, model| match place {
            Place::Embedding | Place::Layer(_) => {
                let name = match place {
                    Place::Layer(i) => format!("prompt2.hidden.layer{i}"),
                    _ => "prompt2.hidden.embed".to_owned(),
                };
                let error = largest_error(&model.hidden(n), &golden.f32s(&name));
                assert!(error < 2e-3, "{} {name}: {error}", golden.name);
            }
            Place::Router(i) => {
                // The goldens list experts by falling weight, the router by falling choice.
                let (ids, weights) = model.routing(n);
                let name = |what: &str| format!("prompt2.router.layer{i}.{what}");
                let want = pairs(&golden.u32s(&name("ids")), &golden.f32s(&name("weights")), n);
                for (t, (got, want)) in pairs(&ids, &weights, n).into_iter().zip(want).enumerate() {
                    let same = got.iter().zip(&want).all(|(g, w)| g.0 == w.0 && (g.1 - w.1).abs() < 2e-4);
                    assert!(same, "{} layer {i} token {t}: {got:?}, expected {want:?}", golden.name);
                }
            }
        });
    }
}

/// `(expert, weight)` of each token, by rising expert.
fn pairs(ids: &[u32], weights: &[f32], tokens: usize) -> Vec<Vec<(u32, f32)>> {
    let k = ids.len() / tokens;
    let mut pairs: Vec<Vec<_>> = ids
        .chunks(k)
        .zip(weights.chunks(k))
        .map(|(i, w)| i.iter().copied().zip(w.iter().copied()).collect())
        .collect();
    pairs.iter_mut().for_each(|token| token.sort_by_key(|&(id, _)| id));
    pairs
}

/// Each classic mistake that a changed spec can express must show far beyond the tolerance.
#[test]
fn mistakes_are_caught() {
    type Mutant = (&'static str, fn(&mut ModelSpec) -> bool);
    /// Changes the experts' rule; false where it would change nothing.
    fn rule(spec: &mut ModelSpec, change: impl Fn(&mut model::spec::MoeSpec) -> bool) -> bool {
        spec.layers.iter_mut().fold(false, |any, layer| match layer {
            Mlp::Moe(moe) => change(moe) | any,
            Mlp::Dense { .. } => any,
        })
    }
    let mutants: [Mutant; 10] = [
        ("softmax scale of the nope part alone", |s| {
            s.mla.softmax_scale *= (s.mla.qk_head_dim() as f32 / s.mla.qk_nope_head_dim as f32).sqrt();
            true
        }),
        ("softmax scale of the latent width", |s| {
            s.mla.softmax_scale *= (s.mla.qk_head_dim() as f32 / s.latent_width() as f32).sqrt();
            true
        }),
        ("no YaRN factor in the softmax scale", |s| {
            let plain = 1.0 / (s.mla.qk_head_dim() as f32).sqrt();
            let yarn = (s.mla.softmax_scale - plain).abs() > 1e-3;
            s.mla.softmax_scale = plain;
            yarn
        }),
        ("frequencies of another rope", |s| {
            s.rope.inv_freq[1] *= 1.5;
            true
        }),
        ("cos and sin not scaled", |s| {
            let scaled = (s.rope.scale - 1.0).abs() > 1e-3;
            s.rope.scale = 1.0;
            scaled
        }),
        ("latent norm's eps", |s| {
            s.latent_norm_eps = 1e-5;
            true
        }),
        ("no routed scaling", |s| {
            rule(s, |m| {
                let scaled = m.rule.scale != 1.0;
                m.rule.scale = 1.0;
                scaled
            })
        }),
        ("normalisation flipped", |s| {
            rule(s, |m| {
                m.rule.normalise = !m.rule.normalise;
                true
            })
        }),
        ("no group limit", |s| {
            rule(s, |m| {
                let limited = m.rule.top_groups < m.rule.n_groups;
                m.rule.top_groups = m.rule.n_groups;
                limited
            })
        }),
        ("groups scored the other way", |s| {
            rule(s, |m| {
                let groups = m.rule.n_groups > 1 && m.rule.scoring == Scoring::Softmax;
                m.rule.n_groups = if groups { 1 } else { m.rule.n_groups };
                m.rule.top_groups = m.rule.top_groups.min(m.rule.n_groups);
                groups
            })
        }),
    ];
    for (what, change) in mutants {
        let mut caught = 0;
        for golden in Golden::all() {
            let mut spec = golden.spec();
            if !change(&mut spec) {
                continue;
            }
            let mut model = golden.model_of(spec, Cpu::new(2, Precision::F32), Precision::F32, SHAPE);
            let error = error_of(&golden, &mut model, WHOLE_EXPANDED);
            assert!(error > 1e-2, "{}: {what} went unnoticed ({error})", golden.name);
            caught += 1;
        }
        assert!(caught > 0, "no golden shows: {what}");
    }
}

#[test]
fn one_latent_row_a_token_and_layer() {
    let golden = Golden::open("v3-f32");
    for (cache, precision) in [
        (CacheFormat::Plain, Precision::F32),
        (CacheFormat::Plain, Precision::Bf16),
        (CacheFormat::Fp8, Precision::Bf16),
    ] {
        let model = golden.model(Cpu::new(1, precision).with_cache(cache), precision, SHAPE);
        let (spec, limits) = (model.spec(), model.step_limits());
        let (rank, rope) = (spec.mla.kv_lora_rank, spec.mla.qk_rope_head_dim);
        let row = match cache {
            CacheFormat::Plain => precision.size() * (rank + rope),
            CacheFormat::Fp8 => 4 + rank + 2 * rope,
        };
        let a_token = spec.n_layers() * row;
        assert_eq!(a_token, spec.kv_bytes_per_token(cache, precision));
        assert_eq!(model.arena_bytes(), a_token * limits.n_blocks * limits.block_len);
    }
}

/// bf16 all through: on teacher-forced steps with a clear margin the top token is the reference's, and
/// the top log probabilities are as near as another bf16 engine's. See the goldens' own tolerances.
#[test]
fn bf16_is_as_near_as_bf16_can_be() {
    for golden in Golden::all() {
        let model = || golden.model(Cpu::new(2, Precision::Bf16), Precision::Bf16, SHAPE);
        let Some(near) = Nearness::of(&golden, model) else { continue };
        println!("{}: {near:?}", golden.name);
        assert!(near.median < 0.15 && near.p90 < 0.43 && near.same > 0.95, "{}: {near:?}", golden.name);
    }
}
