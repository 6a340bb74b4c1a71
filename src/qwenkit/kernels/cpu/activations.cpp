// Activations as the linear kernels want them: int8 with a scale per slab, float, or bf16.
#include "kernels.h"
#include "lanes.h"

namespace qwenkit::QWENKIT_LANES {
namespace {

// `size` packed columns of a row from `first` on.
template <class T>
void fetch(const AffineJob& job, int64_t row, int64_t first, int64_t size, float* out) {
    const int64_t columns = job.layout.columns;
    const T* x = static_cast<const T*>(job.x) + row * columns;
    if (job.gather) {
        const int32_t* from = job.gather + first;
        for (int64_t k = 0; k < size; k++) out[k] = from[k] < 0 ? 0.0f : scalar(x[from[k]]);
        return;
    }
    int64_t k = 0;
    for (; k + lanes <= size && first + k + lanes <= columns; k += lanes) store(out + k, load(x + first + k));
    for (; k < size; k++) out[k] = first + k < columns ? scalar(x[first + k]) : 0.0f;
}

// One slab of one row: scale = largest magnitude / 127, codes rounded to nearest; they go to `out` in chunks that
// lie `step` apart. Sums and offsets of its PARTS parts of SIZE columns: `at` and on, `next` apart.
template <class T, int SIZE, int PARTS, int CHUNK>
inline void quantize_slab(const AffineJob& job, int64_t m, int64_t slab, int64_t parts, float* scale, int64_t at,
                          int64_t next, int8_t* out, int64_t step) {
    constexpr int count = SIZE / lanes, columns = PARTS * SIZE;
    V v[PARTS][count];
    if (!job.gather && parts == PARTS && (slab + 1) * columns <= job.layout.columns) {
        const T* x = static_cast<const T*>(job.x) + m * job.layout.columns + slab * columns;
#pragma GCC unroll 16
        for (int g = 0; g < PARTS; g++)
#pragma GCC unroll 16
            for (int i = 0; i < count; i++) v[g][i] = load(x + g * SIZE + i * lanes);
    } else {
        alignas(64) float values[columns] = {};
        fetch<T>(job, m, slab * columns, parts * SIZE, values);
        for (int g = 0; g < PARTS; g++)
            for (int i = 0; i < count; i++) v[g][i] = load(values + g * SIZE + i * lanes);
    }
    // As integers, magnitudes order like the floats, and a NaN is above them all: it is not lost.
    I top = izero();
#pragma GCC unroll 16
    for (int g = 0; g < PARTS; g++)
#pragma GCC unroll 16
        for (int i = 0; i < count; i++) top = imax_unsigned(top, iand(bits(v[g][i]), iset(0x7fffffff)));
    const uint32_t largest = max_unsigned(top);
    float magnitude;
    __builtin_memcpy(&magnitude, &largest, 4);
    const bool finite = largest < 0x7f800000u;
    const bool some = finite && magnitude >= 127 * 1.17549435e-38f;  // below, the scale would be denormal
    const V by = set(some ? 127.0f / magnitude : 0.0f);
    *scale = some ? magnitude / 127.0f : finite ? 0.0f : __builtin_nanf("");
#pragma GCC unroll 16
    for (int g = 0; g < PARTS; g++) {
        if (g >= parts) return;
        I total = izero();
#pragma GCC unroll 16
        for (int i = 0; i < count; i++) {
            const I q = to_int(mul(v[g][i], by));
            total = iadd(total, q);
            const int column = g * SIZE + i * lanes;
            store_bytes(out + column / CHUNK * step + column % CHUNK, q);
        }
        job.sums[at + g * next] = isum(total);
        job.offsets[at + g * next] = float(job.sums[at + g * next]);
    }
}

// For tile products of sums by minima: all that 16 inner groups can have, the ones there are not being zero.
inline void pair_sums(const int32_t* sums, int64_t next, int64_t count, uint16_t* out) {
    for (int64_t i = 0; i < 16; i++, out += 2) {
        const int32_t sum = i < count ? sums[i * next] : 0, coarse = sum & ~15;
        // Both have at most eight significant bits (|sum| <= 32 * 127): exact in bf16.
        const float pair[2] = {float(coarse), float(sum - coarse)};
        uint32_t bits[2];
        __builtin_memcpy(bits, pair, 8);
        out[0] = uint16_t(bits[0] >> 16);
        out[1] = uint16_t(bits[1] >> 16);
    }
}

template <class T, int SIZE, int PARTS, int CHUNK = 64>
void quantize_rows(const AffineJob& job, int64_t first_row, int64_t last_row) {
    const AffineLayout& w = job.layout;
    const int64_t weave = job.interleave, slabs = w.slabs(), sums = w.sums();
    const int64_t step = weave == 1 ? CHUNK : weave * CHUNK;
    for (int64_t m = first_row; m < last_row; m++) {
        // Panels of 32 rows: tiles (column step, half) one after another, a tile row is one chunk.
        int8_t* out = weave == 1 ? job.codes + m * w.padded_columns()
                                 : job.codes + m / weave * w.padded_columns() * weave + m % weave * CHUNK;
        for (int64_t s = 0; s < slabs; s++, out += PARTS * SIZE * weave) {
            const int64_t first = s * PARTS, parts = sums - first < PARTS ? sums - first : PARTS;
            float* scale = job.scales + (m / weave * slabs + s) * weave + m % weave;
            const int64_t at = (m / weave * sums + first) * weave + m % weave;
            if (m < job.count) {
                quantize_slab<T, SIZE, PARTS, CHUNK>(job, m, s, parts, scale, at, weave, out, step);
            } else {  // padding of the last tile
                for (int64_t k = 0; k < parts * SIZE / CHUNK; k++) __builtin_memset(out + k * step, 0, size_t(CHUNK));
                *scale = 0;
                for (int64_t g = 0; g < parts; g++) job.sums[at + g * weave] = 0, job.offsets[at + g * weave] = 0;
            }
            if (!job.halves) continue;
            const int64_t tile = (m / 32 * slabs + s) * 2 + m % 32 / 16;
            pair_sums(job.sums + at, weave, parts, job.halves + tile * 512 + m % 16 * 32);
        }
    }
}

template <class T>
void quantize_typed(const AffineJob& job, int64_t first, int64_t last) {
    const AffineLayout& w = job.layout;
    if (w.inner == 32) quantize_rows<T, 32, nested_group / 32>(job, first, last);
    else if (w.inner == 16) quantize_rows<T, 16, nested_group / 16>(job, first, last);
    else if (w.group == 128) quantize_rows<T, 128, slab_groups>(job, first, last);
    else if (w.group == 64) quantize_rows<T, 64, slab_groups>(job, first, last);
    else quantize_rows<T, 32, slab_groups, 32>(job, first, last);
}

template <class T>
void widen_rows(const AffineJob& job, int64_t first_row, int64_t last_row) {
    const AffineLayout& w = job.layout;
    for (int64_t m = first_row; m < last_row; m++)
        for (int64_t g = 0; g < w.groups; g++) {
            float* out = job.floats + m * w.padded_columns() + g * w.group;
            fetch<T>(job, m, g * w.group, w.group, out);
            V total = zero();
            for (int64_t k = 0; k < w.group; k += lanes) total = add(total, load(out + k));
            job.offsets[m * w.groups + g] = sum(total);
        }
}

// bf16 tiles of 16 rows by 32 columns in panels of 32 rows, and the sum of each group as the tiles see it.
template <class T>
void tile_rows(const AffineJob& job, int64_t first_row, int64_t last_row) {
    const AffineLayout& w = job.layout;
    alignas(64) float values[128] = {};
    for (int64_t m = first_row; m < last_row; m++)
        for (int64_t g = 0; g < w.groups; g++) {
            if (m < job.count) fetch<T>(job, m, g * w.group, w.group, values);
            uint16_t* out = job.halves + (m / 32 * w.groups + g) * w.group * 32 + m % 32 / 16 * 512 + m % 16 * 32;
            V total = zero();
            for (int64_t k = 0; k < w.group; k += 32, out += 1024)
                for (int64_t i = 0; i < 32; i += lanes) {
                    bf16* to = reinterpret_cast<bf16*>(out + i);
                    store(to, load(values + k + i));
                    total = add(total, load(to));
                }
            job.offsets[(m / 32 * w.groups + g) * 32 + m % 32] = sum(total);
        }
    for (int64_t m = first_row; m < last_row; m++)
        for (int64_t s = 0; s < w.slabs(); s++) job.scales[(m / 32 * w.slabs() + s) * 32 + m % 32] = 1;
}

template <class T>
void bf16_rows(const Bf16Job& job, int64_t first_row, int64_t last_row) {
    const int64_t padded = job.padded_columns();
    for (int64_t m = first_row; m < last_row; m++) {
        // Panels of 32 rows: tiles (column step, half) one after another, a tile row is 32 columns.
        uint16_t* out = job.interleave == 1 ? job.halves + m * padded
                                            : job.halves + m / 32 * 32 * padded + m % 32 / 16 * 512 + m % 16 * 32;
        const int64_t step = job.interleave == 1 ? 32 : 1024;
        const T* x = static_cast<const T*>(job.x) + m * job.columns;
        for (int64_t k = 0; k < padded; k += 32, out += step) {
            for (int64_t i = 0; i < 32; i += lanes) {
                V v = zero();
                if (m < job.count && k + i + lanes <= job.columns) v = load(x + k + i);
                else if (m < job.count && k + i < job.columns) v = load_part(x + k + i, job.columns - k - i);
                store(reinterpret_cast<bf16*>(out + i), v);
            }
        }
    }
}

}  // namespace

void quantize(const AffineJob& job, int64_t first, int64_t last) {
    if (job.x_type == Dtype::f32) quantize_typed<float>(job, first, last);
    else if (job.x_type == Dtype::bf16) quantize_typed<bf16>(job, first, last);
    else quantize_typed<f16>(job, first, last);
}

void widen(const AffineJob& job, int64_t first, int64_t last) {
    if (job.x_type == Dtype::f32) widen_rows<float>(job, first, last);
    else if (job.x_type == Dtype::bf16) widen_rows<bf16>(job, first, last);
    else widen_rows<f16>(job, first, last);
}

void tile(const AffineJob& job, int64_t first, int64_t last) {
    if (job.x_type == Dtype::f32) tile_rows<float>(job, first, last);
    else if (job.x_type == Dtype::bf16) tile_rows<bf16>(job, first, last);
    else tile_rows<f16>(job, first, last);
}

void bf16_pack_x(const Bf16Job& job, int64_t first, int64_t last) {
    if (job.x_type == Dtype::f32) bf16_rows<float>(job, first, last);
    else if (job.x_type == Dtype::bf16) bf16_rows<bf16>(job, first, last);
    else bf16_rows<f16>(job, first, last);
}

}  // namespace qwenkit::QWENKIT_LANES
