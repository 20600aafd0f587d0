// Attention in latent space, what its kernels share. Work comes as items (step.rs): the keys from..end of the sequence
// that token `token` of row `row` ends, a part of all that the token sees. A pass is a run of tokens whose items' results
// fit into `partial` and `lse`. All softmax sums are in powers of two: `scale` holds log2(e) too.
#pragma once

// q: f32 [tokens, heads, width]; layer: of the arena (page.h); out: f32 [tokens, heads, rank]
// partial: f32 [items of a pass, heads, rank], each item's own average of the values; lse: f32 [items of a pass, heads],
// log2 of the sum of its weights
#define MLA_FIELDS(F)                                                                                                  \
    F(const void *, q)                                                                                                 \
    F(const void *, layer)                                                                                             \
    F(void *, out)                                                                                                     \
    F(void *, partial)                                                                                                 \
    F(void *, lse)                                                                                                     \
    F(const void *, step)                                                                                              \
    F(const void *, items)                                                                                             \
    F(const void *, first_item)                                                                                        \
    F(int, pass)                                                                                                       \
    F(int, heads)                                                                                                      \
    F(int, rank)                                                                                                       \
    F(int, width)                                                                                                      \
    F(int, block_len)                                                                                                  \
    F(int, tiled)                                                                                                      \
    F(float, scale)
PARAMS(MlaParams, MLA_FIELDS)

struct MlaItem {
    int token, row, from, end;
};

DEV MlaItem mla_item(const MlaParams &p, int index) {
    v4 words = ldg_v4((const v4 *)p.items + index);
    return {(int)words.x, (int)words.y, (int)words.z, (int)words.w};
}

DEV int mla_first_item(const MlaParams &p, int token) { return (int)ldg_u((const u32 *)p.first_item + token); }
// First token of pass `pass`, and one past the last of the pass before.
DEV int mla_pass_token(const MlaParams &p, int pass) { return (int)ldg_u((const u32 *)p.step + STEP_PASSES + pass); }

// Where the result of a head goes: at once to the output if the item is all that its token has. `in_pass`: the item's
// index in its pass.
struct MlaResult {
    float *heads; // [heads, rank]
    float *lse;   // [heads], or null
};

DEV MlaResult mla_result(const MlaParams &p, int token, int in_pass) {
    bool whole = mla_first_item(p, token + 1) - mla_first_item(p, token) == 1;
    u64 at = (u64)(whole ? token : in_pass) * (u64)p.heads;
    float *heads = (float *)(whole ? p.out : p.partial) + at * (u64)p.rank;
    return {heads, whole ? (float *)0 : (float *)p.lse + at};
}
