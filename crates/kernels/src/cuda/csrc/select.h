// The least of a row that a cut keeps, found by the bits of what is compared, from the top down: nothing is sorted. A key
// is an integer that orders as what it stands for does, 0 for what is never kept. By one block of THREADS.
#pragma once

#define THREADS 1024
#define WARPS 32
#define BINS 2048
#define GROUPS 32 // of bins
#define ALL_IDS 0x7fffffff

// Keeps larger keys, and of equal ones the ids up to `last`.
struct Cut {
    u32 key;
    int last;
};

DEV bool keeps(const Cut &cut, u32 key, int id) { return key > cut.key || (key == cut.key && id <= cut.last); }

// A block's shared memory: 8 bytes a group; 4 a warp; 32 of what was found; counts of the bins, sums of the low bits of
// their keys, carries of these sums, 4 bytes each (what else lies there, its users say).
struct Shared {
    u32 groups, warps, found, bins;
};

DEV Shared shared() {
    u32 base = smem_base();
    return {base, base + 8 * GROUPS, base + 8 * GROUPS + 4 * WARPS, base + SHARED_FIXED_BYTES};
}

// Columns at .. at + 3 of a row, where there are `n`.
DEV v4 load4(const float *row, int at, int n) {
    if (((u64)row & 15) == 0 && at + 4 <= n) return ldg_v4(row + at);
    u32 x[4];
    for (int i = 0; i < 4; i++) x[i] = at + i < n ? ldg_u(row + at + i) : 0;
    return {x[0], x[1], x[2], x[3]};
}

// take(id, x) for all of a row, shared out over the block; a thread's ids rise.
template <class Take> DEV void each(const float *row, int n, Take take) {
    for (int at = 4 * tid(); at < n; at += 8 * THREADS) {
        v4 ahead[2] = {load4(row, at, n), load4(row, at + 4 * THREADS, n)};
#pragma unroll
        for (int j = 0; j < 2; j++) {
            u32 x[4] = {ahead[j].x, ahead[j].y, ahead[j].z, ahead[j].w};
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int id = at + 4 * THREADS * j + i;
                if (id < n) take(id, bits_f(x[i]));
            }
        }
    }
}

// What the keys in a bin come to, exactly: their number, or the sum of the floats whose bits they are. These share their
// exponent, so that their sum is one of integers, and less than 2^53 of them. `lower`: the bin's least key.
template <bool MASS> DEV double amount(const Shared &s, int bin, u32 lower) {
    u32 n = lds_u(s.bins + 4 * bin);
    if (!MASS || n == 0) return (double)n;
    double low = (double)lds_u(s.bins + 4 * (BINS + bin)) + 4294967296.0 * lds_u(s.bins + 4 * (2 * BINS + bin));
    double last_bit = (double)bits_f(lower & 0x7f800000u) * 0x1p-23;
    return (double)n * (double)bits_f(lower) + low * last_bit;
}

// The first from the top at which `above` and all down to it reach `target`; `above` becomes what lies above it.
template <class Amount> DEV int reach(int n, double target, double &above, Amount amount) {
    int at = 0;
    double next = above;
    for (int i = n - 1; i >= 0; i--) {
        double here = amount(i);
        if (here == 0.0) continue;
        at = i, above = next, next += here;
        if (next >= target) break;
    }
    return at;
}

// The bin in which a search ends.
struct Found {
    double target, above, amount;
    u32 bin, count;
};

