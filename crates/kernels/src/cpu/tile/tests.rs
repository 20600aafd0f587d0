use super::*;

/// Every instruction set, panel count and vector count against the plain sum in the same order.
fn check<E: Elem>() {
    let (k_steps, most_panels) = (13, 11);
    let k = k_steps * E::PAIR;
    let value = |i: usize| E::from_f32(((i * 37) % 101) as f32 / 50.0 - 1.0);
    let w: Vec<E> = (0..most_panels * k * PANEL).map(value).collect();
    for isa in Isa::all() {
        for (panels, vectors) in
            (1..=MAX_VECTORS).map(|t| (11, t)).chain((7..=max_vectors(isa, 1)).map(|t| (1, t)))
        {
            for start in [Start::Zero, Start::Output] {
                let x: Vec<E> = (0..vectors * k).map(|i| value(i * 3 + 1)).collect();
                let pointers: Vec<*const E> = (0..vectors).map(|t| x[t * k..].as_ptr()).collect();
                let stride = panels * PANEL + 5;
                let mut out = vec![0.5f32; vectors * stride];
                let tile = Tile {
                    w: w.as_ptr(),
                    panel_stride: k * PANEL,
                    panels,
                    k_steps,
                    x: &pointers,
                    out: out.as_mut_ptr(),
                    out_stride: stride,
                    start,
                };
                // SAFETY: the vectors above have these sizes.
                unsafe { E::multiply(isa, tile) };
                for (i, got) in out.iter().enumerate() {
                    let (t, row) = (i / stride, i % stride);
                    let mut want = if start == Start::Zero { 0.0 } else { 0.5 };
                    if row >= panels * PANEL {
                        want = 0.5; // beyond the panels: untouched
                    } else {
                        for j in 0..k {
                            // Of a pair, the odd element first.
                            let j = if E::PAIR == 2 { j ^ 1 } else { j };
                            let at = (row / PANEL * k_steps + j / E::PAIR) * PANEL * E::PAIR;
                            let w = w[at + row % PANEL * E::PAIR + j % E::PAIR].to_f32();
                            want += w * x[t * k + j].to_f32();
                        }
                    }
                    assert!((got - want).abs() < 2e-5, "{isa:?} {vectors} {start:?} {i}: {got} {want}");
                }
            }
        }
    }
}

#[test]
fn transposed_words() {
    for (n, words) in [(16, 16), (16, 37), (16, 1), (3, 20)] {
        let data: Vec<f32> = (0..n * words).map(|i| i as f32).collect();
        let rows: Vec<*const f32> = data.chunks(words).map(<[f32]>::as_ptr).collect();
        for isa in Isa::all() {
            let mut out = vec![-1.0; words * PANEL];
            // SAFETY: rows of `words` words.
            unsafe { f32::transpose(isa, &rows, words, &mut out) };
            for (i, &v) in out.iter().enumerate() {
                let (word, lane) = (i / PANEL, i % PANEL);
                let want = if lane < n { data[lane * words + word] } else { -1.0 };
                assert_eq!(v, want, "{isa:?} {n} x {words}: word {word} lane {lane}");
            }
        }
    }
}

#[test]
fn bf16_tiles() {
    check::<bf16>();
}

#[test]
fn f32_tiles() {
    check::<f32>();
}
