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
#include "tile_unpack.h"

namespace qwenkit::amx {
namespace {

enum class Product { s8s8, s8u8, halves };

constexpr int64_t panel_bytes = 16 * 1024;  // unpacked weight kept in L1
constexpr int64_t most_groups = 16;         // 512 int8 columns in groups of 32

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

struct Chunk {  // all rows of x by the unpacked columns
    const int8_t* x;          // first panel's tiles of the first group
    int64_t tile_row, x_group, x_panel;  // bytes: of a tile's row, to the next group, to the next 32 rows
    int64_t weight_group;     // bytes to the next group's unpacked tiles
    int64_t groups, panels;   // groups of the weight, panels of 32 rows of x
    const float *x_scale, *x_offset;
    const int32_t* x_sum;     // 32 a group, groups_all groups a panel
    int64_t groups_all;
    bool first;               // the first columns of the product: totals hold nothing yet
    const uint8_t* ahead[2];  // weight bytes wanted next, `ahead_bytes` of each with every group
    int64_t ahead_bytes;
    const AffineJob* out;     // the last columns of the product: where to write results; else null
    int64_t out_column;
};

// Results of 32 rows of x, as soon as they are complete: the stores drain while the next rows are computed.
void write_panel(const AffineJob& job, const Scratch& s, int64_t panel, int64_t column) {
    for (int64_t m = panel * 32; m < job.count && m < panel * 32 + 32; m++)
        write_outputs(s.total + m * 32, job.bias, job.y, job.y_type, m, job.layout.rows, column);
}

// The lines they go to, a few with each group: all at once would wait for memory.
inline void fetch_rows(const AffineJob& job, int64_t first, int64_t last, int64_t column) {
    const int64_t size = size_of(job.y_type);
    for (int64_t m = first; m < job.count && m < last; m++)
        __builtin_prefetch(static_cast<char*>(job.y) + (m * job.layout.rows + column) * size, 1);
}

// A group whose products are done and whose sums wait to be scaled.
struct Pending {
    const float *x_scale, *x_offset;
    const int32_t* x_sum;
    float* total;
    int64_t group;
    __mmask16 keep;  // 0: `total` holds nothing yet
};

// Adds rows [from, to) of one group's tiles to the totals. Inlined: its arguments live in registers, since
// every tile store makes the compiler forget what memory holds.
template <Product P, bool MINIMA>
[[gnu::always_inline]] inline void scale_rows(const Scratch* s, const int32_t* sums, const Pending& p, int from,
                                              int to) {
    const __m512 w0 = _mm512_load_ps(s->scale + p.group * 32), w1 = _mm512_load_ps(s->scale + p.group * 32 + 16);
#pragma GCC unroll 8
    for (int r = from; r < to; r++) {
        const int32_t* c = sums + r / 16 * 512 + r % 16 * 16;
        float* t = p.total + r * 32;
        __m512 a0 = _mm512_maskz_load_ps(p.keep, t), a1 = _mm512_maskz_load_ps(p.keep, t + 16);
        if constexpr (P == Product::halves) {
            a0 = _mm512_fmadd_ps(w0, _mm512_load_ps(c), a0);
            a1 = _mm512_fmadd_ps(w1, _mm512_load_ps(c + 256), a1);
        } else {
            __m512i d0 = _mm512_load_si512(c), d1 = _mm512_load_si512(c + 256);
            if constexpr (P == Product::s8u8) {
                const __m512i sum = _mm512_set1_epi32(p.x_sum[r]);
                const int32_t* z = s->point + p.group * 32;
                d0 = _mm512_sub_epi32(d0, _mm512_mullo_epi32(_mm512_load_si512(z), sum));
                d1 = _mm512_sub_epi32(d1, _mm512_mullo_epi32(_mm512_load_si512(z + 16), sum));
            }
            const __m512 x = _mm512_set1_ps(p.x_scale[r]);
            a0 = _mm512_fmadd_ps(_mm512_mul_ps(w0, x), _mm512_cvtepi32_ps(d0), a0);
            a1 = _mm512_fmadd_ps(_mm512_mul_ps(w1, x), _mm512_cvtepi32_ps(d1), a1);
        }
        if constexpr (MINIMA) {
            const __m512 offset = _mm512_set1_ps(p.x_offset[r]);
            a0 = _mm512_fmadd_ps(_mm512_load_ps(s->minimum + p.group * 32), offset, a0);
            a1 = _mm512_fmadd_ps(_mm512_load_ps(s->minimum + p.group * 32 + 16), offset, a1);
        }
        _mm512_store_ps(t, a0);
        _mm512_store_ps(t + 16, a1);
    }
}

#define QWENKIT_DP(C, A, B)                                              \
    if constexpr (P == Product::s8s8) { _tile_dpbssd(C, A, B); }         \
    else if constexpr (P == Product::s8u8) { _tile_dpbsud(C, A, B); }    \
    else { _tile_dpbf16ps(C, A, B); }

// The products of one group. STORE: each sum tile of the group before is stored just before its first new
// product, which hides the store (measured: 180 cycles a group of 128, 250 with all stores at the end).
// SCALE: the group before that one is scaled between the products.
// x is streamed: it comes from L2 once a panel and should not push the weight tiles out of L1.
template <Product P, int HALVES, int STEPS, bool MINIMA, bool STORE, bool SCALE>
[[gnu::always_inline]] inline void step(const int8_t* x, int64_t row, const int8_t* weight, int64_t weight_tile,
                                        const Scratch* s, int32_t* stored, const int32_t* scaled, const Pending& p) {
    constexpr int turn = 8 / STEPS;  // rows to scale after each product
    const int64_t tile = 16 * row;
    int done = 0;
    auto scale_some = [&]() __attribute__((always_inline)) {
        if constexpr (SCALE) scale_rows<P, MINIMA>(s, scaled, p, done, done + turn);
        done += turn;
    };
#define QWENKIT_START(T)                                        \
    if (k == 0) {                                               \
        if constexpr (STORE) _tile_stored(T, stored + T * 256, 64); \
        _tile_zero(T);                                          \
    }
#pragma GCC unroll 4
    for (int k = 0; k < STEPS; k++) {
        QWENKIT_START(0)
        _tile_stream_loadd(4, x + k * 2 * tile, row);
        _tile_loadd(6, weight + k * 2 * weight_tile, 64);
        QWENKIT_DP(0, 4, 6)
        scale_some();
        QWENKIT_START(1)
        _tile_loadd(7, weight + (k * 2 + 1) * weight_tile, 64);
        QWENKIT_DP(1, 4, 7)
        scale_some();
        if constexpr (HALVES == 2) {
            QWENKIT_START(2)
            _tile_stream_loadd(5, x + (k * 2 + 1) * tile, row);
            QWENKIT_DP(2, 5, 6)
            scale_some();
            QWENKIT_START(3)
            QWENKIT_DP(3, 5, 7)
            scale_some();
        }
    }
#undef QWENKIT_START
}

// HALVES: 16-row tiles of x in a panel, 1 or 2. STEPS: tiles a group takes along its columns.
template <Product P, int HALVES, int STEPS, bool MINIMA>
void multiply(const Chunk& c, Scratch* s) {
    const int64_t row = c.tile_row, weight_group = c.weight_group, weight_tile = weight_group / (2 * STEPS);
    const int64_t groups = c.groups, groups_all = c.groups_all, x_group = c.x_group, ahead_bytes = c.ahead_bytes;
    const uint8_t *ahead0 = c.ahead[0], *ahead1 = c.ahead[1];
    const __mmask16 keep = c.first ? 0 : 0xffff;
    int32_t *now = s->sums[0], *before = s->sums[1];
    Pending next{}, last{}, older{};
    int64_t turn = 0;
    for (int64_t panel = 0; panel < c.panels; panel++) {
        const int8_t* x = c.x + panel * c.x_panel;
        const int64_t at = panel * groups_all * 32;
        for (int64_t g = 0; g < groups; g++, turn++, x += x_group) {
            for (int64_t i = 0; i < ahead_bytes; i += 64) {
                _mm_prefetch(reinterpret_cast<const char*>(ahead0 + i), _MM_HINT_T1);
                _mm_prefetch(reinterpret_cast<const char*>(ahead1 + i), _MM_HINT_T1);
            }
            ahead0 += ahead_bytes;
            ahead1 += ahead_bytes;
            if (c.out)
                fetch_rows(*c.out, panel * 32 + 32 * g / groups, panel * 32 + 32 * (g + 1) / groups, c.out_column);
            next.x_scale = c.x_scale + at + g * 32;
            next.x_offset = c.x_offset + at + g * 32;
            next.x_sum = c.x_sum + at + g * 32;
            next.total = s->total + panel * 1024;
            next.group = g;
            next.keep = g ? 0xffff : keep;
            const int8_t* weight = s->weight + g * weight_group;
            if (turn >= 2)
                step<P, HALVES, STEPS, MINIMA, true, true>(x, row, weight, weight_tile, s, now, before, older);
            else if (turn == 1)
                step<P, HALVES, STEPS, MINIMA, true, false>(x, row, weight, weight_tile, s, now, before, older);
            else
                step<P, HALVES, STEPS, MINIMA, false, false>(x, row, weight, weight_tile, s, now, before, older);
            if (c.out && turn >= 2 && older.group == groups - 1)
                write_panel(*c.out, *s, (older.total - s->total) / 1024, c.out_column);
            older = last;
            last = next;
            int32_t* swap = now;
            now = before;
            before = swap;
        }
    }
    _tile_stored(0, now, 64);
    _tile_stored(1, now + 256, 64);
    if constexpr (HALVES == 2) {
        _tile_stored(2, now + 512, 64);
        _tile_stored(3, now + 768, 64);
    }
    if (turn >= 2) scale_rows<P, MINIMA>(s, before, older, 0, HALVES * 16);
    scale_rows<P, MINIMA>(s, now, last, 0, HALVES * 16);
    if (!c.out) return;
    if (turn >= 2 && older.group == groups - 1)
        write_panel(*c.out, *s, (older.total - s->total) / 1024, c.out_column);
    write_panel(*c.out, *s, c.panels - 1, c.out_column);
}

using Multiply = void (*)(const Chunk&, Scratch*);

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
    const bool two = job.count > 16;
    const Multiply multiply_all = HALVES           ? choose<Product::halves>(steps, two, minima)
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
            const int64_t at = g0 * 32;
            Chunk c;
            c.x = (HALVES ? reinterpret_cast<const int8_t*>(job.halves) : job.codes) + at * w.group * element;
            c.tile_row = tile_row;
            c.x_group = x_group;
            c.x_panel = w.groups * x_group;
            c.weight_group = weight_group;
            c.groups = groups;
            c.panels = shares;
            c.x_scale = job.scales + at;
            c.x_offset = job.offsets + at;
            c.x_sum = job.sums + at;
            c.groups_all = w.groups;
            c.first = g0 == 0;
            for (int h = 0; h < 2; h++)
                c.ahead[h] = more ? block[h] + (g0 + groups) * w.group_bytes : block[h] + 2 * w.block_bytes;
            c.ahead_bytes = more || next_panel ? ahead_bytes : 0;
            c.out = more ? nullptr : &job;
            c.out_column = panel * 32;
            multiply_all(c, &s);
        }
    }
}

}  // namespace

void affine_int8(const AffineJob& job, int64_t first, int64_t last) { run<false>(job, first, last); }
void affine_exact(const AffineJob& job, int64_t first, int64_t last) { run<true>(job, first, last); }

}  // namespace qwenkit::amx
