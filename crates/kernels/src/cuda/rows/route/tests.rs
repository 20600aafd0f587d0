//! On the emulator, against the reference.

use super::super::super::sim::Mode;
use super::super::super::sim::mutants::{Module, Mutant, all_are_found};
use super::super::tests::{ODD, Steps, begin, noise, workspace};
use crate::backend::{Backend, View};
use crate::dtype::{DType, Precision};
use crate::matrix::Matrix;
use crate::ops::{Route, RouteRule, Scoring};
use crate::reference::Reference;

#[derive(Clone, Copy, Debug)]
struct Case {
    rule: RouteRule,
    hidden: usize,
    /// Columns before and between the rows of x.
    gap: usize,
    bias: bool,
    tokens: usize,
}

const CASE: Case = Case {
    rule: RouteRule {
        n_experts: 7,
        top_k: 3,
        scoring: Scoring::Sigmoid,
        n_groups: 1,
        top_groups: 1,
        normalise: true,
        scale: 2.5,
    },
    hidden: 43,
    gap: 5,
    bias: false,
    tokens: 9,
};

impl Case {
    /// Tokens of rows that are equal in the first and the third expert, so that their scores are; the last token of several
    /// is NaN.
    fn inputs(&self) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let experts = self.rule.n_experts;
        let mut weight = noise(experts * self.hidden, 3);
        weight.copy_within(..self.hidden, 2 * self.hidden);
        let mut x: Vec<f32> = noise(self.tokens * (self.hidden + self.gap), 4);
        if self.tokens > 1 {
            let last = x.len() - 1;
            x[last] = f32::NAN;
        }
        let mut bias: Vec<f32> = noise(experts, 5).iter().map(|b| b - 0.3).collect();
        bias[2] = bias[0];
        (x, weight, bias)
    }

    fn run<B: Backend>(&self, b: &mut B) -> Result<(Vec<u32>, Vec<f32>), String> {
        let Self { rule, hidden, gap, tokens, .. } = *self;
        let (x, weight, bias) = self.inputs();
        let steps = Steps::new(&[(0, tokens, false)], 64);
        let mut workspace = workspace(&steps.limits, ODD);
        workspace.n_experts = rule.n_experts;
        b.reserve(workspace).unwrap();
        b.begin_step(&steps.step()).unwrap();
        let bytes: Vec<u8> = weight.iter().flat_map(|v| v.to_le_bytes()).collect();
        let weight = Matrix::new(DType::F32, &bytes, [rule.n_experts, hidden], None).unwrap();
        let weight = b.pack(&[weight.into()], Precision::F32).unwrap();
        let (x, bias) = (b.upload(&x).unwrap(), b.upload(&bias).unwrap());
        let n = tokens * rule.top_k;
        let (mut ids, mut weights) = (b.indices(n).unwrap(), b.buffer(n).unwrap());
        let op = Route {
            x: View::columns(&x, gap, hidden + gap),
            weight: &weight,
            bias: self.bias.then_some(&bias),
            rule,
            ids: &mut ids,
            weights: &mut weights,
        };
        b.route(op).map_err(|e| e.to_string())?;
        Ok((b.read_indices(&ids, n), b.read(&weights, n)))
    }

    fn check(&self, mode: Mode, module: Option<&Module>) -> Result<(Vec<u32>, Vec<f32>), String> {
        let steps = Steps::new(&[(0, 1, false)], 64);
        let mut b = begin(mode, module, Precision::Bf16, &steps, ODD);
        let (mut failed, mut got) = (Ok(()), None);
        // Reading panics where a launch fails; the message is in its flush.
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| got = Some(self.run(&mut b))))
            .unwrap_or_else(|_| failed = Err("the launch failed".to_owned()));
        failed?;
        let (ids, weights) = got.expect("it ran")?;
        let (want_ids, want) = self.run(&mut Reference::new(Precision::Bf16)).unwrap();
        if ids != want_ids {
            return Err(format!("{self:?}: chose {ids:?}, expected {want_ids:?}"));
        }
        for (g, w) in weights.iter().zip(&want) {
            if (g - w).abs() > 2e-5 * w.abs().max(1.0) || g.is_nan() != w.is_nan() {
                return Err(format!("{self:?}: weighs {g}, expected {w}"));
            }
        }
        Ok((ids, weights))
    }
}

