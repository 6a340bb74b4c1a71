// Affine linear, vector kernels: a few rows of x against a stream of packed blocks (decode, small batches).
//
// A few rows are bound by memory: 16 output rows a vector, codes used as they lie, several blocks read side by
// side, each prefetched 2 KB ahead (measured with two threads, one row: 4 streams best of 1, 2, 4; 2 KB best
// of 1 to 8), the next block included. One stream a thread leaves a fifth of the bandwidth unused when all threads read.
// Float order: within a slab groups from first to last, part = fma(scale_w, dot, part); slabs from first to last,
// acc = fma(part, scale_x, acc); then bias. The tile kernels keep the same order, so a row of x gives the same
// bits alone and in any batch.
#include "kernels.h"
#include "row_outputs.h"

namespace qwenkit::QWENKIT_LANES {
namespace {

constexpr int most_rows = lanes == 16 ? 8 : 4;

// Blocks read side by side: as many as their sums leave registers for.
constexpr int streams(int rows) {
    return lanes == 16 ? (rows <= 2 ? 4 : rows <= 6 ? 2 : 1) : (rows == 1 ? 2 : 1);
}

// R rows of x by S blocks.
template <int S, int R, int BITS, Zeros Z>
void blocks_int8(const AffineJob& job, int64_t m, int64_t block) {
    // Sums apart for low and high nibbles where a sum would otherwise wait for the one before.
    constexpr int chains = BITS == 4 && S * R * parts <= 8 ? 2 : 1;
    constexpr int middle = BITS == 4 ? 8 : 128, shift = BITS == 8 ? code8_shift : 0;
    constexpr int columns = BITS == 4 ? 8 : 4;  // of a line
    constexpr bool eighths = BITS == 4 && Z == Zeros::points;
    const AffineLayout& w = job.layout;
    const int64_t lines = w.code_bytes / 64, groups = w.groups, apart = w.block_bytes, padded = w.padded_columns();
    const uint8_t* p = job.packed + block * apart;
    const int8_t* x = job.codes + m * padded;
    V acc[S][R][parts], part[S][R][parts];
    for (int s = 0; s < S; s++)
        for (int r = 0; r < R; r++)
            for (int h = 0; h < parts; h++) acc[s][r][h] = part[s][r][h] = zero();
    const int64_t slabs = w.slabs();
    for (int64_t g = 0; g < groups; g++, p += w.group_bytes, x += w.group) {
        const int64_t ahead = fetch_ahead(w, g, S);
        I dot[S][R][parts][chains];
        for (int s = 0; s < S; s++)
            for (int r = 0; r < R; r++)
                for (int h = 0; h < parts; h++)
                    for (int c = 0; c < chains; c++) dot[s][r][h][c] = izero();
        for (int64_t line = 0; line < lines; line++) {
            const int8_t* here = x + line * columns;
            for (int s = 0; s < S; s++) {
                const uint8_t* code = p + s * apart + line * 64;
                fetch(code + ahead);
                for (int h = 0; h < parts; h++) {
                    const I v = iload(code + h * lanes * 4);
                    for (int r = 0; r < R; r++) {
                        int32_t four;
                        __builtin_memcpy(&four, here + r * padded, 4);
                        if constexpr (BITS == 4) {
                            dot[s][r][h][0] = dot4(dot[s][r][h][0], low_nibbles(v), iset(four));
                            __builtin_memcpy(&four, here + r * padded + 4, 4);
                            dot[s][r][h][chains - 1] = dot4(dot[s][r][h][chains - 1], high_nibbles(v), iset(four));
                        } else {
                            dot[s][r][h][0] = dot8bit(dot[s][r][h][0], v, iset(four));
                        }
                    }
                }
            }
        }
        for (int s = 0; s < S; s++) {
            const uint8_t* tail = p + s * apart + w.code_bytes;
            fetch(tail + ahead);
            for (int h = 0; h < parts; h++) {
                V scale = load(reinterpret_cast<const f16*>(tail) + h * lanes);
                if constexpr (eighths) scale = mul(scale, set(eighth));
                for (int r = 0; r < R; r++) {
                    const int64_t at = (m + r) * groups + g;
                    I d = dot[s][r][h][0];
                    if constexpr (chains == 2) d = iadd(d, dot[s][r][h][1]);
                    if constexpr (Z == Zeros::none) {
                        if constexpr (middle != shift) d = iadd(d, iset((shift - middle) * job.sums[at]));
                    } else if constexpr (eighths) {
                        d = isub(left<3>(d), imul(widen(tail + 32 + h * lanes), iset(job.sums[at])));
                    } else if constexpr (Z == Zeros::points) {
                        d = isub(d, imul(isub(widen(tail + 32 + h * lanes), iset(shift)), iset(job.sums[at])));
                    }
                    part[s][r][h] = fma(scale, to_float(d), part[s][r][h]);
                    if constexpr (Z == Zeros::minima)
                        part[s][r][h] = fma(load(reinterpret_cast<const f16*>(tail + 32) + h * lanes),
                                            set(job.offsets[at]), part[s][r][h]);
                }
            }
        }
        if ((g + 1) % slab_groups && g + 1 < groups) continue;
        for (int s = 0; s < S; s++)
            for (int r = 0; r < R; r++)
                for (int h = 0; h < parts; h++) {
                    acc[s][r][h] = fma(part[s][r][h], set(job.scales[(m + r) * slabs + g / slab_groups]), acc[s][r][h]);
                    part[s][r][h] = zero();
                }
    }
    for (int s = 0; s < S; s++)
        for (int r = 0; r < R; r++) write(job, m + r, block + s, acc[s][r]);
}

// 16-bit mode without tiles: codes widened to float, products of the unrounded activations.
template <int R, int BITS, Zeros Z>
void block_exact(const AffineJob& job, int64_t m, int64_t block) {
    constexpr bool eighths = BITS == 4 && Z == Zeros::points;
    const AffineLayout& w = job.layout;
    const uint8_t* p = job.packed + block * w.block_bytes;
    const int64_t lines = w.code_bytes / 64, groups = w.groups, padded = w.padded_columns();
    V acc[R][parts];
    for (int r = 0; r < R; r++)
        for (int h = 0; h < parts; h++) acc[r][h] = zero();
    const float* x = job.floats + m * padded;
    for (int64_t g = 0; g < groups; g++, p += w.group_bytes, x += w.group) {
        const uint8_t* tail = p + w.code_bytes;
        for (int h = 0; h < parts; h++) {
            V dot[R][2];
            for (int r = 0; r < R; r++) dot[r][0] = dot[r][1] = zero();
            I point = iset(BITS == 4 ? 8 : 128);
            if constexpr (Z == Zeros::points) point = widen(tail + 32 + h * lanes);
            if constexpr (Z == Zeros::minima) point = izero();
            auto four_columns = [&](I v, int64_t k) {
                auto one = [&](I code, int i) {
                    code = iand(code, iset(255));
                    if constexpr (eighths) code = left<3>(code);
                    const V q = to_float(isub(code, point));
                    for (int r = 0; r < R; r++) dot[r][i & 1] = fma(q, set(x[r * padded + k + i]), dot[r][i & 1]);
                };
                one(v, 0);
                one(right<8>(v), 1);
                one(right<16>(v), 2);
                one(right<24>(v), 3);
            };
            for (int64_t line = 0; line < lines; line++) {
                const uint8_t* code = p + line * 64 + h * lanes * 4;
                fetch(code + prefetch_ahead);
                const I v = iload(code);
                if constexpr (BITS == 4) {
                    four_columns(low_nibbles(v), line * 8);
                    four_columns(high_nibbles(v), line * 8 + 4);
                } else {
                    four_columns(v, line * 4);
                }
            }
            V scale = load(reinterpret_cast<const f16*>(tail) + h * lanes);
            if constexpr (eighths) scale = mul(scale, set(eighth));
            for (int r = 0; r < R; r++) {
                acc[r][h] = fma(scale, add(dot[r][0], dot[r][1]), acc[r][h]);
                if constexpr (Z == Zeros::minima)
                    acc[r][h] = fma(load(reinterpret_cast<const f16*>(tail + 32) + h * lanes),
                                    set(job.offsets[(m + r) * groups + g]), acc[r][h]);
            }
        }
    }
    for (int r = 0; r < R; r++) write(job, m + r, block, acc[r]);
}

using Blocks = void (*)(const AffineJob&, int64_t, int64_t);

template <bool exact, int S, int R>
Blocks choose(const AffineLayout& w) {
#define QWENKIT_CASE(BITS, Z) \
    if (w.bits == BITS && w.zeros == Z) return exact ? block_exact<R, BITS, Z> : blocks_int8<S, R, BITS, Z>
    QWENKIT_CASE(4, Zeros::none);
    QWENKIT_CASE(4, Zeros::points);
    QWENKIT_CASE(4, Zeros::minima);
    QWENKIT_CASE(8, Zeros::none);
    return exact ? block_exact<R, 8, Zeros::points> : blocks_int8<S, R, 8, Zeros::points>;
#undef QWENKIT_CASE
}

template <bool exact, int R>
void pass(const AffineJob& job, int64_t m, int64_t block, int64_t last_block) {
    constexpr int together = exact ? 1 : streams(R);
    const Blocks some = choose<exact, together, R>(job.layout), one = choose<exact, 1, R>(job.layout);
    for (; block + together <= last_block; block += together) some(job, m, block);
    for (; block < last_block; block++) one(job, m, block);
}

template <bool exact>
void rows(const AffineJob& job, int64_t first_block, int64_t last_block) {
    void (*const by_rows[])(const AffineJob&, int64_t, int64_t, int64_t) = {
        pass<exact, 1>, pass<exact, 2>, pass<exact, 3>, pass<exact, 4>,
#if defined(__AVX512F__)
        pass<exact, 5>, pass<exact, 6>, pass<exact, 7>, pass<exact, 8>,
#endif
    };
    for (int64_t m = 0; m < job.count; m += most_rows) {
        const int64_t left = job.count - m;
        by_rows[(left < most_rows ? left : most_rows) - 1](job, m, first_block, last_block);
    }
}

}  // namespace

void affine_int8(const AffineJob& job, int64_t first, int64_t last) { rows<false>(job, first, last); }
void affine_exact(const AffineJob& job, int64_t first, int64_t last) { rows<true>(job, first, last); }

}  // namespace qwenkit::QWENKIT_LANES