// By one warp. `share`: of all that the target is, where it is not known yet.
template <bool MASS> DEV void find(const Shared &s, u32 prefix, int shift, double above, double target, double share) {
    const int each = BINS / GROUPS;
    double sum = 0.0;
    // Each lane begins in a bank of its own.
    for (int j = 0; j < each; j++) {
        int bin = each * lane() + ((j + lane()) & (each - 1));
        sum += amount<MASS>(s, bin, prefix | (u32)bin << shift);
    }
    sts_d(s.groups + 8 * lane(), sum);
    warp_sync();
    if (lane() != 0) return;
    if (share > 0.0) {
        double total = 0.0;
        for (int i = 0; i < GROUPS; i++) total += lds_d(s.groups + 8 * i);
        target = share * total * (1.0 - 0x1p-23);
    }
    int group = reach(GROUPS, target, above, [&](int i) { return lds_d(s.groups + 8 * i); });
    int bin = each * group + reach(each, target, above, [&](int i) {
        int bin = each * group + i;
        return amount<MASS>(s, bin, prefix | (u32)bin << shift);
    });
    sts_d(s.found, target);
    sts_d(s.found + 8, above);
    sts_d(s.found + 16, amount<MASS>(s, bin, prefix | (u32)bin << shift));
    sts_v2(s.found + 24, {(u32)bin, lds_u(s.bins + 4 * bin)});
}

// The m-th id, from 1, whose key is `wanted`. Each warp has a run of the ids. What was found before is overwritten once all
// threads are here.
template <class Key> DEV int nth(const Shared &s, const float *row, int n, u32 wanted, int m, Key key) {
    int run = 32 * div_up(n, 32 * WARPS), begin = warp() * run, end = min_i(begin + run, n);
    if (tid() < WARPS) sts_u(s.warps + 4 * tid(), 0);
    bar_sync();
    u32 count = 0;
    for (int id = begin + lane(); id < end; id += 32) count += key(id, ldg_f(row + id)) == wanted;
    if (count > 0) atoms_add(s.warps + 4 * warp(), count);
    bar_sync();
    int before = 0;
    for (int w = 0; w < warp(); w++) before += (int)lds_u(s.warps + 4 * w);
    if (before < m && m <= before + (int)lds_u(s.warps + 4 * warp())) {
        for (int at = begin; before < m; at += 32) {
            int id = at + lane();
            bool same = id < end && key(id, ldg_f(row + id)) == wanted;
            u32 mask = vote_mask(same);
            if (same && before + popc(mask & ((1u << lane()) - 1)) + 1 == m) sts_u(s.found, (u32)id);
            before += popc(mask);
        }
    }
    bar_sync();
    return (int)lds_u(s.found);
}

// The smallest set of largest keys that comes to `target`: so many, or with MASS that share of the sum of the floats whose
// bits the keys are; of equal keys the lowest ids. key(id, x) is that of a logit.
template <bool MASS, class Key> DEV Cut cut_at(const Shared &s, const float *row, int n, double target, Key key) {
    u32 prefix = 0, known = 0; // bits of the least key, and which they are
    double above = 0.0, share = MASS ? target : 0.0;
    for (int shift = 21;; shift = max_i(shift - 11, 0)) {
        for (int i = tid(); i < 3 * BINS; i += THREADS) sts_u(s.bins + 4 * i, 0);
        bar_sync();
        each(row, n, [&](int id, float x) {
            u32 k = key(id, x);
            if (k == 0 || (k & known) != prefix) return;
            u32 bin = s.bins + 4 * ((k & ~known) >> shift), low = k & ((1u << shift) - 1);
            atoms_add(bin, 1);
            if (!MASS || low == 0) return;
            u32 sum = atoms_add(bin + 4 * BINS, low);
            if (sum + low < sum) atoms_add(bin + 8 * BINS, 1);
        });
        bar_sync();
        if (warp() == 0) find<MASS>(s, prefix, shift, above, target, share);
        bar_sync();
        target = lds_d(s.found), above = lds_d(s.found + 8), share = 0.0;
        v2 found = lds_v2(s.found + 24);
        prefix |= found.x << shift, known = ~0u << shift;
        int count = (int)found.y;
        if (count == 1 || above + lds_d(s.found + 16) == target) return {prefix, ALL_IDS}; // the whole bin is needed
        if (shift > 0) continue;
        double unit = MASS ? (double)bits_f(prefix) : 1.0;
        int needed = (int)((target - above) / unit);
        if (above + needed * unit < target) needed++;
        if (needed >= count) return {prefix, ALL_IDS};
        return {prefix, nth(s, row, n, prefix, max_i(needed, 1), key)};
    }
}
