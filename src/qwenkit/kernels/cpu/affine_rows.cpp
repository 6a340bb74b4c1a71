// Affine linear, vector kernels: a few rows of x against a stream of packed blocks (decode, small batches).
//
// One row is bound by memory: 16 output rows a vector, codes used as they lie, four blocks read side by side,
// each prefetched 2 KB ahead (measured with two threads: 4 streams best of 1, 2, 4; 2 KB best of 1 to 8).
// Float order: groups from first to last, acc = fma(scale_w * scale_x, dot, acc), then bias. The tile
// kernels keep the same order, so a row of x gives the same bits alone and in any batch.
#include "kernels.h"
#include "lanes.h"

namespace qwenkit::QWENKIT_LANES {
namespace {

constexpr int parts = 16 / lanes;  // vectors a block of 16 output rows takes
constexpr int most_rows = lanes == 16 ? 8 : 4;
constexpr int prefetch_ahead = 2048;
constexpr int streams = lanes == 16 ? 4 : 2;  // blocks one row of x reads side by side

template <class T>
void write_block(const AffineJob& job, int64_t m, int64_t block, const V* acc) {
    const int64_t first = block * 16;
    T* y = static_cast<T*>(job.y) + m * job.layout.rows + first;
    for (int h = 0; h < parts; h++) {
        const int64_t left = job.layout.rows - first - h * lanes;
        if (left <= 0) break;
        V v = acc[h];
        if (left >= lanes) {
            if (job.bias) v = add(v, load(job.bias + first + h * lanes));
            store(y + h * lanes, v);
        } else {
            if (job.bias) v = add(v, load_part(job.bias + first + h * lanes, left));
            store_part(y + h * lanes, v, left);
        }
    }
}

void write(const AffineJob& job, int64_t m, int64_t block, const V* acc) {
    if (job.y_type == Dtype::f32) write_block<float>(job, m, block, acc);
    else if (job.y_type == Dtype::bf16) write_block<bf16>(job, m, block, acc);
    else write_block<f16>(job, m, block, acc);
}

template <int R, int BITS, Zeros Z>
void block_int8(const AffineJob& job, int64_t m, int64_t block) {
    constexpr int chains = R == 1 ? 4 : R <= 3 ? 2 : 1;
    constexpr int middle = BITS == 4 ? 8 : 128, shift = BITS == 8 ? code8_shift : 0;
    const AffineLayout& w = job.layout;
    const uint8_t* p = job.packed + block * w.block_bytes;
    V acc[R][parts];
    for (int r = 0; r < R; r++)
        for (int h = 0; h < parts; h++) acc[r][h] = zero();
    const int64_t lines = w.code_bytes / 64, groups = w.groups, padded = w.padded_columns();
    const int8_t* x = job.codes + m * padded;
    for (int64_t g = 0; g < groups; g++, p += w.group_bytes, x += w.group) {
        I dot[R][parts][chains];
        for (int r = 0; r < R; r++)
            for (int h = 0; h < parts; h++)
                for (int c = 0; c < chains; c++) dot[r][h][c] = izero();
        const uint8_t* code = p;
        constexpr int per_turn = chains == 4 ? (BITS == 4 ? 2 : 4) : (BITS == 4 ? 1 : 2);
        for (int64_t line = 0, k = 0; line < lines; line += per_turn) {
#pragma GCC unroll 4
            for (int u = 0; u < per_turn; u++, code += 64) {
                _mm_prefetch(reinterpret_cast<const char*>(code) + prefetch_ahead, _MM_HINT_T0);
                for (int h = 0; h < parts; h++) {
                    const I v = iload(code + h * lanes * 4);
                    for (int r = 0; r < R; r++) {
                        int32_t four;
                        __builtin_memcpy(&four, x + r * padded + k, 4);
                        if constexpr (BITS == 4) {
                            dot[r][h][2 * u % chains] = dot4(dot[r][h][2 * u % chains], low_nibbles(v), iset(four));
                            __builtin_memcpy(&four, x + r * padded + k + 4, 4);
                            constexpr int next = chains > 1;
                            dot[r][h][2 * u % chains + next] =
                                dot4(dot[r][h][2 * u % chains + next], high_nibbles(v), iset(four));
                        } else {
                            dot[r][h][u % chains] = dot8bit(dot[r][h][u % chains], v, iset(four));
                        }
                    }
                }
                k += BITS == 4 ? 8 : 4;
            }
        }
        const uint8_t* tail = p + w.code_bytes;
        _mm_prefetch(reinterpret_cast<const char*>(tail) + prefetch_ahead, _MM_HINT_T0);
        for (int h = 0; h < parts; h++) {
            const V scale = load(reinterpret_cast<const f16*>(tail) + h * lanes);
            for (int r = 0; r < R; r++) {
                const int64_t at = (m + r) * groups + g;
                I d = dot[r][h][0];
                for (int c = 1; c < chains; c++) d = iadd(d, dot[r][h][c]);
                if constexpr (Z == Zeros::none) {
                    if constexpr (middle != shift) d = iadd(d, iset((shift - middle) * job.sums[at]));
                } else if constexpr (Z == Zeros::points) {
                    d = isub(d, imul(isub(widen(tail + 32 + h * lanes), iset(shift)), iset(job.sums[at])));
                }
                acc[r][h] = fma(mul(scale, set(job.scales[at])), to_float(d), acc[r][h]);
                if constexpr (Z == Zeros::minima)
                    acc[r][h] = fma(load(reinterpret_cast<const f16*>(tail + 32) + h * lanes),
                                    set(job.offsets[at]), acc[r][h]);
            }
        }
    }
    for (int r = 0; r < R; r++) write(job, m + r, block, acc[r]);
}

// One row of x and several blocks at once: a memory stream each. One stream a thread leaves a fifth of the
// bandwidth unused when all threads read.
template <int S, int BITS, Zeros Z>
void streams_int8(const AffineJob& job, int64_t m, int64_t block) {
    constexpr int chains = BITS == 4 ? 2 : 1;
    constexpr int middle = BITS == 4 ? 8 : 128, shift = BITS == 8 ? code8_shift : 0;
    const AffineLayout& w = job.layout;
    const int64_t lines = w.code_bytes / 64, groups = w.groups, apart = w.block_bytes;
    const uint8_t* p = job.packed + block * apart;
    const int8_t* x = job.codes + m * w.padded_columns();
    V acc[S][parts];
    for (int s = 0; s < S; s++)
        for (int h = 0; h < parts; h++) acc[s][h] = zero();
    for (int64_t g = 0; g < groups; g++, p += w.group_bytes, x += w.group) {
        I dot[S][parts][chains];
        for (int s = 0; s < S; s++)
            for (int h = 0; h < parts; h++)
                for (int c = 0; c < chains; c++) dot[s][h][c] = izero();
        for (int64_t line = 0; line < lines; line++) {
            int32_t four, next;
            __builtin_memcpy(&four, x + line * (BITS == 4 ? 8 : 4), 4);
            if constexpr (BITS == 4) __builtin_memcpy(&next, x + line * 8 + 4, 4);
            for (int s = 0; s < S; s++) {
                const uint8_t* code = p + s * apart + line * 64;
                _mm_prefetch(reinterpret_cast<const char*>(code) + prefetch_ahead, _MM_HINT_T0);
                for (int h = 0; h < parts; h++) {
                    const I v = iload(code + h * lanes * 4);
                    if constexpr (BITS == 4) {
                        dot[s][h][0] = dot4(dot[s][h][0], low_nibbles(v), iset(four));
                        dot[s][h][1] = dot4(dot[s][h][1], high_nibbles(v), iset(next));
                    } else {
                        dot[s][h][0] = dot8bit(dot[s][h][0], v, iset(four));
                    }
                }
            }
        }
        const int64_t at = m * groups + g;
        const V x_scale = set(job.scales[at]);
        for (int s = 0; s < S; s++) {
            const uint8_t* tail = p + s * apart + w.code_bytes;
            _mm_prefetch(reinterpret_cast<const char*>(tail) + prefetch_ahead, _MM_HINT_T0);
            for (int h = 0; h < parts; h++) {
                I d = dot[s][h][0];
                if constexpr (chains == 2) d = iadd(d, dot[s][h][1]);
                if constexpr (Z == Zeros::none) {
                    if constexpr (middle != shift) d = iadd(d, iset((shift - middle) * job.sums[at]));
                } else if constexpr (Z == Zeros::points) {
                    d = isub(d, imul(isub(widen(tail + 32 + h * lanes), iset(shift)), iset(job.sums[at])));
                }
                const V scale = load(reinterpret_cast<const f16*>(tail) + h * lanes);
                acc[s][h] = fma(mul(scale, x_scale), to_float(d), acc[s][h]);
                if constexpr (Z == Zeros::minima)
                    acc[s][h] = fma(load(reinterpret_cast<const f16*>(tail + 32) + h * lanes), set(job.offsets[at]),
                                    acc[s][h]);
            }
        }
    }
    for (int s = 0; s < S; s++) write(job, m, block + s, acc[s]);
}

// 16-bit mode without tiles: codes widened to float, products of the unrounded activations.
template <int R, int BITS, Zeros Z>
void block_exact(const AffineJob& job, int64_t m, int64_t block) {
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
                    const V q = to_float(isub(iand(code, iset(255)), point));
                    for (int r = 0; r < R; r++) dot[r][i & 1] = fma(q, set(x[r * padded + k + i]), dot[r][i & 1]);
                };
                one(v, 0);
                one(right<8>(v), 1);
                one(right<16>(v), 2);
                one(right<24>(v), 3);
            };
            for (int64_t line = 0; line < lines; line++) {
                const uint8_t* code = p + line * 64 + h * lanes * 4;
                _mm_prefetch(reinterpret_cast<const char*>(code) + prefetch_ahead, _MM_HINT_T0);
                const I v = iload(code);
                if constexpr (BITS == 4) {
                    four_columns(low_nibbles(v), line * 8);
                    four_columns(high_nibbles(v), line * 8 + 4);
                } else {
                    four_columns(v, line * 4);
                }
            }
            const V scale = load(reinterpret_cast<const f16*>(tail) + h * lanes);
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

using Block = void (*)(const AffineJob&, int64_t, int64_t);

template <bool exact, int R>
Block choose(const AffineLayout& w) {
#define QWENKIT_CASE(BITS, Z) \
    if (w.bits == BITS && w.zeros == Z) return exact ? block_exact<R, BITS, Z> : block_int8<R, BITS, Z>
    QWENKIT_CASE(4, Zeros::none);
    QWENKIT_CASE(4, Zeros::points);
    QWENKIT_CASE(4, Zeros::minima);
    QWENKIT_CASE(8, Zeros::none);
    return exact ? block_exact<R, 8, Zeros::points> : block_int8<R, 8, Zeros::points>;
#undef QWENKIT_CASE
}

Block choose_streams(const AffineLayout& w) {
    if (w.bits == 4 && w.zeros == Zeros::none) return streams_int8<streams, 4, Zeros::none>;
    if (w.bits == 4 && w.zeros == Zeros::points) return streams_int8<streams, 4, Zeros::points>;
    if (w.bits == 4) return streams_int8<streams, 4, Zeros::minima>;
    if (w.zeros == Zeros::none) return streams_int8<streams, 8, Zeros::none>;
    return streams_int8<streams, 8, Zeros::points>;
}

template <bool exact>
void rows(const AffineJob& job, int64_t first_block, int64_t last_block) {
    const Block by_rows[] = {
        choose<exact, 1>(job.layout), choose<exact, 2>(job.layout), choose<exact, 3>(job.layout),
        choose<exact, 4>(job.layout),
#if defined(__AVX512F__)
        choose<exact, 5>(job.layout), choose<exact, 6>(job.layout), choose<exact, 7>(job.layout),
        choose<exact, 8>(job.layout),
#endif
    };
    if (!exact && job.count == 1) {
        const Block together = choose_streams(job.layout);
        for (; first_block + streams <= last_block; first_block += streams) together(job, 0, first_block);
    }
    for (int64_t b = first_block; b < last_block; b++)
        for (int64_t m = 0; m < job.count; m += most_rows) {
            const int64_t left = job.count - m;
            by_rows[(left < most_rows ? left : most_rows) - 1](job, m, b);
        }
}

}  // namespace

void affine_int8(const AffineJob& job, int64_t first, int64_t last) { rows<false>(job, first, last); }
void affine_exact(const AffineJob& job, int64_t first, int64_t last) { rows<true>(job, first, last); }

}  // namespace qwenkit::QWENKIT_LANES
