// Rotary embedding of one head: channels (j, j + r/2) turned by the token's angles, in float32.
#pragma once
#include "lanes.h"

namespace qwenkit::QWENKIT_LANES {

// Rows of different tokens lie on different pages: asked for early, their misses overlap.
template <class T>
inline void fetch(const T* row, int64_t channels) {
    for (int64_t c = 0; c < channels; c += 64 / int64_t(sizeof(T))) __builtin_prefetch(row + c);
}
template <class T>
inline void fetch_to_write(T* row, int64_t channels) {
    for (int64_t c = 0; c < channels; c += 64 / int64_t(sizeof(T))) __builtin_prefetch(row + c, 1);
}

// x to y (or in place), `rotary` of `channels` channels turned, the others as they are.
template <class T>
inline void rotate(const T* x, T* y, const float* cos, const float* sin, int64_t rotary, int64_t channels) {
    const int64_t half = rotary / 2;
    for (int64_t j = 0; j < half; j += lanes) {
        const int64_t n = half - j < lanes ? half - j : lanes;
        const bool whole = n == lanes;
        auto get = [&](const auto* p) { return whole ? load(p) : load_part(p, n); };
        const V a = get(x + j), b = get(x + half + j);
        // Products rounded before the sum, as separate operations round them.
        const V first = add(mul(a, get(cos + j)), mul(sub(zero(), b), get(sin + j)));
        const V second = add(mul(b, get(cos + half + j)), mul(a, get(sin + half + j)));
        if (whole) {
            store(y + j, first);
            store(y + half + j, second);
        } else {
            store_part(y + j, first, n);
            store_part(y + half + j, second, n);
        }
    }
    if (x != y)
        for (int64_t j = rotary; j < channels; j++) y[j] = x[j];
}

}  // namespace qwenkit::QWENKIT_LANES
