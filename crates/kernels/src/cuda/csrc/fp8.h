// FP8 numbers, e4m3.
#pragma once

// Two pairs of e4m3 as bf16: even register from bytes 0 and 2, odd from 1 and 3. Exponent and mantissa move to where bf16
// has them, which leaves the value 2^120 too small, also of a subnormal; one exact product puts that right.
DEV void widen_fp8(u32 x, u32 &even, u32 &odd) {
    even = mul_bf16x2(((x << 8) & 0x80008000u) | ((x << 4) & 0x07f007f0u), 0x7b807b80u);
    odd = mul_bf16x2((x & 0x80008000u) | ((x >> 4) & 0x07f007f0u), 0x7b807b80u);
}
DEV float fp8_f(u8 x) { return bits_f(((u32)(x & 0x80) << 24) | ((u32)(x & 0x7f) << 20)) * bits_f(0x7b800000u); }
