// The step's indices as the host lays them out (step.rs): 32-bit words, counts first, then arrays at places that depend
// on the limits alone; `tables` comes last, as wide as the step needs.
#pragma once

#define STEP_N_TOKENS 0
#define STEP_N_ROWS 1
#define STEP_N_OUTPUTS 2
#define STEP_N_COPIES 3
// Where the block tables begin, in words, and their width.
#define STEP_TABLES_AT 4
#define STEP_TABLE_WIDTH 5
// Passes of attend_latent over its items.
#define STEP_N_PASSES 6
// Which half of `ids`, u32 [2, most], the step's draws go to; the step before left its own in the other.
#define STEP_IDS_HALF 7
// First token of each pass, and one past the last.
#define STEP_PASSES 16

DEV int step_tokens(const void *step) { return (int)ldg_u((const u32 *)step + STEP_N_TOKENS); }
DEV int step_outputs(const void *step) { return (int)ldg_u((const u32 *)step + STEP_N_OUTPUTS); }
// What draw `at` of the step before came to: an id, or one of these.
#define DRAWN_NOT_FINITE 0xffffffffu
#define DRAWN_ALL_MASKED 0xfffffffeu
DEV u32 *step_ids(const void *step, void *ids, int most) {
    return (u32 *)ids + (u64)ldg_u((const u32 *)step + STEP_IDS_HALF) * (u64)most;
}
DEV u32 step_id_before(const void *step, const void *ids, int most, u32 at) {
    u32 half = 1 - ldg_u((const u32 *)step + STEP_IDS_HALF);
    return ldg_u((const u32 *)ids + (u64)half * (u64)most + at);
}
// Row of a token, from the array `row_of`: its index, and in the top bit whether it takes attend_expanded.
DEV bool row_expanded(u32 row_of) { return row_of >> 31; }
DEV int row_index(u32 row_of) { return (int)(row_of & 0x7fffffffu); }
// Block of position `position` of row `row`.
DEV u32 step_block(const void *step, int row, int position, int block_len) {
    const u32 *words = (const u32 *)step;
    u32 at = ldg_u(words + STEP_TABLES_AT) + (u32)row * ldg_u(words + STEP_TABLE_WIDTH) + (u32)(position / block_len);
    return ldg_u(words + at);
}
