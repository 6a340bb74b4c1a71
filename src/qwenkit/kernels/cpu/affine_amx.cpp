// Affine linear on AMX tiles, for a batch or a prompt.
//
// Per panel of 32 output rows: some columns of the weight are unpacked to tiles that stay in L1 and meet all
// rows of x, 32 at a time; x comes from L2. Each group has its own scales, so the tile sums of a group are
// stored, scaled and added to float sums in memory. All of it is one pipeline from the first panel to the
// last: the sums of a group are stored between the products of the next, and the two groups of a slab are scaled
// at once between the products of the two after those, which halves the traffic of the float sums. Tile products
// block one of the two ports for float multiplications: 5 for two groups, as here, beat 6.
// 16-bit mode is the same with bf16 tiles: code - zero is exact in bf16, sums are float32.
#include <immintrin.h>

#include <cstdlib>
#include <new>

#include "kernels.h"
#include "tile_panel.h"
#include "tile_unpack.h"

namespace qwenkit::amx {
namespace {

enum class Product { s8s8, s8u8, halves };

constexpr int64_t columns_once = 256;  // unpacked at a time, kept in L1 beside the sums (512: slower)
constexpr int64_t most_groups = columns_once / 32;

struct Tails {  // of the unpacked groups, 32 outputs each
    alignas(64) float scale[most_groups * 32];
    alignas(64) float minimum[most_groups * 32];  // Zeros::minima
    alignas(64) int32_t point[most_groups * 32];  // unsigned codes: zero points
};

struct Scratch {
    alignas(64) int8_t weight[columns_once * 32 * 2];
    alignas(64) int32_t sums[4][4 * 256];      // tiles of the last four groups
    alignas(64) int32_t none[4 * 256] = {};    // the sums of a group that is not there
    Tails tails[4];                            // sums wait for up to two turns
    alignas(64) float total[most_count * 32];  // [block of 32 rows][row][32]
};

Scratch& scratch() {
    // 130 KB a thread, kept: too large for a stack that Python's threads may have made small.
    static thread_local struct Owner {
        Scratch* p = new (std::align_val_t(4096)) Scratch;
        ~Owner() { operator delete(p, std::align_val_t(4096)); }
    } owner;
    return *owner.p;
}

// Two groups of 32 rows of x by 32 outputs whose sums wait to be scaled.
struct Pair {
    const int32_t *first, *second;           // their sums
    const float *scale, *minimum;            // of the outputs, 32 a group
    const int32_t* point;
    const float* x_scale;                    // of the rows
    const float* x_offset;                   // of the rows, 32 a group
    const int32_t* x_sum;
    int64_t x_second;                        // from the first group's rows to the second's; 0: there is none
    float* total;
    int64_t out_panel = -1, out_column = 0;  // where the totals go once these are added; -1: not yet
    __mmask16 keep = 0;                      // 0: `total` holds nothing yet
};

// Adds rows [from, to) of one half (16) of a pair's outputs to the totals. Plain values, inlined: every tile
// store makes the compiler forget what memory holds, so what it needs has to be in registers.
template <Product P, bool MINIMA>
struct Column {
    __m512 scale_a, scale_b, minimum_a, minimum_b;
    __m512i point_a, point_b;

