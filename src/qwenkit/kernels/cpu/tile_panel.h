// A panel of 32 outputs of the quantized tile kernels: where its results go.
#pragma once
#include "affine.h"
#include "tile_config.h"

namespace qwenkit::amx {

// Results of some rows of x, as soon as they are complete: the stores drain while the next rows are computed.
// total: [most_count][32], of the outputs from `column` on.
inline void write_rows(const AffineJob& job, const float* total, int64_t first, int64_t count, int64_t column) {
    for (int64_t m = first; m < job.count && m < first + count; m++)
        write_outputs(total + m * 32, job.bias ? job.bias + column : nullptr, job.y, job.y_type,
                      m * job.y_row + column - job.y_first, job.layout.rows - column, job.past_cache);
}

// The lines they go to, a few with each group: all at once would wait for memory.
inline void fetch_rows(const AffineJob& job, int64_t first, int64_t last, int64_t column) {
    const int64_t size = size_of(job.y_type);
    for (int64_t m = first; m < job.count && m < last; m++)
        __builtin_prefetch(static_cast<char*>(job.y) + (m * job.y_row + column - job.y_first) * size, 1);
}

}  // namespace qwenkit::amx
