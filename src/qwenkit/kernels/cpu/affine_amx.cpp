// Affine linear on AMX tiles, for a batch or a prompt.
//
// Per panel of 32 output rows: some columns of the weight are unpacked to tiles that stay in L1 and meet all
// rows of x, 32 at a time; x comes from L2. Each group has its own scales, so the tile sums of a group are
// stored, scaled and added to float sums in memory - while the next group's products run: the scaling of
// group g - 1 is written between the tile instructions of group g.
// 16-bit mode is the same with bf16 tiles: code - zero is exact in bf16, sums are float32.
#include <immintrin.h>

#include <cstdlib>
#include <new>

#include "kernels.h"
#include "tile_config.h"

namespace qwenkit::amx {
namespace {

enum class Product { s8s8, s8u8, halves };

constexpr int64_t panel_bytes = 16 * 1024;  // unpacked weight kept in L1
constexpr int64_t most_groups = 16;         // 512 int8 columns in groups of 32
constexpr int prefetch_ahead = 2048;

struct Scratch {
    alignas(64) int8_t weight[panel_bytes];
    alignas(64) float scale[most_groups * 32];
    alignas(64) float minimum[most_groups * 32];   // Zeros::minima
    alignas(64) int32_t point[most_groups * 32];   // unsigned codes: zero points
    alignas(64) int32_t sums[2][4 * 256];          // tiles of this group and the one before
    alignas(64) float total[most_count * 32];      // [block of 32 rows][row][32]
};

Scratch& scratch() {
    // 90 KB a thread, kept: too large for a stack that Python's threads may have made small.
    static thread_local struct Owner {
        Scratch* p = new (std::align_val_t(4096)) Scratch;
        ~Owner() { operator delete(p, std::align_val_t(4096)); }
    } owner;
    return *owner.p;
}

struct Strip {  // 16 or 32 rows of x by the unpacked columns
    const int8_t* x;
    const int8_t* weight;
    int64_t tile_row, x_group, weight_group;  // bytes
    int64_t groups;
    const float* x_scale;
    const float* x_offset;
    const int32_t* x_sum;  // of the first group; 32 further for the next
    Scratch* s;
    float* total;
    __mmask16 keep;  // 0: the first columns of the product, `total` holds nothing yet
    const uint8_t* ahead[2];  // weight bytes wanted next
    int64_t ahead_bytes;      // of each, fetched along with every group
};

// Adds rows [from, to) of one group's tiles to the totals. Inlined: its arguments live in registers, since
// every tile store makes the compiler forget what memory holds.
template <Product P, bool MINIMA>
[[gnu::always_inline]] inline void scale_rows(const Scratch* s, int64_t g, const int32_t* sums, float* total,
                                              __mmask16 keep, const float* x_scale, const float* x_offset,
                                              const int32_t* x_sum, int from, int to) {
    const __m512 w0 = _mm512_load_ps(s->scale + g * 32), w1 = _mm512_load_ps(s->scale + g * 32 + 16);
#pragma GCC unroll 8
    for (int r = from; r < to; r++) {
        const int32_t* c = sums + r / 16 * 512 + r % 16 * 16;
        float* t = total + r * 32;
        __m512 a0 = _mm512_maskz_load_ps(keep, t), a1 = _mm512_maskz_load_ps(keep, t + 16);
        if constexpr (P == Product::halves) {
            a0 = _mm512_fmadd_ps(w0, _mm512_load_ps(c), a0);
            a1 = _mm512_fmadd_ps(w1, _mm512_load_ps(c + 256), a1);
        } else {
            __m512i d0 = _mm512_load_si512(c), d1 = _mm512_load_si512(c + 256);
            if constexpr (P == Product::s8u8) {
                const __m512i sum = _mm512_set1_epi32(x_sum[g * 32 + r]);
                const int32_t* z = s->point + g * 32;
                d0 = _mm512_sub_epi32(d0, _mm512_mullo_epi32(_mm512_load_si512(z), sum));
                d1 = _mm512_sub_epi32(d1, _mm512_mullo_epi32(_mm512_load_si512(z + 16), sum));
            }
            const __m512 x = _mm512_set1_ps(x_scale[g * 32 + r]);
            a0 = _mm512_fmadd_ps(_mm512_mul_ps(w0, x), _mm512_cvtepi32_ps(d0), a0);
            a1 = _mm512_fmadd_ps(_mm512_mul_ps(w1, x), _mm512_cvtepi32_ps(d1), a1);
        }
        if constexpr (MINIMA) {
            const __m512 offset = _mm512_set1_ps(x_offset[g * 32 + r]);
            a0 = _mm512_fmadd_ps(_mm512_load_ps(s->minimum + g * 32), offset, a0);
            a1 = _mm512_fmadd_ps(_mm512_load_ps(s->minimum + g * 32 + 16), offset, a1);
        }
        _mm512_store_ps(t, a0);
        _mm512_store_ps(t + 16, a1);
    }
}

#define QWENKIT_DP(C, A, B)                                              \
    if constexpr (P == Product::s8s8) { _tile_dpbssd(C, A, B); }         \
    else if constexpr (P == Product::s8u8) { _tile_dpbsud(C, A, B); }    \
    else { _tile_dpbf16ps(C, A, B); }

// One group: its products, with the scaling of the group before between them where BEFORE.
// x is streamed (it comes from L2 once a panel and should not push the weight tiles out of L1).
template <Product P, int HALVES, int STEPS, bool MINIMA, bool BEFORE>
[[gnu::always_inline]] inline void multiply_group(const int8_t* x, const int8_t* weight, int64_t row,
                                                  int64_t weight_tile, int32_t* sums, const Scratch* s, int64_t g,
                                                  const int32_t* before, float* total, __mmask16 keep,
                                                  const float* x_scale, const float* x_offset, const int32_t* x_sum) {
    constexpr int turn = 8 / STEPS;  // rows to scale after each product
    const int64_t tile = 16 * row;
    int done = 0;
    auto scale_some = [&]() __attribute__((always_inline)) {
        if constexpr (BEFORE)
            scale_rows<P, MINIMA>(s, g - 1, before, total, keep, x_scale, x_offset, x_sum, done, done + turn);
        done += turn;
    };
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (HALVES == 2) {
        _tile_zero(2);
        _tile_zero(3);
    }
#pragma GCC unroll 4
    for (int k = 0; k < STEPS; k++) {
        _tile_stream_loadd(4, x + k * 2 * tile, row);
        _tile_loadd(6, weight + k * 2 * weight_tile, 64);
        QWENKIT_DP(0, 4, 6)
        scale_some();
        _tile_loadd(7, weight + (k * 2 + 1) * weight_tile, 64);
        QWENKIT_DP(1, 4, 7)
        scale_some();
        if constexpr (HALVES == 2) {
            _tile_stream_loadd(5, x + (k * 2 + 1) * tile, row);
            QWENKIT_DP(2, 5, 6)
            scale_some();
            QWENKIT_DP(3, 5, 7)
            scale_some();
        }
    }
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + 256, 64);
    if constexpr (HALVES == 2) {
        _tile_stored(2, sums + 512, 64);
        _tile_stored(3, sums + 768, 64);
    }
}

// HALVES: 16-row tiles of x, 1 or 2. STEPS: tiles a group takes along its columns.
template <Product P, int HALVES, int STEPS, bool MINIMA>
void multiply(const Strip& t) {
    Scratch* const s = t.s;
    float* const total = t.total;
    const float *const x_scale = t.x_scale, *const x_offset = t.x_offset;
    const int32_t* const x_sum = t.x_sum;
    const int64_t row = t.tile_row, weight_tile = t.weight_group / (2 * STEPS), groups = t.groups;
    const int64_t x_group = t.x_group, weight_group = t.weight_group, ahead_bytes = t.ahead_bytes;
    const int8_t *x = t.x, *weight = t.weight;
    const uint8_t *ahead0 = t.ahead[0], *ahead1 = t.ahead[1];
    auto prefetch = [&] {
        for (int64_t i = 0; i < ahead_bytes; i += 64) {
            _mm_prefetch(reinterpret_cast<const char*>(ahead0 + i), _MM_HINT_T1);
            _mm_prefetch(reinterpret_cast<const char*>(ahead1 + i), _MM_HINT_T1);
        }
        ahead0 += ahead_bytes;
        ahead1 += ahead_bytes;
    };
    prefetch();
    multiply_group<P, HALVES, STEPS, MINIMA, false>(x, weight, row, weight_tile, s->sums[0], s, 0, nullptr, total, 0,
                                                    x_scale, x_offset, x_sum);
    __mmask16 keep = t.keep;
    int32_t *now = s->sums[1], *before = s->sums[0];
    for (int64_t g = 1; g < groups; g++) {
        prefetch();
        x += x_group;
        weight += weight_group;
        multiply_group<P, HALVES, STEPS, MINIMA, true>(x, weight, row, weight_tile, now, s, g, before, total, keep,
                                                       x_scale, x_offset, x_sum);
        keep = 0xffff;
        int32_t* swap = now;
        now = before;
        before = swap;
    }
    scale_rows<P, MINIMA>(s, groups - 1, before, total, keep, x_scale, x_offset, x_sum, 0, HALVES * 16);
}

using Multiply = void (*)(const Strip&);

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

// One group of one block as int8 tiles of LINES lines; the other block's tiles lie between them.
template <int BITS, Zeros Z, int LINES>
void unpack_int8(const uint8_t* p, int64_t code_bytes, int8_t* out) {
    const __m512i low = _mm512_set1_epi8(15);
    __m512i zero = _mm512_setzero_si512();
    if constexpr (Z == Zeros::none) zero = _mm512_set1_epi8(BITS == 4 ? 8 : char(128));
    if constexpr (Z == Zeros::points && BITS == 4) {
        const __m512i points = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)(p + code_bytes + 32)));
        zero = _mm512_mullo_epi32(points, _mm512_set1_epi32(0x01010101));
    }
    for (const uint8_t* end = p + code_bytes; p < end; out += LINES * 64) {
#pragma GCC unroll 16
        for (int i = 0; i < LINES; i += BITS == 4 ? 2 : 1, p += 64, out += BITS == 4 ? 128 : 64) {
            _mm_prefetch(reinterpret_cast<const char*>(p) + prefetch_ahead, _MM_HINT_T0);
            const __m512i v = _mm512_loadu_si512(p);
            if constexpr (BITS == 4) {
                _mm512_store_si512(out, _mm512_sub_epi8(_mm512_and_si512(v, low), zero));
                _mm512_store_si512(out + 64, _mm512_sub_epi8(_mm512_and_si512(_mm512_srli_epi16(v, 4), low), zero));
            } else {
                _mm512_store_si512(out, _mm512_sub_epi8(v, zero));
            }
        }
    }
}