    [[gnu::always_inline]] Column(const Pair& p, int half) {
        scale_a = _mm512_load_ps(p.scale + half * 16);
        scale_b = _mm512_load_ps(p.scale + half * 16 + 32);
        if constexpr (MINIMA) {
            minimum_a = _mm512_load_ps(p.minimum + half * 16);
            minimum_b = _mm512_load_ps(p.minimum + half * 16 + 32);
        }
        if constexpr (P == Product::s8u8) {
            point_a = _mm512_load_si512(p.point + half * 16);
            point_b = _mm512_load_si512(p.point + half * 16 + 32);
        }
    }
};

template <Product P, bool FIRST, bool MINIMA>
[[gnu::always_inline]] inline __m512 scaled(__m512 part, const int32_t* sums, __m512 scale, __m512 minimum,
                                            __m512i point, const Pair& p, int64_t at) {
    __m512 f;
    if constexpr (P == Product::halves) {
        f = _mm512_load_ps(sums);
    } else {
        __m512i d = _mm512_load_si512(sums);
        if constexpr (P == Product::s8u8) d = _mm512_sub_epi32(d, _mm512_mullo_epi32(point, _mm512_set1_epi32(p.x_sum[at])));
        f = _mm512_cvtepi32_ps(d);
    }
    if constexpr (FIRST) part = _mm512_mul_ps(scale, f);
    else part = _mm512_fmadd_ps(scale, f, part);
    if constexpr (MINIMA) part = _mm512_fmadd_ps(minimum, _mm512_set1_ps(p.x_offset[at]), part);
    return part;
}

template <Product P, bool MINIMA>
[[gnu::always_inline]] inline void scale_rows(const Pair& p, const Column<P, MINIMA>& left,
                                              const Column<P, MINIMA>& right, int from, int to) {
#pragma GCC unroll 4
    for (int r = from; r < to; r++) {
        const int at = r / 16 * 512 + r % 16 * 16;
        __m512 a{}, b{};
        a = scaled<P, true, MINIMA>(a, p.first + at, left.scale_a, left.minimum_a, left.point_a, p, r);
        b = scaled<P, true, MINIMA>(b, p.first + at + 256, right.scale_a, right.minimum_a, right.point_a, p, r);
        a = scaled<P, false, MINIMA>(a, p.second + at, left.scale_b, left.minimum_b, left.point_b, p, r + p.x_second);
        b = scaled<P, false, MINIMA>(b, p.second + at + 256, right.scale_b, right.minimum_b, right.point_b, p,
                                     r + p.x_second);
        float* t = p.total + r * 32;
        const __m512 x = _mm512_set1_ps(p.x_scale[r]);
        _mm512_store_ps(t, _mm512_fmadd_ps(a, x, _mm512_maskz_load_ps(p.keep, t)));
        _mm512_store_ps(t + 16, _mm512_fmadd_ps(b, x, _mm512_maskz_load_ps(p.keep, t + 16)));
    }
}

#define QWENKIT_DP(C, A, B)                                              \
    if constexpr (P == Product::s8s8) { _tile_dpbssd(C, A, B); }         \
    else if constexpr (P == Product::s8u8) { _tile_dpbsud(C, A, B); }    \
    else { _tile_dpbf16ps(C, A, B); }

// The products of one group. Each sum tile of the group before is stored to `stored` just before its first
// new product, which hides the store (measured: 183 cycles a group of 128, 252 with all stores at the end),
// and half the rows of an older pair are scaled between the products. PRODUCTS: false where a panel has an
// odd number of groups: only the stores and the scaling.
// x is streamed: it comes from L2 once a panel and should not push the weight tiles out of L1.
template <Product P, int HALVES, int STEPS, bool MINIMA, bool PRODUCTS>
[[gnu::always_inline]] inline void group(const int8_t* x, int64_t row, const int8_t* weight, int64_t weight_tile,
                                         int32_t* stored, const Pair older, int first_row) {
    constexpr int turn = 4 / STEPS;  // rows to scale after each product
    const int64_t tile = 16 * row;
    const Column<P, MINIMA> left(older, 0), right(older, 1);
    int done = first_row;
    auto scale_some = [&]() __attribute__((always_inline)) {
        scale_rows<P, MINIMA>(older, left, right, done, done + turn);
        done += turn;
    };
#define QWENKIT_START(T)                         \
    if (k == 0) {                                \
        _tile_stored(T, stored + T * 256, 64);   \
        if constexpr (PRODUCTS) _tile_zero(T);   \
    }
#pragma GCC unroll 4
    for (int k = 0; k < STEPS; k++) {
        QWENKIT_START(0)
        if constexpr (PRODUCTS) {
            _tile_stream_loadd(4, x + k * 2 * tile, row);
            _tile_loadd(6, weight + k * 2 * weight_tile, 64);
            QWENKIT_DP(0, 4, 6)
        }
        scale_some();
        QWENKIT_START(1)
        if constexpr (PRODUCTS) {
            _tile_loadd(7, weight + (k * 2 + 1) * weight_tile, 64);
            QWENKIT_DP(1, 4, 7)
        }
        scale_some();
        if constexpr (HALVES == 2) {
            QWENKIT_START(2)
            if constexpr (PRODUCTS) {
                _tile_stream_loadd(5, x + (k * 2 + 1) * tile, row);
                QWENKIT_DP(2, 5, 6)
            }
            scale_some();
            QWENKIT_START(3)
            if constexpr (PRODUCTS) { QWENKIT_DP(3, 5, 7) }
            scale_some();
        }
    }
#undef QWENKIT_START
}

void load_tail(const AffineLayout& w, const uint8_t* tail, int64_t at, Tails& to) {
    const __m512 scale = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)tail));
    _mm512_store_ps(to.scale + at, w.eighths() ? _mm512_mul_ps(scale, _mm512_set1_ps(eighth)) : scale);
    if (w.zeros == Zeros::points)
        _mm512_store_si512(to.point + at, _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)(tail + 32))));
    if (w.zeros == Zeros::minima)
        _mm512_store_ps(to.minimum + at, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)(tail + 32))));
}

