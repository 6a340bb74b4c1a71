// Nested affine linear, vector kernels: a few rows of x against a stream of packed blocks.
//
// Integers up to the end of a group of 256 columns: sums of codes by x, times the scales of their inner groups, added
// up (below 2^28). Then as in affine_rows.cpp, a slab being one group: part = scale * sum, with minima
// part = fma(minimum, sum of factors by sums of x, part); acc = fma(part, scale_x, acc); then bias. The tile kernel
// keeps the same order.
#include "kernels.h"
#include "row_outputs.h"

namespace qwenkit::QWENKIT_LANES {
namespace {

constexpr int most_rows = lanes == 16 ? 4 : 2;

// Blocks read side by side: as many as their sums leave registers for.
constexpr int streams(int rows) { return lanes == 16 ? (rows == 1 ? 4 : rows == 2 ? 2 : 1) : rows == 1 ? 2 : 1; }

// R rows of x by S blocks.
template <int S, int R, int BITS, int INNER, bool MINIMA>
void blocks_nested(const AffineJob& job, int64_t m, int64_t block) {
    constexpr int inners = int(nested_group) / INNER, middle = 1 << (BITS - 1);
    constexpr int unit_columns = BITS == 4 ? 8 : 16, unit_lines = BITS == 4 ? 1 : 3;
    const AffineLayout& w = job.layout;
    const int64_t apart = w.block_bytes, padded = w.padded_columns(), sums = w.sums();
    const uint8_t* p = job.packed + block * apart;
    const int8_t* x = job.codes + m * padded;
    V acc[S][R][parts];
    for (int s = 0; s < S; s++)
        for (int r = 0; r < R; r++)
            for (int h = 0; h < parts; h++) acc[s][r][h] = zero();
    for (int64_t g = 0; g < w.groups; g++, p += w.group_bytes) {
        I total[S][R][parts], low[S][R][parts];
        for (int s = 0; s < S; s++)
            for (int r = 0; r < R; r++)
                for (int h = 0; h < parts; h++) total[s][r][h] = low[s][r][h] = izero();
        const uint8_t* code = p + w.head_bytes();
        const int64_t ahead = fetch_ahead(w, g, S);
        for (int i = 0; i < inners; i++) {
            I dot[S][R][parts];
            for (int r = 0; r < R; r++) {
                const int32_t sum = job.sums[(m + r) * sums + g * inners + i];
                for (int s = 0; s < S; s++)
                    for (int h = 0; h < parts; h++) {
                        dot[s][r][h] = MINIMA ? izero() : iset(-middle * sum);
                        if constexpr (MINIMA) {
                            const I factor = widen(p + s * apart + (inners + i) * 16 + h * lanes);
                            low[s][r][h] = iadd(low[s][r][h], imul(factor, iset(sum)));
                        }
                    }
            }
            auto four_columns = [&](int s, int h, I codes, const int8_t* at) {
                for (int r = 0; r < R; r++) {
                    int32_t four;
                    __builtin_memcpy(&four, at + r * padded, 4);
                    dot[s][r][h] = dot4(dot[s][r][h], codes, iset(four));
                }
            };
#pragma GCC unroll 4
            for (int unit = 0; unit < INNER / unit_columns; unit++, code += unit_lines * 64, x += unit_columns)
                for (int s = 0; s < S; s++) {
                    const uint8_t* lines = code + s * apart;
                    for (int line = 0; line < unit_lines; line++) fetch(lines + line * 64 + ahead);
                    for (int h = 0; h < parts; h++) {
                        const I first = iload(lines + h * lanes * 4);
                        if constexpr (BITS == 4) {
                            four_columns(s, h, low_nibbles(first), x);
                            four_columns(s, h, high_nibbles(first), x + 4);
                        } else {
                            const I second = iload(lines + 64 + h * lanes * 4), upper = iload(lines + 128 + h * lanes * 4);
                            const I pair = iset(0x30303030);  // where the upper two bits of a code belong
                            four_columns(s, h, ior(low_nibbles(first), iand(left<4>(upper), pair)), x);
                            four_columns(s, h, ior(high_nibbles(first), iand(left<2>(upper), pair)), x + 4);
                            four_columns(s, h, ior(low_nibbles(second), iand(upper, pair)), x + 8);
                            four_columns(s, h, ior(high_nibbles(second), iand(right<2>(upper), pair)), x + 12);
                        }
                    }
                }
            for (int s = 0; s < S; s++)
                for (int h = 0; h < parts; h++) {
                    const I scale = widen(reinterpret_cast<const int8_t*>(p) + s * apart + i * 16 + h * lanes);
                    for (int r = 0; r < R; r++) total[s][r][h] = iadd(total[s][r][h], imul(dot[s][r][h], scale));
                }
        }
        for (int s = 0; s < S; s++) {
            const uint8_t* head = p + s * apart;
            for (int64_t at = 0; at < w.head_bytes(); at += 64) fetch(head + at + ahead);
            const f16* scales = reinterpret_cast<const f16*>(head + inners * (MINIMA ? 32 : 16));
            for (int h = 0; h < parts; h++)
                for (int r = 0; r < R; r++) {
                    V part = mul(load(scales + h * lanes), to_float(total[s][r][h]));
                    if constexpr (MINIMA) part = fma(load(scales + 16 + h * lanes), to_float(low[s][r][h]), part);
                    acc[s][r][h] = fma(part, set(job.scales[(m + r) * w.slabs() + g]), acc[s][r][h]);
                }
        }
    }
    for (int s = 0; s < S; s++)
        for (int r = 0; r < R; r++) write(job, m + r, block + s, acc[s][r]);
}

using Blocks = void (*)(const AffineJob&, int64_t, int64_t);

template <int S, int R, int BITS>
Blocks choose_form(const AffineLayout& w) {
    const bool minima = w.zeros == Zeros::minima;
    if (w.inner == 16) return minima ? blocks_nested<S, R, BITS, 16, true> : blocks_nested<S, R, BITS, 16, false>;
    return minima ? blocks_nested<S, R, BITS, 32, true> : blocks_nested<S, R, BITS, 32, false>;
}

template <int S, int R>
Blocks choose(const AffineLayout& w) {
    return w.bits == 4 ? choose_form<S, R, 4>(w) : choose_form<S, R, 6>(w);
}

template <int R>
void pass(const AffineJob& job, int64_t m, int64_t block, int64_t last_block) {
    constexpr int together = streams(R);
    const Blocks some = choose<together, R>(job.layout), one = choose<1, R>(job.layout);
    for (; block + together <= last_block; block += together) some(job, m, block);
    for (; block < last_block; block++) one(job, m, block);
}

}  // namespace

void nested_int8(const AffineJob& job, int64_t first, int64_t last) {
    void (*const by_rows[])(const AffineJob&, int64_t, int64_t, int64_t) = {
        pass<1>, pass<2>,
#if defined(__AVX512F__)
        pass<3>, pass<4>,
#endif
    };
    for (int64_t m = 0; m < job.count; m += most_rows) {
        const int64_t left = job.count - m;
        by_rows[(left < most_rows ? left : most_rows) - 1](job, m, first, last);
    }
}

}  // namespace qwenkit::QWENKIT_LANES