/// As V3, as V2, groups of one, plain softmax, more experts.
fn cases() -> Vec<Case> {
    let rule = |n_experts, top_k, scoring, n_groups, top_groups| RouteRule {
        n_experts,
        top_k,
        scoring,
        n_groups,
        top_groups,
        ..CASE.rule
    };
    let v2 = RouteRule { normalise: false, scale: 16.0, ..rule(160, 6, Scoring::Softmax, 8, 3) };
    vec![
        CASE,
        Case { tokens: 1, bias: true, ..CASE },
        Case { rule: rule(256, 8, Scoring::Sigmoid, 8, 4), bias: true, hidden: 36, gap: 4, tokens: 5 },
        Case { rule: v2, hidden: 132, gap: 0, ..CASE },
        Case { rule: rule(8, 2, Scoring::Sigmoid, 8, 2), bias: true, ..CASE },
        Case { rule: rule(64, 6, Scoring::Softmax, 1, 1), hidden: 256, gap: 0, ..CASE },
        Case { rule: rule(400, 32, Scoring::Sigmoid, 1, 1), hidden: 20, ..CASE },
        Case { rule: rule(37, 4, Scoring::Sigmoid, 1, 1), tokens: 41, gap: 1, ..CASE },
    ]
}

#[test]
fn chooses_as_the_reference() {
    for (i, case) in cases().iter().enumerate() {
        case.check(Mode::all()[i], None).unwrap();
    }
    for mode in Mode::all() {
        CASE.check(mode, None).unwrap();
    }
}

#[test]
fn neighbours_change_nothing() {
    let many = Case { tokens: 41, gap: 0, hidden: 132, ..CASE };
    let few = Case { tokens: 3, ..many };
    let (ids, weights) = many.check(Mode::FAST, None).unwrap();
    let (few_ids, few_weights) = few.check(Mode::FAST, None).unwrap();
    // The last of either is NaN.
    assert_eq!((&ids[..6], &weights[..6]), (&few_ids[..6], &few_weights[..6]));
}

#[test]
fn too_many_are_refused() {
    let rule = RouteRule { n_experts: 1100, ..CASE.rule };
    let error = Case { rule, hidden: 1, tokens: 1, ..CASE }.check(Mode::FAST, None).unwrap_err();
    assert!(error.contains("3 of 1100 experts a token; this device chooses at most 32 of 1024"), "{error}");
}

const fn mutant(from: &'static str, to: &'static str) -> Mutant {
    Mutant { file: "route.cu", from, to }
}

#[test]
fn mistakes_are_found() {
    let mutants = [
        mutant("x != x ? 0 : order_of(x)", "order_of(x)"),
        mutant("    warp_sync();\n    if (p.groups > 1)", "    if (p.groups > 1)"),
        mutant("        limit_groups(p, at);\n        warp_sync();", "        limit_groups(p, at);"),
        mutant(
            "    warp_sync();\n    for (int g = lane(); g < p.groups; g += 32) {\n        float own",
            "    for (int g = lane(); g < p.groups; g += 32) {\n        float own",
        ),
        mutant("(other == own && i < g)", "(other == own && i > g)"),
        mutant("p.sigmoid && size > 1 ?", "size > 1 ?"),
        mutant("expert == NO_EXPERT || x > order", "expert == NO_EXPERT || x >= order"),
        mutant("sts_u(at.orders + 4 * id, order_of(MINUS_INFINITY));", ""),
        mutant("sum + 1e-20f", "2.0f * sum"),
        mutant("min_i(token + t, n - 1)", "(token + t)"),
        mutant("col + i < width ?", "true ?"),
        mutant("bool there = token + t < n && ", "bool there = "),
        mutant("* (2 * p.experts + p.groups)", "* (2 * p.experts)"),
    ];
    let cases = cases();
    all_are_found(&mutants, |module| {
        let mode = Mode::all()[0];
        cases.iter().try_for_each(|case| case.check(mode, module).map(|_| ()))
    });
}
