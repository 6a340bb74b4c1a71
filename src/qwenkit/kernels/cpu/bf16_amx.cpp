// bf16 linear on AMX tiles: packed weights are tiles already. Sums of 32 by 32 outputs over 512 columns at a
// time, so that the weight tiles of a panel stay in L1 for all rows of x.
#include <immintrin.h>

#include <new>

#include "kernels.h"
#include "tile_config.h"

namespace qwenkit::amx {
namespace {

constexpr int64_t columns_once = 512;

float* totals() {
    static thread_local struct Owner {
        float* p = new (std::align_val_t(4096)) float[most_count * 32];
        ~Owner() { operator delete[](p, std::align_val_t(4096)); }
    } owner;
    return owner.p;
}

template <int HALVES>
void multiply(const uint16_t* x, const uint16_t* w0, const uint16_t* w1, int64_t steps, float* total, bool fresh,
              const char* ahead0, const char* ahead1, int64_t ahead_bytes) {
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
        for (int64_t i = 0; i < ahead_bytes; i += 64) {
            _mm_prefetch(ahead0 + i, _MM_HINT_T1);
            _mm_prefetch(ahead1 + i, _MM_HINT_T1);
        }
        ahead0 += ahead_bytes;
        ahead1 += ahead_bytes;
        _tile_stream_loadd(4, x, 64);
        _tile_loadd(6, w0, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, w1, 64);
        _tile_dpbf16ps(1, 4, 7);
        if constexpr (HALVES == 2) {
            _tile_stream_loadd(5, x + 512, 64);
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
            // The weights needed next come from memory meanwhile, a share with each 32 rows of x: with one
            // share 2 KB ahead in this stream, with more the next columns or the next panel.
            const int64_t shares = (job.count + 31) / 32;
            const int64_t share = round_up((1024 + shares - 1) / shares, 64);
            const bool more = k + columns_once < padded, last = !more && panel * 2 + 3 >= blocks;
            const uint16_t* next = shares == 1 ? w0 + k * 16 + 1024
                                   : more      ? w0 + (k + columns_once) * 16
                                               : w0 + 2 * job.block_halves();
            const char* ahead = reinterpret_cast<const char*>(next);
            for (int64_t m = 0; m < job.count; m += 32, ahead += steps * share) {
                const uint16_t* x = job.halves + m * padded + k * 32;
                const auto run = job.count - m > 16 ? multiply<2> : multiply<1>;
                run(x, w0 + k * 16, w1 + k * 16, steps, total + m * 32, k == 0, ahead, ahead + (w1 - w0) * 2,
                    last && shares > 1 ? 0 : share);
            }
        }
        for (int64_t m = 0; m < job.count; m++)
            write_outputs(total + m * 32, job.bias ? job.bias + panel * 32 : nullptr, job.y, job.y_type,
                          m * job.rows + panel * 32, job.rows - panel * 32, job.past_cache);
    }
    if (job.past_cache) _mm_sfence();
}

}  // namespace qwenkit::amx
