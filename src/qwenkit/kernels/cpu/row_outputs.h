// What the row kernels of the linear layers share: how a block of 16 outputs is written, what is fetched meanwhile.
#pragma once
#include "affine.h"
#include "lanes.h"

namespace qwenkit::QWENKIT_LANES {

constexpr int parts = 16 / lanes;  // vectors a block of 16 output rows takes
constexpr int prefetch_ahead = 2048;

// How far ahead of group g a stream that reads every `streams`th block fetches: about 2 KB in whole groups, and from
// its last groups on the beginning of the block that comes next, which it would else wait for (a tenth of the time).
inline int64_t fetch_ahead(const AffineLayout& w, int64_t g, int64_t streams) {
    const int64_t groups = (prefetch_ahead + w.group_bytes - 1) / w.group_bytes;
    return groups * w.group_bytes + (g + groups < w.groups ? 0 : (streams - 1) * w.block_bytes);
}
inline void fetch(const uint8_t* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0); }

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

inline void write(const AffineJob& job, int64_t m, int64_t block, const V* acc) {
    if (job.y_type == Dtype::f32) write_block<float>(job, m, block, acc);
    else if (job.y_type == Dtype::bf16) write_block<bf16>(job, m, block, acc);
    else write_block<f16>(job, m, block, acc);
}

}  // namespace qwenkit::QWENKIT_LANES
