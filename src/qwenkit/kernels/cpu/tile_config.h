// The shape of the AMX tiles, in force while an object lives, and how panels of results are written.
#pragma once
#include <immintrin.h>

#include "dtype.h"
#include "lanes.h"

namespace qwenkit::amx {

// Tiles from `first_weight` on hold columns of the weight. Those before hold sums or rows of x: by default 0-3 are
// sums, 4 and 5 rows of x, 6 and 7 weights; sums have as many rows, and rows of 64 bytes. `other_bytes`: of the rows
// in tile 5, which then goes with 7, and 4 with 6.
class TileConfig {
  public:
    TileConfig(int x_rows, int row_bytes, int first_weight = 6, int other_bytes = 0) {
        struct alignas(64) {
            uint8_t palette = 1, start_row = 0, reserved[14] = {};
            uint16_t row_bytes[16] = {};
            uint8_t rows[16] = {};
        } shape;
        for (int i = 0; i < 8; i++) {
            const int bytes = i % 2 && other_bytes ? other_bytes : row_bytes;
            shape.row_bytes[i] = uint16_t(i == 4 || i == 5 ? bytes : 64);
            shape.rows[i] = uint8_t(i >= first_weight ? bytes / 4 : x_rows);
        }
        // GCC 12 believes only the first 8 bytes are read and drops the other stores; without this barrier
        // the configuration is garbage and the process dies at the first tile instruction.
        __asm__ volatile("" ::"r"(&shape) : "memory");
        _tile_loadconfig(&shape);
    }
    ~TileConfig() { _tile_release(); }
    TileConfig(const TileConfig&) = delete;
    TileConfig& operator=(const TileConfig&) = delete;
};

template <class T>
inline void write_row(const float* sums, const float* bias, T* y, int64_t left) {
    using namespace QWENKIT_LANES;
    for (int64_t n = 0; n < 32 && n < left; n += 16) {
        V v = load(sums + n);
        if (left - n >= 16) {
            if (bias) v = add(v, load(bias + n));
            store(y + n, v);
        } else {
            if (bias) v = add(v, load_part(bias + n, left - n));
            store_part(y + n, v, left - n);
        }
    }
}

// 32 sums to bf16 in one line: as lanes.h rounds, but the NaN test is a branch that is never taken.
inline void write_whole_row(const float* sums, const float* bias, bf16* y, bool past_cache) {
    using namespace QWENKIT_LANES;
    V a = load(sums), b = load(sums + 16);
    if (bias) {
        a = add(a, load(bias));
        b = add(b, load(bias + 16));
    }
    if (__builtin_expect(_mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q) | _mm512_cmp_ps_mask(b, b, _CMP_UNORD_Q), 0)) {
        store(y, a);
        store(y + 16, b);
        return;
    }
    auto rounded_up = [](V v) {
        const I u = bits(v);
        return iadd(iadd(u, iset(0x7fff)), iand(right<16>(u), iset(1)));
    };
    alignas(64) static constexpr uint16_t high_words[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21,
                                                            23, 25, 27, 29, 31, 33, 35, 37, 39, 41, 43,
                                                            45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
    const I line = _mm512_permutex2var_epi16(rounded_up(a), _mm512_load_si512(high_words), rounded_up(b));
    if (past_cache && reinterpret_cast<uintptr_t>(y) % 64 == 0) _mm512_stream_si512(reinterpret_cast<I*>(y), line);
    else istore(y, line);
}

// 32 sums, or the `left` that are left of a row, plus bias, rounded to the type of y and written from element `at`
// on. past_cache: whole lines go to memory without being read first; the caller fences.
inline void write_outputs(const float* sums, const float* bias, void* y, Dtype type, int64_t at, int64_t left,
                          bool past_cache) {
    if (type == Dtype::f32) write_row(sums, bias, static_cast<float*>(y) + at, left);
    else if (type == Dtype::bf16 && left >= 32) write_whole_row(sums, bias, static_cast<bf16*>(y) + at, past_cache);
    else if (type == Dtype::bf16) write_row(sums, bias, static_cast<bf16*>(y) + at, left);
    else write_row(sums, bias, static_cast<f16*>(y) + at, left);
}

}  // namespace qwenkit::amx
