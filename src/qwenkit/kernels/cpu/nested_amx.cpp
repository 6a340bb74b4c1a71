// Nested affine linear on AMX tiles, for a batch or a prompt.
//
// A weight's code times the integer scale of its inner group has up to 14 bits: it is split into two bytes,
// 256 high + low, whose products with x are added up over the whole group of 256 columns. What minima take away is a
// product too, of their factors and the sums of x, in bf16 pairs that hold both exactly. So the sums of a group are
// integers, the same as those of the row kernels, and scaled once.
// 16 rows of x meet the four tiles of 32 outputs at a time, so that each comes from L2 once. As in affine_amx.cpp the
// sums are stored and scaled between the products of the rows that follow.
#include <immintrin.h>

#include <new>

#include "kernels.h"
#include "nested_unpack.h"
#include "tile_panel.h"

namespace qwenkit::amx {
namespace {

struct Scratch {
    alignas(64) int8_t weight[4 * 4 * 1024];  // tiles [64 columns][high and low][block]
    alignas(64) uint16_t minima[2 * 512];     // tiles [block] of the factors, each twice
    alignas(64) int32_t sums[2][6 * 256];     // tiles of the last two products: high, low, minima (float); [block]
    alignas(64) float scales[4][2][32];       // of the last four groups: scales, minima of 32 outputs
    alignas(64) float total[most_count * 32];
};

Scratch& scratch() {
    // Kept: too large for a stack that Python's threads may have made small.
    static thread_local struct Owner {
        Scratch* p = new (std::align_val_t(4096)) Scratch();
        ~Owner() { operator delete(p, std::align_val_t(4096)); }
    } owner;
    return *owner.p;
}

// 16 rows of x by 32 outputs whose sums wait to be scaled.
struct Sums {
    const int32_t* tiles;
    const float* scales;                   // of the outputs; the minima follow
    const float* x_scale;                  // of the rows
    float* total;
    int64_t out_row = -1, out_column = 0;  // where the totals go once these are added; -1: not yet
    __mmask16 keep = 0;                    // 0: `total` holds nothing yet
};

template <bool MINIMA>
[[gnu::always_inline]] inline void scale_row(const Sums& s, int r) {
    const __m512 x_scale = _mm512_set1_ps(s.x_scale[r]);
#pragma GCC unroll 2
    for (int block = 0; block < 2; block++) {
        const int32_t* sums = s.tiles + block * 256 + r * 16;
        const __m512i high = _mm512_load_si512(sums), low = _mm512_load_si512(sums + 512);
        const __m512i both = _mm512_add_epi32(_mm512_slli_epi32(high, 8), low);
        __m512 part = _mm512_mul_ps(_mm512_load_ps(s.scales + block * 16), _mm512_cvtepi32_ps(both));
        if constexpr (MINIMA)
            part = _mm512_fmadd_ps(_mm512_load_ps(s.scales + 32 + block * 16), _mm512_load_ps(sums + 1024), part);
        float* t = s.total + r * 32 + block * 16;
        _mm512_store_ps(t, _mm512_fmadd_ps(part, x_scale, _mm512_maskz_load_ps(s.keep, t)));
    }
}

// The products of 16 rows of x and a group. Each sum tile of the rows before, `last`, is stored just before its first
// new product, and a row of sums is scaled after each product: of `last` once it is stored, and what was left of the
// rows before those. PRODUCTS: false at the end of the pipeline.
template <bool MINIMA, bool PRODUCTS>
[[gnu::always_inline]] inline void multiply_group(const int8_t* x, const int8_t* x_sums, const Scratch& s,
                                                  int32_t* stored, const Sums& older, const Sums& last) {
    if constexpr (MINIMA) {
        _tile_stored(4, stored + 4 * 256, 64);
        _tile_stored(5, stored + 5 * 256, 64);
        if constexpr (PRODUCTS) {
            _tile_zero(4);
            _tile_zero(5);
            _tile_loadd(6, x_sums, 64);
            _tile_loadd(7, s.minima, 64);
            _tile_dpbf16ps(4, 6, 7);
            _tile_loadd(7, s.minima + 512, 64);
            _tile_dpbf16ps(5, 6, 7);
        }
    }
#define QWENKIT_STEP(T)                                            \
    if (k == 0) {                                                  \
        _tile_stored(T, stored + T * 256, 64);                     \
        if constexpr (PRODUCTS) _tile_zero(T);                     \
    }                                                              \
    if constexpr (PRODUCTS) {                                      \
        _tile_loadd(7, s.weight + (k * 4 + T) * 1024, 64);         \
        if constexpr (T < 2) _tile_dpbssd(T, 6, 7);                \
        else _tile_dpbsud(T, 6, 7);                                \
    }                                                              \
    if (k == 0) scale_row<MINIMA>(older, 12 + T);                  \
    else scale_row<MINIMA>(last, k * 4 - 4 + T);
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
        if constexpr (PRODUCTS) _tile_stream_loadd(6, x + k * 2048, 64);
        QWENKIT_STEP(0)
        QWENKIT_STEP(1)
        QWENKIT_STEP(2)
        QWENKIT_STEP(3)
    }
#undef QWENKIT_STEP
}

template <bool MINIMA>
void multiply(const AffineJob& job, int64_t first_panel, int64_t last_panel) {
    const AffineLayout& w = job.layout;
    Scratch& s = scratch();
    const UnpackNested unpack = choose_unpack_nested(w);
    const int64_t shares = (job.count + 15) / 16;
    const auto* x_sums = reinterpret_cast<const int8_t*>(job.halves);
    TileConfig config(job.count < 16 ? int(job.count) : 16, 64, 7);

    auto finish = [&](const Sums& sums) {
        if (sums.out_row >= 0) write_rows(job, sums.total - sums.out_row * 32, sums.out_row, 16, sums.out_column);
    };
    __builtin_memset(s.scales[3], 0, sizeof s.scales[3]);
    Sums older{s.sums[0], s.scales[3][0], job.scales, s.total}, last = older;
    int64_t turn = 0, units = 0;
    for (int64_t panel = first_panel; panel < last_panel; panel++) {
        const uint8_t* first = job.packed + panel * 2 * w.block_bytes;
        const bool two_blocks = panel * 2 + 1 < w.blocks;  // an odd last block: computed twice, stored once
        const bool next_panel = (panel + 1) * 2 + 1 < w.blocks;
        for (int64_t g = 0; g < w.groups; g++, turn++) {
            const uint8_t* block[2] = {first + g * w.group_bytes, first + g * w.group_bytes};
            if (two_blocks) block[1] += w.block_bytes;
            for (int h = 0; h < 2; h++)
                unpack(block[h], s.weight + h * 1024, s.minima + h * 512, s.scales[turn % 4][0] + h * 16);
            __asm__ volatile("" ::: "memory");  // tile loads do not tell the compiler what they read
            const bool more = g + 1 < w.groups;
            // The next columns come from memory while these are multiplied, a share with each 16 rows of x.
            const int64_t ahead_bytes = more || next_panel ? round_up((w.group_bytes + shares - 1) / shares, 64) : 0;
            for (int h = 0; h < 2; h++) block[h] += more ? w.group_bytes : 2 * w.block_bytes - g * w.group_bytes;
            // 16 rows or fewer begin the next panel before the totals of this one are written: two places in turn.
            for (int64_t m = 0; m < shares; m++, units++) {
                const int64_t tile = m / 2 * w.groups + g, half = m % 2;
                Sums now{s.sums[units % 2], s.scales[turn % 4][0], job.scales + tile * 32 + half * 16, s.total + (shares == 1 ? panel % 2 : m) * 512};
                now.keep = g ? 0xffff : 0;
                now.out_row = more ? -1 : m * 16;
                now.out_column = panel * 32;
                if (!more && !job.past_cache) fetch_rows(job, m * 16, m * 16 + 16, panel * 32);
                for (int64_t i = 0; i < ahead_bytes; i += 64) {
                    _mm_prefetch(reinterpret_cast<const char*>(block[0] + m * ahead_bytes + i), _MM_HINT_T1);
                    _mm_prefetch(reinterpret_cast<const char*>(block[1] + m * ahead_bytes + i), _MM_HINT_T1);
                }
                multiply_group<MINIMA, true>(job.codes + tile * 8192 + half * 1024, x_sums + tile * 2048 + half * 1024, s,
                                             s.sums[1 - units % 2], older, last);
                finish(older);
                older = last;
                last = now;
            }
        }
    }
    // What is still in the pipeline.
    multiply_group<MINIMA, false>(nullptr, nullptr, s, s.sums[1 - units % 2], older, last);
    finish(older);
    for (int r = 12; r < 16; r++) scale_row<MINIMA>(last, r);
    finish(last);
    if (job.past_cache) _mm_sfence();
}

}  // namespace

void nested_int8(const AffineJob& job, int64_t first, int64_t last) {
    if (job.layout.zeros == Zeros::minima) multiply<true>(job, first, last);
    else multiply<false>(job, first, last);
}

}  // namespace qwenkit::amx
