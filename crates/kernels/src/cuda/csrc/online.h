// Softmax of one query, a tile of keys at a time (Milakov & Gimelshein, arXiv 1805.02867), for the kernels for any sizes.
#pragma once

#define ONLINE_KEYS 64 // of a tile

// The largest score so far and the sum of weights, in powers of two.
struct OnlineSoftmax {
    float max, total;

    // Takes in the scores of `n` keys, f32 in shared memory as the ONLINE_KEYS weights that it writes; all threads of a block
    // call it, between barriers. What was summed before is to be multiplied by the result.
    // Each warp finds the same numbers; the first one writes the weights down.
    DEV_MEMBER float take(u32 scores, u32 weights, int n) {
        float s[2], w[2];
        for (int i = 0; i < 2; i++) {
            int key = lane() + 32 * i;
            s[i] = key < n ? lds_f(scores + 4 * key) : MINUS_INFINITY;
        }
        float max_now = max_f(max, warp_max(max_f(s[0], s[1])));
        for (int i = 0; i < 2; i++) w[i] = ex2(s[i] - max_now);
        float shrink = ex2(max - max_now);
        total = fma_f(total, shrink, warp_sum(w[0] + w[1]));
        max = max_now;
        if (warp() == 0) {
            for (int i = 0; i < 2; i++) sts_f(weights + 4 * (lane() + 32 * i), w[i]);
        }
        return shrink;
    }
};