void clear_tail(int64_t at, Tails& to) {
    for (int64_t i = at; i < at + 32; i++) to.scale[i] = to.minimum[i] = 0, to.point[i] = 0;
}

// HALVES: 16-row tiles of x in a panel, 1 or 2. STEPS: tiles a group takes along its columns.
template <Product P, int HALVES, int STEPS, bool MINIMA>
void multiply(const AffineJob& job, int64_t first_panel, int64_t last_panel) {
    constexpr bool halves = P == Product::halves;
    const AffineLayout& w = job.layout;
    Scratch& s = scratch();
    const int64_t element = halves ? 2 : 1;
    const int64_t row = halves ? 64 : job.chunk_bytes();  // bytes of a tile's row
    const int64_t weight_tile = row / 4 * 64;             // lines of 4 bytes a row of x
    const int64_t weight_group = 2 * STEPS * weight_tile, x_group = 32 * w.group * element;
    const int64_t groups_once = columns_once / w.group;
    const int64_t shares = (job.count + 31) / 32;
    const Unpack unpack = choose_unpack(w, halves);
    const auto* all_x = halves ? reinterpret_cast<const int8_t*>(job.halves) : job.codes;
    // Fewer rows than a tile has: a shorter tile is a faster product.
    TileConfig config(job.count < 16 ? int(job.count) : 16, int(row));

    clear_tail(0, s.tails[3]);
    clear_tail(32, s.tails[3]);
    Pair older{s.none, s.none, s.tails[3].scale, s.tails[3].minimum, s.tails[3].point,
               job.scales, job.offsets, job.sums, 0, s.total};
    Pair last = older;
    int64_t turn = 0, pairs = 0;
    for (int64_t panel = first_panel; panel < last_panel; panel++) {
        const uint8_t* block[2] = {job.packed + panel * 2 * w.block_bytes, nullptr};
        const bool two_blocks = panel * 2 + 1 < w.blocks;
        block[1] = two_blocks ? block[0] + w.block_bytes : block[0];  // an odd last block: computed twice, stored once
        const bool next_panel = (panel + 1) * 2 + 1 < w.blocks;
        for (int64_t g0 = 0; g0 < w.groups; g0 += groups_once, turn++) {
            const int64_t groups = w.groups - g0 < groups_once ? w.groups - g0 : groups_once;
            Tails& tails = s.tails[turn % 4];
            for (int h = 0; h < 2; h++)
                for (int64_t g = 0; g < groups; g++) {
                    const uint8_t* p = block[h] + (g0 + g) * w.group_bytes;
                    unpack(p, w.code_bytes, s.weight + g * weight_group + h * weight_tile);
                    load_tail(w, p + w.code_bytes, g * 32 + h * 16, tails);
                }
            if (groups % 2) clear_tail(groups * 32, tails);
            __asm__ volatile("" ::: "memory");  // tile loads do not tell the compiler what they read
            const bool more = g0 + groups < w.groups;
            // The next columns come from memory while these are multiplied, a share with each 32 rows of x.
            const int64_t ahead_bytes = more || next_panel ? round_up((w.group_bytes + shares - 1) / shares, 64) : 0;
            const uint8_t* ahead[2];
            for (int h = 0; h < 2; h++)
                ahead[h] = more ? block[h] + (g0 + groups) * w.group_bytes : block[h] + 2 * w.block_bytes;
            auto fetch = [&]() __attribute__((always_inline)) {
                for (int64_t i = 0; i < ahead_bytes; i += 64) {
                    _mm_prefetch(reinterpret_cast<const char*>(ahead[0] + i), _MM_HINT_T1);
                    _mm_prefetch(reinterpret_cast<const char*>(ahead[1] + i), _MM_HINT_T1);
                }
                ahead[0] += ahead_bytes;
                ahead[1] += ahead_bytes;
            };
            for (int64_t m = 0; m < shares; m++) {
                const int8_t* x = all_x + (m * w.groups + g0) * x_group;
                for (int64_t g = 0; g < groups; g += 2, x += 2 * x_group, pairs++) {
                    const int64_t at = (m * w.groups + g0 + g) * 32, mine = pairs % 2 * 2, other = 2 - mine;
                    const int8_t* weight = s.weight + g * weight_group;
                    const bool both = g + 1 < groups;
                    Pair now{s.sums[mine], both ? s.sums[mine + 1] : s.none, tails.scale + g * 32,
                             tails.minimum + g * 32, tails.point + g * 32,
                             job.scales + (m * w.slabs() + (g0 + g) / slab_groups) * 32, job.offsets + at,
                             job.sums + at, both ? 32 : 0, s.total + m * 1024};
                    now.keep = g0 + g ? 0xffff : 0;
                    now.out_panel = !more && g + 2 >= groups ? m : -1;
                    now.out_column = panel * 32;
                    if (!more && !job.past_cache)
                        fetch_rows(job, m * 32 + 32 * g / groups, m * 32 + 32 * (g + 2) / groups, panel * 32);
                    fetch();
                    group<P, HALVES, STEPS, MINIMA, true>(x, row, weight, weight_tile, s.sums[other + 1], older,
                                                          HALVES * 8);
                    if (older.out_panel >= 0) write_rows(job, s.total, older.out_panel * 32, 32, older.out_column);
                    if (both) {
                        fetch();
                        group<P, HALVES, STEPS, MINIMA, true>(x + x_group, row, weight + weight_group, weight_tile,
                                                              s.sums[mine], last, 0);
                    } else {
                        group<P, HALVES, STEPS, MINIMA, false>(x, row, weight, weight_tile, s.sums[mine], last, 0);
                    }
                    older = last;
                    last = now;
                }
            }
        }
    }
    // What is still in the pipeline.
    int32_t* stored = s.sums[(pairs + 1) % 2 * 2 + 1];
    group<P, HALVES, STEPS, MINIMA, false>(nullptr, row, nullptr, weight_tile, stored, older, HALVES * 8);
    if (older.out_panel >= 0) write_rows(job, s.total, older.out_panel * 32, 32, older.out_column);
    const Column<P, MINIMA> left(last, 0), right(last, 1);
    for (int r = 0; r < HALVES * 16; r++) scale_rows<P, MINIMA>(last, left, right, r, r + 1);
    write_rows(job, s.total, last.out_panel * 32, 32, last.out_column);
    if (job.past_cache) _mm_sfence();
}

