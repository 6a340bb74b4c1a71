// bf16 linear on AMX tiles: packed weights are tiles already. Sums of 32 by 32 outputs over 512 columns at a
// time, so that the weight tiles of a panel stay in L1 for all rows of x.
#include <immintrin.h>

#include <new>

#include "kernels.h"
#include "tile_config.h"

namespace qwenkit::amx {
namespace {

constexpr int64_t columns_once = 512;
constexpr int prefetch_ahead = 2048;

float* totals() {
    static thread_local struct Owner {
        float* p = new (std::align_val_t(4096)) float[most_count * 32];
        ~Owner() { operator delete[](p, std::align_val_t(4096)); }
    } owner;
    return owner.p;
}

template <int HALVES, bool AHEAD>
void multiply(const uint16_t* x, const uint16_t* w0, const uint16_t* w1, int64_t steps, float* total, bool fresh) {
    if (fresh) {
        _tile_zero(0);
        _tile_zero(1);
        if constexpr (HALVES == 2) {
            _tile_zero(2);
            _tile_zero(3);
        }
    } else {
        _tile_loadd(0, total, 128);
        _tile_loadd(1, total + 16, 128);
        if constexpr (HALVES == 2) {
            _tile_loadd(2, total + 512, 128);
            _tile_loadd(3, total + 528, 128);
        }
    }
    for (int64_t k = 0; k < steps; k++, x += 1024, w0 += 512, w1 += 512) {
        if constexpr (AHEAD)
            for (int i = 0; i < 1024; i += 64) {
                _mm_prefetch(reinterpret_cast<const char*>(w0) + prefetch_ahead + i, _MM_HINT_T0);
                _mm_prefetch(reinterpret_cast<const char*>(w1) + prefetch_ahead + i, _MM_HINT_T0);
            }
        _tile_loadd(4, x, 64);
        _tile_loadd(6, w0, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, w1, 64);
        _tile_dpbf16ps(1, 4, 7);
        if constexpr (HALVES == 2) {
            _tile_loadd(5, x + 512, 64);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, total, 128);
    _tile_stored(1, total + 16, 128);
    if constexpr (HALVES == 2) {
        _tile_stored(2, total + 512, 128);
        _tile_stored(3, total + 528, 128);
    }
}

}  // namespace

void bf16_linear(const Bf16Job& job, int64_t first_panel, int64_t last_panel) {
    float* total = totals();
    const int64_t padded = job.padded_columns(), blocks = (job.rows + 15) / 16;
    TileConfig config(job.count < 16 ? int(job.count) : 16, 64);
    for (int64_t panel = first_panel; panel < last_panel; panel++) {
        const uint16_t* w0 = job.packed + panel * 2 * job.block_halves();
        const uint16_t* w1 = panel * 2 + 1 < blocks ? w0 + job.block_halves() : w0;
        for (int64_t k = 0; k < padded; k += columns_once) {
            const int64_t steps = (padded - k < columns_once ? padded - k : columns_once) / 32;
            for (int64_t m = 0; m < job.count; m += 32) {
                const uint16_t* x = job.halves + m * padded + k * 32;
                const bool two = job.count - m > 16, first = m == 0;
                const auto run = two ? (first ? multiply<2, true> : multiply<2, false>)
                                     : (first ? multiply<1, true> : multiply<1, false>);
                run(x, w0 + k * 16, w1 + k * 16, steps, total + m * 32, k == 0);
            }
        }
        for (int64_t m = 0; m < job.count; m++)
            write_outputs(total + m * 32, job.bias, job.y, job.y_type, m, job.rows, panel * 32);
    }
}

}  // namespace qwenkit::amx
