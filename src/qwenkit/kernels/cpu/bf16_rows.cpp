// bf16 linear, vector kernels: a few rows of x against the stream of packed weights.
//
// The order of additions is the tile product's (32 columns: even and odd columns apart in fused steps, their
// sum added to the total), so that these rows and the tiles give the same bits.
#include "kernels.h"
#include "lanes.h"

namespace qwenkit::QWENKIT_LANES {
namespace {

constexpr int parts = 16 / lanes;
constexpr int most_rows = lanes == 16 ? 8 : 2;
constexpr int prefetch_ahead = 2048;

template <class T>
void write(const Bf16Job& job, int64_t m, int64_t first, V v) {
    T* y = static_cast<T*>(job.y) + m * job.rows + first;
    const int64_t left = job.rows - first;
    if (left >= lanes) {
        if (job.bias) v = add(v, load(job.bias + first));
        store(y, v);
    } else if (left > 0) {
        if (job.bias) v = add(v, load_part(job.bias + first, left));
        store_part(y, v, left);
    }
}

template <int R>
void block(const Bf16Job& job, int64_t m, int64_t b) {
    const int64_t padded = job.padded_columns();
    const uint16_t* p = job.packed + b * job.block_halves();
    const uint16_t* x = job.halves + m * padded;
    V acc[R][parts];
    for (int r = 0; r < R; r++)
        for (int h = 0; h < parts; h++) acc[r][h] = zero();
    const I top = iset(int(0xffff0000));
    for (int64_t k = 0; k < padded; k += 32) {
        V even[R][parts], odd[R][parts];
        for (int r = 0; r < R; r++)
            for (int h = 0; h < parts; h++) even[r][h] = odd[r][h] = zero();
        for (int64_t j = 0; j < 32; j += 2, p += 32) {
            _mm_prefetch(reinterpret_cast<const char*>(p) + prefetch_ahead, _MM_HINT_T0);
            for (int h = 0; h < parts; h++) {
                const I v = iload(p + h * lanes * 2);
                const V w0 = floats(left<16>(v)), w1 = floats(iand(v, top));
                for (int r = 0; r < R; r++) {
                    int32_t two;
                    __builtin_memcpy(&two, x + r * padded + k + j, 4);
                    const I pair = iset(two);
                    even[r][h] = fma(floats(left<16>(pair)), w0, even[r][h]);
                    odd[r][h] = fma(floats(iand(pair, top)), w1, odd[r][h]);
                }
            }
        }
        for (int r = 0; r < R; r++)
            for (int h = 0; h < parts; h++) acc[r][h] = add(acc[r][h], add(even[r][h], odd[r][h]));
    }
    for (int r = 0; r < R; r++)
        for (int h = 0; h < parts; h++) {
            const int64_t first = b * 16 + h * lanes;
            if (job.y_type == Dtype::f32) write<float>(job, m + r, first, acc[r][h]);
            else if (job.y_type == Dtype::bf16) write<bf16>(job, m + r, first, acc[r][h]);
            else write<f16>(job, m + r, first, acc[r][h]);
        }
}

}  // namespace

void bf16_rows(const Bf16Job& job, int64_t first_block, int64_t last_block) {
    void (*const by_rows[])(const Bf16Job&, int64_t, int64_t) = {
        block<1>, block<2>,
#if defined(__AVX512F__)
        block<3>, block<4>, block<5>, block<6>, block<7>, block<8>,
#endif
    };
    for (int64_t b = first_block; b < last_block; b++)
        for (int64_t m = 0; m < job.count; m += most_rows) {
            const int64_t left = job.count - m;
            by_rows[(left < most_rows ? left : most_rows) - 1](job, m, b);
        }
}

}  // namespace qwenkit::QWENKIT_LANES