// The same as bf16 tiles of 16 lines: a line of 8-bit codes becomes two lines of column pairs.
template <int BITS, Zeros Z>
void unpack_halves(const uint8_t* p, int64_t code_bytes, int8_t* out) {
    const __m512i low = _mm512_set1_epi8(15), byte = _mm512_set1_epi32(255), top = _mm512_set1_epi32(int(0xffff0000));
    __m512i point = _mm512_set1_epi32(Z == Zeros::minima ? 0 : BITS == 4 ? 8 : 128);
    if constexpr (Z == Zeros::points)
        point = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)(p + code_bytes + 32)));
    auto value = [&](__m512i code) {
        return _mm512_castps_si512(_mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_and_si512(code, byte), point)));
    };
    auto put = [&](__m512i even, __m512i odd) {
        const __m512i pair = _mm512_or_si512(_mm512_srli_epi32(value(even), 16), _mm512_and_si512(value(odd), top));
        _mm512_store_si512(out, pair);
        out += 64;
    };
    auto four = [&](__m512i codes) {
        put(codes, _mm512_srli_epi32(codes, 8));
        put(_mm512_srli_epi32(codes, 16), _mm512_srli_epi32(codes, 24));
    };
    for (const uint8_t* end = p + code_bytes; p < end; out += 1024) {
#pragma GCC unroll 2
        for (int i = 0; i < 16; i += BITS == 4 ? 4 : 2, p += 64) {
            _mm_prefetch(reinterpret_cast<const char*>(p) + prefetch_ahead, _MM_HINT_T0);
            const __m512i v = _mm512_loadu_si512(p);
            if constexpr (BITS == 4) {
                four(_mm512_and_si512(v, low));
                four(_mm512_and_si512(_mm512_srli_epi16(v, 4), low));
            } else {
                four(v);
            }
        }
    }
}