using Multiply = void (*)(const AffineJob&, int64_t, int64_t);

template <Product P, int STEPS>
Multiply choose_rows(bool two, bool minima) {
    if (minima) return two ? multiply<P, 2, STEPS, true> : multiply<P, 1, STEPS, true>;
    return two ? multiply<P, 2, STEPS, false> : multiply<P, 1, STEPS, false>;
}

template <Product P>
Multiply choose(int64_t steps, bool two, bool minima) {
    if (steps == 1) return choose_rows<P, 1>(two, minima);
    if (steps == 2) return choose_rows<P, 2>(two, minima);
    return choose_rows<P, 4>(two, minima);
}

}  // namespace

void affine_int8(const AffineJob& job, int64_t first, int64_t last) {
    const AffineLayout& w = job.layout;
    const int64_t steps = w.group / job.chunk_bytes();
    const bool two = job.count > 16, minima = w.zeros == Zeros::minima;
    const bool unsigned_codes = w.bits == 8 && w.zeros == Zeros::points;
    (unsigned_codes ? choose<Product::s8u8>(steps, two, minima) : choose<Product::s8s8>(steps, two, minima))(
        job, first, last);
}

void affine_exact(const AffineJob& job, int64_t first, int64_t last) {
    choose<Product::halves>(job.layout.group / 32, job.count > 16, job.layout.zeros == Zeros::minima)(job, first, last);
}

}  // namespace qwenkit::amx
