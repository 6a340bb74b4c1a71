// Choosing tokens from rows of logits; what is computed is defined in reference_sampling.py.
#pragma once
#include <cstdint>

#include "dtype.h"

namespace qwenkit {

// Logits [.., row_step] of which the first `size` columns are tokens, but for the holes.
struct LogitRows {
    const void* logits;
    int64_t row_step;  // elements
    int64_t size;
    const int32_t* holes;  // ids below size
    int64_t hole_count;    // -1: minus infinity marks them
    Dtype type;
};

struct DrawRow {  // its layout is that of native_sampling.DRAW
    int64_t row;
    int64_t top_k;         // 0: all
    uint64_t top_p;        // in 2^-53; 2^53: all
    uint64_t uniform;      // in 2^-53
    float temperature;     // 0: the best token
    float least;           // the score below which min_p cuts; -inf: none
    int64_t first_edit, last_edit;
    const uint32_t* allowed;  // a bit for each id, the lowest first; null: all
    int64_t token;         // result; -1 where there is none
    int64_t not_finite;    // result: NaN and infinities among the tokens' logits; all if there is no token
};

struct DrawJob {
    LogitRows from;
    const int32_t* edit_ids;
    const float* edit_values;
    DrawRow* draws;
};

struct LikelyRow {  // its layout is that of native_sampling.LIKELY
    int64_t row, token;
    int64_t top;       // how many of the likeliest
    int64_t first;     // where they go in ids and values
    int64_t found;     // result: so many there are
    double value;      // result
};

struct LikelyJob {
    LogitRows from;
    LikelyRow* rows;
    int32_t* ids;
    double* values;
};

constexpr int64_t sampling_block = 256;  // logits with a maximum of their own

constexpr int64_t sampling_scratch_bytes(int64_t size) {  // of one thread; see row_in in sample_rows.cpp
    const int64_t blocks = round_up(size, sampling_block) / sampling_block, spare = 4096;
    return blocks * (sampling_block * 4 + 4 + 8 + 1) + size * (4 + 4 + 8) + 2048 * 8 + spare;
}

void run_draws(const DrawJob& job, int64_t count);
void run_likely(const LikelyJob& job, int64_t count);

}  // namespace qwenkit