using Unpack = void (*)(const uint8_t*, int64_t, int8_t*);

template <int BITS, Zeros Z>
Unpack choose_form(bool halves, bool narrow) {
    return halves ? unpack_halves<BITS, Z> : narrow ? unpack_int8<BITS, Z, 8> : unpack_int8<BITS, Z, 16>;
}

Unpack choose_unpack(const AffineLayout& w, bool halves) {
    const bool narrow = w.group < 64;  // tiles of 32 columns
    if (w.bits == 4 && w.zeros == Zeros::none) return choose_form<4, Zeros::none>(halves, narrow);
    if (w.bits == 4 && w.zeros == Zeros::points) return choose_form<4, Zeros::points>(halves, narrow);
    if (w.bits == 4) return choose_form<4, Zeros::minima>(halves, narrow);
    if (w.zeros == Zeros::none) return choose_form<8, Zeros::none>(halves, narrow);
    return choose_form<8, Zeros::points>(halves, narrow);
}

void load_tail(const AffineLayout& w, const uint8_t* tail, int64_t at, Scratch& s) {
    _mm512_store_ps(s.scale + at, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)tail)));
    if (w.zeros == Zeros::points)
        _mm512_store_si512(s.point + at, _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)(tail + 32))));
    if (w.zeros == Zeros::minima)
        _mm512_store_ps(s.minimum + at, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)(tail + 32))));
}

template <bool HALVES>
void run(const AffineJob& job, int64_t first_panel, int64_t last_panel) {
    const AffineLayout& w = job.layout;
    Scratch& s = scratch();
    const int64_t element = HALVES ? 2 : 1;
    const int64_t tile_row = HALVES ? 64 : job.chunk_bytes();
    const int64_t steps = w.group * element / tile_row;
    const int64_t weight_tile = tile_row / 4 * 64;  // lines of 4 bytes a row of x
    const int64_t weight_group = 2 * steps * weight_tile, x_group = 32 * w.group * element;
    const int64_t groups_once = panel_bytes / weight_group < most_groups ? panel_bytes / weight_group : most_groups;
    const bool unsigned_codes = !HALVES && w.bits == 8 && w.zeros == Zeros::points;
    const bool minima = w.zeros == Zeros::minima;
    const Unpack unpack = choose_unpack(w, HALVES);
    const int64_t shares = (job.count + 31) / 32;
    Multiply by_halves[2];
    for (int two = 0; two < 2; two++)
        by_halves[two] = HALVES           ? choose<Product::halves>(steps, two, minima)
                         : unsigned_codes ? choose<Product::s8u8>(steps, two, minima)
                                          : choose<Product::s8s8>(steps, two, minima);
    // Fewer rows than a tile has: a shorter tile is a faster product.
    TileConfig config(job.count < 16 ? int(job.count) : 16, int(tile_row));

    for (int64_t panel = first_panel; panel < last_panel; panel++) {
        const uint8_t* block[2] = {job.packed + panel * 2 * w.block_bytes, nullptr};
        const bool pair = panel * 2 + 1 < w.blocks;
        block[1] = pair ? block[0] + w.block_bytes : block[0];  // an odd last block is computed twice, stored once
        const bool next_panel = (panel + 1) * 2 + 1 < w.blocks;
        for (int64_t g0 = 0; g0 < w.groups; g0 += groups_once) {
            const int64_t groups = w.groups - g0 < groups_once ? w.groups - g0 : groups_once;
            for (int h = 0; h < 2; h++)
                for (int64_t g = 0; g < groups; g++) {
                    const uint8_t* p = block[h] + (g0 + g) * w.group_bytes;
                    unpack(p, w.code_bytes, s.weight + g * weight_group + h * weight_tile);
                    load_tail(w, p + w.code_bytes, g * 32 + h * 16, s);
                }
            __asm__ volatile("" ::: "memory");  // tile loads do not tell the compiler what they read
            const bool more = g0 + groups < w.groups;
            // The next columns come from memory while these are multiplied, a share with each 32 rows of x.
            const int64_t ahead_bytes = round_up((w.group_bytes + shares - 1) / shares, 64);
            for (int64_t m = 0; m < job.count; m += 32) {
                const int64_t at = (m / 32 * w.groups + g0) * 32;
                Strip t;
                t.x = (HALVES ? reinterpret_cast<const int8_t*>(job.halves) : job.codes) + at * w.group * element;
                t.weight = s.weight;
                t.tile_row = tile_row;
                t.x_group = x_group;
                t.weight_group = weight_group;
                t.groups = groups;
                t.x_scale = job.scales + at;
                t.x_offset = job.offsets + at;
                t.x_sum = job.sums + at;
                t.s = &s;
                t.total = s.total + m * 32;
                t.keep = g0 ? 0xffff : 0;
                for (int h = 0; h < 2; h++)
                    t.ahead[h] = (more ? block[h] + (g0 + groups) * w.group_bytes : block[h] + 2 * w.block_bytes) +
                                 m / 32 * groups * ahead_bytes;
                t.ahead_bytes = more || next_panel ? ahead_bytes : 0;
                by_halves[job.count - m > 16](t);
            }
        }
        for (int64_t m = 0; m < job.count; m++)
            write_outputs(s.total + m * 32, job.bias, job.y, job.y_type, m, w.rows, panel * 32);
    }
}

}  // namespace

void affine_int8(const AffineJob& job, int64_t first, int64_t last) { run<false>(job, first, last); }
void affine_exact(const AffineJob& job, int64_t first, int64_t last) { run<true>(job, first, last); }

}  // namespace qwenkit::amx
